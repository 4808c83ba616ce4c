"""The commands of the README, as a newcomer types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driving import SMALL_ARGUMENTS, command, settings, variegate

from variegate.recipe_file import RECIPES, recipe_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    said = variegate("run", "--out", out, *SMALL_ARGUMENTS)
    assert said.status == 0, said.text
    assert said.out.strip().splitlines()[-1].endswith(".") or "points" in said.out
    return out


def test_run_leaves_images_results_and_a_report(finished: Path) -> None:
    pictures = sorted((finished / "synthetic").rglob("*.jpg"))
    assert len(pictures) == 3 * 3 * 2
    results = json.loads((finished / "results.json").read_text())
    assert [arm["arm"] for arm in results["arms"]] == ["real", "real+synthetic"]
    assert results["synthetic"]["drawn"] == len(pictures)
    assert [entry["images"] for entry in results["synthetic"]["class_agreement"]] == [6, 6, 6]
    assert (finished / "adapt/pytorch_lora_weights.safetensors").is_file()
    assert results["verdict"] in (finished / "report.html").read_text().replace("&#39;", "'")
    assert not list(finished.rglob("*.tmp"))


def test_the_same_command_again_does_nothing_twice(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.jpg")}
    said = variegate("run", "--out", finished, *SMALL_ARGUMENTS)
    assert said.status == 0
    assert said.err.count("already done") >= 5
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.jpg")} == before


def test_the_synthetic_folder_is_an_imagefolder(finished: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset("imagefolder", data_dir=str(finished / "synthetic" / "train"), split="train")
    assert len(loaded) == 18
    assert {"prompt", "strength", "class_name", "label"} <= set(loaded.column_names)


def test_every_recipe_is_found_valid_and_planned() -> None:
    files = sorted(path.stem for path in RECIPES.rglob("*.yaml"))
    assert files == recipe_names() and len(files) >= 5
    for name in files:
        assert variegate("recipes", "validate", name).status == 0
        said = variegate("plan", "--recipe", name, "--no-measure", "--json")
        assert said.status == 0, said.text
        assert (json.loads(said.out)["images"] == 0) == (name == "none")


def test_plan_touches_nothing() -> None:
    assert variegate("plan", "--no-measure").status == 0
    assert not list(Path.cwd().iterdir())


def test_plan_tells_the_time_of_every_slow_stage_and_of_the_whole() -> None:
    seconds = json.loads(variegate("plan", *SMALL_ARGUMENTS, "--json").out)["seconds"]
    assert list(seconds) == ["adapt", "generate", "train", "total"] and seconds["total"] > 0
    assert seconds["total"] == pytest.approx(
        sum(value for stage, value in seconds.items() if stage != "total"), abs=0.1
    )
    said = variegate("plan", *SMALL_ARGUMENTS, *settings("curate.1.min_images=3"))
    assert "total" in said.out and "curate" in said.out, "a jury is taught where classes have the images it wants"
    assert not list(Path.cwd().iterdir())


def test_recipes_can_be_listed_shown_and_copied_but_not_over_a_file(tmp_path: Path) -> None:
    assert all(name in variegate("recipes", "ls").out for name in recipe_names())
    copy = tmp_path / "mine.yaml"
    assert variegate("recipes", "cp", "real-mix", copy).status == 0
    assert copy.read_text() == variegate("recipes", "show", "real-mix").out
    assert variegate("recipes", "cp", "real-gen", copy).status == 2
    assert variegate("recipes", "validate", copy).status == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_early_is_no_failure(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    program = subprocess.Popen(
        command("recipes", "show", "variegate"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    program.stdout.close()  # as head does once it has its lines
    assert (program.stderr.read(), program.wait()) == (b"", 0)
    program.stderr.close()


def test_doctor_names_the_machine() -> None:
    findings = json.loads(variegate("doctor", "--json").out)
    assert {"variegate", "processor", "memory", "starter", "starter-onestep", "clip", "8bit", "prodigy"} <= {
        finding["what"] for finding in findings
    }
    assert all(finding["remedy"] for finding in findings if finding["state"] == "missing")


def test_machine_output_is_json_only(tmp_path: Path) -> None:
    said = variegate("run", "--recipe", "none", "--out", tmp_path / "out", "--json", *SMALL_ARGUMENTS)
    assert json.loads(said.out)["results"]["verdict"]


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys; from variegate.cli import run_cli; run_cli(['--help']); import variegate; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith("False")
    start = time.perf_counter()
    subprocess.run(command("--help"), check=True, capture_output=True)
    assert time.perf_counter() - start < 5  # the half second itself is kept by benchmarks/, not by a timed test


def test_the_help_examples_and_readme_commands_exist() -> None:
    text = (ROOT / "README.md").read_text() + variegate("--help").out
    verbs = set(re.findall(r"(?:uv run |^  )variegate ([a-z]+)", text, flags=re.MULTILINE))
    assert {"run", "plan"} <= verbs
    for verb in sorted(verbs):
        assert variegate(verb, "--help").status == 0, verb
