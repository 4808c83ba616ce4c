"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE_THREADS = 8  # of whoever writes many files: syncing waits for the disk, not for the processor


def about_weights(path: Path) -> dict[str, Any]:
    """What variegate wrote beside the weights of a .safetensors file; empty where it wrote none, or the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {}).get("variegate", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Put bytes, or pieces one after the other, in place whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
