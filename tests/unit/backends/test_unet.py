"""Another U-Net in a model's place: erased, distilled or fine-tuned; one-step drawing with it, and a LoRA on top."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import draw, learn, make_run, recipe_of
from safetensors.torch import load_file, save_file
from tiny_models import build_edit, build_sd

from variegate.backends.base import BackendSpec, check_model, resolve_backend, spec_id, with_adapter
from variegate.backends.diffusion import DiffusionBackend
from variegate.backends.folder import model_fingerprint, read_model
from variegate.errors import ModelError
from variegate.importers import import_artefact
from variegate.recipe import BackendSection, GenerateSection, Recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPTS = ["a photo of a cat", "red owl"]


def spec_of(model: Path, unet: Path | None = None, **changes: object) -> BackendSpec:
    values = {"dtype": "fp32", "device": "cpu", "steps": 4, "guidance_scale": 1.0, "threads": 1, **changes}
    return resolve_backend(BackendSection(model=str(model), unet=str(unet) if unet else None, **values))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def apart(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model like tiny_sd with other weights; its unet/ is what takes the place of tiny_sd's."""
    return build_sd(tmp_path_factory.mktemp("other") / "model", seed=7)


@pytest.fixture
def merged(tiny_sd: Path, other: Path, tmp_path: Path) -> Path:
    """tiny_sd with the other's U-Net put into the folder by hand."""
    folder = shutil.copytree(tiny_sd, tmp_path / "merged")
    shutil.copyfile(other / "unet" / WEIGHTS, folder / "unet" / WEIGHTS)
    return folder


def test_a_unet_folder_or_file_draws_as_if_it_lay_in_the_model(tiny_sd: Path, other: Path, merged: Path) -> None:
    expected = draw(spec_of(merged), PROMPTS)
    assert np.array_equal(draw(spec_of(tiny_sd, other / "unet"), PROMPTS), expected)
    assert np.array_equal(draw(spec_of(tiny_sd, other / "unet" / WEIGHTS), PROMPTS), expected)
    assert apart(draw(spec_of(tiny_sd), PROMPTS), expected) > 3


