"""How much of each caption the model reads: its text encoders end after so many tokens. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variegate.backends.adapter import expand
from variegate.errors import Problem

SHOWN = 80  # characters of a caption


@dataclass(frozen=True, slots=True)
class Cuts:
    """Distinct captions whose end the model does not read."""

    total: int  # captions measured
    limit: int  # tokens the model reads, start and end included
    silent: tuple[str, ...]  # a vector of a learned token is behind the end
    cut: tuple[str, ...]  # other words are

    def problems(self) -> list[Problem]:
        """What cannot be learned: a vector that no caption says stays as it was."""
        if not self.silent:
            return []
        text = f"in {_share(self.silent, self.total)} learned tokens lie behind the first {self.limit} tokens"
        remedy = "say {name} earlier, shorten the texts, or lower adapt.vectors"
        return [Problem("prompts.text", f"{text}, which are all the model reads: {_shown(self.silent)}", remedy)]

    def warnings(self) -> list[str]:
        if not self.cut:
            return []
        text = f"of {_share(self.cut, self.total)} the model reads only the first {self.limit} tokens"
        return [f"{text}, for example {_shown(self.cut)}"]


def cut_captions(captions: Iterable[str], vectors: Mapping[str, int], tokenizers: Sequence[Any]) -> Cuts:
    """Measure captions with every placeholder expanded to its `vectors`; the tokenizers learn the new words."""
    texts = sorted(set(captions))
    names = expand(" ".join(vectors), vectors).split()
    limit = min((tokenizer.model_max_length for tokenizer in tokenizers), default=0)
    silent: set[str] = set()
    cut: set[str] = set()
    for tokenizer in tokenizers if texts else ():
        tokenizer.add_tokens(names)
        learned = set(tokenizer.convert_tokens_to_ids(names))
        rows = tokenizer([expand(text, vectors) for text in texts])["input_ids"]
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > tokenizer.model_max_length:
                lost = set(ids[tokenizer.model_max_length - 1 :])  # the end token takes the last place
                (silent if lost & learned else cut).add(text)
    return Cuts(len(texts), limit, tuple(sorted(silent)), tuple(sorted(cut - silent)))


def _share(some: Sequence[str], total: int) -> str:
    return f"{len(some):,} of {total:,} captions"


def _shown(texts: Sequence[str]) -> str:
    longest = max(texts, key=len)
    return repr(longest if len(longest) <= SHOWN else longest[: SHOWN - 3] + "...")
