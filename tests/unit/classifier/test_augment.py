"""Augmentation: in range, different for every image, from its own generator only."""

from __future__ import annotations

import pytest
import torch

from variegate.classifier import augment

NAMES = ["none", "classic", "randaugment", "trivialaugment"]


def changed(name: str, seed: int, pixels: torch.Tensor) -> torch.Tensor:
    with augment.own_randomness(seed, torch.device("cpu")):
        return augment.make_augment(name)(pixels, torch.Generator().manual_seed(seed))


@pytest.fixture
def pixels() -> torch.Tensor:
    one = torch.randint(0, 256, (1, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return one.expand(6, -1, -1, -1).contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_in_range_and_equal_seeds_agree(name: str, pixels: torch.Tensor) -> None:
    one, two, other = changed(name, 5, pixels), changed(name, 5, pixels), changed(name, 6, pixels)
    assert one.shape == (6, 3, 24, 24)
    assert one.dtype == torch.float32
    assert 0.0 <= one.min() <= one.max() <= 1.0
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (name == "none")


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_image_is_changed_on_its_own(name: str, pixels: torch.Tensor) -> None:
    found = changed(name, 5, pixels)
    assert len({image.sum().item() for image in found}) > 3, "equal images came out equal"


def test_own_randomness_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    with augment.own_randomness(5, torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_classic_without_any_change_would_be_the_identity(
    monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor
) -> None:
    """The geometry is right: no turn, zoom, shift and colour leave the image or its mirror image."""
    for name in ("MAX_TURN", "MAX_SHIFT", "MAX_BRIGHTNESS", "MAX_CONTRAST", "MAX_SATURATION"):
        monkeypatch.setattr(augment, name, 0.0)
    monkeypatch.setattr(augment, "MAX_ZOOM", 1.0)
    start = augment.to_unit(pixels)
    found = augment.classic(start, torch.Generator().manual_seed(0))
    is_same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(found, start, strict=True)]
    is_mirrored = [torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(found, start, strict=True)]
    assert all(a or b for a, b in zip(is_same, is_mirrored, strict=True))
    assert any(is_same)
    assert any(is_mirrored)
