"""Any Stable Diffusion model through diffusers: encode once, draw real batches, describe images.

One denoising loop (denoise.py) over the model's own U-Net and scheduler serves SD and SDXL shapes. diffusers' pipelines load the
parts and encode the text; their __call__ adds PIL conversion, repeated encoding and per-call checks (benchmarks/draw.py).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from variegate.backends.adapter import apply_adapter, expand, read_adapter, text_encoders, token_vectors
from variegate.backends.base import DIFFERENCE_NOISES, BackendSpec, executed_steps, one_step_timestep
from variegate.backends.denoise import Denoiser, Given, Text, stack_texts
from variegate.backends.devices import in_parts
from variegate.backends.folder import UNUSED, ModelFacts, read_model
from variegate.errors import ModelError, Problem
from variegate.images import float_to_pixels, pixels_to_float

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
DECODED_PIXELS = 2**21  # pixels a decoder batch: 512 pictures of 64 px, 8 of 512 px, 2 of 1024 px
PASS_PURPOSES = 16
KEPT_TEXTS = 1024  # embeddings on the device; SDXL's take 0.3 MB each
FEATURE_TIMESTEP = 20  # of 1000: low noise
FEATURE_SEED = 20230603
DIFFERENCE_LEVEL = 0.5  # DiffEdit's
DIFFERENCE_SEED = 20221020


class TokenNoise(NamedTuple):
    """Noise on the learned tokens of one class: std N(0, I), or a share of each token's own deviation."""

    label: int
    std: float
    seed: int
    relative: bool = False


