"""Put the parts together as an ordinary diffusers folder, in half precision, never leaving a half-written file."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from starter.unet import Denoiser

MAX_WEIGHTS_MB = 30
_PRIVATE_KEYS = ("_name_or_path",)  # would name folders of the machine that trained


def assemble(vae: AutoencoderKL, denoiser: Denoiser, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
    """A stock pipeline on the given parts, without safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_folder(
    vae: AutoencoderKL,
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    out: Path,
    *,
    noise_levels: Sequence[float] | None = None,
) -> float:
    """Write the folder and return the size of its weights in MB; every file appears whole, by renaming.

    `noise_levels`: strengths a one-step model was taught, noted in model_index.json where variegate looks for them.
    Raises ValueError when the weights are larger than MAX_WEIGHTS_MB or not finite.
    """
    parts = [
        copy.deepcopy(module).to("cpu", memory_format=torch.contiguous_format).half()
        for module in (vae, denoiser.unet, denoiser.text_encoder)
    ]
    for part in parts:
        if not all(torch.isfinite(tensor).all() for tensor in part.state_dict().values()):
            raise ValueError(
                f"{type(part).__name__} has weights that are not finite in half precision; nothing was exported"
            )
    half = assemble(parts[0], Denoiser(parts[1], parts[2], denoiser.tokenizer), scheduler)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="starter-", dir=out.parent) as temporary:
        half.save_pretrained(temporary, safe_serialization=True)
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        weights_mb = sum(path.stat().st_size for path in files if path.suffix == ".safetensors") / 1e6
        if weights_mb > MAX_WEIGHTS_MB:
            raise ValueError(
                f"the weights take {weights_mb:.1f} MB, more than {MAX_WEIGHTS_MB} MB; nothing was exported"
            )
        for path in files:
            if path.suffix == ".json":
                _clean_config(path)
            if path.name == "model_index.json" and noise_levels:
                path.write_text(
                    json.dumps({**json.loads(path.read_text()), "_noise_levels": noise_levels}, indent=2) + "\n"
                )
            target = out / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(target)
    return weights_mb


def load_parts(folder: Path) -> tuple[AutoencoderKL, Denoiser]:
    """The parts of an exported folder, in single precision."""
    from diffusers import UNet2DConditionModel

    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    return vae.float(), Denoiser(unet.float(), text_encoder, tokenizer)


def _clean_config(path: Path) -> None:
    config = json.loads(path.read_text())
    if path.name == "config.json" and path.parent.name == "text_encoder":
        config["dtype"] = "float32"  # else transformers keeps half precision while diffusers' parts load in single
    for key in _PRIVATE_KEYS:
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=path.name != "tokenizer.json", ensure_ascii=False) + "\n")
