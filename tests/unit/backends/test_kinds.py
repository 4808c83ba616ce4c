"""Models that take more than noisy latents, masks, and sequences: the numbers of diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import learn, make_run, recipe_of

from variegate.backends.base import BackendSpec, check_model, evaluations, resolve_backend, with_adapter
from variegate.backends.diffusion import DiffusionBackend, _generator
from variegate.backends.folder import model_problems
from variegate.errors import ModelError
from variegate.recipe import AdaptSection, BackendSection, GenerateSection, Recipe

PROMPTS = ["a photo of a cat", "a photo of a dog", "red owl"]
SEEDS = [11, 12, 13]
EDGE = 32
ROUNDING = 0.6  # of 255: ours are rounded to whole levels
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' pipelines


def spec_of(model: Path, **changes: object) -> BackendSpec:
    values = {"dtype": "fp32", "device": "cpu", "steps": 6, "guidance_scale": 3.0, "threads": 1, **changes}
    return resolve_backend(BackendSection(model=str(model), **values))


@pytest.fixture
def opened() -> Iterator[Callable[[BackendSpec], DiffusionBackend]]:
    with ExitStack() as stack:
        yield lambda spec: stack.enter_context(DiffusionBackend.open(spec))


def pictures(count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, EDGE // 4, EDGE // 4, 1), np.uint8))


def blobs(count: int = 3) -> np.ndarray:
    """bool [N, S, S]: a rectangle somewhere else in each picture, not on the latents' grid."""
    masks = np.zeros((count, EDGE, EDGE), bool)
    for number in range(count):
        masks[number, 5 + number : 21 + number, 6 : 18 + 3 * number] = True
    return masks


def as_pil(pixels: np.ndarray) -> list:
    from PIL import Image

    return [Image.fromarray(one) for one in pixels]


def stock(name: str, backend: DiffusionBackend):  # noqa: ANN201
    """diffusers' pipeline over the backend's own parts."""
    import diffusers

    names = ["vae", "text_encoder", "tokenizer", "unet", "scheduler"]
    if "XL" in name:
        names, other = [*names, "text_encoder_2", "tokenizer_2"], {"force_zeros_for_empty_prompt": True}
    else:
        other = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**{part: getattr(backend.pipe, part) for part in names}, **other)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def common(scale: float = 3.0) -> dict:
    return {
        "prompt": PROMPTS,
        "negative_prompt": ["blurry"] * 3,
        "num_inference_steps": 6,
        "guidance_scale": scale,
        "output_type": "np",
        "generator": [_generator(seed, 0) for seed in SEEDS],
    }


def levels_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours / 255 - theirs).max() * 255)


# ------------------------------------------------------------------------------------------ edits by instruction


@pytest.mark.parametrize("scheduler", ["model", "dpm-solver++", "euler", "pndm"])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_edits_are_those_of_instruct_pix2pix(tiny_edit: Path, opened, scheduler: str, scale: float) -> None:
    backend = opened(spec_of(tiny_edit, scheduler=scheduler, guidance_scale=scale, image_guidance_scale=1.7))
    sources = backend.encode_sources(pictures())
    ours = backend.draw(PROMPTS, sources, strengths=[1.0] * 3, steps=6, seeds=SEEDS, negative="blurry")
    pipe = stock("StableDiffusionInstructPix2PixPipeline", backend)
    theirs = pipe(**common(scale), image=as_pil(pictures()), latents=backend.noise(SEEDS), image_guidance_scale=1.7)
    assert levels_apart(ours, theirs.images) < ROUNDING


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_edits_at_sdxls_layout_are_those_of_its_instruct_pix2pix(tiny_edit_xl: Path, opened, scale: float) -> None:
    backend = opened(spec_of(tiny_edit_xl, scheduler="ddim", guidance_scale=scale, image_guidance_scale=1.7))
    assert backend.facts.kind == "edit" and backend.facts.family == "sdxl"
    sources = backend.encode_sources(pictures())
    ours = backend.draw(PROMPTS, sources, strengths=[1.0] * 3, steps=6, seeds=SEEDS, negative="blurry")
    pipe = stock("StableDiffusionXLInstructPix2PixPipeline", backend)
    size = {"height": EDGE, "width": EDGE}
    theirs = pipe(
        **common(scale), **size, image=as_pil(pictures()), latents=backend.noise(SEEDS), image_guidance_scale=1.7
    )
    assert levels_apart(ours, theirs.images) < ROUNDING


def test_cosxls_editing_model_is_refused(tiny_edit_xl: Path, tmp_path: Path) -> None:
    """Its noise levels are others, and its image latents scaled: drawn with ours its edits would be noise."""
    folder = shutil.copytree(tiny_edit_xl, tmp_path / "cosxl")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"is_cosxl_edit": True}))
    (problem,) = model_problems(folder)
    assert "CosXL" in problem.what


