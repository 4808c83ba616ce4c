"""The training loop: steps that depend on their number only, checkpoints, held-out losses, and a stop for bad numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from variegate.backends.devices import is_out_of_memory
from variegate.captions import Telling
from variegate.errors import TaskFailed
from variegate.recipe import AdaptSection
from variegate.records import seed_from
from variegate.stages.adapt.checkpoints import State
from variegate.stages.adapt.objective import (
    class_focus,
    clean_of,
    huber_losses,
    item_losses,
    level_weights,
    noised,
    target,
    time_chances,
)
from variegate.stages.adapt.optimizers import make_optimizer, optimizer_state, restore_optimizer
from variegate.stages.adapt.sampling import Batch, sample_batch
from variegate.stages.adapt.team import Team
from variegate.stages.adapt.trainee import Trainee, seeded

LORA_RATE, TOKEN_RATE, RATE_WIDTH = 8e-5, 4e-4, 320
WEIGHTED_RATE = 1.5  # times as much with timesteps weighted
HELD_OUT_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the timesteps, one loss each
HELD_OUT_IMAGES = 32
HELD_OUT_SEED = 2208
LANE_IMAGES = 16  # of a batch, for one core to have work enough of its own

Gradients = tuple[torch.Tensor, Sequence[torch.Tensor | None]]  # a loss, and its gradient by parameter


@dataclass(frozen=True, slots=True)
class Views:
    """Encoded images with their captions; latents [N, views, C, h, w] scaled, masks [N, views, 1, h, w] or None. `telling` is
    what they would be told of other classes; without one nothing is known of classes.

    With `starts` and `times` they are pairs instead: noised latents, like `latents`, and the timestep of each [N], from which
    a one-step model should reach `latents`.
    """

    latents: torch.Tensor
    captions: Sequence[Sequence[str]]  # [image][text]
    weights: np.ndarray  # chance of each image
    masks: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    times: torch.Tensor | None = None
    telling: Telling | None = None

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(slots=True)
class Progress:
    """Where training is, and what was seen on the way."""

    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the steps since the last log line
    best: float = math.inf
    best_step: int = 0
    since_best: int = 0
    stopped: bool = False
    micro_batch: int = 0


class Settled(AdaptSection):
    """The section with nothing left open."""

    steps: int
    lr: float
    token_lr: float


def settled(section: AdaptSection, width: int, num_images: int) -> Settled:
    """The learning rates filled in for a U-Net of `width` channels at its first level, the steps for `num_images`.

    LoRA of SD 1.5 (320 channels) is published with 5e-5 to 1e-4. Fewer channels need larger steps; the square fits what the
    starter was tuned to (64 channels: 2e-3 and 1e-2, docs/log.md). Gradients of weighted timesteps are less noisy and bear
    larger ones.

    >>> settled(AdaptSection(), 320, 50).lr, settled(AdaptSection(token_lr=0.5), 64, 50).token_lr
    (8e-05, 0.5)
    >>> round(settled(AdaptSection(timesteps="weighted"), 320, 50).lr, 6)
    0.00012
    """
    factor = (RATE_WIDTH / width) ** 2 * (WEIGHTED_RATE if section.timesteps == "weighted" else 1.0)
    lr = section.lr if section.lr is not None else LORA_RATE * factor
    token_lr = section.token_lr if section.token_lr is not None else TOKEN_RATE * factor
    open_keys = {"lr": lr, "token_lr": token_lr, "steps": section.steps_for(num_images)}
    return Settled.model_validate(section.model_dump() | open_keys)


def distilling(section: Settled) -> Settled:
    """The section of the lesson that follows a parent's own: its steps and rates, and nothing that images alone have."""
    rate = section.distill.lr if section.distill.lr is not None else section.lr / 2
    own = {"steps": section.distill.steps, "lr": rate, "token_lr": section.token_lr * rate / section.lr}
    return section.model_copy(update={**own, "early_stop": None, "timesteps": "all", "mask": "none", "focus": 0.0})


