"""What stories share: the command line in this process, a recipe small enough to finish in seconds, pictures."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = (  # the default recipe, made small
    "dataset.meadow.n_species=3",
    "dataset.meadow.n_per_species=3",
    "dataset.meadow.n_val=2",
    "dataset.meadow.n_test=4",
    "backend.steps=4",
    "backend.guidance_scale=1.0",
    "adapt.steps=4",
    "adapt.batch=4",
    "adapt.evaluations=1",
    "adapt.previews=1",
    "generate.per_real=2",
    "generate.strength=0.5",
    "train.mixing.fraction=0.5",
    "train.model=resnet-small",
    "train.steps=6",
    "train.batch=8",
    "train.evaluations=2",
    "evaluate.seeds=2",
)
PLAIN = (*SMALL, "adapt.method=none", "generate.method=real-aug")  # the same without an adapter


def settings(*items: str) -> tuple[str, ...]:
    return tuple(part for item in items for part in ("--set", item))


SMALL_ARGUMENTS, PLAIN_ARGUMENTS = settings(*SMALL), settings(*PLAIN)
QUICK = (  # an adapter's story
    *PLAIN_ARGUMENTS,
    *settings(
        "backend.threads=1",
        "prompts.text=a photo of a {name}",
        "curate=[{score: blank}]",
        "train.mixing.policy=pool",
        "generate.per_real=1",
        "evaluate.seeds=1",
        "adapt.steps=6",
        "adapt.batch=4",
        "adapt.lr=0.01",
        "adapt.checkpoints=6",
        "adapt.evaluations=1",
        "adapt.previews=1",
    ),
)
LEARN = (*QUICK, *settings("adapt.method=tokens+lora", "adapt.vectors=2", "generate.method=diff-aug"))


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
