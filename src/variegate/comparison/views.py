"""The views of comparison.json: CSV, Markdown and one HTML page. None of them computes a result.

The page is built from the report's pieces (stages/report): style sheet, row charts, curves, thumbnails, words.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from variegate.comparison.plan import REAL
from variegate.files import write_atomic
from variegate.stages.evaluate.results import WEIGHTS
from variegate.stages.report import plots, svg, words
from variegate.stages.report.contents import Interval
from variegate.stages.report.html import template_environment
from variegate.stages.report.scale import Scale, nice_scale
from variegate.stages.report.thumbnails import thumbnails
from variegate.store import RunFolder, explained

TEMPLATES = Path(__file__).parent / "templates"
COLUMNS = (
    "shots",
    "method",
    "kind",
    "part",
    "checkpoint",
    "measure",
    "baseline",
    "draw",
    "value",
    "low",
    "high",
    "p_holm",
    "p",
    "bootstrap_low",
    "bootstrap_high",
    "detectable",
)
LOOKS = {"real": 0, "recipe": 1, "classic": 2, "combined": 4, "text-only": 3, "duplicated": 5, "retrieval": 6}
Row = dict[str, Any]


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """comparison.json, .csv, .md and report.html; the images of the page are read from the runs."""
    texts = {
        "comparison.json": json.dumps(found, indent=1, ensure_ascii=False) + "\n",
        "comparison.csv": csv_text(found),
        "comparison.md": markdown(found),
        "report.html": page(found, folder.resolve().name, pictures(folder, found)),
    }
    with explained(folder):
        for name, text in texts.items():
            write_atomic(folder / name, text.encode("utf-8", "replace"))


def shots_words(shots: int | None) -> str:
    """
    >>> shots_words(5), shots_words(1), shots_words(None)
    ('5 shots', '1 shot', 'all training images')
    """
    return "all training images" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


# ------------------------------------------------------------------------------------------------ CSV


def csv_text(found: Mapping[str, Any]) -> str:
    """One long table of all numbers, over draws (draw empty) and of every draw; accuracies and differences are fractions."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for part in found["shots"]:
        for method in part["methods"]:
            head = {"shots": part["shots"], "method": method["method"], "kind": method["kind"], "part": "all"}
            writer.writerows(head | row for row in (*_rows(method), *_part_rows(method), *_cost_rows(method)))
        for curve in part["curves"]:
            head = {"shots": part["shots"], "method": curve["recipe"], "kind": "curve"}
            writer.writerows(head | row for row in _curve_rows(curve))
    for curve in found["curves"]:
        writer.writerows({"method": curve["method"], "kind": "curve"} | row for row in _curve_rows(curve))
    return text.getvalue()


def _rows(method: Mapping[str, Any]) -> Iterator[Row]:
    for weights in WEIGHTS:
        reached, head = method[weights], {"checkpoint": weights, "measure": "accuracy"}
        yield {**head, "value": reached["accuracy"], "low": reached["low"], "high": reached["high"]}
        for draw, value in enumerate(draw_values(method, weights)):
            yield {**head, "draw": draw, "value": value}
        yield {"checkpoint": weights, "measure": "val_accuracy", "value": reached["val_accuracy"]}
        for entry in method["against"]:
            gain = entry[weights]
            head = {"checkpoint": weights, "measure": "difference", "baseline": entry["baseline"]}
            numbers = {key: gain[key] for key in ("low", "high", "p_holm", "p", "detectable")}
            edges = dict(zip(("bootstrap_low", "bootstrap_high"), gain["bootstrap"] or (None, None), strict=True))
            yield {**head, "value": gain["difference"], **numbers, **edges}
            for draw, value in enumerate(gain["draws"]):
                yield {**head, "draw": draw, "value": value}


def _part_rows(method: Mapping[str, Any]) -> Iterator[Row]:
    for part in method["parts"]:
        for measure, baseline, numbers in (("accuracy", None, part), ("difference", REAL, part["gain"])):
            if measure == "accuracy" or method["method"] != REAL:
                head = {"part": part["part"], "checkpoint": "selected", "measure": measure, "baseline": baseline}
                yield {**head, "value": numbers[measure], "low": numbers["low"], "high": numbers["high"]}


