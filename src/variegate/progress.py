"""Who hears what a run is doing: the library reports here, the command line listens.

`events.jsonl` in the run folder is always written; bars and lines only when the CLI asks for them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol


class Bar(Protocol):
    def advance(self, count: int = 1, **notes: Any) -> None: ...


class Reporter(Protocol):
    """What stages may say. `bar` shows progress with rate and time left; `line` is one counted line, `skipped` one of
    something that was done before; `event` is for machines."""

    def bar(self, what: str, total: int, unit: str = "images", done: int = 0) -> AbstractContextManager[Bar]: ...

    def line(self, text: str) -> None: ...

    def skipped(self, text: str) -> None: ...

    def event(self, kind: str, **fields: Any) -> None: ...


class EventLog:
    """Append-only JSON lines; each event has a time, a kind and its fields."""

    def __init__(self, path: Path | None) -> None:
        self._file: IO[str] | None = path.open("a", encoding="utf-8") if path else None

    def write(self, kind: str, **fields: Any) -> None:
        if self._file:
            record = {"time": round(time.time(), 3), "event": kind, **fields}
            self._file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


class _Silent:
    def advance(self, count: int = 1, **notes: Any) -> None:
        pass


class QuietReporter:
    """Writes events only: what the Python interface uses unless told otherwise."""

    def __init__(self, events: EventLog | None = None) -> None:
        self.events = events or EventLog(None)

    @contextmanager
    def bar(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Bar]:
        start = time.monotonic()
        yield _Silent()
        self.event("bar", what=what, total=total, unit=unit, seconds=round(time.monotonic() - start, 3))

    def line(self, text: str) -> None:
        self.event("line", text=text)

    def skipped(self, text: str) -> None:
        """Something that was done before."""
        self.line(text)

    def event(self, kind: str, **fields: Any) -> None:
        self.events.write(kind, **fields)


class TerminalReporter(QuietReporter):
    """Bars on a terminal, plain lines every few seconds otherwise; all of it on stderr."""

    plain_every_s = 10.0

    def __init__(self, events: EventLog | None = None, stream: IO[str] | None = None) -> None:
        super().__init__(events)
        self.stream = stream or sys.stderr

    def line(self, text: str) -> None:
        super().line(text)
        print(text, file=self.stream, flush=True)

    @contextmanager
    def bar(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Bar]:
        with super().bar(what, total, unit, done):
            if self.stream.isatty():
                with self._rich_bar(what, total, unit, done) as bar:
                    yield bar
            else:
                yield _PlainBar(self.stream, what, total, unit, done, self.plain_every_s)

    @contextmanager
    def _rich_bar(self, what: str, total: int, unit: str, done: int) -> Iterator[Bar]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=self.stream), transient=True) as progress:
            task = progress.add_task(what, total=total, completed=done, rate="")
            yield _RichBar(progress, task, unit)


class BriefReporter(TerminalReporter):
    """For many runs in a row: what was done before is not said again."""

    def skipped(self, text: str) -> None:
        self.event("line", text=text)


class _RichBar:
    def __init__(self, progress: Any, task: Any, unit: str) -> None:
        self.progress, self.task, self.unit = progress, task, unit
        self.start, self.count = time.monotonic(), 0

    def advance(self, count: int = 1, **notes: Any) -> None:
        self.count += count
        rate = self.count / max(time.monotonic() - self.start, 1e-6)
        self.progress.update(self.task, advance=count, rate=f"{self.unit} {per_time(rate)}")


class _PlainBar:
    def __init__(self, stream: IO[str], what: str, total: int, unit: str, done: int, every_s: float) -> None:
        self.stream, self.what, self.total, self.unit, self.every_s = stream, what, total, unit, every_s
        self.done, self.start, self.count = done, time.monotonic(), 0
        self.spoken = self.start

    def advance(self, count: int = 1, **notes: Any) -> None:
        self.done, self.count = self.done + count, self.count + count
        now = time.monotonic()
        if now - self.spoken < self.every_s:
            return
        self.spoken = now
        rate = self.count / max(now - self.start, 1e-6)
        left = (self.total - self.done) / max(rate, 1e-9)
        text = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {per_time(rate)}, {clock(left)} left"
        print(text, file=self.stream, flush=True)


def per_time(rate: float) -> str:
    """Write a rate (1/s) so that a slow one can be read too.

    >>> per_time(9.83), per_time(0.02)
    ('9.8/s', '1.2/min')
    """
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min"


def clock(seconds: float) -> str:
    """Write a duration the way people say it.

    >>> clock(5), clock(75), clock(7300)
    ('5 s', '1 min 15 s', '2 h 1 min')
    """
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
