"""Linear axes with round ticks, shared by all charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Position in [0, 1], clipped."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def at(self, value: float) -> str:
        """Position in percent, as SVG attributes take it."""
        return f"{100 * self.share(value):.2f}%"


def nice_scale(values: Sequence[float | None], *, most: int = 5, include: Sequence[float] = ()) -> Scale:
    """A scale with at most about `most` round steps around the values.

    >>> nice_scale([0.62, 0.78]).ticks
    (0.6, 0.65, 0.7, 0.75, 0.8)
    """
    known = [value for value in (*values, *include) if value is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 10) for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)
