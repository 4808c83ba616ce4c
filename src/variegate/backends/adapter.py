"""What was learned of the user's classes, as files that stock diffusers loads, and applying them to a pipeline.

    adapter.json                      what it is: base model, classes, placeholders, data, recipe, versions
    learned_embeds.safetensors        placeholder -> [vectors, width]; learned_embeds_2.safetensors for SDXL's second encoder
    pytorch_lora_weights.safetensors  pipe.load_lora_weights(FOLDER); alpha equals rank, a scale is folded in

`pipe.load_textual_inversion([{name: rows} for name, rows in load_file("learned_embeds.safetensors").items()])` loads the tokens.
Only `apply_adapter` and `write_adapter` import torch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from variegate.errors import ModelError, Problem

if TYPE_CHECKING:
    import torch

FORMAT = 1
ADAPTER = "adapt"  # folder inside a run
FACTS = "adapter.json"
TOKENS = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # one a text encoder
LORA = "pytorch_lora_weights.safetensors"
Method = Literal["tokens", "lora", "tokens+lora"]
Parts = Literal["none", "tokens", "all"]  # what of an adapter a drawing strategy uses


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """adapter.json. Hashes are empty where an imported adapter does not tell them."""

    method: Method
    classes: tuple[str, ...]  # in label order
    placeholders: tuple[str, ...] = ()  # one a class, in label order; none without tokens
    vectors: int = 1  # tokens a class; 0 when they differ
    base: Mapping[str, Any] = field(default_factory=dict)  # model, revision, fingerprint
    data: str = ""  # hash of the training images' ids and bytes
    splits: str = ""  # hash of which image is in which split
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    imported_from: str = ""  # what an import found
    format: int = FORMAT

    @property
    def has_tokens(self) -> bool:
        return "tokens" in self.method

    @property
    def has_lora(self) -> bool:
        return "lora" in self.method

    @property
    def superclass(self) -> str:
        """The word that followed the token when it was learned; "" where an imported adapter does not tell."""
        return str(self.recipe.get("adapt", {}).get("superclass", ""))


def placeholder(label: int) -> str:
    """The word that stands for a class in prompts; diffusers names its further vectors <class_3>_1, <class_3>_2, ...

    >>> placeholder(3)
    '<class_3>'
    """
    return f"<class_{label}>"


def expand(text: str, vectors: Mapping[str, int]) -> str:
    """Every placeholder with all its vectors, as diffusers expands a prompt.

    >>> expand("a photo of a <class_1>", {"<class_1>": 3})
    'a photo of a <class_1> <class_1>_1 <class_1>_2'
    """
    if not vectors:
        return text
    known = "|".join(re.escape(name) for name in sorted(vectors, key=len, reverse=True))

    def whole(match: re.Match[str]) -> str:
        name = match.group()
        return " ".join([name, *(f"{name}_{k}" for k in range(1, vectors[name]))])

    return re.sub(rf"(?:{known})(?!_\d)", whole, text)


def parts_used(strategy: str) -> Parts:
    """What of an adapter a generate.method draws with (methods: real-* nothing, ti-* the tokens, diff-* all).

    >>> parts_used("real-aug"), parts_used("ti-mix"), parts_used("diff-gen")
    ('none', 'tokens', 'all')
    """
    return "tokens" if strategy.startswith("ti-") else "all" if strategy.startswith("diff-") else "none"


# ------------------------------------------------------------------------------------------ on disk


def adapter_problems(folder: Path) -> list[Problem]:
    """Everything that keeps a folder from being an adapter; reads no weights, only their headers."""
    again = "name the adapt/ folder of a run, or what variegate import wrote"
    if not (folder / FACTS).is_file():
        near = [path.parent for path in sorted(folder.glob(f"*/{FACTS}"))] if folder.is_dir() else []
        return [Problem(str(folder), f"has no {FACTS}", f"did you mean {near[0]}?" if near else again)]
    try:
        values = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        found = values.get("format", FORMAT)
        if found != FORMAT:  # before the rest, which may mean something else there
            return [Problem(str(folder), f"was written in format {found}, this version reads {FORMAT}", again)]
        facts = _parse(values)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        return [Problem(str(folder / FACTS), f"cannot be read ({exc})", again)]
    needed = ([TOKENS[0]] if facts.has_tokens else []) + ([LORA] if facts.has_lora else [])
    problems = [Problem(str(folder / name), "is missing", again) for name in needed if not (folder / name).is_file()]
    for name in (*TOKENS, LORA):
        if (folder / name).is_file() and not _header(folder / name):
            problems.append(Problem(str(folder / name), "is cut off, damaged or empty", "adapt again"))
    if problems:
        return problems
    return _placeholder_problems(folder, facts) if facts.has_tokens else []


def _placeholder_problems(folder: Path, facts: AdapterFacts) -> list[Problem]:
    problems, where = [], str(folder / FACTS)
    vectors = token_vectors(folder)
    words = [word for name in facts.placeholders for word in expand(name, {name: vectors.get(name, 1)}).split()]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        problems.append(Problem(where, f"two classes share the placeholder {twice[0]}", "give each class its own"))
    if len(facts.placeholders) != len(facts.classes):
        counts = f"{len(facts.placeholders)} placeholders for {len(facts.classes)} classes"
        problems.append(Problem(where, f"has {counts}", "give each class one"))
    for name in TOKENS:
        if (folder / name).is_file():
            absent = sorted(set(facts.placeholders) - set(_header(folder / name)))
            problems += [Problem(str(folder / name), f"holds no vectors of {key}", "adapt again") for key in absent[:3]]
    return problems


def read_adapter(folder: Path) -> AdapterFacts:
    """Facts of an adapter; raises ModelError with all of `adapter_problems`."""
    problems = adapter_problems(folder)
    if problems:
        raise ModelError(problems)
    return _parse(json.loads((folder / FACTS).read_text(encoding="utf-8")))


def adapter_hash(folder: Path) -> str:
    """Of what changes drawn pixels: the weights and the placeholders."""
    digest = hashlib.blake2b("|".join(read_adapter(folder).placeholders).encode(), digest_size=16)
    for name in (*TOKENS, LORA):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def token_vectors(folder: Path) -> dict[str, int]:
    """placeholder -> number of vectors; empty without tokens."""
    path = folder / TOKENS[0]
    return {name: _rows(shape) for name, shape in sorted(_header(path).items())} if path.is_file() else {}


def write_adapter(
    folder: Path,
    facts: AdapterFacts,
    tokens: Sequence[Mapping[str, torch.Tensor]] = (),
    lora: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write an adapter; `tokens` holds one {placeholder: [vectors, width]} a text encoder, `lora` diffusers' names.

    Files appear whole or not at all; adapter.json comes last, so a folder that has it is complete. What another adapter
    left in the folder goes.
    """
    from safetensors.torch import save

    from variegate.files import write_atomic

    forget_adapter(folder)
    for name, rows in zip(TOKENS, tokens, strict=False):
        write_atomic(
            folder / name, save({key: value.detach().float().cpu().contiguous() for key, value in rows.items()})
        )
    if lora:
        write_atomic(
            folder / LORA, save({key: value.detach().float().cpu().contiguous() for key, value in lora.items()})
        )
    text = json.dumps(asdict(facts), indent=1, ensure_ascii=False, default=str) + "\n"
    write_atomic(folder / FACTS, text.encode())


