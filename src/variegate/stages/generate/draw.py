"""Draw one chunk of the plan and put its files in place: what a worker does, in this process or in another.

The chunk fixes the batch, so any worker draws the same bytes. Sources are encoded in fixed groups and kept in the run folder's
cache, so that restarts and other workers start from the same numbers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from variegate.backends.base import BackendSpec
from variegate.backends.devices import in_parts, is_out_of_memory
from variegate.errors import TaskFailed
from variegate.executors.base import Report
from variegate.files import FILE_THREADS, write_atomic
from variegate.images import Fit, encode_image, load_square, paste_kept
from variegate.masks import Masking
from variegate.records import ClassInfo, PlanRow, RealImage, content_id
from variegate.store import drawn_path, synthetic_path

if TYPE_CHECKING:
    import torch

SOURCES_PER_GROUP = 16
KEPT_GROUPS = 64
KEPT_MASKS = 512
CACHE = "cache/latents"


@dataclass(frozen=True, slots=True)
class DrawSetup:
    """What a worker needs once."""

    spec: BackendSpec
    devices: tuple[str, ...]  # of the workers, in turn
    root: str  # run folder
    classes: tuple[ClassInfo, ...]  # in label order
    sources: tuple[RealImage, ...]  # the training images, sorted by id
    fit: Fit
    max_megapixels: float
    image_format: str
    relative_token_noise: bool = False
    is_refined: bool = False  # by the stage that comes next: files go to drawn/
    masking: Masking | None = None
    masks: tuple[str, ...] = ()  # with masking: their hashes, in the order of `sources`
    paste: bool = False  # put the source's own pixels back where it was not repainted

    def square(self, image: RealImage) -> np.ndarray:
        """A source as it is drawn from: uint8 [S, S, 3]."""
        return load_square(Path(image.path), self.spec.size_px, self.fit, self.max_megapixels)


@dataclass(frozen=True, slots=True)
class DrawTask:
    """One chunk."""

    chunk: int
    rows: tuple[PlanRow, ...]

    @property
    def name(self) -> str:
        return f"generate: chunk {self.chunk}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chunk whose files are in place."""

    chunk: int
    num_images: int
    seconds: float
    parts: int  # 1; more when memory ran out and the chunk was drawn in parts


