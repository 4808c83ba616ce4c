"""Retrieval: instead of drawn images, those of a pool that lie nearest to the real ones of each class.

The sceptic's baseline: where a pool of unlabelled photos does as well, nothing needs to be drawn. The pool's labels, if it has any,
are not looked at. What is retrieved becomes the synthetic images of a run folder of its own, which `train.pools` reads, and what
retrieving took is recorded there as of a stage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from variegate.backends.base import locate
from variegate.backends.folder import model_fingerprint
from variegate.cost import Meter
from variegate.encoders import AUTO, CLASSIFIER, Encoder, encoder_fingerprint, open_encoder
from variegate.errors import DataError, Problem
from variegate.files import write_atomic
from variegate.images import IMAGE_EXTENSIONS, check_images, encode_image, load_rgb, load_squares, read_content
from variegate.near_duplicates import looks_of, near_pairs
from variegate.progress import Bar, Reporter
from variegate.recipe import Recipe, overlaid
from variegate.records import ClassInfo, RealImage, content_id
from variegate.stages.dataset.facts import unreadable_problems
from variegate.stages.dataset.source import read_source
from variegate.store import RunFolder, synthetic_path

NAME = "retrieve"  # as a stage, recorded last
FORMAT = "png"
LOOK_PX = 64  # edge of the squares that are compared; more than the look itself, which averages
_SLICE = 512  # images in memory at a time


@dataclass(frozen=True, slots=True)
class PoolImage:
    """One image of the pool, on disk."""

    name: str
    path: Path
    sha256: str


def read_pool(pool: str, recipe: Recipe, kept: Path) -> list[PoolImage]:
    """Every image of a folder, with or without classes, or of other DATA, once each.

    Images that are drawn or downloaded are written below `kept`. Raises DataError where there is none, and for files that give no
    picture unless dataset.skip_unreadable leaves them out.
    """
    root = Path(pool).expanduser()
    if root.is_dir() and not (root / "run.db").is_file():
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file())
        found = [(path.relative_to(root).as_posix(), path) for path in paths]
    else:
        found = _listed(pool, recipe, kept)
    if not found:
        raise DataError(Problem(f"--pool {pool}", "holds no images", "name a folder of images, or DATA"))
    section = recipe.dataset
    checks = check_images([path for _, path in found], max_megapixels=section.max_megapixels)
    broken = {name: check.reason for (name, _), check in zip(found, checks, strict=True) if check.reason}
    if broken and not section.skip_unreadable:
        problems = unreadable_problems(broken, section)
        raise DataError([replace(one, where=f"--pool {pool}: {one.where}".rstrip(": ")) for one in problems])
    images = [
        PoolImage(name, path, check.sha256)
        for (name, path), check in zip(found, checks, strict=True)
        if not check.reason
    ]
    if not images:
        raise DataError(
            Problem(f"--pool {pool}", "holds no image that can be read", "name a folder of images, or DATA")
        )
    return list({image.sha256: image for image in images}.values())


def _listed(pool: str, recipe: Recipe, kept: Path) -> list[tuple[str, Path]]:
    changes = {"dataset": {"path": pool, "shots": None, "imbalance": None}}
    listing = read_source(Recipe.model_validate(overlaid(recipe.model_dump(), changes)))
    if listing.problems:
        raise DataError(listing.problems)
    found = []
    for image in listing.images:
        path = image.content
        if not isinstance(path, Path):
            path = kept / content_id(pool, image.name)
            if not path.exists():
                write_atomic(path, read_content(image.content))
        found.append((image.name, path))
    return found


def leaks(
    pool: Sequence[PoolImage], looks: Sequence[bytes], held_out: Sequence[RealImage], max_megapixels: float
) -> list[Problem]:
    """Validation and test images that the pool holds too: the same bytes, or the same picture saved again."""
    shared = _shared(pool, looks, held_out, max_megapixels)
    if not shared:
        return []
    place, image = next(iter(shared.items()))
    text = (
        f"holds {len(shared)} validation or test images, such as {pool[place].name}, which is {Path(image.path).name}"
    )
    return [Problem("--pool", text, "take them out: the classifier would learn from what it is judged by")]


def unlike(
    pool: Sequence[PoolImage], looks: Sequence[bytes], train: Sequence[RealImage], max_megapixels: float
) -> tuple[list[PoolImage], int, int]:
    """Pool images that are neither training images nor nearly one before them in the pool; and how many were left out as
    the one and as the other: of a picture that is there many times retrieval would take nothing else."""
    shared = _shared(pool, looks, train, max_megapixels)
    others = [place for place in range(len(pool)) if place not in shared]
    kept: list[int] = []
    for start in range(0, len(others), _SLICE):
        part = others[start : start + _SLICE]
        fresh: list[int] = []
        known = {one for one, _ in near_pairs([looks[k] for k in part], [looks[k] for k in kept])}
        for place in (place for number, place in enumerate(part) if number not in known):
            if not near_pairs([looks[place]], [looks[k] for k in fresh]):
                fresh.append(place)
        kept += fresh
    return [pool[place] for place in kept], len(shared), len(others) - len(kept)


def _shared(
    pool: Sequence[PoolImage], looks: Sequence[bytes], real: Sequence[RealImage], max_megapixels: float
) -> dict[int, RealImage]:
    """Place in the pool -> the real image that it is."""
    by_bytes = {image.sha256: image for image in real}
    shared = {place: by_bytes[image.sha256] for place, image in enumerate(pool) if image.sha256 in by_bytes}
    known = looks_at([Path(image.path) for image in real], max_megapixels)
    for start in range(0, len(pool), _SLICE):
        pairs = near_pairs(looks[start : start + _SLICE], known)
        shared |= {start + one: real[other] for one, other in pairs if start + one not in shared}
    return shared


def looks_at(paths: Sequence[Path], max_megapixels: float) -> list[bytes]:
    """What near duplicates are told by, of each image."""
    parts = (paths[start : start + _SLICE] for start in range(0, len(paths), _SLICE))
    return [one for part in parts for one in looks_of(load_squares(part, LOOK_PX, "stretch", max_megapixels))]


def nearest(real: np.ndarray, labels: np.ndarray, pool: np.ndarray, wanted: Sequence[int]) -> list[list[int]]:
    """For each class the pool images nearest to any of its real ones, best first; an image goes to one class only.

    `real` float [N, D] with `labels` int [N], `pool` float [M, D], `wanted` images a class. Features are standardised by the real
    ones and compared by their angle.

    >>> nearest(np.array([[0.0, 1], [1, 0]]), np.array([0, 1]), np.array([[0.9, 0.0], [0.0, 2.0], [0.1, 0.8]]), [2, 1])
    [[2, 1], [0]]
    """
    mean, spread = real.mean(axis=0), np.maximum(real.std(axis=0), 1e-6)
    unit_real, unit_pool = (_unit((rows - mean) / spread) for rows in (real, pool))
    likeness = unit_pool @ unit_real.T  # [M, N]
    closest = likeness.argmax(axis=1)
    found: list[list[int]] = []
    for label, count in enumerate(wanted):
        own = np.flatnonzero(labels[closest] == label)
        ranked = own[np.argsort(-likeness[own, closest[own]], kind="stable")]
        found.append(ranked[:count].tolist())
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def encoder_of(recipe: Recipe) -> str:
    """The encoder that the recipe curates with; the drawing model's own features where it names none."""
    named = [
        step.encoder
        for step in recipe.curate
        if step.score.endswith("agreement") and not step.encoder.startswith(CLASSIFIER)
    ]
    return named[0] if named else AUTO


