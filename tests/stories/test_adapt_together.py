"""Two processes that adapt together, as torchrun and accelerate launch start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from driving import LEARN, settings, variegate
from safetensors.numpy import load_file


def two_processes(process: Callable[..., subprocess.Popen], *arguments: str | Path) -> list[subprocess.Popen]:
    """As torchrun and accelerate launch start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    team = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        process(*arguments, env={**os.environ, **team, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]


@pytest.mark.parametrize(
    ("more", "lessons"),
    [
        ((), 1),
        (
            settings("backend.model=starter-onestep", "backend.steps=1", "backend.guidance_scale=1", "backend.batch=4",
                     "adapt.model=starter", "adapt.distill={pairs: 8, steps: 4}", "adapt.steps=3"),
            2,
        ),
    ],
    ids=["adapting", "distilling"],
)  # fmt: skip
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, process: Callable[..., subprocess.Popen], more: tuple[str, ...], lessons: int
) -> None:
    """The second one writes nothing. In fp32: bf16 rounds more than its sums, which turns Adam's first steps round."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    more = (*more, *settings("adapt.dtype=fp32"))
    children = two_processes(process, "adapt", "--out", out, *LEARN, *more)
    assert variegate("adapt", "--out", alone, *LEARN, *more).status == 0
    said = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert f"helped with {lessons} lessons" in said[1][0]
    mine, theirs = (load_file(root / "adapt/learned_embeds.safetensors") for root in (out, alone))
    assert all(np.abs(mine[name] - theirs[name]).max() < 0.02 for name in theirs), "the same but for rounding"
    losses = [json.loads((root / "adapt/log.jsonl").read_text().splitlines()[-1]) for root in (out, alone)]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=0.01)


def test_a_process_that_ends_ends_the_team(tmp_path: Path, process: Callable[..., subprocess.Popen]) -> None:
    """Whoever is left in a step would wait for twelve hours."""
    many = settings("adapt.steps=2000", "adapt.checkpoints=1000")
    children = two_processes(process, "adapt", "--out", tmp_path / "out", *LEARN, *many)
    while children[0].poll() is None and not any((tmp_path / "out/adapt/checkpoints").glob("step-*")):
        time.sleep(0.05)
    children[1].kill()
    _, err = children[0].communicate(timeout=100)
    assert children[0].returncode == 1 and "another process of the team has ended" in err, err
    assert "Traceback" not in err
    left = two_processes(process, "adapt", "--out", tmp_path / "other", *LEARN, *settings("adapt.lr=1e30"))
    said = [child.communicate(timeout=200) for child in left]
    assert [child.returncode for child in left] == [1, 1] and "lower adapt.lr" in said[0][1], said
    assert not any("Traceback" in err for _, err in said), said


def test_a_helper_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may lie on the first process's machine alone; the model is needed here too."""
    from variegate.stages.adapt import team

    monkeypatch.setattr(team, "help_out", lambda recipe, say: 1)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    photos = tmp_path / "on the other machine"
    said = variegate("adapt", photos, "--out", tmp_path / "out", *LEARN)
    assert said.status == 0 and "helped with 1 lessons" in said.out, said.text
    assert not (tmp_path / "out").exists()
    said = variegate("adapt", photos, "--out", tmp_path / "out", *LEARN, *settings("backend.model=startr"))
    assert said.status == 2 and "startr: no such model folder" in said.err, said.text
