"""The views of a Summary: one self-contained HTML page, Markdown, JSON. None of them computes a result.

Everything that came from the user is escaped by the template engine: autoescape in HTML, `finalize` in Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from variegate.stages.report import plots, svg, words
from variegate.stages.report.contents import Adapting, Arm, Comparison, Curve, Interval, Points, Summary
from variegate.stages.report.results import mean_curve, shares
from variegate.stages.report.scale import Scale, nice_scale

TEMPLATES = Path(__file__).parent / "templates"
NUM_ENDS = 10  # classes shown at each end of a long list; the whole list can be opened
MAX_THIN = 20  # single-seed curves drawn for one arm; the mean is always of all
MAX_LISTED = 50  # duplicates and unreadable files written out
NO_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "\N{REPLACEMENT CHARACTER}")


def render_html(summary: Summary, thumbnails: Mapping[str, str]) -> str:
    """The whole page; `thumbnails` maps image ids to data URIs, an id without one gets an empty frame."""
    page = template_environment(html=True).get_template("page.html.j2")
    return page.render(s=summary, thumbnails=thumbnails, positions={arm.name: arm.position for arm in summary.arms})


def render_markdown(summary: Summary) -> str:
    """The numbers without images, for a terminal or a pull request."""
    text = template_environment(html=False).get_template("report.md.j2").render(s=summary)
    return re.sub(r"\n{3,}", "\n\n", text)


def render_json(summary: Summary) -> str:
    """The Summary as it is; keys in the order of contents.py."""
    return json.dumps(asdict(summary), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def accuracy_rows(summary: Summary) -> tuple[Scale, list[tuple[Arm, str, Interval, Markup]]]:
    """One chart row for each arm and way of choosing the checkpoint, on one scale."""
    known: list[float | None] = []
    for _, interval, seeds in (row for arm in summary.arms for row in _both(arm)):
        known += [interval.value, interval.low, interval.high, *seeds]
    scale = nice_scale(known)
    rows = [
        (arm, title, interval, svg.dots(interval, seeds, scale, arm.position))
        for arm in summary.arms
        for title, interval, seeds in _both(arm)
    ]
    return scale, rows


def difference_rows(comparison: Comparison, position: int) -> tuple[Scale, list[tuple[str, Interval, Markup]]]:
    """The paired difference against zero, for both ways of choosing the checkpoint."""
    pairs = (("Best on validation", comparison.selected), ("Last step", comparison.last))
    known = [value for _, interval in pairs for value in (interval.value, interval.low, interval.high)]
    scale = nice_scale(known, include=(0.0,))
    return scale, [(title, interval, svg.dots(interval, (), scale, position)) for title, interval in pairs]


def change_scale(comparison: Comparison) -> Scale:
    """One accuracy scale for all classes of a comparison."""
    return nice_scale([value for row in comparison.changes for value in (row.before, row.after)])


def learning(summary: Summary, column: str, label: str) -> Markup:
    """Learning curves of one logged column, seeds thin and means thick."""
    lines: list[tuple[int, bool, Points]] = []
    for arm in summary.arms:
        own = [points for curve in summary.curves if curve.arm == arm.name and (points := _points(curve, column))]
        lines += [(arm.position, False, points) for points in own[:MAX_THIN]]
        lines += [(arm.position, True, mean_curve(own))] if own else []
    if not lines:
        return Markup("")
    x = nice_scale([float(step) for _, _, points in lines for step, _ in points], include=(0.0,), most=6)
    y = nice_scale([value for _, _, points in lines for _, value in points], most=5)
    write = (lambda value: words.percent(value, 0)) if column == "val_accuracy" else words.short
    means_last = sorted(lines, key=lambda line: line[1])
    return plots.curves(means_last, x, y, write=write, label=label)


def losses(adapting: Adapting) -> Markup:
    """Held-out loss (thick) and training loss (thin) of adapting over its steps."""
    lines = [(position, thick, points) for position, thick, points in
             ((0, False, adapting.loss), (0, True, adapting.held_out)) if points]  # fmt: skip
    if not adapting.held_out:
        return Markup("")
    x = nice_scale([float(step) for _, _, points in lines for step, _ in points], include=(0.0,), most=6)
    y = nice_scale([value for _, _, points in lines for _, value in points], most=5)
    return plots.curves(lines, x, y, write=words.short, label="Held-out loss of adapting over its steps")


def _points(curve: Curve, column: str) -> Points:
    return curve.loss if column == "loss" else curve.val_accuracy


def _both(arm: Arm) -> list[tuple[str, Interval, list[float | None]]]:
    return [
        ("Best on validation", arm.selected, [seed.selected.test_accuracy for seed in arm.seeds]),
        ("Last step", arm.last, [seed.last.test_accuracy for seed in arm.seeds]),
    ]


def breakable(name: str) -> Markup:
    """An arm's name that may break after its plus signs, for narrow column heads."""
    return Markup("+<wbr>").join(name.split("+"))


def markdown_escape(value: object) -> object:
    """Make text literal in Markdown, also inside a table cell.

    >>> markdown_escape("a|b <c>")
    'a\\\\|b &lt;c&gt;'
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    flat = " ".join(value.translate(NO_CONTROLS).split())
    return re.sub(r"([\\`*_\[\]|#!~$])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _visible(value: object) -> object:
    """Control characters are not allowed in HTML; they are shown as replacement characters."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else value.translate(NO_CONTROLS)


def template_environment(*, html: bool, folders: Sequence[Path] = ()) -> Environment:
    """Templates of the report, and those of `folders` before them, with the words and charts they use."""
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible if html else markdown_escape,
    )
    environment.filters |= {
        name: getattr(words, name)
        for name in ("percent", "points", "span", "count", "short", "duration", "label_words", "megabytes", "energy")
    }
    environment.filters["breakable"] = breakable
    environment.globals |= {
        "svg": svg,
        "plots": plots,
        "words": words,
        "shares": shares,
        "accuracy_rows": accuracy_rows,
        "difference_rows": difference_rows,
        "change_scale": change_scale,
        "learning": learning,
        "losses": losses,
        "NUM_ENDS": NUM_ENDS,
        "MAX_LISTED": MAX_LISTED,
    }
    return environment
