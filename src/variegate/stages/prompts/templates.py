"""Render prompt templates: texts x environments x styles of every class, or of every image where the caption is asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from variegate.errors import Problem
from variegate.records import ClassInfo, RealImage
from variegate.templates import class_word, described, placeholders, render


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One prompt and what it belongs to: `text` counts the texts of its class; `image`, `environment` and `style` only
    where the text uses one."""

    label: int
    image: str | None
    text: int
    environment: int | None
    style: int | None
    prompt: str


@dataclass(frozen=True, slots=True)
class Material:
    """What prompts are made of: the texts of each class [label][text], and phrases for their slots."""

    texts: Sequence[Sequence[str]]
    environments: Sequence[str] = ()
    styles: Sequence[str] = ()

    def all_texts(self) -> list[str]:
        return list(dict.fromkeys(text for own in self.texts for text in own))

    def phrase_problems(self, where: str, *, needless: bool = True) -> list[Problem]:
        """Slots that texts use and nothing fills, and `needless` phrases, which no text uses."""
        problems = []
        for slot, phrases in (("environment", self.environments), ("style", self.styles)):
            used = any(slot in placeholders(text) for text in self.all_texts())
            if used and not phrases:
                problems.append(Problem(where, f"uses {{{slot}}} and prompts.{slot}s is empty", "name a bank there"))
            if phrases and not used and needless:
                problems.append(Problem(f"prompts.{slot}s", f"no text of {where} says {{{slot}}}", "leave it out"))
        return problems


def render_all(
    material: Material, classes: Sequence[ClassInfo], images: Sequence[RealImage], words: Sequence[str] = ()
) -> list[PromptLine]:
    """Every prompt that can be needed, in order of class, image, text, environment and style.

    `words` are what {name} says for each class; the class names where they are not given.

    `images` are the training images; they matter only where a text uses {caption}.
    """
    by_label: dict[int, list[RealImage]] = {info.label: [] for info in classes}
    for image in images:
        by_label[image.label].append(image)
    per_image = any("caption" in placeholders(text) for text in material.all_texts())
    lines: list[PromptLine] = []
    for info in classes:
        word = words[info.label] if words else class_word(info)
        for captioned in by_label[info.label] if per_image else [None]:
            lines += _lines(material, info, captioned, word)
    return lines


def _lines(material: Material, info: ClassInfo, image: RealImage | None, word: str) -> Iterator[PromptLine]:
    values = {"name": word, "description": described(info), "caption": (image.caption or "") if image else ""}
    for number, text in enumerate(material.texts[info.label]):
        used = placeholders(text)
        places = _choices(material.environments, "environment" in used)
        for (place, environment), (look, style) in product(places, _choices(material.styles, "style" in used)):
            prompt = render(text, environment=environment, style=style, **values)
            yield PromptLine(info.label, image.id if image else None, number, place, look, prompt)


def _choices(phrases: Sequence[str], used: bool) -> list[tuple[int | None, str]]:
    return list(enumerate(phrases or [""])) if used else [(None, "")]


def missing_captions(where: str, texts: Sequence[str], num_images: int, num_uncaptioned: int) -> list[Problem]:
    """Why {caption} cannot be filled; empty when it can, or is not used."""
    if not num_uncaptioned or not any("caption" in placeholders(text) for text in texts):
        return []
    text = f"uses {{caption}} and {num_uncaptioned:,} of {num_images:,} training images have none"
    return [Problem(where, text, "add a caption column to the table of images, or use {name}")]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each distinct prompt, start and end tokens included, and how many the model reads."""

    tokens: dict[str, int]
    limit: int

    @property
    def cut(self) -> list[str]:
        """Prompts the model reads only the beginning of."""
        return [prompt for prompt, count in self.tokens.items() if count > self.limit]


def cut_warning(lengths: Lengths) -> str:
    longest = max(lengths.cut, key=lambda prompt: lengths.tokens[prompt])
    which = f"{len(lengths.cut):,} of {len(lengths.tokens):,} prompts"
    return f"of {which} the model reads only the first {lengths.limit} tokens, for example {_cut(longest)!r}"


def too_long(lengths: Lengths) -> Problem:
    longest = max(lengths.cut, key=lambda prompt: lengths.tokens[prompt])
    text = f"is longer than the {lengths.limit} tokens the model reads, even without a class name"
    return Problem("prompts.text", text, f"shorten it; it has {lengths.tokens[longest]} tokens: {_cut(longest)!r}")


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
