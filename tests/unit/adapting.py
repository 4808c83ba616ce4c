"""What tests of adapting share: a run of a few small pictures, its recipe, a trainee on a tiny model, stages run by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from variegate.backends.adapter import LORA, TOKENS, placeholder
from variegate.backends.base import BackendSpec, resolve_backend, with_adapter
from variegate.backends.diffusion import DiffusionBackend
from variegate.files import file_sha256
from variegate.images import encode_image
from variegate.pipeline import Context
from variegate.progress import EventLog, QuietReporter
from variegate.recipe import AdaptSection, BackendSection, EvaluateSection, GenerateSection, PromptsSection, Recipe
from variegate.records import ClassInfo, RealImage, content_id
from variegate.stages.adapt import stage
from variegate.stages.adapt.fit import Fit, Views
from variegate.stages.adapt.sampling import image_weights
from variegate.stages.adapt.trainee import Trainee
from variegate.store import RunFolder

NAMES = ("cat", "dog", "red_owl")
SPLITS = {"train": 3, "val": 2, "test": 2}  # images a class
BACKEND = {"dtype": "fp32", "device": "cpu", "threads": 1, "steps": 2, "guidance_scale": 1.0, "batch": 8}
ADAPT = {
    "method": "tokens+lora",
    "steps": 4,
    "batch": 4,
    "rank": 2,
    "lr": 1e-2,
    "token_lr": 1e-2,
    "evaluations": 0,
    "previews": 0,
    "checkpoints": 1,
}


def recipe_of(model: Path | str, /, *, backend: dict | None = None, generate: dict | None = None,
              prompts: dict | None = None, seed: int = 0, **adapt: object) -> Recipe:  # fmt: skip
    section = AdaptSection(**{**ADAPT, **adapt})
    strategy = {"none": "real-gen", "tokens": "ti-gen"}.get(section.method, "diff-gen")
    return Recipe(
        seed=seed,
        backend=BackendSection(model=str(model), **{**BACKEND, **(backend or {})}),
        adapt=section,
        prompts=PromptsSection(**(prompts or {})),
        generate=GenerateSection(**{"method": strategy, "per_class": 1, **(generate or {})}),
        evaluate=EvaluateSection(arms=["real"]),
    )


def picture(label: int, index: int) -> np.ndarray:
    """uint8 [40, 36, 3]: coarse noise, its own for every image."""
    rng = np.random.default_rng([label, index])
    return np.kron(rng.integers(0, 256, (10, 9, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))


def make_run(
    root: Path, names: Sequence[str] = NAMES, splits: dict[str, int] = SPLITS, *, masks: bool = False
) -> RunFolder:
    """A run folder as the dataset stage leaves it; the same pictures every time."""
    folder, images = RunFolder.create(root), []
    for label in range(len(names)):
        for number, (split, count) in enumerate(splits.items()):
            for k in range(count):
                name = f"dataset/{split}-{label}-{k}.png"
                path = folder.write(name, encode_image(picture(label, 10 * number + k), "png"))
                mask = None
                if masks:
                    mask = f"dataset/{split}-{label}-{k}-mask.png"
                    half = np.zeros((40, 36, 3), np.uint8)
                    half[:, :18] = 255
                    folder.write(mask, encode_image(half, "png"))
                known = {
                    "group": ("meadow", "wood")[k % 2],
                    "caption": f"{split} caption {k}",
                    "mask": mask and str(root / mask),
                }
                images.append(
                    RealImage(content_id(split, label, k), name, label, split, sha256=file_sha256(path), **known)
                )
    folder.put_dataset([ClassInfo(k, name, f"{k:04d}") for k, name in enumerate(names)], images)
    return folder


def put_bytes(folder: RunFolder, split: str) -> None:
    """Other bytes for every image of a split, recorded as the dataset stage would."""
    images = []
    for image in folder.real_images():
        relative = str(Path(image.path).relative_to(folder.root))
        sha256 = image.sha256
        if image.split == split:
            pixels = 255 - picture(image.label, int(relative.split("-")[-1][0]))
            sha256 = file_sha256(folder.write(relative, encode_image(pixels, "png")))
        images.append(
            RealImage(image.id, relative, image.label, image.split, image.group, image.caption, sha256=sha256)
        )
    folder.put_dataset(folder.classes(), images)


def learn(folder: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """The adapt stage; events go to events.jsonl."""
    events = EventLog(folder.root / "events.jsonl")
    try:
        return stage.run(Context(recipe, folder, QuietReporter(events)))
    finally:
        events.close()


def weights(root: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an adapter, by file and name."""
    folder = root / "adapt"
    return {
        f"{name}/{key}": value
        for name in (*TOKENS, LORA)
        if (folder / name).is_file()
        for key, value in load_file(folder / name).items()
    }


def file_bytes(root: Path) -> dict[str, bytes]:
    """The weight files of an adapter."""
    return {path.name: path.read_bytes() for path in sorted((root / "adapt").glob("*.safetensors"))}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def spec_of(model: Path | str, adapter: Path | None = None, parts: str = "all", **backend: object) -> BackendSpec:
    spec = resolve_backend(BackendSection(model=str(model), **{**BACKEND, **backend}))
    return with_adapter(spec, adapter, parts) if adapter else spec  # type: ignore[arg-type]


def draw(spec: BackendSpec, prompts: Sequence[str], seeds: Sequence[int] = (1, 2, 3), **options: object) -> np.ndarray:
    with DiffusionBackend.open(spec) as backend:
        return draw_with(backend, prompts, seeds, **options)


def draw_with(backend: DiffusionBackend, prompts: Sequence[str], seeds: Sequence[int], **options: object) -> np.ndarray:
    steps = backend.spec.steps
    return backend.draw(
        prompts, None, strengths=[1.0] * len(prompts), steps=steps, seeds=seeds[: len(prompts)], **options
    )


@contextmanager
def trainee_of(model: Path, *, backend: dict | None = None, seed: int = 3, words: Sequence[str] = ("cat", "dog", "red owl"),
               **adapt: object) -> Iterator[Trainee]:  # fmt: skip
    section = AdaptSection(**{**ADAPT, **adapt})
    placeholders = [placeholder(k) for k in range(len(words))] if section.has_tokens else []
    with DiffusionBackend.open(spec_of(model, **(backend or {}))) as opened:
        yield Trainee(opened, section, placeholders, words, seed)


def views_of(trainee: Trainee, *, count: int = 6, num_views: int = 2, masks: torch.Tensor | None = None) -> Views:
    """Random latents, captioned with the trainee's classes in turn."""
    shape = (
        count,
        num_views,
        trainee.backend.facts.latent_channels,
        trainee.backend.latent_px,
        trainee.backend.latent_px,
    )
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5)).half()
    words = trainee.placeholders or NAMES
    labels = [k % len(words) for k in range(count)]
    captions = [[f"a photo of a {words[label]}", f"{words[label]} in snow"] for label in labels]
    return Views(latents, captions, image_weights(labels, 1.0), masks)


def fit_of(trainee: Trainee, views: Views | None = None, **options: Any) -> Fit:
    values = {"held_out": None, "prior": None, "seed": 11, **options}
    return Fit(trainee, trainee.section, views or views_of(trainee), **values)


def values_of(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainee.named_parameters().items()}
