"""Artefacts of other tools, written exactly as those tools write them (docs/import.md), small enough for a test."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

STARTER = Path(__file__).resolve().parents[2] / "src" / "variegate" / "backends" / "starter"
WIDTH = 192  # of the starter's text encoder


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(values: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(values, path)
    return path


def da_fusion_tokens(path: Path, names: Sequence[str], *, vectors: int = 0, width: int = WIDTH) -> Path:
    """{"<name>": [width]}, or [vectors, width] as fine_tune_upstream.py has it."""
    shape = (vectors, width) if vectors else (width,)
    return save({f"<{name.replace(' ', '_')}>": numbers(*shape, seed=i) for i, name in enumerate(names)}, path)


def diagen_tokens(path: Path, names: Sequence[str], stds: Sequence[float] = (0.005, 0.01, 0.025)) -> Path:
    """aggregate_embeddings.py --augment-embeddings True: the clean token, and one copy a standard deviation."""
    values = {}
    for index, name in enumerate(names):
        clean = numbers(WIDTH, seed=index)
        values[f"<{name}>"] = clean
        for std in stds:
            values[f"<{name}_{std}>"] = clean + std * numbers(WIDTH, seed=100 + index)
    return save(values, path)


def diff_mix_values(names: Sequence[str], *, width: int = WIDTH, seed: int = 0) -> dict:
    tokens = [f"<class_{index}>" for index in range(len(names))]
    return {
        "learned_embeds_dict": {token: numbers(width, seed=seed + i) for i, token in enumerate(tokens)},
        "name2placeholder": dict(zip(names, tokens, strict=True)),
        "placeholder2name": dict(zip(tokens, names, strict=True)),
    }


def dasdiff_tokens(path: Path, count: int, *, width: int = WIDTH) -> Path:
    """text_embeds is saved as it is, with its graph."""
    rows = torch.nn.Parameter(numbers(count, width)) * 1
    return save({"text_embeds": rows, "placeholder_tokens": [f"<class_{index}>" for index in range(count)]}, path)


@functools.cache
def attention_layers() -> dict[str, tuple[int, ...]]:
    """Module -> weight shape of every q, k, v and output projection in the starter's U-Net."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(STARTER, subfolder="unet"))
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    return {name: tuple(module.weight.shape) for name, module in unet.named_modules() if name.endswith(ends)}


def diff_mix_lora(rank: int = 4) -> dict[str, torch.Tensor]:
    """Attention-processor naming, no prefix, no alpha: ...attn1.processor.to_q_lora.down.weight."""
    values = {}
    for index, (name, (out, into)) in enumerate(attention_layers().items()):
        head, _, projection = name.removesuffix(".0").rpartition(".")
        values[f"{head}.processor.{projection}_lora.down.weight"] = numbers(rank, into, seed=index) * 0.1
        values[f"{head}.processor.{projection}_lora.up.weight"] = numbers(out, rank, seed=1000 + index) * 0.1
    return values


def dasdiff_lora(rank: int = 4) -> dict[str, torch.Tensor]:
    """peft naming with the prefix unet., alpha equal to rank."""
    values = {}
    for index, (name, (out, into)) in enumerate(attention_layers().items()):
        values[f"unet.{name}.lora_A.weight"] = numbers(rank, into, seed=index) * 0.1
        values[f"unet.{name}.lora_B.weight"] = numbers(out, rank, seed=1000 + index) * 0.1
    return values


def save_safetensors(values: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, metadata)
    return path


def diff_mix_output(folder: Path, names: Sequence[str]) -> Path:
    """A whole --output_dir: final files, earlier ones, and what accelerate leaves."""
    save(diff_mix_values(names, seed=50), folder / "learned_embeds-steps-500.bin")
    save(diff_mix_values(names), folder / "learned_embeds-steps-last.bin")
    save_safetensors(diff_mix_lora(), folder / "pytorch_lora_weights.safetensors")
    save({"state": {}}, folder / "optimizer.bin")
    return folder


def pictures(folder: Path, names: Sequence[str]) -> None:
    import numpy as np
    from PIL import Image

    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * index % 255, np.uint8)).save(folder / name)


def diff_mix_images(folder: Path) -> Path:
    """data/{source}/{target}-{index}-{strength}.png and meta.csv."""
    rows = [
        ("black grouse", "song sparrow", 0, 0.5, "black_grouse/song_sparrow-000000-0.5.png"),
        ("black grouse", "black grouse", 1, 0.7, "black_grouse/black_grouse-000001-0.7.png"),
        ("song sparrow", "black grouse", 2, 0.25, "song_sparrow/black_grouse-000002-0.25.png"),
    ]
    pictures(folder / "data", [row[-1] for row in rows])
    lines = ["First Directory,Second Directory,Number,Strength,Path", *(",".join(map(str, row)) for row in rows)]
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")
    return folder


def dasdiff_images(folder: Path) -> Path:
    names = [f"{name}/{name}-{index:06d}.png" for name in ("Asiatic", "Sloth") for index in range(2)]
    pictures(folder / "data", names)
    rows = [f"{name},{name.split('/')[0]}" for name in names]
    (folder / "meta.csv").write_text("\n".join(["Path,Target Class", *rows]) + "\n")
    return folder


def diffusemix_tree(root: Path) -> Path:
    """result/{stage}/{class}/{file}_{stage}_{prompt}_{i}.jpg."""
    for name in ("cat", "dog"):
        pictures(root / "original_resized", [f"{name}/a_1.jpg"])
        for stage in ("generated", "concatenated", "fractal", "blended"):
            pictures(
                root / stage, [f"{name}/a_1.jpg_{stage}_{prompt}_0.jpg" for prompt in ("sunset", "watercolor art")]
            )
    return root


def filter_values(num_classes: int = 3) -> dict[str, torch.Tensor]:
    """DIAGen's filter: a whole ResNet-50, a new last layer, temperature and class count."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        shapes = resnet50().state_dict()
    values = {f"base_model.{key}": torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    head = {"out.weight": numbers(num_classes, 2048), "out.bias": numbers(num_classes)}
    return values | head | {"num_classes": torch.tensor(num_classes), "temperature": torch.tensor([1.5])}
