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
)
LOOKS = {"real": 0, "recipe": 1, "classic": 2, "combined": 4, "text-only": 3, "duplicated": 5, "retrieval": 6}
Row = tuple[Any, ...]


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
    """One long table: accuracies and differences, over draws (draw empty) and of every draw; fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for part in found["shots"]:
        for method in part["methods"]:
            head = (part["shots"], method["method"], method["kind"])
            writer.writerows((*head, "all", *row) for row in _rows(method))
            writer.writerows((*head, *row) for row in _part_rows(method))
            if method["copies"]:
                writer.writerow(
                    (*head, "all", None, "copies kept", None, None, method["copies"]["copies_kept"], None, None, None)
                )
    return text.getvalue()


def _rows(method: Mapping[str, Any]) -> Iterator[Row]:
    for weights in WEIGHTS:
        reached = method[weights]
        yield weights, "accuracy", None, None, reached["accuracy"], reached["low"], reached["high"], None
        for draw in method["draws"]:
            values = [seed[weights]["test_accuracy"] for seed in draw["seeds"]]
            yield weights, "accuracy", None, draw["draw"], sum(values) / len(values), None, None, None
        for entry in method["against"]:
            gain = entry[weights]
            numbers = (gain["difference"], gain["low"], gain["high"], gain["p_holm"])
            yield weights, "difference", entry["baseline"], None, *numbers
            for draw, value in enumerate(gain["draws"]):
                yield weights, "difference", entry["baseline"], draw, value, None, None, None


def _part_rows(method: Mapping[str, Any]) -> Iterator[Row]:
    for part in method["parts"]:
        for measure, baseline, numbers in (("accuracy", None, part), ("difference", REAL, part["gain"])):
            if measure == "accuracy" or method["method"] != REAL:
                spread = (numbers[measure], numbers["low"], numbers["high"])
                yield part["part"], "selected", measure, baseline, None, *spread, None


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
        "seconds_parts": seconds_parts,
        "shots_words": shots_words,
        "dots": svg.dots,
        "change": svg.change,
        "picture_key": picture_key,
        "shown_methods": shown_methods,
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
    """Validation accuracy over the key's values, every draw thin and their mean thick; empty where values are no numbers."""
    try:
        places = [float(point["value"]) for point in curve["points"]]
    except ValueError:
        return Markup("")
    if any(point["val_accuracy"] is None for point in curve["points"]):
        return Markup("")
    draws = [
        (1, False, tuple((x, point["draws"][k]) for x, point in zip(places, curve["points"], strict=True)))
        for k in range(len(curve["points"][0]["draws"]))
    ]
    mean = (1, True, tuple((x, point["val_accuracy"]) for x, point in zip(places, curve["points"], strict=True)))
    lines = [*draws, mean] if len(draws) > 1 else [mean]
    y = nice_scale([value for _, _, points in lines for _, value in points])
    label = f"Validation accuracy over {curve['key']}"
    return plots.curves(
        lines, nice_scale(places), y, write=lambda value: words.percent(value, 0), write_x=words.short, label=label
    )


def seconds_parts(part: Mapping[str, Any]) -> list[str]:
    """Stages that any method of this number of shots spent time on, in the pipeline's order."""
    order = ("adapt", "prompts", "draw", "refine", "curate", "train")
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
