"""LoRA files of Diff-Mix, DasDiff and diffusers, in diffusers' peft naming with the scale folded in (alpha equals rank)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from variegate.errors import ModelError, Problem
from variegate.importers.weights import Weights, clean, tensor_problems, unknown_keys

if TYPE_CHECKING:
    import torch

ROOTS = ("unet", "text_encoder", "text_encoder_2")
METADATA = "lora_adapter_metadata"  # diffusers writes the LoRA's configuration here
_UNET_PARTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.")
_OLD = re.compile(r"(?P<head>.+?)(?:\.processor)?\.to_(?P<to>q|k|v|out)_lora\.(?P<part>down|up)\.weight")
_NEW = re.compile(r"(?P<head>.+)\.(?:lora\.|lora_linear_layer\.|lora_)(?P<part>down|up|A|B)\.weight")
_ALPHA = re.compile(r"(?P<head>.+?)(?:\.lora|\.lora_linear_layer)?\.alpha")
_PARTS = {"down": "A", "up": "B", "A": "A", "B": "B"}


@dataclass(frozen=True, slots=True)
class Lora:
    """`state` in diffusers' names, fp32; a layer changes by B @ A."""

    system: str
    state: Mapping[str, torch.Tensor]
    ranks: tuple[int, ...]
    scaled: int = 0  # layers whose alpha / rank was folded in
    is_zero: bool = False  # all B are zero: it changes nothing

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(key.removesuffix(".lora_A.weight") for key in self.state if key.endswith(".lora_A.weight"))


def is_lora(keys: Sequence[str]) -> bool:
    return any("lora" in key.lower() for key in keys)


def split_key(key: str) -> tuple[str, str] | None:
    """A key as (module, A | B | alpha) in diffusers' names; None where it is not understood.

    >>> split_key("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight")
    ('unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0', 'B')
    >>> split_key("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight")
    ('text_encoder.text_model.encoder.layers.0.self_attn.q_proj', 'A')
    """
    root = next((name for name in ROOTS if key.startswith(f"{name}.")), None)
    if root is None and not key.startswith(_UNET_PARTS):
        return None
    full = key if root else f"unet.{key}"
    if old := _OLD.fullmatch(full):
        if full.startswith("unet."):
            name = "to_out.0" if old["to"] == "out" else f"to_{old['to']}"
        else:
            name = f"{old['to']}_proj"
        return f"{old['head']}.{name}", _PARTS[old["part"]]
    if new := _NEW.fullmatch(full):
        return new["head"], _PARTS[new["part"]]
    alpha = _ALPHA.fullmatch(full)
    return (alpha["head"], "alpha") if alpha else None


def read_lora(weights: Weights) -> Lora:
    """Read any of the namings; raises ModelError with every problem, among them every key not understood."""
    names = {key: split_key(key) for key in weights.values}
    problems = unknown_keys([key for key, name in names.items() if name is None], weights.path, "a LoRA file")
    config = _config(weights, problems)
    known = {name: weights.values[key] for key, name in names.items() if name is not None}
    if len(known) < sum(name is not None for name in names.values()):
        problems.append(Problem(str(weights.path), "names a layer twice, in two namings", "export it again"))
    layers = {name: value for name, value in known.items() if name[1] != "alpha"}
    alphas = {name[0]: value for name, value in known.items() if name[1] == "alpha"}
    problems += tensor_problems({key: weights.values[key] for key, name in names.items() if name}, weights.path)
    problems += _pair_problems(layers, alphas, weights)
    if problems:
        raise ModelError(problems)
    return _folded(weights, names, layers, alphas, config)


def _folded(weights: Weights, names: Mapping, layers: Mapping, alphas: Mapping, config: Mapping) -> Lora:
    state, ranks, scaled = {}, set(), 0
    for module in sorted({name for name, _ in layers}):
        down, up = clean(layers[module, "A"]), clean(layers[module, "B"])
        rank = down.shape[0]
        scale = float(alphas[module]) / rank if module in alphas else _scale(module, rank, config)
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = down, up * scale
        ranks.add(rank)
        scaled += scale != 1.0
    is_zero = not any(bool(value.any()) for key, value in state.items() if key.endswith("lora_B.weight"))
    return Lora(_system(weights, names), state, tuple(sorted(ranks)), scaled, is_zero)


