"""Train one classifier: a plain deterministic loop that can be killed anywhere and goes on with the same bytes.

`fit` is given real training, synthetic and validation images; there is no field for test images. Every step draws
its randomness from (task seed, step), so nothing but weights, optimiser and log has to be kept to resume.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from variegate.backends.devices import available_cores, resolve_device, resolve_dtype, this_machine
from variegate.classifier.augment import CMO_CHANCE, make_augment, own_randomness, paste_patches, to_unit
from variegate.classifier.losses import ClassTable, LossRule, batch_loss, class_table, labels_shown
from variegate.classifier.mixes import FRACTAL_SHARE, open_mix
from variegate.classifier.mixing import Slots, class_uniform, real_counts
from variegate.classifier.models import OWN_MODEL, Classifier, learned_parts
from variegate.recipe import TrainSection
from variegate.records import seed_from

CHECKPOINT_EVERY_S = 30.0
QUICK_SAVE_S = 1.5  # models that take longer to save are saved more rarely: at most a twentieth of the time
SMALL_BATCH = 1 << 17  # pixels
PREDICT_BATCH = 64  # feature maps of more than that fall out of the processor's cache

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with their label rows; `pixels` may be memory-mapped."""

    pixels: np.ndarray  # uint8 [N, S, S, 3]
    targets: np.ndarray  # float32 [N, C]


@dataclass(frozen=True, slots=True)
class FitData:
    """All that training may see."""

    real: LabelledImages
    synthetic: LabelledImages
    val: LabelledImages  # may be empty; targets one-hot
    subset: np.ndarray | None = None  # indices of the real images that take part; None: all


@dataclass(frozen=True, slots=True)
class Settings:
    """The recipe's training keys that the loop needs; see recipe.TrainSection."""

    mode: str
    augment: str
    mix: str
    optimizer: str
    lr: float
    weight_decay: float
    warmup_fraction: float
    evaluations: int
    seed: int  # of the task: augmentation, mixing, dropout
    loss: LossRule = LossRule()
    last_stages: int = 1
    transport: bool = False
    mix_probability: float = 1.0
    mix_alpha: float | None = None
    fractal_share: Sequence[float] = FRACTAL_SHARE


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how it is computed."""

    device: torch.device
    autocast: bool  # bf16 products, fp32 weights
    threads: int


@dataclass(slots=True)
class Progress:
    """Everything that has to survive a kill."""

    step: int = 0  # finished steps
    best_step: int = 0  # 0 = not validated yet
    best_accuracy: float = -1.0
    loss_sum: float = 0.0  # since the last log line
    seconds: float = 0.0  # of the task so far, over all its sessions; whoever saves fills it in
    log: list[dict[str, Any]] = field(default_factory=list)
    net: State = field(default_factory=dict)
    best: State = field(default_factory=dict)
    optimizer: State = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome: weights after the last step and at the best validation, deep copies both."""

    last: State
    selected: State
    selected_step: int
    log: list[dict[str, Any]]


def choose_compute(device: str, threads: int | None = None) -> Compute:
    """bf16 products where the processor has them, all cores unless said; raises ModelError for a device that is absent."""
    name = resolve_device(device)
    is_bf16 = resolve_dtype("auto", name, this_machine()) == "bf16"
    return Compute(torch.device(name), autocast=is_bf16, threads=threads or available_cores())


def threads_of(section: TrainSection, size_px: int) -> int:
    """Cores that one classifier learns on: a second one brings our own small net nothing (docs/log.md, 2026-11-28)."""
    is_small = section.model == OWN_MODEL and section.batch * size_px**2 <= SMALL_BATCH
    return 1 if is_small else available_cores()


