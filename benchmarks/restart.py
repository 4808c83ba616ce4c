"""Draw one plan undisturbed, with two workers, and through many kills at random moments; compare every file's hash.

Usage: python benchmarks/restart.py [--kills 20] [--per-real 12]. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(out: Path, per_real: int, workers: int, model: str = "starter") -> list[str]:
    keys = ("backend.batch=16", "backend.threads=1", "backend.steps=10", f"generate.per_real={per_real}", "curate=[]")
    keys += ("adapt.method=none", "generate.method=real-aug")
    keys += (f"backend.model={model}",)
    sets = [part for key in keys for part in ("--set", key)]
    start = [sys.executable, "-m", "variegate", "generate", "--out", str(out), "--workers", str(workers)]
    return [*start, "--set", "generate.strength=0.5", *sets]


def fingerprint(out: Path) -> str:
    """One hash over the names and bytes of all images and their table."""
    digest = hashlib.sha256()
    for path in sorted((out / "synthetic").rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(out)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def drawn(out: Path) -> int:
    return sum(1 for _ in (out / "synthetic").rglob("*.jpg")) if (out / "synthetic").is_dir() else 0


def timed(out: Path, per_real: int, model: str) -> tuple[float, float]:
    """Draw undisturbed; seconds until the first image, and in all."""
    start = time.perf_counter()
    first_s = 0.0
    with subprocess.Popen(command(out, per_real, 1, model)) as child:
        while child.poll() is None:
            if not first_s and drawn(out):
                first_s = time.perf_counter() - start
            time.sleep(0.1)
    if child.returncode:
        sys.exit(f"drawing failed with status {child.returncode}")
    return first_s, time.perf_counter() - start


def kill_at_random(
    out: Path, per_real: int, kills: int, times: tuple[float, float], model: str
) -> tuple[int, list[int]]:
    """Start and SIGKILL the whole process group until `kills` kills have hit a living run, then let it end.

    A life lasts from half of what starting takes to so long after the first image that the kills fall all along the drawing.
    """
    rng = random.Random(0)
    first_s, whole_s = times
    longest_s = first_s + 1.2 * (whole_s - first_s) / kills
    hit, images = 0, []
    while hit < kills:
        child = subprocess.Popen(
            command(out, per_real, 1 + hit % 2, model),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(first_s / 2, longest_s))
        if child.poll() is not None:  # it got to the end before the kill: nothing left to disturb
            break
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        hit += 1
        images.append(drawn(out))
    subprocess.run(command(out, per_real, 1, model), check=True, stdout=subprocess.DEVNULL)
    return hit, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-real", type=int, default=12)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        times = timed(root / "one", options.per_real, options.model)
        subprocess.run(command(root / "two", options.per_real, 2, options.model), check=True)
        hit, images = kill_at_random(root / "killed", options.per_real, options.kills, times, options.model)
        hashes = {kind: fingerprint(root / kind) for kind in ("one", "two", "killed")}
        count = drawn(root / "one")
    same = len(set(hashes.values())) == 1
    print(f"{count} images; 1 worker, 2 workers and {hit} kills: {'identical' if same else 'DIFFERENT'} files")
    print(
        json.dumps(
            {"benchmark": "restart", "images": count, "kills": hit, "images_at_kills": images, "identical": same}
        )
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
