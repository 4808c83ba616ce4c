"""Small inline charts for table rows. The page's style sheet gives colours and sizes by class name; text is escaped.

Row charts are fluid: positions are percentages of the width, so that text and dots keep their size on any screen.
Markers differ in shape as well as in colour, for readers who see fewer colours; a ninth arm looks like the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from variegate.stages.report.contents import Interval
from variegate.stages.report.scale import Scale

SHAPES = {  # the style sheet has a colour for each, in this order
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "diamond": "M0-6.5 6.5 0 0 6.5-6.5 0z",
    "square": "M-5-5h10v10h-10z",
    "triangle": "M0-6 6 5H-6z",
    "plus": "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "triangle down": "M0 6-6-5H6z",
    "cross": "M0-2.8 3.2-6 6-3.2 2.8 0 6 3.2 3.2 6 0 2.8-3.2 6-6 3.2-2.8 0-6-3.2-3.2-6z",
    "bar": "M-2.5-6.5h5v13h-5z",
}


def look(position: int) -> int:
    """Number of the colour and the shape of an arm.

    >>> look(7), look(8)
    (7, 0)
    """
    return position % len(SHAPES)


def axis(scale: Scale, write: Callable[[float], str]) -> Markup:
    """Tick labels over a column of row charts."""
    labels = Markup("").join(Markup('<text x="{}" y="12">{}</text>').format(scale.at(t), write(t)) for t in scale.ticks)
    return Markup('<svg class="row axis" height="16" aria-hidden="true">{}</svg>').format(labels)


def dots(interval: Interval, seeds: Sequence[float | None], scale: Scale, position: int) -> Markup:
    """A mean with its 95 % whiskers and every seed's own value as a small dot."""
    parts = [_grid(scale, 30)]
    if interval.low is not None and interval.high is not None:
        parts.append(_line("whisker", scale.at(interval.low), scale.at(interval.high), 15))
    ring = Markup('<circle class="seed" cx="{}" cy="24" r="2.5"/>')
    parts += [ring.format(scale.at(value)) for value in seeds if value is not None]
    if interval.value is not None:
        parts.append(_marker(scale.at(interval.value), 15, position))
    return _row(30, f"arm-{look(position)}", parts)


def change(before: float | None, after: float | None, scale: Scale, arms: tuple[int, int]) -> Markup:
    """Two marks on one line: an arm's accuracy before and after."""
    parts = [_grid(scale, 22)]
    if before is not None and after is not None:
        parts.append(_line("link", scale.at(before), scale.at(after), 11))
    for value, position in ((before, arms[0]), (after, arms[1])):
        if value is not None:
            parts.append(
                Markup('<g class="arm-{}">{}</g>').format(look(position), _marker(scale.at(value), 11, position))
            )
    return _row(22, "change", parts)


def swatch(position: int) -> Markup:
    """The mark of an arm, for legends and table rows."""
    mark = Markup('<path class="mark" d="{}"/>').format(_shape(position))
    text = '<svg class="swatch arm-{}" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">{}</svg>'
    return Markup(text).format(look(position), mark)


def _row(height: int, classes: str, parts: Sequence[Markup]) -> Markup:
    text = '<svg class="row {}" height="{}" aria-hidden="true">{}</svg>'
    return Markup(text).format(classes, height, Markup("").join(parts))


def _grid(scale: Scale, height: int) -> Markup:
    line = Markup('<line class="{}" x1="{x}" x2="{x}" y1="0" y2="{}"/>')
    kinds = (("zero" if tick == 0 and scale.low < 0 else "grid", tick) for tick in scale.ticks)
    return Markup("").join(line.format(kind, height, x=scale.at(tick)) for kind, tick in kinds)


def _line(name: str, start: str, end: str, y: int) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(name, start, end, y=y)


def _shape(position: int) -> str:
    return list(SHAPES.values())[look(position)]


def _marker(x: str, y: int, position: int) -> Markup:
    """Paths take no percentages, so the shape sits in a nested svg placed by percentage."""
    shape = _shape(position)
    return Markup('<svg x="{}" y="{}" overflow="visible"><path class="mark" d="{}"/></svg>').format(x, y, shape)
