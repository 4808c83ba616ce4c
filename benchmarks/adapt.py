"""Adapting: its speed against the plain way, and whether what it draws shows the right class.

    python benchmarks/adapt.py speed [--steps 20] [KEY=VALUE ...]
    python benchmarks/adapt.py agreement [--data DATA] [--draws 5] [--methods base,tokens,...] [--keep FOLDER] [KEY=VALUE ...]
    python benchmarks/adapt.py few-shot [--draws 5] [--workers 2] [--keep FOLDER] [KEY=VALUE ...]

speed: images a second of adapting all classes at once against one run a class in the manner of the diffusers example for
textual inversion: the whole embedding matrix in the optimiser, images encoded at every step, fp32. Four images an update, as its
documents' command has them (batch 1, gradients of 4 added up) and as DA-Fusion and DIAGen do (one batch of 4). Same images, all in
this process, in turns. Peak memory is that of one more run of each, in a process of its own.

agreement: share of images drawn from text whose class a judge names; the judge is a classifier trained on 500 real images of each
species, none of which the generator saw; with other data than the meadow on all their training images (of which the generator
saw five a class). Its accuracy on held-out real images is printed beside.

few-shot: test accuracy of classifiers of 5 real images a species, and of those with images by diff-aug and diff-mix besides, with
equal optimiser steps; gains over real images alone and over RandAugment, paired, with 95 % intervals. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

PLAIN = {"documented": 1, "batch 4": 4}  # images of a forward pass; an update has four in either
PLAIN_UPDATE = 4
OURS = ("tokens", "tokens+lora")  # adapt.method
MEADOW = "builtin:meadow"
RECIPE = "diff-gen"
SHOTS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        answer = {"speed": speed, "agreement": agreement, "few-shot": few_shot}[options.what](options, Path(name))
    print(json.dumps({"benchmark": f"adapt {options.what}", **answer}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "agreement", "few-shot"))
    parser.add_argument("--steps", type=int, default=20, help="of the timed runs (%(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="sets of training images (%(default)s)")
    parser.add_argument("--per-class", type=int, default=20, help="images drawn for each class (%(default)s)")
    parser.add_argument(
        "--methods", default="base,tokens,lora,tokens+lora", help=f"of {', '.join(COLUMNS)} (%(default)s)"
    )
    parser.add_argument("--data", default=MEADOW, help="of agreement: any data, for instance a folder (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="draws of few-shot at a time (%(default)s)")
    parser.add_argument("--first-draw", type=int, default=0, help="to share the draws out among processes with --keep")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep judge, adapters and runs; go on where it stopped"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser.parse_intermixed_args(arguments)


# ------------------------------------------------------------------------------------------ speed


def speed(options: argparse.Namespace, root: Path) -> dict:
    rates: dict[str, list[float]] = {name: [] for name in (*PLAIN, *OURS)}
    peaks = {method: peak_of(ours, options, root / f"{method}-peak", method) for method in OURS}
    peaks |= {name: peak_of(plain, root / "tokens-peak", options.steps, batch) for name, batch in PLAIN.items()}
    print(peaks, flush=True)
    for turn in range(2):
        for method in OURS:
            rates[method].append(ours(options, root / f"{method}-{turn}", method))
        for name, batch in PLAIN.items():
            rates[name].append(plain(root / f"tokens-{turn}", options.steps, batch))
        print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)
    best = {name: max(values) for name, values in rates.items()}
    return {
        "images_per_second": {name: round(value, 2) for name, value in best.items()},
        "ratios": {
            f"{method} against {name}": round(best[method] / best[name], 2) for method in OURS for name in PLAIN
        },
        "peak_gb": peaks,
        "steps": options.steps,
    }


def ours(options: argparse.Namespace, out: Path, method: str) -> float:
    """Images a second of the stage's training loop, encoding and writing included."""
    from variegate.api import run

    keys = [f"adapt.method={method}", f"adapt.steps={options.steps}", "adapt.previews=0", "adapt.evaluations=0"]
    keys += ["generate.method=diff-gen" if "lora" in method else "generate.method=ti-gen", *options.overrides]
    summary = run(MEADOW, RECIPE, out, overrides=keys, last="adapt").summaries["adapt"]
    return summary["images_seen"] / summary["seconds"]


