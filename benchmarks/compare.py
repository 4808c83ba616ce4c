"""Time of a comparison against the sum of runs of their own: the same ten methods, draw and classifiers, by the clock.

    python benchmarks/compare.py [--draws 2] [--workers 2] [--only METHOD,METHOD,...] [--keep FOLDER] [KEY=VALUE ...]

The comparison is one command over all draws. A run of its own is what somebody does without it: `variegate run` for each method on
draw 0, real images trained beside it to compare with, in a process of its own. With --only just these are run; the others are
taken to cost what the one of their kind does (any augmentation as any other, a recipe as the first one). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

COMMAND = [sys.executable, "-m", "variegate"]
RECIPES = ("variegate", "diff-aug", "diff-mix", "diff-gen")
PLAIN = {  # arms that need no drawn images, as evaluate.arms has them beside `real`
    "real": "",
    "real+randaugment": "{name: arm, images: real, train: {augment: randaugment}}",
    "real+trivialaugment": "{name: arm, images: real, train: {augment: trivialaugment}}",
    "real+mixup": "{name: arm, images: real, train: {mix: mixup}}",
    "real+cutmix": "{name: arm, images: real, train: {mix: cutmix}}",
    "duplicated real": "{name: arm, images: real, copies: 12}",
}
METHODS = (*PLAIN, *RECIPES)
SHOTS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        measured = {method: alone(method, root / "alone" / method, options) for method in options.only}
        together = compared(root / "together", options)
    apart, a_draw = sum(measured[like(method, options.only)] for method in METHODS), together / options.draws
    answer = {
        "benchmark": "compare",
        "methods": len(METHODS),
        "draws": options.draws,
        "workers": options.workers,
        "comparison_seconds_a_draw": round(a_draw),
        "own_runs_seconds": round(apart),
        "share": round(a_draw / apart, 3),
        "measured": {name: round(value) for name, value in measured.items()},
    }
    print(json.dumps(answer))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2, help="of the comparison (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the comparison (%(default)s)")
    parser.add_argument(
        "--only", default=",".join(METHODS), help="methods to run apart (all); one of each kind at least"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs; nothing is done twice, so times are of new ones"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    options.only = options.only.split(",")
    unknown = [method for method in options.only if method not in METHODS]
    if unknown or not all(like(method, options.only) for method in METHODS):
        parser.error(f"--only takes {', '.join(METHODS)}: real, one other without drawing and one recipe at least")
    return options


def like(method: str, measured: Sequence[str]) -> str:
    """The method that was run and costs as much as this one; empty where there is none."""
    if method in measured or method == "real":
        return method if method in measured else ""
    kind = RECIPES if method in RECIPES else tuple(PLAIN)[1:]
    return next((other for other in kind if other in measured), "")


def alone(method: str, out: Path, options: argparse.Namespace) -> float:
    """Seconds of a run of its own."""
    keys = ["seed=0", f"dataset.shots={SHOTS}", "evaluate.seeds=1", *options.overrides]
    if method in PLAIN:
        keys.append(f"evaluate.arms=[{', '.join(arm for arm in ('real', PLAIN[method]) if arm)}]")
    recipe = method if method in RECIPES else "none"
    return timed("run", "builtin:meadow", "--recipe", recipe, "--out", str(out), *settings(keys))


def compared(out: Path, options: argparse.Namespace) -> float:
    """Seconds of the comparison, all draws."""
    words = ["--recipes", ",".join(RECIPES), "--shots", str(SHOTS), "--draws", str(options.draws), "--seeds", "1"]
    words += ["--skip", "text-only,best-classic", "--workers", str(options.workers), "--out", str(out)]
    return timed("compare", "builtin:meadow", *words, *settings(options.overrides))


def settings(keys: Sequence[str]) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


def timed(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s: {' '.join(words)}", flush=True)
    return seconds


if __name__ == "__main__":
    main()
