"""Diffusers folders of the real models' shapes with random weights: real cost, meaningless images, nothing downloaded.

Sizes are those of the published configurations: Stable Diffusion 1.5, Stable Diffusion XL base 1.0, SD-Turbo and
InstructPix2Pix (drawn as DiffuseMix draws: 100 steps, text guidance 4); `tiny` goes the
same way in seconds, to try it on a CPU. Weights are written in fp16, as these models are usually fetched for a GPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Configurations of a model's parts, and how it is usually drawn with."""

    pipeline: str
    scheduler: tuple[str, dict[str, Any]]
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    text_2: dict[str, Any] | None = None
    draws: dict[str, float] = field(default_factory=lambda: {"steps": 25, "strength": 0.7, "guidance": 7.5})


def _clip(width: int, layers: int, heads: int, projection: int, **changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    own = {"intermediate_size": 4 * width, "projection_dim": projection, "vocab_size": 49408, "hidden_act": "gelu"}
    return {**sizes, **own, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, **changes}


def _vae(sample_size: int, scaling_factor: float, **changes: Any) -> dict[str, Any]:
    widths = (128, 256, 512, 512)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    own = {"block_out_channels": widths, "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32}
    return {**blocks, **own, "sample_size": sample_size, "scaling_factor": scaling_factor, **changes}


FOUR_LEVELS = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
SHAPES = {
    "sd15": Shape(
        pipeline="StableDiffusionPipeline",
        scheduler=("PNDMScheduler", {**NOISE, "skip_prk_steps": True, "set_alpha_to_one": False}),
        unet={**FOUR_LEVELS, "attention_head_dim": 8, "cross_attention_dim": 768},
        vae=_vae(512, 0.18215),
        text=_clip(768, 12, 12, 768, hidden_act="quick_gelu"),
    ),
    "sd-turbo": Shape(
        pipeline="StableDiffusionPipeline",
        scheduler=("EulerDiscreteScheduler", {**NOISE, "timestep_spacing": "trailing"}),
        unet={
            **FOUR_LEVELS,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        vae=_vae(512, 0.18215),
        text=_clip(1024, 23, 16, 512),
        draws={"steps": 1, "strength": 0.5, "guidance": 0.0},
    ),
    "sdxl": Shape(
        pipeline="StableDiffusionXLPipeline",
        scheduler=("EulerDiscreteScheduler", {**NOISE, "timestep_spacing": "leading"}),
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_vae(1024, 0.13025, force_upcast=True),
        text=_clip(768, 12, 12, 768, hidden_act="quick_gelu"),
        text_2=_clip(1280, 32, 20, 1280),
    ),
    "tiny": Shape(
        pipeline="StableDiffusionPipeline",
        scheduler=("PNDMScheduler", {**NOISE, "skip_prk_steps": True, "set_alpha_to_one": False}),
        unet={
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 4,
            "cross_attention_dim": 32,
        },
        vae=_vae(64, 0.18215, block_out_channels=(32, 32, 32, 32)),
        text=_clip(32, 2, 2, 32),
    ),
}


SHAPES["instruct-pix2pix"] = replace(
    SHAPES["sd15"],
    pipeline="StableDiffusionInstructPix2PixPipeline",
    unet={**SHAPES["sd15"].unet, "in_channels": 8},
    draws={"steps": 100, "strength": 1.0, "guidance": 4.0},
)


def build(name: str, work: Path) -> Path:
    """The folder of a shape below `work`, written there when it is not there yet; it appears whole or not at all."""
    folder, unfinished = work / name, work / f".{name}.unfinished"
    if folder.is_dir():
        return folder
    shutil.rmtree(unfinished, ignore_errors=True)
    shape = SHAPES[name]
    for part, make in makers(shape).items():  # one at a time: in fp32, as they are made, all parts of SDXL take 14 GB
        make().half().save_pretrained(unfinished / part)
    scheduler(shape).save_pretrained(unfinished / "scheduler")
    for part in tokenizers(shape):
        tokenizer(shape.text["max_position_embeddings"]).save_pretrained(unfinished / part)
    (unfinished / "model_index.json").write_text(json.dumps(model_index(shape), indent=1))
    unfinished.rename(folder)
    return folder


def makers(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Folder name -> what makes that part with random weights, in fp32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    parts: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet2DConditionModel(**shape.unet),
        "vae": lambda: AutoencoderKL(**shape.vae),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**shape.text)),
    }
    if shape.text_2:
        parts["text_encoder_2"] = lambda: CLIPTextModelWithProjection(CLIPTextConfig(**shape.text_2))
    return parts


def scheduler(shape: Shape) -> Any:
    import diffusers

    name, options = shape.scheduler
    return getattr(diffusers, name)(**options)


def tokenizers(shape: Shape) -> list[str]:
    return ["tokenizer", "tokenizer_2"] if shape.text_2 else ["tokenizer"]


def tokenizer(max_tokens: int) -> Any:
    """Bytes as tokens, padded to the model's own length: a text of any words costs what it costs there."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [START, END, *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_tokens)


def model_index(shape: Shape) -> dict[str, Any]:
    import diffusers

    index: dict[str, Any] = {"_class_name": shape.pipeline, "_diffusers_version": diffusers.__version__}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", shape.scheduler[0]], "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {part: ["transformers", "CLIPTokenizer"] for part in tokenizers(shape)}
    if shape.text_2:
        second = ["transformers", "CLIPTextModelWithProjection"]
        return index | {"text_encoder_2": second, "force_zeros_for_empty_prompt": True}
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
