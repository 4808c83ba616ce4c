"""The denoising loop: one for every U-Net model, with guidance and sources as arguments.

Latents stay in fp32 between steps; only the U-Net sees the model's dtype, so half precision does not add up over steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from variegate.backends.base import one_step_timestep

FEATURE_BLOCKS = 1  # up blocks read by activations(), counted from the last


class Text(NamedTuple):
    """One prompt [tokens, width], or a batch of them [N, tokens, width]; `pooled` is SDXL's second embedding."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None


def stack_texts(texts: Sequence[Text]) -> Text:
    pooled = None if texts[0].pooled is None else torch.stack([text.pooled for text in texts])  # type: ignore[misc]
    return Text(torch.stack([text.tokens for text in texts]), pooled)


class Denoiser:
    """A U-Net with its scheduler."""

    def __init__(self, unet: Any, scheduler: Any, *, dtype: torch.dtype, device: torch.device, size_px: int) -> None:
        self.unet, self.scheduler, self.dtype, self.device, self.size_px = unet, scheduler, dtype, device, size_px

    def many_steps(
        self,
        noise: torch.Tensor,
        sources: torch.Tensor | None,
        texts: Text,
        away: Text | None,
        guidance_scale: float,
        *,
        total: int,
        steps: int,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Run the last `steps` of `total` steps; float32 latents [N, C, h, w]."""
        scheduler, noise = self.scheduler, noise.to(self.device)
        scheduler.set_timesteps(total, device=self.device)
        skipped = total - steps if sources is not None else 0
        timesteps = scheduler.timesteps[skipped:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        if sources is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(sources.to(self.device), noise, timesteps[:1].repeat(len(noise)))
        extra = {"generator": list(generators)} if _takes_generator(scheduler) else {}
        condition = self._condition(texts, away)
        for timestep in timesteps:
            predicted = self._guided(
                scheduler.scale_model_input(latents, timestep), timestep, condition, guidance_scale
            )
            latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
        return latents

    def one_step(
        self,
        noise: torch.Tensor,
        sources: torch.Tensor | None,
        texts: Text,
        away: Text | None,
        guidance_scale: float,
        strengths: Sequence[float],
    ) -> torch.Tensor:
        """Predict the clean image at once from the noise level each strength names: x0 = (x - sigma * eps) / alpha.

        Without a source x is pure noise at the last timestep, as one-step models are trained (arXiv 2312.05239).
        """
        noise = noise.to(self.device)
        levels = [1.0] * len(noise) if sources is None else strengths
        count = self.scheduler.config.num_train_timesteps
        timesteps = torch.tensor([one_step_timestep(level, count) for level in levels], device=self.device)
        alpha, sigma = self._noise_level(timesteps)
        latents = noise if sources is None else alpha * sources.to(self.device) + sigma * noise
        predicted = self._guided(latents, timesteps, self._condition(texts, away), guidance_scale)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return (latents - sigma * predicted) / alpha
        if kind == "v_prediction":
            return alpha * latents - sigma * predicted
        return predicted  # "sample"

    def activations(self, latents: torch.Tensor, noise: torch.Tensor, text: Text, timestep: int) -> torch.Tensor:
        """What the last up blocks give for lightly noised latents, the largest value in each quarter of the image: [N, D]."""
        found: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            maps = (output[0] if isinstance(output, tuple) else output).float()
            found.append(torch.nn.functional.adaptive_max_pool2d(maps, 2).flatten(1).cpu())

        unet = getattr(self.unet, "_orig_mod", self.unet)  # the compiled module hides its hooks
        hooks = [block.register_forward_hook(keep) for block in unet.up_blocks[-FEATURE_BLOCKS:]]
        try:
            times = torch.full((len(latents),), timestep, device=self.device)
            alpha, sigma = self._noise_level(times)
            noised = alpha * latents.to(self.device) + sigma * noise.to(self.device)
            repeated = stack_texts([text] * len(latents))
            self._guided(noised, times, self._condition(repeated, None), 1.0, unet=unet)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found, dim=1)

    def _noise_level(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma), each [N, 1, 1, 1], of x = alpha * x0 + sigma * noise."""
        kept = self.scheduler.alphas_cumprod.to(self.device)[timesteps].float().view(-1, 1, 1, 1)
        return kept.sqrt(), (1.0 - kept).sqrt()

    def _condition(self, texts: Text, away: Text | None) -> dict[str, Any]:
        """What the U-Net is told, the same at every step; with guidance the unconditional half comes first."""
        tokens, pooled, count = texts.tokens, texts.pooled, len(texts.tokens)
        if away is not None:
            tokens = torch.cat([away.tokens.expand(count, -1, -1), tokens])
            if pooled is not None:
                pooled = torch.cat([away.pooled.expand(count, -1), pooled])  # type: ignore[union-attr]
        condition: dict[str, Any] = {"encoder_hidden_states": tokens.to(self.device, self.dtype)}
        if pooled is not None:
            edge = float(self.size_px)  # original height and width, crop corner, target height and width
            sizes = torch.tensor([[edge, edge, 0.0, 0.0, edge, edge]], device=self.device, dtype=self.dtype)
            condition["added_cond_kwargs"] = {
                "text_embeds": pooled.to(self.device, self.dtype),
                "time_ids": sizes.expand(len(pooled), -1),
            }
        return condition

    def _guided(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        condition: dict[str, Any],
        scale: float,
        *,
        unet: Any = None,
    ) -> torch.Tensor:
        """The U-Net's prediction in fp32, moved away from the unconditional one where the condition holds both."""
        both = len(condition["encoder_hidden_states"]) == 2 * len(latents)
        inputs = torch.cat([latents, latents]) if both else latents
        times = torch.cat([timesteps, timesteps]) if both and timesteps.ndim else timesteps
        predicted = (unet or self.unet)(inputs.to(self.dtype), times, return_dict=False, **condition)[0].float()
        if not both:
            return predicted
        away, towards = predicted.chunk(2)
        return away + scale * (towards - away)


def _takes_generator(scheduler: Any) -> bool:
    """Whether a step adds fresh noise: ancestral and consistency schedulers."""
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters
