"""Lists of phrases that prompts are filled with, one a line: banks inside the package, and text files of the user's.

Lines that begin with # are comments, repeated lines count once (DasDiff's environment files repeat up to two thirds).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from variegate.errors import DataError, Problem, RecipeError

Kind = Literal["environments", "styles"]
KINDS: tuple[Kind, ...] = ("environments", "styles")
BANKS = Path(__file__).parent / "banks"
GROUPS = "groups"  # prompts.environments: those of the images
MAX_BYTES = 16 * 2**20
MAX_PHRASE = 200  # characters


@dataclass(frozen=True, slots=True)
class Phrases:
    """Different phrases in their order, and how many lines repeat one."""

    phrases: tuple[str, ...]
    repeated: int

    def repeats(self, where: str) -> list[str]:
        """What to say about repeated lines; empty where there are none."""
        lines = len(self.phrases) + self.repeated
        return [f"{where}: {self.repeated:,} of {lines:,} lines repeat another one and count once"] * bool(
            self.repeated
        )


def different(lines: Iterable[str]) -> Phrases:
    """Phrases without the spaces and commas around them, each once.

    >>> different(["in snow", "", "on a rock,", "in  snow"])
    Phrases(phrases=('in snow', 'on a rock'), repeated=1)
    """
    plain = [" ".join(line.split()).strip(" ,;") for line in lines]
    said = [phrase for phrase in plain if phrase]
    phrases = tuple(dict.fromkeys(said))
    return Phrases(phrases, len(said) - len(phrases))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text that are no comments, with their numbers; raises DataError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(Problem(str(path), f"is a text of more than {MAX_BYTES:,} bytes", "use a part of it"))
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise DataError(Problem(str(path), f"cannot be read: {exc.strerror}", "name a text file")) from exc
    except UnicodeDecodeError as exc:
        raise DataError(Problem(str(path), f"is no UTF-8 text: {exc}", "save it as UTF-8")) from exc
    lines = enumerate(text.split("\n"), 1)  # other signs that end a line may stand inside a text
    return [(number, line) for number, line in lines if not line.lstrip().startswith("#")]


def read_phrases(path: Path) -> Phrases:
    """The phrases of a text file, one a line; raises DataError for no text, no phrase, or one too long to be one."""
    found = different(line for _, line in read_lines(path))
    too_long = next((phrase for phrase in found.phrases if len(phrase) > MAX_PHRASE), None)
    if not found.phrases:
        raise DataError(Problem(str(path), "has no phrases", "write one a line"))
    if too_long:
        text = f"has a line of {len(too_long):,} characters: {too_long[:60]!r}"
        raise DataError(Problem(str(path), text, f"a phrase has at most {MAX_PHRASE}; write one a line"))
    return found


def bank_names(kind: Kind) -> list[str]:
    """Names of the package's own banks, sorted."""
    return sorted(path.stem for path in (BANKS / kind).glob("*.txt"))


def find_phrases(given: str, kind: Kind) -> Path:
    """The file of a bank, or the user's own; raises RecipeError with the near name."""
    path = Path(given).expanduser()
    if given in bank_names(kind):
        return BANKS / kind / f"{given}.txt"
    if path.is_file():
        return path
    names = bank_names(kind) + ([GROUPS] if kind == "environments" else [])
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"banks: {', '.join(names)}; or list phrases, or name a text file"
    raise RecipeError(Problem(f"prompts.{kind}", f"{given!r} is neither a bank nor a file", hint))


def phrases_of(given: str | list[str], kind: Kind) -> Phrases:
    """Phrases of a recipe key: listed there, in a bank, or in a text file."""
    return different(given) if isinstance(given, list) else read_phrases(find_phrases(given, kind))
