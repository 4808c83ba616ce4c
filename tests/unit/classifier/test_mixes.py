"""Mixes of a batch: labels that are right, features mixed where it is said, the same bytes from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from variegate.classifier import mixes
from variegate.classifier.augment import own_randomness
from variegate.classifier.mixes import open_mix
from variegate.classifier.models import Classifier, build_model, stages_of

NAMES = ["none", "mixup", "cutmix", "mixup+cutmix", "manifold-mixup", "puzzle-mix", "fractal-mixup"]
NETS = ["resnet-small", "preact-resnet18", "wide-resnet-28-2", "resnet10t", "vit_tiny_patch16_224"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise for fractals: what they look like has its own tests."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(mixes, "fractals", lambda size_px: noise)


def build(name: str = "resnet-small", size_px: int = 32) -> Classifier:
    return build_model(name, num_classes=3, size_px=size_px, pretrained=False, seed=0)


def batch(count: int = 6, size_px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and soft labels whose rows sum to 0.9."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size_px, size_px, generator=generator)
    return images, 0.9 * torch.rand(count, 3, generator=generator).softmax(dim=1)


def mixed(name: str, classifier: Classifier, seed: int, **keys: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in inference mode and targets."""
    classifier.net.eval()
    mix = open_mix(name, classifier, transport=False, autocast=False, **keys)
    with own_randomness(seed, CPU), mix(*batch()) as (images, targets):
        return classifier.net(images).detach(), targets


@pytest.mark.parametrize("name", NAMES)
def test_labels_keep_their_mass_and_equal_seeds_agree(name: str) -> None:
    classifier = build()
    one, two = mixed(name, classifier, 3), mixed(name, classifier, 3)
    assert torch.allclose(one[1].sum(1), torch.full((6,), 0.9), atol=1e-5)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert (name == "none") == torch.equal(one[0], mixed(name, classifier, 4)[0])


@pytest.mark.parametrize("net", NETS)
def test_manifold_mixup_reaches_the_input_and_the_first_half_of_every_net(net: str) -> None:
    """A mix at layer k is the mix of what the layer gives for both images, put through the rest."""
    classifier = build(net)
    stages, seen = stages_of(classifier.net), set()
    plain = classifier.net.eval()(batch()[0]).detach()
    for seed in range(40):
        with own_randomness(seed, CPU):
            layer = int(torch.randint((len(stages) + 1) // 2 + 1, ()))
        if layer not in seen:
            seen.add(layer)
            found, targets = mixed("manifold-mixup", classifier, seed)
            assert not torch.allclose(found, plain)
            assert not torch.equal(targets, batch()[1])
            assert torch.equal(classifier.net(batch()[0]).detach(), plain), "the hook is gone after the block"
    assert seen == set(range((len(stages) + 1) // 2 + 1))


def test_manifold_mixup_mixes_features_and_labels_by_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build()
    monkeypatch.setattr(mixes.torch, "randint", lambda *_: torch.tensor(2))  # after the second stage
    net, (images, targets) = classifier.net.eval(), batch()
    found, labels = mixed("manifold-mixup", classifier, 5)
    with own_randomness(5, CPU):
        share = float(torch.distributions.Beta(2.0, 2.0).sample())
        order = torch.randperm(6)
    maps = net.stages[:2](torch.relu(net.norm(net.stem(images))))
    expected = net.head(net.stages[2:](share * maps + (1 - share) * maps[order]).mean(dim=(2, 3)))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(labels, share * targets + (1 - share) * targets[order])


def test_a_fractal_carries_no_class_so_the_label_stays() -> None:
    """gdl_term took the fractal's share (0.2) for the image's own class and gave 0.8 to a random other one."""
    _, targets = mixed("fractal-mixup", build(), 3)
    assert torch.equal(targets, batch()[1])


def test_fractals_are_scaled_like_the_images() -> None:
    """gdl_term laid unscaled fractals over normalised images."""
    classifier, grey = build(), np.full((1, 8, 8, 3), 128, np.uint8)
    image = classifier.scaled(torch.full((2, 3, 8, 8), 128 / 255))
    assert torch.allclose(mixes.overlay(image, grey, classifier), image, atol=1e-6)
    white = mixes.overlay(image, np.full((1, 8, 8, 3), 255, np.uint8), classifier)
    expected = 0.8 * image + 0.2 * classifier.scaled(torch.ones(2, 3, 8, 8))
    assert torch.allclose(white, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "manifold-mixup", "fractal-mixup"])
def test_a_batch_is_mixed_as_often_as_is_said(name: str) -> None:
    """CutMix's and Diff-Mix's code mix one batch in two."""
    classifier = build()
    plain = mixed("none", classifier, 0)[0]
    changed = [not torch.equal(mixed(name, classifier, seed, probability=0.5)[0], plain) for seed in range(40)]
    assert 10 <= sum(changed) <= 30


@pytest.mark.parametrize("name", ["mixup", "manifold-mixup"])
def test_a_large_alpha_mixes_evenly_and_a_small_one_hardly(name: str) -> None:
    classifier, targets = build(), batch()[1]

    def moved(alpha: float) -> float:
        """How far labels are from the nearer end of the pair they were mixed of, on average."""
        rows = [mixed(name, classifier, seed, alpha=alpha)[1] for seed in range(20)]
        return float(np.mean([min((row - one).abs().sum() for one in targets) for found in rows for row in found]))

    assert moved(100.0) > 2 * moved(0.1)


def test_a_range_of_shares_gives_every_image_its_own() -> None:
    classifier = build(size_px=8)
    black = classifier.scaled(torch.zeros(50, 3, 8, 8))
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    found = mixes.overlay(black, white, classifier, [0.1, 0.3])
    shares = ((found - black) / (classifier.scaled(torch.ones(1, 3, 8, 8)) - black))[:, 0, 0, 0]
    assert 0.1 <= shares.min() < 0.15 and 0.25 < shares.max() <= 0.3001
