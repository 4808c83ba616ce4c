"""The training loop: the right optimiser, the right weights kept, the same bytes after a kill."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from variegate.classifier import fit as fitting
from variegate.classifier import labels, mixing
from variegate.classifier.augment import own_randomness, paste_patches
from variegate.classifier.fit import FitData, Fitted, LabelledImages, Progress, Settings
from variegate.classifier.losses import LossRule
from variegate.classifier.models import Classifier, build_model, learned_parts
from variegate.errors import ModelError
from variegate.stages.train.files import checkpoint_bytes, read_checkpoint

STEPS, BATCH = 8, 6
COMPUTE = fitting.choose_compute("cpu")
SETTINGS = Settings("full", "classic", "mixup", "adamw", 0.01, 0.05, 0.1, 4, 11)


class Killed(BaseException):
    pass


def images(count: int, seed: int) -> LabelledImages:
    """Three classes told apart by their brightest channel."""
    rng = np.random.default_rng(seed)
    found = np.arange(count) % 3
    pixels = rng.integers(0, 120, (count, 16, 16, 3))
    pixels[np.arange(count), :, :, found] += 100
    return LabelledImages(pixels.astype(np.uint8), labels.one_hot(found, 3))


DATA = FitData(real=images(12, 0), synthetic=images(9, 1), val=images(15, 2))
NO_VAL = dataclasses.replace(DATA, val=LabelledImages(DATA.val.pixels[:0], DATA.val.targets[:0]))


def slots(steps: int = STEPS) -> mixing.Slots:
    order = mixing.real_order(np.arange(12), steps * BATCH, np.random.default_rng(0))
    pool = mixing.Pool(np.ones(9), np.full(9, -1), np.arange(9))
    return mixing.mix("pool", order, pool, fraction=0.5, num_real=12, rng=np.random.default_rng(1)).shaped(steps, BATCH)


def classifier(cosine_scale: float | None = None) -> Classifier:
    options = {"num_classes": 3, "size_px": 16, "pretrained": False, "seed": 0}
    return build_model("resnet-small", **options, cosine_scale=cosine_scale)


def train(data: FitData = DATA, settings: Settings = SETTINGS, steps: int = STEPS, **options: object) -> Fitted:
    net = classifier(settings.loss.scale if settings.loss.name == "ldam" else None)
    return fitting.fit(net, data, slots(steps), settings, COMPUTE, **options)  # type: ignore[arg-type]


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_it_learns() -> None:
    settings = dataclasses.replace(SETTINGS, mix="none")
    fitted = train(settings=settings, steps=30)
    assert fitted.log[-1]["loss"] < 0.6 * fitted.log[0]["loss"]
    assert max(row["val_accuracy"] for row in fitted.log) > 0.8


def test_equal_calls_give_equal_weights_and_another_seed_does_not() -> None:
    one, two = train(), train()
    assert equal(one.last, two.last)
    assert one.log == two.log
    assert not equal(one.last, train(settings=dataclasses.replace(SETTINGS, seed=12)).last)


def test_a_loss_that_explodes_stops_with_the_remedy() -> None:
    with pytest.raises(ArithmeticError, match=r"lower train\.lr"):
        train(settings=dataclasses.replace(SETTINGS, optimizer="sgd", lr=1e30))


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = train()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(9)
    assert equal(one.last, train().last)


DRW = LossRule("ldam", class_weights="class-balanced", reweight_from=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "mix": "mixup"},
        {"optimizer": "sgd", "mix": "cutmix"},
        {"optimizer": "sgd", "mix": "manifold-mixup"},
        {"mix": "puzzle-mix", "transport": True},
        {"mix": "cmo", "loss": DRW},
        {"loss": LossRule("balanced-softmax")},
    ],
    ids=["mixup", "cutmix", "manifold-mixup", "puzzle-mix", "cmo+ldam-drw", "balanced-softmax"],
)
def test_a_killed_run_ends_with_the_same_weights(changes: dict, tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    path = tmp_path / "checkpoint.safetensors"

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    def save(progress: Progress) -> None:
        path.write_bytes(checkpoint_bytes(progress, "key"))

    with pytest.raises(Killed):
        train(settings=settings, save=save, on_step=kill, save_every_s=0.0)
    assert read_checkpoint(path, "another key") is None
    kept = read_checkpoint(path, "key")
    assert kept is not None
    assert kept.step == 5
    resumed, undisturbed = train(settings=settings, resume=kept), train(settings=settings)
    assert equal(resumed.last, undisturbed.last)
    assert equal(resumed.selected, undisturbed.selected)
    assert resumed.log == undisturbed.log
    assert resumed.selected_step == undisturbed.selected_step


def test_best_checkpoint_is_the_best_steps_and_not_the_last() -> None:
    """DIAGen kept references to live tensors: its best weights were always the last ones."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    net = classifier()

    def remember(step: int) -> None:
        seen[step] = {key: value.clone() for key, value in net.net.state_dict().items()}

    settings = dataclasses.replace(SETTINGS, lr=0.05, evaluations=STEPS)
    fitted = fitting.fit(net, DATA, slots(), settings, COMPUTE, on_step=remember)
    accuracies = {row["step"]: row["val_accuracy"] for row in fitted.log}
    best = max(accuracies.values())
    assert fitted.selected_step == max(step for step, value in accuracies.items() if value == best)
    assert equal(fitted.selected, seen[fitted.selected_step])
    assert equal(fitted.last, seen[STEPS])
    earlier = next(step for step in seen if not equal(seen[step], seen[STEPS]))
    assert earlier < STEPS


