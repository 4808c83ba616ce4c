"""Prompts stage: render every prompt, check it against the model's text encoders, write prompts/prompts.jsonl.

The generate stage deals these prompts out; a person can read the file to see what the model will be told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from variegate.backends.adapter import ADAPTER, expand, parts_used, read_adapter, token_vectors
from variegate.backends.folder import find_model, model_fingerprint
from variegate.backends.tokenizers import load_tokenizers
from variegate.errors import RecipeError
from variegate.pipeline import Context
from variegate.recipe import Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.prompts.templates import Lengths, cut_warning, missing_captions, render_all, too_long
from variegate.store import RunFolder
from variegate.templates import class_word, render

NAME = "prompts"
FILE = "prompts/prompts.jsonl"


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The model's own hash is here because its tokenizers count; through it every later stage notices other weights."""
    keys = {
        "prompts": recipe.prompts.model_dump(),
        "drawn": _drawn(recipe),
        "parts": parts_used(recipe.generate.method),
    }
    if not _drawn(recipe):
        return keys
    return keys | {"model": model_fingerprint(find_model(recipe.backend.model, recipe.backend.revision))}


def run(context: Context) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    if not _drawn(recipe):
        return {"line": "nothing to say: no images are drawn", "prompts": 0}
    classes, images = folder.classes(), folder.real_images("train")
    words, vectors = _words(recipe, folder, classes)
    lines = render_all(_texts(recipe), environments(recipe, images), classes, images, words)
    lengths = measure([line.prompt for line in lines], recipe, vectors)
    folder.write(FILE, "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines))
    folder.put_artefact(NAME, "prompts", FILE)
    longest = max(lengths.tokens.values())
    line = (
        f"{len(lengths.tokens):,} prompts for {len(classes):,} classes, the longest {longest} of {lengths.limit} tokens"
    )
    warnings = [cut_warning(lengths)] if lengths.cut else []
    return {
        "line": "; ".join([line, *warnings]),
        "prompts": len(lengths.tokens),
        "longest_tokens": longest,
        "max_tokens": lengths.limit,
        "warnings": warnings,
    }


def check(recipe: Recipe, num_images: int, num_uncaptioned: int) -> None:
    """Raise RecipeError for texts that cannot be filled, or that leave the model no token for the class.

    A few names or captions that are too long are only worth a warning, given when the stage runs.
    """
    texts = _texts(recipe)
    problems = missing_captions(texts, num_images, num_uncaptioned)
    given = recipe.prompts.environments
    places = given if isinstance(given, list) and given else [""]
    word = " ".join(["<class_0>"] * recipe.adapt.vectors) if recipe.adapt.has_tokens else ""
    lengths = measure(
        [render(text, name=word, environment=place) for text in texts for place in places], recipe, {"<class_0>": 1}
    )
    if lengths.cut:
        problems.append(too_long(lengths))
    if problems:
        raise RecipeError(problems)


def environments(recipe: Recipe, images: Iterable[RealImage]) -> list[str]:
    """What {environment} may say: the recipe's phrases, or the groups of the training images, sorted."""
    given = recipe.prompts.environments
    return list(given) if given != "groups" else sorted({image.group for image in images if image.group})


def _words(recipe: Recipe, folder: RunFolder, classes: Sequence[ClassInfo]) -> tuple[list[str], dict[str, int]]:
    """What {name} says for each class, and how many vectors each learned token has."""
    use = folder.path(ADAPTER) if parts_used(recipe.generate.method) != "none" else None
    facts = read_adapter(use) if use else None
    placeholders = facts.placeholders if facts else ()
    words = [
        class_word(info, placeholders, recipe.adapt.superclass or (facts.superclass if facts else ""))
        for info in classes
    ]
    return words, token_vectors(use) if use else {}


def measure(prompts: Iterable[str], recipe: Recipe, vectors: Mapping[str, int]) -> Lengths:
    """Tokens of every distinct prompt, by the encoder that counts the most; `vectors` of each learned token."""
    tokens = dict.fromkeys(sorted(set(prompts)), 0)
    limit = None
    for tokenizer in load_tokenizers(find_model(recipe.backend.model, recipe.backend.revision)):
        tokenizer.add_tokens(expand(" ".join(vectors), vectors).split())
        limit = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
        texts = [expand(prompt, vectors) for prompt in tokens]
        for prompt, ids in zip(tokens, tokenizer(texts)["input_ids"], strict=True):
            tokens[prompt] = max(tokens[prompt], len(ids))
    return Lengths(tokens, limit or 0)


def _texts(recipe: Recipe) -> list[str]:
    text = recipe.prompts.text
    return [text] if isinstance(text, str) else list(text)


def _drawn(recipe: Recipe) -> bool:
    return recipe.generate.method != "none"
