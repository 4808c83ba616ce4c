"""Classifiers by name, their weights, and what is said when something does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from variegate.classifier.fit import choose_compute, predict
from variegate.classifier.models import OWN_MODELS, Classifier, build_model, check_model_name, learned_parts, stages_of
from variegate.errors import ModelError


def build(
    name: str = "resnet-small", seed: int = 0, pretrained: bool | str = False, num_classes: int = 3
) -> Classifier:
    return build_model(name, num_classes=num_classes, size_px=32, pretrained=pretrained, seed=seed)


@pytest.mark.parametrize("name", [*OWN_MODELS[:-1], "resnet10t", "resnetv2_18", "vit_tiny_patch16_224"])
def test_models_take_the_recipes_size_and_classes(name: str) -> None:
    classifier = build(name)
    logits = classifier.net.eval()(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    assert classifier.head in list(classifier.net.modules())


@pytest.mark.parametrize(
    ("name", "num_classes", "millions"),
    [
        ("preact-resnet18", 10, 11.17),
        ("preact-resnet34", 10, 21.28),
        ("wide-resnet-28-2", 10, 1.47),
        ("wide-resnet-28-10", 100, 36.54),
    ],
)
def test_nets_of_the_papers_have_their_parameters(name: str, num_classes: int, millions: float) -> None:
    net = build(name, num_classes=num_classes).net
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["preact-resnet18", "wide-resnet-28-2"])
@pytest.mark.parametrize(("size_px", "stem_px", "map_px"), [(32, 32, 4), (64, 32, 4), (96, 48, 6)])
def test_small_images_keep_their_detail(name: str, size_px: int, stem_px: int, map_px: int) -> None:
    """No pooling after the stem: 32 px and 64 px leave maps of 4 px (8 px where there are three stages)."""
    net = build_model(name, num_classes=3, size_px=size_px, pretrained=False, seed=0).net.eval()
    maps = net.stem(torch.zeros(1, 3, size_px, size_px))
    assert maps.shape[-1] == stem_px
    assert net.stages(maps).shape[-1] == map_px * (2 if "wide" in name else 1)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet-small", 4), ("wide-resnet-28-2", 3), ("resnet10t", 4), ("resnetv2_18", 4), ("vit_tiny_patch16_224", 12)],
)
def test_stages_of_nets_are_found(name: str, count: int) -> None:
    assert len(stages_of(build(name).net)) == count


def test_what_learns_is_what_diff_mix_froze_least() -> None:
    """Its presets for ResNet-50: linear, stages4+linear up to stages1-4+linear; all but the stem with the last."""
    classifier = build("resnet10t")

    def learned(mode: str, last_stages: int = 1) -> set[str]:
        parts = learned_parts(classifier, mode, last_stages)
        found = {id(parameter) for part in parts for parameter in part.parameters()}
        return {name.split(".")[0] for name, parameter in classifier.net.named_parameters() if id(parameter) in found}

    assert learned("linear-probe") == {"fc"}
    assert learned("last-stages") == {"layer4", "fc"}
    assert learned("last-stages", 2) == {"layer3", "layer4", "fc"}
    assert learned("last-stages", 4) == {"layer1", "layer2", "layer3", "layer4", "fc"}
    assert learned("full") == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_both_last_layers_of_a_distilled_net_are_new_and_learn(name: str, tmp_path: Path) -> None:
    save_file(build(name, seed=4, num_classes=7).net.state_dict(), tmp_path / "w.safetensors")
    classifier = build(name, pretrained=str(tmp_path / "w.safetensors"))
    parts = learned_parts(classifier, "linear-probe", 1)
    found = {id(parameter) for part in parts for parameter in part.parameters()}
    learned = {name for name, parameter in classifier.net.named_parameters() if id(parameter) in found}
    assert {name.split(".")[0] for name in learned} == {"head", "head_dist"}
    logits = predict(classifier, np.zeros((2, 32, 32, 3), np.uint8), choose_compute("cpu", 1))
    assert logits.shape == (2, 3) and predict(
        classifier, np.empty((0, 32, 32, 3), np.uint8), choose_compute("cpu", 1)
    ).shape == (0, 3)
    assert all(part in learned_parts(classifier, "norms", 1) for part in classifier.heads)


def test_a_vits_last_norm_learns_with_its_last_block() -> None:
    classifier = build("vit_tiny_patch16_224")
    parts = learned_parts(classifier, "last-stages", 1)
    found = {id(parameter) for part in parts for parameter in part.parameters()}
    names = {name for name, parameter in classifier.net.named_parameters() if id(parameter) in found}
    assert {name.rpartition(".")[0] for name in names if not name.startswith("blocks.11.")} == {"norm", "head"}
    assert not {name for name in names if name.startswith("blocks.") and not name.startswith("blocks.11.")}


def test_a_net_without_stages_is_named() -> None:
    with pytest.raises(ModelError, match="has no stages or blocks"):
        stages_of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))


def test_first_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one = build().net.state_dict()
    torch.rand(5)
    two, other = build().net.state_dict(), build(seed=1).net.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])
    torch.random.set_rng_state(before)


def test_a_mistyped_model_gets_a_suggestion() -> None:
    (problem,) = check_model_name("resnet81", False)
    assert "did you mean resnet" in problem.remedy
    with pytest.raises(ModelError, match="resnet81"):
        build("resnet81")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    problems = check_model_name("resnett18", str(tmp_path / "weights.bin"))
    assert len(problems) == 2
    assert ".safetensors" in str(problems[1])


def test_own_model_has_no_published_weights() -> None:
    with pytest.raises(ModelError, match="no published weights"):
        build(pretrained=True)


def test_published_weights_offline_are_an_error_with_a_remedy() -> None:
    """Never fresh weights instead."""
    with pytest.raises(ModelError, match="go online once"):
        build("resnet10t", pretrained=True)


def test_weights_from_a_file_fit_all_but_the_head(tmp_path: Path) -> None:
    given = build(seed=4, num_classes=7).net.state_dict()
    save_file(given, tmp_path / "w.safetensors")
    loaded, fresh = build(pretrained=str(tmp_path / "w.safetensors")), build()
    state = loaded.net.state_dict()
    assert all(torch.equal(state[key], given[key]) for key in state if not key.startswith("head."))
    assert torch.equal(loaded.head.weight, fresh.head.weight)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    given = build().net.state_dict()
    given["surplus"] = given.pop("stem.weight")
    given["norm.weight"] = torch.zeros(5)
    save_file(given, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        build(pretrained=str(tmp_path / "w.safetensors"))
    text = str(caught.value)
    assert "lacks stem.weight" in text
    assert "has surplus" in text
    assert "norm.weight is [5]" in text
    assert load_file(tmp_path / "w.safetensors").keys() == given.keys()


def test_a_broken_weight_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be read"):
        build(pretrained=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["resnet-small", "resnet10t", "vit_tiny_patch16_224"])
def test_a_cosine_head_gives_scaled_cosines_whatever_the_length_of_features(name: str) -> None:
    classifier = build_model(name, num_classes=3, size_px=32, pretrained=False, seed=0, cosine_scale=30.0)
    features = torch.randn(4, classifier.head.in_features, generator=torch.Generator().manual_seed(0))
    expected = 30 * torch.nn.functional.cosine_similarity(features[:, None], classifier.head.weight[None], dim=2)
    assert torch.allclose(classifier.head(7 * features), expected, atol=1e-4)
    logits = classifier.net.eval()(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 3) and logits.abs().max() <= 30.001
    again = build_model(name, num_classes=3, size_px=32, pretrained=False, seed=0, cosine_scale=30.0)
    assert torch.equal(again.head.weight, classifier.head.weight)


def test_a_body_with_a_linear_head_starts_a_cosine_one(tmp_path: Path) -> None:
    save_file(build(seed=5).net.state_dict(), tmp_path / "body.safetensors")
    options = {"num_classes": 3, "size_px": 32, "seed": 0, "cosine_scale": 30.0}
    found = build_model("resnet-small", pretrained=str(tmp_path / "body.safetensors"), **options)
    assert torch.equal(found.net.stem.weight, build(seed=5).net.stem.weight)
    assert set(found.net.state_dict()) - set(build().net.state_dict()) == set()
    assert "head.bias" not in found.net.state_dict()


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(ModelError, match="ends in Conv2d"):
        build_model("dpn48b", num_classes=3, size_px=32, pretrained=False, seed=0, cosine_scale=30.0)


def test_da_fusion_fault_other_normalisation_than_the_weights_were_learned_with(tmp_path: Path) -> None:
    """It scales by mean and deviation 0.5 whatever the weights; a baseline that starts so is handicapped."""
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    published = timm.get_pretrained_cfg("resnet10t")
    given = build("resnet10t", pretrained=str(tmp_path / "w.safetensors"))
    assert (given.mean, given.std) == (tuple(published.mean), tuple(published.std)) != ((0.5,) * 3, (0.5,) * 3)
    about = {"mean": [0.1] * 3, "std": [0.2] * 3}  # a run's own file says how its images were scaled
    save_file(given.net.state_dict(), tmp_path / "own.safetensors", metadata={"variegate": json.dumps(about)})
    own = build("resnet10t", pretrained=str(tmp_path / "own.safetensors"))
    assert (own.mean, own.std) == ((0.1,) * 3, (0.2,) * 3)
    assert build("resnet10t").mean == (0.5,) * 3, "nothing was learned before"
