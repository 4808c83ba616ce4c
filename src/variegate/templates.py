"""Fill prompt templates: the words a model is told when it is adapted and when it draws. Pure.

Underscores of class names become spaces in prompts only. Names may hold braces: values are never parsed as templates.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from variegate.records import ClassInfo

_EMPTY_CLAUSE = re.compile(r"\s*,\s*(?=,|$)")


def placeholders(text: str) -> set[str]:
    """Names of the {fields} in a template."""
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def render(text: str, *, name: str, description: str = "", caption: str = "", environment: str = "") -> str:
    """Fill one template; a clause left empty goes with its comma.

    >>> render("a photo of a {name}, {environment}", name="black {grouse}", environment="in snow")
    'a photo of a black {grouse}, in snow'
    >>> render("a photo of a {name}, {environment}", name="lynx")
    'a photo of a lynx'
    """
    filled = text.format(name=name, description=description, caption=caption, environment=environment)
    return _EMPTY_CLAUSE.sub("", filled).strip() if "" in (caption, environment) else filled


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
