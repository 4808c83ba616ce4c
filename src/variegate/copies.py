"""Are synthetic images copies of training images? Pure: pixels in, distances and a calibrated threshold out.

The distance of two pictures is 1 - r, with r their largest correlation over mirroring and over crops of the training image
down to 85 % of its edge, at 48 px, each channel about its own mean: brighter, mirrored, slightly cropped or re-compressed
copies stay near, other pictures of the same thing do not. What is near is learned from the training images themselves:
from altered copies of them, and from how far they are from each other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from variegate.records import seed_from

SIZE_PX = 64  # edge of the squares that come in
EDGE, SMALLEST = 48, 41  # px; the whole picture, and the smallest crop looked for
COARSE = 8  # px; where candidates are chosen
CANDIDATES = 4  # training images looked at closely for each image, of either mirroring
HONEST = 0.02  # share of images that are no copies that may be taken for one
FOUND, MARGIN = 0.99, 2.0  # the threshold is at most so many times what this share of the altered copies keeps below
MAX_ALTERED, MAX_APART = 100, 1000  # images that the threshold is learned from
ALTERATIONS = 4  # of each
CROP, GAIN, SHIFT, QUALITY = (0.9, 1.0), (0.9, 1.1), (-10.0, 10.0), (60, 95)
_BLOCK = 1024  # images compared at a time


@dataclass(frozen=True, slots=True)
class Calibration:
    """What counts as a copy of these training images; distances are sorted float64."""

    threshold: float  # below it an image is a copy
    altered: np.ndarray  # of altered copies to their originals: what has to be found
    apart: np.ndarray  # of each training image to the nearest other one, not of its group: what must not be
    is_sharp: bool  # nearly all altered copies lie below the threshold


@dataclass(frozen=True, slots=True)
class Nearness:
    """How near images are to training images; distances float64 [N] in [0, 2], inf where there is none to compare with."""

    source: np.ndarray  # to the image it was made from
    other: np.ndarray  # to the nearest other one
    nearest: np.ndarray  # int64 [N], which one that is; -1: none


def nearness(
    pixels: np.ndarray,
    real: np.ndarray,
    sources: Sequence[int] | np.ndarray | None = None,
    apart_from: Sequence[Sequence[int]] | None = None,
) -> Nearness:
    """Distances of images to training images, both uint8 [N, 64, 64, 3].

    `sources` are indices into `real`, -1 for none. `apart_from` lists further indices that are passed over for each image.
    """
    count = len(pixels)
    own = np.full(count, -1, np.int64) if sources is None else np.asarray(sources, np.int64)
    skipped = [set(one) for one in apart_from] if apart_from is not None else [set() for _ in range(count)]
    known = _unit(_resized(real, COARSE)), _resized(real, EDGE)
    parts = [
        _near_block(pixels[first : first + _BLOCK], known, own[first : first + _BLOCK], skipped[first : first + _BLOCK])
        for first in range(0, count, _BLOCK)
    ]
    if not parts:
        return Nearness(np.empty(0), np.empty(0), np.empty(0, np.int64))
    return Nearness(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("source", "other", "nearest"))
    )


def _near_block(
    pixels: np.ndarray, known: tuple[np.ndarray, np.ndarray], own: np.ndarray, skipped: Sequence[set[int]]
) -> Nearness:
    """`known` are the training images at COARSE px, as rows of length 1, and at EDGE px."""
    coarse, whole = known
    source, other = np.full(len(pixels), np.inf), np.full(len(pixels), np.inf)
    nearest = np.full(len(pixels), -1, np.int64)
    looks = [[_unit(_resized(side, edge)) for edge in range(SMALLEST, EDGE + 1)] for side in _sides(pixels)]
    for place, rows in enumerate(_wanted(pixels, coarse, own, skipped)):
        if not len(rows):
            continue
        found = np.maximum(1.0 - _best(looks, rows, whole[place]), 0.0)
        is_own = own[rows] == place
        source[rows[is_own]] = found[is_own]
        rows, found = rows[~is_own], found[~is_own]
        closer = found < other[rows]
        other[rows[closer]], nearest[rows[closer]] = found[closer], place
    return Nearness(source, other, nearest)


def calibrate(real: np.ndarray, groups: Sequence[str], *, seed: int) -> Calibration:
    """Learn from training images uint8 [N, 64, 64, 3] what a copy of one of them is.

    The threshold lies half-way, on a scale of ratios, between what altered copies come to and where more than HONEST of the
    training images would be copies of others; `groups` names what belongs together (one animal), which is not compared. It never falls
    below the middle one of the altered copies, whatever the training images have in common.
    """
    rng = np.random.default_rng(seed_from(seed, "altered"))
    chosen = _some(len(real), MAX_ALTERED, rng)
    altered = np.stack([alter(real[k], rng) for k in chosen for _ in range(ALTERATIONS)])
    own = np.repeat(chosen, ALTERATIONS)
    copied = np.sort(nearness(altered, real, own).source)
    asked = _some(len(real), MAX_APART, rng)
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    apart = nearness(real[asked], real, None, [[k, *members[groups[k]]] for k in asked]).other
    apart = np.sort(apart[np.isfinite(apart)])
    far = float(np.quantile(copied, FOUND))
    room = float(np.quantile(apart, HONEST)) if len(apart) else np.inf
    threshold = max(min(MARGIN * far, (far * room) ** 0.5, room), float(np.median(copied)))
    return Calibration(threshold, copied, apart, is_sharp=far < threshold)


def count_copies(drawn: np.ndarray, real: np.ndarray, calibration: Calibration) -> int:
    """Drawn images without a source that are copies of training images; both uint8 [N, 64, 64, 3]."""
    return int((nearness(drawn, real).other < calibration.threshold).sum())


def alter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of uint8 [S, S, 3] as it might be passed on: cropped to 90 % or more, lighter or darker, mirrored or not, a JPEG."""
    edge = len(pixels)
    kept = round(edge * rng.uniform(*CROP))
    top, left = rng.integers(0, edge - kept + 1, 2).tolist()
    cut = Image.fromarray(pixels[top : top + kept, left : left + kept]).resize((edge, edge), Image.Resampling.BICUBIC)
    levels = np.asarray(cut, np.float64) * rng.uniform(*GAIN) + rng.uniform(*SHIFT)
    lit = np.clip(np.round(levels), 0, 255).astype(np.uint8)
    mirrored = lit[:, ::-1] if rng.random() < 0.5 else lit
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mirrored)).save(buffer, "JPEG", quality=int(rng.integers(*QUALITY)))
    return np.asarray(Image.open(buffer).convert("RGB"))


