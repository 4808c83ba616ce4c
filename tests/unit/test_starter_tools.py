"""The tool that trains the starter, on the starter itself and for seconds: every stage still fits the package it is made for."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import spec_of

from variegate.backends.folder import OWN
from variegate.stages.dataset.meadow import make_meadow, mark_phrases

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def pictures():
    from starter.data import Item, Pictures

    meadow = make_meadow(n_species=4, n_per_species=4)
    items = [Item("butterfly", mark_phrases(meadow.species[label]), "on grass") for label in meadow.labels]
    return Pictures(meadow.images, items, np.zeros((len(items), 16, 16), np.uint8))


def test_marks_and_spots_are_where_the_picture_shows_them(tmp_path: Path) -> None:
    from starter.data import MARKS, NO_MARKS, SPOTS, _drawn_with_marks

    from variegate.stages.dataset.butterflies import Species, draw_butterfly, sample_pose

    plain = Species("rounded", "round", "blue", "red")
    spotted = replace(plain, spot_count=2, spot_colour="white", spot_kind="spots", spot_place="forewings")
    pose = sample_pose(np.random.default_rng(3), "grass")
    for species, seen in (
        (plain, {NO_MARKS}),
        (spotted, {NO_MARKS, SPOTS}),
        (replace(spotted, margin_colour="black", margin_width="wide"), {NO_MARKS, MARKS, SPOTS}),
    ):
        image, shown = _drawn_with_marks(species, pose, np.random.default_rng(1), 64)
        assert np.array_equal(image, draw_butterfly(species, pose, np.random.default_rng(1), 64)[0])
        assert shown.shape == (16, 16) and set(np.unique(shown)) == seen
        white = (image.astype(int).min(axis=2) > 190).reshape(16, 4, 16, 4).sum(axis=(1, 3)) >= 8
        assert SPOTS not in seen or (shown[white] == SPOTS).all() and 0.01 < (shown == SPOTS).mean() < 0.2


def test_an_exported_starter_is_trained_on_by_its_own_autoencoder(
    pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_starter
    from safetensors.torch import load_file
    from starter import unet
    from starter.data import SHARD_IMAGES, _write_shard
    from starter.export import load_parts

    from variegate.backends import diffusion

    assert len(pictures.images) <= SHARD_IMAGES
    (tmp_path / "data").mkdir()
    _write_shard(tmp_path / "data" / "shard-00000.npz", list(pictures.images), pictures.items)
    common = ["--work", str(tmp_path), "--init", str(OWN["starter"]), "--threads", "1"]
    train_starter.main(["latents", *common])
    latents = load_file(tmp_path / "latents.safetensors")["latents"].float()
    assert latents[:16].std() == pytest.approx(1, abs=0.3)  # scaled as the U-Net is used to
    monkeypatch.setattr(unet, "BATCH", 4)
    monkeypatch.setattr(unet, "HOLD_FRACTION", 0.0)
    train_starter.main(["unet", *common, "--out", str(tmp_path / "out"), "--minutes", "0.05", "--rate", "1e-5"])
    before, after = (load_parts(folder) for folder in (OWN["starter"], tmp_path / "out"))
    kept, learned = before[0].state_dict(), after[0].state_dict()
    assert all(torch.equal(learned[name], value) for name, value in kept.items())
    moved = (after[1].unet.conv_in.weight - before[1].unet.conv_in.weight).abs().max()
    assert 0 < moved < 1e-2
    with diffusion.DiffusionBackend.open(spec_of(tmp_path / "out")) as backend:
        assert backend.draw(["a blue butterfly"], None, strengths=[1.0], steps=2, seeds=[1]).std() > 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' solver, used by the tool as it is
def test_pairs_are_drawn_and_a_student_learns_from_them(
    pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starter import distill
    from starter.export import load_parts

    monkeypatch.setattr(distill, "SHARD_PAIRS", 4)
    monkeypatch.setattr(distill, "BATCH", 4)
    _, teacher = load_parts(OWN["starter"])
    latents = torch.randn((8, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    distill.draw_pairs(teacher, latents, pictures.items, tmp_path, minutes=0.01, device="cpu", seed=0)
    noised, ends, levels, captions = distill.load_pairs(tmp_path)
    assert len(noised) == len(ends) == len(levels) == len(captions) >= 4
    assert torch.isfinite(ends.float()).all() and set(levels.tolist()) <= set(distill.LEVELS)
    _, student = load_parts(OWN["starter"])
    before = student.unet.conv_in.weight.clone()
    keys = {"minutes": 0.02, "device": "cpu", "seed": 0, "preview_every_min": 9, "preview": lambda *_: None}
    learned = distill.train_student(student, tmp_path, **keys)
    assert not torch.equal(learned.unet.conv_in.weight, before)
    words = teacher.text_encoder.state_dict()
    assert all(torch.equal(value, words[name]) for name, value in learned.text_encoder.state_dict().items())
    assert sys.modules["starter.distill"] is distill


def test_the_pair_learns_and_is_exported_as_a_folder_that_reads(
    pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starter import pair
    from starter.export import load_parts

    from variegate.image_text import open_clip_model

    monkeypatch.setattr(pair, "BATCH", 8)
    tokenizer = load_parts(OWN["starter"])[1].tokenizer
    keys = {"minutes": 0.02, "device": "cpu", "seed": 0, "preview_every_min": 9, "preview": lambda *_: None}
    learned = pair.train_pair(pair.build_pair(tokenizer), tokenizer, pictures, pictures.images[:4], tmp_path, **keys)
    pair.export_pair(learned, tokenizer, tmp_path / "out")
    read = open_clip_model(f"clip:{tmp_path / 'out'}", "here")
    texts = [f"a photo of a butterfly with {', '.join(item.phrases)}" for item in pictures.items[:2]]
    with torch.inference_mode():
        own = pair.text_features(learned, pair._tokens(tokenizer, texts)).numpy()
    assert read.text_features(texts).numpy() == pytest.approx(own, abs=0.02)  # half precision


def test_a_changed_caption_differs_in_one_word_and_keeps_its_grammar(pictures) -> None:
    from starter.pair import changed_caption

    rng = np.random.default_rng(0)
    for item in pictures.items * 20:
        phrases, place = changed_caption(item.phrases, item.place, rng)
        changed = [(a, b) for a, b in zip((*item.phrases, item.place), (*phrases, place), strict=True) if a != b]
        assert len(changed) == 1
        before, after = changed[0]
        words = [(a, b) for a, b in zip(before.split(), after.split(), strict=False) if a != b]
        assert before == item.place or len([pair for pair in words if pair[0].rstrip("s") != pair[1].rstrip("s")]) == 1
        assert not re.search(r"one \w+ \w*spots|(two|three|four) \w+ \w*spot\b", after)
