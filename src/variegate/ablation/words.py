"""An ablation in words: the sentence it ends with, and its tables as Markdown. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from variegate.ablation.settings import Candidate
from variegate.statistics import Interval, in_words


def sentence(winner: Candidate, count: int, closing: Mapping[str, Any], interval: Interval) -> str:
    """What to do. Only an interval wholly above nothing speaks for synthetic images: not drawing is what needs no proof."""
    reached = (
        f"{_percent(closing['winner'])} of {closing['images']} validation images against {_percent(closing['real'])}"
    )
    gain = f"{reached} for real images alone, {in_words(interval)}, on seeds that nothing was chosen by"
    if interval.low > 0:
        return f"Best of {count} settings: {winner.words}: {gain}."
    if interval.high < 0:
        return f"Don't: the best of {count} settings hurts ({winner.words}): {gain}."
    return f"Don't, as far as these images can tell: the best of {count} settings ({winner.words}) gets {gain}."


def as_markdown(results: Mapping[str, Any]) -> str:
    """The sentence, what each key did, and every setting tried, the best first."""
    lines = ["# Ablation", "", results["verdict"], "", "## What matters", ""]
    lines += ["| key | share of the differences it explains | mean accuracy by value (one seed) |", "|---|---|---|"]
    for one in results["effects"]:
        means = ", ".join(f"{value}: {_percent(mean)} ({one['counts'][value]})" for value, mean in one["means"].items())
        lines.append(f"| `{one['key']}` | {_percent(one['explained'])} | {means} |")
    lines += ["", "## What was tried", "", "| settings | seeds | validation accuracy |", "|---|---|---|"]
    ranked = sorted(results["candidates"], key=lambda entry: (-entry["rung"], -entry["val_accuracy"]))
    for entry in ranked:
        words = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in entry["settings"].items())
        lines.append(f"| {words or 'the recipe as it is'} | {entry['seeds']} | {_percent(entry['val_accuracy'])} |")
    return "\n".join([*lines, ""])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
