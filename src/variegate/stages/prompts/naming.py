"""Class names in running text: whole words, in any case and spelling of spaces, plurals too. Pure.

"car" is not in "carrot" (DIAGen looks for substrings), "dogs" names the dog, and "teddy bear" does not name the bear.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+")  # with accents that are signs of their own, as a Mac writes them
_IRREGULAR = {"child": "children", "foot": "feet", "goose": "geese", "louse": "lice", "man": "men", "mouse": "mice",
              "ox": "oxen", "person": "people", "tooth": "teeth", "woman": "women"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mention:
    """A class named at [start, end) of a text."""

    name: str
    start: int
    end: int
    plural: bool


class Names:
    """Looks up the classes' names in texts; the time does not grow with their number."""

    def __init__(self, names: Iterable[str]) -> None:
        self._known: dict[tuple[str, ...], list[tuple[str, bool]]] = {}
        for name in names:
            words = tuple(word for word, _, _ in _words(name))
            if words:
                self._known.setdefault(words, []).append((name, False))
                for last in plurals(words[-1]) - {words[-1]}:
                    self._known.setdefault((*words[:-1], last), []).append((name, True))
        self._longest = max(map(len, self._known), default=0)

    def mentions(self, text: str) -> list[Mention]:
        """Every class named anywhere, also inside a longer name, in order of place."""
        words = _words(text)
        found = []
        for first in range(len(words)):
            for last in range(first + 1, min(first + self._longest, len(words)) + 1):
                key = tuple(word for word, _, _ in words[first:last])
                span = (words[first][1], words[last - 1][2])
                found += [Mention(name, *span, plural) for name, plural in self._known.get(key, ())]
        return found

    def others(self, text: str, own: str) -> list[str]:
        """Other classes that a text about `own` names outside the name of `own`, each once."""
        mentions = self.mentions(text)
        mine = [one for one in mentions if one.name == own]
        names = (one.name for one in mentions if one.name != own and not any(_inside(one, place) for place in mine))
        return list(dict.fromkeys(names))


def with_slot(text: str, name: str) -> str | None:
    """The text as a template with {name} for every mention of `name` in the singular; None where there is none.

    >>> with_slot("a photo of a Black-Grouse {wet}", "black_grouse")
    'a photo of a {name} {{wet}}'
    >>> with_slot("a photo of a carrot", "car") is None
    True
    """
    if not _words(name):  # a name of signs alone
        return _literal(text).replace(_literal(name), "{name}") if name in text else None
    found = [one for one in Names([name]).mentions(text) if not one.plural]
    if not found:
        return None
    parts, end = [], 0
    for one in found:
        if one.start >= end:
            parts += [_literal(text[end : one.start]), "{name}"]
            end = one.end
    return "".join(parts) + _literal(text[end:])


def plurals(word: str) -> set[str]:
    """Spellings that may be the plural of an English noun.

    >>> sorted(plurals("leaf")), sorted(plurals("berry")), sorted(plurals("mouse"))
    (['leafs', 'leaves'], ['berries', 'berrys'], ['mice', 'mouses'])
    """
    found = {f"{word}s"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(f"{word}es")
    if len(word) > 1 and word.endswith("y") and word[-2] not in "aeiou":
        found.add(f"{word[:-1]}ies")
    if word.endswith("f"):
        found.add(f"{word[:-1]}ves")
    if word.endswith("fe"):
        found.add(f"{word[:-2]}ves")
    found |= {
        word[: -len(one)] + many
        for one, many in _IRREGULAR.items()
        if word == one or (one in {"man", "woman"} and word.endswith(one))
    }
    return found


def _inside(one: Mention, other: Mention) -> bool:
    return other.start <= one.start and one.end <= other.end


def _words(text: str) -> list[tuple[str, int, int]]:
    """(word without case, start, end) of every word."""
    found = ((match.group(), match.start(), match.end()) for match in _WORD.finditer(text))
    return [(unicodedata.normalize("NFKC", word).casefold(), start, end) for word, start, end in found]


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
