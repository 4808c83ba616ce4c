"""Learned tokens of DA-Fusion, DIAGen, Diff-Mix and DasDiff: placeholder -> vectors, and whose class each is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variegate.errors import ModelError, Problem
from variegate.importers.weights import Weights, clean, tensor_problems, unknown_keys

if TYPE_CHECKING:
    import torch

DIFF_MIX = ("learned_embeds_dict", "name2placeholder", "placeholder2name")
DASDIFF = ("text_embeds", "placeholder_tokens")
_PLACEHOLDER = re.compile(r"<[^<>]+>")
_NUMBERED = re.compile(r"<class_\d+>")
_NOISY = re.compile(r"<(?P<name>.+)_(?P<std>\d+\.\d+|\d+(?:\.\d+)?e-?\d+)>")  # str() of a Python float


@dataclass(frozen=True, slots=True)
class Tokens:
    """`rows` placeholder -> [vectors, width]; `names` are the classes in the same order, None where the file has none."""

    system: str
    rows: Mapping[str, torch.Tensor]
    names: tuple[str, ...] | None
    noise: tuple[str, ...] = ()  # stds of the noisy copies that were left out
    noisy: tuple[str, ...] = ()  # their placeholders

    @property
    def width(self) -> int:
        return next(iter(self.rows.values())).shape[1]

    @property
    def vectors(self) -> int:
        """Vectors a class; 0 when they differ."""
        counts = {rows.shape[0] for rows in self.rows.values()}
        return counts.pop() if len(counts) == 1 else 0


def is_tokens(keys: Sequence[str]) -> bool:
    return bool({*DIFF_MIX, *DASDIFF} & set(keys)) or any(_PLACEHOLDER.fullmatch(key) for key in keys)


def read_tokens(weights: Weights) -> Tokens:
    """Read any of the schemas; raises ModelError with every problem, among them every key not understood."""
    if set(DIFF_MIX) & set(weights.values):
        return _diff_mix(weights)
    if set(DASDIFF) & set(weights.values):
        return _dasdiff(weights)
    return _plain(weights)


def join_tokens(parts: Sequence[tuple[Path, Tokens]]) -> Tokens:
    """One file a class (DA-Fusion) as one set; raises ModelError where two files hold the same placeholder."""
    rows: dict[str, torch.Tensor] = {}
    names: list[str] = []
    origin: dict[str, Path] = {}
    problems = []
    for path, tokens in parts:
        for key in tokens.rows:
            if key in rows:
                problems.append(Problem(str(path), f"holds {key} again, as {origin[key]} does", "remove one of them"))
            origin[key] = path
        rows |= tokens.rows
        names += tokens.names or ()
    first = parts[0]
    problems += [
        Problem(str(path), f"is {tokens.width} wide and {first[0]} is {first[1].width}", "import them one by one")
        for path, tokens in parts
        if tokens.width != first[1].width
    ]
    if problems:
        raise ModelError(problems)
    known = tuple(names) if len(names) == len(rows) else None
    return Tokens(first[1].system, rows, known, noisy=tuple(key for _, tokens in parts for key in tokens.noisy))


# ------------------------------------------------------------------------------------------ the schemas


def _plain(weights: Weights) -> Tokens:
    """DA-Fusion and DIAGen: {"<class_name>": [width] or [vectors, width]}, DIAGen's noisy copies beside them."""
    known = {key: value for key, value in weights.values.items() if _PLACEHOLDER.fullmatch(key)}
    problems = unknown_keys([key for key in weights.values if key not in known], weights.path, "a file of tokens")
    rows = _checked(known, weights.path, problems)
    noisy = {key: match["std"] for key in rows if (match := _NOISY.fullmatch(key)) and f"<{match['name']}>" in rows}
    kept = {key: value for key, value in rows.items() if key not in noisy}
    numbered = all(_NUMBERED.fullmatch(key) for key in kept)
    names = None if numbered else tuple(key[1:-1].replace("_", " ").strip() for key in kept)
    stds = tuple(sorted(set(noisy.values()), key=float))
    return Tokens("DIAGen" if noisy else "DA-Fusion or DIAGen", kept, names, stds, tuple(noisy))


