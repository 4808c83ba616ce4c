"""What makes the pipeline do a stage again: changed decisions and lost results."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from variegate import pipeline
from variegate.pipeline import Context, run_stages
from variegate.stages.evaluate import stage as evaluate
from variegate.stages.report import stage as report
from variegate.stages.train import stage as train
from variegate.stages.train import work

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
    assert context.folder.stage("train")[1]["went_on"], (
        "the arm of real images was kept, so its time is not in this one"
    )
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


class Slow(Ready):
    """Takes a second by its own clock each time, and is stopped as often as it is told to be."""

    def __init__(self, clock: list[float], stops: int) -> None:
        super().__init__("adapt")
        self.clock, self.stops = clock, stops

    def run(self, context: Context) -> dict:
        self.clock[0] += 1.0
        if self.stops:
            self.stops -= 1
            raise KeyboardInterrupt
        return {"line": ""}


@pytest.fixture
def stopped(coloured_run, monkeypatch: pytest.MonkeyPatch):
    """A run whose adapting was stopped twice by Ctrl-C, and its clock."""
    clock = [0.0]
    slow = Slow(clock, 2)
    monkeypatch.setattr(pipeline, "load_stage", lambda name: slow if name == "adapt" else Ready(name))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: clock[0])
    context = coloured_run()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stages(context, "adapt")
    return context, slow


def test_a_stage_that_was_stopped_has_taken_all_its_sessions(stopped) -> None:
    context, _ = stopped
    run_stages(context, "adapt")
    _, said, seconds = context.folder.stage("adapt")
    assert seconds == 3.0 and set(said["cost"]) == set(pipeline.UNKNOWN) and "went_on" not in said
    with context.folder.transaction() as db:
        db.execute("DELETE FROM stages WHERE stage = 'adapt'")
    run_stages(context, "adapt")
    assert context.folder.stage("adapt")[2] == 1.0, "what has ended does not count again"


def test_what_other_settings_took_is_not_counted(stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    context, slow = stopped
    monkeypatch.setattr(slow, "inputs", lambda recipe: {"other": True}, raising=False)
    run_stages(context, "adapt")
    assert context.folder.stage("adapt")[2] == 1.0


def test_a_stage_that_was_killed_has_taken_the_time_up_to_its_last_checkpoint(stopped) -> None:
    """kill -9 leaves no moment to write anything down; energy is not known of it."""
    context, slow = stopped
    began = json.loads(context.folder.meta("unfinished:adapt")) | {"began": 1000.0, "cost": {**pipeline.UNKNOWN}}
    context.folder.set_meta("unfinished:adapt", json.dumps(began))
    checkpoint = context.folder.write("adapt/checkpoints/step-5.safetensors", b"")
    os.utime(checkpoint, (1040.0, 1040.0))
    run_stages(context, "adapt")
    _, said, seconds = context.folder.stage("adapt")
    assert seconds == 2.0 + 40.0 + 1.0 and said["cost"]["energy_j"] is None


def test_a_classifier_that_was_stopped_has_taken_all_its_sessions(
    coloured_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = coloured_run(train={"steps": 4}, evaluate={"arms": ["real"], "seeds": 1})
    fit, read, told = work.fit, work.read_checkpoint, []

    def until_the_second_step(*given, on_step, **named):
        def stop(step: int) -> None:
            if step == 2:
                raise KeyboardInterrupt

        return fit(*given, **named, on_step=stop, save_every_s=0.0)

    def an_hour_ago(*given):
        found = read(*given)
        told.append(found)
        return found and dataclasses.replace(found, seconds=3600.0)

    with monkeypatch.context() as patch:
        patch.setattr(work, "fit", until_the_second_step)
        with pytest.raises(KeyboardInterrupt):
            train.run(context)
    monkeypatch.setattr(work, "read_checkpoint", an_hour_ago)
    assert 3600.0 < train.run(context)["tasks"][0]["seconds"] < 3700.0
    assert told[0].step == 2 and told[0].seconds > 0.0, "the checkpoint holds what the first session took"
