"""Optimisers by name, and all they remember as tensors and numbers that a checkpoint can hold.

AdamW's 8-bit form keeps its step as a plain number and Prodigy the step size it has found beside the parameters: without these a
restarted run would be another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from variegate.errors import MissingExtra
from variegate.recipe import AdaptSection

PACKAGES = {"adamw-8bit": ("bitsandbytes", "8bit"), "prodigy": ("prodigyopt", "prodigy")}  # optimiser -> package, extra
FINDS_ITS_RATE = "prodigy"


def check_optimizer(name: str) -> None:
    """Raise MissingExtra where the optimiser's package is not installed."""
    package, extra = PACKAGES.get(name, ("torch", ""))
    if find_spec(package) is None:
        raise MissingExtra.of(package, extra, f"adapt.optimizer {name}")


def make_optimizer(groups: list[dict[str, Any]], section: AdaptSection) -> torch.optim.Optimizer:
    """The optimiser a recipe names for groups of `params`, `lr`, `peak` and `weight_decay`."""
    check_optimizer(section.optimizer)
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=True)
    if section.optimizer == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, betas=(0.9, 0.999), eps=1e-8)
    from prodigyopt import Prodigy

    for group in groups:  # Prodigy (arXiv 2306.06101) finds the step size itself; one factor for all groups
        group["lr"] = group["peak"] = 1.0
    return Prodigy(groups, safeguard_warmup=section.warmup_fraction > 0)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What it remembers: tensors by "parameter/name", and the numbers of parameters and groups."""
    whole = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, moments in whole["state"].items():
        for name, value in _flat(moments):
            if torch.is_tensor(value):
                tensors[f"{index}/{name}"] = value.clone()  # parameters may share a table, a file may not
            else:
                numbers[f"{index}/{name}"] = _plain(value)
    groups = [{k: _plain(v) for k, v in group.items() if _is_number(v)} for group in whole["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
    """Give an optimiser of the same parameters back what `optimizer_state` took."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *facts["numbers"].items()]:
        index, *within, name = key.split("/")
        place = state.setdefault(int(index), {})
        for part in within:
            place = place.setdefault(part, {})
        place[name] = value
    groups = [{**group, **kept} for group, kept in zip(whole["param_groups"], facts["groups"], strict=True)]
    optimizer.load_state_dict({**whole, "state": state, "param_groups": groups})


def _flat(moments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by name; bitsandbytes wraps those of quantised moments in a mapping of their own."""
    for name, value in moments.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", one) for inner, one in _flat(value))
        else:
            yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (torch.is_tensor(value) and value.numel() == 1)


def _plain(value: Any) -> int | float:
    """A number that JSON holds exactly."""
    return value.item() if hasattr(value, "item") else value