def retrieve(
    folder: RunFolder, images: Sequence[PoolImage], recipe: Recipe, wanted: Sequence[int], reporter: Reporter
) -> None:
    """Put the nearest pool images into a run folder as its synthetic ones; nothing is done twice.

    `folder` has a finished dataset stage; `recipe` names the encoder and the model that draws. Training images and near
    duplicates are left out. Raises DataError where the pool holds held-out images, or nothing for a class.
    """
    key, done = _key(folder, images, recipe, wanted), folder.stage(NAME)
    if done and done[0] == key:
        return
    start = time.monotonic()
    with Meter() as meter:
        summary = _retrieve(folder, images, recipe, wanted, reporter)
    folder.finish_stage(NAME, key, time.monotonic() - start, {**summary, "cost": meter.cost()})
    reporter.line(f"{NAME}: {summary['line']}")


def recorded(root: str) -> tuple[str, dict[str, Any], float] | None:
    """(key, summary, seconds) of the retrieval that filled this pool; None where it was not made by one."""
    if not (Path(root) / "run.db").is_file():
        return None
    with RunFolder.read(Path(root)) as pool:
        return pool.stage(NAME)


def _retrieve(
    folder: RunFolder, images: Sequence[PoolImage], recipe: Recipe, wanted: Sequence[int], reporter: Reporter
) -> dict[str, Any]:
    """Choose and write; returns the counted line and its numbers."""
    max_megapixels, train = recipe.dataset.max_megapixels, folder.real_images("train")
    looks = looks_at([image.path for image in images], max_megapixels)
    held_out = [image for image in folder.real_images() if image.split != "train"]
    problems = leaks(images, looks, held_out, max_megapixels)
    if problems:
        raise DataError(problems)
    usable, known, alike = unlike(images, looks, train, max_megapixels)
    if not usable:
        text = "holds training images alone"
        raise DataError(Problem("--pool", text, "use a larger pool, or leave retrieval out"))
    with open_encoder(encoder_of(recipe), recipe) as encoder, reporter.bar("looking at the pool", len(usable)) as bar:
        real = _features(encoder, recipe, [Path(image.path) for image in train])
        pool = _features(encoder, recipe, [image.path for image in usable], bar)
    chosen = nearest(real, np.array([image.label for image in train]), pool, wanted)
    classes = folder.classes()
    without = [info.name for info, indices, count in zip(classes, chosen, wanted, strict=True) if count and not indices]
    if without:
        text = f"no image of the pool is nearest to class {', '.join(without[:5])}"
        raise DataError(Problem("--pool", text, "use a larger pool, or leave retrieval out"))
    taken = {info.label: [usable[i] for i in indices] for info, indices in zip(classes, chosen, strict=True)}
    _write(folder, classes, taken, max_megapixels)
    count = sum(map(len, chosen))
    line = f"{count:,} of {len(images):,} images of the pool"
    if known or alike:
        line += f"; left out: {known:,} that are training images, {alike:,} nearly like another one of the pool"
    short = sum(len(indices) < number for indices, number in zip(chosen, wanted, strict=True))
    if short:
        line += f"; fewer than are drawn for {short} of {len(classes)} classes"
    return {"line": line, "retrieved": count, "training_images": known, "near_duplicates": alike}


