"""Time and peak memory of `variegate run` with no arguments, and of `variegate --help`. Prints one JSON line last."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

COMMAND = [sys.executable, "-m", "variegate"]
HELP_RUNS = 7


def help_seconds() -> float:
    """Median wall time of --help in a fresh process."""
    times = []
    for _ in range(HELP_RUNS):
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        said = subprocess.run(
            [*COMMAND, "run", *sys.argv[1:], "--json"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    answer = json.loads(said.stdout)
    print(f"run: {seconds:.0f} s, peak {peak_gb:.2f} GB; {answer['verdict']}")
    numbers = {
        "benchmark": "run",
        "seconds": round(seconds, 1),
        "peak_gb": round(peak_gb, 3),
        "help_s": round(help_seconds(), 3),
    }
    print(json.dumps({**numbers, "verdict": answer["verdict"]}))


if __name__ == "__main__":
    main()
