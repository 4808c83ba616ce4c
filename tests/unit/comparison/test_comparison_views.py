"""The views of a comparison say what comparison.json says: every number is in the CSV, curves in all of them."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
from comparing import ROWS, layout, outcomes

from variegate.comparison import views
from variegate.comparison.plan import DUPLICATED, REAL
from variegate.comparison.results import over_shots, summarise, summarise_curve

GAINS = {REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.3}


def comparison(*shots: int, draws: int = 3, classic: bool = True) -> dict[str, Any]:
    """comparison.json of simulated classifiers."""
    rows = ROWS if classic else [row for row in ROWS if row[1] != "classic"]
    gains = {name: gain for name, gain in GAINS.items() if name in dict(rows)}
    parts = []
    for number in shots:
        found = outcomes(np.random.default_rng(number), gains, draws)
        points = {f"mine strength={one}": found["mine"] for one in ("0.3", "0.5")}
        curve = summarise_curve(points, {name: name.partition("=")[2] for name in points})
        part = summarise(layout(*rows), found, "real+cutmix" if classic else REAL, draws)
        curves = [{"recipe": "mine", "key": "generate.strength", "points": curve}]
        parts.append({"shots": number, "counts": {"train": [number], "test": [9]}, **part, "curves": curves})
    head = {"variegate": "1", "data": "birds", "command": "variegate compare", "recipes": ["mine"], "draws": draws}
    protocol = {"model": "resnet-small", "steps": 9, "epochs": None, "batch": 8}
    more = {"seeds": 2, "warnings": [], "environment": {}, "protocol": protocol, "curves": over_shots(parts)}
    return {**head, **more, "shots": parts}


def rows_of(found: dict[str, Any], **wanted: str) -> list[dict[str, str]]:
    rows = csv.DictReader(views.csv_text(found).splitlines())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_the_csv_has_cost_p_values_and_curves() -> None:
    found = comparison(2)
    mine = found["shots"][0]["methods"][3]
    gain = mine["against"][0]["selected"]
    wanted = {"method": "mine", "checkpoint": "selected", "measure": "difference", "baseline": "real", "draw": ""}
    (row,) = rows_of(found, **wanted)
    told = [float(row[key]) for key in ("value", "p", "p_holm", "detectable", "bootstrap_low", "bootstrap_high")]
    assert told == [gain[key] for key in ("difference", "p", "p_holm", "detectable")] + gain["bootstrap"]
    cost = {(row["measure"], row["part"]): float(row["value"]) for row in rows_of(found, method="mine", checkpoint="")}
    assert cost["seconds", "draw"] == 4.0 and cost["seconds", "all"] == 6.0 and cost["energy_j", "all"] == 70.0
    assert cost["memory_mb", "train"] == 500.0 and cost["memory_mb", "all"] == 900.0
    assert cost["gain_per_minute", "all"] == mine["cost"]["gain_per_minute"]
    point = found["shots"][0]["curves"][0]["points"][1]
    curve = rows_of(found, kind="curve", part="generate.strength=0.5")
    assert [float(row["value"]) for row in curve] == [point["val_accuracy"], *point["draws"]]
    assert [float(curve[0][key]) for key in ("low", "high")] == [point["low"], point["high"]]


def test_every_column_of_the_csv_is_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs/results.md").read_text()
    assert f"`{', '.join(views.COLUMNS)}`" in page.split("## comparison.csv")[1]
    schema = page.split("## comparison.json")[1].split("## comparison.csv")[0]
    found = comparison(2, 5)
    method, curve = found["shots"][0]["methods"][3], found["curves"][0]
    for name in (*found, *found["shots"][0], *method, *method["cost"], *curve, *curve["points"][0]):
        assert f"`{name}`" in schema or f"`{name}[]`" in schema, name


def test_curves_are_in_every_view_with_their_intervals() -> None:
    found = comparison(2)
    point = found["shots"][0]["curves"][0]["points"][0]
    span = f"{100 * point['low']:.1f} % to {100 * point['high']:.1f} %"
    assert f"| 0.3 | {100 * point['val_accuracy']:.1f} % | {span} |" in views.markdown(found)
    page = views.page(found, "birds", {})
    plot = page.split("mine over generate.strength")[1].split("</svg>")[0]
    thin = plot.count('class="curve arm-1 one"')
    assert thin == 3 + 2, "three draws, and the intervals of two points"


def test_several_numbers_of_shots_make_a_curve_on_validation_images() -> None:
    assert comparison(2)["curves"] == []
    found = comparison(2, 5)
    curve = next(one for one in found["curves"] if one["method"] == "mine")
    assert [point["value"] for point in curve["points"]] == ["2", "5"] and len(found["curves"]) == len(ROWS)
    assert curve["points"][1]["val_accuracy"] == pytest.approx(
        found["shots"][1]["methods"][3]["selected"]["val_accuracy"]
    )
    (row,) = rows_of(found, method="mine", part="dataset.shots=5", draw="")
    assert float(row["value"]) == curve["points"][1]["val_accuracy"] and row["low"]
    text = views.markdown(found).split("## Over the number of training images")[1]
    assert "| method | 2 shots | 5 shots |\n|---|---|---|\n| real |" in text
    page = views.page(found, "birds", {}).split("Over the number of training images")[1]
    plot = page.split("</svg>", 3)
    assert "Validation accuracy over dataset.shots" in page and plot and '<th scope="row">mine</th>' in page


def test_the_heading_says_which_shots_it_speaks_of() -> None:
    assert "<h1>2 shots: " in views.page(comparison(2, 5), "birds", {})
    assert "<h1>2 shots" not in views.page(comparison(2), "birds", {})


def test_real_is_the_best_classic_only_where_there_was_another() -> None:
    assert "best classic on validation" in views.page(comparison(2), "birds", {})
    assert "best classic on validation" not in views.page(comparison(2, classic=False), "birds", {})


def test_the_page_says_what_memory_is_and_energy_where_it_is_known() -> None:
    page = views.page(comparison(2), "birds", {})
    assert "Largest process" in page and "Memory by stage" in page and "70 J" in page and "900 MB" in page
    found = comparison(2)
    for method in found["shots"][0]["methods"]:
        method["cost"]["energy_j"] = None
    assert "Energy" not in views.page(found, "birds", {})
