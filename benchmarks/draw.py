"""Drawing speed: diffusers' documented image-to-image loop against the generate stage, same weights, steps, strength, images.

    python benchmarks/draw.py [--model starter] [--images 128] [--plain-images 12] [--steps 25] [--strength 0.7]
    python benchmarks/draw.py --shape sdxl --work /tmp/models --device cuda --images 256

The plain loop is timed after loading, the stage from its start: resolving, loading, planning, encoding, drawing, writing files,
exporting the table. Both run in this process, on the same images, one after the other, twice in turns; the best of each counts.
The rate of the chunks alone, without what the stage does once, stands beside it. With --shape the model has the real one's sizes
and random weights (shapes.py), written once below --work: its speed is real, its images are not. The plain loop draws in fp32 on
a CPU and in fp16 on a GPU, as diffusers' documentation has it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapes import SHAPES, build

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
PLAIN_DTYPE = {"cpu": "fp32", "cuda": "fp16"}


def plain_loop(
    folder: Path,
    images: list[tuple[Path, str]],
    out: Path,
    *,
    device: str,
    steps: int,
    strength: float,
    guidance: float,
) -> float:
    """Images a second of the loop from diffusers' documentation: PIL in, PIL out, one image at a time."""
    import torch
    from diffusers import AutoPipelineForImage2Image, StableDiffusionInstructPix2PixPipeline
    from diffusers.utils import load_image

    edits = is_edit(folder)
    pipeline = StableDiffusionInstructPix2PixPipeline if edits else AutoPipelineForImage2Image
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[PLAIN_DTYPE[device]]
    pipe = pipeline.from_pretrained(folder, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    steps = max(steps, math.ceil(1 / strength))  # so that at least one is executed, as for one-step models

    def draw(number: int, path: Path, prompt: str) -> None:
        init_image = load_image(str(path)).resize((size, size))
        generator = torch.Generator().manual_seed(number)
        image = pipe(
            prompt=prompt,
            image=init_image,
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=generator,
            **({} if edits else {"strength": strength}),
        ).images[0]
        image.save(out / f"{number}.png")

    out.mkdir()
    if device != "cpu":
        draw(-1, *images[0])  # a GPU's first call chooses and loads kernels
    start = time.perf_counter()
    for number, image in enumerate(images):
        draw(number, *image)
    return len(images) / (time.perf_counter() - start)


@dataclass(frozen=True)
class Drawn:
    """What the generate stage drew from real images, and how fast."""

    images: list[tuple[Path, str]]  # the real image and the prompt of each
    summary: dict[str, Any]
    images_per_second: float  # with everything the stage does once
    chunk_images_per_second: float


def by_stage(
    out: Path, model: str, count: int, *, steps: int, strength: float, guidance: float, overrides: Sequence[str] = ()
) -> Drawn:
    """Variants of four real images by the generate stage, in a new run folder."""
    from variegate.pipeline import Context, run_stages
    from variegate.progress import QuietReporter
    from variegate.recipe_file import load_recipe
    from variegate.stages.generate import stage
    from variegate.store import RunFolder

    keys = [
        f"backend.model={json.dumps(model)}",
        f"backend.steps={steps}",
        f"backend.guidance_scale={guidance}",
        "backend.scheduler=model",
        f"generate.strength={strength}",
        f"generate.per_class={count // 4}",
        "dataset.meadow.n_species=4",
        "dataset.meadow.n_val=1",
        "dataset.meadow.n_test=1",
        *overrides,
    ]
    with RunFolder.create(out) as run:
        context = Context(load_recipe("real-guidance", keys), run, QuietReporter())
        run_stages(context, "prompts")
        start = time.perf_counter()
        summary = stage.run(context)
        seconds = time.perf_counter() - start
        sources = {image.id: image.path for image in run.real_images("train")}
        images = [(Path(sources[image.source]), image.prompt) for image in run.synthetic_images()]
    return Drawn(images, summary, summary["drawn"] / seconds, summary["drawn"] / summary["chunk_seconds"])


def quiet_libraries() -> None:
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def is_edit(folder: Path) -> bool:
    from variegate.backends.folder import read_model

    return read_model(folder).kind == "edit"


def free_device(device: str) -> None:
    """Give memory back, so that what the plain loop held does not make the stage's chunks smaller."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(given)
    from variegate.backends.folder import find_model

    quiet_libraries()
    folder = find_model(arguments.model)
    extra = [*(["generate.method=edit"] if is_edit(folder) else []), *arguments.set]
    plain, ours, chunks = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(arguments.turns):
            stage = by_stage(
                Path(temporary, f"run-{turn}"), arguments.model, arguments.images,
                steps=arguments.steps, strength=arguments.strength, guidance=arguments.guidance,
                overrides=[f"backend.device={arguments.device}", *extra],
            )  # fmt: skip
            ours.append(stage.images_per_second)
            chunks.append(stage.chunk_images_per_second)
            plain.append(
                plain_loop(
                    folder, stage.images[: arguments.plain_images], Path(temporary, f"plain-{turn}"),
                    device=arguments.device, steps=arguments.steps, strength=arguments.strength, guidance=arguments.guidance,
                )
            )  # fmt: skip
            free_device(arguments.device)
            print(
                f"turn {turn + 1}: plain loop {plain[-1]:.2f} images/s, stage {ours[-1]:.2f} images/s, {ours[-1] / plain[-1]:.1f}x"
            )
    report(arguments, max(plain), max(ours), max(chunks), stage.summary)


def report(arguments: argparse.Namespace, plain: float, ours: float, chunks: float, summary: dict) -> None:
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    backend = summary["backend"]
    print(
        f"{arguments.images} images at strength {arguments.strength} of {arguments.steps} steps, guidance {arguments.guidance}"
    )
    print(
        f"stage: {backend['dtype']}, chunks of {backend['batch']}, {backend['threads']} threads; peak memory {peak_gb:.2f} GB"
    )
    print(
        f"{ours:.2f} against {plain:.2f} images a second: {ours / plain:.1f} times as fast; {chunks:.2f} in chunks alone"
    )
    answer = {
        "benchmark": "draw",
        "model": arguments.model if arguments.model == "starter" else Path(arguments.model).name,
        "random_weights": arguments.shape is not None,
        "device": device_name(arguments.device),
        "plain_images_per_second": round(plain, 3),
        "stage_images_per_second": round(ours, 3),
        "chunk_images_per_second": round(chunks, 3),
        "ratio": round(ours / plain, 2),
        "peak_gb": round(peak_gb, 2),
        "images": summary["drawn"],
        "plain_images": arguments.plain_images,
        "steps": arguments.steps,
        "strength": arguments.strength,
        "guidance_scale": arguments.guidance,
        "dtype": backend["dtype"],
        "plain_dtype": PLAIN_DTYPE[arguments.device],
        "size_px": backend["size_px"],
        "batch": backend["batch"],
        "threads": backend["threads"],
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(answer))


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Arguments with the model's folder and, where they are not given, the shape's own steps, strength and guidance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="starter or a diffusers folder")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="instead: a real model's sizes with random weights")
    parser.add_argument("--work", type=Path, help="folder that shapes are written to and read from again")
    parser.add_argument("--device", choices=sorted(PLAIN_DTYPE), default="cpu")
    parser.add_argument("--images", type=int, default=256, help="drawn by the stage")
    parser.add_argument(
        "--plain-images", type=int, default=16, help="drawn by the plain loop; its rate does not depend on it"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--strength", type=float)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another recipe key")
    arguments = parser.parse_args(given)
    if arguments.shape and arguments.work is None:
        parser.error("--shape needs --work FOLDER: weights of the real size are several gigabytes")
    usual = SHAPES[arguments.shape or "sd15"].draws
    for name, value in usual.items():
        setattr(arguments, name, value if getattr(arguments, name) is None else getattr(arguments, name))
    if arguments.shape:
        arguments.model = str(build(arguments.shape, arguments.work.resolve()))
    return arguments


if __name__ == "__main__":
    main()