def forget_adapter(folder: Path) -> None:
    """Take an adapter away, its facts first; files beside no facts are somebody else's and stay."""
    if (folder / FACTS).is_file():
        for name in (FACTS, *TOKENS, LORA):
            (folder / name).unlink(missing_ok=True)


def _parse(values: dict[str, Any]) -> AdapterFacts:
    known = {**values, "classes": tuple(values["classes"]), "placeholders": tuple(values.get("placeholders", ()))}
    return AdapterFacts(**known)


def _header(path: Path) -> dict[str, list[int]]:
    """name -> shape of a safetensors file; empty when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return {}


def _rows(shape: Sequence[int]) -> int:
    return 1 if len(shape) == 1 else shape[0]


# ------------------------------------------------------------------------------------------ fitting a model and data


def check_fit(
    folder: Path, *, fingerprint: str, model: str, classes: Sequence[str], splits: str | None = None
) -> list[Problem]:
    """Why an adapter must not be used with this model, these classes and these splits; empty when it may.

    What an imported adapter does not tell (empty hashes) is not held against it.
    """
    facts, where, problems = read_adapter(folder), "adapt.path", []
    made_for = facts.base.get("fingerprint")
    if made_for and made_for != fingerprint:
        text = f"{folder} was made for {facts.base.get('model')} (weights {made_for[:8]}), and {model} is {fingerprint[:8]}"
        problems.append(Problem(where, text, "use the model it was made for, or adapt again"))
    if facts.classes and tuple(classes) != facts.classes:  # an imported LoRA names none
        problems.append(Problem(where, f"{folder} was made for other classes: {_difference(facts.classes, classes)}",
                                "adapt again, or use the data it was made for"))  # fmt: skip
    if splits is not None and facts.splits and facts.splits != splits:
        text = f"{folder} was made on another split of the data: it may have seen this split's test images"
        problems.append(Problem(where, text, "use the same data, seed and shots, or adapt again"))
    return problems


def _difference(had: Sequence[str], has: Sequence[str]) -> str:
    missing, new = [name for name in had if name not in has], [name for name in has if name not in had]
    if not missing and not new:
        return "the same names in another order"
    near = difflib.get_close_matches(missing[0], new, n=1) if missing else []
    parts = [f"it knows {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}"] if missing else []
    parts += [f"it lacks {', '.join(new[:3])}{' and more' if len(new) > 3 else ''}"] if new else []
    return "; ".join(parts) + (f" ({missing[0]!r} is now {near[0]!r}?)" if near else "")


# ------------------------------------------------------------------------------------------ applying


def apply_adapter(pipe: Any, folder: Path, parts: Parts) -> None:
    """Put an adapter into a freshly loaded fp32 pipeline: tokens added to vocabulary and encoders, LoRA fused into the weights.

    Fusing happens in fp32, before the pipeline is cast: in half precision small updates would be rounded away.
    Raises ModelError where a key or a shape does not fit.
    """
    from safetensors.torch import load_file

    facts = read_adapter(folder)
    encoders = text_encoders(pipe)
    if parts != "none" and facts.has_tokens:
        files = [folder / name for name in TOKENS[: len(encoders)]]
        _check_token_files(files, encoders)
        for path, (tokenizer, encoder) in zip(files, encoders, strict=True):
            rows = load_file(path)
            named = [{name: rows[name]} for name in facts.placeholders]
            pipe.load_textual_inversion(named, tokenizer=tokenizer, text_encoder=encoder)
            pool_at_the_end(tokenizer, encoder)
    if parts == "all" and facts.has_lora:
        state = load_file(folder / LORA)
        problems = lora_problems(pipe, {name: list(value.shape) for name, value in state.items()}, folder / LORA)
        if problems:
            raise ModelError(problems)
        pipe.load_lora_weights(state, adapter_name="variegate")
        pipe.fuse_lora(adapter_names=["variegate"])
        pipe.unload_lora_weights()


def text_encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) pairs: one for Stable Diffusion, two for SDXL."""
    second = getattr(pipe, "text_encoder_2", None)
    return [(pipe.tokenizer, pipe.text_encoder), *([(pipe.tokenizer_2, second)] if second is not None else [])]


