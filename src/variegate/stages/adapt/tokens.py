"""Learned tokens: new rows behind a frozen embedding matrix, their first values, and the vocabulary that knows them.

Only the new rows are parameters: the vocabulary's own rows are never copied, restored or decayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from variegate.backends.tokenizers import speechless, word_pieces
from variegate.errors import ModelError, Problem


class TokenEmbedding(torch.nn.Module):
    """An embedding matrix with trainable rows behind it: ids from `base.num_embeddings` on are the new ones."""

    def __init__(self, base: torch.nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = torch.nn.Parameter(rows.detach().float().clone())

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first = self.base.num_embeddings
        old = self.base(ids.clamp(max=first - 1))
        new = self.rows[(ids - first).clamp(min=0)].to(old.dtype)
        return torch.where((ids >= first).unsqueeze(-1), new, old)


def token_names(placeholders: Sequence[str], vectors: int) -> list[str]:
    """Every token to add, class by class, named as diffusers names them.

    >>> token_names(["<a>", "<b>"], 2)
    ['<a>', '<a>_1', '<b>', '<b>_1']
    """
    return [name if k == 0 else f"{name}_{k}" for name in placeholders for k in range(vectors)]


def add_tokens(tokenizer: Any, names: Sequence[str], num_embeddings: int) -> None:
    """Add words to a tokenizer so that name k has id num_embeddings + k; raises ModelError when one is there already."""
    known = tokenizer.get_vocab()
    taken = [name for name in names if name in known] + sorted({name for name in names if list(names).count(name) > 1})
    if taken:
        text = f"{taken[0]} is a word of its vocabulary already"
        raise ModelError(Problem("adapt", text, "use the base model, not one that was adapted before"))
    tokenizer.add_tokens(list(names))
    ids = tokenizer.convert_tokens_to_ids(list(names))
    if ids != list(range(num_embeddings, num_embeddings + len(names))):
        text = f"its tokenizer has {ids[0]} words and its text encoder {num_embeddings} rows"
        raise ModelError(Problem("adapt", text, "this model's vocabulary and text encoder do not belong together"))


def first_rows(
    tokenizer: Any, weight: torch.Tensor, words: Sequence[str], vectors: int, init: str, generator: torch.Generator
) -> torch.Tensor:
    """First values [len(words) * vectors, width]: from each class's own word(s), from one given word, or at random.

    A word's pieces are dealt to the vectors in order, the last pieces averaged into the last vector; a word of fewer pieces
    repeats them. Copies get noise of 1 % so that they do not stay equal. Random rows have the vocabulary's spread.
    Raises ModelError for words that tokenise to nothing.
    """
    weight = weight.detach().float()
    if init == "random":
        mean, std = weight.mean(0), weight.std(0)
        return mean + std * torch.randn(len(words) * vectors, weight.shape[1], generator=generator)
    texts = list(words) if init == "name" else [init] * len(words)
    problem = speechless(texts, [tokenizer])
    if problem:
        raise ModelError(problem)
    rows = torch.cat([_dealt(weight[torch.tensor(word_pieces(tokenizer, text))], vectors) for text in texts])
    jitter = 0.01 * weight.std() * torch.randn(rows.shape, generator=generator)
    return rows + jitter


def _dealt(rows: torch.Tensor, vectors: int) -> torch.Tensor:
    """[pieces, width] to [vectors, width]."""
    if len(rows) <= vectors:
        return rows[torch.arange(vectors) % len(rows)]
    return torch.cat([rows[: vectors - 1], rows[vectors - 1 :].mean(0, keepdim=True)])


def grouped(rows: torch.Tensor, placeholders: Sequence[str], vectors: int) -> dict[str, torch.Tensor]:
    """{placeholder: [vectors, width]} of all rows, as they are written."""
    return dict(zip(placeholders, rows.detach().view(len(placeholders), vectors, -1), strict=True))
