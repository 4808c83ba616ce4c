"""The benchmarks run and say what they measured: on the smallest settings, by the same code as the long runs."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run a benchmark with arguments; its JSON."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(script: str, *arguments: str) -> dict:
        runpy.run_path(str(BENCHMARKS / script))["main"](arguments)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own pipelines, called here for comparison
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_drawing_speed_of_a_shape_is_measured_and_its_folder_used_again(last_line, tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--work", str(tmp_path), "--images", "8", "--plain-images", "2"]
    found = last_line("draw.py", *arguments, "--turns", "1", "--steps", "4")
    assert (found["model"], found["random_weights"], found["images"], found["size_px"]) == ("tiny", True, 8, 64)
    assert (found["device"], found["plain_dtype"], found["guidance_scale"]) == ("cpu", "fp32", 7.5)
    assert found["ratio"] > 0 and found["chunk_images_per_second"] >= found["stage_images_per_second"]
    written = (tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    last_line("draw.py", *arguments, "--turns", "1", "--steps", "2", "--strength", "0.5")
    assert (tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written


def test_one_step_is_measured_against_diff_mix_s_setting(last_line) -> None:
    found = last_line("one_step.py", "--images", "16", "--plain-images", "1", "--turns", "1")
    assert found["ratio_to_plain"] == pytest.approx(
        found["one_step_images_per_second"] / found["plain_images_per_second"], abs=0.1
    )


def test_known_truths_are_told_from_trained_classifiers(last_line) -> None:
    found = last_line("known_truths.py", "--comparisons", "1", "--draws", "2", "--steps", "2")
    assert found["twin"]["no_difference"] == 1 and found["twin"]["sd_of_draws"] > 0
    gained = found["planted"]["mean_difference"] - found["twin"]["mean_difference"]
    assert gained == pytest.approx(0.05, abs=0.03)


def test_few_shot_gains_are_measured_over_real_images_and_over_randaugment(last_line) -> None:
    tiny = ["dataset.size_px=32", "dataset.meadow.n_species=2", "dataset.meadow.n_val=2", "dataset.meadow.n_test=4"]
    tiny += [
        "dataset.meadow.n_per_species=5",
        "adapt.steps=2",
        "adapt.batch=2",
        "adapt.previews=0",
        "adapt.evaluations=0",
    ]
    tiny += ["backend.steps=2", "backend.guidance_scale=1.0", "generate.per_real=1", "train.steps=3", "train.batch=4"]
    found = last_line("adapt.py", "few-shot", "--draws", "1", "--workers", "1", *tiny)
    accuracy, gains = found["accuracy_percent"], found["gain_points"]
    assert set(accuracy) == {"real", "real+randaugment", "diff-aug", "diff-mix"} and len(gains) == 4
    gain = gains["diff-mix over real+randaugment"]
    assert gain["difference"] == pytest.approx(accuracy["diff-mix"] - accuracy["real+randaugment"], abs=0.11)
    assert gain["low"] <= gain["difference"] <= gain["high"] and 0 <= gain["p_holm"] <= 1


def test_a_run_that_is_not_timed_costs_what_one_of_its_kind_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recipe stands for a classifier alone, nor the other way round, and real images alone for nothing else."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = runpy.run_path(str(BENCHMARKS / "compare.py"))
    taken = {method: bench["like"](method, ["real", "real+cutmix", "diff-mix"]) for method in bench["METHODS"]}
    assert taken["real"] == "real" and taken["duplicated real"] == taken["real+mixup"] == "real+cutmix"
    assert {taken[recipe] for recipe in bench["RECIPES"]} == {"diff-mix"}
    for lacking in ("real,variegate", "real+mixup,variegate", "real,real+mixup", "real,real+mixup,variegat"):
        with pytest.raises(SystemExit):
            bench["parse"](["--only", lacking])


def test_blending_together_gives_the_maps_of_one_patch_at_a_time(last_line) -> None:
    found = last_line("refine.py", "--model", "tiny", "--images", "2", "--fractals", "4", "--dtype", "fp32")
    assert found["map_correlation"]["patches"] > 0.98 and found["patches"] == 225
    assert set(found["ratio"]) == {"patches", "dense"} and min(found["ratio"].values()) > 0
    assert all(rate > 0 for kinds in found["fractals_per_second"].values() for rate in kinds.values())


def test_prompts_of_a_server_are_counted_and_repeated_without_it(last_line, tmp_path: Path) -> None:
    from llm_server import ChatServer

    with ChatServer() as server:
        asked = ("--endpoint", server.url, "--classes", "2", "--per-class", "3", "--keep", str(tmp_path / "kept.jsonl"))
        found = last_line("prompts.py", *asked)
    assert found["prompts"] == found["wanted"] == 6 and found["requests"] == 2 and not found["warnings"]
    assert found["repeated_without_server"] and len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("shape", "millions"),  # parameters of the published weights
    [("sd15", {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06}),
     ("sd-turbo", {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39}),
     ("sdxl", {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66})],
)  # fmt: skip
def test_shapes_have_the_real_models_sizes(monkeypatch: pytest.MonkeyPatch, shape: str, millions: dict) -> None:
    import torch

    shapes = runpy.run_path(str(BENCHMARKS / "shapes.py"))
    with torch.device("meta"):
        made = {name: make() for name, make in shapes["makers"](shapes["SHAPES"][shape]).items()}
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in made.items()}
    assert {name: round(count / 1e6, 2) for name, count in counts.items()} == millions
