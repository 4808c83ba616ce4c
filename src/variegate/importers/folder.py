"""What a folder of another tool's holds, found by content: the final tokens, the LoRA, a table of images.

Of checkpoints (`-steps-N`, `checkpoint-N/`) the last is taken; what is passed over is named with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from variegate.errors import ModelError, Problem
from variegate.importers.lora import Lora, is_lora, read_lora
from variegate.importers.tokens import Tokens, is_tokens, join_tokens, read_tokens
from variegate.importers.weights import Weights, file_format, read_weights, weight_keys

SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
STATE = re.compile(r"(optimizer|scheduler|scaler|sampler|random_states)[_\w]*\.\w+")  # accelerate's, no adapter
_STEPS = re.compile(r"-steps-(\d+|last)\.\w+$")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(slots=True)
class Parts:
    """The tokens and the LoRA of a folder, where they came from, and what was passed over."""

    tokens: tuple[Path, Tokens] | None = None
    lora: tuple[Path, Lora] | None = None
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_parts(root: Path) -> Parts:
    """Tokens and LoRA of a training output; raises ModelError with every problem of the files it takes."""
    parts = Parts()
    loaded = _load(root, parts)
    tokens = _one_of([item for item in loaded if is_tokens(list(item.values))], "tokens", parts)
    lora = _one_of([item for item in loaded if not is_tokens(list(item.values))], "LoRA weights", parts)
    if tokens is not None:
        parts.tokens = (tokens.path, read_tokens(tokens))
        parts.files.append(tokens.path)
    else:
        _tokens_by_class(root, parts)
    if lora is None:
        lora = _checkpoint_lora(root, tokens, parts)
    if lora is not None:
        parts.lora = (lora.path, read_lora(lora))
        parts.files.append(lora.path)
    return parts


def _load(root: Path, parts: Parts) -> list[Weights]:
    """The weight files directly in a folder that are tokens or LoRA; the others are left out by name."""
    loaded = []
    for path in sorted(root.iterdir()):
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            continue
        if STATE.fullmatch(path.name):
            parts.left_out.append(f"{path.name} (state of the training)")
        elif file_format(path) not in ("pickle", "safetensors"):
            parts.left_out.append(f"{path.name} (is no weight file)")
        else:
            keys = weight_keys(path)
            weights = None
            if keys is None or _is_wanted(keys):
                weights = read_weights(path)
                keys = list(weights.values)
            if weights is not None and _is_wanted(keys):
                loaded.append(weights)
            else:
                parts.left_out.append(f"{path.name} ({len(keys):,} keys that are neither tokens nor LoRA)")
    return loaded


def _is_wanted(keys: list[str]) -> bool:
    return is_tokens(keys) or is_lora(keys)


def _one_of(candidates: Sequence[Weights], what: str, parts: Parts) -> Weights | None:
    """The final file of several: without a step number or `-last` first, then the highest step; safetensors before .bin."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    best = max(_rank(item.path) for item in candidates)
    first = [item for item in candidates if _rank(item.path) == best]
    if len(first) > 1:
        first = [
            item for item in first if item.path.suffix == ".safetensors" and len({i.path.stem for i in first}) == 1
        ]
    if len(first) != 1:
        names = ", ".join(item.path.name for item in candidates)
        folder = str(candidates[0].path.parent)
        raise ModelError(Problem(folder, f"has several files of {what}: {names}", "name the file to import"))
    others = [item.path.name for item in candidates if item is not first[0]]
    parts.notes.append(f"of {len(candidates)} files of {what}, {first[0].path.name} was taken")
    parts.left_out += [f"{name} (an earlier or other copy)" for name in others]
    return first[0]


def _rank(path: Path) -> float:
    match = _STEPS.search(path.name)
    return float("inf") if match is None or match[1] == "last" else float(match[1])


def _tokens_by_class(root: Path, parts: Parts) -> None:
    """DA-Fusion's {class}/learned_embeds.bin, one file a class."""
    found: list[tuple[Path, Tokens]] = []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = [path for path in sorted(folder.glob("learned_embeds*")) if path.suffix.lower() in SUFFIXES]
        if not files or _CHECKPOINT.fullmatch(folder.name):
            continue
        weights = _one_of([read_weights(path) for path in files], "tokens", parts)
        if weights is not None:
            found.append((weights.path, read_tokens(weights)))
    if found:
        parts.tokens = (root, join_tokens(found))
        parts.files += [path for path, _ in found]


def _checkpoint_lora(root: Path, tokens: Weights | None, parts: Parts) -> Weights | None:
    """The LoRA of an interrupted training: checkpoint-N with the tokens' N, or the highest."""
    steps = {
        int(match[1]): path for path in root.iterdir() if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()
    }
    if not steps:
        return None
    of_tokens = _rank(tokens.path) if tokens is not None else float("inf")
    step = int(of_tokens) if of_tokens in steps else max(steps)
    loaded = [item for item in _load(steps[step], parts) if is_lora(list(item.values))]
    lora = _one_of(loaded, "LoRA weights", parts)
    if lora is not None:
        parts.notes.append(
            f"the folder has no final LoRA: that of checkpoint-{step} was taken, of {len(steps)} checkpoints"
        )
    return lora
