"""Fill prompt templates: the words a model is told when it is adapted and when it draws. Pure.

Underscores of class names become spaces in prompts only. Names may hold braces: values are never parsed as templates.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Sequence

from variegate.records import ClassInfo

SLOTS = ("name", "description", "caption", "environment", "style")
_GAP = "\0"  # stands for a value that is empty
_EMPTY = re.compile(r"\s*,\s*\0\s*(?=,|$)|^\0\s*,?\s*|\s*\0")
_ARTICLE_BEFORE, _ARTICLE_FIRST = (
    re.compile(r"\b(?:a|an|the) $", re.IGNORECASE),
    re.compile(r"(?:a|an|the) \S", re.IGNORECASE),
)


def placeholders(text: str) -> set[str]:
    """Names of the {fields} in a template."""
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def slot_problems(text: str, known: Collection[str] = SLOTS) -> list[str]:
    """Why a template cannot be filled; empty when it can."""
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
    except ValueError:
        return [f"prompt {text!r} has an unbalanced brace; write {{{{ for a literal one"]
    unknown = sorted(slots - set(known))
    return [f"prompt {text!r} uses unknown {{{unknown[0]}}}; known: {', '.join(sorted(known))}"] if unknown else []


def render(
    text: str, *, name: str, description: str = "", caption: str = "", environment: str = "", style: str = ""
) -> str:
    """Fill one template; a clause left empty goes with its comma, and no value doubles an article.

    >>> render("a photo of a {name}, {environment}", name="black {grouse}", environment="in snow")
    'a photo of a black {grouse}, in snow'
    >>> render("a photo of a {name} {environment}, {style}", name="lynx")
    'a photo of a lynx'
    >>> render("a photo of a {description}", name="owl", description="an owl with ears")
    'a photo of an owl with ears'
    """
    values = {"name": name, "description": description, "caption": caption, "environment": environment, "style": style}
    filled = ""
    for literal, field, _, _ in string.Formatter().parse(text):
        value = (values[field] or _GAP) if field is not None else ""
        if field in {"description", "style"} and _ARTICLE_FIRST.match(value):
            literal = _ARTICLE_BEFORE.sub("", literal)
        filled += literal + value
    return _EMPTY.sub("", filled).strip() if _GAP in filled else filled


def plain_name(info: ClassInfo) -> str:
    return info.name.replace("_", " ")


def class_word(info: ClassInfo, placeholders: Sequence[str] = (), superclass: str = "") -> str:
    """What {name} says: the class's learned token, or its name, then the super-class.

    >>> class_word(ClassInfo(1, "song_thrush", "0001"), ("<class_0>", "<class_1>"), "bird")
    '<class_1> bird'
    >>> class_word(ClassInfo(1, "song_thrush", "0001"))
    'song thrush'
    """
    word = placeholders[info.label] if placeholders else plain_name(info)
    return f"{word} {superclass}".strip()


def described(info: ClassInfo) -> str:
    """What {description} says: the data's words for the class, or its name where the data has none."""
    return info.description.strip() or plain_name(info)


def class_text(text: str, info: ClassInfo) -> str:
    """What an image-text model is asked for: a template with {name} and {description}, class names in words.

    >>> class_text("a photo of a {name}", ClassInfo(0, "black_grouse", "0000"))
    'a photo of a black grouse'
    """
    return render(text, name=plain_name(info), description=described(info))
