"""Train the starter model from nothing (or from existing weights) and export it as a diffusers folder.

    python tools/train_starter.py all --work WORK          every stage: about 2 h on two CPU cores
    python tools/train_starter.py unet --work WORK         one stage; the ones before it must have run
    python tools/train_starter.py latents --work WORK --init src/variegate/backends/starter     instead of the autoencoder's
                                                           stage, to train an exported U-Net on: then unet --init, export
    python tools/train_starter.py pairs --work WORK        what the exported starter makes of noised latents
    python tools/train_starter.py student --work WORK      the one-step starter, taught by those pairs
    python tools/train_starter.py pair --work WORK         the image-text pair, on the same pictures
    python tools/train_starter.py grid                     pictures of what the exported starters draw
    python tools/train_starter.py all --work PHOTOS --images PARQUET --init src/variegate/backends/starter \\
        --out FOLDER --device cuda                         a version for photos, captions "a photo of a NAME"

The same command continues after a kill. Time budgets are wall clock and count across restarts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: one busy neighbour would slow it tenfold otherwise
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the network

REPOSITORY = Path(__file__).resolve().parent.parent
STARTER = REPOSITORY / "src" / "variegate" / "backends" / "starter"
ONE_STEP = STARTER.with_name("starter-onestep")
PAIR = STARTER.with_name("starter-clip")
STAGES = ("data", "autoencoder", "unet", "decoder", "export")
DISTILLING = ("pairs", "student")  # after `all`, from the exported starter and the latents of WORK
TOKENIZER_CAPTIONS = 20_000
REBUILT = 24_000  # pictures that the pair sees through the autoencoder as well


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", *STAGES, "latents", *DISTILLING, "pair", "grid"))
    parser.add_argument(
        "--work", type=Path, default=Path("work/starter"), help="pictures and checkpoints (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="the exported folder (the package's own by default)")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PARQUET",
        help="train on photos: files or folders of Parquet with image bytes and a name column",
    )
    parser.add_argument("--init", type=Path, metavar="FOLDER", help="start from the weights of an exported folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--minutes",
        type=float,
        help="budget of the stage (autoencoder 20, unet 70, decoder 12, pairs 15, student 25, pair 25)",
    )
    parser.add_argument("--rate", type=float, help="peak learning rate of unet (8e-4; about 5e-4 to train on)")
    parser.add_argument("--compile", action="store_true", help="unet: compile the model, a C++ compiler is needed")
    parser.add_argument(
        "--preview-every",
        type=float,
        default=20,
        metavar="MIN",
        help="sample grid and export during unet (%(default)s)",
    )
    parser.add_argument(
        "--species", type=int, default=32_000, help="butterfly species to draw, three pictures each (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=64, help="edge of the pictures, px (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (%(default)s)")
    parser.add_argument(
        "--docs", type=Path, default=REPOSITORY / "docs" / "img", help="where `grid` writes (%(default)s)"
    )
    options = parser.parse_args(arguments)
    default = ONE_STEP if options.stage in DISTILLING else PAIR if options.stage == "pair" else STARTER
    options.out = options.out or default
    if options.size % 32:
        parser.error(
            f"--size is {options.size}, should be a multiple of 32 (three levels on latents of a quarter of it)"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    stages = {
        "data": make_data,
        "autoencoder": make_autoencoder,
        "latents": make_latents,
        "unet": make_unet,
        "decoder": make_decoder,
        "export": make_export,
        "pairs": make_pairs,
        "student": make_student,
        "pair": make_pair,
        "grid": make_grids,
    }
    for stage in STAGES if options.stage == "all" else (options.stage,):
        stages[stage](options)
    return 0


def make_data(options: argparse.Namespace) -> None:
    from starter.data import draw_shards, read_parquet_shards

    folder = options.work / "data"
    if options.images:
        read_parquet_shards(folder, options.images, size_px=options.size)
    else:
        draw_shards(
            folder,
            num_species=options.species,
            per_species=3,
            size_px=options.size,
            seed=options.seed,
            workers=options.threads,
        )


def make_autoencoder(options: argparse.Namespace) -> None:
    import torch
    from starter.autoencoder import MAX_ENCODED, encode_all, train_autoencoder
    from starter.data import load_pictures

    torch.set_num_threads(options.threads)
    pictures = load_pictures(options.work / "data")
    model = train_autoencoder(
        pictures,
        options.work,
        minutes=options.minutes or 20,
        device=options.device,
        seed=options.seed,
        init=options.init,
    )
    latents = encode_all(model, pictures.images[:MAX_ENCODED], options.device)
    mean, std = float(latents.float().mean()), float(latents.float().std())
    model.register_to_config(scaling_factor=1 / std)  # the pipelines multiply by this, so latents have unit deviation
    print(f"autoencoder: latents' mean {mean:.3f}, deviation {std:.3f}", flush=True)
    _save_latents(model, latents, options.work)


def make_latents(options: argparse.Namespace) -> None:
    """Encode the pictures by the autoencoder of `--init`, as it is: its U-Net goes on where it was."""
    import torch
    from starter.autoencoder import MAX_ENCODED, encode_all
    from starter.data import load_pictures
    from starter.export import load_parts

    torch.set_num_threads(options.threads)
    vae = load_parts(options.init or STARTER)[0].to(options.device).eval()
    pictures = load_pictures(options.work / "data")
    _save_latents(vae, encode_all(vae, pictures.images[:MAX_ENCODED], options.device), options.work)


def make_unet(options: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file
    from starter.data import load_pictures
    from starter.export import export_folder
    from starter.pictures import FREE_PROMPTS, prompt_grid, save, unseen_prompts
    from starter.unet import PEAK_RATE, build_scheduler, train_denoiser

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pictures = load_pictures(options.work / "data")
    items = pictures.items
    latents = load_file(options.work / "latents.safetensors")["latents"]
    vae = AutoencoderKL.from_pretrained(options.work / "vae").float()
    denoiser = _denoiser(options, items, latents.shape[-1])

    def preview(denoiser, num_images: int) -> None:
        from starter.export import assemble

        size_mb = export_folder(vae, denoiser, build_scheduler(), options.out)
        print(f"unet: exported {size_mb:.1f} MB after {num_images} images", flush=True)
        prompts = list(FREE_PROMPTS) + unseen_prompts(4) if not options.images else _photo_prompts(items)
        with torch.autocast("cpu", torch.bfloat16):
            sheet = prompt_grid(assemble(vae, denoiser, build_scheduler()), prompts, columns=4)
        save(sheet, options.work / f"preview-{num_images:08d}.png")

    if not (options.work / "unet.safetensors").exists():
        export_folder(vae, denoiser, build_scheduler(), options.out)  # loads from the first minute on
    final = train_denoiser(
        denoiser,
        latents,
        items,
        pictures.marks,
        options.work,
        minutes=options.minutes or 70,
        peak_rate=options.rate or PEAK_RATE,
        compiled=options.compile,
        device=options.device,
        seed=options.seed,
        preview_every_min=options.preview_every,
        preview=preview,
    )
    preview(final, 10**8 - 1)


def make_decoder(options: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file
    from starter.autoencoder import polish_decoder
    from starter.data import load_pictures

    torch.set_num_threads(options.threads)
    pictures = load_pictures(options.work / "data")
    vae = AutoencoderKL.from_pretrained(options.work / "vae")
    latents = load_file(options.work / "latents.safetensors")["latents"][: len(pictures.images)]
    latents = latents / vae.config.scaling_factor
    minutes = options.minutes or 12
    polish_decoder(
        vae, pictures, latents, options.work, minutes=minutes, device=options.device, seed=options.seed
    ).save_pretrained(options.work / "vae")


def make_export(options: argparse.Namespace) -> None:
    from diffusers import AutoencoderKL
    from starter.data import load_pictures
    from starter.export import export_folder
    from starter.training import load_checkpoint
    from starter.unet import averaged, build_scheduler

    parts, facts = load_checkpoint(options.work / "unet.safetensors")
    items = load_pictures(options.work / "data").items
    vae = AutoencoderKL.from_pretrained(options.work / "vae").float()
    denoiser = averaged(_denoiser(options, items, options.size // 4), parts["average"])
    size_mb = export_folder(vae, denoiser, build_scheduler(), options.out)
    print(f"export: {size_mb:.1f} MB in {options.out}, {facts}")


def make_pairs(options: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file
    from starter.data import load_pictures
    from starter.distill import draw_pairs
    from starter.export import load_parts

    torch.set_num_threads(options.threads)
    teacher = load_parts(options.init or STARTER)[1]
    latents = load_file(options.work / "latents.safetensors")["latents"]
    items = load_pictures(options.work / "data").items
    draw_pairs(
        teacher, latents, items, options.work, minutes=options.minutes or 15, device=options.device, seed=options.seed
    )


def make_student(options: argparse.Namespace) -> None:
    import torch
    from starter.distill import LEVELS, train_student
    from starter.export import export_folder, load_parts
    from starter.unet import build_scheduler

    torch.set_num_threads(options.threads)
    vae, student = load_parts(options.init or STARTER)

    def preview(student, num_images: int) -> None:
        size_mb = export_folder(vae, student, build_scheduler(), options.out, noise_levels=LEVELS)
        print(f"student: exported {size_mb:.1f} MB after {num_images} images", flush=True)

    final = train_student(
        student,
        options.work,
        minutes=options.minutes or 25,
        device=options.device,
        seed=options.seed,
        preview_every_min=options.preview_every,
        preview=preview,
    )
    preview(final, 10**8 - 1)


def make_pair(options: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file
    from starter.autoencoder import decode_all
    from starter.data import load_pictures
    from starter.export import load_parts
    from starter.pair import build_pair, export_pair, train_pair, unseen_accuracy

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pictures = load_pictures(options.work / "data")
    vae, denoiser = load_parts(options.init or STARTER)
    latents = load_file(options.work / "latents.safetensors")["latents"][:REBUILT]
    rebuilt = decode_all(vae, latents, options.device)

    def preview(model, num_images: int) -> None:
        size_mb = export_pair(model, denoiser.tokenizer, options.out)
        right = unseen_accuracy(model, denoiser.tokenizer)
        print(
            f"pair: exported {size_mb:.1f} MB after {num_images} images, {right:.1f} % of unseen species right",
            flush=True,
        )

    final = train_pair(
        build_pair(denoiser.tokenizer),
        denoiser.tokenizer,
        pictures,
        rebuilt,
        options.work,
        minutes=options.minutes or 25,
        device=options.device,
        seed=options.seed,
        preview_every_min=options.preview_every,
        preview=preview,
    )
    preview(final, 10**8 - 1)


def make_grids(options: argparse.Namespace) -> None:
    import torch
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
    from starter.pictures import FREE_PROMPTS, meadow_banner, prompt_grid, save, strength_grid, unseen_prompts

    torch.set_num_threads(options.threads)
    save(meadow_banner(), options.docs / "meadow.png")
    pipeline = StableDiffusionPipeline.from_pretrained(options.out)
    # fresh noise at every step mends shapes that DDIM keeps: rounder wings, more often two alike
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    with torch.autocast("cpu", torch.bfloat16):
        save(
            prompt_grid(pipeline, [*FREE_PROMPTS, *unseen_prompts(4)], columns=8), options.docs / "starter-prompts.webp"
        )
        save(strength_grid(pipeline, num=8), options.docs / "starter-strengths.webp")


def _save_latents(vae, latents, work: Path) -> None:
    """The autoencoder and its scaled latents, float16 [N, 4, h, w], as the later stages look for them."""
    from safetensors.torch import save_file

    vae.save_pretrained(work / "vae")
    temporary = work / "latents.partial"
    save_file({"latents": (latents.float() * vae.config.scaling_factor).half()}, temporary)
    temporary.replace(work / "latents.safetensors")


def _denoiser(options: argparse.Namespace, items: list, sample_size: int):
    """Fresh parts with a tokenizer learned on the captions, or the parts of `--init`."""
    import numpy as np
    from starter.captions import random_caption
    from starter.export import load_parts
    from starter.tokenizer import train_tokenizer
    from starter.unet import build_denoiser
    from transformers import CLIPTokenizer

    from variegate.stages.dataset.meadow import meadow_names

    if options.init:
        return load_parts(options.init)[1]
    saved = options.work / "tokenizer"  # a resumed run must not learn another one
    if saved.exists():
        return build_denoiser(CLIPTokenizer.from_pretrained(saved), sample_size)
    rng = np.random.default_rng([options.seed, 5])
    captions = [random_caption(items[index], rng) for index in rng.integers(len(items), size=TOKENIZER_CAPTIONS)]
    names = [name for seed in range(20) for name in meadow_names(40, seed)]  # the invented names' syllables
    tokenizer = train_tokenizer(captions + names)
    tokenizer.save_pretrained(saved)
    return build_denoiser(tokenizer, sample_size)


def _photo_prompts(items: list) -> list[str]:
    names = sorted({item.name for item in items})
    return [f"a photo of a {name}" for name in names[:: max(1, len(names) // 10)][:10]]


if __name__ == "__main__":
    sys.exit(main())
