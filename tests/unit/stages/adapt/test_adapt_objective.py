"""Targets and weights against the papers' formulas, written out here; masks; timesteps; sampling."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import fit_of, trainee_of, values_of, views_of

from variegate.recipe import AdaptSection
from variegate.stages.adapt.fit import Views, rate_factor
from variegate.stages.adapt.objective import item_losses, level_weights, noised, target
from variegate.stages.adapt.sampling import Batch, image_weights, sample_batch

KEPT = [0.99, 0.5, 0.1, 0.004]  # alpha^2 of four timesteps


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 2, 2, generator=generator), torch.randn(4, 3, 2, 2, generator=generator)


def test_noised_and_targets_are_the_formulas() -> None:
    clean, noise = tensors()
    kept = torch.tensor(KEPT)
    noisy = noised(clean, noise, kept)
    asked = {kind: target(kind, clean, noise, kept) for kind in ("epsilon", "v_prediction", "sample")}
    for k, share in enumerate(KEPT):
        alpha, sigma = math.sqrt(share), math.sqrt(1 - share)
        assert torch.allclose(noisy[k], alpha * clean[k] + sigma * noise[k])
        assert torch.equal(asked["epsilon"][k], noise[k]) and torch.equal(asked["sample"][k], clean[k])
        assert torch.allclose(asked["v_prediction"][k], alpha * noise[k] - sigma * clean[k])
        # what each kind tells of the clean image agrees
        assert torch.allclose(alpha * noisy[k] - sigma * asked["v_prediction"][k], clean[k], atol=1e-5)
        assert torch.allclose((noisy[k] - sigma * asked["epsilon"][k]) / alpha, clean[k], atol=1e-4)


@pytest.mark.parametrize("cap", [1.0, 5.0])
def test_min_snr_weights_are_one_weight_on_the_clean_image(cap: float) -> None:
    """arXiv 2303.09556: w(x0) = min(SNR, cap); an error e in x0 is e * SNR in eps^2 and e * (SNR + 1) in v^2."""
    kept = torch.tensor(KEPT)
    found = {kind: level_weights(kind, kept, cap).tolist() for kind in ("epsilon", "v_prediction", "sample")}
    for k, share in enumerate(KEPT):
        ratio = share / (1 - share)
        wanted = min(ratio, cap)
        assert found["sample"][k] == pytest.approx(wanted, rel=1e-4)
        assert found["epsilon"][k] == pytest.approx(wanted / ratio, rel=1e-4)
        assert found["v_prediction"][k] == pytest.approx(wanted / (ratio + 1), rel=1e-4)
    assert level_weights("epsilon", kept, None).tolist() == [1.0] * 4


def test_masked_pixels_do_not_count_and_small_masks_are_no_discount() -> None:
    predicted, wanted = tensors()
    mask = torch.zeros(4, 1, 2, 2)
    mask[:, :, 0] = 1
    ones = torch.ones(4)
    before = item_losses(predicted, wanted, ones, mask)
    predicted[:, :, 1] += 100
    assert torch.equal(item_losses(predicted, wanted, ones, mask), before)
    assert torch.allclose(before, (predicted - wanted)[:, :, 0].square().mean((1, 2)))
    predicted[:, :, 0] += 1
    assert not torch.allclose(item_losses(predicted, wanted, ones, mask), before)
    whole = item_losses(predicted, wanted, ones, torch.ones(4, 1, 2, 2))
    assert torch.allclose(whole, item_losses(predicted, wanted, ones))


# ------------------------------------------------------------------------------------------ inside the fit


def losses_of(
    model: Path, *, views: Views | None = None, kind: str | None = None, steps: int = 2, **adapt: object
) -> list[float]:
    with trainee_of(model, **adapt) as trainee:
        if kind:
            trainee.pipe.scheduler.register_to_config(prediction_type=kind)
        fit = fit_of(trainee, views or views_of(trainee))
        fit.run(steps)
        return fit.progress.losses


@pytest.mark.parametrize("timesteps", ["all", "weighted"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_asks_for_what_the_model_predicts(tiny_sd: Path, kind: str, timesteps: str) -> None:
    """The first loss of a run, computed again by hand from the batch."""
    with trainee_of(tiny_sd, snr_cap=5.0, timesteps=timesteps) as trainee:
        trainee.pipe.scheduler.register_to_config(prediction_type=kind)
        views = views_of(trainee)
        fit = fit_of(trainee, views)
        batch = fit._batch(views, 0, 4, "images")
        total = 0.0
        for image, view, text, time, seed in zip(
            batch.image, batch.view, batch.text, batch.time, batch.noise, strict=True
        ):
            clean = views.latents[image, view].float()[None]
            noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(int(seed)))[None]
            share = trainee.pipe.scheduler.alphas_cumprod[time]
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            with torch.no_grad(), trainee.computing(training=False):
                predicted = trainee.predict(noisy, torch.tensor([time]), trainee.encode([views.captions[image][text]]))
            ratio = float(share / (1 - share))
            velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
            wanted, weight = {
                "epsilon": (noise, min(ratio, 5) / ratio),
                "v_prediction": (velocity, min(ratio, 5) / (ratio + 1)),
                "sample": (clean, min(ratio, 5)),
            }[kind]
            if timesteps == "weighted":  # what the others count on average
                weight = float(level_weights(kind, trainee.pipe.scheduler.alphas_cumprod, 5.0).mean())
            total += weight * float((predicted - wanted).square().mean()) / 4
        fit.run(1)
        assert fit.progress.losses[0] == pytest.approx(total, rel=1e-4)


def test_noise_offset_shifts_whole_channels(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, noise_offset=0.5) as trainee:
        fit, shape = fit_of(trainee), torch.Size((4, 8, 8))
        plain = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        shift = fit._noise(7, shape) - plain
        assert torch.allclose(shift, shift[:, :1, :1].expand(shape), atol=1e-6)
        shifts = torch.cat([(fit._noise(k, shape) - torch.randn(shape, generator=torch.Generator().manual_seed(k)))[:, 0, 0]
                            for k in range(400)])  # fmt: skip
        assert shifts.std() == pytest.approx(0.5, rel=0.1)
    assert losses_of(tiny_sd, noise_offset=0.5) != losses_of(tiny_sd)


def test_last_timestep_only_when_asked(tiny_sd: Path) -> None:
    asked: list[int] = []
    for timesteps in ("all", "last"):
        with trainee_of(tiny_sd, timesteps=timesteps, snr_cap=None) as trainee:
            trainee.unet.register_forward_pre_hook(lambda _module, args: asked.extend(args[1].tolist()))
            fit_of(trainee).run(2)
    assert len(set(asked[:8])) > 4 and asked[8:] == [999] * 8


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_picked_by_weight_the_timesteps_count_as_much_as_weighted_ones(tiny_sd: Path, kind: str) -> None:
    """How often times how much is the weight of each timestep; the held-out loss is the same either way."""
    found = {}
    for timesteps in ("all", "weighted"):
        with trainee_of(tiny_sd, timesteps=timesteps) as trainee:
            trainee.pipe.scheduler.register_to_config(prediction_type=kind)
            fit = fit_of(trainee, held_out=views_of(trainee))
            seen = Counter(int(t) // 100 for step in range(200) for t in fit._batch(fit.views, step, 32, "images").time)
            counted = torch.from_numpy(fit.chances) * fit.learning_weights
            found[timesteps] = counted, np.array([seen[k] for k in range(10)]) / (200 * 32), fit.held_out_loss()
            expected = fit.chances.reshape(10, 100).sum(1)
            assert found[timesteps][1] == pytest.approx(expected, abs=0.01)
    (even, _, even_loss), (picked, shares, picked_loss) = found.values()
    assert torch.allclose(even, picked) and even_loss == picked_loss
    if kind != "epsilon":  # whose weights are one from a signal-to-noise ratio of 5 on
        assert shares.max() > 3 * shares[-1]


def test_the_last_timestep_counts_in_full_whatever_the_signal_to_noise_ratio(tiny_sd: Path) -> None:
    for kind in ("epsilon", "v_prediction"):
        capped, plain = (losses_of(tiny_sd, kind=kind, timesteps="last", snr_cap=cap) for cap in (5.0, None))
        assert capped == plain


def test_masks_outside_the_foreground_do_not_matter_to_the_loss(tiny_sd: Path) -> None:
    """Another prediction error outside the mask: the targets differ there, the loss does not."""
    with trainee_of(tiny_sd, batch=6) as trainee:
        plain = views_of(trainee)
        masks = torch.zeros(6, 2, 1, 8, 8)
        masks[..., :4] = 1
        views = Views(plain.latents, plain.captions, plain.weights, masks)
        fit = fit_of(trainee, views)
        batch = fit._batch(views, 0, 6, "images")
        calls: list[torch.Tensor] = []

        def off_outside(noisy, times, text):  # noqa: ANN001, ANN202
            predicted = original(noisy, times, text)
            error = torch.zeros_like(predicted)
            error[..., 4:] = 50.0 * len(calls)
            calls.append(predicted)
            return predicted + error

        original = trainee.predict
        trainee.predict = off_outside
        with torch.no_grad():
            first, second = (fit._losses(views, batch, fit.weights) for _ in range(2))
        assert torch.allclose(first, second)
        whole = Views(plain.latents, plain.captions, plain.weights)
        with torch.no_grad():
            assert (fit._losses(whole, batch, fit.weights) > 10 * first).all()


def test_prior_images_pull_on_the_result(tiny_sd: Path) -> None:
    found = []
    for weight in (None, 0.0, 1.0):
        with trainee_of(tiny_sd, prior={"images": 4, "weight": weight or 0.0}) as trainee:
            latents = torch.randn(4, 1, 4, 8, 8, generator=torch.Generator().manual_seed(9)).half()
            prior = Views(latents, [["a photo"]] * 4, np.full(4, 0.25))
            fit_of(trainee, prior=None if weight is None else prior).run(2)
            found.append(values_of(trainee))
    without, weightless, weighed = found
    assert all(torch.allclose(without[name], weightless[name], atol=1e-6) for name in without)
    assert any(not torch.allclose(without[name], weighed[name], atol=1e-4) for name in without)


def test_rates_follow_the_schedule(tiny_sd: Path) -> None:
    with trainee_of(tiny_sd, steps=10, warmup_fraction=0.2, schedule="cosine", lr=1.0, token_lr=2.0) as trainee:
        fit, rates = fit_of(trainee), []
        fit.run(4, on_step=lambda _: rates.append([group["lr"] for group in fit.optimizer.param_groups]))
        shares = [0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 8))]
        assert rates == [pytest.approx([2 * share, share]) for share in shares]
    constant = AdaptSection(steps=10, warmup_fraction=0.0, schedule="constant")
    assert {rate_factor(step, constant) for step in range(10)} == {1.0}


# ------------------------------------------------------------------------------------------ sampling


def batch_of(weights: np.ndarray, step: int = 0, size: int = 32, **changes: object) -> Batch:
    values = {"num_views": 2, "num_texts": 3, "time_chances": np.full(1000, 0.001), "seed": 5, **changes}
    return sample_batch(weights, size=size, step=step, **values)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    weights = image_weights([0] * 5 + [1] * 5, 1.0)
    one, two = batch_of(weights), batch_of(weights)
    assert all((getattr(one, name) == getattr(two, name)).all() for name in Batch.__slots__)
    assert (batch_of(weights, step=1).noise != one.noise).all()
    assert (batch_of(weights, seed=6).noise != one.noise).all()
    part = one.part(3, 9)
    assert (part.noise == one.noise[3:9]).all() and (part.image == one.image[3:9]).all() and len(part) == 6


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_classes_are_seen_as_often_as_one_over_n_to_alpha_says(alpha: float) -> None:
    labels = np.array([0] * 40 + [1] * 8 + [2] * 2)
    seen = Counter()
    for step in range(60):
        seen.update(labels[batch_of(image_weights(labels, alpha), step).image].tolist())
    shares = np.array([40, 8, 2.0]) ** (1 - alpha)
    for label, share in enumerate(shares / shares.sum()):
        assert seen[label] / (60 * 32) == pytest.approx(share, rel=0.12, abs=0.01)


def test_every_image_view_text_and_noise_level_gets_its_turn() -> None:
    weights = image_weights([0] * 10, 1.0)
    batches = [batch_of(weights, step) for step in range(40)]
    images = Counter(int(k) for batch in batches for k in batch.image)
    assert set(images) == set(range(10)) and max(images.values()) - min(images.values()) < 40
    assert {int(k) for b in batches for k in b.view} == {0, 1} and {int(k) for b in batches for k in b.text} == {
        0,
        1,
        2,
    }
    for batch in batches:  # one in each of 32 equal slices of the noise levels
        assert sorted((batch.time * 32 // 1000).tolist()) == pytest.approx(list(range(32)), abs=1)
        assert batch.time.min() >= 0 and batch.time.max() <= 999
