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

WINDOW = 0.3  # share of an undisturbed run's time within which each life ends: starting takes half of that


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


def kill_at_random(out: Path, per_real: int, kills: int, whole_s: float, model: str) -> tuple[int, list[int]]:
    """Start and SIGKILL the whole process group until `kills` kills have hit a living run, then let it end."""
    rng = random.Random(0)
    hit, images = 0, []
    while hit < kills:
        child = subprocess.Popen(
            command(out, per_real, 1 + hit % 2, model),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.2, whole_s))
        if child.poll() is not None:  # it got to the end before the kill: nothing left to disturb
            break
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        hit += 1
        images.append(sum(1 for _ in (out / "synthetic").rglob("*.jpg")) if (out / "synthetic").is_dir() else 0)
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
        start = time.perf_counter()
        subprocess.run(command(root / "one", options.per_real, 1, options.model), check=True)
        whole_s = time.perf_counter() - start
        subprocess.run(command(root / "two", options.per_real, 2, options.model), check=True)
        hit, images = kill_at_random(root / "killed", options.per_real, options.kills, whole_s * WINDOW, options.model)
        hashes = {kind: fingerprint(root / kind) for kind in ("one", "two", "killed")}
        drawn = sum(1 for _ in (root / "one" / "synthetic").rglob("*.jpg"))
    same = len(set(hashes.values())) == 1
    print(f"{drawn} images; 1 worker, 2 workers and {hit} kills: {'identical' if same else 'DIFFERENT'} files")
    print(
        json.dumps(
            {"benchmark": "restart", "images": drawn, "kills": hit, "images_at_kills": images, "identical": same}
        )
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
