"""A million-row plan: seconds and memory to make it and to write it into run.db.

    python benchmarks/plan.py [--rows 1000000] [--classes 100] [--real 10000]

Checked in the end: every row is there, every chunk can be read. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from variegate.recipe import GenerateSection
from variegate.records import ClassInfo, RealImage, content_id
from variegate.stages.generate.ledger import write_plan
from variegate.stages.generate.plan import PlanBackend, make_plan
from variegate.stages.generate.pool import pool_of_names
from variegate.store import RunFolder


def main() -> None:
    arguments = parse()
    classes = [ClassInfo(k, f"class {k}", f"{k:04d}") for k in range(arguments.classes)]
    images = [
        RealImage(f"{k:06d}", "", k % arguments.classes, "train", sha256=content_id(k)) for k in range(arguments.real)
    ]
    section = GenerateSection(
        method="real-mix", per_class=arguments.rows // arguments.classes, strength=[0.3, 0.5, 0.7, 0.9]
    )
    start = time.perf_counter()
    plan = make_plan(
        classes, images, section, pool_of_names(classes), PlanBackend("settings", 25, None, 64), negative="", seed=0
    )
    planned = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, RunFolder.create(Path(temporary, "run")) as folder:
        write_plan(folder, plan, {})
        written = time.perf_counter()
        rows = folder.db.execute("SELECT COUNT(*), COUNT(DISTINCT id) FROM plan").fetchone()
        pending = len(folder.pending_chunks())
        last = folder.plan_rows(pending - 1)
        read = time.perf_counter()
        size_mb = sum(path.stat().st_size for path in folder.root.glob("run.db*")) / 1e6
    if rows != (len(plan), len(plan)) or last[-1].id != plan.ids[-1]:
        raise SystemExit(f"the plan in run.db differs: {rows} rows of {len(plan)}")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answer = {
        "benchmark": "plan",
        "rows": len(plan),
        "chunks": pending,
        "plan_seconds": round(planned - start, 2),
        "insert_seconds": round(written - planned, 2),
        "check_seconds": round(read - written, 2),
        "seconds": round(written - start, 2),
        "run_db_mb": round(size_mb, 1),
        "peak_gb": round(peak_gb, 2),
    }
    print(
        f"{len(plan):,} rows in {pending:,} chunks: planned in {planned - start:.1f} s, written in {written - planned:.1f} s"
    )
    print(f"run.db {size_mb:.0f} MB, peak memory {peak_gb:.2f} GB")
    print(json.dumps(answer))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--real", type=int, default=10_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
