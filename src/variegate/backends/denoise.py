"""The denoising loop: one for every U-Net model, with guidance and sources as arguments.

Latents stay in fp32 between steps; only the U-Net sees the model's dtype, so half precision does not add up over steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from variegate.backends.base import one_step_timestep


class Text(NamedTuple):
    """One prompt [tokens, width], or a batch of them [N, tokens, width]; `pooled` is SDXL's second embedding."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None


class Given(NamedTuple):
    """What a batch starts from and is held to, each [N, ...]; latents are scaled unless said otherwise."""

    start: torch.Tensor | None = None  # where image-to-image begins; None: pure noise
    beside: torch.Tensor | None = None  # further channels that the U-Net takes beside the noisy latents
    kept: torch.Tensor | None = None  # latents to hold on to where the mask is 0
    mask: torch.Tensor | None = None  # [N, 1, h, w] of 0 and 1; 1: repainted


class Condition(NamedTuple):
    """What the U-Net is told, the same at every step: one part a guidance way, the unconditional one first."""

    ways: int
    told: dict[str, Any]
    beside: torch.Tensor | None


def stack_texts(texts: Sequence[Text]) -> Text:
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Text(torch.stack([text.tokens for text in texts]), torch.stack(pooled) if pooled else None)


class Denoiser:
    """A U-Net with its scheduler."""

    def __init__(self, unet: Any, scheduler: Any, *, dtype: torch.dtype, device: torch.device, size_px: int) -> None:
        self.unet, self.scheduler, self.dtype, self.device, self.size_px = unet, scheduler, dtype, device, size_px

    def many_steps(
        self,
        noise: torch.Tensor,
        given: Given,
        texts: Text,
        away: Text | None,
        scales: Sequence[float],
        *,
        total: int,
        steps: int,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Run the last `steps` of `total` steps; float32 latents [N, C, h, w].

        What `given` holds on to is put back at every step, noised to the step's level (arXiv 2201.09865, without its
        resampling), as diffusers inpaints with U-Nets that take no mask. `scales`: see `_guided`.
        """
        scheduler, noise = self.scheduler, noise.to(self.device)
        scheduler.set_timesteps(total, device=self.device)
        skipped = total - steps if given.start is not None else 0
        timesteps = scheduler.timesteps[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        if given.start is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(given.start.to(self.device), noise, timesteps[:1].repeat(len(noise)))
        extra = {"generator": list(generators)} if _takes_generator(scheduler) else {}
        condition = self._condition(texts, away, given.beside, len(scales) + 1)
        for number, timestep in enumerate(timesteps, start=1):
            predicted = self._guided(scheduler.scale_model_input(latents, timestep), timestep, condition, scales)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
            latents = self._hold(latents, given, noise, timesteps[number : number + 1])
        return latents

    def _hold(self, latents: torch.Tensor, given: Given, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Latents with what the mask keeps put back at the noise `level` (one timestep; none after the last step)."""
        if given.kept is None or given.mask is None:
            return latents
        kept, mask = given.kept.to(self.device), given.mask.to(self.device)
        if len(level):
            kept = self.scheduler.add_noise(kept, noise, level.repeat(len(noise)))
        return (1.0 - mask) * kept + mask * latents

    def one_step(
        self,
        noise: torch.Tensor,
        given: Given,
        texts: Text,
        away: Text | None,
        scales: Sequence[float],
        strengths: Sequence[float],
    ) -> torch.Tensor:
        """Predict the clean image at once from the noise level each strength names: x0 = (x - sigma * eps) / alpha.

        Without a source x is pure noise at the last timestep, as one-step models are trained (arXiv 2312.05239).
        """
        noise, start = noise.to(self.device), given.start
        levels = [1.0] * len(noise) if start is None else strengths
        count = self.scheduler.config.num_train_timesteps
        timesteps = torch.tensor([one_step_timestep(level, count) for level in levels], device=self.device)
        alpha, sigma = self._noise_level(timesteps)
        latents = noise if start is None else alpha * start.to(self.device) + sigma * noise
        condition = self._condition(texts, away, given.beside, len(scales) + 1)
        predicted = self._guided(latents, timesteps, condition, scales)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            predicted = (latents - sigma * predicted) / alpha
        elif kind == "v_prediction":
            predicted = alpha * latents - sigma * predicted
        return self._hold(predicted, given, noise, timesteps[:0])

    def activations(
        self, latents: torch.Tensor, noise: torch.Tensor, text: Text, timestep: int, beside: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """What each up block gives for lightly noised latents, float32 [N, C, h, w]."""
        found: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            found.append((output[0] if isinstance(output, tuple) else output).float())

        unet = getattr(self.unet, "_orig_mod", self.unet)  # the compiled module hides its hooks
        hooks = [block.register_forward_hook(keep) for block in unet.up_blocks]
        try:
            times = torch.full((len(latents),), timestep, device=self.device)
            alpha, sigma = self._noise_level(times)
            noised = alpha * latents.to(self.device) + sigma * noise.to(self.device)
            repeated = stack_texts([text] * len(latents))
            self._guided(noised, times, self._condition(repeated, None, beside, 1), (), unet=unet)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def difference(
        self,
        latents: torch.Tensor,
        noises: Sequence[torch.Tensor],
        told: Text,
        untold: Text,
        timestep: int,
        beside: torch.Tensor | None,
    ) -> torch.Tensor:
        """How far apart what is predicted with two texts is at each place, float32 [N, h, w]: the mean of channels and noises."""
        times = torch.full((len(latents),), timestep, device=self.device)
        alpha, sigma = self._noise_level(times)
        both = [self._condition(texts, None, beside, 1) for texts in (told, untold)]
        total = torch.zeros((len(latents), *latents.shape[2:]), device=self.device)
        for noise in noises:
            noised = alpha * latents.to(self.device) + sigma * noise.to(self.device)
            first, second = (self._guided(noised, times, condition, ()) for condition in both)
            total += (first - second).abs().mean(1)
        return total / len(noises)

    def _noise_level(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma), each [N, 1, 1, 1], of x = alpha * x0 + sigma * noise."""
        kept = self.scheduler.alphas_cumprod.to(self.device)[timesteps].float().view(-1, 1, 1, 1)
        return kept.sqrt(), (1.0 - kept).sqrt()

    def _condition(self, texts: Text, away: Text | None, beside: torch.Tensor | None, ways: int) -> Condition:
        """Everything the U-Net is told, batched: `texts`; `away` and `texts`; or neither, the image alone, and both."""
        tokens, pooled, count = texts.tokens, texts.pooled, len(texts.tokens)
        if away is not None:
            tokens = torch.cat([*[away.tokens.expand(count, -1, -1)] * (ways - 1), tokens])
            if pooled is not None and away.pooled is not None:
                pooled = torch.cat([*[away.pooled.expand(count, -1)] * (ways - 1), pooled])
        if beside is not None:
            beside = beside.to(self.device, self.dtype)
            beside = torch.cat([torch.zeros_like(beside)] * (ways - 2) + [beside] * min(ways, 2))
        told: dict[str, Any] = {"encoder_hidden_states": tokens.to(self.device, self.dtype)}
        if pooled is not None:
            edge = float(self.size_px)  # original height and width, crop corner, target height and width
            sizes = torch.tensor([[edge, edge, 0.0, 0.0, edge, edge]], device=self.device, dtype=self.dtype)
            told["added_cond_kwargs"] = {
                "text_embeds": pooled.to(self.device, self.dtype),
                "time_ids": sizes.expand(len(pooled), -1),
            }
        return Condition(ways, told, beside)

    def _guided(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        condition: Condition,
        scales: Sequence[float],
        *,
        unet: Any = None,
    ) -> torch.Tensor:
        """The U-Net's prediction in fp32: e_0 + sum_k scale_k (e_k - e_k-1), e_0 told least and the last one all.

        One scale is classifier-free guidance (arXiv 2207.12598), two are InstructPix2Pix's by image, then by text
        (arXiv 2211.09800, eq. 3).
        """
        inputs = torch.cat([latents] * condition.ways).to(self.dtype)
        times = torch.cat([timesteps] * condition.ways) if timesteps.ndim else timesteps
        if condition.beside is not None:
            inputs = torch.cat([inputs, condition.beside], dim=1)
        predicted = (unet or self.unet)(inputs, times, return_dict=False, **condition.told)[0].float()
        first, *told = predicted.chunk(condition.ways)
        guided, before = first, first
        for scale, towards in zip(scales, told, strict=True):
            guided, before = guided + scale * (towards - before), towards
        return guided


def _takes_generator(scheduler: Any) -> bool:
    """Whether a step adds fresh noise: ancestral and consistency schedulers."""
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters
