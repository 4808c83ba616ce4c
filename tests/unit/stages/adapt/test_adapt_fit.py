"""The training loop: stopped anywhere it goes on with the same bits; bad numbers, little memory, several processes."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapting import fit_of, same, trainee_of, values_of, views_of

from variegate.errors import MissingExtra, TaskFailed
from variegate.recipe import AdaptSection, GenerateSection, Recipe
from variegate.stages.adapt import optimizers, stage
from variegate.stages.adapt.checkpoints import FOLDER, State, last_checkpoint, read_checkpoint, write_checkpoint
from variegate.stages.adapt.fit import Fit, Views, milestones
from variegate.stages.adapt.team import Team
from variegate.stages.adapt.trainee import Trainee

STEPS = 6
FULL = {
    "steps": STEPS,
    "vectors": 2,
    "ema": 0.9,
    "dropout": 0.2,
    "evaluations": 3,
    "text_encoder_lora": True,
    "early_stop": 9,
}


def held_out(trainee) -> Views:  # noqa: ANN001
    views = views_of(trainee, count=3)
    return Views(views.latents[:, :1] + 1, views.captions, views.weights)


def full_fit(trainee) -> Fit:  # noqa: ANN001
    prior = Views(torch.ones(2, 1, 4, 8, 8).half(), [["a photo"]] * 2, np.full(2, 0.5))
    return fit_of(trainee, held_out=held_out(trainee), prior=prior)


@pytest.fixture(scope="module")
def undisturbed(tiny_sd: Path) -> dict[str, object]:
    with trainee_of(tiny_sd, prior={"images": 2}, **FULL) as trainee:
        fit = full_fit(trainee)
        fit.run(STEPS)
        log = fit.progress.log
        fit.finish()
        return {"log": log, "values": values_of(trainee)}


# ------------------------------------------------------------------------------------------ restart


@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_stopped_and_restored_from_disk_it_ends_with_the_same_bits(
    tiny_sd: Path, tmp_path: Path, undisturbed: dict[str, object], stop: int
) -> None:
    with trainee_of(tiny_sd, prior={"images": 2}, **FULL) as trainee:
        fit = full_fit(trainee)
        fit.run(stop)
        write_checkpoint(tmp_path, fit.state(), "key")
    with trainee_of(tiny_sd, prior={"images": 2}, **FULL) as trainee:
        fit = full_fit(trainee)
        state, notes = read_checkpoint(tmp_path, "key")
        assert notes == [] and state is not None and state.step == stop
        fit.restore(state)
        fit.run(STEPS)
        assert fit.progress.log == undisturbed["log"]
        fit.finish()
        assert same(values_of(trainee), undisturbed["values"])


def test_the_same_run_twice_gives_the_same_bits(tiny_sd: Path, undisturbed: dict[str, object]) -> None:
    with trainee_of(tiny_sd, prior={"images": 2}, **FULL) as trainee:
        torch.manual_seed(12345)  # nobody else's randomness comes in
        fit = full_fit(trainee)
        fit.run(STEPS)
        fit.finish()
        assert same(values_of(trainee), undisturbed["values"])


def test_training_leaves_the_process_randomness_alone(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, dropout=0.5) as trainee:
        before = torch.get_rng_state()
        fit_of(trainee).run(2)
        assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ lanes


def learned_by(model: Path, threads: int, **adapt: object) -> tuple[dict[str, torch.Tensor], list[float], int]:
    """Values, losses, and how many threads worked, after three steps of 32 images."""
    names: set[str] = set()
    with trainee_of(model, backend={"threads": threads}, batch=32, text_encoder_lora=True, **adapt) as trainee:
        fit = fit_of(trainee)
        losses_of = fit._losses

        def heard(*given: Any) -> torch.Tensor:
            names.add(threading.current_thread().name)
            return losses_of(*given)

        fit._losses = heard
        fit.run(3)
        assert torch.get_num_threads() == threads
        return values_of(trainee), fit.progress.losses, len(names)


def test_two_cores_share_a_batch_and_learn_what_one_does(tiny_sd: Path) -> None:
    one, losses, workers = learned_by(tiny_sd, 1)
    assert workers == 1
    two, losses_of_two, workers = learned_by(tiny_sd, 2)
    assert workers == 2 and losses_of_two == pytest.approx(losses, rel=1e-5)
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=2e-3), name  # three steps of 1e-2
    again, *_ = learned_by(tiny_sd, 2)
    assert same(again, two)


def test_small_parts_and_dropout_stay_in_one_lane(tiny_sd: Path) -> None:
    assert learned_by(tiny_sd, 2, micro_batch=8)[2] == 1
    with_dropout, _, workers = learned_by(tiny_sd, 2, dropout=0.3)
    assert workers == 1 and same(with_dropout, learned_by(tiny_sd, 2, dropout=0.3)[0])


# ------------------------------------------------------------------------------------------ checkpoints


def state_at(step: int) -> State:
    return State(
        step, {"value/a": torch.full((2, 3), float(step)), "average/b": torch.ones(2).bfloat16()}, {"log": [step]}
    )


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / FOLDER).iterdir())


def test_checkpoints_are_pruned_to_two_and_read_back_whole(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, "key") == (None, []) and last_checkpoint(tmp_path, "key") == "none"
    for step in (5, 50, 500):
        write_checkpoint(tmp_path, state_at(step), "key")
    assert files(tmp_path) == ["step-00000050.safetensors", "step-00000500.safetensors"]
    assert last_checkpoint(tmp_path, "key") == "step-00000500.safetensors"
    state, notes = read_checkpoint(tmp_path, "key")
    assert (state.step, state.facts, notes) == (500, {"log": [500]}, [])
    assert same(dict(state.tensors), dict(state_at(500).tensors))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "step", "log", "no digest"])
def test_a_damaged_newest_checkpoint_is_noticed_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    for step in (5, 6):
        newest = write_checkpoint(tmp_path, state_at(step), "key")
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    newest.write_bytes(
        {
            "cut": whole[:-20],
            "flipped": flipped,
            "empty": b"",
            "other": b"no weights at all, but long enough",
            "step": whole.replace(rb"\"step\": 6", rb"\"step\": 4"),
            "log": whole.replace(rb"\"log\": [6]", rb"\"log\": [2]"),
            "no digest": whole.replace(rb"\"digest\"", rb"\"digits\""),
        }[damage]
    )
    assert newest.read_bytes() != whole
    state, notes = read_checkpoint(tmp_path, "key")
    assert state.step == 5
    assert len(notes) == 1 and "step-00000006.safetensors is damaged" in notes[0] and "the one before it" in notes[0]


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state_at(5), "key")
    assert read_checkpoint(tmp_path, "another") == (None, [])


def test_checkpoints_of_other_settings_do_not_push_out_the_new_ones(tmp_path: Path) -> None:
    for step in (100, 200):
        write_checkpoint(tmp_path, state_at(step), "old")
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, state_at(step), "new")
        state, _ = read_checkpoint(tmp_path, "new")
        assert state is not None and state.step == step
    assert files(tmp_path) == ["step-00000020.safetensors", "step-00000030.safetensors"]
    assert (
        last_checkpoint(tmp_path, "new") == "step-00000030.safetensors" and last_checkpoint(tmp_path, "old") == "none"
    )


# ------------------------------------------------------------------------------------------ memory and numbers


def test_gradients_added_up_in_small_parts_are_those_of_the_whole(tiny_sd: Path) -> None:
    found = []
    for micro in (None, 2, 3):
        with trainee_of(tiny_sd, batch=8, micro_batch=micro, clip=None, vectors=2) as trainee:
            fit = fit_of(trainee)
            fit.run(1)
            found.append({name: p.grad.clone() for name, p in trainee.named_parameters().items()})
            found[-1]["loss"] = torch.tensor(fit.progress.losses[0])
    for parts in found[1:]:
        assert all(torch.allclose(parts[name], whole, rtol=1e-3, atol=1e-6) for name, whole in found[0].items())


def out_of_memory_above(trainee, limit: int, error: Callable[[], Exception]) -> None:  # noqa: ANN001
    original = trainee.predict

    def limited(noisy: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(noisy) > limit and torch.is_grad_enabled():
            raise error()
        return original(noisy, *rest)

    trainee.predict = limited


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        lambda: MemoryError(),
    ],
    ids=["cuda", "cpu", "windows", "python"],
)
def test_when_memory_runs_out_the_parts_shrink_and_it_says_so(tiny_sd: Path, error: Callable[[], Exception]) -> None:
    said: list[str] = []
    with trainee_of(tiny_sd, batch=8) as trainee:
        fit_of(trainee).run(2)
        whole = values_of(trainee)
    with trainee_of(tiny_sd, batch=8) as trainee:
        out_of_memory_above(trainee, 3, error)
        fit = fit_of(trainee, say=said.append)
        fit.run(2)
        assert all(torch.allclose(value, whole[name], atol=1e-4) for name, value in values_of(trainee).items())
        assert fit.progress.micro_batch == 2 == fit.state().facts["micro_batch"]
    assert said == [
        f"memory ran out at step 0: {count} images at a time now, gradients are added up" for count in (4, 2)
    ]


def test_one_image_that_does_not_fit_ends_it_with_advice(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd) as trainee:
        out_of_memory_above(trainee, 0, MemoryError)
        with pytest.raises(
            TaskFailed, match=r"adapt failed: memory does not suffice for one image at step 0.*gradient_checkpointing"
        ):
            fit_of(trainee).run(1)


def test_other_errors_are_not_taken_for_little_memory(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd) as trainee:
        out_of_memory_above(trainee, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            fit_of(trainee).run(1)


def test_a_loss_that_is_no_number_stops_before_it_harms(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd) as trainee:
        fit = fit_of(trainee)
        fit.run(2)
        before = values_of(trainee)
        original = trainee.predict
        trainee.predict = lambda *values: original(*values) * float("nan")
        with pytest.raises(
            TaskFailed, match=r"adapt failed: the loss at step 2 is nan; lower adapt\.lr and adapt\.token_lr"
        ):
            fit.run(4)
        assert same(values_of(trainee), before) and fit.progress.step == 2


def test_a_gradient_that_is_no_number_stops_before_it_harms(tiny_sd: Path) -> None:
    """A finite loss can have infinite gradients; a checkpoint written after that step would be no good one."""

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):  # noqa: ANN001, ANN205
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):  # noqa: ANN001, ANN205
            return gradient * float("inf")

    with trainee_of(tiny_sd) as trainee:
        fit = fit_of(trainee)
        fit.run(2)
        before = values_of(trainee)
        original = trainee.predict
        trainee.predict = lambda *values: Poisoned.apply(original(*values))
        with pytest.raises(TaskFailed, match=r"the gradient's norm at step 2 is (inf|nan); lower"):
            fit.run(4)
        assert same(values_of(trainee), before)


def spoil(fit: Fit) -> None:
    """As a step that was far too long leaves the weights."""
    with torch.no_grad():
        for parameter in fit.parameters.values():
            parameter.fill_(1e30)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_that_a_step_has_ruined_are_noticed_before_they_are_kept(tiny_sd: Path, ema: float) -> None:
    with trainee_of(tiny_sd, ema=ema) as trainee:
        fit = fit_of(trainee)
        fit.run(2)
        fit.check()
        kept = values_of(trainee)
        spoil(fit)
        with pytest.raises(TaskFailed, match=r"the loss at step 2 is (nan|inf); lower adapt\.lr and adapt\.token_lr"):
            fit.check()
        with torch.no_grad():
            for name, value in kept.items():
                fit.parameters[name].copy_(value)
        fit.check()
        if ema:
            for value in fit.average.values():
                value.fill_(float("nan"))
            with pytest.raises(TaskFailed, match="the loss at step 2 is nan"):
                fit.check()


def test_looking_at_the_weights_changes_nothing_that_is_learned(tiny_sd: Path, undisturbed: dict[str, object]) -> None:
    with trainee_of(tiny_sd, prior={"images": 2}, **FULL) as trainee:
        fit = full_fit(trainee)
        for step in range(STEPS):
            fit.check()
            fit.run(step + 1)
        assert fit.progress.log == undisturbed["log"]
        fit.finish()
        assert same(values_of(trainee), undisturbed["values"])


def test_a_held_out_loss_that_is_no_number_ends_it(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([1.0, float("nan")])
    with trainee_of(tiny_sd, steps=4, evaluations=2) as trainee:
        fit = fit_of(trainee, held_out=held_out(trainee))
        monkeypatch.setattr(fit, "held_out_loss", lambda: next(told))
        with pytest.raises(TaskFailed, match=r"the held-out loss at step 2 is nan; lower adapt\.lr"):
            fit.run(4)
        assert [line["held_out_loss"] for line in fit.progress.log] == [1.0], "no log or adapter.json holds it"


def test_an_optimiser_that_does_not_fit_into_memory_ends_it_with_advice(tiny_sd: Path) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with trainee_of(tiny_sd) as trainee:
        fit = fit_of(trainee)
        fit.optimizer.step = full
        with pytest.raises(
            TaskFailed, match=r"the optimiser at step 0: CUDA out of memory.*adapt\.optimizer=adamw-8bit"
        ):
            fit.run(1)


# ------------------------------------------------------------------------------------------ averages and stopping


def test_the_average_follows_and_is_what_is_left(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, ema=0.5) as trainee:
        fit, seen = fit_of(trainee), [values_of(trainee)]
        fit.run(3, on_step=lambda _: seen.append(values_of(trainee)))
        wanted = seen[0]
        for step, value in enumerate(seen[1:]):
            keep = min(0.5, (step + 1) / (step + 10))
            wanted = {name: keep * wanted[name] + (1 - keep) * value[name] for name in wanted}
        with fit.averaged():
            inside = values_of(trainee)
        assert all(torch.allclose(inside[name], wanted[name], atol=1e-6) for name in wanted)
        assert same(values_of(trainee), seen[-1]), "training goes on with the weights themselves"
        fit.finish()
        assert same(values_of(trainee), inside)


def test_early_stop_keeps_the_best_seen(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([1.0, 0.5, 0.7, 0.6, 0.1])
    with trainee_of(tiny_sd, steps=8, evaluations=8, early_stop=2) as trainee:
        fit = fit_of(trainee, held_out=held_out(trainee))
        monkeypatch.setattr(fit, "held_out_loss", lambda: next(told))
        seen: list[dict[str, torch.Tensor]] = []
        fit.run(8, on_step=lambda _: seen.append(values_of(trainee)))
        assert fit.progress.stopped and fit.progress.step == 3, "0.7 and 0.6 are two without a better one than 0.5"
        assert fit.kept_step == 1
        fit.finish()
        assert same(values_of(trainee), seen[0])


def test_held_out_losses_compare_between_steps(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, evaluations=2) as trainee:
        fit = fit_of(trainee, held_out=held_out(trainee))
        assert fit.held_out_loss() == fit.held_out_loss()
        before = fit.held_out_loss()
        fit.run(2)
        assert fit.held_out_loss() != before
        assert [line["step"] for line in fit.progress.log] == [0, 2]
        assert "loss" in fit.progress.log[1]


def test_milestones_end_with_the_last_step() -> None:
    assert all(max(milestones(steps, count)) == steps for steps in (1, 2, 7, 300) for count in (1, 2, 4, 10))


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "prodigy"])
def test_other_optimisers_learn_and_restart_with_the_same_bits(tiny_sd: Path, tmp_path: Path, optimizer: str) -> None:
    """Prodigy's step size lies beside the parameters, the 8-bit AdamW's step is a plain number: both are kept."""
    settings = {"steps": 6, "optimizer": optimizer, "rank": 8, "targets": "all"}
    with trainee_of(tiny_sd, **settings) as trainee:
        before, fit = values_of(trainee), fit_of(trainee)
        fit.run(6)
        whole = values_of(trainee)
        assert not any(torch.equal(before[name], value) for name, value in whole.items() if ".lora_A." not in name)
    with trainee_of(tiny_sd, **settings) as trainee:
        fit = fit_of(trainee)
        fit.run(4)
        write_checkpoint(tmp_path, fit.state(), "key")
    with trainee_of(tiny_sd, **settings) as trainee:
        fit = fit_of(trainee)
        state, _ = read_checkpoint(tmp_path, "key")
        assert state is not None
        fit.restore(state)
        fit.run(6)
        assert same(values_of(trainee), whole)


def test_the_8_bit_optimiser_keeps_its_moments_in_8_bits(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, optimizer="adamw-8bit", rank=32, targets="all") as trainee:
        fit = fit_of(trainee)
        fit.run(1)
        kinds = {value.dtype for name, value in fit.state().tensors.items() if name.endswith(("state1", "state2"))}
        assert torch.uint8 in kinds


@pytest.mark.parametrize(
    ("optimizer", "package", "extra"), [("adamw-8bit", "bitsandbytes", "8bit"), ("prodigy", "prodigyopt", "prodigy")]
)
def test_an_optimiser_that_is_not_installed_names_its_package_before_anything_slow(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, package: str, extra: str
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None if name == package else object())
    recipe = Recipe(adapt=AdaptSection(method="tokens", optimizer=optimizer), generate=GenerateSection(method="ti-gen"))
    with pytest.raises(
        MissingExtra,
        match=rf"adapt.optimizer {optimizer}: needs the package {package} — pip install 'variegate\[{extra}\]'",
    ):
        stage.check(recipe, [])
    extras = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras[extra][0].startswith(package), "the extra that the message names is there"


def test_gradient_checkpointing_changes_memory_not_numbers(tiny_sd: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        with trainee_of(tiny_sd, gradient_checkpointing=checkpointing) as trainee:
            fit = fit_of(trainee)
            fit.run(3)
            losses.append(fit.progress.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ------------------------------------------------------------------------------------------ several processes


class Exchange:
    """What torch.distributed does, between threads."""

    def __init__(self, size: int) -> None:
        self.barrier, self.parts = threading.Barrier(size, timeout=60), [None] * size

    def all(self, rank: int, part: Any) -> list[Any]:
        self.barrier.wait()
        self.parts[rank] = part
        self.barrier.wait()
        return list(self.parts)


class Thread(Team):
    """A member of a team whose processes are threads."""

    exchange: Exchange

    def sum_(self, tensor: torch.Tensor) -> None:
        parts = self.exchange.all(self.rank, tensor.detach().clone())
        tensor.copy_(torch.stack(parts).sum(0))

    def tell(self, message: Any) -> Any:
        return self.exchange.all(self.rank, message)[0]


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_learns_what_one_process_learns(tiny_sd: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 images a step over 2 and 3 processes: uneven shares, summed gradients, one global norm to clip."""
    settings = {"batch": 7, "vectors": 2, "clip": 0.05, "prior": {"images": 2, "weight": 0.5}, "evaluations": 2}

    def train(trainee: Trainee, team: Team | None) -> tuple[list[float], dict[str, torch.Tensor], list]:
        prior = Views(torch.ones(2, 1, 4, 8, 8).half(), [["a photo"]] * 2, np.full(2, 0.5))
        fit, losses = fit_of(trainee, prior=prior, held_out=held_out(trainee), team=team), []
        original = fit._step
        fit._step = lambda step: losses.append(original(step)) or losses[-1]
        fit.run(3)
        return losses, values_of(trainee), fit.progress.log

    # sdpa_kernel switches the whole process: threads that leave it out of turn would leave it switched for good
    monkeypatch.setattr("variegate.stages.adapt.trainee._attention", lambda kind: nullcontext())
    with ExitStack() as stack:  # models are loaded here: diffusers' loading is not for threads
        first, *trainees = [stack.enter_context(trainee_of(tiny_sd, **settings)) for _ in range(size + 1)]
        alone, wanted, log = train(first, None)
        exchange, found, failed = Exchange(size), {}, []
        member_class = type("Member", (Thread,), {"exchange": exchange})

        def member(rank: int) -> None:
            try:
                found[rank] = train(trainees[rank], member_class(rank, size))
            except BaseException as exc:  # a thread's error must reach the test
                failed.append(exc)
                exchange.barrier.abort()

        threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed, failed
    for rank in range(size):
        losses, values, told = found[rank]
        assert losses == pytest.approx(alone, rel=1e-4)
        assert all(torch.allclose(values[name], wanted[name], atol=2e-4) for name in wanted)
        assert [line["held_out_loss"] for line in told] == pytest.approx(
            [line["held_out_loss"] for line in log], rel=1e-3
        )
        assert same(values, found[0][1]), "every member holds the same weights"


