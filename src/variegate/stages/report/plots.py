"""The larger inline charts: confusion matrix, learning curves, and the plane of the feature space.

Like the row charts (svg.py) they take colours from the style sheet; every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from variegate.stages.report.contents import FeatureSpace, Points
from variegate.stages.report.scale import Scale
from variegate.stages.report.svg import look

NUM_LEVELS = 20  # shades of a confusion matrix
MAX_NUMBERED = 12  # classes: up to here percentages stand in the cells
MAX_NAMED = 30  # classes: up to here rows carry names
HEIGHT_PX = 190  # of a curve's plot
SCATTER_EDGE, ABOVE = 700, 12  # the longer side, and names over centres, in the picture's own units
SPOTS = ("m-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z", "m0-7 7 7-7 7-7-7z", "m-6-6 12 12m-12 0 12-12")  # by kind
TEXT = Markup('<text class="{}" x="{:.3f}" y="{:.3f}" text-anchor="{}">{}</text>')


def heatmap(shares: Sequence[Sequence[float]], names: Sequence[str], position: int, label: str) -> Markup:
    """A confusion matrix, rows are true classes: right answers in the arm's colour, mistakes in ink, darker = more.

    One path for each shade keeps 100 classes small.
    """
    size = len(shares)
    text = max(size / 40, 0.3) if size > 10 else 0.3  # height of letters, in cells
    left = (11 if size <= MAX_NAMED else 3) * text
    marks = _cells(shares)
    marks += _ticks(names, text)
    if size <= MAX_NUMBERED:
        marks += _numbers(shares)
    box = f"{-left - text:.2f} {-2 * text:.2f} {size + left + 1.5 * text:.2f} {size + 2.5 * text:.2f}"
    frame = Markup('<rect class="frame" width="{s}" height="{s}"/>').format(s=size)
    head = '<svg class="heat arm-{}" viewBox="{}" font-size="{:.3f}" role="img" aria-label="{}">{}{}</svg>'
    return Markup(head).format(look(position), box, text, label, frame, Markup("").join(marks))


def curves(
    lines: Sequence[tuple[int, bool, Points]],
    x: Scale,
    y: Scale,
    *,
    write: Callable[[float], str],
    label: str,
    write_x: Callable[[float], str] = lambda value: f"{value:,.0f}",
) -> Markup:
    """Lines over training steps, or other numbers: (arm position, mean or single seed, points). Means are thick."""
    line = Markup('<polyline class="curve arm-{} {}" points="{}"/>')
    paths = [
        line.format(look(position), "mean" if mean else "one", _path(points, x, y)) for position, mean, points in lines
    ]
    across = Markup('<line class="grid" x1="0" x2="1000" y1="{y}" y2="{y}"/>')
    grid = [across.format(y=round(1000 - 1000 * y.share(tick))) for tick in y.ticks]
    left = Markup('<text x="0" y="{:.1f}">{}</text>')
    values = [left.format(HEIGHT_PX * (1 - y.share(tick)) + 16, write(tick)) for tick in y.ticks]
    below = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    anchors = ["start", *["middle"] * (len(x.ticks) - 2), "end"]
    steps = [
        below.format(x.at(tick), HEIGHT_PX + 36, anchor, write_x(tick))
        for tick, anchor in zip(x.ticks, anchors, strict=True)
    ]
    plot = Markup(
        '<svg y="20" width="100%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible">'
        "{}</svg>"
    ).format(HEIGHT_PX, Markup("").join([*grid, *paths]))
    head = Markup('<svg class="curves" width="100%" height="{}" role="img" aria-label="{}">{}{}</svg>')
    return head.format(HEIGHT_PX + 44, label, plot, Markup("").join([*values, *steps]))


def scatter(space: FeatureSpace, label: str) -> Markup:
    """Images on the plane, one path for each kind, real ones on top; classes named at their centres where few.

    Axes have one scale, so that distances are true.
    """
    places = [point for kind in space.kinds for point in kind.points]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*places, strict=True))
    unit = SCATTER_EDGE / max(right - left, high - low, 1e-9)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(unit * (x - left)), round(unit * (high - y))

    path = Markup('<path class="spot arm-{}" d="{}"/>')
    marks = [
        path.format(position, "".join("M{} {}{}".format(*at(*point), SPOTS[position]) for point in kind.points))
        for position, kind in sorted(enumerate(space.kinds), key=lambda one: one[1].kind == "real")
    ]
    if len(space.centres) <= MAX_NUMBERED:
        names = [(*at(x, y), shorten(name, 24)) for name, x, y in space.centres]
        marks += [TEXT.format("centre", x, y - ABOVE, "middle", name) for x, y, name in names]
    width, height = at(right, low)
    box = f"-40 -20 {width + 80} {height + 40}"
    head = Markup('<svg class="scatter" viewBox="{}" role="img" aria-label="{}">{}</svg>')
    return head.format(box, label, Markup("").join(marks))


def spot(position: int) -> Markup:
    """The mark of a kind of image, for the legend."""
    head = '<svg class="swatch scatter" width="14" height="14" viewBox="-9 -9 18 18" aria-hidden="true">{}</svg>'
    return Markup(head).format(Markup('<path class="spot arm-{}" d="M0 0{}"/>').format(position, SPOTS[position]))


def shorten(text: str, most: int) -> str:
    """Cut a long name with an ellipsis.

    >>> shorten("butterfly", 6)
    'butte…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _path(points: Points, x: Scale, y: Scale) -> str:
    return " ".join(f"{round(1000 * x.share(step))},{round(1000 - 1000 * y.share(value))}" for step, value in points)


def _ticks(names: Sequence[str], text: float) -> list[Markup]:
    """Numbers over the columns; numbers, and names where they fit, before the rows."""
    size = len(names)
    every = 1 if size <= MAX_NAMED else 10 ** (len(str(size - 1)) - 1)
    marks = []
    for index in range(0, size, every):
        row = f"{index + 1} {shorten(names[index], 16)}" if size <= MAX_NAMED else index + 1
        marks.append(TEXT.format("", index + 0.5, -0.5 * text, "middle", index + 1))
        marks.append(TEXT.format("", -0.5 * text, index + 0.5 + text / 3, "end", row))
    return marks


def _cells(shares: Sequence[Sequence[float]]) -> list[Markup]:
    """All cells, those of one shade as one path; small cells are shaded by the square root, to stay visible."""
    chosen: dict[tuple[bool, int], list[str]] = {}
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share > 0:
                shade = (row != column, math.ceil(share * NUM_LEVELS))
                chosen.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
    power = 1.0 if len(shares) <= MAX_NUMBERED else 0.5
    path = Markup('<path class="{}" fill-opacity="{:.2f}" d="{}"/>')
    return [
        path.format("wrong" if is_wrong else "right", (level / NUM_LEVELS) ** power, "".join(cells))
        for (is_wrong, level), cells in sorted(chosen.items())
    ]


def _numbers(shares: Sequence[Sequence[float]]) -> list[Markup]:
    return [
        TEXT.format("dark" if share > 0.5 else "light", column + 0.5, row + 0.6, "middle", f"{100 * share:.0f}")
        for row, line in enumerate(shares)
        for column, share in enumerate(line)
        if share >= 0.005
    ]
