"""Decode and resize every image once: a uint8 array in memory, or memory-mapped in the run's cache/ when large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from variegate.images import Fit, load_squares
from variegate.records import content_id

IN_MEMORY_BYTES = 1 << 30
_SLICE = 2048  # images decoded between writes


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image to load; `key` changes when its pixels do."""

    path: Path
    key: str


def load_images(
    files: Sequence[ImageFile],
    size_px: int,
    fit: Fit,
    max_megapixels: float,
    *,
    cache: Path,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> np.ndarray:
    """uint8 [N, size_px, size_px, 3] in the order of `files`; more than `in_memory_bytes` of it stays on disk.

    Raises UnreadableImage for a file that has gone or broken since the dataset stage looked at it.
    """
    shape = (len(files), size_px, size_px, 3)
    if int(np.prod(shape)) <= in_memory_bytes:
        return load_squares([file.path for file in files], size_px, fit, max_megapixels)
    target = cache / f"{content_id([file.key for file in files], size_px, fit)}.npy"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(files), _SLICE):
            paths = [file.path for file in files[start : start + _SLICE]]
            pixels[start : start + _SLICE] = load_squares(paths, size_px, fit, max_megapixels)
        pixels.flush()
        del pixels
        temporary.replace(target)
    return np.load(target, mmap_mode="r")


def carried(pixels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | Path]:
    """As another process is sent them: what lies on disk by its file."""
    return {name: Path(str(one.filename)) if isinstance(one, np.memmap) else one for name, one in pixels.items()}


def opened(pixels: Mapping[str, np.ndarray | Path]) -> dict[str, np.ndarray]:
    """What `carried` was given."""
    return {name: np.load(one, mmap_mode="r") if isinstance(one, Path) else one for name, one in pixels.items()}
