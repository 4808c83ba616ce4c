"""Read other tools' weight files safely: safetensors, and pickles by torch.load(weights_only=True) alone.

A pickle that asks for anything but tensors and plain containers is refused before that thing is touched.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from variegate.errors import ModelError, Problem, first_of

if TYPE_CHECKING:
    import torch

Format = Literal["pickle", "safetensors", "text", "empty", "pointer", "other"]
MAX_BYTES = 8 * 2**30  # a whole SDXL U-Net is 5 GB; what is imported here is far smaller
SHOWN_KEYS = 100


@dataclass(frozen=True, slots=True)
class Weights:
    """A weight file's contents: `values` by key, `metadata` of a safetensors header."""

    path: Path
    values: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def file_format(path: Path) -> Format:
    """What a file is by its first bytes, whatever it is called."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "pointer"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "pickle"
    if size > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= size:
        return "safetensors"
    return "text" if _is_text(head) else "other"


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and not re.search(rb"[\x01-\x08\x0e-\x1f]", head)


def read_weights(path: Path) -> Weights:
    """Read a pickle or safetensors file to the CPU; raises ModelError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        text = f"is {size / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.1f} GB an adapter can be"
        raise ModelError(Problem(str(path), text, "name the file of tokens or LoRA weights"))
    weights = _read_safetensors(path) if file_format(path) == "safetensors" else Weights(path, _read_pickle(path))
    if not weights.values:
        raise ModelError(Problem(str(path), "holds nothing", "name another file"))
    return weights


def weight_keys(path: Path) -> list[str] | None:
    """The keys of a safetensors file from its header alone; None for a pickle, which has to be read for them."""
    from safetensors import SafetensorError, safe_open

    if file_format(path) != "safetensors":
        return None
    try:
        with safe_open(path, "np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as exc:
        raise ModelError(Problem(str(path), f"is damaged or cut off ({exc})", "get the file again")) from exc


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            return Weights(path, values, file.metadata() or {})
    except (SafetensorError, OSError) as exc:
        raise ModelError(Problem(str(path), f"is damaged or cut off ({exc})", "get the file again")) from exc


def _read_pickle(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    _refuse_archive(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ModelError(
            Problem(str(path), _pickle_reason(str(exc)), "get it as safetensors, or from whoever made it")
        ) from exc
    except Exception as exc:  # damaged pickles make torch raise nearly anything
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise ModelError(Problem(str(path), f"is damaged or no torch file ({reason})", "get the file again")) from exc
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        text = f"holds a {type(values).__name__}, and a dictionary of named values is needed"
        raise ModelError(Problem(str(path), text, "name a file of learned embeddings or LoRA weights"))
    return dict(values)


def _pickle_reason(message: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", message)
    if match:
        return f"is a pickle that asks to run {match.group(1)}; it was not run"
    return "is damaged, or a pickle that holds more than tensors; nothing of it was run"


def _refuse_archive(path: Path) -> None:
    """torch stores its archives uncompressed; a compressed one could unpack to any size."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # what torch itself goes by; anything else it reads as its older format
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as exc:  # damaged archives make zipfile raise BadZipFile, Unicode and NotImplemented errors
        text = f"is damaged or cut off ({exc})"
        raise ModelError(Problem(str(path), text, "get the file again")) from exc
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(
            Problem(str(path), "is a compressed archive, which torch.save never writes", "name a torch file")
        )
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise ModelError(Problem(str(path), "is a zip archive and no torch file", "unpack it, and name what is inside"))


def tensor_problems(tensors: Mapping[str, Any], path: Path) -> list[Problem]:
    """Values that are no tensors of finite floating-point numbers that the file really holds."""
    import torch

    kinds: dict[str, list[str]] = {}
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            reason = f"no tensor but {type(value).__name__}"
        elif value.layout != torch.strided or not value.is_floating_point():
            reason = f"no floating-point tensor but {value.dtype}"
        elif value.numel() == 0:
            reason = "empty"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            reason = "larger than what the file holds for it"
        elif not bool(torch.isfinite(value.float()).all()):
            reason = "not finite (it has NaN or infinite numbers)"
        else:
            continue
        kinds.setdefault(reason, []).append(key)
    return [Problem(str(path), f"{some_keys(keys)}: {reason}", "export it again") for reason, keys in kinds.items()]


def some_keys(keys: list[str]) -> str:
    """Keys by name; beyond a hundred they are counted."""
    return first_of(list(map(str, keys)), SHOWN_KEYS)


def unknown_keys(keys: list[str], path: Path, what: str) -> list[Problem]:
    """The problem of keys that nothing here understands; empty when there are none."""
    if not keys:
        return []
    text = f"{len(keys):,} keys not understood in {what}: {some_keys(keys)}"
    return [Problem(str(path), text, "every key must be understood; see docs/import.md for what is")]


def clean(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as fp32, without graph, that shares no memory with the rest of the file."""
    import torch

    return tensor.detach().to(torch.float32, copy=True).contiguous()
