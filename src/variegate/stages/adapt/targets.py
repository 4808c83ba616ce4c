"""Which modules of a U-Net get a LoRA, told from the names and shapes of its weights. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "attention": _ATTENTION,
    "all": (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"),
}


def endings(targets: str | Sequence[str]) -> tuple[str, ...]:
    """What the names of the modules that adapt.targets means end in."""
    return TARGETS[targets] if isinstance(targets, str) else tuple(targets)


def targeted(shapes: Mapping[str, Sequence[int]], targets: str | Sequence[str]) -> dict[str, Sequence[int]]:
    """The weights (name -> shape) of those modules.

    >>> targeted({"mid.to_q.weight": [4, 4], "mid.to_quux.weight": [4, 4], "conv1.weight": [2, 2, 3, 3]}, ["to_q"])
    {'mid.to_q.weight': [4, 4]}
    """
    found = endings(targets)
    return {name: shape for name, shape in shapes.items()
            if any(f".{name.rpartition('.')[0]}".endswith(f".{one}") for one in found)}  # fmt: skip
