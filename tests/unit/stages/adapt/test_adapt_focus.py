"""The loss that counts where classes differ: the map of it, what is told of other classes, and the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapting import NAMES, fit_of, trainee_of, values_of, views_of

from variegate.captions import Telling, telling_of
from variegate.errors import DataError
from variegate.recipe import AdaptSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.adapt.fit import Views, distilling, settled
from variegate.stages.adapt.objective import class_focus
from variegate.stages.adapt.stage import check
from variegate.stages.adapt.trainee import Trainee


def told(trainee: Trainee, **more: object) -> Views:
    """Views that know of the other classes."""
    views, words = views_of(trainee), trainee.placeholders or NAMES
    telling = Telling(
        texts=("a photo of a {name}", "{name} in snow"),
        classes=tuple((word, "") for word in words),
        images=tuple((k % len(words), "", "") for k in range(len(views))),
    )
    assert telling.captions() == views.captions
    return replace(views, telling=telling, **more)


# ------------------------------------------------------------------------------------------ the map


def test_the_focus_is_one_on_average_and_lies_where_predictions_differ() -> None:
    own, rival = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    rival[0, :, 2:4, 5:7] = 0.3
    for share in (0.0, 0.25, 1.0):
        focus = class_focus(own, rival, share)
        assert focus.shape == (2, 1, 8, 8)
        assert torch.allclose(focus.mean((1, 2, 3)), torch.ones(2), atol=1e-6)
        assert torch.allclose(focus[1], torch.ones(1, 8, 8)), "nothing differs, so all counts alike"
        elsewhere = torch.ones(8, 8, dtype=torch.bool)
        elsewhere[2:4, 5:7] = False
        assert torch.allclose(focus[0, 0][elsewhere], torch.tensor(1 - share), atol=1e-6)
        assert focus[0, 0, 2, 5] == pytest.approx(1 - share + share * 16, rel=1e-5)


def test_no_single_place_takes_all_of_it() -> None:
    """One place of 64 differs a hundred times as much as the others: they keep most of their part."""
    own = torch.zeros(1, 1, 8, 8)
    rival = torch.full((1, 1, 8, 8), 0.1)
    rival[0, 0, 0, 0] = 10.0
    focus = class_focus(own, rival, 1.0)
    mean = (63 * 0.01 + 100) / 64
    capped = 63 * 0.01 + 10 * mean
    assert focus[0, 0, 0, 0] == pytest.approx(10 * mean * 64 / capped, rel=1e-5)
    assert focus.mean() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------ what is told


def test_a_rival_is_every_other_class_in_the_same_place_and_never_the_own() -> None:
    classes = [ClassInfo(k, name, str(k), text) for k, (name, text) in enumerate(
        [("song_thrush", "a brown bird"), ("crow", ""), ("owl", "an owl with ears")])]  # fmt: skip
    images = [RealImage("a", "", 1, "train", group="in a wood"), RealImage("b", "", 2, "train", group="on sand")]
    text = "a photo of a {name}, {description}, {environment}"
    recipe = Recipe.model_validate(
        {"prompts": {"text": text, "environments": "groups"}, "generate": {"method": "diff-aug"},
         "adapt": {"method": "tokens+lora"}})  # fmt: skip
    telling = telling_of(recipe, classes, images, ["<class_0>", "<class_1>", "<class_2>"])
    assert telling.of(0, 0) == "a photo of a <class_1>, crow, in a wood"
    assert {telling.of_rival(0, 0, number) for number in range(50)} == {
        "a photo of a <class_0>, a brown bird, in a wood", "a photo of a <class_2>, an owl with ears, in a wood",
    }  # fmt: skip
    assert {telling.of_rival(1, 0, number) for number in (2**62 - 1, 2**62 - 2)} == {
        "a photo of a <class_0>, a brown bird, on sand", "a photo of a <class_1>, crow, on sand",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ the step


def test_a_steps_loss_counts_each_place_by_the_focus(tiny_sd: Path) -> None:
    """The first loss of a run, computed again by hand."""
    with trainee_of(tiny_sd, focus=0.6, snr_cap=None) as trainee:
        views = told(trainee)
        fit = fit_of(trainee, views)
        batch = fit._batch(views, 0, 4, "images")
        total, rivals = 0.0, set()
        for k in range(4):
            image, text, time = int(batch.image[k]), int(batch.text[k]), torch.tensor([batch.time[k]])
            clean = views.latents[image, batch.view[k]].float()[None]
            noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(int(batch.noise[k])))[None]
            share = trainee.pipe.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            other = views.telling.of_rival(image, text, int(batch.noise[k]))
            rivals.add(other)
            assert other != views.captions[image][text]
            with torch.no_grad(), trainee.computing(training=False):
                own, rival = (
                    trainee.predict(noisy, time, trainee.encode([said]))
                    for said in (views.captions[image][text], other)
                )
            counted = class_focus(own, rival, 0.6)
            total += float((counted * (own - noise).square()).mean()) / 4
        fit.run(1)
        assert fit.progress.losses[0] == pytest.approx(total, rel=1e-4)
        assert len(rivals) > 1


def test_held_out_losses_and_those_of_prior_images_have_no_focus(tiny_sd: Path) -> None:
    found = {}
    for focus in (0.0, 1.0):
        with trainee_of(tiny_sd, focus=focus) as trainee:
            fit = fit_of(trainee, told(trainee), held_out=told(trainee), prior=views_of(trainee))
            batch = fit._batch(fit.views, 0, 6, "images")
            with torch.no_grad():
                prior = fit._losses(fit.prior, batch, fit.weights, focus)
                learned = fit._losses(fit.views, batch, fit.weights, focus)
            found[focus] = fit.held_out_loss(), prior, learned
    (plain, plain_prior, even), (same, same_prior, focused) = found.values()
    assert plain == same and torch.equal(plain_prior, same_prior) and not torch.allclose(even, focused)
    section = settled(trainee.section.model_copy(update={"focus": 0.5}), 320, 6)
    assert distilling(section).focus == 0.0, "pairs have no class"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_makes_no_difference_between_a_class_and_itself(tiny_sd: Path, dropout: float) -> None:
    """A rival of the same words: what is dropped is the same too, so nothing differs and all counts alike."""
    with trainee_of(tiny_sd, method="tokens+lora", dropout=dropout, focus=1.0) as trainee:
        for name, parameter in trainee.named_parameters().items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        views = told(trainee)
        alike = replace(views, telling=replace(views.telling, texts=("a photo", "a photo")))
        plain = replace(views, telling=None, captions=[["a photo"] * 2] * len(views))
        alike = replace(alike, captions=plain.captions)
        fit = fit_of(trainee, alike)
        batch = fit._batch(alike, 0, 6, "images")
        found = []
        for one in (alike, plain):
            torch.manual_seed(4)
            with torch.no_grad(), trainee.computing(training=True):
                found.append(fit._losses(one, batch, fit.weights, 1.0))
        assert torch.allclose(*found, rtol=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole(tiny_sd: Path) -> None:
    learned = []
    for micro_batch in (None, 2):
        with trainee_of(tiny_sd, focus=0.5, micro_batch=micro_batch) as trainee:
            fit_of(trainee, told(trainee)).run(2)
            learned.append(values_of(trainee))
    for key, value in learned[0].items():
        assert torch.allclose(value, learned[1][key], atol=2e-4), key


# ------------------------------------------------------------------------------------------ bad input


def test_one_class_has_no_rival(tiny_sd: Path) -> None:
    recipe = Recipe.model_validate(
        {"backend": {"model": str(tiny_sd)}, "prompts": {"text": "a {name}"}, "generate": {"method": "ti-gen"},
         "adapt": {"method": "tokens", "focus": 0.5}})  # fmt: skip
    with pytest.raises(DataError, match="one class"):
        check(recipe, [ClassInfo(0, "cat", "0")])
    check(recipe, [ClassInfo(0, "cat", "0"), ClassInfo(1, "dog", "1")])


def test_classes_that_learn_alone_have_no_rivals() -> None:
    with pytest.raises(ValueError, match="focus asks what another class would look like"):
        AdaptSection(method="tokens", joint=False, focus=0.5)
