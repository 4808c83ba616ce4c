"""Training pictures for the starter: butterflies drawn by the meadow, or photos from Parquet files.

Both end as shards `data/shard-NNNNN.npz` (images uint8 [n, size, size, 3] and one JSON item per image). A shard is
written under a temporary name and renamed, so a killed run continues with the first missing shard.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.stages.dataset.butterflies import draw_butterfly, sample_pose
from variegate.stages.dataset.meadow import HABITAT_PHRASES, HABITATS, mark_phrases, sample_starter_species

SHARD_IMAGES = 600
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
    images, items = [], []
    for path in sorted(folder.glob("shard-*.npz")):
        with np.load(path) as shard:
            images.append(shard["images"])
            rows = json.loads(shard["items"].tobytes())
        items.extend(Item(row["name"], tuple(row["phrases"]), row["place"]) for row in rows)
    if not images:
        raise FileNotFoundError(f"no shard-*.npz in {folder}; run the data stage first")
    return Pictures(np.concatenate(images), items)


def _draw_shard(job: tuple[Path, int, int, int, list[int]]) -> None:
    path, num_species, per_species, size_px, seed = job
    images, items = [], []
    for index in range(num_species):
        rng = np.random.default_rng([*seed, index])
        species = sample_starter_species(rng)
        for _ in range(per_species):
            habitat = HABITATS[rng.integers(len(HABITATS))]
            images.append(draw_butterfly(species, sample_pose(rng, habitat), rng, size_px)[0])
            items.append(Item("butterfly", mark_phrases(species), HABITAT_PHRASES[habitat]))
    _write_shard(path, images, items)


def _write_shard(path: Path, images: list[np.ndarray], items: list[Item]) -> None:
    temporary = path.with_suffix(".partial")
    text = json.dumps([asdict(item) for item in items]).encode()
    with temporary.open("wb") as file:
        np.savez(file, images=np.stack(images), items=np.frombuffer(text, np.uint8))
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
