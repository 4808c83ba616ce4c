"""What the model is told about each training image: the recipe's own prompts, so that drawing and masks use the same words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from variegate.recipe import AdaptSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.templates import class_word, described, render


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said of images, of their own class or of another in its place.

    {environment} is the image's own group where prompts.environments is `groups`; else nobody knows it and its clause is left out.
    """

    texts: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]  # what {name} and {description} say of each class
    images: tuple[tuple[int, str, str], ...]  # class, {caption} and {environment} of each image

    def of(self, image: int, text: int) -> str:
        """Caption `text` of an image."""
        return self._said(image, text, self.images[image][0])

    def of_rival(self, image: int, text: int, number: int) -> str:
        """The same, had the image the class `number` places (any whole number) after its own, never its own."""
        own, count = self.images[image][0], len(self.classes)
        return self._said(image, text, (own + 1 + number % (count - 1)) % count)

    def _said(self, image: int, text: int, kind: int) -> str:
        _, caption, environment = self.images[image]
        name, description = self.classes[kind]
        return render(self.texts[text], name=name, description=description, caption=caption, environment=environment)

    def captions(self) -> list[list[str]]:
        """Of every image [image][text]."""
        return [[self.of(image, text) for text in range(len(self.texts))] for image in range(len(self.images))]


def telling_of(
    recipe: Recipe, classes: Sequence[ClassInfo], images: Sequence[RealImage], placeholders: Sequence[str]
) -> Telling:
    prompts, places = recipe.prompts, {info.label: k for k, info in enumerate(classes)}
    words = [(class_word(info, placeholders, recipe.adapt.superclass), described(info)) for info in classes]
    grouped = prompts.environments == "groups"
    return Telling(
        texts=tuple(prompts.texts),
        classes=tuple(words),
        images=tuple(
            (places[image.label], image.caption or "", (image.group or "") if grouped else "") for image in images
        ),
    )


def captions_of(
    recipe: Recipe, classes: Sequence[ClassInfo], images: Sequence[RealImage], placeholders: Sequence[str]
) -> list[list[str]]:
    """One caption a text for each image [image][text]."""
    return telling_of(recipe, classes, images, placeholders).captions()


def prior_texts(section: AdaptSection, words: Sequence[str]) -> list[str]:
    """What each prior image is drawn from and captioned with: {name} is the super-class, else the classes' own words in turn.

    >>> prior_texts(AdaptSection(prior={"images": 3, "text": "a {name}"}), ["owl", "lynx"])
    ['a owl', 'a lynx', 'a owl']
    """
    names = [section.superclass] if section.superclass else words
    return [render(section.prior.text, name=names[k % len(names)]) for k in range(section.prior.images)]
