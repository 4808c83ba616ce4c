"""Collect prompts from a language model: ask, read, judge, ask again for what is missing; answers already kept are not asked.

Which prompts come out depends on the recipe and the answers alone, so a kept file of answers repeats a run.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from variegate.errors import Problem, RecipeError, TaskFailed
from variegate.recipe import LLMSection
from variegate.records import ClassInfo
from variegate.stages.prompts.answers import Answer, Answers, NoAnswer
from variegate.stages.prompts.asking import Judged, Wish, asked_for, judge, read_answer, request_of, wishes
from variegate.stages.prompts.naming import Names

Ask = Callable[[dict[str, Any], int], Answer]  # a request, and how many prompts it asks for
Item = TypeVar("Item")
Result = TypeVar("Result")
LINGER_S = 1.0  # for answers that are on their way when work ends early


def nobody_to_ask(lacking: str) -> Problem:
    """Kept answers do not suffice, and the recipe names nobody else."""
    text = f"lacks {lacking}, and neither endpoint nor local says who to ask"
    return Problem("prompts.llm.cache", text, "name one of them, or keep the prompts.llm keys and classes of its run")


class Answerer:
    """Who is asked, opened with the first request that no kept answer serves. Threads may share it."""

    def __init__(self, section: LLMSection, device: str, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._section, self._device, self._stop, self._say = section, device, stop, say
        self._lock, self._opened = threading.Lock(), ExitStack()
        self._ask: Ask | None = None

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __call__(self, request: dict[str, Any], count: int) -> Answer:
        with self._lock:
            if self._ask is None:
                self._ask = self._open()
        if self._stop.is_set():
            raise NoAnswer("stopped")
        return self._ask(request, count)

    def _open(self) -> Ask:
        if self._section.local:
            from variegate.backends.devices import resolve_device
            from variegate.stages.prompts.local_model import LocalModel

            return LocalModel(Path(self._section.local).expanduser(), resolve_device(self._device))
        if not self._section.endpoint:
            raise RecipeError(nobody_to_ask("an answer to a later request"))
        from variegate.stages.prompts.endpoint import Endpoint, key_problems

        problems = key_problems(self._section)
        if problems:
            raise RecipeError(problems)
        return self._opened.enter_context(Endpoint(self._section, self._stop, self._say))


@dataclass(slots=True)
class Tally:
    """What asking for one class came to, or for all."""

    requests: int = 0
    asked: int = 0  # of them not answered before
    tokens_in: int = 0
    tokens_out: int = 0
    loose: int = 0  # answers that were not the JSON asked for, and held a list
    empty: int = 0  # answers without a list
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name in ("requests", "asked", "tokens_in", "tokens_out", "loose", "empty"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped

    def said(self) -> str:
        """Why prompts are missing, counted."""
        parts = [f"{count} {reason}" for reason, count in self.dropped.most_common(5)]
        parts += [f"{self.empty} answers without a list of prompts, or cut off by max_tokens"] if self.empty else []
        return ", ".join(parts) or "the answers held too few"


@dataclass(frozen=True, slots=True)
class Collected:
    """Texts of each class, by label, and what to say about them."""

    texts: tuple[tuple[str, ...], ...]
    tally: Tally
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collector:
    """What one class's prompts are collected with; threads may share it."""

    section: LLMSection
    answers: Answers
    ask: Ask
    names: Names
    fits: Callable[[ClassInfo, str], bool]  # whether the drawing model reads a class's template whole
    seed: int
    lock: threading.Lock = field(default_factory=threading.Lock)  # tokenizers are not for several threads

    def of_class(self, info: ClassInfo) -> tuple[ClassInfo, Judged, Tally]:
        judged, tally = Judged(), Tally()
        for wish in wishes(self.section, info):
            self._fulfil(wish, judged, tally)
        tally.dropped = judged.dropped
        return info, judged, tally

    def _fulfil(self, wish: Wish, judged: Judged, tally: Tally) -> None:
        first, before, again = len(judged.texts), -1, 0
        for attempt in range(self.section.tries * wish.requests):
            done = judged.texts[first:]
            if len(done) >= wish.count:
                return
            before, again = len(done), again + 1 if len(done) == before else 0
            request = request_of(self.section, wish, done, attempt, self.seed)
            reading = read_answer(self._answer(request, asked_for(wish, done), again, tally))
            tally.empty += reading.prompts is None
            tally.loose += reading.prompts is not None and not reading.by_schema
            with self.lock:
                fits = partial(self.fits, wish.info)
                judge(reading.prompts or (), wish, judged, first + wish.count, self.names, fits)

    def _answer(self, request: dict[str, Any], count: int, again: int, tally: Tally) -> str:
        answer = self.answers.get(request, again)
        if answer is None:
            answer = self.ask(request, count)
            self.answers.put(request, again, answer)
            tally.asked += 1
        tally.requests += 1
        tally.tokens_in += answer.tokens_in
        tally.tokens_out += answer.tokens_out
        return answer.answer


def collect(
    collector: Collector, classes: Sequence[ClassInfo], stop: threading.Event, advance: Callable[[], None]
) -> Collected:
    """Prompts of every class; raises TaskFailed when nobody answers or a class is left without any."""
    parallel = 1 if collector.section.local else collector.section.parallel
    found: dict[int, tuple[Judged, Tally]] = {}
    try:
        for info, judged, tally in each(collector.of_class, classes, parallel, stop):
            if not judged.texts:
                reason = f"no prompt for class {info.name!r} after {tally.requests} requests ({tally.said()})"
                raise TaskFailed("prompts", reason, str(collector.answers.path))
            found[info.label] = judged, tally
            advance()
    except NoAnswer as exc:
        kept = f"{len(collector.answers)} answers are kept in {collector.answers.path}; run the same command again to go on"
        raise TaskFailed("prompts", f"{exc}; {kept}") from exc
    total, short = Tally(), []
    for info in classes:
        judged, tally = found[info.label]
        total.add(tally)
        if len(judged.texts) < collector.section.per_class:
            short.append(f"{info.name} has {len(judged.texts)} ({tally.said()})")
    texts = tuple(tuple(found[info.label][0].texts) for info in classes)
    return Collected(texts, total, tuple(_notes(total, short, collector)))


def _notes(total: Tally, short: Sequence[str], collector: Collector) -> list[str]:
    notes = []
    if total.loose and not collector.section.local:
        text = "answers were not the JSON asked for; the lists in their text were taken"
        notes.append(f"{total.loose} of {total.requests} {text}")
    if total.empty:
        notes.append(f"{total.empty} of {total.requests} answers held no list of prompts and were asked for again")
    if total.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in total.dropped.most_common(5))
        notes.append(f"{total.dropped.total()} prompts dropped: {reasons}")
    if short:
        shown = "; ".join(short[:5])
        text = f"classes have fewer than {collector.section.per_class} prompts: {shown}"
        notes.append(f"{len(short)} {text}")
    return notes


def each(
    work: Callable[[Item], Result], items: Sequence[Item], parallel: int, stop: threading.Event
) -> Iterator[Result]:
    """Results as they come, from at most `parallel` threads that end soon after this does, however it ends."""
    if parallel == 1:
        yield from map(work, items)
        return
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def labour() -> None:
        while not stop.is_set():
            try:
                done.put(work(todo.get_nowait()))
            except queue.Empty:
                return
            except BaseException as exc:  # noqa: BLE001 - raised again where the results are read
                done.put(exc)

    threads = [threading.Thread(target=labour, daemon=True) for _ in range(min(parallel, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join(LINGER_S / len(threads))