def test_a_file_of_some_weights_leaves_the_others_to_the_model(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    """Concept erasure (ESD-x) trains and saves the cross-attention alone."""
    erased = {key: value for key, value in load_file(other / "unet" / WEIGHTS).items() if ".attn2." in key}
    save_file(erased, tmp_path / "erased.safetensors")
    by_hand = shutil.copytree(tiny_sd, tmp_path / "by-hand")
    save_file(load_file(tiny_sd / "unet" / WEIGHTS) | erased, by_hand / "unet" / WEIGHTS, metadata={"format": "pt"})
    found = draw(spec_of(tiny_sd, tmp_path / "erased.safetensors"), PROMPTS)
    assert np.array_equal(found, draw(spec_of(by_hand), PROMPTS))
    assert apart(found, draw(spec_of(tiny_sd), PROMPTS)) > 0


def test_the_unet_is_part_of_what_the_model_is(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    plain, folder, file = (spec_of(tiny_sd, unet) for unet in (None, other / "unet", other / "unet" / WEIGHTS))
    assert len({spec_id(spec) for spec in (plain, folder, file)}) == 3
    moved = shutil.copytree(other / "unet", tmp_path / "moved")
    assert model_fingerprint(tiny_sd, moved) == model_fingerprint(tiny_sd, other / "unet")
    values = load_file(moved / WEIGHTS)
    values["conv_out.bias"] += 0.1
    save_file(values, moved / WEIGHTS)
    assert model_fingerprint(tiny_sd, moved) != model_fingerprint(tiny_sd, other / "unet")


def test_stages_notice_another_unet_under_the_same_name(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    from variegate.recipe import Recipe
    from variegate.stages.prompts.stage import inputs

    unet = shutil.copytree(tiny_sd / "unet", tmp_path / "unet")
    recipe = Recipe.model_validate({"backend": {"model": str(tiny_sd), "unet": str(unet)}})
    before = inputs(recipe)
    shutil.copytree(other / "unet", unet, dirs_exist_ok=True)
    assert inputs(recipe) != before


def test_a_unet_brings_its_own_kind(tiny_sd: Path, tmp_path: Path) -> None:
    edits = build_edit(tmp_path / "edits", seed=3)
    assert spec_of(tiny_sd, edits / "unet").kind == "edit"
    with pytest.raises(ModelError, match="shapes that differ: conv_in.weight"):
        spec_of(tiny_sd, edits / "unet" / WEIGHTS)  # no config.json says that it takes 8 channels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values | {"up_blocks.9.extra": torch.zeros(2)}, "1 keys that the model's U-Net has not: up_bl"),
        (lambda values: values | {"conv_out.bias": torch.zeros(5)}, r"1 shapes that differ: conv_out.bias \[5\]"),
        (lambda values: {k: v for k, v in values.items() if k != "conv_out.bias"}, "1 keys missing: conv_out.bias"),
    ],
)
def test_every_weight_has_to_fit_before_anything_slow(
    tiny_sd: Path, other: Path, tmp_path: Path, change: Callable[[dict], dict], message: str
) -> None:
    unet = shutil.copytree(other / "unet", tmp_path / "unet")
    save_file(change(load_file(unet / WEIGHTS)), unet / WEIGHTS)
    recipe = Recipe(backend=BackendSection(model=str(tiny_sd), unet=str(unet)))
    with pytest.raises(ModelError, match=message):
        check_model(recipe)


def test_what_is_no_unet_is_refused_with_the_way_out(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    (tmp_path / "esd.pt").write_bytes(b"PK\x03\x04")
    for unet, message in (
        (tmp_path / "esd.pt", "is a pickle.*variegate import .*esd.pt --out FOLDER"),
        (other, "is a whole model — did you mean .*unet"),
        (tmp_path / "nowhere", "is neither a U-Net folder"),
    ):
        with pytest.raises(ModelError, match=message):
            spec_of(tiny_sd, unet)


def test_an_imported_pickle_draws_as_the_unet_it_holds(tiny_sd: Path, merged: Path, tmp_path: Path) -> None:
    values = load_file(merged / "unet" / WEIGHTS)
    torch.save(values, tmp_path / "diffusers-VanGogh-ESDu1-UNET.pt")
    record = import_artefact(tmp_path / "diffusers-VanGogh-ESDu1-UNET.pt", tmp_path / "out", base=str(tiny_sd))
    assert record["kind"] == "unet" and record["facts"]["weights"] == len(values)
    assert f"backend.unet={tmp_path / 'out'}/unet.safetensors" in record["next"]
    assert np.array_equal(
        draw(spec_of(tiny_sd, tmp_path / "out/unet.safetensors"), PROMPTS), draw(spec_of(merged), PROMPTS)
    )


def test_a_pickle_with_a_key_too_many_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    values = load_file(tiny_sd / "unet" / WEIGHTS)
    torch.save(values | {"optimizer.step": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="1 keys not understood in a diffusers U-Net: optimizer.step"):
        import_artefact(tmp_path / "a.pt", base=str(tiny_sd))
    torch.save(values | {"conv_in.weight": torch.ones(3, 4, 3, 3)}, tmp_path / "b.pt")
    with pytest.raises(ModelError, match="shapes that differ: conv_in.weight"):
        import_artefact(tmp_path / "b.pt", base=str(tiny_sd))


# ------------------------------------------------------------------------------------------ one step


def turbo(folder: Path, tiny: Path, prediction: str = "epsilon") -> Path:
    model = shutil.copytree(tiny, folder / "sd-turbo")
    edit(model / "scheduler" / "scheduler_config.json", prediction_type=prediction)
    return model


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["model", "euler", "lcm"])
def test_one_step_is_the_clean_image_that_the_prediction_means(
    tiny_sd: Path, other: Path, tmp_path: Path, prediction: str, scheduler: str
) -> None:
    """x0 = (n - sigma eps) / alpha at t = 999 (SwiftBrush), and its like for v and sample."""
    unet = shutil.copytree(other / "unet", tmp_path / "swiftbrush" / "unet")
    spec = spec_of(turbo(tmp_path, tiny_sd, prediction), unet, steps=1, guidance_scale=0.0, scheduler=scheduler)
    with DiffusionBackend.open(spec) as backend, torch.inference_mode():
        noise = backend.noise([3])
        found: list[torch.Tensor] = []
        backend.decode = found.append  # type: ignore[method-assign]
        backend.draw(PROMPTS[:1], None, strengths=[1.0], steps=1, seeds=[3])
        text = backend.encode_prompt(PROMPTS[0]).tokens[None]
        predicted = backend.pipe.unet(noise, torch.tensor([999]), encoder_hidden_states=text).sample
        kept = backend.pipe.scheduler.alphas_cumprod[999]
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    expected = {
        "epsilon": (noise - sigma * predicted) / alpha,
        "v_prediction": alpha * noise - sigma * predicted,
        "sample": predicted,
    }[prediction]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-3)


def test_swiftbrush_knows_pure_noise_only(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    model, unet = turbo(tmp_path, tiny_sd), shutil.copytree(other / "unet", tmp_path / "swiftbrush" / "unet")
    assert read_model(model).levels == (0.25, 0.5, 0.75, 1.0)
    assert read_model(model, unet).levels == (1.0,)
    assert read_model(model, other / "unet").levels == (0.25, 0.5, 0.75, 1.0), "an erased turbo is a turbo still"
    backend = BackendSection(model=str(model), unet=str(unet), steps=1, guidance_scale=0)
    check_model(Recipe(backend=backend, generate=GenerateSection(method="real-gen")))
    with pytest.raises(ModelError, match="no noise level this one-step model was trained for; it has 1"):
        check_model(Recipe(backend=backend, generate=GenerateSection(method="real-aug", strength=0.5)))
    edit(unet / "config.json", _noise_levels=[0.5, 1.0])
    assert read_model(model, unet).levels == (0.5, 1.0)


def test_the_lora_acts_on_a_one_step_unet(tiny_sd: Path, other: Path, tmp_path: Path) -> None:
    """DasDiff's sampler loads its LoRA into a U-Net without adapters: every key is ignored, nothing changes."""
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(tiny_sd, method="lora", vectors=1, rank=2, alpha=6.0, lr=0.05))
    unet = shutil.copytree(other / "unet", tmp_path / "swiftbrush" / "unet")
    spec = spec_of(turbo(tmp_path, tiny_sd), unet, steps=1, guidance_scale=0.0)
    base, adapted = (draw(one, PROMPTS) for one in (spec, with_adapter(spec, tmp_path / "run/adapt", "all")))
    assert apart(base, adapted) > 3
    own = with_adapter(
        spec_of(turbo(tmp_path / "b", tiny_sd), steps=1, guidance_scale=0.0), tmp_path / "run/adapt", "all"
    )
    assert apart(adapted, draw(own, PROMPTS)) > 3, "and it is the given U-Net that it acts on"
