"""A worker that squares numbers and fails on request; importable, because worker processes import it by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from variegate.errors import DataError, Problem
from variegate.executors.base import Report
from variegate.executors.local import run_tasks


@dataclass(frozen=True)
class Job:
    number: int
    kind: str = "square"
    marker: str = ""

    @property
    def name(self) -> str:
        return f"job {self.number}"


class Squarer:
    def __init__(self, note: Path | None, number: int) -> None:
        if note:
            note.write_text("open")
        self.note, self.number = note, number

    def __call__(self, job: Job, report: Report) -> tuple[int, int, int]:
        if job.kind == "raise":
            raise ZeroDivisionError("no such square")
        if job.kind == "user-error":
            raise DataError(Problem("here", "is wrong", "right it"))
        if job.kind == "die" or (job.kind == "die-once" and not Path(job.marker).exists()):
            if job.marker:
                Path(job.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.kind == "sleep":
            time.sleep(60)
        if job.kind == "nested":
            inner = [Job(k, "sleep") for k in (1, 2)]
            for _ in run_tasks(partial(Squarer, None), inner, 2):
                pass
        report(job.number)
        return job.number**2, os.getpid(), self.number

    def close(self) -> None:
        if self.note:
            self.note.write_text("closed")
