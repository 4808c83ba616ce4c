"""Every error variegate raises on purpose.

VariegateError
├── UserError            exit 2: the command, recipe or data is wrong; carries all problems found
│   ├── RecipeError      a recipe or a --set value
│   ├── DataError        the images or tables given as DATA
│   ├── ModelError       a model folder or name
│   ├── RunFolderError   the run folder: busy, read-only, full, or made by another recipe
│   └── MissingExtra     an optional package is not installed
└── TaskFailed           exit 1: a piece of the work failed; names it and its log
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def first_of(names: Sequence[str], most: int) -> str:
    """Names for a sentence, the first `most` of them and a count of the rest.

    >>> first_of(["ant", "bee"], 5), first_of(["ant", "bee", "cat"], 2)
    ('ant, bee', 'ant, bee and 1 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what to do next."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} — {self.remedy}" if self.remedy else head


class VariegateError(Exception):
    """Base of every error raised on purpose."""


class UserError(VariegateError):
    """Something the user gave is wrong; holds every problem found, not only the first."""

    subject = "input"

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.message())

    def message(self) -> str:
        count = len(self.problems)
        if count == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{self.subject} has {count} problems\n{lines}"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # crosses process borders whole
        return type(self), (self.problems,)


class RecipeError(UserError):
    subject = "recipe"


class DataError(UserError):
    subject = "data"


class ModelError(UserError):
    subject = "model"


class RunFolderError(UserError):
    subject = "run folder"


class MissingExtra(UserError):
    """An optional package is needed and absent."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtra:
        return cls(Problem(purpose, f"needs the package {package}", f"pip install 'variegate[{extra}]'"))


class TaskFailed(VariegateError):
    """A piece of the work failed after the inputs were found good."""

    def __init__(self, task: str, reason: str, log: str = "") -> None:
        self.task, self.reason, self.log = task, reason, log
        super().__init__(f"{task} failed: {reason}" + (f" (log: {log})" if log else ""))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.task, self.reason, self.log)
