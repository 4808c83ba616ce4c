"""Stopped at any moment, the same command ends with the same bytes; with one worker or two."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import PLAIN_ARGUMENTS, variegate

MORE = (*PLAIN_ARGUMENTS, "--set", "generate.per_real=6", "--set", "backend.batch=8", "--set", "backend.threads=1")


def fingerprint(out: Path) -> dict[str, str]:
    """Hashes of everything a user would compare: images, their table, classifiers, results, report text."""
    kinds = (".jpg", ".jsonl", ".safetensors", ".json", ".parquet", ".png")
    skipped = ("events.jsonl", "env.json")
    files = [path for path in sorted(out.rglob("*")) if path.suffix in kinds and path.name not in skipped]
    return {
        str(path.relative_to(out)): hashlib.sha256(_bytes(path)).hexdigest()
        for path in files
        if "cache" not in path.parts and path.name != "log.jsonl" and path.name != "summary.json"
    }


def _bytes(path: Path) -> bytes:
    """Of results.json without what the run took, which is another time's."""
    if path.name != "results.json":
        return path.read_bytes()
    return json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "cost"}).encode()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert variegate("run", "--out", out, *MORE).status == 0
    return fingerprint(out)


def test_two_workers_draw_the_same_bytes(undisturbed: dict[str, str], tmp_path: Path) -> None:
    said = variegate("run", "--out", tmp_path / "out", "--workers", "2", *MORE)
    assert said.status == 0, said.text
    assert fingerprint(tmp_path / "out") == undisturbed


@pytest.mark.timeout(280)
def test_killed_at_random_moments(
    undisturbed: dict[str, str], tmp_path: Path, process: Callable[..., subprocess.Popen]
) -> None:
    out = tmp_path / "out"
    rng = random.Random(3)
    signals = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM]
    for number, marker in enumerate(("synthetic", "train", "results.json")):
        child = process("run", "--out", out, *MORE, start_new_session=True)
        while child.poll() is None and not (out / marker).exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.8))
        if child.poll() is None:
            os.killpg(child.pid, signals[number])
        child.communicate(timeout=60)
    said = variegate("run", "--out", out, *MORE)
    assert said.status == 0, said.text
    assert fingerprint(out) == undisturbed
    assert not list(out.rglob("*.tmp"))


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path, process: Callable[..., subprocess.Popen]) -> None:
    out = tmp_path / "out"
    child = process("run", "--out", out, *MORE, start_new_session=True)
    while child.poll() is None and not (out / "recipe.yaml").exists():
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Run the same command again" in str(said)


def test_a_lost_image_is_drawn_again(undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert variegate("generate", "--out", out, *MORE).status == 0
    lost = sorted((out / "synthetic").rglob("*.jpg"))[3]
    lost.unlink()
    assert variegate("run", "--out", out, *MORE).status == 0
    assert fingerprint(out) == undisturbed