def _cost_rows(method: Mapping[str, Any]) -> Iterator[Row]:
    """Of seconds and memory `part` is the stage; what is not known is left out."""
    cost, copies = method["cost"], method["copies"]
    for measure, whole in (("seconds", "total_seconds"), ("memory_mb", "peak_memory_mb")):
        for stage, value in (cost[measure] | {"all": cost[whole]}).items():
            if value is not None:
                yield {"measure": measure, "part": stage, "value": value}
    for measure in ("energy_j", "images_drawn", "images_kept", "unet_evaluations", "gain_per_minute"):
        if cost[measure] is not None:
            yield {"measure": measure, "value": cost[measure]}
    if copies:
        yield {"measure": "copies kept", "value": copies["copies_kept"]}
    if method["class_agreement"] is not None:
        yield {"measure": "class agreement", "value": method["class_agreement"]}


def _curve_rows(curve: Mapping[str, Any]) -> Iterator[Row]:
    for point in curve["points"]:
        part = f"{curve['key']}={point['value']}"
        head = {"part": part, "checkpoint": "selected", "measure": "val_accuracy"}
        yield {**head, "value": point["val_accuracy"], "low": point["low"], "high": point["high"]}
        for draw, value in enumerate(point["draws"]):
            yield {**head, "draw": draw, "value": value}


# ------------------------------------------------------------------------------------------------ Markdown and HTML


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each number of shots, ready for a README."""
    template = template_environment(html=False, folders=[TEMPLATES]).get_template("comparison.md.j2")
    return template.render(f=found, **_tools())


def page(found: Mapping[str, Any], name: str, images: Mapping[str, str]) -> str:
    """The whole page; `images` are data URIs by the keys of `pictures`."""
    template = template_environment(html=True, folders=[TEMPLATES]).get_template("comparison.html.j2")
    return template.render(f=found, name=name, thumbnails=images, **_tools())


def _tools() -> dict[str, Any]:
    return {
        "ranked": ranked,
        "gain": gain,
        "interval": interval,
        "look": look,
        "accuracy_scale": accuracy_scale,
        "gain_scale": gain_scale,
        "draw_values": draw_values,
        "curve_plot": curve_plot,
        "shots_plot": shots_plot,
        "shots_curves": shots_curves,
        "seconds_parts": seconds_parts,
        "shots_words": shots_words,
        "dots": svg.dots,
        "change": svg.change,
        "picture_key": picture_key,
        "shown_methods": shown_methods,
        "copied": copied,
        "zip": zip,
    }


def ranked(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Methods by test accuracy, best first."""
    return sorted(part["methods"], key=lambda method: -method["selected"]["accuracy"])


def gain(method: Mapping[str, Any], baseline: str, weights: str = "selected") -> Mapping[str, Any] | None:
    return next((entry[weights] for entry in method["against"] if entry["baseline"] == baseline), None)


def interval(entry: Mapping[str, Any], key: str) -> Interval:
    return Interval(entry[key], entry["low"], entry["high"])


def look(method: Mapping[str, Any]) -> int:
    """Colour and mark of a method: one for each kind."""
    return LOOKS[method["kind"]]


def draw_values(method: Mapping[str, Any], weights: str = "selected") -> list[float]:
    """Mean test accuracy of every draw."""
    return [sum(s[weights]["test_accuracy"] for s in draw["seeds"]) / len(draw["seeds"]) for draw in method["draws"]]


def accuracy_scale(part: Mapping[str, Any]) -> Scale:
    """One scale for all accuracies of one number of shots; whiskers of two draws may run off it."""
    values = [value for method in part["methods"] for value in (*draw_values(method), method["selected"]["accuracy"])]
    edge = 0.5 * (max(values) - min(values)) + 0.01
    bounds = [method["selected"][key] for method in part["methods"] for key in ("low", "high")]
    return nice_scale([*values, *(min(max(one, min(values) - edge), max(values) + edge) for one in bounds)])


def gain_scale(part: Mapping[str, Any], baseline: str) -> Scale:
    entries = [one for method in part["methods"] if (one := gain(method, baseline))]
    values = [value for one in entries for value in (*one["draws"], one["difference"])]
    edge = max(map(abs, values), default=0.01) + 0.01
    bounds = [min(max(one[key], -2 * edge), 2 * edge) for one in entries for key in ("low", "high")]
    return nice_scale([*values, *bounds], include=(0.0,))


