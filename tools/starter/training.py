"""What both trainings share: a wall-clock budget that the learning rate follows, and checkpoints to resume from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WARM_UP_STEPS = 300
EMA_DECAY = 0.998
SAVE_EVERY_S = 240


class Budget:
    """Wall-clock seconds of one stage, counted across restarts; `fraction` runs from 0 to 1."""

    def __init__(self, minutes: float, spent_s: float = 0.0) -> None:
        self.total_s = 60 * minutes
        self._started = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent_s / self.total_s)


def learning_rate(peak: float, step: int, fraction: float, *, hold: float = 0.0) -> float:
    """Linear warm-up, `peak` until `hold` of the budget is spent, then a cosine down to 1 % at its end."""
    after_hold = max(0.0, (fraction - hold) / max(1 - hold, 1e-6))
    return (
        peak
        * min(1.0, (step + 1) / WARM_UP_STEPS)
        * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, after_hold))))
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


class Average:
    """Exponential moving average of parameters; its horizon grows with the run, so early exports are not stale."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.live = dict(named)
        self.values = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.decay, (step + 1) / (step + 30))
        values, live = list(self.values.values()), [p.detach() for p in self.live.values()]
        torch._foreach_lerp_(values, live, 1 - keep)


def save_checkpoint(
    path: Path, parts: dict[str, dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write named tensors and the optimiser's moments to one safetensors file, atomically."""
    tensors = {
        f"{part}/{name}": value.detach().cpu().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
    temporary.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Tensors by part, and the facts saved beside them."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = file.get_tensor(key)
    return parts, facts


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state = optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def train_on_budget(
    name: str,
    model: torch.nn.Module,
    step_of: Callable[[int], torch.Tensor],
    checkpoint: Path,
    *,
    batch: int,
    minutes: float,
    peak_rate: float,
    hold: float,
    preview_every_min: float,
    preview: Callable[[dict[str, torch.Tensor], int], None],
) -> dict[str, torch.Tensor]:
    """Train `model` until the budget is spent, from `checkpoint` where it is; the averaged weights by name.

    `step_of` gives the loss of a step from its number alone. `preview` is called with averaged weights and the images seen.
    """
    optimizer = torch.optim.AdamW(model.parameters(), peak_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = Average(model.named_parameters(), EMA_DECAY)
    step, num_images, spent_s = 0, 0, 0.0
    if checkpoint.exists():
        parts, facts = load_checkpoint(checkpoint)
        model.load_state_dict(parts["model"], strict=False)  # buffers are not kept
        average.values = {key: parts["average"][key].to(live.device) for key, live in average.live.items()}
        restore_optimizer(optimizer, parts["optimizer"])
        step, num_images, spent_s = facts["step"], facts["images"], facts["spent_s"]
    budget, saved_s, shown_s, recent = Budget(minutes, spent_s), spent_s, spent_s, []
    while budget.fraction < 1:
        set_learning_rate(optimizer, learning_rate(peak_rate, step, budget.fraction, hold=hold))
        loss = step_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        average.update(step)
        step, num_images = step + 1, num_images + batch
        if step % 100 == 0:
            state = f"rate {optimizer.param_groups[0]['lr']:.1e}, loss {sum(recent) / len(recent):.4f}"
            print(f"{name}: step {step}, {num_images} images, {budget.spent_s / 60:.1f} min, {state}", flush=True)
            recent.clear()
        if budget.spent_s - saved_s > SAVE_EVERY_S or budget.fraction == 1:
            saved_s = budget.spent_s
            tensors = {"model": dict(model.named_parameters()), "average": average.values}
            save_checkpoint(checkpoint, tensors, optimizer, {"step": step, "spent_s": saved_s, "images": num_images})
        if budget.spent_s - shown_s > 60 * preview_every_min:
            shown_s = budget.spent_s
            preview(average.values, num_images)
    return average.values
