"""Stories drive the real command line on the starter."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import command, picture


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
        child = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()
