"""Image-text models: both kinds of folder, texts and images in one space, problems named before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import clip_folder, transformers_clip_folder  # noqa: F401 - fixtures

from variegate.errors import MissingExtra, ModelError
from variegate.image_text import check_clip, clip_fingerprint, open_clip_model


@pytest.mark.parametrize("kind", ["clip_folder", "transformers_clip_folder"])
def test_images_and_texts_come_in_one_space(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    clip = open_clip_model(f"clip:{folder}", "here")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    found = clip.features(pixels)
    texts = clip.text_features(["a photo of a cat", "a photo of a dog", "a photo of a cat"]).numpy()
    assert found.shape == (40, 16) and texts.shape == (3, 16) and found.dtype == np.float32
    assert np.linalg.norm(np.concatenate([found, texts]), axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(clip.features(pixels[35:36])[0] - found[35]).max() < 1e-5
    assert texts[0] == pytest.approx(texts[2], abs=1e-6) and np.abs(texts[0] - texts[1]).max() > 1e-3


def test_a_transformers_folder_gives_what_transformers_gives(transformers_clip_folder: Path) -> None:  # noqa: F811
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(transformers_clip_folder).eval()
    clip = open_clip_model(f"clip:{transformers_clip_folder}", "here")
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = model(pixel_values=(levels / 255 - mean) / std, input_ids=torch.tensor([[0, 5, 1]])).image_embeds
    assert clip.image_features(levels).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_transformers_folder_needs_no_open_clip(
    transformers_clip_folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert check_clip(f"clip:{transformers_clip_folder}", "here") == []
    with pytest.raises(MissingExtra, match=r"here: needs the package.*variegate\[clip\]"):
        check_clip("clip:ViT-B-32/openai", "here")


def test_wrong_folders_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    said = " ".join(map(str, check_clip(f"clip:{tmp_path}", "here")))
    assert "of type 'bert'" in said and "no .safetensors file" in said
    assert "use clip:starter, clip:NAME/WEIGHTS or clip:FOLDER" in str(check_clip("dino", "here")[0])
    assert "did you mean clip:starter?" in str(check_clip("clip:startre", "here")[0])
    with pytest.raises(ModelError, match="of type 'bert'"):
        open_clip_model(f"clip:{tmp_path}", "here")


def test_a_changed_folder_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = clip_fingerprint(f"clip:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert clip_fingerprint(f"clip:{tmp_path}") != before
    assert clip_fingerprint("clip:ViT-B-32/openai") == ["clip:ViT-B-32/openai"]
