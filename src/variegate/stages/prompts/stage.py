"""Prompts stage: render every prompt, check it against the model's text encoders, write prompts/prompts.jsonl.

The generate stage deals these prompts out; a person can read the file to see what the model will be told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...backends.folder import find_model
from ...errors import ModelError, Problem, RecipeError
from ...pipeline import Context
from ...recipe import Recipe
from ...records import ClassInfo
from .templates import PromptLine, missing_captions, placeholders, render_all, too_long

NAME = "prompts"
FILE = "prompts/prompts.jsonl"


def inputs(recipe: Recipe) -> dict[str, Any]:
    backend = recipe.backend
    return {
        "prompts": recipe.prompts.model_dump(),
        "model": backend.model,
        "revision": backend.revision,
        "drawn": _drawn(recipe),
    }


def run(context: Context) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    if not _drawn(recipe):
        return {"line": "nothing to say: no images are drawn", "prompts": 0}
    classes, images = folder.classes(), folder.real_images("train")
    lines = render_all(_texts(recipe), recipe.prompts.environments, classes, images)
    longest, limit = check_lengths(lines, recipe)
    folder.write(FILE, "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines))
    folder.put_artefact(NAME, "prompts", FILE)
    distinct = len({line.prompt for line in lines})
    line = f"{distinct:,} prompts for {len(classes):,} classes, the longest {longest} of {limit} tokens"
    return {"line": line, "prompts": distinct, "longest_tokens": longest, "max_tokens": limit}


def check(recipe: Recipe, classes: Sequence[ClassInfo], num_images: int, num_uncaptioned: int) -> None:
    """Raise RecipeError for prompts that cannot be filled or would be cut off; captions are measured when the stage runs."""
    texts = _texts(recipe)
    problems = missing_captions(texts, num_images, num_uncaptioned)
    if problems:
        raise RecipeError(problems)
    check_lengths(
        render_all(
            [text for text in texts if "caption" not in placeholders(text)], recipe.prompts.environments, classes, []
        ),
        recipe,
    )


def check_lengths(lines: Sequence[PromptLine], recipe: Recipe) -> tuple[int, int]:
    """(tokens of the longest prompt, tokens the model reads); raises RecipeError when any would be cut off."""
    prompts = sorted({recipe.prompts.negative, *(line.prompt for line in lines)})
    folder = find_model(recipe.backend.model, recipe.backend.revision)
    longest, limit, problems = 0, 0, []
    for tokenizer in load_tokenizers(folder):
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        limit = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
        longest = max(longest, *lengths)
        problems = problems or too_long(prompts, lengths, tokenizer.model_max_length)
    if problems:
        raise RecipeError(problems)
    return longest, limit


def load_tokenizers(folder: Path) -> list[Any]:
    """The model's own tokenizers: one for Stable Diffusion, two for SDXL."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would say that long prompts fail; we say it, with the remedy
    try:
        parts = sorted(path for path in folder.glob("tokenizer*") if path.is_dir())
        return [_Quiet(AutoTokenizer.from_pretrained(part, local_files_only=True)) for part in parts]
    except (OSError, ValueError) as exc:
        raise ModelError(
            Problem(str(folder), f"its tokenizer cannot be loaded: {exc}", "download the model again")
        ) from exc
    finally:
        transformers_logging.set_verbosity(before)


def _Quiet(tokenizer: Any) -> Any:
    """Without its own warning about long texts."""
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _texts(recipe: Recipe) -> list[str]:
    text = recipe.prompts.text
    return [text] if isinstance(text, str) else list(text)


def _drawn(recipe: Recipe) -> bool:
    return recipe.generate.method != "none"