def _diff_mix(weights: Weights) -> Tokens:
    values, path = weights.values, weights.path
    problems = _keys(values, DIFF_MIX, path, "a file of Diff-Mix tokens")
    vectors, to_token, to_name = (values.get(key, {}) for key in DIFF_MIX)
    problems += [
        Problem(str(path), f"{key} is no dictionary but {type(values[key]).__name__}", "export it again")
        for key in DIFF_MIX
        if key in values and not isinstance(values[key], dict)
    ]
    if problems:
        raise ModelError(problems)
    bad = [
        f"{name!r}: {token!r}"
        for name, token in to_token.items()
        if not isinstance(name, str) or not isinstance(token, str)
    ]
    if bad:
        raise ModelError(
            Problem(str(path), f"name2placeholder maps no names to tokens: {', '.join(bad[:3])}", "export it again")
        )
    back = {token: name for name, token in to_token.items()}
    problems += _named_once(to_token.values(), path)
    if back != dict(to_name):
        wrong = sorted({*map(str, {*back} ^ {*to_name}), *(key for key in back if to_name.get(key) != back[key])})
        text = f"name2placeholder and placeholder2name disagree about {', '.join(wrong[:5])}"
        problems.append(Problem(str(path), text, "export it again"))
    problems += unknown_keys(
        [key for key in vectors if key not in back], path, "learned_embeds_dict (no class has them)"
    )
    absent = [token for token in back if token not in vectors]
    if absent:
        problems.append(Problem(str(path), f"holds no vector of {', '.join(absent[:10])}", "export it again"))
    rows = _checked({token: vectors[token] for token in back if token in vectors}, path, problems)
    return Tokens("Diff-Mix", rows, tuple(back[token] for token in rows))


def _dasdiff(weights: Weights) -> Tokens:
    import torch

    values, path = weights.values, weights.path
    problems = _keys(values, DASDIFF, path, "a file of DasDiff tokens")
    if problems:
        raise ModelError(problems)
    names, vectors = values["placeholder_tokens"], values["text_embeds"]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        problems.append(Problem(str(path), "placeholder_tokens is no list of texts", "export it again"))
    elif not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or len(vectors) != len(names):
        shape = list(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        text = f"text_embeds is {shape} for {len(names)} placeholder_tokens"
        problems.append(Problem(str(path), text, "one row a token is needed; export it again"))
    else:
        problems += _named_once(names, path)
    if problems:
        raise ModelError(problems)
    problems += tensor_problems({"text_embeds": vectors}, path)
    return Tokens("DasDiff", _checked(dict(zip(names, vectors, strict=True)), path, problems), None)


# ------------------------------------------------------------------------------------------ checks


def _keys(values: Mapping[str, Any], schema: Sequence[str], path: Path, what: str) -> list[Problem]:
    missing = [key for key in schema if key not in values]
    problems = unknown_keys([key for key in values if key not in schema], path, what)
    if missing:
        problems.append(Problem(str(path), f"lacks {', '.join(missing)}, which {what} has", "export it again"))
    return problems


def _named_once(placeholders: Sequence[str], path: Path) -> list[Problem]:
    names = list(placeholders)
    twice = sorted({name for name in names if names.count(name) > 1})
    return [
        Problem(str(path), f"two classes share the placeholder {name}", "give each class its own") for name in twice
    ]


def _checked(values: Mapping[str, Any], path: Path, problems: list[Problem]) -> dict[str, torch.Tensor]:
    """placeholder -> [vectors, width] in fp32; raises ModelError with `problems` and what is wrong with the values."""
    problems = [*problems, *tensor_problems(values, path)]
    if not values:
        problems.append(Problem(str(path), "holds no tokens", "name another file"))
    if problems:
        raise ModelError(problems)
    odd = [f"{key} {list(value.shape)}" for key, value in values.items() if value.ndim not in (1, 2)]
    widths = sorted({value.shape[-1] for value in values.values()})
    if odd:
        problems.append(
            Problem(str(path), f"not [width] or [vectors, width]: {', '.join(odd[:10])}", "export it again")
        )
    if len(widths) > 1:
        text = f"has vectors of different widths: {', '.join(map(str, widths))}"
        problems.append(Problem(str(path), text, "all must come from one text encoder"))
    folded: dict[str, str] = {}
    for key in values:  # tokenizers lower-case, so the two would be one
        if key.casefold() in folded:
            text = f"{key} and {folded[key.casefold()]} differ only in case"
            problems.append(Problem(str(path), text, "rename one of them"))
        folded[key.casefold()] = key
    if problems:
        raise ModelError(problems)
    return {key: clean(value if value.ndim == 2 else value[None]) for key, value in values.items()}
