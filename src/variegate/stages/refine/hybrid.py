"""gdl_term's semantic hybrid blending: pixels go back to the original where the drawn image says least of its class.

A CLIP model sees the drawn image place by place; the places' cosine with the class's text, spread over the image, is
its activation map; the lowest `percentile` of the map is the original's. Places are overlapping patches, each seen as an
image of its own (patches of many images together), or dense features of the whole image by one pass. Their edges are
shares of the image, so that there is a map at any size (fixed at 32 px, a CIFAR image was one patch, its map constant,
and the result the original itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from variegate.image_text import Clip, open_clip_model
from variegate.recipe import HybridBlendStep
from variegate.records import ClassInfo
from variegate.stages.refine.batch import Batch, Operation, with_original
from variegate.templates import class_text

WHERE = "refine.encoder"
PATCHES_AT_ONCE = 128
IMAGES_AT_ONCE = 8  # of dense features, which take larger inputs
FLAT = 1e-5  # cosines closer together than this are no map


def open_hybrid_blend(step: HybridBlendStep, classes: Sequence[ClassInfo], device: str, dtype: str) -> Operation:
    """Load the encoder and read the classes' texts once; raises ModelError."""
    clip = open_clip_model(step.encoder, WHERE, device=device, dtype=dtype, is_dense=step.map == "dense")
    texts = clip.text_features([class_text(step.text, info) for info in classes]).cpu().numpy()
    return partial(hybrid_blend, step, clip, texts)


def hybrid_blend(
    step: HybridBlendStep, clip: Clip, texts: np.ndarray, batch: Batch, rngs: Sequence[np.random.Generator]
) -> Batch:
    """`texts` is float32 [class, D] of length 1; nothing here is random."""
    wanted = texts[list(batch.targets)]
    if step.map == "dense":
        maps = dense_maps(batch.pixels, wanted, clip, stride=step.stride)
    else:
        maps = patch_maps(batch.pixels, wanted, clip, patch=step.patch, stride=step.stride)
    sigma_px = step.smoothing * batch.pixels.shape[1]
    masks = original_masks(maps, percentile=step.percentile, sigma_px=sigma_px, is_binary=step.mode == "binary")
    return with_original(batch, masks)


def patch_maps(pixels: np.ndarray, texts: np.ndarray, clip: Clip, *, patch: float, stride: float) -> np.ndarray:
    """How much each patch looks like the image's text: uint8 [N, H, W, 3] and float32 [N, D] to float32 [N, H, W].

    Values are cosines, interpolated linearly between the patches' centres.
    """
    height, width = pixels.shape[1:3]
    patch_px, stride_px = (max(1, round(share * min(height, width))) for share in (patch, stride))
    rows, columns = (patch_starts(edge, patch_px, stride_px) for edge in (height, width))
    features = _patch_features(pixels, rows, columns, patch_px, clip)  # [N, rows, columns, D]
    down, across = (_between(edge, starts, patch_px) for edge, starts in ((height, rows), (width, columns)))
    return _spread(features, texts, down, across)


def dense_maps(pixels: np.ndarray, texts: np.ndarray, clip: Clip, *, stride: float) -> np.ndarray:
    """As `patch_maps`, from dense features: the image is seen once, as large as gives places of `stride`.

    The model has to have such features; see `open_clip_model`.
    """
    import torch
    from torch.nn.functional import interpolate

    assert clip.dense is not None, "open_clip_model was asked for dense features"
    height, width = pixels.shape[1:3]
    rows, columns = (min(edge, max(2, round(edge / (stride * min(height, width))))) for edge in (height, width))
    size = rows * clip.dense.place_px, columns * clip.dense.place_px
    found = []
    for part in np.split(pixels, range(IMAGES_AT_ONCE, len(pixels), IMAGES_AT_ONCE)):
        levels = torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))).to(clip.device).float()
        sized = interpolate(levels, size=size, mode="bicubic", antialias=True)
        found.append(clip.place_features(sized.clamp(0.0, 255.0)).cpu().numpy())
    down, across = (_between(edge, np.arange(n) * edge / n, edge / n) for edge, n in ((height, rows), (width, columns)))
    return _spread(np.concatenate(found), texts, down, across)


def _spread(features: np.ndarray, texts: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Cosines of places [N, rows, columns, D] and texts, over all pixels; `down` and `across` as `_between` gives them."""
    cosines = np.einsum("nrcd,nd->nrc", features, texts)
    # Rounded, so that equal places stay equal: the last bits are the arithmetic's.
    return np.stack([(down @ grid @ across.T).round(6).astype(np.float32) for grid in cosines])


def patch_starts(edge: int, patch_px: int, stride_px: int) -> np.ndarray:
    """First pixels of patches from edge to edge, evenly spaced, `stride_px` apart or a bit less; int64, two or more.

    >>> patch_starts(32, 4, 2)[:3].tolist(), patch_starts(33, 16, 16).tolist()
    ([0, 2, 4], [0, 8, 17])
    """
    count = max(2, -(-(edge - patch_px) // stride_px) + 1)
    return np.floor(np.linspace(0, edge - patch_px, count) + 1e-9).astype(np.int64)


def original_masks(maps: np.ndarray, *, percentile: float, sigma_px: float, is_binary: bool) -> np.ndarray:
    """The original's weight, float32 [N, H, W]: 1 up to the map's percentile, blurred; rounded if `is_binary`.

    A higher percentile gives back more of the original. A flat map says nothing, and the drawn image stays whole.
    """
    masks = np.zeros_like(maps)
    for mask, values in zip(masks, maps, strict=True):
        if values.max() - values.min() > FLAT:
            low = (values <= np.percentile(values, percentile)).astype(np.float32)
            mask[:] = gaussian_filter(low, sigma_px, mode="reflect").clip(0.0, 1.0) if sigma_px else low
    return (masks > 0.5).astype(np.float32) if is_binary else masks


def _patch_features(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray, patch_px: int, clip: Clip) -> np.ndarray:
    """Every patch of every image, resized as the model was taught, in batches: float32 [N, rows, columns, D]."""
    import torch
    from torch.nn.functional import interpolate

    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(clip.device).permute(0, 3, 1, 2)
    # windows[n, c, y, x] is the patch that starts at (y, x): a view, no copy
    windows = images.unfold(2, patch_px, 1).unfold(3, patch_px, 1)
    n, y, x = (index.ravel() for index in np.meshgrid(np.arange(len(pixels)), rows, columns, indexing="ij"))
    found = []
    for start in range(0, len(n), PATCHES_AT_ONCE):
        part = slice(start, start + PATCHES_AT_ONCE)
        patches = windows[n[part], :, y[part], x[part]].float()
        sized = interpolate(patches, size=(clip.size_px, clip.size_px), mode="bicubic", antialias=True)
        found.append(clip.image_features(sized.clamp(0.0, 255.0)))
    return torch.cat(found).cpu().numpy().reshape(len(pixels), len(rows), len(columns), -1)


def _between(edge: int, starts: np.ndarray, patch_px: float) -> np.ndarray:
    """Weights that interpolate values at patch centres to pixels: [edge, patches], rows sum to 1."""
    centres = starts + (patch_px - 1) / 2.0
    return np.stack([np.interp(np.arange(edge), centres, unit) for unit in np.eye(len(starts))], axis=1)
