"""Drawing in one step against Diff-Mix's setting: 25 steps, strength 0.7, guidance 7.5, variants of the same real images.

    python benchmarks/one_step.py [--images 1024] [--plain-images 16] [--turns 2]

Three ways with the starter in one process, in turns, the best of each counts: diffusers' documented loop at Diff-Mix's setting, the
generate stage at the same setting, and the generate stage with the one-step starter (`starter-onestep`, the same sizes) at the same
strength. The stage's rates count loading, planning, encoding, drawing and writing files. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from draw import by_stage, plain_loop, quiet_libraries

DIFF_MIX = {"steps": 25, "strength": 0.7, "guidance": 7.5}
ONE_STEP = {"steps": 1, "strength": 0.7, "guidance": 1.0}
WAYS = ("plain", "stage", "one_step")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="drawn in one step; a quarter of it in 25")
    parser.add_argument("--plain-images", type=int, default=16, help="drawn by diffusers' loop")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args(given)
    quiet_libraries()
    found = dict.fromkeys(WAYS, 0.0)
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(options.turns):
            rates = one_turn(options, Path(temporary, str(turn)))
            print(
                f"turn {turn + 1}: " + ", ".join(f"{way} {rate:.2f} images/s" for way, rate in rates.items()),
                flush=True,
            )
            found = {way: max(found[way], rates[way]) for way in WAYS}
    answer = {
        "benchmark": "one_step",
        **{f"{way}_images_per_second": round(rate, 3) for way, rate in found.items()},
        "ratio_to_stage": round(found["one_step"] / found["stage"], 1),
        "ratio_to_plain": round(found["one_step"] / found["plain"], 1),
        "images": options.images,
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(answer))


def one_turn(options: argparse.Namespace, root: Path) -> dict[str, float]:
    """Images a second of each way."""
    from variegate.backends.folder import find_model

    root.mkdir()
    many = by_stage(root / "stage", "starter", options.images // 4, **DIFF_MIX)
    one = by_stage(root / "one-step", "starter-onestep", options.images, **ONE_STEP)
    plain = plain_loop(
        find_model("starter"), many.images[: options.plain_images], root / "plain", device="cpu", **DIFF_MIX
    )
    return {"plain": plain, "stage": many.images_per_second, "one_step": one.images_per_second}


if __name__ == "__main__":
    main()
