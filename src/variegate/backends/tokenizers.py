"""A model's own tokenizers, loaded without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from variegate.errors import ModelError, Problem


def load_tokenizers(folder: Path) -> list[Any]:
    """The model's own tokenizers: one for Stable Diffusion, two for SDXL."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would say that long prompts fail; we say it, with the remedy
    try:
        parts = sorted(path for path in folder.glob("tokenizer*") if path.is_dir())
        return [_quiet(AutoTokenizer.from_pretrained(part, local_files_only=True)) for part in parts]
    except (OSError, ValueError) as exc:
        raise ModelError(
            Problem(str(folder), f"its tokenizer cannot be loaded: {exc}", "download the model again")
        ) from exc
    finally:
        transformers_logging.set_verbosity(before)


def _quiet(tokenizer: Any) -> Any:
    """Without its own warning about long texts."""
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def word_pieces(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without the special ones; empty for a text the tokenizer cannot say."""
    special = set(tokenizer.all_special_ids)
    return [token for token in tokenizer(text, add_special_tokens=False).input_ids if token not in special]


def speechless(texts: list[str], tokenizers: list[Any]) -> Problem | None:
    """What is wrong with first words of which some tokenizer makes nothing."""
    empty = [text for text in texts if not all(word_pieces(tokenizer, text) for tokenizer in tokenizers)]
    if not empty:
        return None
    text = f"{len(empty)} of the first words tokenise to nothing, for example {empty[0]!r}"
    return Problem("adapt.init", text, "set adapt.init=random, or a word such as bird")
