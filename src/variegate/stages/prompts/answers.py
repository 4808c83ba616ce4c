"""The answers of a language model, kept as they come: one JSON line each, so that a run repeats without asking again.

A line holds the request, the answer, the model and the time; never a key.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from variegate.errors import DataError, Problem
from variegate.files import write_atomic
from variegate.records import content_id
from variegate.stages.prompts.asking import request_id

FILE = "prompts/llm.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one request."""

    answer: str
    model: str  # as the server calls it
    structured: bool  # whether a JSON schema was asked for
    tokens_in: int = 0
    tokens_out: int = 0


class NoAnswer(Exception):
    """Nobody answers: the reason, for people."""


class Answers:
    """A file of answers, opened for more; `others` are answers of other runs, copied over where they are used."""

    def __init__(self, path: Path, others: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._own = read_answers(path) if path.is_file() else {}
        self._others = read_answers(others) if others else {}
        if path.is_file() and not path.read_bytes().endswith(b"\n"):  # killed while writing
            write_atomic(path, "".join(_line(row) for row in self._own.values()).encode())

    def __len__(self) -> int:
        return len(self._own)

    def get(self, request: dict[str, Any], again: int = 0) -> Answer | None:
        key = request_id(request, again)
        if key not in self._own and key in self._others:
            self._append(self._others[key])
        row = self._own.get(key)
        return Answer(**{name: row[name] for name in Answer.__slots__}) if row else None

    def put(self, request: dict[str, Any], again: int, answer: Answer) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._append({"id": request_id(request, again), "request": request, **asdict(answer), "time": time})

    def _append(self, row: dict[str, Any]) -> None:
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
            self._own[row["id"]] = row


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """id -> line; a last line cut off by a kill is left out. Raises DataError for a file that is something else.

    Ids are made anew from the requests: older files had the seed in them. The same question again is the next of its kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        hint = "name the prompts/llm.jsonl of another run"
        raise DataError(Problem(str(path), f"cannot be read: {getattr(exc, 'strerror', exc)}", hint)) from exc
    lines = text.split("\n")[:-1]
    rows: dict[str, dict[str, Any]] = {}
    known = set()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and {"id", "request", "time", *Answer.__slots__} <= set(row)
            whole = whole and isinstance(row["request"], dict)
        except ValueError:
            whole = False
        if not whole:
            raise DataError(Problem(f"{path} line {number}", "is no answer that variegate kept", "remove the line"))
        whole_request = content_id(row["request"])
        if whole_request not in known:  # a file may hold a line twice
            known.add(whole_request)
            ids = (request_id(row["request"], again) for again in count())
            key = next(one for one in ids if one not in rows)
            rows[key] = row | {"id": key}
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
