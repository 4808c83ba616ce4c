"""Model folders: found, refused with the remedy, told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from variegate.backends.folder import find_model, model_fingerprint, model_problems, read_model
from variegate.errors import ModelError


@pytest.fixture
def model(tiny_sd: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sd, tmp_path / "my-model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_facts(tiny_sd: Path, tiny_sdxl: Path) -> None:
    facts = read_model(tiny_sd)
    assert (facts.family, facts.size_px, facts.downscale, facts.latent_channels, facts.levels) == ("sd", 32, 4, 4, None)
    assert read_model(tiny_sdxl).family == "sdxl"


def test_a_misspelt_folder_gets_a_suggestion(model: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model folder — did you mean .*my-model\?"):
        find_model(str(model.with_name("my-modle")))
    with pytest.raises(ModelError, match="did you mean starter"):
        find_model("startr")


def test_a_single_file_is_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(ModelError, match="from_single_file"):
        find_model(str(tmp_path / "model.ckpt"))


def test_a_hub_model_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nobody/no-model: cannot be fetched.*name the folder"):
        find_model("nobody/no-model")


def test_no_model_index(tmp_path: Path, model: Path) -> None:
    assert "no model_index.json" in model_problems(tmp_path)[0].what
    assert "name its top folder" in model_problems(model / "unet")[0].remedy


def test_every_missing_part_is_named_at_once(model: Path) -> None:
    shutil.rmtree(model / "vae")
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (model / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as caught:
        read_model(model)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["tokenizer", "unet", "vae"]
    assert "has a config.json and no weights" in str(caught.value)


def test_cut_off_downloads(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "is cut off or damaged" in model_problems(model)[0].what
    weights.write_bytes(weights.read_bytes()[:200])
    assert "is cut off" in model_problems(model)[0].what
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "Git LFS pointer" in model_problems(model)[0].what
    (model / "vae" / "abc.incomplete").touch()
    assert any("unfinished" in problem.what for problem in model_problems(model))


def test_missing_shards(model: Path) -> None:
    shards = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    assert "00001-of-00002" in model_problems(model)[0].where


def test_pickles_are_refused(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    [problem] = model_problems(model)
    assert "a pickle, which can run code" in problem.what and "safetensors" in problem.remedy


def test_unsupported_models_are_refused(model: Path) -> None:
    edit(model / "unet" / "config.json", in_channels=5)
    assert "takes 5 channels and its latents have 4" in model_problems(model)[0].what
    edit(model / "model_index.json", _class_name="FluxPipeline")
    [problem] = model_problems(model)
    assert "FluxPipeline" in problem.what and "StableDiffusionXLPipeline" in problem.remedy
    (model / "model_index.json").write_text("{")
    assert "not valid JSON" in model_problems(model)[0].what


def test_turbo_models_have_levels(tiny_sd: Path, tmp_path: Path) -> None:
    assert read_model(shutil.copytree(tiny_sd, tmp_path / "sd-turbo")).levels == (0.25, 0.5, 0.75, 1.0)


def test_fingerprints_tell_weights_apart_and_not_folders(tiny_sd: Path, model: Path) -> None:
    assert model_fingerprint(tiny_sd) == model_fingerprint(model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(tiny_sd) != model_fingerprint(model)


def test_large_files_are_sampled(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    from variegate.backends import folder

    monkeypatch.setattr(folder, "WHOLE_FILE_BYTES", 100_000)
    before = model_fingerprint(model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 :: 64] = bytes(len(data[len(data) // 2 :: 64]))  # a fine-tune changes weights everywhere
    weights.write_bytes(data)
    assert model_fingerprint(model) != before
