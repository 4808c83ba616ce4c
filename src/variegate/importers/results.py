"""DA-Fusion's results CSV: what a run of it reached, by shots."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from variegate.errors import DataError, Problem
from variegate.files import write_atomic
from variegate.importers.csv_files import read_rows, shortened
from variegate.importers.found import Found

COLUMNS = ("seed", "examples_per_class", "epoch", "value", "metric", "split")

Row = tuple[int, int, int, float, str, str]  # in the order of COLUMNS


def results_found(path: Path) -> Found:
    """Read and summarise; raises DataError with every wrong row."""
    rows: list[Row] = []
    problems = []
    for line, values in read_rows(path, COLUMNS, ","):
        try:
            seed, shots, epoch = (int(float(values[name])) for name in COLUMNS[:3])
            value = float(values["value"])
        except ValueError as exc:
            problems.append(Problem(f"{path} line {line}", f"has no number where one is needed ({exc})", "correct it"))
            continue
        if not math.isfinite(value):
            problems.append(Problem(f"{path} line {line}", f"value is {values['value']}", "correct it"))
        rows.append((seed, shots, epoch, value, values["metric"], values["split"]))
    if problems:
        raise DataError(shortened(problems, path))
    summary = summarise(rows)

    def write(folder: Path) -> None:
        write_atomic(folder / "results.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())

    facts = {
        "rows": len(rows),
        "seeds": len({row[0] for row in rows}),
        "shots": sorted({row[1] for row in rows}),
        "epochs": len({row[2] for row in rows}),
        "metrics": sorted({row[4] for row in rows}),
    }
    facts |= {_title(item): _words(item) for item in summary if item["metric"] in _overall(rows)}
    note = "last: the last epoch. best: the best epoch of each seed, chosen on that split itself, so it is too good"
    return Found("results", "DA-Fusion", (path,), facts, write, notes=(note,))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Last and best epoch of every seed, averaged over seeds, by shots, split and metric.

    >>> rows = [(0, 4, 0, 0.5, "Accuracy", "Validation"), (0, 4, 1, 0.4, "Accuracy", "Validation")]
    >>> [(item["last"], item["best"]) for item in summarise(rows)]
    [(0.4, 0.5)]
    """
    runs: dict[tuple, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for seed, shots, epoch, value, metric, split in rows:
        runs[shots, split, metric][seed].append((epoch, value))
    summary = []
    for (shots, split, metric), seeds in sorted(runs.items()):
        pick = min if "loss" in metric.lower() else max
        last = [max(points)[1] for points in seeds.values()]
        best = [pick(value for _, value in points) for points in seeds.values()]
        spread = {"last_std": stdev(last)} if len(last) > 1 else {}
        summary.append(
            {
                "shots": shots,
                "split": split,
                "metric": metric,
                "seeds": len(seeds),
                "last": fmean(last),
                "best": fmean(best),
            }
            | spread
        )
    return summary


def _overall(rows: Sequence[Row]) -> set[str]:
    """Metrics that are of no single class: DA-Fusion writes those of a class after its name."""
    return {metric for *_, metric, _ in rows if metric.lower() in {"accuracy", "loss"}}


def _title(item: dict[str, Any]) -> str:
    return f"{item['shots']}-shot {item['split']} {item['metric']}".lower()


def _words(item: dict[str, Any]) -> str:
    std = f" ± {item['last_std']:.4f}" if "last_std" in item else ""
    return f"last {item['last']:.4f}{std}, best {item['best']:.4f} ({item['seeds']} seeds)"