def _some(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(count)[:most])


def _sides(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pixels, pixels[:, :, ::-1]


def _wanted(pixels: np.ndarray, known: np.ndarray, own: np.ndarray, skipped: Sequence[set[int]]) -> list[np.ndarray]:
    """For each training image the images to compare with it closely: those made from it, and those it is a candidate of."""
    rows: list[list[int]] = [[] for _ in range(len(known))]
    sides = [_unit(_resized(side, COARSE)) for side in _sides(pixels)]
    likeness = np.maximum(sides[0] @ known.T, sides[1] @ known.T)
    count = min(CANDIDATES + 1, len(known))  # the source may be among them
    for index, row in enumerate(likeness):
        source, passed = {int(own[index])} - {-1}, skipped[index]
        row[list(passed)] = -np.inf
        best = set(np.argpartition(-row, count - 1)[:count].tolist())
        for place in (best - passed) | source:
            rows[place].append(index)
    return [np.array(one, np.int64) for one in rows]


def _best(looks: Sequence[Sequence[np.ndarray]], rows: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Largest correlation of images with one training image float [EDGE, EDGE, 3], over its crops and the images' mirroring."""
    best = np.full(len(rows), -1.0)
    for number, edge in enumerate(range(SMALLEST, EDGE + 1)):
        crops = np.lib.stride_tricks.sliding_window_view(whole, (edge, edge), axis=(0, 1))
        crops = _unit(np.moveaxis(crops, 2, -1).reshape(-1, edge, edge, 3))
        for side in looks:
            best = np.maximum(best, (side[number][rows] @ crops.T).max(axis=1))
    return best


def _resized(pixels: np.ndarray, edge: int) -> np.ndarray:
    """float32 [N, edge, edge, 3]."""
    small = [
        Image.fromarray(np.ascontiguousarray(one)).resize((edge, edge), Image.Resampling.LANCZOS) for one in pixels
    ]
    return (
        np.stack([np.asarray(one) for one in small]).astype(np.float32) if small else np.empty((0, edge, edge, 3), "f4")
    )


def _unit(pictures: np.ndarray) -> np.ndarray:
    """[N, E, E, 3] as rows of length 1, every channel about its mean; a picture of one colour is all zeros, like no other."""
    centred = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    flat = centred.reshape(len(pictures), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 1e-3 * flat.shape[1] ** 0.5, length, np.inf)
