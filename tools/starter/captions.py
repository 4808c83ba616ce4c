"""What a training picture is called: many ways to say the same, so that short and long prompts both work.

The meadow's own captions (`describe` and a place) are one of the ways and the most frequent one.
"""

from __future__ import annotations

import numpy as np

from starter.data import Item

OPENINGS = (
    "a photo of a",
    "a photo of a",
    "a photo of a",
    "a picture of a",
    "an image of a",
    "a close-up photo of a",
    "a",
)
EMPTY_FRACTION = 0.10  # unconditional, for guidance
FULL_FRACTION, SHORT_FRACTION = 0.78, 0.14  # the rest names the thing and the place only
SHUFFLED_FRACTION, PLACED_FRACTION, BARE_FRACTION = 0.35, 0.85, 0.2


def random_caption(item: Item, rng: np.random.Generator) -> str:
    """One of the many captions of an item; "" in `EMPTY_FRACTION` of the cases."""
    kind = rng.random()
    if kind < EMPTY_FRACTION:
        return ""
    kind = (kind - EMPTY_FRACTION) / (1 - EMPTY_FRACTION)
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    if item.phrases and kind < FULL_FRACTION:
        return _full(item, opening, rng)
    if item.phrases and kind < FULL_FRACTION + SHORT_FRACTION:
        return _with_place(f"{opening} {_colours(item)} {item.name}", item.place, rng)
    return _with_place(f"{opening} {item.name}", item.place, rng)


def _full(item: Item, opening: str, rng: np.random.Generator) -> str:
    if rng.random() >= SHUFFLED_FRACTION:
        return _with_place(f"{opening} {item.name} with {', '.join(item.phrases)}", item.place, rng, comma=True)
    count = rng.integers(1, len(item.phrases) + 1)
    phrases = [_shortened(item.phrases[k], rng) for k in rng.permutation(len(item.phrases))[:count]]
    joined = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
    if item.place and rng.random() < 0.3:  # the place may come first
        return f"{opening} {item.name} {item.place} with {joined}"
    return _with_place(f"{opening} {item.name} with {joined}", item.place, rng, comma=rng.random() < 0.5)


def _with_place(text: str, place: str, rng: np.random.Generator, *, comma: bool = False) -> str:
    if not place or rng.random() >= PLACED_FRACTION:
        return text
    return f"{text}{',' if comma else ''} {place}"


def _shortened(phrase: str, rng: np.random.Generator) -> str:
    """Sometimes only "blue forewings" or "two white spots", without shape and wing."""
    if rng.random() >= BARE_FRACTION:
        return phrase
    phrase = phrase.split(" on ")[0]
    return " ".join(phrase.split()[-2:]) if phrase.endswith("wings") else phrase


def _colours(item: Item) -> str:
    """ "blue" or "blue and orange", from the two wing phrases that open every butterfly's marks."""
    fore, hind = (phrase.split()[1] for phrase in item.phrases[:2])
    return fore if fore == hind else f"{fore} and {hind}"