class DiffusionBackend:
    """A loaded model; open it with `DiffusionBackend.open(spec)` in a `with` block."""

    def __init__(self, spec: BackendSpec, pipe: Any, facts: ModelFacts, threads_before: int) -> None:
        self.spec, self.facts, self._pipe, self._threads_before = spec, facts, pipe, threads_before
        self.dtype, self.device = DTYPES[spec.dtype], torch.device(spec.device)
        self.latent_px = spec.size_px // facts.downscale
        upcast = spec.dtype == "fp16" and getattr(pipe.vae.config, "force_upcast", False)
        self._vae_dtype = torch.float32 if upcast else self.dtype  # SDXL's own autoencoder overflows in fp16
        self._vae = pipe.vae if pipe.vae.dtype == self._vae_dtype else pipe.vae.to(self._vae_dtype)
        self._denoiser = Denoiser(pipe.unet, pipe.scheduler, dtype=self.dtype, device=self.device, size_px=spec.size_px)
        self._texts: dict[tuple[str, bool], Text] = {}
        self._token_names: list[list[str]] = []  # by label
        if spec.adapter_parts != "none":
            vectors = token_vectors(Path(spec.adapter))
            names = read_adapter(Path(spec.adapter)).placeholders
            self._token_names = [expand(name, vectors).split() for name in names]

    @classmethod
    def open(cls, spec: BackendSpec) -> DiffusionBackend:
        """Load once, quietly, from local files and safetensors only; raises ModelError when diffusers refuses the folder."""
        facts = read_model(Path(spec.path), Path(spec.unet) if spec.unet else None)
        threads_before = torch.get_num_threads()
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        with _quiet():
            try:
                pipe = _load_pipeline(spec, facts)
            except (OSError, ValueError, RuntimeError, ImportError) as exc:
                reason = str(exc).strip().splitlines()[0]
                remedy = "check that the folder loads with diffusers' from_pretrained"
                raise ModelError(
                    Problem(spec.path, f"diffusers cannot load it ({type(exc).__name__}: {reason})", remedy)
                ) from exc
        return cls(spec, pipe, facts, threads_before)

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        self._pipe = self._vae = self._denoiser = None  # type: ignore[assignment]
        self._texts.clear()
        torch.set_num_threads(self._threads_before)
        if self.device.type == "cuda":
            gc.collect()  # what was learned holds references in circles; kept memory counts as used for whoever opens next
            torch.cuda.empty_cache()

    @property
    def pipe(self) -> Any:
        """The pipeline, for adapting; what is changed in it is drawn with."""
        return self._pipe

    @property
    def num_train_timesteps(self) -> int:
        return int(self._pipe.scheduler.config.num_train_timesteps)

    def signal(self, timestep: int) -> float:
        """alpha^2 of x = alpha x_0 + sigma noise at a timestep."""
        return float(self._pipe.scheduler.alphas_cumprod[timestep])

    def forget_texts(self) -> None:
        """Encode prompts anew: the text encoder has changed."""
        self._texts.clear()

    def free_memory(self) -> None:
        """Give unused device memory back after it ran out."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> DiffusionBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- encoding

    @torch.inference_mode()
    def encode_prompt(self, text: str, *, negative: bool = False) -> Text:
        """A prompt's embedding, computed alone and once, so that the numbers do not depend on what else is drawn.

        `negative`: as the text to move away from; SDXL replaces an empty one by zeros.
        """
        if (text, negative) not in self._texts:
            if len(self._texts) >= KEPT_TEXTS:
                del self._texts[next(iter(self._texts))]
            with _quiet():
                self._texts[text, negative] = self._encode_text(text, negative)
        return self._texts[text, negative]

    def _encode_noised(self, text: str, noise: TokenNoise | None) -> Text:
        """A prompt's embedding with noise on the learned tokens of one class, found by its label (never by its name)."""
        if noise is None or not noise.std:
            return self.encode_prompt(text)
        kept = []
        for number, (tokenizer, encoder) in enumerate(text_encoders(self._pipe)):
            weight = encoder.get_input_embeddings().weight
            rows = torch.tensor(tokenizer.convert_tokens_to_ids(self._token_names[noise.label]), device=weight.device)
            before = weight[rows].clone()
            values = before.float()
            scale = noise.std * (values.std(dim=1, keepdim=True) if noise.relative else 1.0)
            drawn = torch.randn(values.shape, generator=_generator(noise.seed, 2 + number)).to(values.device)
            weight[rows] = (values + scale * drawn).to(weight.dtype)
            kept.append((weight, rows, before))
        try:
            with _quiet():
                return self._encode_text(text, negative=False)
        finally:
            for weight, rows, before in kept:
                weight[rows] = before

    def _encode_text(self, text: str, negative: bool) -> Text:
        sdxl = self.facts.family == "sdxl"
        if negative and sdxl:
            parts = self._pipe.encode_prompt("", device=self.device, negative_prompt=text or None)
            return Text(parts[1][0], parts[3][0])
        parts = self._pipe.encode_prompt(
            text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Text(parts[0][0], parts[2][0] if sdxl else None)

    @torch.inference_mode()
    def encode_sources(self, pixels: np.ndarray, hidden: np.ndarray | None = None) -> torch.Tensor:
        """uint8 [N, S, S, 3] to scaled latents, float32 [N, C, S/f, S/f] on the CPU; the distribution's mode, no sampling.

        `hidden`: bool [N, S, S], what is greyed out first, as inpainting models are shown the rest of an image.
        """
        config, latents = self._vae.config, []
        step = self._decoder_batch
        for number, batch in enumerate(self._image_batches(pixels)):
            values = pixels_to_float(batch)
            if hidden is not None:
                values *= torch.from_numpy(~hidden[number * step : (number + 1) * step])[:, None]
            encoded = self._vae.encode(values.to(self.device, self._vae_dtype))
            latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
            latents.append(latent.float().cpu())
        shift, scale = _latent_statistics(config)
        return (torch.cat(latents) - shift) * scale

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Scaled latents [N, C, h, w] to uint8 [N, S, S, 3]."""
        shift, scale = _latent_statistics(self._vae.config)
        latents = latents.cpu() / scale + shift
        batches = latents.to(self.device, self._vae_dtype).split(self._decoder_batch)
        return np.concatenate([float_to_pixels(self._vae.decode(batch, return_dict=False)[0]) for batch in batches])

    @property
    def _decoder_batch(self) -> int:
        return max(DECODED_PIXELS // self.spec.size_px**2, 1)

    def _image_batches(self, pixels: np.ndarray) -> Iterator[np.ndarray]:
        edge = self.spec.size_px
        if pixels.ndim != 4 or pixels.shape[1:] != (edge, edge, 3):
            raise ValueError(f"pixels should be uint8 [N, {edge}, {edge}, 3], got {list(pixels.shape)}")
        for start in range(0, len(pixels), self._decoder_batch):
            yield pixels[start : start + self._decoder_batch]

    # ---------------------------------------------------------------- drawing

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[str],
        sources: torch.Tensor | None,
        *,
        strengths: Sequence[float],
        steps: int,
        seeds: Sequence[int],
        negative: str = "",
        token_noise: Sequence[TokenNoise | None] | None = None,
        repaint: np.ndarray | None = None,
        masked: torch.Tensor | None = None,
        passes: Sequence[float] = (),
    ) -> np.ndarray:
        """Draw one chunk: uint8 [N, S, S, 3]; see `draw_latents`."""
        return self.decode(
            self.draw_latents(
                prompts, sources, strengths=strengths, steps=steps, seeds=seeds, negative=negative,
                token_noise=token_noise, repaint=repaint, masked=masked, passes=passes,
            )
        )  # fmt: skip

    def draw_from_text(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        batch: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> np.ndarray:
        """Draw from text in all steps, `batch` at a time or fewer where memory runs out: uint8 [N, S, S, 3].

        Placeholders stay as they are in `prompts`: diffusers expands them itself, and twice would garble them.
        """

        def work(first: int, last: int) -> np.ndarray:
            strengths = [1.0] * (last - first)
            pixels = self.draw(
                prompts[first:last], None, strengths=strengths, steps=self.spec.steps, seeds=seeds[first:last]
            )
            advance(last - first)
            return pixels

        return np.concatenate(in_parts(work, len(prompts), batch, self.free_memory))

    @torch.inference_mode()
    def draw_latents(
        self,
        prompts: Sequence[str],
        sources: torch.Tensor | None,
        *,
        strengths: Sequence[float],
        steps: int,
        seeds: Sequence[int],
        negative: str = "",
        token_noise: Sequence[TokenNoise | None] | None = None,
        repaint: np.ndarray | None = None,
        masked: torch.Tensor | None = None,
        passes: Sequence[float] = (),
    ) -> torch.Tensor:
        """One chunk before decoding: scaled latents, float32 [N, C, h, w].

        `sources`: scaled latents of `encode_sources`, or None to draw from text alone. `steps` are executed steps; `strengths`
        matter in one-step drawing only, where each image has its own noise level. Noise comes from each row's own seed.
        `token_noise` disturbs the learned tokens of a row's class. `repaint`: bool [N, S, S], where the source is repainted;
        an inpainting model needs `masked` too, the latents of the source with that greyed out. With `passes` the chunk is
        drawn once for each of these strengths, each pass from the latents of the one before; nothing is decoded in
        between, for the autoencoder loses a little every time. They stand instead of `strengths` and `steps`.
        """
        spec, given = self.spec, self._given(sources, repaint, masked)
        noises = token_noise or [None] * len(prompts)
        texts = stack_texts([self._encode_noised(*pair) for pair in zip(prompts, noises, strict=True)])
        away = self.encode_prompt(negative, negative=True) if spec.guided else None
        rounds: list[tuple[Sequence[float], int]] = [(strengths, steps)]
        if passes:
            rounds = [([one] * len(prompts), executed_steps(spec.steps, one)) for one in passes]
        with _quiet():
            for number, (levels, executed) in enumerate(rounds):
                noise, purpose = self.noise(seeds, PASS_PURPOSES * number), PASS_PURPOSES * number + 1
                if spec.steps == 1:
                    latents = self._denoiser.one_step(noise, given, texts, away, spec.scales, levels)
                else:
                    latents = self._denoiser.many_steps(
                        noise, _from_noise(given) if executed == spec.steps else given, texts, away, spec.scales,
                        total=spec.steps, steps=executed, generators=[_generator(seed, purpose) for seed in seeds],
                    )  # fmt: skip
                given = given._replace(start=latents)
            return latents

    def _given(self, sources: torch.Tensor | None, repaint: np.ndarray | None, masked: torch.Tensor | None) -> Given:
        """What the model's kind makes of sources and masks; raises ValueError for what it cannot draw."""
        kind, mask = self.spec.kind, None
        if repaint is not None:
            pixels = torch.from_numpy(repaint)[:, None].float()
            size = (self.latent_px, self.latent_px)
            mask = torch.nn.functional.interpolate(pixels, size=size)  # nearest, as in training
        if kind == "edit" and sources is not None and mask is None:
            shift, scale = _latent_statistics(self._vae.config)
            return Given(beside=sources / scale + shift)  # InstructPix2Pix was trained on unscaled latents
        if kind == "inpaint" and sources is not None and mask is not None and masked is not None:
            return Given(start=sources, beside=torch.cat([mask, masked], dim=1), mask=mask)
        if kind != "text-to-image":
            raise ValueError(f"a model of kind {kind} cannot draw from this; edit needs sources, inpaint masks too")
        if sources is None:
            return Given()
        return Given(start=sources) if mask is None else Given(start=sources, kept=sources, mask=mask)

    def noise(self, seeds: Sequence[int], purpose: int = 0) -> torch.Tensor:
        """float32 [N, C, h, w]; drawn on the CPU so that every device starts from the same numbers."""
        shape = (self.facts.latent_channels, self.latent_px, self.latent_px)
        return torch.stack([torch.randn(shape, generator=_generator(seed, purpose)) for seed in seeds])

    # ---------------------------------------------------------------- describing

    def features(self, pixels: np.ndarray, *, batch: int = 64) -> np.ndarray:
        """uint8 [N, S, S, 3] to float32 [N, D]: the U-Net's last up block for lightly noised images, its maximum in each quarter.

        Diffusion features (arXiv 2306.03881) with the empty prompt and one fixed noise for all images. Block, pooling and noise
        level chosen on the meadow with the starter: a linear probe on 10 species, 5 pictures each, gets 38 % right with the last
        up block and the maximum in each quarter, 27 % with the middle block's mean (chance 10 %).
        """

        def pooled(blocks: list[torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.adaptive_max_pool2d(blocks[-1], 2).flatten(1).cpu()

        return torch.cat(self._looked(pixels, pooled, batch)).numpy()

    def maps(self, pixels: np.ndarray, *, batch: int = 64) -> list[np.ndarray]:
        """uint8 [N, S, S, 3] to float32 [N, C, h, w] of each of the U-Net's up blocks, for images noised as for `features`."""
        parts = self._looked(pixels, lambda blocks: [block.cpu().numpy() for block in blocks], batch)
        return [np.concatenate(block) for block in zip(*parts, strict=True)]

    @torch.inference_mode()
    def differences(
        self,
        pixels: np.ndarray,
        told: Sequence[str],
        untold: Sequence[str],
        *,
        batch: int = 64,
        advance: Callable[[int], object] = lambda count: None,
    ) -> np.ndarray:
        """uint8 [N, S, S, 3] to float32 [N, h, w]: how far apart predictions with each of two prompts are.

        Of images noised half-way, the mean of ten noises and of the latents' channels (DiffEdit, arXiv 2210.11427).
        """
        noises = [self.noise([DIFFERENCE_SEED + number]) for number in range(DIFFERENCE_NOISES)]
        timestep = one_step_timestep(DIFFERENCE_LEVEL, self.num_train_timesteps)

        def look(first: int, last: int) -> np.ndarray:
            latents = self.encode_sources(pixels[first:last])
            first_texts, second_texts = (
                stack_texts([self.encode_prompt(text) for text in side[first:last]]) for side in (told, untold)
            )
            beside = self._unchanged(latents)
            found = self._denoiser.difference(latents, noises, first_texts, second_texts, timestep, beside)
            advance(last - first)
            return found.cpu().numpy()

        return np.concatenate(in_parts(look, len(pixels), batch, self.free_memory))

    @torch.inference_mode()
    def _looked(self, pixels: np.ndarray, read: Callable[[list[torch.Tensor]], T], batch: int) -> list[T]:
        """What `read` makes of the U-Net's up blocks for each part of the images."""
        noise, text = self.noise([FEATURE_SEED]), self.encode_prompt("")

        def look(first: int, last: int) -> T:
            latents = self.encode_sources(pixels[first:last])
            blocks = self._denoiser.activations(latents, noise, text, FEATURE_TIMESTEP, self._unchanged(latents))
            return read(blocks)

        return in_parts(look, len(pixels), batch, self.free_memory)

    def _unchanged(self, latents: torch.Tensor) -> torch.Tensor | None:
        """The further channels that ask for nothing: no image to edit, or an empty mask over the image itself."""
        if self.spec.kind == "edit":
            return torch.zeros_like(latents)
        return torch.cat([torch.zeros_like(latents[:, :1]), latents], dim=1) if self.spec.kind == "inpaint" else None


def _generator(seed: int, purpose: int) -> torch.Generator:
    """A row's own stream: purpose 0 is the starting noise, 1 what ancestral schedulers add, 2 and 3 token noise.

    The second pass of a sequence has 16 and 17 for 0 and 1, the third 32 and 33, and so on.
    """
    return torch.Generator().manual_seed((seed + purpose * 0x9E3779B97F4A7C15) % 2**63)


def _from_noise(given: Given) -> Given:
    """All steps over a mask start from pure noise, as inpainting does at strength 1; without one the source shines through."""
    return given if given.mask is None else given._replace(start=None)


def _latent_statistics(config: Any) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """(shift, scale) so that scaled = (latent - shift) * scale has unit variance."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        return torch.tensor(mean).view(shape), config.scaling_factor / torch.tensor(std).view(shape)
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor


def _load_pipeline(spec: BackendSpec, facts: ModelFacts) -> Any:
    import diffusers

    pipeline = getattr(diffusers, facts.pipeline)
    skipped = {name: None for name in UNUSED if name in pipeline._optional_components}
    fused = spec.adapter_parts != "none"
    dtype = torch.float32 if fused else DTYPES[spec.dtype]
    whole = Path(spec.unet).is_dir() if spec.unet else False
    pipe = pipeline.from_pretrained(
        spec.path, dtype=dtype, variant=facts.variant, use_safetensors=True, local_files_only=True,
        **skipped, **({"requires_safety_checker": False} if facts.family == "sd" else {}),
        **({"unet": _load_unet(Path(spec.unet), dtype)} if whole else {}),
    )  # fmt: skip
    if spec.unet and not whole:
        from safetensors.torch import load_file

        pipe.unet.load_state_dict(load_file(spec.unet), strict=False)  # names and shapes: folder.unet_problems
    pipe.set_progress_bar_config(disable=True)
    if spec.scheduler != "model":
        # PNDM's Runge-Kutta start counts calls, which image-to-image that begins part-way would upset
        own = {"skip_prk_steps": True} if spec.scheduler == "pndm" else {}
        pipe.scheduler = getattr(diffusers, SCHEDULERS[spec.scheduler]).from_config(pipe.scheduler.config, **own)
    if fused:
        apply_adapter(pipe, Path(spec.adapter), spec.adapter_parts)
        pipe = pipe.to(dtype=DTYPES[spec.dtype])
    pipe = pipe.to(spec.device)
    for part in (pipe.unet, pipe.vae):
        part.eval().requires_grad_(False)
        part.to(memory_format=torch.channels_last if spec.memory_format == "channels-last" else torch.contiguous_format)
    if spec.compile:
        pipe.unet = torch.compile(pipe.unet)
    return pipe


def _load_unet(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    variant = "fp16" if not any(path.name.count(".") == 1 for path in folder.glob("*.safetensors")) else None
    return UNet2DConditionModel.from_pretrained(
        folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers, transformers and what they import from writing; their levels are restored afterwards."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    bars = _progress_bars()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        bars()


def _progress_bars() -> Any:
    """Switch the libraries' loading bars off; returns the function that restores them."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    modules = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    for module in modules:
        module.disable_progress_bar()
    return lambda: [module.enable_progress_bar() for module in modules]
