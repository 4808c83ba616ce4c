"""Encode every image once: the whole, random crops, and the mirror image of each; kept in the run's cache.

A crop is of the user's picture, not of the small square, so it keeps its sharpness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from variegate.backends.devices import in_parts, is_out_of_memory
from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import TaskFailed
from variegate.files import write_atomic
from variegate.images import load_mask, load_squares
from variegate.recipe import AdaptSection, DatasetSection
from variegate.records import RealImage, content_id, seed_from

CACHE = "cache/adapt"
IMAGES_PER_FILE = 256
CROP_SHARE = (0.75, 1.0)  # of the edge


def encode_views(
    backend: DiffusionBackend,
    images: Sequence[RealImage],
    root: Path,
    section: AdaptSection,
    dataset: DatasetSection,
    *,
    seed: int,
    advance: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Scaled latents float16 [N, views, C, h, w], view = crop * 2 + mirrored (or crop, without flips); crop 0 is the whole."""
    spec, parts = backend.spec, []
    settings = (spec.fingerprint, spec.dtype, spec.size_px, dataset.fit, section.crops, section.flip, seed)
    for start in range(0, len(images), IMAGES_PER_FILE):
        group = images[start : start + IMAGES_PER_FILE]
        path = root / CACHE / f"{content_id(*settings, [(i.id, i.sha256) for i in group])}.safetensors"
        found = read_cached(path)
        latents = found["latents"] if found else None
        if latents is None:
            latents = _encode(backend, group, section, dataset, seed)
            write_atomic(path, save({"latents": latents}))
        parts.append(latents)
        advance(len(group))
    return torch.cat(parts)


def read_cached(path: Path) -> dict[str, torch.Tensor] | None:
    """Tensors of a file in the run's cache; None where it is absent or damaged, so that it is made anew."""
    try:
        return load_file(path) if path.is_file() else None
    except SafetensorError:
        return None


@contextmanager
def fitting(doing: str) -> Iterator[None]:
    """Around what goes in ever smaller parts: raises TaskFailed where memory does not suffice for `doing` with one image."""
    try:
        yield
    except (MemoryError, RuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        reason = f"memory does not suffice for {doing} with one image: {exc}"
        raise TaskFailed("adapt", f"{reason}; set a lower backend.size_px, or adapt on another device") from exc


def encode(backend: DiffusionBackend, pixels: np.ndarray) -> torch.Tensor:
    """uint8 [N, S, S, 3] to scaled latents, float32 [N, C, h, w]; fewer at a time where memory runs out."""
    with fitting("encoding"):
        work = lambda first, last: backend.encode_sources(pixels[first:last])  # noqa: E731
        return torch.cat(in_parts(work, len(pixels), len(pixels), backend.free_memory))


def _encode(
    backend: DiffusionBackend, images: Sequence[RealImage], section: AdaptSection, dataset: DatasetSection, seed: int
) -> torch.Tensor:
    edge = backend.spec.size_px
    large = round(edge / CROP_SHARE[0]) if section.crops > 1 else edge  # crops are cut from a larger square
    squares = load_squares([Path(image.path) for image in images], large, dataset.fit, dataset.max_megapixels)
    views = []
    for number in range(section.crops):
        pixels = np.stack(
            [_crop(square, edge, image.id, number, seed) for square, image in zip(squares, images, strict=True)]
        )
        views.append(encode(backend, pixels))
        if section.flip:
            views.append(encode(backend, np.ascontiguousarray(pixels[:, :, ::-1])))
    return torch.stack(views, dim=1).half().contiguous()


def _crop(square: np.ndarray, edge: int, image_id: str, number: int, seed: int) -> np.ndarray:
    """View `number` of a square [S, S, 3]: 0 is the whole, the others random windows; uint8 [edge, edge, 3]."""
    from variegate.images import resize_square

    if square.shape[0] == edge:
        return square
    if number == 0:
        return resize_square(square, edge)
    rng = np.random.default_rng(seed_from(seed, "crop", image_id, number))
    side = round(square.shape[0] * rng.uniform(*CROP_SHARE))
    top, left = rng.integers(0, square.shape[0] - side + 1, 2)
    return resize_square(np.ascontiguousarray(square[top : top + side, left : left + side]), edge)


def mask_views(
    images: Sequence[RealImage], section: AdaptSection, dataset: DatasetSection, *, edge: int, latent_px: int, seed: int
) -> torch.Tensor:
    """What of each view the loss counts, float32 [N, views, 1, h, w] in [0, 1], cut as the views are; ones without a mask."""
    large = round(edge / CROP_SHARE[0]) if section.crops > 1 else edge
    rows = []
    for image in images:
        if image.mask:
            shape = (image.width, image.height) if image.width else None
            mask = load_mask(Path(image.mask), large, dataset.fit, dataset.max_megapixels, shape=shape)
            square = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
        else:
            square = np.full((large, large, 3), 255, np.uint8)
        views = []
        for number in range(section.crops):
            plane = torch.from_numpy(_crop(square, edge, image.id, number, seed)[..., 0].astype(np.float32) / 255)
            small = torch.nn.functional.adaptive_avg_pool2d(plane[None], latent_px)
            views += [small, small.flip(-1)] if section.flip else [small]
        rows.append(torch.stack(views))
    return torch.stack(rows)
