"""Which settings matter: a small ablation from the command line, run again, mistyped, and with too little to spend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from driving import SMALL, settings, variegate

KEYS = settings(*(key for key in SMALL if not key.startswith(("generate.strength", "evaluate", "train.mixing"))))
OVER = ("--over", "generate.strength=0.5,0.9", "--over", "train.mixing.fraction=0.3,0.6")


def test_an_ablation_ends_with_a_recipe_and_a_sentence_and_is_repeated_from_its_folder(tmp_path: Path) -> None:
    arguments = ("ablate", "builtin:meadow", *OVER, *KEYS, "--out", tmp_path / "study")
    said = variegate(*arguments)
    assert said.status == 0, said.text
    found = json.loads((tmp_path / "study" / "ablation.json").read_text())
    assert len(found["candidates"]) == 5 and found["trainings"] == 22
    assert found["candidates"][found["winner"]]["seeds"] == 4
    assert {one["key"] for one in found["effects"]} == {"generate.strength", "train.mixing.fraction"}
    assert found["verdict"] in said.out
    drawn = list((tmp_path / "study" / "runs").iterdir())
    assert len(drawn) == 3, "settings of training alone share their images"
    assert len(list((tmp_path / "study" / "adapters").iterdir())) == 1, "and all of them one adapter"
    assert variegate("recipes", "validate", tmp_path / "study" / "recipe.yaml").status == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("model.safetensors")}
    again = variegate(*arguments, "--json")
    assert again.status == 0, again.text
    assert json.loads(again.out)["candidates"] == found["candidates"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(
    ("arguments", "said_of_it"),
    [
        (("--over", "generate.strenght=0.5,0.9"), "did you mean 'strength'?"),
        (("--over", "train.mixing.fraktion=0.5,0.9"), "did you mean 'fraction'?"),
        (("--over", "generate.strength=0.5"), "two values"),
        (("--over", "train.batch=8,16"), "same for every arm"),
        (("--recipe", "none"), "nothing to try"),
        ((*OVER, "--trainings", "5"), "too few"),
        (("--set", "dataset.meadow.n_val=0", "--set", "dataset.meadow.n_per_species=1"), "no validation images"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: tuple[str, ...], said_of_it: str
) -> None:
    said = variegate("ablate", "builtin:meadow", *KEYS, *arguments, "--out", tmp_path / "study")
    assert said.status == 2 and said_of_it in said.err, said.text
    assert not (tmp_path / "study").exists() and "Traceback" not in said.text
