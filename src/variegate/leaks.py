"""Weights that were learned from images which are validation or test images here are refused, by the images' hashes.

variegate writes into every classifier which images it has learned from: the first 16 digits of each file's SHA-256.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from variegate.errors import Problem
from variegate.files import about_weights

SEEN = "seen"  # in the metadata of model.safetensors
_DIGITS = 16


def marks(hashes: Iterable[str]) -> list[str]:
    """What is kept of SHA-256 digests, sorted; empty ones are left out."""
    return sorted({one[:_DIGITS] for one in hashes if one})


def seen_by(path: Path) -> list[str] | None:
    """Marks of the images that a .safetensors file, or those in a folder, were learned from; None where no file tells."""
    found: list[str] | None = None
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        seen = about_weights(file).get(SEEN)  # of a file that cannot be read whoever loads it says what is wrong
        if isinstance(seen, list):
            found = [*(found or []), *map(str, seen)]
    return found


def seen_problems(where: str, path: Path, held_out: Collection[str]) -> list[Problem]:
    """Whether weights have learned from validation or test images; `held_out` are SHA-256 digests."""
    shared = set(seen_by(path) or ()) & set(marks(held_out))
    if not shared:
        return []
    text = f"{path.name} has learned from {len(shared):,} images that are validation or test images here"
    return [Problem(where, text, "use weights made with the data, seed, shots and splits of this run")]


def encoder_problems(where: str, encoder: str, held_out: Collection[str]) -> list[Problem]:
    """The same of an encoder named KIND:PATH; other names hold no weights that were learned here."""
    path = encoder.partition(":")[2]
    return seen_problems(where, Path(path), held_out) if path and Path(path).exists() else []