def test_best_weights_do_not_move_while_training_goes_on() -> None:
    progress, loop = Progress(), fitting._Loop(classifier(), DATA, slots(), SETTINGS, COMPUTE)
    loop.step(0)
    progress.step = 1
    loop.validate(progress, since=0)
    before = {key: value.clone() for key, value in progress.best.items()}
    loop.step(1)
    assert equal(progress.best, before)
    assert not equal(progress.best, dict(loop.classifier.net.state_dict()))


def test_ties_go_to_the_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "predict", lambda *_: DATA.val.targets)
    assert train().selected_step == STEPS


def test_without_validation_the_last_weights_are_selected() -> None:
    fitted = train(NO_VAL)
    assert fitted.selected_step == STEPS
    assert equal(fitted.selected, fitted.last)
    assert all("val_accuracy" not in row for row in fitted.log)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_named_optimizer_is_the_one_in_use(name: str, kind: type) -> None:
    """GDL_TERM built what was asked for and then replaced it by SGD."""
    loop = fitting._Loop(classifier(), DATA, slots(), dataclasses.replace(SETTINGS, optimizer=name), COMPUTE)
    assert type(loop.optimizer) is kind
    assert all(not group["weight_decay"] for group in loop.optimizer.param_groups if group["params"][0].ndim == 1)
    assert not equal(train(settings=loop.settings).last, train(settings=dataclasses.replace(SETTINGS, lr=1e-9)).last)


