"""From trained classifiers to results.json, on a run made by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from variegate.errors import DataError
from variegate.pipeline import Context
from variegate.stages.evaluate import stage
from variegate.store import RunFolder

ARMS = ["real", "real+synthetic", "synthetic"]
RIGHT = {"real": 0.5, "real+synthetic": 0.85, "synthetic": 0.5}


def put_predictions(folder: RunFolder, arm: str, seed: int) -> None:
    """What a train stage leaves behind, with a chosen share of right answers."""
    rng = np.random.default_rng([len(arm), seed])
    rows = []
    for split in sorted({image.split for image in folder.real_images()} - {"train"}):
        for weights in ("selected", "last"):
            for image in folder.real_images(split):
                called = image.label if rng.random() < RIGHT[arm] else (image.label + 1) % 3
                probabilities = np.full(3, 0.1) + 0.7 * np.eye(3)[called]
                rows.append({"id": image.id, "split": split, "weights": weights, "label": image.label,
                             "probabilities": probabilities.tolist()})  # fmt: skip
    home = folder.path(f"train/{arm.replace('+', '-')}/seed-{seed}")
    home.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), home / "predictions.parquet")
    (home / "log.jsonl").write_text('{"step": 6}\n{"steps": 12, "selected_step": 6, "selected_by": "val"}\n')


@pytest.fixture
def evaluated(coloured_run):
    def make(name: str = "run", seeds: int = 3, arms: list[str] = ARMS, **options):
        context = coloured_run(name, evaluate={"arms": arms, "seeds": seeds}, **options)
        for arm in arms:
            for seed in range(seeds):
                put_predictions(context.folder, arm, seed)
        return context, stage.run(context), json.loads(context.folder.path("results.json").read_text())

    return make


def test_results_hold_every_number_of_the_report(evaluated) -> None:
    context, summary, found = evaluated(splits={"train": 5, "val": 4, "test": 40})
    keys = [
        "schema",
        "variegate",
        "data",
        "classes",
        "counts",
        "synthetic",
        "arms",
        "comparisons",
        "shots",
        "groups",
        "extra_tests",
        "warnings",
        "verdict",
        "cost",
    ]
    assert list(found) == keys
    assert found["classes"] == ["blue", "green", "red"]
    assert found["counts"] == {"train": [5] * 3, "val": [4] * 3, "test": [40] * 3}
    real, mixed, synthetic = found["arms"]
    assert (real["arm"], mixed["arm"], synthetic["arm"]) == tuple(ARMS)
    assert real["selected"]["accuracy"] == pytest.approx(0.5, abs=0.08)
    assert real["selected"]["low"] < real["selected"]["accuracy"] < real["selected"]["high"]
    assert np.sum(real["confusion"]) == 3 * 120
    assert np.mean(real["per_class"]) == pytest.approx(real["selected"]["accuracy"], abs=1e-5)
    assert set(real["groups"]) == {"side 0", "side 1"}
    assert real["worst_group"] == min(real["groups"].values())
    assert real["seeds"][0]["selected"].keys() == {"step", "val_accuracy", "test_accuracy"}
    assert [seed["selected"]["step"] for seed in real["seeds"]] == [6, 6, 6]
    assert [seed["last"]["step"] for seed in real["seeds"]] == [12, 12, 12]


def test_a_real_gain_is_seen_and_no_gain_is_not(evaluated) -> None:
    _, summary, found = evaluated(splits={"train": 5, "val": 4, "test": 40})
    gain, nothing = found["comparisons"]
    assert (gain["arm"], gain["baseline"]) == ("real+synthetic", "real")
    seeds = [[seed["selected"]["test_accuracy"] for seed in arm["seeds"]] for arm in found["arms"]]
    expected = np.mean(np.subtract(seeds[1], seeds[0]))
    assert gain["selected"]["difference"] == pytest.approx(expected, abs=1e-5)
    assert gain["selected"]["low"] > 0
    assert gain["verdict"].startswith("helps: +")
    assert nothing["verdict"].startswith("no difference seen")
    assert nothing["detectable"] > 0
    assert "Synthetic images helped: " in found["verdict"]
    assert summary["line"].startswith(f"real {100 * found['arms'][0]['selected']['accuracy']:.1f} %, real+synthetic ")
    assert "3 seeds)" in summary["line"]


def test_shot_groups_are_there_where_the_training_set_has_a_long_tail(evaluated) -> None:
    """Diff-Mix computes many, medium and few for one imbalance factor only."""
    context, _, found = evaluated(splits={"train": 5, "val": 4, "test": 40})
    assert found["shots"] is None and found["arms"][0]["shots"] is None
    labels = {image.label: [] for image in context.folder.real_images()}
    for image in context.folder.real_images("train"):
        labels[image.label].append(image.id)
    with context.folder.transaction() as db:
        db.executemany("DELETE FROM real WHERE id = ?", [(image_id,) for image_id in labels[2][1:]])
    context = coloured(context, {"shot_bounds": [3, 4], "seeds": 3, "arms": ARMS})
    stage.run(context)
    found = json.loads(context.folder.path("results.json").read_text())
    assert found["shots"] == {
        "bounds": [3, 4],
        "many": {"classes": 2, "training_images": 10},
        "few": {"classes": 1, "training_images": 1},
    }
    real, gain = found["arms"][0], found["comparisons"][0]
    assert real["shots"]["few"]["accuracy"] == pytest.approx(real["per_class"][2], abs=1e-5)
    assert real["shots"]["many"]["accuracy"] == pytest.approx(np.mean(real["per_class"][:2]), abs=1e-5)
    assert real["shots"]["few"]["low"] < real["shots"]["few"]["accuracy"] < real["shots"]["few"]["high"]
    assert gain["shots"]["few"]["difference"] == pytest.approx(gain["per_class"][2], abs=1e-5)
    assert gain["shots"]["few"]["low"] > 0


def coloured(context: Context, evaluate: dict) -> Context:
    recipe = context.recipe.model_copy(update={"evaluate": type(context.recipe.evaluate)(**evaluate)})
    return Context(recipe, context.folder, context.reporter)


def test_the_worst_cell_has_enough_images_and_small_ones_are_named(evaluated) -> None:
    """Group of Waterbirds: a class on a background. Diff-Mix's own script does not run; see its fault 10."""
    _, _, found = evaluated(splits={"train": 5, "val": 4, "test": 21})
    facts, real = found["groups"], found["arms"][0]
    assert facts["images"] == {"side 0": 33, "side 1": 30}
    assert facts["cells"] == [
        {"label": label, "group": f"side {side}", "images": 11 - side} for label in range(3) for side in range(2)
    ]
    assert real["worst_cell"]["accuracy"] == min(real["cells"])
    assert np.average(real["cells"], weights=[11, 10] * 3) == pytest.approx(real["selected"]["accuracy"], abs=1e-5)
    gaps = found["comparisons"][0]["groups"]
    assert gaps["side 0"]["difference"] == pytest.approx(
        found["arms"][1]["groups"]["side 0"] - real["groups"]["side 0"], abs=1e-5
    )
    assert gaps["side 0"]["low"] > 0