def test_a_guided_edit_evaluates_three_at_a_time_and_counts_them(tiny_edit: Path, opened) -> None:
    spec, sizes = spec_of(tiny_edit, scheduler="ddim"), []
    backend = opened(spec)
    backend.pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape[:2])))
    backend.draw(PROMPTS, backend.encode_sources(pictures()), strengths=[1.0] * 3, steps=6, seeds=SEEDS)
    assert sizes == [(9, 8)] * 6
    assert evaluations(spec, 6).total == 18


def test_an_edit_follows_image_text_and_both_scales(tiny_edit: Path, opened) -> None:
    def edited(image: int, text: int, **changes: float) -> np.ndarray:
        backend = opened(spec_of(tiny_edit, **changes))
        source = backend.encode_sources(pictures()[image : image + 1])
        return backend.draw(PROMPTS[text : text + 1], source, strengths=[1.0], steps=6, seeds=[5]).astype(int)

    base = edited(0, 0)
    for other in (
        edited(1, 0),
        edited(0, 2),
        edited(0, 0, guidance_scale=7.0),
        edited(0, 0, image_guidance_scale=4.0),
    ):
        assert np.abs(base - other).max() > 1


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("scheduler", ["model", "dpm-solver++", "euler", "unipc"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["tiny_inpaint", "tiny_sd", "tiny_sdxl"])
def test_masks_are_those_of_diffusers_inpainting(
    request: pytest.FixtureRequest, opened, kind: str, strength: float, scheduler: str
) -> None:
    backend = opened(spec_of(request.getfixturevalue(kind), scheduler=scheduler))
    sources = backend.encode_sources(pictures())
    masked = backend.encode_sources(pictures(), blobs()) if kind == "tiny_inpaint" else None
    ours = backend.draw(
        PROMPTS, sources, strengths=[strength] * 3, steps=int(6 * strength), seeds=SEEDS, negative="blurry",
        repaint=blobs(), masked=masked,
    )  # fmt: skip
    pipe = stock(f"StableDiffusion{'XL' if kind == 'tiny_sdxl' else ''}InpaintPipeline", backend)
    pipe._encode_vae_image = lambda image, generator: (  # theirs samples; the mean of the same distribution here
        backend.pipe.vae.encode(image).latent_dist.mode() * backend.pipe.vae.config.scaling_factor
    )
    theirs = pipe(
        **common(), image=as_pil(pictures()), mask_image=as_pil(blobs().astype(np.uint8) * 255), strength=strength,
        height=EDGE, width=EDGE,
    )  # fmt: skip
    assert levels_apart(ours, theirs.images) < ROUNDING


def test_what_the_mask_keeps_is_the_source_at_the_end(tiny_sd: Path, opened) -> None:
    for steps in (6, 1):
        backend = opened(spec_of(tiny_sd, steps=steps, guidance_scale=1.0))
        sources = backend.encode_sources(pictures())
        whole = np.zeros((3, EDGE, EDGE), bool)
        kept = backend.draw(PROMPTS, sources, strengths=[0.8] * 3, steps=min(steps, 4), seeds=SEEDS, repaint=whole)
        assert np.abs(kept.astype(int) - backend.decode(sources)).max() <= 1
        free = backend.draw(PROMPTS, sources, strengths=[0.8] * 3, steps=min(steps, 4), seeds=SEEDS, repaint=~whole)
        plain = backend.draw(PROMPTS, sources, strengths=[0.8] * 3, steps=min(steps, 4), seeds=SEEDS)
        assert np.array_equal(free, plain)


def test_what_is_hidden_does_not_reach_an_inpainting_model(tiny_inpaint: Path, opened) -> None:
    backend = opened(spec_of(tiny_inpaint))
    other = np.where(blobs()[..., None], 255 - pictures(), pictures())
    first, second = (backend.encode_sources(pixels, blobs()) for pixels in (pictures(), other))
    assert torch.equal(first, second) and not torch.equal(first, backend.encode_sources(pictures()))


@pytest.mark.parametrize("kind", ["tiny_edit", "tiny_inpaint"])
def test_kinds_refuse_what_they_cannot_draw(request: pytest.FixtureRequest, opened, kind: str) -> None:
    backend = opened(spec_of(request.getfixturevalue(kind)))
    with pytest.raises(ValueError, match="cannot draw from this"):
        backend.draw(PROMPTS, None, strengths=[1.0] * 3, steps=6, seeds=SEEDS)


@pytest.mark.parametrize("kind", ["tiny_edit", "tiny_inpaint"])
def test_every_kind_describes_images(request: pytest.FixtureRequest, opened, kind: str) -> None:
    found = opened(spec_of(request.getfixturevalue(kind))).features(pictures())
    assert found.shape[0] == 3 and np.isfinite(found).all() and not np.allclose(found[0], found[1], atol=1e-3)


# ------------------------------------------------------------------------------------------ sequences


def test_a_sequence_is_one_pass_after_another_in_latents(tiny_sd: Path, opened) -> None:
    backend = opened(spec_of(tiny_sd, scheduler="ddim"))
    sources = backend.encode_sources(pictures())
    both = backend.draw(PROMPTS, sources, strengths=[0.5] * 3, steps=5, seeds=SEEDS, passes=(0.5, 1 / 3))
    first = {}
    decode, backend.decode = backend.decode, lambda latents: first.setdefault("latents", latents)
    backend.draw(PROMPTS, sources, strengths=[0.5] * 3, steps=3, seeds=SEEDS)
    backend.decode = decode
    noise, drawn = backend.noise, []
    backend.noise = lambda seeds, purpose=0: drawn.append(noise(seeds, purpose + 16)) or drawn[-1]
    second = backend.draw(PROMPTS, first["latents"], strengths=[1 / 3] * 3, steps=2, seeds=SEEDS)
    assert np.array_equal(both, second)
    assert not torch.equal(noise(SEEDS), drawn[0])  # each pass has noise of its own


def test_a_sequence_with_ancestral_noise_repeats_itself_and_is_no_single_pass(tiny_sd: Path, opened) -> None:
    backend = opened(spec_of(tiny_sd, scheduler="euler-a"))
    sources = backend.encode_sources(pictures())
    one, again = (
        backend.draw(PROMPTS, sources, strengths=[0.5] * 3, steps=6, seeds=SEEDS, passes=(0.5, 0.5)) for _ in range(2)
    )
    single = backend.draw(PROMPTS, sources, strengths=[0.5] * 3, steps=3, seeds=SEEDS)
    assert np.array_equal(one, again) and np.abs(one.astype(int) - single).max() > 1


# ------------------------------------------------------------------------------------------ which fits what


@pytest.mark.parametrize(
    ("kind", "generate", "where", "remedy"),
    [
        ("tiny_sd", {"method": "edit"}, "generate.method", "name a model of InstructPix2Pix shape"),
        ("tiny_inpaint", {"method": "edit"}, "generate.method", "use generate.method=real-aug"),
        ("tiny_edit", {"method": "real-aug"}, "generate.method", "use generate.method=edit"),
        ("tiny_edit", {"method": "real-gen"}, "generate.method", "use generate.method=edit"),
        ("tiny_inpaint", {"method": "real-aug"}, "generate.mask", "generate.mask=object or background"),
        ("tiny_inpaint", {"method": "real-gen"}, "generate.mask", "or a text-to-image model"),
    ],
)
def test_methods_that_do_not_fit_the_model_are_refused(
    request: pytest.FixtureRequest, kind: str, generate: dict, where: str, remedy: str
) -> None:
    model = request.getfixturevalue(kind)
    recipe = Recipe(backend=BackendSection(model=str(model)), generate=GenerateSection(**generate))
    with pytest.raises(ModelError) as caught:
        check_model(recipe)
    [problem] = caught.value.problems
    assert problem.where == where and remedy in problem.remedy and str(model) in problem.what


@pytest.mark.parametrize(
    ("kind", "generate"),
    [
        ("tiny_edit", {"method": "edit"}),
        ("tiny_inpaint", {"method": "real-aug", "mask": "object"}),
        ("tiny_sd", {"method": "real-aug", "mask": "background"}),
        ("tiny_sd", {"method": "real-mix", "mask": "object"}),
    ],
)
def test_methods_that_fit_are_let_through(request: pytest.FixtureRequest, kind: str, generate: dict) -> None:
    model = request.getfixturevalue(kind)
    check_model(Recipe(backend=BackendSection(model=str(model)), generate=GenerateSection(**generate)))


def test_teaching_an_inpainting_model_is_done_on_its_parent(tiny_sd: Path, tiny_inpaint: Path, tmp_path: Path) -> None:
    """What is learned on the text-to-image model of the same architecture acts in the inpainting one."""
    from variegate.stages.adapt.stage import check

    generate = GenerateSection(method="diff-aug", mask="object")
    backend = BackendSection(model=str(tiny_inpaint))
    with pytest.raises(
        ModelError, match="is a model of kind inpaint, which this cannot teach — name the text-to-image"
    ):
        check(Recipe(backend=backend, adapt=AdaptSection(method="lora"), generate=generate), [])
    check(Recipe(backend=backend, adapt=AdaptSection(method="lora", model=str(tiny_sd)), generate=generate), [])
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(tiny_sd, method="lora", vectors=1, rank=2, alpha=6.0, lr=0.05))
    base = spec_of(tiny_inpaint)
    images = []
    for spec in (base, with_adapter(base, tmp_path / "run/adapt", "all")):
        with DiffusionBackend.open(spec) as opened_with:
            sources, masked = (opened_with.encode_sources(pictures(), hidden) for hidden in (None, blobs()))
            options = {"strengths": [1.0] * 3, "steps": 6, "seeds": SEEDS, "repaint": blobs(), "masked": masked}
            images.append(opened_with.draw(PROMPTS, sources, **options).astype(int))
    assert np.abs(images[0] - images[1]).max() > 3


def test_an_edit_with_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="edit draws with the model as it is.*set adapt.method=none"):
        Recipe(adapt=AdaptSection(method="lora"), generate=GenerateSection(method="edit"))
