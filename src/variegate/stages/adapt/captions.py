"""What the model is told about each training image: the recipe's own prompts, so that drawing uses the same words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from variegate.recipe import AdaptSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.templates import class_word, described, render


def captions_of(
    recipe: Recipe, classes: Sequence[ClassInfo], images: Sequence[RealImage], placeholders: Sequence[str]
) -> list[list[str]]:
    """One caption a text for each image [image][text].

    {environment} is the image's own group where prompts.environments is `groups`; else nobody knows it and its clause is left out.
    """
    prompts = recipe.prompts
    by_label = {info.label: info for info in classes}
    words = {info.label: class_word(info, placeholders, recipe.adapt.superclass) for info in classes}
    found = []
    for image in images:
        values = {
            "name": words[image.label],
            "description": described(by_label[image.label]),
            "caption": image.caption or "",
            "environment": (image.group or "") if prompts.environments == "groups" else "",
        }
        found.append([render(text, **values) for text in prompts.texts])
    return found


def prior_texts(section: AdaptSection, words: Sequence[str]) -> list[str]:
    """What each prior image is drawn from and captioned with: {name} is the super-class, else the classes' own words in turn.

    >>> prior_texts(AdaptSection(prior={"images": 3, "text": "a {name}"}), ["owl", "lynx"])
    ['a owl', 'a lynx', 'a owl']
    """
    names = [section.superclass] if section.superclass else words
    return [render(section.prior.text, name=names[k % len(names)]) for k in range(section.prior.images)]
