"""How tasks run, and nothing about what they do.

An executor is a function `run_tasks(open_worker, tasks, workers)` that yields (task, result) as tasks finish. Tasks are small,
idempotent and picklable; `open_worker` is picklable too, is told the worker's number from 0 on and opens what it holds (a loaded
model) once a process. A worker that replaces a dead one has its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

Report = Callable[[int], None]  # told how much more of a task is done


class Worker(Protocol):
    """Does one task after another, and may say how far it is."""

    def __call__(self, task: Any, report: Report) -> Any: ...

    def close(self) -> None: ...


OpenWorker = Callable[[int], Worker]


def ignore(count: int) -> None:
    """Nobody wants to know."""


class RunTasks(Protocol):
    """Raises the worker's own VariegateError, or TaskFailed naming the task and its log."""

    def __call__(
        self,
        open_worker: OpenWorker,
        tasks: Iterable[Any],
        workers: int = 1,
        *,
        log_dir: Path | None = None,
        report: Report = ignore,
        are_nested: bool = False,
    ) -> Iterator[tuple[Any, Any]]: ...


def task_name(task: Any) -> str:
    """What people are told a task is: its `name`, else its repr."""
    return str(getattr(task, "name", None) or repr(task))