def curve_plot(curve: Mapping[str, Any]) -> Markup:
    """Validation accuracy over the key's values, every draw and the intervals thin, the mean thick."""
    return _plot([(1, curve)], with_draws=True)


def shots_curves(found: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """What is plotted over the number of shots, with the number of its colour: real images alone and the recipes."""
    return list(enumerate(curve for curve in found["curves"] if curve["kind"] in ("real", "recipe")))


def shots_plot(found: Mapping[str, Any]) -> Markup:
    """Validation accuracy over the number of shots; means thick, their intervals thin."""
    return _plot(shots_curves(found), with_draws=False)


def _plot(curves: Sequence[tuple[int, Mapping[str, Any]]], *, with_draws: bool) -> Markup:
    """Empty where values are no numbers, or there are no validation images."""
    points = [point for _, curve in curves for point in curve["points"]]
    try:
        places = [float(point["value"]) for point in curves[0][1]["points"]]
    except ValueError:
        return Markup("")
    if any(point["val_accuracy"] is None for point in points):
        return Markup("")
    known = [value for point in points for value in (point["val_accuracy"], *(point["draws"] if with_draws else ()))]
    edge = 0.5 * (max(known) - min(known)) + 0.01  # of two draws intervals may run off the plot
    lines: list[tuple[int, bool, tuple[tuple[float, float], ...]]] = []
    for position, curve in curves:
        at = list(zip(places, curve["points"], strict=True))
        if with_draws and len(at[0][1]["draws"]) > 1:
            lines += [
                (position, False, tuple((x, p["draws"][k]) for x, p in at)) for k in range(len(at[0][1]["draws"]))
            ]
        for x, point in at:
            if point["low"] is not None:
                low, high = max(point["low"], min(known) - edge), min(point["high"], max(known) + edge)
                lines.append((position, False, ((x, low), (x, high))))
        lines.append((position, True, tuple((x, point["val_accuracy"]) for x, point in at)))
    y = nice_scale([value for _, _, path in lines for _, value in path])
    label = f"Validation accuracy over {curves[0][1]['key']}"
    return plots.curves(
        lines, nice_scale(places), y, write=lambda value: words.percent(value, 0), write_x=words.short, label=label
    )


def seconds_parts(part: Mapping[str, Any]) -> list[str]:
    """Stages that any method of this number of shots spent time on, in the pipeline's order."""
    order = ("adapt", "prompts", "draw", "retrieve", "refine", "curate", "train")
    used = {name for method in part["methods"] for name, value in method["cost"]["seconds"].items() if value}
    return [name for name in order if name in used]


# ------------------------------------------------------------------------------------------------ pictures


def picture_key(part: Mapping[str, Any], method: Mapping[str, Any], image: str) -> str:
    return f"{part['shots']}/{method['run']}/{image}"


def pictures(folder: Path, found: Mapping[str, Any]) -> dict[str, str]:
    """Data URIs of every image shown, by picture_key; those of the first draw are shown."""
    files: dict[str, Path] = {}
    for part in found["shots"]:
        for method in shown_methods(part):
            root = folder / "runs" / f"shots-{part['shots'] or 'all'}" / "draw-0" / method["run"]
            with RunFolder.read(root) as run:
                real = {image.id: Path(image.path) for image in run.real_images("train")}
                for row in method["shown"]:
                    if row["real"]:
                        files[picture_key(part, method, row["real"])] = real[row["real"]]
                    files |= {picture_key(part, method, image): run.path(image) for image in row["images"]}
                for pair in (method["copies"] or {}).get("shown", ()):
                    files[picture_key(part, method, pair["real"])] = real[pair["real"]]
                    files[picture_key(part, method, pair["image"])] = run.path(pair["image"])
    return thumbnails(files)


def shown_methods(part: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Methods whose images are shown: one for each set of images."""
    return [
        m
        for m in part["methods"]
        if m["shown"] and not m["same_as"] and m["kind"] != "combined" and m["method"] != REAL
    ]


def copied(part: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Methods whose images were held against the training images: one for each set of images."""
    return [m for m in part["methods"] if m["copies"] and not m["same_as"] and m["kind"] != "combined"]