def optimizer_for(trainee: Trainee, section: Settled) -> torch.optim.Optimizer:
    """Tokens and LoRA in groups of their own; tokens are not decayed, which would pull them out of the vocabulary."""
    groups = [
        {"params": [p for _, p in named], "lr": rate, "peak": rate, "weight_decay": decay}
        for named, rate, decay in (
            (trainee.token_parameters(), section.token_lr, 0.0),
            (trainee.lora_parameters(), section.lr, section.weight_decay),
        )
        if named
    ]
    return make_optimizer(groups, section)


def rate_factor(step: int, section: Settled) -> float:
    """Share of the peak rate at a step: linear warm-up, then constant or a cosine to zero.

    >>> section = settled(AdaptSection(steps=100, warmup_fraction=0.1), 320, 50)
    >>> [round(rate_factor(step, section), 2) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    warm_up = round(section.warmup_fraction * section.steps)
    if step < warm_up:
        return (step + 1) / warm_up
    if section.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(section.steps - warm_up, 1)))


class Fit:
    """One training run; `run` continues from `restore`."""

    def __init__(
        self,
        trainee: Trainee,
        section: Settled,
        views: Views,
        held_out: Views | None,
        prior: Views | None,
        *,
        seed: int,
        number: int = 0,
        team: Team | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.trainee, self.section, self.views, self.held_out, self.prior = trainee, section, views, held_out, prior
        self.seed, self.team, self.say = seed_from(seed, number), team or Team(), say
        scheduler = trainee.pipe.scheduler
        self.kind = scheduler.config.prediction_type
        self.kept = scheduler.alphas_cumprod.float()
        # at the last timestep alone DasDiff's plain error: a signal-to-noise weight would only scale the learning rate
        cap = None if section.timesteps == "last" else section.snr_cap
        self.weights = level_weights(self.kind, self.kept, cap)
        self.chances = time_chances(section.timesteps, self.weights).numpy()
        picked_by_weight = section.timesteps == "weighted"
        self.learning_weights = self.weights.mean().expand_as(self.weights) if picked_by_weight else self.weights
        self.parameters = trainee.named_parameters()
        self.optimizer = optimizer_for(trainee, section)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if section.ema else {}
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress(micro_batch=section.micro_batch or section.batch)
        self.lanes = ThreadPoolExecutor(trainee.lanes, "adapt")

    # ---------------------------------------------------------------- the loop

    def run(self, until: int, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Train up to step `until` (or an early stop); raises TaskFailed at a loss that is no number."""
        while self.progress.step < until and not self.progress.stopped:
            step = self.progress.step
            if step == 0 and self.held_out is not None and self.section.evaluations and not self.progress.log:
                self._evaluate()
            self.progress.losses.append(self._step(step))
            self.progress.step = step + 1
            if self.progress.step in self._evaluation_steps():
                if self.held_out is not None:
                    self._evaluate()
                self.progress.stopped = self.team.agree(self.progress.stopped)
            on_step(self.progress.step)

    def _evaluation_steps(self) -> set[int]:
        return milestones(self.section.steps, self.section.evaluations)

    def _step(self, step: int) -> float:
        section = self.section
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, section)
        batches = [(self.views, self._batch(self.views, step, section.batch, "images"), 1.0)]
        if self.prior is not None:
            batches.append((self.prior, self._batch(self.prior, step, section.batch, "prior"), section.prior.weight))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.trainee.device)
        for views, batch, weight in batches:
            total += weight * self._accumulate(views, batch, weight, step)
        if self.team.size > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._sum_gradients()
            self.team.sum_(total)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), section.clip or math.inf)
        _ensure_finite("loss", float(total), step)
        _ensure_finite("gradient's norm", float(norm), step)
        try:
            self.optimizer.step()
            self._follow()
        except (MemoryError, RuntimeError) as exc:
            if not is_out_of_memory(exc):
                raise
            reason = f"memory does not suffice for the optimiser at step {step}: {exc}"
            remedy = "set adapt.optimizer=adamw-8bit, a lower adapt.rank or a lower adapt.micro_batch"
            raise TaskFailed("adapt", f"{reason}; {remedy}") from exc
        return float(total)

    @torch.no_grad()
    def check(self) -> None:
        """Raise TaskFailed where the weights as they are give no finite loss: a step looks at them before it changes them.

        Looks at images of the next step; nothing that is learned depends on it.
        """
        step = self.progress.step
        batch = self._batch(self.views, step, self.section.batch, "images").part(0, self.progress.micro_batch)
        for weights in (nullcontext(), *([self.averaged()] if self.average else [])):  # what goes on, what is shipped
            with weights, self.trainee.computing(training=False):
                _ensure_finite("loss", float(self._looked_at(self.views, batch).mean()), step)

    def _sum_gradients(self) -> None:
        """All of them in one message: hundreds of small ones would wait for each other."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.team.sum_(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _batch(self, views: Views, step: int, size: int, purpose: str) -> Batch:
        return sample_batch(
            views.weights,
            size=size,
            num_views=views.latents.shape[1],
            num_texts=len(views.captions[0]),
            time_chances=self.chances,
            seed=seed_from(self.seed, purpose),
            step=step,
        )

    def _accumulate(self, views: Views, batch: Batch, weight: float, step: int) -> torch.Tensor:
        """Add this process's share of the batch's gradient; halves the micro-batch whenever memory runs out."""
        size = len(batch)
        start, last = (size * (self.team.rank + k) // self.team.size for k in (0, 1))
        loss = torch.zeros((), device=self.trainee.device)
        while start < last:
            part = batch.part(start, min(start + self.progress.micro_batch, last))
            try:
                with seeded(seed_from(self.seed, "dropout", step, start)), self.trainee.computing(training=True):
                    lanes = self._side_by_side(lambda lane: self._gradients(views, lane, weight, size), part)
            except (MemoryError, RuntimeError) as exc:
                self._shrink(exc, len(part), step)
                continue
            for share, gradients in lanes:
                loss += share
                for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                    if gradient is not None:
                        if parameter.grad is None:
                            parameter.grad = torch.zeros_like(parameter)
                        parameter.grad += gradient
            start += len(part)
        return loss

    def _gradients(self, views: Views, part: Batch, weight: float, size: int) -> Gradients:
        """A part's share of the mean loss of `size` items, and the gradient of `weight` times it."""
        share = self._losses(views, part, self.learning_weights, self.section.focus).sum() / size
        # not backward(): two of those at a time would add to the same .grad
        found = torch.autograd.grad(weight * share, list(self.parameters.values()), allow_unused=True)
        return share.detach(), found

    def _side_by_side(self, work: Callable[[Batch], Gradients], part: Batch) -> list[Gradients]:
        """The work on a part, in as many lanes as its images fill, each a thread with its share of the cores."""
        count = max(min(self.trainee.lanes, len(part) // LANE_IMAGES), 1)
        if count == 1:
            return [work(part)]
        threads = torch.get_num_threads()

        def in_lane(first: int, last: int) -> Gradients:
            with self.trainee.lane(threads // count):
                return work(part.part(first, last))

        edges = [len(part) * k // count for k in range(count + 1)]
        try:
            return list(self.lanes.map(in_lane, edges, edges[1:]))
        finally:
            torch.set_num_threads(threads)  # a lane's number would hold for threads that start later, too

    def _shrink(self, exc: BaseException, size: int, step: int) -> None:
        if not is_out_of_memory(exc):
            raise exc
        if size == 1:
            reason = f"memory does not suffice for one image at step {step}: {exc}"
            raise TaskFailed(
                "adapt", f"{reason}; set adapt.gradient_checkpointing=true or a lower backend.size_px"
            ) from exc
        self.progress.micro_batch = max(size // 2, 1)
        self.say(
            f"memory ran out at step {step}: {self.progress.micro_batch} images at a time now, gradients are added up"
        )
        if self.trainee.device.type == "cuda":
            torch.cuda.empty_cache()

    def _losses(self, views: Views, batch: Batch, time_weights: torch.Tensor, focus: float = 0.0) -> torch.Tensor:
        """Loss of each item [N]; an error at timestep t counts `time_weights[t]`, `focus` of it where its class matters."""
        if views.starts is not None:
            return self._pair_losses(views, batch)
        trainee, device = self.trainee, self.trainee.device
        image, view = torch.from_numpy(batch.image), torch.from_numpy(batch.view)
        clean = views.latents[image, view].float()
        noise = torch.stack([self._noise(int(seed), clean.shape[1:]) for seed in batch.noise])
        times = torch.from_numpy(batch.time)
        kept = self.kept[times]
        noisy = noised(clean, noise, kept).to(device)
        predict = lambda captions: trainee.predict(noisy, times.to(device), trainee.encode(captions))  # noqa: E731
        rival = None
        if focus and views.telling is not None:
            with torch.no_grad(), trainee.same_dropout():
                rival = predict(
                    [views.telling.of_rival(*item) for item in _items(batch.image, batch.text, batch.noise)]
                )
        predicted = predict([views.captions[i][t] for i, t in _items(batch.image, batch.text)])
        wanted = target(self.kind, clean, noise, kept).to(device)
        mask = None if views.masks is None else views.masks[image, view].to(device)
        if rival is not None:
            counted = class_focus(predicted.detach(), rival, focus)
            mask = counted if mask is None else mask * counted
        return item_losses(predicted, wanted, time_weights[times].to(device), mask)

    def _pair_losses(self, views: Views, batch: Batch) -> torch.Tensor:
        """How far the one-step model ends from where its parent does, from the same noised latents; [N]."""
        assert views.starts is not None and views.times is not None, "pairs have both"
        trainee, device = self.trainee, self.trainee.device
        image, view = torch.from_numpy(batch.image), torch.from_numpy(batch.view)
        noisy, ends = (part[image, view].float().to(device) for part in (views.starts, views.latents))
        times = views.times[image]
        text = trainee.encode([views.captions[i][0] for i in batch.image])
        predicted = trainee.predict(noisy, times.to(device), text).float()
        return huber_losses(clean_of(self.kind, predicted, noisy, self.kept[times].to(device)), ends)

    def _noise(self, seed: int, shape: torch.Size) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator)
        if self.section.noise_offset:
            noise = noise + self.section.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        return noise

    def _follow(self) -> None:
        """Move the average towards the weights; its horizon grows with the run."""
        keep = min(self.section.ema, (self.progress.step + 1) / (self.progress.step + 10))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name].detach(), 1 - keep)

    # ---------------------------------------------------------------- judging

    def _evaluate(self) -> None:
        section, progress = self.section, self.progress
        loss = self.held_out_loss()
        _ensure_finite("held-out loss", loss, progress.step)
        line = {"step": progress.step, "held_out_loss": round(loss, 6)}
        if progress.losses:
            line["loss"] = round(float(np.mean(progress.losses)), 6)
        progress.log.append(line)
        progress.losses.clear()
        if loss < progress.best:
            progress.best, progress.best_step, progress.since_best = loss, progress.step, 0
            if section.early_stop is not None:
                self.best = {name: value.clone() for name, value in self._current().items()}
        else:
            progress.since_best += 1
            progress.stopped = section.early_stop is not None and progress.since_best >= section.early_stop

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss over held-out images at fixed noise levels with fixed noise: comparable between steps and runs.

        Pairs have their own noise.
        """
        views = self.held_out
        assert views is not None, "there are held-out images"
        count = min(len(views), HELD_OUT_IMAGES)
        picked = np.linspace(0, len(views) - 1, count).round().astype(np.int64)
        losses = []
        with self.averaged(), self.trainee.computing(training=False):
            for level in HELD_OUT_LEVELS if views.starts is None else (1.0,):
                time = round(level * (len(self.kept) - 1))
                seeds = np.array([seed_from(HELD_OUT_SEED, level, int(i)) for i in picked]) % 2**62
                zeros = np.zeros(count, np.int64)
                losses.append(self._looked_at(views, Batch(picked, zeros, zeros, np.full(count, time), seeds)))
        return float(torch.cat(losses).mean())

    def _looked_at(self, views: Views, batch: Batch) -> torch.Tensor:
        """Loss of each item [N] without learning from it, in as many parts as memory asks for."""
        losses, start = [], 0
        while start < len(batch):
            part = batch.part(start, min(start + self.progress.micro_batch, len(batch)))
            try:
                losses.append(self._losses(views, part, self.weights).float().cpu())
            except (MemoryError, RuntimeError) as exc:
                self._shrink(exc, len(part), self.progress.step)
                continue
            start += len(part)
        return torch.cat(losses)

    # ---------------------------------------------------------------- state

    def averaged(self) -> Any:
        """The moving average in place of the weights for a block; nothing without one."""
        return _swapped(self.parameters, self.average)

    def _current(self) -> dict[str, torch.Tensor]:
        return self.average or {name: p.detach() for name, p in self.parameters.items()}

    @property
    def kept_step(self) -> int:
        """The step whose weights `finish` leaves."""
        return self.progress.best_step if self.best else self.progress.step

    def finish(self) -> None:
        """Leave in the model what is to be shipped: the best seen with early stop, else the average or the last."""
        with torch.no_grad():
            for name, value in (self.best or self._current()).items():
                self.parameters[name].copy_(value)

    def state(self) -> State:
        progress = self.progress
        tensors = {f"value/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        moments, numbers = optimizer_state(self.optimizer)
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        facts = {
            "optimizer": numbers,
            "log": progress.log,
            "losses": progress.losses,
            "best": progress.best if math.isfinite(progress.best) else None,
            "best_step": progress.best_step,
            "since_best": progress.since_best,
            "stopped": progress.stopped,
            "micro_batch": progress.micro_batch,
        }
        return State(progress.step, tensors, facts)

    def restore(self, state: State, *, fresh: bool = False) -> None:
        """Go on exactly where a state was taken; `fresh` takes its values only, with a new optimiser at step 0."""
        parts: dict[str, dict[str, torch.Tensor]] = {"value": {}, "average": {}, "best": {}, "optimizer": {}}
        for key, value in state.tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value.to(self.trainee.device) if part != "optimizer" else value
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parts["value"][name])
        if fresh:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if self.average else {}
            return
        # in the parameters' own order, which a file sorted by name does not keep
        self.average = {name: parts["average"][name].clone() for name in self.average}
        self.best = {name: parts["best"][name] for name in self.parameters if name in parts["best"]}
        restore_optimizer(self.optimizer, parts["optimizer"], state.facts["optimizer"])
        facts = state.facts
        self.progress = Progress(
            state.step, list(facts["log"]), list(facts["losses"]),
            math.inf if facts["best"] is None else facts["best"],
            facts["best_step"], facts["since_best"], facts["stopped"], facts["micro_batch"],
        )  # fmt: skip


def _items(*columns: np.ndarray) -> Iterator[tuple[int, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _ensure_finite(what: str, value: float, step: int) -> None:
    """Raise TaskFailed for a number that is none."""
    if not math.isfinite(value):
        remedy = "lower adapt.lr and adapt.token_lr" if step else "nothing is learned yet, so set adapt.dtype=fp32"
        raise TaskFailed("adapt", f"the {what} at step {step} is {value}; {remedy}")


def milestones(steps: int, count: int) -> set[int]:
    """`count` steps evenly spaced, the last one among them.

    >>> sorted(milestones(300, 4)), milestones(10, 0)
    ([75, 150, 225, 300], set())
    """
    return {round(steps * (k + 1) / count) for k in range(count)} - {0} if count else set()


class _swapped:
    """Other values in place of parameters for a block."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
        self.parameters, self.values = parameters, values
        self.kept: dict[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        for name, value in self.values.items():
            self.kept[name] = self.parameters[name].data
            self.parameters[name].data = value

    def __exit__(self, *_: object) -> None:
        for name, value in self.kept.items():
            self.parameters[name].data = value