def make_optimizer(
    name: str, parameters: list[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser a recipe names; biases and norms (one-dimensional) are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    raise ValueError(f"optimizer is {name!r}, should be adamw or sgd")


def learning_rate(step: int, *, steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at a step from 0: a linear rise, then half a cosine down to 0.

    >>> [round(learning_rate(s, steps=10, warmup_fraction=0.2), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rise = round(steps * warmup_fraction)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def peak_rate(model: str, *, is_pretrained: bool, mode: str, optimizer: str) -> float:
    """The learning rate where the recipe names none: smaller for larger nets and for weights that should stay close.

    >>> peak_rate("resnet-small", is_pretrained=False, mode="full", optimizer="adamw")
    0.01
    """
    rate = 1e-2 if model == OWN_MODEL else 1e-3
    if is_pretrained and mode != "linear-probe":
        rate = 3e-4
    return rate * (10.0 if optimizer == "sgd" else 1.0)


def rate_of(section: TrainSection) -> float:
    """The peak learning rate of a recipe's classifier."""
    if section.lr is not None:
        return section.lr
    return peak_rate(
        section.model, is_pretrained=bool(section.pretrained), mode=section.mode, optimizer=section.optimizer
    )


def settings_of(section: TrainSection, seed: int) -> Settings:
    """What the loop needs of a recipe's train section."""
    names = {field.name for field in dataclasses.fields(Settings)} - {"lr", "seed", "loss"}
    rule = LossRule(
        name=section.loss,
        max_margin=section.ldam.max_margin,
        scale=section.ldam.scale,
        class_weights=section.class_weights,
        beta=section.class_balance_beta,
        reweight_from=section.reweight_from,
    )
    own = {name: getattr(section, name) for name in sorted(names)}
    return Settings(**own, lr=rate_of(section), seed=seed, loss=rule)


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """After which steps validation is read: evenly spaced, the last step always among them.

    >>> evaluation_steps(300, 4), evaluation_steps(2, 10)
    ([75, 150, 225, 300], [1, 2])
    """
    return sorted({max(1, round(steps * k / evaluations)) for k in range(1, evaluations + 1)})


def fit(
    classifier: Classifier,
    data: FitData,
    slots: Slots,
    settings: Settings,
    compute: Compute,
    *,
    resume: Progress | None = None,
    save: Callable[[Progress], object] | None = None,
    on_step: Callable[[int], None] | None = None,
    save_every_s: float = CHECKPOINT_EVERY_S,
) -> Fitted:
    """Train for len(slots.index) steps of slots.index.shape[1] images; `classifier` is changed in place.

    `resume` is what `save` was given in an earlier, interrupted call with equal arguments; the outcome is the same.
    """
    loop = _Loop(classifier, data, slots, settings, compute)
    progress = loop.restore(resume) if resume else Progress()
    checks = set(evaluation_steps(loop.num_steps, settings.evaluations))
    next_save = time.monotonic() + save_every_s
    with _settled(compute):
        while progress.step < loop.num_steps:
            progress.loss_sum += loop.step(progress.step)
            progress.step += 1
            if progress.step in checks:
                loop.validate(progress, since=max((s for s in checks if s < progress.step), default=0))
            if save and progress.step < loop.num_steps and time.monotonic() >= next_save:
                start = time.monotonic()
                save(loop.capture(progress))
                cost = time.monotonic() - start
                next_save = start + save_every_s * max(1.0, cost / QUICK_SAVE_S)
            if on_step:
                on_step(progress.step)
    last = _copy(classifier.net.state_dict())
    return Fitted(last, progress.best or last, progress.best_step or loop.num_steps, progress.log)


def predict(classifier: Classifier, pixels: np.ndarray, compute: Compute) -> np.ndarray:
    """Class probabilities in inference mode; float32 [N, C]."""
    net, was_training = classifier.net.to(compute.device), classifier.net.training
    net.eval()
    found = [np.empty((0, _num_classes(classifier)), np.float32)]
    with torch.inference_mode(), _settled(compute):
        for start in range(0, len(pixels), PREDICT_BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + PREDICT_BATCH])).to(compute.device)
            with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.autocast):
                logits = net(classifier.scaled(to_unit(batch)))
            found.append(logits.float().softmax(dim=1).cpu().numpy())
    net.train(was_training)
    return np.concatenate(found)


def features(classifier: Classifier, pixels: np.ndarray, compute: Compute) -> np.ndarray:
    """What the last layer is given, in inference mode; float32 [N, D], [0, 0] without images."""
    found = [np.empty((0, 0), np.float32)]
    hook = classifier.head.register_forward_pre_hook(
        lambda _, given: found.append(given[0].float().flatten(1).cpu().numpy())
    )
    try:
        predict(classifier, pixels, compute)
    finally:
        hook.remove()
    return np.concatenate(found[1:] or found)


class _Loop:
    """The moving parts of one training run."""

    def __init__(
        self, classifier: Classifier, data: FitData, slots: Slots, settings: Settings, compute: Compute
    ) -> None:
        self.classifier, self.data, self.slots, self.settings, self.compute = classifier, data, slots, settings, compute
        self.num_steps = len(slots.index)
        self.augment = make_augment(settings.augment)
        mix = "none" if settings.mix == "cmo" else settings.mix
        self.mix = open_mix(
            mix,
            classifier,
            transport=settings.transport,
            autocast=compute.autocast,
            probability=settings.mix_probability,
            alpha=settings.mix_alpha,
            fractal_share=settings.fractal_share,
        )
        self.real_labels, self.num_classes = data.real.targets.argmax(axis=1), data.real.targets.shape[1]
        self.subset = np.arange(len(self.real_labels)) if data.subset is None else data.subset
        self.table = self.class_table()
        # channels last as the images are; a fifth faster
        classifier.net.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.set_mode()
        self.learned = [p for p in classifier.net.parameters() if p.requires_grad]
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        self.optimizer = make_optimizer(settings.optimizer, self.learned, **options)

    def set_mode(self) -> None:
        """What does not learn stays in inference mode, so that its running statistics do not drift either."""
        net, settings = self.classifier.net, self.settings
        if settings.mode == "full":
            net.train()
            return
        net.eval().requires_grad_(False)
        for part in learned_parts(self.classifier, settings.mode, settings.last_stages):
            part.train().requires_grad_(True)

    def step(self, step: int) -> float:
        seed = seed_from(self.settings.seed, "step", step)
        with own_randomness(seed, self.compute.device):
            pixels, targets = self.batch(step)
            generator = torch.Generator().manual_seed(seed)
            images = self.classifier.scaled(self.augment(pixels, generator))
            if self.settings.mix == "cmo":
                images, targets = self.with_patches(images, targets, seed, generator)
            precision = torch.autocast(self.compute.device.type, torch.bfloat16, enabled=self.compute.autocast)
            with self.mix(images, targets) as (images, targets), precision:
                logits = self.classifier.net(images)
            is_reweighting = self.settings.loss.is_reweighting(step, self.num_steps)
            loss = batch_loss(self.settings.loss, logits.float(), targets, self.table, is_reweighting=is_reweighting)
        share = learning_rate(step, steps=self.num_steps, warmup_fraction=self.settings.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * share
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ArithmeticError(f"the loss became {value} in step {step + 1}; lower train.lr")
        return value

    def class_table(self) -> ClassTable:
        """Real images are counted for margins and weights, all labels shown for the prior; see losses.py."""
        shown = labels_shown(self.slots, self.data.real.targets, self.data.synthetic.targets)
        counts = real_counts(self.real_labels[self.subset], self.num_classes)
        table = class_table(self.settings.loss, counts, shown)
        return ClassTable(*(getattr(table, field.name).to(self.compute.device) for field in dataclasses.fields(table)))

    def with_patches(
        self, images: torch.Tensor, targets: torch.Tensor, seed: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CMO: to half of the batches, paste a box of a real image of which every class comes equally often."""
        rng = np.random.default_rng(seed)
        if rng.random() >= CMO_CHANCE:
            return images, targets
        chances = class_uniform(self.real_labels[self.subset], self.num_classes)
        index = rng.choice(self.subset, size=len(images), p=chances)
        pixels, patch_targets = self.gather(np.zeros(len(index), bool), index)
        patches = self.classifier.scaled(self.augment(pixels, generator))
        return paste_patches(images, targets, patches, patch_targets)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, S, S, 3] and float [B, C] of one step."""
        return self.gather(self.slots.is_synthetic[step], self.slots.index[step])

    def gather(self, is_synthetic: np.ndarray, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, S, S, 3] and float [B, C] of the named images of both kinds."""
        real, synthetic = self.data.real, self.data.synthetic
        pixels = np.empty((len(index), *real.pixels.shape[1:]), np.uint8)
        targets = np.empty((len(index), real.targets.shape[1]), np.float32)
        for chosen, kind in ((~is_synthetic, real), (is_synthetic, synthetic)):
            if chosen.any():
                pixels[chosen], targets[chosen] = kind.pixels[index[chosen]], kind.targets[index[chosen]]
        return torch.from_numpy(pixels).to(self.compute.device), torch.from_numpy(targets).to(self.compute.device)

    def validate(self, progress: Progress, since: int) -> None:
        """Read validation and keep a copy of the weights when none were better; of equals the later, longer trained."""
        row: dict[str, Any] = {"step": progress.step, "loss": round(progress.loss_sum / (progress.step - since), 6)}
        progress.loss_sum = 0.0
        if len(self.data.val.pixels):
            found = predict(self.classifier, self.data.val.pixels, self.compute).argmax(axis=1)
            self.set_mode()
            accuracy = float(np.mean(found == self.data.val.targets.argmax(axis=1)))
            row["val_accuracy"] = round(accuracy, 6)
            if accuracy >= progress.best_accuracy:
                progress.best_accuracy, progress.best_step = accuracy, progress.step
                progress.best = _copy(self.classifier.net.state_dict())
        progress.log.append(row)

    def capture(self, progress: Progress) -> Progress:
        kept = copy.copy(progress)
        kept.net, kept.log = _copy(self.classifier.net.state_dict()), list(progress.log)
        kept.optimizer = {
            f"{index}/{name}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
            for index, parameter in enumerate(self.learned)
            for name, value in self.optimizer.state[parameter].items()
            if value is not None
        }
        return kept

    def restore(self, progress: Progress) -> Progress:
        self.classifier.net.load_state_dict(progress.net, strict=True)
        for index, parameter in enumerate(self.learned):
            prefix = f"{index}/"
            state = {
                key.removeprefix(prefix): value for key, value in progress.optimizer.items() if key.startswith(prefix)
            }
            self.optimizer.state[parameter] = {name: _laid_out_as(parameter, value) for name, value in state.items()}
        progress = copy.copy(progress)
        progress.log = list(progress.log)
        return progress


def _copy(state: State) -> State:
    """Detached from the live tensors: a reference would turn the best weights into the last ones."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy on the parameter's device; in its memory format where it has its shape."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _num_classes(classifier: Classifier) -> int:
    """From the last of its last layer's weights, be it linear, a 1x1 convolution, or with a norm before it."""
    return len(list(classifier.head.parameters())[-1])


@contextmanager
def _settled(compute: Compute) -> Iterator[None]:
    """Repeatable kernels, on as many cores as it was settled."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(compute.threads)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
            yield
    finally:
        torch.set_num_threads(threads)
