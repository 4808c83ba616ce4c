"""Random diffusers models small enough to build in a second: real files, real loading code, meaningless pictures."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = [
    "a",
    "photo",
    "of",
    "in",
    "the",
    "red",
    "blue",
    "owl",
    "cat",
    "dog",
    "on",
    "snow",
    "forest",
    ",",
    "drawing",
    "blurry",
]
MAX_TOKENS = 16


def build_sd(folder: Path, *, seed: int = 0) -> Path:
    """Stable Diffusion's layout: one text encoder, KL autoencoder, 32 px pictures as 4 x 8 x 8 latents."""
    from diffusers import StableDiffusionPipeline

    parts = _shared_parts(seed)
    unet = _unet(cross=32)
    pipe = StableDiffusionPipeline(
        **parts, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return folder


def build_sdxl(folder: Path, *, seed: int = 0, pipeline: type | None = None, **unet: int) -> Path:
    """SDXL's layout: two text encoders, pooled embedding, time ids; of another pipeline and `unet` where given."""
    import torch
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection

    parts = _shared_parts(seed)
    torch.manual_seed(seed + 1)
    second = CLIPTextModelWithProjection(_text_config(projection_dim=24))
    net = _unet(
        cross=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        **unet,
    )
    kind = pipeline or StableDiffusionXLPipeline
    pipe = kind(**parts, text_encoder_2=second, tokenizer_2=parts["tokenizer"], unet=net)
    pipe.save_pretrained(folder)
    return folder


CLIP_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},  # open_clip's words
}


def build_clip(folder: Path, *, seed: int = 0) -> Path:
    """A folder as open_clip's own save_for_hf writes it, weights random."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CLIP_CONFIG)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}))
    return folder


def build_transformers_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIPModel as save_pretrained writes it, with its tokenizer, weights random."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(text_config=_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=16)
        )
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def build_edit(folder: Path, *, seed: int = 0) -> Path:
    """InstructPix2Pix's layout: the U-Net takes the source's latents beside the noisy ones."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    return _build_wide(folder, StableDiffusionInstructPix2PixPipeline, 8, seed)


def build_edit_xl(folder: Path, *, seed: int = 0) -> Path:
    """InstructPix2Pix at SDXL's layout."""
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    return build_sdxl(folder, seed=seed, pipeline=StableDiffusionXLInstructPix2PixPipeline, in_channels=8)


def build_inpaint(folder: Path, *, seed: int = 0) -> Path:
    """Stable Diffusion inpainting's layout: the U-Net takes a mask and the latents of what it leaves."""
    from diffusers import StableDiffusionInpaintPipeline

    return _build_wide(folder, StableDiffusionInpaintPipeline, 9, seed)


def _build_wide(folder: Path, pipeline: type, in_channels: int, seed: int) -> Path:
    pipe = pipeline(
        **_shared_parts(seed),
        unet=_unet(cross=32, in_channels=in_channels),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


_built: dict[str, Path] = {}


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-sd", build_sd, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-sdxl", build_sdxl, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-edit", build_edit, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_edit_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-edit-xl", build_edit_xl, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_inpaint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-inpaint", build_inpaint, tmp_path_factory)


def _once(name: str, build: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all folders of tests that import the fixture."""
    if name not in _built:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers' progress bars
            _built[name] = build(tmp_path_factory.mktemp("models") / name)
    return _built[name]


def _shared_parts(seed: int) -> dict:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return {
        "vae": vae,
        "text_encoder": CLIPTextModel(_text_config()),
        "tokenizer": _tokenizer(),
        "scheduler": scheduler,
    }


def _unet(cross: int, **extra: object):  # noqa: ANN202
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=cross,
        **extra,
    )


def _text_config(projection_dim: int = 32):  # noqa: ANN202
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(_tokenizer()),  # as in every real model: learned tokens come after the last word
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=projection_dim,
        bos_token_id=0,
        eos_token_id=1,
    )


def _tokenizer():  # noqa: ANN202
    """Byte-level CLIP tokens, so that any text has some; the words above are one token each."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges, tokens = [], ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-clip", build_clip, tmp_path_factory)


@pytest.fixture(scope="session")
def transformers_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _once("tiny-transformers-clip", build_transformers_clip, tmp_path_factory)