def test_small_cells_are_never_worst_and_never_hidden(evaluated) -> None:
    _, _, found = evaluated(splits={"train": 5, "val": 4, "test": 12})
    assert [cell["images"] for cell in found["groups"]["cells"]] == [6] * 6
    assert found["groups"]["least_images"] == 10
    assert len(found["arms"][0]["cells"]) == 6
    assert found["arms"][0]["worst_cell"] is None


def test_extra_test_sets_are_measured_apart(evaluated) -> None:
    """DIAGen's uncommon context: its own accuracies and paired differences, and not a number of the test set moves."""
    splits = {"train": 5, "val": 4, "test": 40}
    plain = evaluated("plain", splits=splits)[2]
    context, _, found = evaluated("more", splits=splits | {"test_uncommon_context": 30})
    (extra,) = found["extra_tests"]
    assert (extra["split"], extra["title"], extra["images"]) == ("test_uncommon_context", "uncommon context", 90)
    assert found["counts"]["test_uncommon_context"] == [30] * 3
    assert np.sum(extra["arms"][0]["confusion"]) == 3 * 90
    assert extra["comparisons"][0]["selected"]["low"] > 0
    assert extra["verdict"].startswith("Synthetic images helped: ")
    assert plain["extra_tests"] == []
    assert np.sum(found["arms"][0]["confusion"]) == np.sum(plain["arms"][0]["confusion"]) == 3 * 120
    with context.folder.path("results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({tuple(list(row.values())[:6]) for row in rows}) == len(rows), "no row says the same thing twice"
    row = next(row for row in rows if row["test"] == extra["split"] and row["measure"] == "difference")
    assert (row["part"], row["checkpoint"], row["arm"], row["baseline"]) == (
        "all",
        "selected",
        "real+synthetic",
        "real",
    )
    assert float(row["value"]) == extra["comparisons"][0]["selected"]["difference"]
    groups = [row for row in rows if row["part"] == "group: side 0" and row["test"] == "test"]
    assert [float(row["value"]) for row in groups][:3] == [arm["groups"]["side 0"] for arm in found["arms"]]


def test_equal_runs_give_equal_bytes(evaluated) -> None:
    contexts = [evaluated(name)[0] for name in ("one", "two")]
    one, two = (context.folder.path("results.json").read_bytes() for context in contexts)
    assert one == two


def test_dropped_images_are_counted_by_reason(evaluated, coloured_run) -> None:
    context = coloured_run()
    ids = [image.id for image in context.folder.synthetic_images()]
    context.folder.put_decisions("curate", [(ids[0], "drop", 0.0, "blank"), (ids[1], "drop", 0.0, "off-class")])
    context.folder.put_decisions("human", [(ids[2], "drop", 0.0, "ugly")])
    found = evaluated()[2]
    assert found["synthetic"] == {
        "drawn": 18, "kept": 15, "dropped": {"blank": 1, "off-class": 1, "ugly": 1}, "per_class": [3, 6, 6],
        "class_agreement": None,
    }  # fmt: skip


def test_one_seed_is_warned_of(evaluated) -> None:
    _, _, found = evaluated(seeds=1)
    assert any("one seed only" in warning for warning in found["warnings"])


def test_one_arm_has_nothing_to_compare_with(evaluated) -> None:
    _, summary, found = evaluated(arms=["real"])
    assert found["comparisons"] == []
    assert "nothing to compare with" in found["verdict"]
    assert summary["line"].startswith("real ")


def test_warnings_of_earlier_stages_arrive(evaluated, coloured_run) -> None:
    coloured_run().folder.finish_stage("curate", "k", 1.0, {"line": "", "warnings": ["a weak judge"]})
    assert "a weak judge" in evaluated()[2]["warnings"]


def test_predictions_of_other_images_are_refused(evaluated, coloured_run) -> None:
    context = evaluated()[0]
    path = context.folder.path("train/real/seed-1/predictions.parquet")
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(DataError, match="run train again"):
        stage.run(context)


def test_trained_for_real(coloured_run) -> None:
    """Training and evaluating together: nothing but what train wrote is needed."""
    from variegate.stages.train import stage as train

    context = coloured_run()
    train.run(context)
    summary = stage.run(context)
    found = json.loads(context.folder.path("results.json").read_text())
    log = Path(context.folder.path("train/real/seed-0/log.jsonl")).read_text().splitlines()
    best = max(json.loads(line).get("val_accuracy", -1) for line in log)
    assert found["arms"][0]["seeds"][0]["selected"]["val_accuracy"] == pytest.approx(best, abs=1e-5)
    assert found["verdict"] == summary["verdict"]


def test_extra_test_sets_are_predicted_once_like_test(coloured_run) -> None:
    from variegate.stages.train import stage as train

    context = coloured_run(splits={"train": 5, "val": 4, "test": 12, "test_odd": 3})
    train.run(context)
    table = pq.read_table(context.folder.path("train/real/seed-0/predictions.parquet")).to_pylist()
    assert [row["weights"] for row in table if row["split"] == "test_odd"] == ["selected"] * 9 + ["last"] * 9
    stage.run(context)
    found = json.loads(context.folder.path("results.json").read_text())
    assert [one["title"] for one in found["extra_tests"]] == ["odd"]


def test_da_fusion_fault_result_rows_pile_up_when_trials_repeat(evaluated) -> None:
    """Its list of rows is never emptied, so a second trial's file also holds the first one's, and the mean is of both."""
    context, _, _ = evaluated(arms=["real"], seeds=2)
    before = {name: context.folder.path(name).read_bytes() for name in (stage.RESULTS, stage.TABLE)}
    stage.run(context)
    assert {name: context.folder.path(name).read_bytes() for name in before} == before