def test_linear_probe_moves_the_head_only_and_no_running_statistics() -> None:
    """DA-Fusion trained a head on a body in training mode: its BatchNorm statistics drifted."""
    fitted, before = train(settings=dataclasses.replace(SETTINGS, mode="linear-probe")), classifier().net.state_dict()
    moved = {key for key in before if not torch.equal(before[key], fitted.last[key])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("model", ["preact-resnet18", "resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("mode", ["linear-probe", "last-stages", "norms"])
def test_frozen_parts_keep_weights_and_running_statistics(model: str, mode: str) -> None:
    """Diff-Mix froze by name and left BatchNorm in training mode; DA-Fusion's head saw statistics that drifted."""
    net = build_model(model, num_classes=3, size_px=16, pretrained=False, seed=0)
    before = {key: value.clone() for key, value in net.net.state_dict().items()}
    settings = dataclasses.replace(SETTINGS, mode=mode, last_stages=2 if mode == "last-stages" else 1, mix="none")
    fitted = fitting.fit(net, DATA, slots(), settings, COMPUTE)
    moved = {key for key in before if not torch.equal(before[key], fitted.last[key])}
    learned = {
        id(parameter) for part in learned_parts(net, mode, settings.last_stages) for parameter in part.parameters()
    }
    names = {key for key, parameter in net.net.named_parameters() if id(parameter) in learned}
    statistics = {key for key in moved if "running" in key or "num_batches" in key}
    assert moved - statistics == names
    assert {key.rpartition(".")[0] for key in statistics} <= {key.rpartition(".")[0] for key in names}
    assert {key.split(".")[0] for key in before} - {key.split(".")[0] for key in moved} or mode == "norms"


def test_more_stages_than_the_net_has_are_refused_with_its_number() -> None:
    with pytest.raises(ModelError, match=r"5 of the last stages should learn and ResNetSmall has 4"):
        train(settings=dataclasses.replace(SETTINGS, mode="last-stages", last_stages=5))


def test_test_images_are_not_visible_to_fit() -> None:
    """Diff-Mix chose its checkpoint on the test set; what fit receives has no place for one."""
    assert [field.name for field in dataclasses.fields(FitData)] == ["real", "synthetic", "val", "subset"]


# ------------------------------------------------------------------------------------------------ long tails

LONG_TAIL = [0] * 40 + [1] * 8 + [2] * 2


def tail_data() -> FitData:
    """Squares so noisy that images of different classes overlap; 40, 8 and 2 of them to learn from, 90 to test on."""

    def noisy(found: list[int], seed: int) -> LabelledImages:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 140, (len(found), 16, 16, 3))
        pixels[np.arange(len(found)), :, :, found] += rng.integers(0, 40, (len(found), 16, 16))
        return LabelledImages(pixels.astype(np.uint8), labels.smooth(labels.one_hot(found, 3), 0.1))

    return FitData(noisy(LONG_TAIL, 3), DATA.synthetic, noisy([0, 1, 2] * 30, 4))


def tail_slots(steps: int) -> mixing.Slots:
    order = mixing.real_order(np.arange(len(LONG_TAIL)), steps * BATCH, np.random.default_rng(0))
    return mixing.real_only(order).shaped(steps, BATCH)


def called_rarest(rule: LossRule) -> float:
    """How often images of all classes are called the rarest one; a third would be fair."""
    net = classifier(rule.scale if rule.name == "ldam" else None)
    settings = dataclasses.replace(SETTINGS, mix="none", augment="none", loss=rule)
    data = tail_data()
    fitting.fit(net, data, tail_slots(40), settings, COMPUTE)
    return float(fitting.predict(net, data.val.pixels, COMPUTE)[:, 2].mean())


@pytest.mark.parametrize(
    "rule",
    [LossRule("balanced-softmax"), LossRule(class_weights="class-balanced"), LossRule(class_weights="class-balanced", reweight_from=0.5)],
    ids=["balanced-softmax", "class-balanced", "drw"],
)  # fmt: skip
def test_rare_classes_are_named_more_often(rule: LossRule) -> None:
    assert called_rarest(rule) > called_rarest(LossRule()) + 0.03


def test_each_loss_trains_another_classifier() -> None:
    rules = [LossRule(name) for name in ("ce", "balanced-softmax", "ldam")]
    rules += [LossRule(class_weights="class-balanced", reweight_from=share) for share in (0.0, 0.5)]
    settings = [dataclasses.replace(SETTINGS, loss=rule) for rule in rules]
    data = dataclasses.replace(DATA, real=LabelledImages(DATA.real.pixels, labels.one_hot([0] * 8 + [1] * 3 + [2], 3)))
    found = [tuple(train(data, one, steps=4).last["stem.weight"].flatten().tolist()) for one in settings]
    assert len(set(found)) == len(rules)


def test_deferred_weights_leave_the_steps_before_them_alone() -> None:
    def weights_after(rule: LossRule, steps: int) -> dict[str, torch.Tensor]:
        kept = {}
        net = classifier()

        def remember(step: int) -> None:
            if step == steps:
                kept.update({key: value.clone() for key, value in net.net.state_dict().items()})

        fitting.fit(
            net, tail_data(), tail_slots(8), dataclasses.replace(SETTINGS, loss=rule), COMPUTE, on_step=remember
        )
        return kept

    drw = LossRule(class_weights="class-balanced", reweight_from=0.5)
    assert equal(weights_after(drw, 4), weights_after(LossRule(), 4))
    assert not equal(weights_after(drw, 5), weights_after(LossRule(), 5))


def test_a_patch_brings_its_share_of_the_label() -> None:
    """Rows keep their mass, also soft ones of less than 1, and the share is the area that was pasted."""
    images, patches = torch.zeros(6, 3, 16, 16), torch.ones(6, 3, 16, 16)
    targets = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.5, 0.0]] * 3)
    patch_targets = torch.tensor([[0.0, 0.0, 1.0]] * 6)
    with own_randomness(4, torch.device("cpu")):
        mixed, rows = paste_patches(images, targets, patches, patch_targets)
    area = float(mixed[0, 0].mean())
    assert 0.0 < area < 1.0
    assert mixed.mean(dim=(1, 2, 3)).tolist() == pytest.approx([area] * 6)
    assert torch.allclose(rows, (1 - area) * targets + area * patch_targets, atol=1e-6)


