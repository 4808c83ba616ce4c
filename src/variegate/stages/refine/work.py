"""Refine one chunk: what a worker does, in this process or in another.

The chunk is the plan's own, so any worker makes the same bytes. Files are in place before anything is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from variegate.executors.base import Report
from variegate.files import FILE_THREADS, write_atomic
from variegate.images import Fit, encode_image, load_rgb, load_square
from variegate.recipe import RefineStep
from variegate.records import ClassInfo, PlanRow, RealImage
from variegate.stages.refine.batch import Batch
from variegate.stages.refine.operations import open_operations, refine
from variegate.store import drawn_path, synthetic_path


@dataclass(frozen=True, slots=True)
class RefineSetup:
    """What a worker needs once."""

    steps: tuple[RefineStep, ...]
    root: str  # run folder
    classes: tuple[ClassInfo, ...]  # in label order
    sources: dict[str, RealImage]  # the training images by id
    fit: Fit
    max_megapixels: float
    drawn_format: str
    image_format: str
    devices: tuple[str, ...]  # of the workers' encoders, in turn: where the images were drawn
    dtype: str
    threads: int


@dataclass(frozen=True, slots=True)
class RefineTask:
    """One chunk."""

    chunk: int
    rows: tuple[PlanRow, ...]

    @property
    def name(self) -> str:
        return f"refine: chunk {self.chunk}"


@dataclass(frozen=True, slots=True)
class Refined:
    """A chunk whose files are in place."""

    chunk: int
    shares: tuple[tuple[str, float], ...]  # (id, share of the picture that is the original's)
    seconds: float


class RefineWorker:
    """Holds the operations and their encoders; refines chunk after chunk."""

    def __init__(self, setup: RefineSetup, number: int = 0) -> None:
        self.setup = setup
        self.threads_before = _set_threads(setup.threads) if uses_torch(setup.steps) else None
        device = setup.devices[number % len(setup.devices)]
        self.operations = open_operations(setup.steps, setup.classes, device=device, dtype=setup.dtype)
        self.files = ThreadPoolExecutor(FILE_THREADS)

    def __call__(self, task: RefineTask, report: Report) -> Refined:
        start = time.monotonic()
        drawn = np.stack(list(self.files.map(self._read, task.rows)))
        originals = self._originals(task.rows, drawn.shape[1])
        batch = refine(
            self.operations,
            Batch.of(drawn, originals, [row.target for row in task.rows]),
            [row.id for row in task.rows],
        )
        list(self.files.map(self._write, task.rows, batch.pixels))  # list() raises what a writer raised
        shares = tuple((row.id, share) for row, share in zip(task.rows, batch.shares, strict=True))
        return Refined(task.chunk, shares, time.monotonic() - start)

    def _read(self, row: PlanRow) -> np.ndarray:
        setup = self.setup
        return load_rgb(Path(setup.root, drawn_path(setup.classes[row.target], row.id, setup.drawn_format)))

    def _originals(self, rows: Sequence[PlanRow], size_px: int) -> np.ndarray | None:
        """The sources as the drawing model saw them, each decoded once."""
        setup = self.setup
        sources = [row.source for row in rows if row.source is not None]
        if len(sources) < len(rows):
            return None
        ids = list(dict.fromkeys(sources))

        def read(image_id: str) -> np.ndarray:
            return load_square(Path(setup.sources[image_id].path), size_px, setup.fit, setup.max_megapixels)

        squares = dict(zip(ids, self.files.map(read, ids), strict=True))
        return np.stack([squares[source] for source in sources])

    def _write(self, row: PlanRow, pixels: np.ndarray) -> None:
        setup = self.setup
        relative = synthetic_path(setup.classes[row.target], row.id, setup.image_format)
        write_atomic(Path(setup.root, relative), encode_image(pixels, setup.image_format))

    def close(self) -> None:
        self.files.shutdown()
        self.operations = []
        if self.threads_before is not None:
            _set_threads(self.threads_before)


def uses_torch(steps: Sequence[RefineStep]) -> bool:
    """Whether any of them computes on a device; the others are numpy's."""
    return any(step.op == "hybrid-blend" for step in steps)


def _set_threads(threads: int) -> int:
    """torch's threads before; the last bits of features depend on them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before
