"""What a source of labelled images says it holds, before any image is opened: the form every source is brought to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from variegate.errors import Problem, first_of
from variegate.images import Content
from variegate.records import Split, content_id

MAX_SHOWN = 10
SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "train-val", "train_val", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EXTRA_TEST = re.compile(r"test_[a-z0-9_]{1,60}")
SPLIT_ORDER: tuple[Split, ...] = ("train", "val", "test")


def split_of(word: str) -> Split | None:
    """The split that a folder, a table or a hub calls so; None for any other word.

    >>> split_of("Validation"), split_of("test-uncommon"), split_of("oak")
    ('val', 'test_uncommon', None)
    """
    plain = word.lower().replace("-", "_")
    extra = plain if EXTRA_TEST.fullmatch(plain) else None
    return SPLIT_WORDS.get(word.lower(), extra)


def split_words(names: Iterable[str]) -> list[str]:
    """Which of these name splits: extra test sets only beside train, val or test, so a class may be called test_tube."""
    names = list(names)
    has_plain = any(name.lower() in SPLIT_WORDS for name in names)
    return [name for name in names if has_plain and split_of(name)]


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One labelled image of a source; `split` is None where the source does not say."""

    name: str  # unique in its source, with forward slashes
    class_name: str
    split: Split | None
    content: Content
    group: str | None = None
    caption: str | None = None
    mask: Content | None = None  # white: the object
    notes: Callable[[], tuple[str, str]] | None = None  # (group, caption) where they are known only once drawn


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything found, sorted by name, and everything wrong with it."""

    shown: str  # DATA as the user wrote it
    images: tuple[FoundImage, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()  # class folders without a single image
    descriptions: tuple[tuple[str, str], ...] = ()  # (class name, text)
    drawn_here: bool = False  # made by this program: nothing to check, no file yet
    groups_split: bool = True  # one group stays on one side when splits are taken (not a meadow's habitats)
    revision: str = ""  # what else identifies the content

    def fingerprint(self) -> str:
        """A cheap identity, by which a second check in one process is spared: names, labels, notes, sizes and times."""
        rows = [
            (i.name, i.class_name, i.split, i.group, i.caption, _stat(i.content), _stat(i.mask)) for i in self.images
        ]
        return content_id(self.shown, self.revision, self.descriptions, rows)


def _stat(content: Content | None) -> tuple[int, ...]:
    if not isinstance(content, Path):
        return ()
    try:
        status = content.stat()
    except OSError:
        return (-1,)
    return status.st_size, status.st_mtime_ns


def shortened(problems: Sequence[Problem], what: str, remedy: str) -> list[Problem]:
    """The first problems of a kind and a count of the rest; the remedy stands once, at the end, or with each.

    >>> [str(p) for p in shortened([Problem("a.jpg", "is empty")], "unreadable files", "remove it")]
    ['a.jpg: is empty — remove it']
    """
    if not problems:
        return []
    shown = list(problems[:MAX_SHOWN])
    if len(problems) > MAX_SHOWN:
        shown.append(Problem("", f"and {len(problems) - MAX_SHOWN:,} more {what}"))
    last = shown.pop()
    return [*shown, Problem(last.where, last.what, last.remedy or remedy)]


def enumerated(names: Iterable[str]) -> str:
    """A list for a sentence: the first names and a count of the rest.

    >>> enumerated(["b", "a"])
    'a, b'
    """
    return first_of(sorted(names), MAX_SHOWN)


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def is_text(name: str) -> bool:
    """Whether a file name is valid text; other names cannot be stored or shown."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
