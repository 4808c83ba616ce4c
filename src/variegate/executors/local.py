"""Tasks in this process, or in worker processes on this machine.

A worker that dies (killed, out of memory) is replaced and its task tried once more. Workers end with the process that
started them, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from variegate.cost import own_peaks, tell_peaks
from variegate.ending import leave
from variegate.errors import TaskFailed, VariegateError
from variegate.executors.base import OpenWorker, Report, ignore, task_name

ATTEMPTS = 2
STOP_S = 2.0  # how long a worker may take to end before it is killed


def run_tasks(
    open_worker: OpenWorker,
    tasks: Iterable[Any],
    workers: int = 1,
    *,
    log_dir: Path | None = None,
    report: Report = ignore,
    are_nested: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result) as tasks finish: in this process with one worker, else in `workers` spawned processes.

    With `are_nested` the workers may start processes of their own. Raises the worker's own VariegateError, or TaskFailed
    naming the task and, with `log_dir`, the worker's log.
    """
    if workers < 1:
        raise ValueError(f"workers should be at least 1, got {workers}")
    if workers == 1:
        return _in_process(open_worker, tasks, report)
    return _in_processes(
        partial(_Process, open_worker, log_dir=log_dir, is_daemon=not are_nested), tasks, workers, report
    )


def _in_process(open_worker: OpenWorker, tasks: Iterable[Any], report: Report) -> Iterator[tuple[Any, Any]]:
    with contextlib.closing(open_worker(0)) as worker:
        for task in tasks:
            try:
                result = worker(task, report)
            except VariegateError:
                raise
            except Exception as exc:
                raise TaskFailed(task_name(task), f"{type(exc).__name__}: {exc}") from exc
            yield task, result


def _in_processes(
    open_process: Callable[[int], _Process], tasks: Iterable[Any], workers: int, report: Report
) -> Iterator[tuple[Any, Any]]:
    """Deal tasks to processes; each holds one task at a time, so that a dead one costs one task."""
    waiting: Iterator[Any] = iter(tasks)
    again: deque[tuple[Any, int]] = deque()
    pool: list[_Process] = []
    try:
        for number in range(workers):
            process = open_process(number)
            if not process.give_next(again, waiting):
                process.stop()
                break
            pool.append(process)
        while pool:
            ready = wait([process.pipe for process in pool])
            for process in [process for process in pool if process.pipe in ready]:
                task, attempt = process.task, process.attempt
                answer = process.answer()
                if answer is None:
                    pool.remove(process)
                    process.stop()
                    if attempt == ATTEMPTS:
                        raise TaskFailed(task_name(task), f"its worker ended twice ({process.ending()})", process.log)
                    again.append((task, attempt + 1))
                    pool.append(process := open_process(process.number))
                    process.give_next(again, waiting)
                    continue
                kind, value = answer
                if kind == "so far":
                    report(value)
                    continue
                if kind == "took":
                    tell_peaks(value)
                    continue
                result = _result_of(answer, task, process.log)
                if not process.give_next(again, waiting):
                    pool.remove(process)
                    process.stop()
                yield task, result
    finally:
        for process in pool:
            process.kill()
        for process in pool:
            process.join()


def _result_of(answer: tuple[str, Any], task: Any, log: str) -> Any:
    kind, value = answer
    if kind == "done":
        return value
    if kind == "raised":
        raise value
    raise TaskFailed(task_name(task), value, log)


class _Process:
    """One worker process and the task it has."""

    def __init__(self, open_worker: OpenWorker, number: int, *, log_dir: Path | None, is_daemon: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.number, self.log = number, str(log_dir / f"worker-{number}.log") if log_dir else ""
        self.task: Any = None
        self.attempt = 0
        self.pipe, theirs = context.Pipe()
        arguments = (open_worker, number, theirs, self.log)
        self.process = context.Process(target=_work, args=arguments, daemon=is_daemon)  # a daemon may have no children
        with _environment(OMP_WAIT_POLICY="PASSIVE"), _without_script():
            self.process.start()
        theirs.close()

    def give_next(self, again: deque[tuple[Any, int]], waiting: Iterator[Any]) -> bool:
        """Send the next task, those of dead workers first; False when there is none."""
        if again:
            self.task, self.attempt = again.popleft()
        else:
            nothing = object()
            task = next(waiting, nothing)
            if task is nothing:
                return False
            self.task, self.attempt = task, 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; answer() will notice
            self.pipe.send(self.task)
        return True

    def answer(self) -> tuple[str, Any] | None:
        """What the worker says of its task; None when it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(STOP_S)
            return None

    def ending(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            hint = ", most likely for want of memory" if -code == signal.SIGKILL else ""
            return f"{signal.Signals(-code).name}{hint}"
        return f"exit status {code}"

    def stop(self) -> None:
        """Let it end by itself: it sees the pipe close."""
        self.pipe.close()
        self.process.join(STOP_S)
        if self.process.is_alive():
            self.kill()
            self.join()

    def kill(self) -> None:
        self.pipe.close()
        self.process.kill()

    def join(self) -> None:
        self.process.join(STOP_S)


# --------------------------------------------------------------------------------- in the worker process


def _work(open_worker: OpenWorker, number: int, pipe: Connection, log: str) -> None:
    """Answer tasks until the pipe closes, then end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _end_with_parent()
    if log:
        _write_to(Path(log))
    worker = None
    try:
        while True:
            try:
                task = pipe.recv()
            except EOFError:
                break
            try:
                worker = worker or open_worker(number)
                answer = ("done", worker(task, lambda count: _send(pipe, ("so far", count))))
            except VariegateError as exc:
                traceback.print_exc()
                answer = ("raised", exc)
            except Exception as exc:
                traceback.print_exc()
                answer = ("failed", f"{type(exc).__name__}: {exc}")
            _send(pipe, ("took", own_peaks()))
            _send(pipe, answer)
    finally:
        if worker is not None:
            worker.close()
    leave(0)


def _send(pipe: Connection, answer: tuple[str, Any]) -> None:
    try:
        data = pickle.dumps(answer)
    except Exception as exc:
        data = pickle.dumps(("failed", f"its result cannot be sent: {exc}"))
    with contextlib.suppress(BrokenPipeError):
        pipe.send_bytes(data)


def _end_with_parent() -> None:
    """Leave at once when the parent is gone, even in the middle of a task."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_to(log: Path) -> None:
    """Send what libraries print to the worker's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """A script that calls variegate is not run again, from its first line, in the processes started for it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for a child about to start; what the user set stays."""
    new = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]