def test_cmo_pastes_and_margins_count_only_images_that_take_part() -> None:
    whole = tail_data()
    kept = np.array([int(np.flatnonzero(whole.real.targets.argmax(axis=1) == label)[0]) for label in range(3)])
    data = dataclasses.replace(whole, subset=kept)
    loop = fitting._Loop(classifier(), data, tail_slots(60), dataclasses.replace(SETTINGS, mix="cmo"), COMPUTE)
    seen: list[int] = []
    gather = loop.gather
    loop.gather = lambda is_synthetic, index: (seen.extend(index.tolist()), gather(is_synthetic, index))[1]
    for seed in range(40):
        loop.with_patches(
            torch.zeros(BATCH, 3, 16, 16), torch.zeros(BATCH, 3), seed, torch.Generator().manual_seed(seed)
        )
    assert set(seen) == set(kept.tolist())
    assert len({round(float(margin), 6) for margin in loop.class_table().margins}) == 1, "one image of each class"


def test_cmo_pastes_every_class_equally_often_and_into_half_of_the_batches() -> None:
    loop = fitting._Loop(classifier(), tail_data(), tail_slots(200), dataclasses.replace(SETTINGS, mix="cmo"), COMPUTE)
    black, nothing = torch.zeros(BATCH, 3, 16, 16), torch.zeros(BATCH, 3)
    pasted = []
    for step in range(200):
        with own_randomness(step, torch.device("cpu")):
            _, rows = loop.with_patches(black, nothing, step, torch.Generator().manual_seed(step))
        if rows.any():
            pasted += rows.argmax(dim=1).tolist()
    assert 0.4 < len(pasted) / (200 * BATCH) < 0.6
    assert np.bincount(pasted) / len(pasted) == pytest.approx([1 / 3] * 3, abs=0.06)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [fitting.learning_rate(step, steps=100, warmup_fraction=0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert 0.0 < rates[-1] < 0.01
    assert fitting.learning_rate(0, steps=1, warmup_fraction=0.0) == 1.0


def test_predictions_are_probabilities_and_leave_the_mode_alone() -> None:
    net = classifier()
    found = fitting.predict(net, DATA.val.pixels, COMPUTE)
    assert found.shape == (15, 3)
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert net.net.training
    assert fitting.predict(net, DATA.val.pixels[:0], COMPUTE).shape == (0, 3)


@pytest.mark.parametrize(("steps", "evaluations"), [(300, 10), (7, 3), (119, 4), (5, 9)])
def test_diff_mix_fault_last_epochs_are_never_evaluated(steps: int, evaluations: int) -> None:
    """It looks at every fourth epoch from 0 on, so that up to three at the end go unseen."""
    assert fitting.evaluation_steps(steps, evaluations)[-1] == steps


def test_dasdiff_fault_synthetic_images_are_shown_unaugmented_when_concatenated() -> None:
    """Its added images go through the test transform. Here the same images train the same net under either name."""
    same = dataclasses.replace(DATA, synthetic=DATA.real)
    order = mixing.real_order(np.arange(12), STEPS * BATCH, np.random.default_rng(0))
    real = mixing.real_only(order).shaped(STEPS, BATCH)
    synthetic = dataclasses.replace(real, is_synthetic=~real.is_synthetic)
    one, two = (fitting.fit(classifier(), same, slots, SETTINGS, COMPUTE) for slots in (real, synthetic))
    assert equal(one.last, two.last)