def _pair_problems(layers: Mapping, alphas: Mapping, weights: Weights) -> list[Problem]:
    """Layers with one half only, halves of different rank, alphas that belong to no layer or are no number."""
    path, alone, misfits = str(weights.path), [], []
    for module in sorted({name for name, _ in layers}):
        down, up = layers.get((module, "A")), layers.get((module, "B"))
        if down is None or up is None:
            alone.append(f"{module} (only {'up' if down is None else 'down'})")
        elif (
            getattr(down, "ndim", 0) not in (2, 4)
            or getattr(up, "ndim", 0) != down.ndim
            or up.shape[1] != down.shape[0]
        ):
            misfits.append(f"{module} {list(getattr(down, 'shape', []))} and {list(getattr(up, 'shape', []))}")
    stray = [
        module for module, value in alphas.items() if (module, "A") not in layers or getattr(value, "numel", int)() != 1
    ]
    problems = []
    if alone:
        problems.append(Problem(path, f"{len(alone)} layers have one half: {', '.join(alone[:10])}", "export it again"))
    if misfits:
        text = f"{len(misfits)} layers have halves that do not multiply: {', '.join(misfits[:10])}"
        problems.append(Problem(path, text, "export it again"))
    if stray:
        problems.append(Problem(path, f"alphas of no layer, or no numbers: {', '.join(stray[:10])}", "export it again"))
    if not layers:
        problems.append(Problem(path, "holds no LoRA layer", "name another file"))
    return problems


# ------------------------------------------------------------------------------------------ scale


def _config(weights: Weights, problems: list[Problem]) -> dict[str, Any]:
    """diffusers' note of the LoRA's configuration: {"unet.lora_alpha": 16, ...}; empty where there is none."""
    if METADATA not in weights.metadata:
        return {}
    try:
        config = json.loads(weights.metadata[METADATA])
        kinds = {
            f"{root}.{key}" for root in ROOTS for key in ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save")
        }
        refused = sorted(key for key in kinds if config.get(key))
    except (ValueError, AttributeError) as exc:
        problems.append(Problem(str(weights.path), f"its {METADATA} is no JSON object ({exc})", "export it again"))
        return {}
    problems += _alpha_problems(config, weights)
    if refused:
        remedy = "merge it where it was made, or train it without"
        problems.append(Problem(str(weights.path), f"uses {', '.join(refused)}, which is not plain LoRA", remedy))
    return config


def _alpha_problems(config: Mapping[str, Any], weights: Weights) -> list[Problem]:
    """Alphas of the note that are no numbers, or meant for layers by anything but their names."""
    problems = []
    for root in ROOTS:
        alpha, patterns = config.get(f"{root}.lora_alpha"), config.get(f"{root}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            patterns = {"alpha_pattern": patterns}
        wrong = [key for key, value in {"lora_alpha": alpha, **patterns}.items() if not _is_alpha(value)]
        wrong += [key for key in patterns if re.search(r"[\\()\[\]{}*+?|^$]", _literal(key))]
        if wrong:
            text = f"its {METADATA} has alphas of {root} that cannot be read: {', '.join(map(repr, wrong[:5]))}"
            problems.append(Problem(str(weights.path), text, "export it again"))
    return problems


def _is_alpha(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _literal(pattern: str) -> str:
    """A layer's name as peft's alpha_pattern has it, without the marks of a regular expression around it."""
    return pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank of a layer, as peft computes it; 1 where nothing is said."""
    root, _, name = module.partition(".")
    alpha = config.get(f"{root}.lora_alpha")
    if alpha is None:
        return 1.0
    for pattern, value in (config.get(f"{root}.alpha_pattern") or {}).items():
        if f".{name}".endswith(f".{_literal(pattern)}"):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get(f"{root}.use_rslora") else rank)


def _system(weights: Weights, names: Mapping[str, Any]) -> str:
    if weights.metadata.get(METADATA):
        return "diffusers"
    if all(".processor." in key and not key.startswith(ROOTS) for key in names):
        return "Diff-Mix"
    return "DasDiff or diffusers" if all(".lora_A." in key or ".lora_B." in key for key in names) else "diffusers"