def test_a_helper_says_aloud_what_only_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process cannot see that another one's memory ran out."""
    from variegate.backends.diffusion import DiffusionBackend
    from variegate.stages.adapt import fit, team, trainee

    class Helper(Team):
        def tell(self, message: Any) -> Any:
            return lessons.pop() if lessons else None

    class Shrinking:
        def __init__(self, *_: object, say: Callable[[str], None], **__: object) -> None:
            self.say = say

        def restore(self, *_: object, **__: object) -> None:
            self.say("memory ran out at step 0: 2 images at a time now")

        def run(self, *_: object) -> None:
            pass

    section = AdaptSection(method="tokens", steps=1)
    lessons, said = [team.Lesson(section, (), (), 0, 0, None, None, State(0, {}), True)], []  # type: ignore[arg-type]
    monkeypatch.setattr(team, "join", lambda device: Helper(1, 2))
    monkeypatch.setattr(DiffusionBackend, "open", lambda spec: nullcontext())
    monkeypatch.setattr(trainee, "Trainee", lambda *_: None)
    monkeypatch.setattr(fit, "Fit", Shrinking)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    assert team.help_out(Recipe(adapt=section, generate=GenerateSection(method="ti-gen")), said.append) == 1
    assert said == ["adapt: process 1: memory ran out at step 0: 2 images at a time now"]
