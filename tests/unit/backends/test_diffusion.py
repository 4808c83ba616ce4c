"""Drawing with random Stable Diffusion and SDXL models: the numbers diffusers gives, in batches that do not matter."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from variegate.backends.base import BackendSpec, evaluations, resolve_backend
from variegate.recipe import BackendSection

PROMPTS = ["a photo of a cat", "a photo of a dog", "red owl"]
SEEDS = [11, 12, 13]


def spec_of(model: Path, **changes: object) -> BackendSpec:
    values = {"dtype": "fp32", "device": "cpu", "steps": 6, "guidance_scale": 3.0, "threads": 1, **changes}
    return resolve_backend(BackendSection(model=str(model), **values))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pictures(count: int = 3, edge: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(
        rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), np.ones((1, edge // 4, edge // 4, 1), np.uint8)
    )


def levels_apart(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


@pytest.fixture(params=["tiny_sd", "tiny_sdxl"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def opened() -> Iterator:
    from contextlib import ExitStack

    from variegate.backends.diffusion import DiffusionBackend

    with ExitStack() as stack:
        yield lambda spec: stack.enter_context(DiffusionBackend.open(spec))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own pipelines, called here for comparison
@pytest.mark.parametrize("scheduler", ["model", "ddim", "dpm-solver++", "euler", "pndm", "unipc"])
def test_the_same_pictures_as_diffusers(model: Path, opened, scheduler: str) -> None:
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

    backend = opened(spec_of(model, scheduler=scheduler))
    latents = backend.encode_sources(pictures())
    noise = backend.noise(SEEDS)
    ours = backend.draw(PROMPTS, latents, strengths=[0.5] * 3, steps=3, seeds=SEEDS, negative="blurry")
    text_ours = backend.draw(PROMPTS, None, strengths=[1.0] * 3, steps=6, seeds=SEEDS, negative="blurry")
    extra = {} if backend.facts.family == "sdxl" else {"requires_safety_checker": False}
    common = {
        "prompt": PROMPTS,
        "negative_prompt": ["blurry"] * 3,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "output_type": "np",
    }
    pipe = AutoPipelineForImage2Image.from_pipe(backend._pipe, **extra)
    pipe.set_progress_bar_config(disable=True)
    from variegate.backends.diffusion import _generator

    theirs = pipe(**common, image=latents, strength=0.5, generator=[_generator(seed, 0) for seed in SEEDS]).images
    assert np.abs(ours / 255 - theirs).max() * 255 < 0.6
    pipe = AutoPipelineForText2Image.from_pipe(backend._pipe, **extra)
    pipe.set_progress_bar_config(disable=True)
    assert np.abs(text_ours / 255 - pipe(**common, latents=noise, height=32, width=32).images).max() * 255 < 0.6


@pytest.mark.parametrize("scheduler", ["dpm-solver++", "euler-a", "lcm"])
def test_neighbours_in_a_chunk_do_not_matter(model: Path, opened, scheduler: str) -> None:
    backend = opened(spec_of(model, scheduler=scheduler))
    latents = backend.encode_sources(pictures())
    together = backend.draw(PROMPTS, latents, strengths=[0.7] * 3, steps=4, seeds=SEEDS)
    again = backend.draw(PROMPTS, latents, strengths=[0.7] * 3, steps=4, seeds=SEEDS)
    alone = backend.draw(PROMPTS[1:2], latents[1:2], strengths=[0.7], steps=4, seeds=SEEDS[1:2])
    assert np.array_equal(together, again)
    assert levels_apart(together[1:2], alone) <= 1
    other = backend.draw(PROMPTS[1:2], latents[1:2], strengths=[0.7], steps=4, seeds=[99])
    assert levels_apart(other, alone) > 1


def test_without_guidance_the_unet_runs_once_a_step_and_half_as_wide(tiny_sd: Path, opened) -> None:
    sizes: list[int] = []
    for scale in (1.0, 3.0):
        backend = opened(spec_of(tiny_sd, guidance_scale=scale, scheduler="ddim"))
        backend._pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
        backend.draw(PROMPTS, backend.encode_sources(pictures()), strengths=[0.5] * 3, steps=3, seeds=SEEDS)
    assert sizes == [3, 3, 3, 6, 6, 6]


@pytest.mark.parametrize(
    ("scheduler", "own", "extra"),
    [
        ("ddim", {}, 0),
        ("dpm-solver++", {"_class_name": "PNDMScheduler", "skip_prk_steps": True}, 0),
        ("model", {"_class_name": "PNDMScheduler", "skip_prk_steps": True}, 1),
        ("model", {"_class_name": "PNDMScheduler"}, 9),
        ("pndm", {"skip_prk_steps": True}, 1),
    ],
)
def test_the_counted_evaluations_are_those_that_happen(
    tiny_sd: Path, tmp_path: Path, opened, scheduler: str, own: dict, extra: int
) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "own-scheduler")
    edit(model / "scheduler" / "scheduler_config.json", **own)
    edit(model / "model_index.json", scheduler=["diffusers", own.get("_class_name", "DDIMScheduler")])
    spec = spec_of(model, scheduler=scheduler, guidance_scale=1.0)
    backend, calls = opened(spec), []
    backend._pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    backend.draw(PROMPTS[:1], None, strengths=[1.0], steps=6, seeds=SEEDS[:1])
    assert len(calls) == evaluations(spec, 6).total == 6 + extra
    calls.clear()
    backend.draw(PROMPTS[:1], backend.encode_sources(pictures(1)), strengths=[0.5], steps=3, seeds=SEEDS[:1])
    assert len(calls) == evaluations(spec, 3).total == 3 + extra


def test_one_step_starts_from_the_noise_level_that_strength_names(model: Path, opened) -> None:
    backend = opened(spec_of(model, steps=1, guidance_scale=0.0))
    asked: list[list[int]] = []
    backend._pipe.unet.register_forward_pre_hook(lambda _module, args: asked.append(args[1].tolist()))
    latents = backend.encode_sources(pictures())
    mixed = backend.draw(PROMPTS, latents, strengths=[0.01, 0.5, 1.0], steps=1, seeds=SEEDS)
    assert asked == [[9, 499, 999]]
    decoded = backend.decode(latents)
    distances = [np.abs(mixed[k].astype(int) - decoded[k]).mean() for k in range(3)]
    assert distances[0] < min(distances[1:])
    backend.draw(PROMPTS, None, strengths=[1.0] * 3, steps=1, seeds=SEEDS)
    assert asked[-1] == [999] * 3


def test_a_prompt_is_encoded_once_and_alone(model: Path, opened) -> None:
    backend = opened(spec_of(model))
    sizes: list[int] = []
    backend._pipe.text_encoder.register_forward_pre_hook(
        lambda _module, args, kwargs: sizes.append(len((args or [kwargs["input_ids"]])[0])), with_kwargs=True
    )
    for _ in range(2):
        backend.draw(PROMPTS, None, strengths=[1.0] * 3, steps=6, seeds=SEEDS, negative="blurry")
    texts = 4 if backend.facts.family == "sd" else 5  # SDXL's code encodes an empty text beside the negative one
    assert sizes == [1] * texts


def test_no_more_embeddings_are_kept_than_a_device_can_hold(
    tiny_sd: Path, opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.backends import diffusion

    options = {"strengths": [1.0] * 3, "steps": 6, "seeds": SEEDS}
    whole = opened(spec_of(tiny_sd)).draw(PROMPTS, None, **options)
    monkeypatch.setattr(diffusion, "KEPT_TEXTS", 1)
    backend = opened(spec_of(tiny_sd))
    assert np.array_equal(backend.draw(PROMPTS, None, **options), whole)
    assert len(backend._texts) == 1


def test_half_precision_draws_nearly_the_same(tiny_sd: Path, opened) -> None:
    full, half = (opened(spec_of(tiny_sd, dtype=dtype)) for dtype in ("fp32", "bf16"))
    images = [
        b.draw(PROMPTS, b.encode_sources(pictures()), strengths=[0.5] * 3, steps=3, seeds=SEEDS) for b in (full, half)
    ]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).mean() < 4


def test_features_describe_each_image_alone(model: Path, opened) -> None:
    backend = opened(spec_of(model))
    found = backend.features(pictures(5), batch=2)
    assert found.dtype == np.float32 and found.shape[0] == 5 and np.isfinite(found).all()
    assert np.allclose(found[3:4], backend.features(pictures(5)[3:4]), atol=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_nothing_is_printed_and_settings_come_back(
    model: Path, opened, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import torch

    threads, level = torch.get_num_threads(), logging.getLogger("diffusers").level
    from variegate.backends.diffusion import DiffusionBackend

    with DiffusionBackend.open(spec_of(model)) as backend:
        backend.draw(PROMPTS[:1], None, strengths=[1.0], steps=6, seeds=[1])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert (torch.get_num_threads(), logging.getLogger("diffusers").level) == (threads, level)


def test_wrong_picture_sizes_are_refused(tiny_sd: Path, opened) -> None:
    with pytest.raises(ValueError, match=r"should be uint8 \[N, 32, 32, 3\]"):
        opened(spec_of(tiny_sd)).encode_sources(pictures(edge=16))
