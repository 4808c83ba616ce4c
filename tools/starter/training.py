"""What both trainings share: a wall-clock budget that the learning rate follows, and checkpoints to resume from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WARM_UP_STEPS = 300


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
