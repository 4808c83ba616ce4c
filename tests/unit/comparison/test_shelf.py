"""Which recipes share an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from variegate.comparison.shelf import Shelf, spent
from variegate.recipe_file import load_recipe

DISTILLED = ("adapt.distill={pairs: 64}", "generate.method=diff-aug", "generate.strength=0.5")


def folder(name: str, *overrides: str) -> Path | None:
    return Shelf(Path("shelf")).folder(load_recipe(name, overrides))


def test_recipes_that_would_learn_the_same_share_it() -> None:
    assert folder("diff-aug") == folder("diff-gen") == folder("diff-mix", "generate.strength=0.3", "backend.steps=5")
    assert folder("diff-aug", "adapt.previews=0", "adapt.evaluations=1") == folder("diff-aug")
    assert folder("real-mix") is None


@pytest.mark.parametrize(
    ("name", "overrides", "change"),
    [
        ("diff-aug", (), "backend.size_px=128"),
        ("diff-aug", (), "backend.dtype=bf16"),
        ("diff-aug", ("adapt.early_stop=2",), "adapt.evaluations=9"),
        ("diff-aug", ("adapt.prior.images=9",), "backend.steps=5"),
        ("dasdiff", DISTILLED, "generate.strength=0.25"),
        ("dasdiff", DISTILLED, "generate.method=diff-mix"),
        ("dasdiff", DISTILLED, "generate.method=diff-gen"),
    ],
)
def test_recipes_that_would_learn_something_else_do_not(name: str, overrides: tuple[str, ...], change: str) -> None:
    assert folder(name, *overrides, change) != folder(name, *overrides)


def test_energy_of_a_stage_that_kept_parts_of_an_earlier_result_is_not_known() -> None:
    cost = {"peak_memory_mb": 300.0, "worker_memory_mb": None, "gpu_memory_mb": 800.0, "energy_j": 7.0}
    assert spent(("key", {"cost": cost}, 2.0)) == {"seconds": 2.0, "energy_j": 7.0, "memory_mb": 800.0}
    assert spent(("key", {"cost": cost, "went_on": True}, 2.0))["energy_j"] is None
    assert spent(("key", {}, 2.0)) == {"seconds": 2.0, "energy_j": None, "memory_mb": None}
