"""U-Nets as bare state dictionaries: concept-erased ones (ESD, arXiv 2303.07345), distilled ones, fine-tunes.

Written as one safetensors file for `backend.unet`. A file of some of the weights (ESD's cross-attention) stays one; the
model keeps the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from variegate.backends.folder import shape_problems, weight_shapes
from variegate.errors import ModelError
from variegate.files import write_atomic
from variegate.importers.found import Found
from variegate.importers.weights import Weights, tensor_problems, unknown_keys

UNET = "unet.safetensors"
PREFIX = "unet."
PARTS = ("conv_in.", "conv_norm_out.", "conv_out.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.",
         "up_blocks.")  # fmt: skip


def is_unet(keys: Sequence[str]) -> bool:
    return any(key.removeprefix(PREFIX).startswith(PARTS) for key in keys)


def unet_found(weights: Weights, base: Path | None) -> Found:
    """Check every key and, with a base model, every shape; raises ModelError with all problems."""
    path = weights.path
    values = {key.removeprefix(PREFIX): value for key, value in weights.values.items()}
    problems = unknown_keys([key for key in values if not key.startswith(PARTS)], path, "a diffusers U-Net")
    problems = problems or tensor_problems(values, path)
    notes = ["fit is checked when drawing; --base MODEL checks it now"]
    if base and not problems:
        own = weight_shapes(base / "unet")
        problems = shape_problems(str(path), {key: list(value.shape) for key, value in values.items()}, own)
        left = len(own) - len(values)
        notes = [f"{left:,} of the model's {len(own):,} weights are not in it and stay the model's"] if left else []
    if problems:
        raise ModelError(problems)

    def write(folder: Path) -> None:
        from safetensors.torch import save

        write_atomic(folder / UNET, save({key: value.detach().clone().contiguous() for key, value in values.items()}))

    count = sum(value.numel() for value in values.values())
    return Found(
        kind="unet",
        system="diffusers",
        files=(path,),
        facts={"weights": len(values), "parameters": count},
        write=write,
        next=f"variegate run DATA --set backend.unet={{out}}/{UNET} --set backend.model=MODEL",
        notes=tuple(notes),
    )
