"""Stories drive the real command line on the starter, with a recipe small enough to finish in seconds."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = (
    "dataset.meadow.n_species=3",
    "dataset.meadow.n_per_species=3",
    "dataset.meadow.n_val=2",
    "dataset.meadow.n_test=4",
    "backend.steps=4",
    "backend.guidance_scale=1.0",
    "generate.per_real=2",
    "train.model=resnet-small",
    "train.steps=6",
    "train.batch=8",
    "train.evaluations=2",
    "evaluate.seeds=2",
)
SMALL_ARGUMENTS = tuple(part for item in SMALL for part in ("--set", item))


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def variegate(*arguments: str | Path) -> Said:
    """Run one command in this process (importing torch again for each would take the time of the test)."""
    from variegate.cli import run_cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run_cli([str(argument) for argument in arguments])
    return Said(status, out.getvalue(), err.getvalue())


def command(*arguments: str | Path) -> list[str]:
    """The same command for a process of its own."""
    return [sys.executable, "-m", "variegate", *(str(argument) for argument in arguments)]


def picture(seed: int, *, width: int = 48, height: int = 40) -> Image.Image:
    """A picture that is like no other: a coloured disc on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, rng.integers(255))], axis=-1).astype(np.uint8)
    disc = (x - rng.integers(10, width - 10)) ** 2 + (y - rng.integers(10, height - 10)) ** 2 < 60
    image[disc] = rng.integers(0, 255, 3)
    return Image.fromarray(image)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of class folders under tmp_path / 'photos'."""

    def make(classes: dict[str, int] | None = None) -> Path:
        root = tmp_path / "photos"
        for number, (name, count) in enumerate((classes or {"ant": 5, "bee": 5}).items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                picture(100 * number + index).save(root / name / f"{index}.png")
        return root

    return make


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start commands in processes of their own; whatever still runs at the end is killed."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str | Path, **options: object) -> subprocess.Popen:
        child = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()
