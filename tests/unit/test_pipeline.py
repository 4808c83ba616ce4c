"""What makes the pipeline do a stage again: changed decisions and lost results."""

from __future__ import annotations

import json

import pytest

from variegate import pipeline
from variegate.pipeline import Context, run_stages
from variegate.stages.evaluate import stage as evaluate
from variegate.stages.report import stage as report
from variegate.stages.train import stage as train

REAL = {stage.NAME: stage for stage in (train, evaluate, report)}


class Ready:
    """A stage whose work is there already."""

    def __init__(self, name: str) -> None:
        self.NAME = name

    def inputs(self, recipe: object) -> dict:
        return {}

    def run(self, context: Context) -> dict:
        return {"line": ""}


@pytest.fixture
def done(coloured_run, monkeypatch: pytest.MonkeyPatch):
    """A finished small run; call it to run again and get the names of the stages that were done again."""
    monkeypatch.setattr(pipeline, "load_stage", lambda name: REAL.get(name) or Ready(name))
    context = coloured_run(train={"steps": 4}, evaluate={"seeds": 1})
    run_stages(context)

    def again() -> list[str]:
        before = {name: context.folder.stage(name) for name in pipeline.STAGES}
        context.folder.db.execute("UPDATE stages SET seconds = -1")
        run_stages(context)
        return [name for name in before if context.folder.stage(name)[2] != -1]

    return context, again


def test_nothing_is_done_twice(done) -> None:
    assert done[1]() == []


def test_a_persons_decision_is_trained_with_and_reported(done) -> None:
    context, again = done
    before = context.folder.path("results.json").read_text()
    first = context.folder.synthetic_images()[0].id
    context.folder.put_decisions("human", [(first, "drop", 0.0, "ugly")])
    assert again() == ["train", "evaluate", "report"]
    after = context.folder.path("results.json").read_text()
    assert '"ugly": 1' in after and before != after
    assert again() == []


@pytest.mark.parametrize(
    ("lost", "stage"),
    [("results.json", "evaluate"), ("report.html", "report"), ("train/real/seed-0/model.safetensors", "train")],
)
def test_what_was_lost_is_made_again_with_the_same_bytes(done, lost: str, stage: str) -> None:
    context, again = done
    path = context.folder.path(lost)
    before = path.read_bytes()
    path.unlink()
    assert again() == [stage]
    if stage == "evaluate":  # what the stages took is another time's
        assert without_cost(path.read_bytes()) == without_cost(before)
    else:
        assert stage == "report" or path.read_bytes() == before  # the page shows how long the stages took


def without_cost(results: bytes) -> dict:
    return {key: value for key, value in json.loads(results).items() if key != "cost"}


def test_what_every_stage_took_is_in_the_records_and_in_the_results(done) -> None:
    context, _ = done
    _, said, _ = context.folder.stage("train")
    assert set(said["cost"]) == {"peak_memory_mb", "worker_memory_mb", "gpu_memory_mb", "energy_j"}
    cost = json.loads(context.folder.path("results.json").read_text())["cost"]
    assert [row["stage"] for row in cost["stages"]] == list(pipeline.STAGES[: pipeline.STAGES.index("evaluate")])
    assert (cost["images_made"], cost["images_kept"], cost["classifier_steps"]) == (18, 18, 2 * 4)
    assert cost["stages"][6]["peak_memory_mb"] == said["cost"]["peak_memory_mb"]
    assert cost["unet_evaluations"] is None, "nothing was drawn by this run's own stage"
    assert "Peak memory" in context.folder.path("report.html").read_text() or said["cost"]["peak_memory_mb"] is None
