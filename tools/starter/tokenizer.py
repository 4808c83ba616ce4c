"""A byte-level CLIP tokenizer of the starter's own: any text and any emoji has tokens, frequent words have one."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

VOCABULARY = 1600
MAX_TOKENS = 48
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# Words that users type although no training caption has them; they only make sure that prompts stay short.
EXTRA_WORDS = """
photo picture image drawing painting sketch cartoon style of a an the in on at with and or small large big little close
up view background bright dark light colorful colourful red orange yellow green blue purple grey gray gold animal bird
cat dog fish insect flower tree car house person man woman child food water sea beach forest mountain snow rain night
day morning evening sunset summer winter autumn spring city street garden field river lake rock wood wall table
"""


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Byte-pair merges learned on captions, in CLIP's layout: bytes, bytes that end a word, merges, two specials."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # CLIPTokenizer's own rule
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 514, min_frequency=1, show_progress=False, end_of_word_suffix="</w>"
    )
    trained.train_from_iterator([*captions, *([EXTRA_WORDS] * 3)], trainer)
    merges = [tuple(pair) for pair in _merges(trained)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys(
        [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _merges(trained: Tokenizer) -> list:
    import json

    return [
        pair.split(" ") if isinstance(pair, str) else pair for pair in json.loads(trained.to_str())["model"]["merges"]
    ]