def plain(folder: Path, steps: int, batch: int) -> float:
    """Images a second of textual inversion as the diffusers example does it, on one class of the same images, `batch` at a time."""
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from PIL import Image

    from variegate.backends.folder import STARTER
    from variegate.store import RunFolder

    with RunFolder.read(folder) as opened:
        images = [image for image in opened.real_images("train") if image.label == 0]
    pipe = StableDiffusionPipeline.from_pretrained(STARTER, dtype=torch.float32)
    tokenizer, encoder, unet, vae = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.vae
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    tokenizer.add_tokens(["<plain>"])
    encoder.resize_token_embeddings(len(tokenizer))
    matrix = encoder.get_input_embeddings().weight
    for part in (unet, vae, encoder):
        part.requires_grad_(False)
    matrix.requires_grad_(True)
    optimizer = torch.optim.AdamW([matrix], lr=5e-4)
    original, new = matrix.detach().clone(), len(tokenizer) - 1
    ids = tokenizer(["a photo of a <plain>"] * batch, padding="max_length", truncation=True,
                    max_length=tokenizer.model_max_length, return_tensors="pt").input_ids  # fmt: skip
    rng = np.random.default_rng(0)

    def forward() -> None:
        picked = [images[k] for k in rng.integers(len(images), size=batch)]
        pixels = np.stack([np.array(Image.open(image.path).convert("RGB").resize((64, 64))) for image in picked])
        pixels = torch.from_numpy(pixels).float().permute(0, 3, 1, 2) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = unet(noisy, times, encoder(ids)[0]).sample
        loss = torch.nn.functional.mse_loss(predicted, scheduler.get_velocity(latents, noise, times))
        (loss * batch / PLAIN_UPDATE).backward()

    def update() -> None:
        for _ in range(PLAIN_UPDATE // batch):
            forward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            matrix[:new] = original[:new]

    update()  # the first one sets up kernels
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return steps * PLAIN_UPDATE / (time.perf_counter() - start)


def peak_of(work: Callable[..., float], *values: object) -> float:
    """Peak memory of a call in a process of its own, in GB: that of one process never goes down again.

    To be called while this process is small, as Linux counts a process's memory at its start to the peak of the new one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_peak_after, work, *values).result()


def _peak_after(work: Callable[..., float], *values: object) -> float:
    work(*values)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


# ------------------------------------------------------------------------------------------ agreement


def agreement(options: argparse.Namespace, root: Path) -> dict:
    from variegate.api import run, settle
    from variegate.comparison.shelf import Shelf

    root = options.keep or root
    judge, accuracy = make_judge(root / "judge", options.data, options.overrides)
    found: dict[str, list[float]] = {}
    for method in options.methods.split(","):
        for draw in range(options.first_draw, options.draws):
            keys = [
                f"seed={draw}",
                f"dataset.shots={SHOTS}",
                f"generate.per_class={options.per_class}",
                "curate=[]",
                *COLUMNS[method],
                *options.overrides,
            ]
            out = root / method / str(draw)
            start = time.perf_counter()
            taught = Shelf(root / "adapters").taught(settle(options.data, RECIPE, keys))
            run(None, taught, out, last="generate")
            found.setdefault(method, []).append(share_right(out, judge))
            print(f"{method} draw {draw}: {found[method][-1]:.3f} in {time.perf_counter() - start:.0f} s", flush=True)
    means = {method: round(100 * statistics.mean(values), 1) for method, values in found.items()}
    print(means, flush=True)
    return {
        "data": Path(options.data).name,
        "judge_accuracy": accuracy,
        "agreement_percent": means,
        "draws": {method: [round(value, 4) for value in values] for method, values in found.items()},
        "per_class": options.per_class,
        "overrides": options.overrides,
    }


DESCRIBED = ["adapt.method=none", "generate.method=real-gen", "prompts.text=a photo of a {description}, {environment}"]
LEARNED = ["adapt.method=tokens+lora", "generate.method=diff-gen"]
ONE_STEP = ["backend.model=starter-onestep", "backend.steps=1", "backend.guidance_scale=1.0"]
COLUMNS = {  # recipe keys
    "base": DESCRIBED,  # the model as it is, told the species' descriptions
    "tokens": ["adapt.method=tokens", "generate.method=ti-gen"],
    "lora": ["adapt.method=lora", "generate.method=diff-gen"],
    "tokens+lora": LEARNED,
    "one-step-base": [*ONE_STEP, *DESCRIBED],
    "one-step": [*ONE_STEP, *LEARNED, "adapt.model=starter"],  # learned on the parent, carried over
    "one-step-distilled": [
        *ONE_STEP,
        *LEARNED,
        "adapt.model=starter",
        "adapt.distill.pairs=512",
    ],  # and taught what it draws
    "one-step-last": [*ONE_STEP, *LEARNED, "adapt.timesteps=last"],  # DasDiff's rule
}


def make_judge(folder: Path, data: str, overrides: list[str]):
    """((net, about), its accuracy in per cent): 500 images a species, or all of other data, trained by variegate itself."""
    from variegate.api import run
    from variegate.classifier.models import load_classifier

    keys = ["dataset.meadow.n_per_species=500"] if data == MEADOW else []
    keys += ["train.steps=1500", "train.batch=48", "train.lr=0.005"]
    keys += ["evaluate.seeds=1", "train.evaluations=5"]
    keys += [key for key in overrides if key.startswith("dataset.")]
    result = run(data, "none", folder, overrides=keys)
    accuracy = round(100 * result.results["arms"][0]["seeds"][0]["selected"]["test_accuracy"], 1)
    return load_classifier(folder / "train/real/seed-0/model.safetensors"), accuracy


def share_right(run_folder: Path, judge) -> float:
    """Share of drawn images of which the judge names the target class."""
    import torch

    from variegate.images import load_squares
    from variegate.store import RunFolder

    net, about = judge

    with RunFolder.read(run_folder) as folder:
        images = folder.synthetic_images(kept_only=False)
        pixels = load_squares([folder.path(image.path) for image in images], about["size_px"])
    scaled = (pixels / 255.0 - np.array(about["mean"])) / np.array(about["std"])
    with torch.inference_mode():
        named = net(torch.from_numpy(scaled).float().permute(0, 3, 1, 2)).argmax(1).numpy()
    return float(np.mean(named == np.array([image.target for image in images])))


# ------------------------------------------------------------------------------------------ few-shot accuracy

ADAPTED, BASELINES = ("diff-aug", "diff-mix"), ("real", "real+randaugment")
NOT_ASKED = ("trivialaugment", "mixup", "cutmix", "duplicated", "text-only", "best-classic")


def few_shot(options: argparse.Namespace, root: Path) -> dict:
    from variegate.api import compare

    found = compare(
        MEADOW,
        ADAPTED,
        draws=options.draws,
        shots=[SHOTS],
        skip=NOT_ASKED,
        overrides=options.overrides,
        workers=options.workers,
        out=options.keep or root / "few-shot",
    )
    return {**gains(found.folder, found.results["shots"][0]), "draws": options.draws, "overrides": options.overrides}


def gains(folder: Path, shots: dict) -> dict:
    """Accuracies, and what each adapted method gains over each baseline, in per cent and points; of a comparison's folder."""
    from variegate.comparison.outcomes import read_outcome
    from variegate.comparison.results import compare_methods
    from variegate.recipe_file import load_recipe

    outcomes, accuracy = {}, {}
    for method in (one for one in shots["methods"] if one["method"] in (*BASELINES, *ADAPTED)):
        home, name = folder / f"runs/shots-{shots['shots']}", method["method"]
        roots = [home / f"draw-{draw['draw']}" / method["run"] for draw in method["draws"]]
        arms = load_recipe(str(roots[0] / "recipe.yaml")).evaluate.arm_sections
        arm = next(arm for arm in arms if arm.name == method["arm"])
        outcomes[name] = [read_outcome(root, arm, len(method["draws"][0]["seeds"]), None) for root in roots]
        accuracy[name] = round(100 * method["selected"]["accuracy"], 1)
    answer: dict = {"accuracy_percent": accuracy, "gain_points": {}}
    for baseline in BASELINES:
        for name, entry in compare_methods(outcomes, baseline, ADAPTED).items():
            one = entry["selected"]
            points = {key: round(100 * one[key], 1) for key in ("difference", "low", "high")}
            answer["gain_points"][f"{name} over {baseline}"] = points | {"p_holm": round(one["p_holm"], 4)}
    return answer


if __name__ == "__main__":
    main()
