"""Training pictures for the starter: butterflies drawn by the meadow, or photos from Parquet files.

Both end as shards `data/shard-NNNNN.npz` (images uint8 [n, size, size, 3], marks uint8 [n, size / 4, size / 4] and one JSON
item per image). A shard is written under a temporary name and renamed, so a killed run continues with the first missing shard.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.stages.dataset.butterflies import NO_MARK, Pose, Species, draw_butterfly, sample_pose
from variegate.stages.dataset.meadow import HABITAT_PHRASES, HABITATS, mark_phrases, sample_starter_species

SHARD_IMAGES = 600
LATENT_PX = 4  # pixels an edge of a latent's place
NO_MARKS, MARKS, SPOTS = 0, 1, 2  # what a place of the latents shows
SEEN_CHANGE = 24  # of 255: what a mark changes at least
MAX_SOURCE_PX = 40_000_000  # a larger photo is refused rather than decoded


@dataclass(frozen=True)
class Item:
    """The words of one picture: what it shows, its marks, and where it is ("" = unknown)."""

    name: str
    phrases: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Pictures:
    """All training pictures in memory."""

    images: np.ndarray  # uint8 [N, size, size, 3]
    items: list[Item]  # [N]
    marks: np.ndarray  # uint8 [N, size / 4, size / 4], of NO_MARKS, MARKS, SPOTS


def draw_shards(folder: Path, *, num_species: int, per_species: int, size_px: int, seed: int, workers: int) -> None:
    """Draw `num_species * per_species` butterflies of starter species into shards, the missing ones only."""
    species_per_shard = SHARD_IMAGES // per_species
    jobs = [
        (folder / f"shard-{k:05d}.npz", min(species_per_shard, num_species - first), per_species, size_px, [seed, k])
        for k, first in enumerate(range(0, num_species, species_per_shard))
    ]
    jobs = [job for job in jobs if not job[0].exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw_shard, jobs), 1):
            if done % 20 == 0 or done == len(jobs):
                print(f"data: {done} of {len(jobs)} shards", flush=True)


def read_parquet_shards(folder: Path, sources: list[Path], *, size_px: int) -> None:
    """Decode Parquet rows (`image` bytes or {"bytes": ...}, `name` or `label`) into shards, resized to a square."""
    folder.mkdir(parents=True, exist_ok=True)
    images, items, index = [], [], 0
    for encoded, name in _parquet_rows(sources):
        images.append(_square(encoded, size_px))
        items.append(Item(name=name.replace("_", " ")))
        if len(images) == SHARD_IMAGES:
            _write_shard(folder / f"shard-{index:05d}.npz", images, items)
            images, items, index = [], [], index + 1
    if images:
        _write_shard(folder / f"shard-{index:05d}.npz", images, items)


def load_pictures(folder: Path) -> Pictures:
    """All shards of a folder, in order."""
    images, items, marks = [], [], []
    for path in sorted(folder.glob("shard-*.npz")):
        with np.load(path) as shard:
            images.append(shard["images"])
            marks.append(shard["marks"])
            rows = json.loads(shard["items"].tobytes())
        items.extend(Item(row["name"], tuple(row["phrases"]), row["place"]) for row in rows)
    if not images:
        raise FileNotFoundError(f"no shard-*.npz in {folder}; run the data stage first")
    return Pictures(np.concatenate(images), items, np.concatenate(marks))


def _draw_shard(job: tuple[Path, int, int, int, list[int]]) -> None:
    path, num_species, per_species, size_px, seed = job
    images, items, marks = [], [], []
    for index in range(num_species):
        rng = np.random.default_rng([*seed, index])
        species = sample_starter_species(rng)
        for _ in range(per_species):
            habitat = HABITATS[rng.integers(len(HABITATS))]
            image, shown = _drawn_with_marks(species, sample_pose(rng, habitat), rng, size_px)
            images.append(image)
            marks.append(shown)
            items.append(Item("butterfly", mark_phrases(species), HABITAT_PHRASES[habitat]))
    _write_shard(path, images, items, marks)


def _drawn_with_marks(
    species: Species, pose: Pose, rng: np.random.Generator, size_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and where its marks and spots are: what differs from the same scene without them; uint8 [s / 4, s / 4]."""
    state = rng.bit_generator.state
    image = draw_butterfly(species, pose, rng, size_px)[0]
    shown = np.full((size_px // LATENT_PX, size_px // LATENT_PX), NO_MARKS, np.uint8)
    spotless = replace(species, spot_count=0, spot_colour=NO_MARK, spot_kind=NO_MARK, spot_place=NO_MARK)
    for kind, plain in ((MARKS, Species(*species.genus)), (SPOTS, spotless)):
        if plain != species:
            again = np.random.default_rng()
            again.bit_generator.state = state
            change = np.abs(image.astype(np.int16) - draw_butterfly(plain, pose, again, size_px)[0]).max(axis=2)
            places = change.reshape(len(shown), LATENT_PX, len(shown), LATENT_PX).max(axis=(1, 3))
            shown[places > SEEN_CHANGE] = kind
    return image, shown


def _write_shard(
    path: Path, images: list[np.ndarray], items: list[Item], marks: list[np.ndarray] | None = None
) -> None:
    edge = images[0].shape[0] // LATENT_PX
    shown = np.stack(marks) if marks else np.full((len(images), edge, edge), NO_MARKS, np.uint8)
    temporary = path.with_suffix(".partial")
    text = json.dumps([asdict(item) for item in items]).encode()
    with temporary.open("wb") as file:
        np.savez(file, images=np.stack(images), marks=shown, items=np.frombuffer(text, np.uint8))
    temporary.replace(path)


def _parquet_rows(sources: list[Path]) -> Iterator[tuple[bytes, str]]:
    import pyarrow.parquet as pq

    files = [
        file for source in sources for file in (sorted(source.rglob("*.parquet")) if source.is_dir() else [source])
    ]
    if not files:
        raise FileNotFoundError(f"no .parquet file in {', '.join(map(str, sources))}")
    for file in files:
        table = pq.ParquetFile(file)
        text_column = "name" if "name" in table.schema_arrow.names else "label"
        for batch in table.iter_batches(512, columns=["image", text_column]):
            for row in batch.to_pylist():
                image = row["image"]
                yield (image["bytes"] if isinstance(image, dict) else image), str(row[text_column])


def _square(encoded: bytes, size_px: int) -> np.ndarray:
    """Middle square, resized; uint8 [size_px, size_px, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.width * image.height > MAX_SOURCE_PX:
            raise ValueError(f"a picture of {image.width} x {image.height} is larger than {MAX_SOURCE_PX} pixels")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return np.asarray(
            image.convert("RGB").resize(
                (size_px, size_px), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
            )
        )
