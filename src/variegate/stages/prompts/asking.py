"""What a language model is asked, and what its answer is worth: requests, reading, and judging of single prompts. Pure.

DIAGen (arXiv 2408.14584) asks for a skeleton of adjective, class, place, weather and time of day; so do we, in our words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from variegate.recipe import LLMSection
from variegate.records import ClassInfo, content_id, seed_from
from variegate.stages.prompts.naming import Names, with_slot
from variegate.templates import plain_name, render

CONTEXTS = {
    "usual": "Show it where and how it is usually seen.",
    "uncommon": "Show it in places and situations where it is hardly ever photographed, but could really be.",
}
SPARE = 2  # prompts asked for beyond those that are missing
MOST = 40  # prompts asked for at once: longer answers are cut off by max_tokens
MAX_STARTS = 200  # brackets of an answer at which a list may begin
CHARS_PER_TOKEN = 4  # of English text; for estimates only
_NUMBERING = re.compile(r"^\s*(?:\d+\s*[.):-]|[-*•])\s+")


@dataclass(frozen=True, slots=True)
class Wish:
    """Prompts that are wanted of one class in one context."""

    info: ClassInfo
    context: str
    count: int

    @property
    def requests(self) -> int:
        """How many it takes when every answer is good."""
        return -(-self.count // MOST)


def wishes(section: LLMSection, info: ClassInfo) -> list[Wish]:
    """A class's prompts shared between the contexts; the first ones get what is left over."""
    whole, rest = divmod(section.per_class, len(section.contexts))
    return [Wish(info, context, whole + (place < rest)) for place, context in enumerate(section.contexts)]


def asked_for(wish: Wish, done: Sequence[str]) -> int:
    """How many prompts the next request of a wish asks for; `done` are those that are there."""
    return min(wish.count - len(done) + SPARE, MOST)


def response_format(count: int | None) -> dict[str, Any]:
    """The JSON schema of an answer: a list of prompts, exactly `count` of them unless it is None.

    Without a number small models end the list at once, or never.
    """
    bounds = {} if count is None else {"minItems": count, "maxItems": count}
    schema = {
        "type": "object",
        "properties": {"prompts": {"type": "array", "items": {"type": "string"}, **bounds}},
        "required": ["prompts"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": schema}}


def request_of(section: LLMSection, wish: Wish, done: Sequence[str], attempt: int, seed: int) -> dict[str, Any]:
    """The body of one request, without the response format; every attempt is another request.

    `done` are this wish's prompts so far, with {name}.
    """
    request: dict[str, Any] = {
        "model": section.model,
        "messages": [{"role": "user", "content": _message(section, wish, done)}],
        "seed": seed_from(seed, "llm", wish.info.name, wish.context, attempt) % 2**31,
    }
    for key, value in (("temperature", section.temperature), ("max_tokens", section.max_tokens)):
        if value is not None:
            request[key] = value
    return request


def request_id(request: dict[str, Any], again: int = 0) -> str:
    """The same for the same question to the same model, whoever serves it and whatever the recipe's seed, so that kept
    answers serve runs of other seeds; `again` counts how often the question was asked before without a prompt to show for it.
    """
    return content_id({key: value for key, value in request.items() if key != "seed"}, again)


def _message(section: LLMSection, wish: Wish, done: Sequence[str]) -> str:
    name = plain_name(wish.info)
    number = asked_for(wish, done)
    what = f" (that is: {wish.info.description.strip()})" if wish.info.description.strip() else ""
    lines = [
        f'Write {number} different prompts for a text-to-image model. Each describes one photograph of a single "{name}"{what}.',
        section.about.strip(),
        CONTEXTS.get(wish.context, f"Show it in this context: {wish.context}."),
        "Rules for every prompt:",
        f'- It says "{name}" exactly so, in the singular, and names no other kind of thing that could be mistaken for the subject.',
        "- It varies what can be seen: an adjective of appearance, the place, the weather, the light or the time of day; not all at once.",
        f"- It is one English phrase of at most {section.max_words} words, like: a photo of a ... {name} ...",
        "- It has no numbering, no quotation marks and no remarks.",
    ]
    if done:
        said = "; ".join(render(text, name=name) for text in done)
        lines.append(f"These are there already and must not come again: {said}")
    lines.append('Answer with JSON and nothing else: {"prompts": ["...", "..."]}')
    return "\n".join(line for line in lines if line)


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Reading:
    """The prompts of an answer; None where no list was found. `by_schema`: the answer was exactly what was asked for."""

    prompts: tuple[str, ...] | None
    by_schema: bool


def read_answer(text: str) -> Reading:
    """Prompts of an answer: JSON by the schema, or else the first list of texts somewhere in it.

    >>> read_answer('Sure: ["a", "b"]').prompts, read_answer("no list").prompts
    (('a', 'b'), None)
    """
    said = text.rpartition("</think>")[2].strip()
    try:
        whole = json.loads(said)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and set(whole) == {"prompts"} and _is_texts(whole["prompts"]):
        return Reading(tuple(whole["prompts"]), True)
    for value in _json_values(said):
        for found in (value, *(value.values() if isinstance(value, dict) else ())):
            if _is_texts(found) and found:
                return Reading(tuple(found), False)
    return Reading(None, False)


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"[\[{]", text), MAX_STARTS):
        try:
            yield decoder.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# ------------------------------------------------------------------------------------------ judging


@dataclass(slots=True)
class Judged:
    """Prompts taken so far, as templates with {name}, and how many were dropped for which reason."""

    texts: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def judge(
    said: Sequence[str], wish: Wish, so_far: Judged, limit: int, names: Names, fits: Callable[[str], bool]
) -> None:
    """Take prompts until `so_far` holds `limit`; `fits` says whether the drawing model reads a template whole."""
    for text in said:
        if len(so_far.texts) >= limit:
            return
        plain = _plain(text)
        template = with_slot(plain, plain_name(wish.info))
        reason = _reason(plain, template, wish, so_far.texts, names, fits)
        if template is None or reason:
            so_far.dropped[reason] += 1
        else:
            so_far.texts.append(template)


def _reason(
    plain: str, template: str | None, wish: Wish, taken: Sequence[str], names: Names, fits: Callable[[str], bool]
) -> str:
    """Why a prompt is dropped; empty when it is taken."""
    if template is None:
        return "does not say the class"
    others = names.others(plain, wish.info.name)
    if others:
        return f"names another class ({others[0]})"
    if _key(template) in {_key(text) for text in taken}:
        return "repeats another one"
    return "" if fits(template) else "is too long for the drawing model"


def _plain(text: str) -> str:
    return _NUMBERING.sub("", " ".join(text.split())).strip(" \"'“”‘’.,;")


def _key(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).casefold().strip()


# ------------------------------------------------------------------------------------------ cost


def tokens_of(section: LLMSection, requests: Sequence[dict[str, Any]], wanted: int) -> tuple[int, int]:
    """(tokens in, tokens out) to expect of `requests` whose answers hold `wanted` prompts in all."""
    chars = sum(len(message["content"]) for request in requests for message in request["messages"])
    out = wanted * (section.max_words * 4 // 3 + 4) + 8 * len(requests)
    return -(-chars // CHARS_PER_TOKEN), out


def dollars(section: LLMSection, tokens_in: int, tokens_out: int) -> float | None:
    """What tokens cost at the recipe's price; None where it gives none."""
    if section.usd_per_million is None:
        return None
    price_in, price_out = section.usd_per_million
    return (tokens_in * price_in + tokens_out * price_out) / 1e6
