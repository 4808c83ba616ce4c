"""Tokens, a LoRA, or both, as one adapter folder: names settled, fit with the base model checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from variegate.backends.adapter import AdapterFacts, lora_problems, write_adapter
from variegate.errors import ModelError, Problem
from variegate.files import file_sha256
from variegate.importers.found import Found
from variegate.importers.lora import Lora
from variegate.importers.names import matched
from variegate.importers.tokens import Tokens

if TYPE_CHECKING:
    import torch

# the text of those tools' own prompts: tokens are drawn best as they were learned
NEXT = 'variegate run DATA --recipe {recipe} --set adapt.method=file --set adapt.path={out} --set "prompts.text=a photo of a {name}"'


def adapter_found(
    tokens: tuple[Path, Tokens] | None,
    lora: tuple[Path, Lora] | None,
    *,
    files: Sequence[Path],
    classes: Sequence[str] | None,
    base: Path | None,
    base_name: str = "",
    notes: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Found:
    """Check names and fit, and describe the adapter; raises ModelError with every problem."""
    names, problems = _names(tokens, classes)
    if base is not None:
        problems += base_problems(base, tokens, lora)
    if problems:
        raise ModelError(problems)
    kind = "+".join(word for word, part in (("tokens", tokens), ("lora", lora)) if part)
    parts: tuple[tuple[Path, Tokens | Lora] | None, ...] = (tokens, lora)
    system = " with ".join(dict.fromkeys(part[1].system for part in parts if part))
    notes = [*notes, *_token_notes(tokens, names), *_lora_notes(lora)]
    if base is None:
        notes.append("no --base given: whether it fits the model is checked when drawing")
    described = f"{system}: " + ", ".join(f"{path.name} (sha256 {file_sha256(path)[:16]})" for path in files)
    facts = _facts(kind, tokens, names, base, base_name, described)

    def write(folder: Path) -> None:
        if tokens and names is None:
            count = len(tokens[1].rows)
            text = f"does not say which class each of its {count:,} tokens is"
            remedy = f"give --classes FILE with {count:,} class names, one a line, in the order of the tokens"
            raise ModelError(Problem(str(tokens[0]), text, remedy))
        rows = [{key: tokens[1].rows[key] for key in facts.placeholders}] if tokens else []
        write_adapter(folder, facts, rows, lora[1].state if lora else None)

    left_out = [*left_out, *(f"{name} (noisy copy)" for name in (tokens[1].noisy if tokens else ()))]
    after = NEXT.replace("{recipe}", "diff-mix" if lora else "ti-mix")
    counts = _token_counts(tokens, names) | _lora_counts(lora) | ({"base": base_name} if base else {})
    return Found(kind, system, tuple(files), counts, write, after, tuple(notes), tuple(left_out))


def _facts(
    kind: Any,
    tokens: tuple[Path, Tokens] | None,
    names: Sequence[str] | None,
    base: Path | None,
    base_name: str,
    said: str,
) -> AdapterFacts:
    """adapter.json, with classes in label order, which is the order of their names."""
    from variegate import __version__
    from variegate.backends.folder import model_fingerprint

    known = {"model": base_name, "fingerprint": model_fingerprint(base)} if base else {}
    pairs = sorted(zip(names or (), tokens[1].rows if tokens else names or (), strict=False))
    return AdapterFacts(
        method=kind,
        classes=tuple(name for name, _ in pairs),
        placeholders=tuple(token for _, token in pairs) if tokens else (),
        vectors=tokens[1].vectors if tokens else 1,
        base=known,
        versions={"variegate": __version__},
        imported_from=said,
    )


def _names(
    tokens: tuple[Path, Tokens] | None, classes: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, list[Problem]]:
    """Class names in the order of the tokens; None where nobody tells them."""
    if tokens is None:
        return (tuple(classes) if classes is not None else None), []
    path, known = tokens[0], tokens[1].names
    if known is not None and len(set(known)) < len(known):
        twice = sorted({name for name in known if known.count(name) > 1})
        remedy = "rename one; underscores stand for spaces in placeholders"
        return None, [Problem(str(path), f"has two tokens of the class {name!r}", remedy) for name in twice]
    if classes is None:
        return known, []
    if known is not None:
        spelled, problems = matched(known, classes, str(path))
        absent = [name for name in classes if name not in spelled.values()]
        if absent and not problems:
            text = f"holds no token of {len(absent):,} classes of --classes: {', '.join(absent[:10])}"
            problems.append(Problem(str(path), text, "adapt those too, or leave them out of --classes"))
        return tuple(spelled.get(name, name) for name in known), problems
    count = len(tokens[1].rows)
    if len(classes) != count:
        text = f"holds {count:,} tokens, and --classes has {len(classes):,} names"
        return None, [Problem(str(path), text, "give one name a line for each token, in the order of the tokens")]
    return tuple(classes), []


# ------------------------------------------------------------------------------------------ words


def _token_counts(tokens: tuple[Path, Tokens] | None, names: Sequence[str] | None) -> dict[str, Any]:
    if tokens is None:
        return {"classes": len(names)} if names else {}
    found = tokens[1]
    counts = [len(rows) for rows in found.rows.values()]
    each = found.vectors or f"{min(counts)} to {max(counts)}"
    facts = {"classes": len(names) if names else "not named in the file", "tokens": len(counts)}
    return facts | {"vectors_each": each, "width": found.width}


def _token_notes(tokens: tuple[Path, Tokens] | None, names: Sequence[str] | None) -> list[str]:
    if tokens is None:
        return []
    found, notes = tokens[1], []
    if found.noisy:
        text = f"{len(found.noisy):,} noisy copies (std {', '.join(found.noise)}) are left out: variegate draws fresh noise"
        notes.append(f"{text} for every image, see generate.token_noise")
    if (
        found.names is not None
        and found.system.startswith(("DA-Fusion", "DIAGen"))
        and any("_" in key for key in found.rows)
    ):
        notes.append(
            "underscores of placeholders were read as spaces; --classes FILE says how your data spells the names"
        )
    if names is None:
        notes.append(f"to write it, give --classes FILE: {len(found.rows):,} class names in the order of the tokens")
    if found.system == "Diff-Mix":
        notes.append(
            "Diff-Mix trained with a word after the token (bird for CUB): set adapt.superclass to the same word"
        )
    return notes


def _lora_counts(lora: tuple[Path, Lora] | None) -> dict[str, Any]:
    if lora is None:
        return {}
    ranks = lora[1].ranks
    return {
        "layers": len(lora[1].modules),
        "rank": ranks[0] if len(ranks) == 1 else list(ranks),
        "parameters": sum(value.numel() for value in lora[1].state.values()),
    }


def _lora_notes(lora: tuple[Path, Lora] | None) -> list[str]:
    if lora is None:
        return []
    notes = []
    if lora[1].scaled:
        notes.append(f"the scale alpha / rank of {lora[1].scaled:,} layers was folded into their weights")
    if lora[1].is_zero:
        notes.append("every layer's up matrix is zero: this LoRA changes nothing (Diff-Mix --ti_only leaves it so)")
    return notes


# ------------------------------------------------------------------------------------------ the base model


def base_problems(base: Path, tokens: tuple[Path, Tokens] | None, lora: tuple[Path, Lora] | None) -> list[Problem]:
    """What of an adapter does not fit a model: width, vocabulary, layers and their shapes. Loads no weights."""
    from variegate.backends.folder import model_problems

    problems = model_problems(base)
    if problems:
        return problems
    if tokens:
        problems += _token_misfits(base, *tokens)
    if lora:
        shapes = {key: list(value.shape) for key, value in lora[1].state.items()}
        problems += lora_problems(_skeleton(base), shapes, lora[0])
    return problems


def _token_misfits(base: Path, path: Path, tokens: Tokens) -> list[Problem]:
    if (base / "text_encoder_2").is_dir():
        text = "has vectors for one text encoder, and this model has two"
        return [Problem(str(path), text, "use a model with one text encoder, or adapt this one")]
    width = _config(base, "text_encoder")["hidden_size"]
    problems = []
    if tokens.width != width:
        text = f"has vectors {tokens.width} wide, and the text encoder of {base} takes {width}"
        problems.append(Problem(str(path), text, "name the model the tokens were learned for"))
    known = sorted(set(tokens.rows) & set(_vocabulary(base)))
    if known:
        text = f"its placeholders are words of this model already: {', '.join(known[:10])}"
        problems.append(Problem(str(path), text, "use the model without those tokens"))
    return problems


def _vocabulary(base: Path) -> Mapping[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base / "tokenizer").get_vocab()


def _skeleton(base: Path) -> SimpleNamespace:
    """A pipeline's modules by name and shape, without weights."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        encoders = {
            name: _text_encoder(base, name) if (base / name).is_dir() else None
            for name in ("text_encoder", "text_encoder_2")
        }
        return SimpleNamespace(unet=UNet2DConditionModel.from_config(_config(base, "unet")), **encoders)


def _text_encoder(base: Path, name: str) -> torch.nn.Module:
    import transformers

    config = _config(base, name)
    kind = getattr(transformers, (config.get("architectures") or ["CLIPTextModel"])[0])
    return kind(kind.config_class(**config))


def _config(base: Path, part: str) -> dict[str, Any]:
    import json

    return json.loads((base / part / "config.json").read_text(encoding="utf-8"))