def _key(folder: RunFolder, images: Sequence[PoolImage], recipe: Recipe, wanted: Sequence[int]) -> str:
    """Of all that the choice depends on, held-out images too: the pool must not hold them."""
    name = encoder_of(recipe)
    seen = [model_fingerprint(*locate(recipe.backend))] if name == AUTO else encoder_fingerprint(name)
    real = sorted((image.sha256 or image.id, image.split, image.label) for image in folder.real_images())
    return content_id(sorted(image.sha256 for image in images), name, seen, real, list(wanted), recipe.dataset.fit)


def _features(encoder: Encoder, recipe: Recipe, paths: Sequence[Path], bar: Bar | None = None) -> np.ndarray:
    """float32 [N, D]."""
    section, found = recipe.dataset, []
    for start in range(0, len(paths), _SLICE):
        part = paths[start : start + _SLICE]
        found.append(encoder.features(load_squares(part, encoder.size_px, section.fit, section.max_megapixels)))
        if bar:
            bar.advance(len(part))
    return np.concatenate(found)


def _write(
    folder: RunFolder,
    classes: Sequence[ClassInfo],
    chosen: Mapping[int, Sequence[PoolImage]],
    max_megapixels: float,
) -> None:
    """Files first, then all rows at once: images of one chunk that was drawn from nothing."""
    rows: list[tuple[object, ...]] = []
    for info in classes:
        for image in chosen[info.label]:
            image_id = content_id("retrieved", image.sha256, info.label)
            folder.write(
                synthetic_path(info, image_id, FORMAT),
                encode_image(load_rgb(image.path, max_megapixels=max_megapixels), FORMAT),
            )
            rows.append((len(rows), image_id, 0, None, info.label, 0, 0, 1.0, 0, 0, 0.0, 0, "", ""))
    with folder.transaction() as db:
        for table in ("plan", "chunks", "prompts"):
            db.execute(f"DELETE FROM {table}")
        db.execute("INSERT INTO prompts VALUES (0, '')")
        db.executemany(f"INSERT INTO plan VALUES ({', '.join('?' * 14)})", rows)
        db.execute("INSERT INTO chunks VALUES (0, 0, ?, 'done', NULL, NULL)", (len(rows),))
        db.execute("INSERT OR REPLACE INTO meta VALUES ('image_format', ?)", (FORMAT,))
