"""Every shipped recipe by its name through the command line: two images drawn, refined, curated and learned from."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from driving import settings, variegate

FILES = [path.name for path in resources.files("variegate.recipes").iterdir() if path.name.endswith(".yaml")]
NAMES = sorted(name.removesuffix(".yaml") for name in FILES)
SMALL = (
    "dataset.meadow.n_species=2",
    "dataset.meadow.n_per_species=2",
    "dataset.meadow.n_val=1",
    "dataset.meadow.n_test=2",
    "generate.per_class=1",
    "adapt.steps=2",
    "adapt.batch=2",
    "adapt.previews=0",
    "adapt.evaluations=0",
    "train.steps=2",
    "train.batch=4",
    "train.evaluations=1",
    "evaluate.seeds=1",
)
NOTHING_DRAWN = {"none"}


def test_every_recipe_is_listed_and_tested() -> None:
    said = variegate("recipes", "ls", "--json")
    assert sorted(json.loads(said.out)) == NAMES
    plain = variegate("recipes", "ls").out.splitlines()
    assert sorted(line.split("  ")[0] for line in plain) == NAMES  # no name runs into its text
    wanted = (
        "real-guidance real-gen real-mix ti-aug ti-mix diff-gen diff-aug diff-mix da-fusion diagen dasdiff diffusemix "
        "hybrid-blend variegate none"
    )
    assert set(wanted.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_draws_two_images_and_ends_with_results(name: str, tmp_path: Path) -> None:
    steps = () if name == "dasdiff" else ("backend.steps=4",)  # one step is one step
    small = SMALL if name not in NOTHING_DRAWN else [key for key in SMALL if not key.startswith(("generate", "adapt"))]
    said = variegate("run", "builtin:meadow", "--recipe", name, "--out", tmp_path / "run", *settings(*small, *steps))
    assert said.status == 0, said.text
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    drawn = sorted((tmp_path / "run" / "synthetic").rglob("*.jpg"))
    assert len(drawn) == (0 if name in NOTHING_DRAWN else 2)
    assert results["arms"][-1]["arm"] == ("real" if name in NOTHING_DRAWN else "real+synthetic")
    assert 0.0 <= results["arms"][-1]["seeds"][0]["selected"]["test_accuracy"] <= 1.0
