"""What flows between stages: frozen records, their ids, and the seeds derived from ids.

No disk, no model, no torch. Labels, strengths and prompts are fields here, never parts of a file name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

Split = str  # train, val, test, or test_<word>: an extra test set, reported apart
SoftLabel = tuple[tuple[int, float], ...]  # ((label, weight), ...): weights >= 0, sum <= 1

DIGITS = 6  # of numbers in result files
ID_CHARS = 24  # 96 bits of blake2b: no collision to expect below 10^12 images


def content_id(*parts: Any) -> str:
    """Hash JSON-able parts into a hexadecimal id, equal across processes and machines.

    >>> content_id("a", 1) == content_id("a", 1), len(content_id())
    (True, 24)
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=ID_CHARS // 2).hexdigest()


def rounded(value: Any) -> Any:
    """Every fraction to DIGITS digits and a plain float, inside lists and dicts too.

    >>> rounded({"a": [0.12345678, -0.0], "b": 3})
    {'a': [0.123457, 0.0], 'b': 3}
    """
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return round(float(value), DIGITS) + 0.0  # no -0.0
    return value


def seed_from(*parts: Any) -> int:
    """Derive a 63-bit seed from an id and a purpose, so that order and workers cannot change it.

    >>> seed_from("3fa9", "noise") == seed_from("3fa9", "noise")
    True
    """
    return int(content_id(*parts)[:16], 16) >> 1


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class: `label` indexes the sorted class list; `slug` is the only form that becomes a path part."""

    label: int
    name: str
    slug: str
    description: str = ""  # what a prompt may say instead of the name


@dataclass(frozen=True, slots=True)
class RealImage:
    """One image of the user's; `path` is absolute, or relative to the run folder for built-in data."""

    id: str
    path: str
    label: int
    split: Split
    group: str | None = None
    caption: str | None = None
    mask: str | None = None
    width: int = 0
    height: int = 0
    sha256: str = ""  # of the file's bytes


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One image to make; everything that fixes its pixels. `id` hashes the rest and seeds the noise."""

    row: int
    id: str
    chunk: int
    source: str | None  # RealImage.id, None = drawn from text alone
    target: int  # label drawn
    prompt: str
    negative: str
    strength: float  # (0, 1]; 1 = text-to-image or an edit; of a sequence the strongest
    steps: int  # executed denoising steps
    seed: int
    token_std: float = 0.0  # noise on the target's learned tokens
    token_seed: int = 0
    mask: str = ""  # hash of what of the source is repainted; "" = all of it
    passes: tuple[float, ...] = ()  # strengths drawn one after another; () = one pass at `strength`


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """One drawn image with its provenance and what curate decided; `path` is relative to the run folder."""

    id: str
    path: str
    source: str | None
    source_label: int | None
    target: int
    prompt: str
    strength: float
    action: Literal["keep", "drop"] = "keep"
    weight: float = 1.0
    reason: str = ""
    original_share: float = 0.0  # of the picture that refine gave back to the source's own pixels
    refined: str = ""  # hash of what refine did to it, which the id leaves out; empty where nothing


def arm_folder(name: str) -> str:
    """Where the classifiers of an arm are, relative to the run folder.

    >>> arm_folder("real+synthetic")
    'train/real-synthetic'
    """
    return f"train/{name.replace('+', '-').replace(' ', '-')}"


def extra_tests(splits: Iterable[Split]) -> list[Split]:
    """The extra test sets among splits, sorted.

    >>> extra_tests(["train", "test", "test_uncommon_context"])
    ['test_uncommon_context']
    """
    return sorted({split for split in splits if split.startswith("test_")})


def soft_label(
    source: int | None,
    target: int,
    strength: float,
    *,
    gamma: float,
    kappa: float = 1.0,
    original_share: float = 0.0,
) -> SoftLabel:
    """Diff-Mix's label (arXiv 2403.19600): the target's share grows as strength**gamma.

    y = kappa * ((1 - s^gamma) e_source + s^gamma e_target); the released code used kappa = 0.9 silently, here it is 1.
    Where the share o of the picture is the source's own pixels, that is the label of the rest: o e_source + (1 - o) y.

    >>> soft_label(0, 1, 1.0, gamma=0.5)
    ((1, 1.0),)
    >>> soft_label(0, 1, 0.25, gamma=0.5)
    ((0, 0.5), (1, 0.5))
    >>> soft_label(0, 1, 0.25, gamma=0.5, original_share=0.5)
    ((0, 0.75), (1, 0.25))
    """
    if source is None or source == target:
        return ((target, kappa),)
    share = (1.0 - original_share) * strength**gamma
    pairs = ((source, kappa * (1.0 - share)), (target, kappa * share))
    return tuple((label, weight) for label, weight in pairs if weight > 0.0)
