"""Every operation through the command line on the meadow, killed in the middle and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from driving import PLAIN_ARGUMENTS, settings, variegate
from tiny_models import build_transformers_clip

RECIPE = """\
# Everything refine can do, one after the other.
backend: {{batch: 1, threads: 1}}
generate: {{method: real-mix}}
refine:
  - {{op: concat, orientation: random, first: random, seam: 0.1}}
  - {{op: patches, coverage: 0.6, max_patches: 3, softness: 0.05}}
  - {{op: hybrid-blend, encoder: "clip:{clip}", mode: soft, percentile: 20}}
  - {{op: fractal, weight: [0.1, 0.2], kinds: [ifs, flame, julia]}}
curate: [{{score: blank}}]
"""
TWO_A_CLASS = (*PLAIN_ARGUMENTS, *settings("generate.method=real-mix", "generate.per_class=2"))


def fingerprint(out: Path) -> dict[str, str]:
    kinds = (".jpg", ".png", ".jsonl")
    files = [
        path for part in ("drawn", "synthetic") for path in sorted((out / part).rglob("*")) if path.suffix in kinds
    ]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "refined.yaml"
    path.write_text(RECIPE.format(clip=build_transformers_clip(tmp_path / "clip")))
    return path


def test_killed_while_refining_the_same_command_ends_with_the_same_bytes(
    recipe: Path, tmp_path: Path, process: Callable[..., subprocess.Popen]
) -> None:
    said = variegate("recipes", "validate", recipe)
    assert said.status == 0, said.text
    planned = json.loads(variegate("plan", "--recipe", recipe, "--no-measure", "--json", *TWO_A_CLASS).out)
    assert (planned["refined_images"], len(planned["operations"])) == (6, 4)

    whole, out = tmp_path / "whole", tmp_path / "out"
    said = variegate("generate", "--recipe", recipe, "--out", whole, *TWO_A_CLASS)
    assert said.status == 0 and "refine: 6 images refined (concat, patches, hybrid-blend, fractal)" in said.text
    undisturbed = fingerprint(whole)
    assert len([name for name in undisturbed if name.endswith(".jpg")]) == 6

    child = process("generate", "--recipe", recipe, "--out", out, *TWO_A_CLASS, start_new_session=True)
    while child.poll() is None and not list(out.glob("synthetic/train/*/*/*.jpg")):
        time.sleep(0.002)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    (out / "synthetic" / "train" / "metadata.jsonl").unlink(missing_ok=True)
    said = variegate("generate", "--recipe", recipe, "--out", out, *TWO_A_CLASS)
    assert said.status == 0, said.text
    assert fingerprint(out) == undisturbed and not list(out.rglob("*.tmp"))


def test_mixing_with_an_original_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    keys = settings("generate.method=real-gen", "refine=[{op: concat}]")
    said = variegate("run", "--out", tmp_path / "out", *PLAIN_ARGUMENTS, *keys)
    assert said.status == 2 and "use real-aug or real-mix, or leave concat out" in said.text
    assert not (tmp_path / "out").exists()
