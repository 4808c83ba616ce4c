"""Refining speed: fractals a second, and semantic hybrid blending against the same work one image and one patch at a time.

    python benchmarks/refine.py [--fractals 200] [--model ViT-B-32] [--images 8] [--size-px 64] [--device cpu]

Fractals are drawn at 64 and 256 px, of each kind and of all. For blending, three ways run in this process, on the same
images, with the same CLIP model and text, one after the other. The plain way crops, resizes and encodes each patch with
PIL and the model as CLIP's documentation has it, in fp32 on a CPU and fp16 on a GPU; ours are `map: patches`, the same
patches in batches, and `map: dense`, one pass an image. The model is the package's own pair (`starter`), or has an
open_clip architecture's sizes (or is `tiny`) and random weights: its speed is real, its maps are not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
PATCH, STRIDE = 0.125, 0.0625  # shares of the image: 225 patches of it
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fractals(count: int) -> dict[str, dict[str, float]]:
    """Pictures a second by size and kind."""
    from variegate.fractals import KINDS, draw_fractals

    rates: dict[str, dict[str, float]] = {}
    for size_px, number in ((64, count), (256, max(1, count // 8))):
        draw_fractals(range(4), size_px)
        for kinds in (KINDS, *((kind,) for kind in KINDS)):
            took = seconds(
                lambda size_px=size_px, number=number, kinds=kinds: draw_fractals(range(number), size_px, kinds)
            )
            rates.setdefault(str(size_px), {})[kinds[0] if len(kinds) == 1 else "all"] = round(number / took, 1)
    return rates


def write_clip(folder: Path, name: str) -> Path:
    """A folder as open_clip writes it, with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = TINY if name == "tiny" else open_clip.get_model_config(name)
    if config is None:
        raise SystemExit(f"open_clip knows no architecture {name!r}; open_clip.list_models() shows them")
    torch.manual_seed(0)
    model = open_clip.CLIP(**config) if name == "tiny" else open_clip.create_model(name, pretrained=None)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def plain_maps(pixels: np.ndarray, text: np.ndarray, clip: Any) -> np.ndarray:
    """Activation maps one image and one patch at a time: PIL crop, CLIP's preprocessing, one forward pass, one cosine."""
    import torch
    from PIL import Image

    edge = pixels.shape[1]
    patch_px, stride_px = round(PATCH * edge), round(STRIDE * edge)
    starts = range(0, edge - patch_px + 1, stride_px)
    maps = np.zeros((len(pixels), len(starts), len(starts)), np.float32)
    for index, picture in enumerate(pixels):
        image = Image.fromarray(picture)
        for row, top in enumerate(starts):
            for column, left in enumerate(starts):
                crop = image.crop((left, top, left + patch_px, top + patch_px))
                sized = crop.resize((clip.size_px, clip.size_px), Image.Resampling.BICUBIC)
                levels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None].float()
                maps[index, row, column] = float(clip.image_features(levels)[0].cpu().numpy() @ text)
    return maps


def blending(name: str, count: int, plain_count: int, size_px: int, device: str, dtype: str) -> dict[str, Any]:
    """Images a second of the plain way and of both of ours, and how far the maps are apart."""
    from variegate.image_text import open_clip_model
    from variegate.stages.refine.hybrid import dense_maps, patch_maps

    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    pixels = images.repeat(size_px // 8, axis=1).repeat(size_px // 8, axis=2)
    plain_dtype = "fp32" if device == "cpu" else "fp16"
    with tempfile.TemporaryDirectory() as work:
        folder = "clip:starter" if name == "starter" else f"clip:{write_clip(Path(work), name)}"
        plain = open_clip_model(folder, "benchmark", device=device, dtype=plain_dtype)
        ours = open_clip_model(folder, "benchmark", device=device, dtype=dtype)
        texts = plain.text_features(["a photo of a cat"] * count).cpu().numpy()
    ways: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
        "plain": (plain_count, lambda pixels: plain_maps(pixels, texts[0], plain)),
        "patches": (count, lambda pixels: patch_maps(pixels, texts[: len(pixels)], ours, patch=PATCH, stride=STRIDE)),
        "dense": (count, lambda pixels: dense_maps(pixels, texts[: len(pixels)], ours, stride=STRIDE)),
    }
    if ours.dense is None:
        del ways["dense"]
    maps, rates = {}, {}
    for way, (number, work_on) in ways.items():
        work_on(pixels[:1, : size_px // 2, : size_px // 2])  # the first call sets up kernels
        start = time.perf_counter()
        maps[way] = work_on(pixels[:number])
        rates[way] = number / (time.perf_counter() - start)
    centres = (np.arange(maps["plain"].shape[1]) * round(STRIDE * size_px) + round(PATCH * size_px) // 2).tolist()
    there = {way: maps[way][:plain_count][:, centres][:, :, centres].ravel() for way in ways if way != "plain"}
    return {
        "model": name,
        "size_px": size_px,
        "patches": int(maps["plain"][0].size),
        "plain_dtype": plain_dtype,
        "dtype": dtype,
        "images_per_second": {way: round(rate, 3) for way, rate in rates.items()},
        "ratio": {way: round(rates[way] / rates["plain"], 2) for way in there},
        "map_correlation": {
            way: round(float(np.corrcoef(maps["plain"].ravel(), there[way])[0, 1]), 4) for way in there
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractals", type=int, default=200)
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip architecture, starter or tiny")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--plain-images", type=int, default=1)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    options = parser.parse_args(arguments)

    from variegate.backends.devices import resolve_device, resolve_dtype, this_machine

    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device, this_machine())
    drawn = fractals(options.fractals)
    for size, kinds in drawn.items():
        print(f"{size} px: " + ", ".join(f"{kind} {rate:,} fractals a second" for kind, rate in kinds.items()))
    blend = blending(options.model, options.images, options.plain_images, options.size_px, device, dtype)
    rates, ratio = blend["images_per_second"], blend["ratio"]
    rates, ratio = blend["images_per_second"], blend["ratio"]
    said = [f"{rates[way]} by {way} ({times} times)" for way, times in ratio.items()]
    print(
        f"{blend['model']}, {blend['patches']} patches an image: {rates['plain']} images a second one patch at a time in "
        f"{blend['plain_dtype']}; in {dtype} {', '.join(said)}"
    )
    print(json.dumps({"benchmark": "refine", "device": device, "fractals_per_second": drawn, **blend}))


if __name__ == "__main__":
    main()