def pool_at_the_end(tokenizer: Any, encoder: Any) -> None:
    """Let a text encoder sum a text up at its end and not at a learned token.

    Published configurations name eos_token_id 2, with which transformers takes the highest id for the end: a new token's.
    """
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id


def _check_token_files(files: Sequence[Path], encoders: Sequence[tuple[Any, Any]]) -> None:
    problems = []
    for path, (_, encoder) in zip(files, encoders, strict=True):
        width = encoder.get_input_embeddings().weight.shape[1]
        if not path.is_file():
            text = "is missing: this model has two text encoders"
            problems.append(Problem(str(path), text, "adapt this model, or use the one the adapter was made for"))
            continue
        wrong = {name: shape[-1] for name, shape in _header(path).items() if shape[-1] != width}
        if wrong:
            name, found = next(iter(wrong.items()))
            text = f"{name} is {found} wide and this model's text encoder takes {width}"
            problems.append(Problem(str(path), text, "use the model the adapter was made for"))
    if problems:
        raise ModelError(problems)


def _prefixes(root: str, model: Any) -> tuple[str, ...]:
    """LoRA files from before transformers 5 name CLIP's inner text_model; where it is gone diffusers drops the word too."""
    return ("", "text_model.") if root != "unet" and not hasattr(model, "text_model") else ("",)


def lora_problems(pipe: Any, shapes: Mapping[str, Sequence[int]], where: Path) -> list[Problem]:
    """Keys of a LoRA file (diffusers' names) that fit no module of the pipeline, or not its shape."""
    roots = {
        "unet": pipe.unet,
        "text_encoder": pipe.text_encoder,
        "text_encoder_2": getattr(pipe, "text_encoder_2", None),
    }
    modules = {f"{root}.{prefix}{name}": part for root, model in roots.items() if model is not None
               for prefix in _prefixes(root, model) for name, part in model.named_modules()}  # fmt: skip
    unknown, misfits = [], []
    for key, shape in shapes.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
        module = modules.get(match.group(1)) if match else None
        if match is None or module is None or not hasattr(module, "weight"):
            unknown.append(key)
        elif (shape[1] if match.group(2) == "A" else shape[0]) != module.weight.shape[
            1 if match.group(2) == "A" else 0
        ]:
            misfits.append(f"{key} {list(shape)} against {list(module.weight.shape)}")
    remedy = "use the model the adapter was made for"
    problems = []
    if unknown:
        all_of = (
            "none of its keys fits"
            if len(unknown) == len(shapes)
            else f"{len(unknown)} of {len(shapes)} keys fit nothing"
        )
        problems.append(Problem(str(where), f"{all_of} in this model, for example {unknown[0]}", remedy))
    if misfits:
        problems.append(Problem(str(where), f"{len(misfits)} shapes differ, for example {misfits[0]}", remedy))
    halves = [key for key in shapes if key not in unknown and _partner(key) not in shapes]
    if halves:  # diffusers would take the missing half as zeros
        text = f"{len(halves)} keys lack their other half, for example {_partner(halves[0])}"
        problems.append(Problem(str(where), text, "adapt again, or import it again"))
    return problems


def _partner(key: str) -> str:
    return key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
