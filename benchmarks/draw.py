"""Drawing speed: diffusers' documented image-to-image loop against the generate stage, same weights, steps, strength, images.

    python benchmarks/draw.py [--model starter] [--images 128] [--plain-images 12] [--steps 25] [--strength 0.7]

The plain loop is timed after loading, the stage from its start: resolving, loading, planning, encoding, drawing, writing files,
exporting the table. Both run in this process, on the same images, one after the other, twice in turns; the best of each counts.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def plain_loop(
    folder: Path, images: list[tuple[Path, str]], out: Path, *, steps: int, strength: float, guidance: float
) -> float:
    """Images a second of the loop from diffusers' documentation: fp32 on the CPU, PIL in, PIL out, one image at a time."""
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline
    from diffusers.utils import load_image

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    out.mkdir()
    start = time.perf_counter()
    for number, (path, prompt) in enumerate(images):
        init_image = load_image(str(path)).resize((size, size))
        generator = torch.Generator().manual_seed(number)
        image = pipe(
            prompt=prompt,
            image=init_image,
            strength=strength,
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=generator,
        ).images[0]
        image.save(out / f"{number}.png")
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    arguments = parse()
    import diffusers
    import transformers

    from variegate.backends.folder import find_model
    from variegate.pipeline import Context, run_stages
    from variegate.progress import QuietReporter
    from variegate.recipe_file import load_recipe
    from variegate.stages.generate import stage
    from variegate.store import RunFolder

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    overrides = [
        f"backend.model={json.dumps(arguments.model)}",
        f"backend.steps={arguments.steps}",
        f"backend.guidance_scale={arguments.guidance}",
        "backend.scheduler=model",
        f"generate.strength={arguments.strength}",
        f"generate.per_class={arguments.images // 4}",
        "dataset.meadow.n_species=4",
        "dataset.meadow.n_val=1",
        "dataset.meadow.n_test=1",
        *arguments.set,
    ]
    recipe = load_recipe("real-guidance", overrides)
    folder = find_model(arguments.model)
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(arguments.turns):
            with RunFolder.create(Path(temporary, f"run-{turn}")) as run:
                context = Context(recipe, run, QuietReporter())
                run_stages(context, "prompts")
                start = time.perf_counter()
                summary = stage.run(context)
                ours.append(summary["drawn"] / (time.perf_counter() - start))
                drawn = run.synthetic_images()[: arguments.plain_images]
                sources = {image.id: image.path for image in run.real_images("train")}
                images = [(Path(sources[image.source]), image.prompt) for image in drawn]
            plain.append(
                plain_loop(
                    folder, images, Path(temporary, f"plain-{turn}"),
                    steps=arguments.steps, strength=arguments.strength, guidance=arguments.guidance,
                )
            )  # fmt: skip
            print(
                f"turn {turn + 1}: plain loop {plain[-1]:.2f} images/s, stage {ours[-1]:.2f} images/s, {ours[-1] / plain[-1]:.1f}x"
            )
    report(arguments, max(plain), max(ours), summary)


def report(arguments: argparse.Namespace, plain: float, ours: float, summary: dict) -> None:
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    backend = summary["backend"]
    print(
        f"{arguments.images} images at strength {arguments.strength} of {arguments.steps} steps, guidance {arguments.guidance}"
    )
    print(
        f"stage: {backend['dtype']}, chunks of {backend['batch']}, {backend['threads']} threads; peak memory {peak_gb:.2f} GB"
    )
    print(f"{ours:.2f} against {plain:.2f} images a second: {ours / plain:.1f} times as fast")
    answer = {
        "benchmark": "draw",
        "model": arguments.model if arguments.model == "starter" else Path(arguments.model).name,
        "plain_images_per_second": round(plain, 3),
        "stage_images_per_second": round(ours, 3),
        "ratio": round(ours / plain, 2),
        "peak_gb": round(peak_gb, 2),
        "images": summary["drawn"],
        "plain_images": arguments.plain_images,
        "steps": arguments.steps,
        "strength": arguments.strength,
        "guidance_scale": arguments.guidance,
        "dtype": backend["dtype"],
        "batch": backend["batch"],
        "threads": backend["threads"],
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(answer))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="starter or a diffusers folder")
    parser.add_argument("--images", type=int, default=256, help="drawn by the stage")
    parser.add_argument(
        "--plain-images", type=int, default=16, help="drawn by the plain loop; its rate does not depend on it"
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another recipe key")
    return parser.parse_args()


if __name__ == "__main__":
    main()