class DrawWorker:
    """Holds the model; draws chunk after chunk."""

    def __init__(self, setup: DrawSetup, number: int = 0) -> None:
        from variegate.backends.diffusion import DiffusionBackend

        self.setup = setup
        device = setup.devices[number % len(setup.devices)]
        self.backend = DiffusionBackend.open(replace(setup.spec, device=device))
        self.sources = {image.id: image for image in setup.sources}
        self.latents = SourceLatents(setup, lambda _, squares: self.backend.encode_sources(squares))
        self.repainted = lru_cache(KEPT_MASKS)(self._repainted)
        self.masked = SourceLatents(setup, self._encode_masked, setup.masks) if setup.spec.kind == "inpaint" else None
        self.writers = ThreadPoolExecutor(FILE_THREADS)

    def __call__(self, task: DrawTask, report: Report) -> Drawn:
        """Raises TaskFailed when not even a single image fits into memory."""
        start = time.monotonic()
        pixels, parts = self._draw(task, list(task.rows))
        list(self.writers.map(self._write, task.rows, pixels))  # list() raises what a writer raised
        return Drawn(task.chunk, len(task.rows), time.monotonic() - start, parts)

    def _draw(self, task: DrawTask, rows: Sequence[PlanRow]) -> tuple[np.ndarray, int]:
        """(pixels, number of parts they were drawn in): fewer rows at a time whenever memory runs out."""
        work = lambda first, last: self._draw_batch(rows[first:last])  # noqa: E731
        try:
            found = in_parts(work, len(rows), len(rows), self.backend.free_memory)
        except (MemoryError, RuntimeError) as exc:
            if not is_out_of_memory(exc):
                raise
            reason = f"memory does not suffice for one image: {exc}"
            raise TaskFailed(task.name, f"{reason}; draw smaller (backend.size_px) or on another device") from exc
        return np.concatenate(found), len(found)

    def _draw_batch(self, rows: Sequence[PlanRow]) -> np.ndarray:
        from variegate.backends.diffusion import TokenNoise

        ids = [row.source for row in rows if row.source is not None]  # a chunk has sources or has none
        return self.backend.draw(
            [row.prompt for row in rows],
            self.latents.stack(ids) if ids else None,
            strengths=[row.strength for row in rows],
            steps=rows[0].steps,
            seeds=[row.seed for row in rows],
            negative=rows[0].negative,
            token_noise=[
                TokenNoise(row.target, row.token_std, row.token_seed, self.setup.relative_token_noise) for row in rows
            ],
            repaint=np.stack([self.repainted(one) for one in ids]) if self.setup.masking else None,
            masked=self.masked.stack(ids) if self.masked else None,
            passes=rows[0].passes,
        )

    def _repainted(self, source: str) -> np.ndarray:
        assert self.setup.masking is not None, "only a plan with masks asks what is repainted"
        return self.setup.masking.repainted(self.sources[source])

    def _encode_masked(self, images: Sequence[RealImage], squares: np.ndarray) -> torch.Tensor:
        return self.backend.encode_sources(squares, np.stack([self.repainted(image.id) for image in images]))

    def _write(self, row: PlanRow, pixels: np.ndarray) -> None:
        setup = self.setup
        if setup.paste and row.source is not None:
            pixels = paste_kept(pixels, setup.square(self.sources[row.source]), self.repainted(row.source))
        path_of = drawn_path if setup.is_refined else synthetic_path
        relative = path_of(setup.classes[row.target], row.id, setup.image_format)
        write_atomic(Path(setup.root, relative), encode_image(pixels, setup.image_format))

    def close(self) -> None:
        self.writers.shutdown()
        self.backend.close()


class SourceLatents:
    """Latents of the training images, encoded in fixed groups and cached as safetensors in the run folder.

    `encode` is given images and their squares; `masks` are the hashes of what else its result depends on.
    """

    def __init__(
        self,
        setup: DrawSetup,
        encode: Callable[[Sequence[RealImage], np.ndarray], torch.Tensor],
        masks: Sequence[str] = (),
    ) -> None:
        self.setup, self.encode = setup, encode
        self.position = {image.id: index for index, image in enumerate(setup.sources)}
        spec = setup.spec
        machine = (spec.dtype, spec.device, spec.threads, spec.memory_format)  # all that may change the last bits
        parts = (spec.fingerprint, machine, spec.size_px, setup.fit, [(i.id, i.sha256) for i in setup.sources], *masks)
        self.folder = Path(setup.root, CACHE, content_id(*parts))
        self.groups: OrderedDict[int, torch.Tensor] = OrderedDict()

    def stack(self, ids: Sequence[str]) -> torch.Tensor:
        """float32 [N, C, h, w] in the order of `ids`."""
        import torch

        found = []
        for image_id in ids:
            group, index = divmod(self.position[image_id], SOURCES_PER_GROUP)
            found.append(self._group(group)[index])
        return torch.stack(found)

    def _group(self, group: int) -> torch.Tensor:
        if group not in self.groups:
            self.groups[group] = self._read_or_encode(group)
            while len(self.groups) > KEPT_GROUPS:
                self.groups.popitem(last=False)
        self.groups.move_to_end(group)
        return self.groups[group]

    def _read_or_encode(self, group: int) -> torch.Tensor:
        """Two workers may encode the same group at once: they write the same bytes, whole. A damaged file is written anew."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        path = self.folder / f"{group:06d}.safetensors"
        with suppress(SafetensorError, FileNotFoundError):
            return load_file(path)["latents"]
        first = group * SOURCES_PER_GROUP
        images = self.setup.sources[first : first + SOURCES_PER_GROUP]
        squares = np.stack([self.setup.square(image) for image in images])
        write_atomic(path, save({"latents": self.encode(images, squares).contiguous()}))
        return load_file(path)["latents"]
