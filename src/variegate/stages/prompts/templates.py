"""Render prompt templates: texts x environments for every class, or for every image where the caption is asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from variegate.errors import Problem
from variegate.records import ClassInfo, RealImage
from variegate.templates import class_word, described, placeholders, render


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One prompt and what it belongs to; `image` only where the text uses the caption, `environment` where it uses one."""

    label: int
    image: str | None
    text: int
    environment: int | None
    prompt: str


def render_all(
    texts: Sequence[str],
    environments: Sequence[str],
    classes: Sequence[ClassInfo],
    images: Sequence[RealImage],
    words: Sequence[str] = (),
) -> list[PromptLine]:
    """Every prompt that can be needed, in order of class, image, text and environment.

    `words` are what {name} says for each class; the class names where they are not given.

    `images` are the training images; they matter only where a text uses {caption}.
    """
    by_label: dict[int, list[RealImage]] = {info.label: [] for info in classes}
    for image in images:
        by_label[image.label].append(image)
    per_image = any("caption" in placeholders(text) for text in texts)
    lines = []
    for info in classes:
        for image in by_label[info.label] if per_image else [None]:
            lines += _lines(texts, environments, info, image, words[info.label] if words else class_word(info))
    return lines


def _lines(
    texts: Sequence[str], environments: Sequence[str], info: ClassInfo, image: RealImage | None, word: str
) -> list[PromptLine]:
    lines = []
    values = {"name": word, "description": described(info), "caption": (image.caption or "") if image else ""}
    for number, text in enumerate(texts):
        used = enumerate(environments or [""]) if "environment" in placeholders(text) else [(None, "")]
        for place, environment in used:
            prompt = render(text, environment=environment, **values)
            lines.append(PromptLine(info.label, image.id if image else None, number, place, prompt))
    return lines


def missing_captions(texts: Sequence[str], num_images: int, num_uncaptioned: int) -> list[Problem]:
    """Why {caption} cannot be filled; empty when it can, or is not used."""
    if not num_uncaptioned or not any("caption" in placeholders(text) for text in texts):
        return []
    text = f"uses {{caption}} and {num_uncaptioned:,} of {num_images:,} training images have none"
    return [Problem("prompts.text", text, "add a caption column to the table of images, or use {name}")]


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
