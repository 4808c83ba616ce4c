"""What draws, as plain data: the resolved backend, the facts of a model, and what strength means for it.

Multi-step image-to-image runs floor(steps * strength) of its steps and refuses none. With one step the image is drawn from
the noise level that strength names (strength 1 = the last timestep); a distilled model may know a few levels only.
Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from variegate.backends.adapter import Parts, adapter_hash
from variegate.backends.devices import (
    Dtype,
    Machine,
    chunk_size,
    device_free_memory,
    image_bytes,
    resolve_device,
    resolve_dtype,
    this_machine,
)
from variegate.backends.folder import OWN, Kind, ModelFacts, find_model, find_unet, model_fingerprint, read_model
from variegate.errors import ModelError, Problem
from variegate.recipe import BackendSection, Recipe
from variegate.records import content_id

MemoryFormat = Literal["channels-last", "contiguous"]
TWICE_A_STEP = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
DIFFERENCE_NOISES = 10  # that masks by the model are the mean of, as DiffEdit has it
PNDM_ORDER = 4  # timesteps that diffusers' PNDM goes through by Runge-Kutta, where it does not skip them
ROUNDING = 1e-6  # 0.29 * 100 is 28.999999999999996 in floating point and means 29 steps
PARENT_STEPS, PARENT_GUIDANCE = 20, 3.0  # previews and pairs of a parent whose own recipe says nothing of many steps


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """Everything a worker needs to draw; no `auto` is left in it. Picklable, and JSON-able through `to_json`."""

    model: str  # as the recipe names it
    path: str  # the folder that holds it
    fingerprint: str
    revision: str | None
    dtype: Dtype
    device: str
    scheduler: str
    steps: int
    guidance_scale: float
    size_px: int
    batch: int
    threads: int
    memory_format: MemoryFormat
    compile: bool
    adapter: str = ""  # folder; "" draws with the model as it is
    adapter_hash: str = ""
    adapter_parts: Parts = "none"
    extra_evaluations: int = 0  # that the scheduler makes beyond one a step; one-step drawing has none
    unet: str = ""  # folder or file that stands in for the model's own; "" draws with that
    kind: Kind = "text-to-image"
    image_guidance_scale: float = 1.5  # of kind edit

    @property
    def guided(self) -> bool:
        """Whether drawing moves away from the unconditional prediction (classifier-free guidance)."""
        return self.guidance_scale > 1.0

    @property
    def scales(self) -> tuple[float, ...]:
        """Guidance, one for each prediction beyond the unconditional one: by image first, then by text."""
        if not self.guided:
            return ()
        return (self.image_guidance_scale, self.guidance_scale) if self.kind == "edit" else (self.guidance_scale,)

    @property
    def ways(self) -> int:
        """U-Net evaluations a step and image: 2 with guidance, 3 where an edit is guided by image and text."""
        return len(self.scales) + 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def training_section(recipe: Recipe) -> BackendSection:
    """The backend that learns: adapt.model where it is named, in as many steps as its previews need, else the recipe's own."""
    own = recipe.backend
    if recipe.adapt.model is None:
        return own
    few = {"steps": PARENT_STEPS, "guidance_scale": PARENT_GUIDANCE} if own.steps < PARENT_STEPS else {}
    return own.model_copy(update={"model": recipe.adapt.model, "revision": None, "unet": None, **few})


def final_section(recipe: Recipe) -> BackendSection:
    """The backend whose weights the finished adapter fits: what draws, where its parent's lesson is distilled into it."""
    return recipe.backend if recipe.adapt.distill.pairs else training_section(recipe)


def locate(section: BackendSection) -> tuple[Path, Path | None]:
    """The model's folder and the U-Net that stands in for its own, if any; raises ModelError with every remedy."""
    folder = find_model(section.model, section.revision)
    return folder, find_unet(section.unet) if section.unet else None


def resolve_backend(section: BackendSection, machine: Machine | None = None) -> BackendSpec:
    """Find and check the model and settle every `auto`; raises ModelError with all problems and their remedies."""
    folder, unet = locate(section)
    facts = read_model(folder, unet)  # raises ModelError for a model that cannot be loaded
    machine = machine or this_machine()
    device = resolve_device(section.device)
    dtype = resolve_dtype(section.dtype, device, machine)
    size_px = section.size_px or facts.size_px
    problems = [*_size_problems(size_px, facts), *_step_problems(section, facts)]
    if problems:
        raise ModelError(problems)
    spec = BackendSpec(
        model=section.model,
        path=str(folder),
        fingerprint=model_fingerprint(folder, unet),
        revision=section.revision,
        dtype=dtype,
        device=device,
        scheduler=section.scheduler,
        steps=section.steps,
        guidance_scale=section.guidance_scale,
        size_px=size_px,
        batch=section.batch or 1,
        threads=section.threads or machine.cores,
        memory_format=_memory_format(section.memory_format, device),
        compile=section.compile,
        extra_evaluations=_extra_evaluations(section, facts),
        unet=str(unet or ""),
        kind=facts.kind,
        image_guidance_scale=section.image_guidance_scale,
    )
    return spec if section.batch else replace(spec, batch=default_batch(spec, facts, machine))


def with_adapter(spec: BackendSpec, folder: Path, parts: Parts) -> BackendSpec:
    """The same backend drawing with (parts of) an adapter."""
    if parts == "none":
        return spec
    return replace(spec, adapter=str(folder), adapter_hash=adapter_hash(folder), adapter_parts=parts)


def check_model(recipe: Recipe) -> ModelFacts:
    """Check the recipe's model, size, steps and strengths together, without torch; raises ModelError with all problems."""
    section, generate = recipe.backend, recipe.generate
    facts = read_model(*locate(section))
    problems = [*_size_problems(section.size_px or facts.size_px, facts), *_step_problems(section, facts)]
    problems += kind_problems(recipe, facts.kind)
    if generate.method.endswith(("-aug", "-mix")):
        if generate.strength_policy == "uniform":
            low, high = sorted(generate.strength)
            if not quantised_strengths(low, high, section.steps, facts.levels):
                text = f"no strength between {low:g} and {high:g} can be drawn in {section.steps} steps"
                problems.append(Problem("generate.strength", text, "widen the range or use more steps"))
        else:
            problems += strength_problems(generate.strength, section.steps, facts.levels)
    if problems:
        raise ModelError(problems)
    return facts


def strange_data(recipe: Recipe) -> list[str]:
    """That the package's own models know one kind of image, where the data are of another."""
    adapts, draws = recipe.adapt.method != "none", recipe.generate.method != "none"
    if not (adapts or draws) or recipe.backend.model not in OWN or recipe.dataset.path.startswith("builtin:meadow"):
        return []
    text = f"{recipe.backend.model} has seen drawn butterflies and nothing else, and these data are something else"
    return [f"{text}; a gain needs a model that knows such images: --set backend.model=FOLDER_OR_ID"]


def kind_problems(recipe: Recipe, kind: Kind) -> list[Problem]:
    """What a recipe asks of a kind of model that was trained for something else."""
    generate, model = recipe.generate, recipe.backend.unet or recipe.backend.model
    if generate.method == "none":
        return []
    if generate.method == "edit" and kind != "edit":
        what = "an inpainting model" if kind == "inpaint" else "a text-to-image model"
        remedy = "name a model of InstructPix2Pix shape in backend.model, or use generate.method=real-aug"
        return [Problem("generate.method", f"edit follows an instruction and {model} is {what}", remedy)]
    if generate.method != "edit" and kind == "edit":
        text = f"{model} edits images by instruction and {generate.method} draws by noise and strength"
        return [Problem("generate.method", text, "use generate.method=edit")]
    if generate.mask == "none" and kind == "inpaint":
        text = f"{model} is an inpainting model, which repaints what a mask covers, and generate.mask is none"
        remedy = "use generate.method=real-aug with generate.mask=object or background, or a text-to-image model"
        return [Problem("generate.mask", text, remedy)]
    return []


def check_device(recipe: Recipe) -> None:
    """Raise ModelError for a device that is not here, or a dtype it cannot draw in; loads torch."""
    device = resolve_device(recipe.backend.device)
    if recipe.generate.method != "none":
        resolve_dtype(recipe.backend.dtype, device, this_machine())


def default_batch(spec: BackendSpec, facts: ModelFacts, machine: Machine) -> int:
    """Images a chunk from the device's free memory, the latent's size and the U-Net's width."""
    latent_px = spec.size_px // facts.downscale
    per_image = image_bytes(latent_px=latent_px, width=facts.width, dtype=spec.dtype, ways=spec.ways)
    free = device_free_memory(spec.device, machine)
    return chunk_size(
        device=spec.device, latent_px=latent_px, per_image=per_image, weights=facts.weight_bytes, free=free
    )


def _extra_evaluations(section: BackendSection, facts: ModelFacts) -> int:
    """PNDM evaluates its second timestep twice; with Runge-Kutta its first three cost four evaluations each."""
    if section.steps == 1 or not _is_pndm(section, facts):
        return 0
    return 1 if facts.skips_prk or section.scheduler == "pndm" else 3 * (PNDM_ORDER - 1)


def _is_pndm(section: BackendSection, facts: ModelFacts) -> bool:
    return section.scheduler == "pndm" or (section.scheduler == "model" and facts.scheduler == "PNDMScheduler")


def _memory_format(requested: MemoryFormat | Literal["auto"], device: str) -> MemoryFormat:
    """On the CPU group norms make channels-last slower (measured); on GPUs convolutions prefer it."""
    if requested == "auto":
        return "channels-last" if device.startswith("cuda") else "contiguous"
    return requested


def _size_problems(size_px: int, facts: ModelFacts) -> list[Problem]:
    multiple = facts.downscale * facts.unet_multiple
    if size_px % multiple == 0:
        return []
    low = max(size_px // multiple, 1) * multiple
    text = f"{size_px} px cannot be drawn: this model draws multiples of {multiple} px"
    return [Problem("backend.size_px", text, f"use {low} or {low + multiple}")]


def _step_problems(section: BackendSection, facts: ModelFacts) -> list[Problem]:
    problems = _one_step_problems(section, facts)
    if section.scheduler == "model" and section.steps > 1 and facts.scheduler in TWICE_A_STEP:
        text = f"model is {facts.scheduler} here, which evaluates the U-Net twice a step; strengths are counted in single ones"
        problems.append(Problem("backend.scheduler", text, "use dpm-solver++, euler or another one by name"))
    return problems


def _one_step_problems(section: BackendSection, facts: ModelFacts) -> list[Problem]:
    if facts.levels is None:
        return []
    problems = []
    if section.guidance_scale > 1.0:
        text = f"{section.model} is distilled and was trained without guidance, got guidance_scale {section.guidance_scale:g}"
        problems.append(Problem("backend.guidance_scale", text, "set backend.guidance_scale=0"))
    if section.steps > len(facts.levels):
        text = f"{section.model} is distilled for {_plural(len(facts.levels), 'step')} at most, got {section.steps}"
        problems.append(Problem("backend.steps", text, f"set backend.steps={len(facts.levels)} or less"))
    return problems


# ------------------------------------------------------------------------------------------ strength


def executed_steps(steps: int, strength: float) -> int:
    """Denoising steps image-to-image runs at a strength; 1 for one-step drawing, 0 means it cannot be drawn.

    >>> [executed_steps(25, s) for s in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)], executed_steps(25, 0.02), executed_steps(1, 0.3)
    ([7, 12, 17, 20, 22, 25], 0, 1)
    """
    if steps == 1:
        return 1
    return min(math.floor(steps * strength + ROUNDING), steps)


def one_step_timestep(strength: float, num_train_timesteps: int = 1000) -> int:
    """The timestep whose noise level a strength names when one step is drawn.

    >>> one_step_timestep(1.0), one_step_timestep(0.5), one_step_timestep(0.0001)
    (999, 499, 0)
    """
    return max(round(strength * num_train_timesteps) - 1, 0)


def strength_problems(strengths: Sequence[float], steps: int, levels: Sequence[float] | None) -> list[Problem]:
    """Why some strengths cannot be drawn, with the numbers and the remedy; empty when all can.

    >>> print(strength_problems([0.02], 25, None)[0])
    generate.strength: 0.02 with 25 steps leaves 0 denoising steps — use strength >= 0.04 or backend.steps >= 50
    """
    where, problems = "generate.strength", []
    for strength in dict.fromkeys(strengths):
        if steps == 1 and levels is not None:
            if not any(abs(strength - level) < ROUNDING for level in levels):
                known = ", ".join(f"{level:g}" for level in levels)
                text = f"{strength:g} is no noise level this one-step model was trained for"
                remedy = (
                    "use generate.method real-gen (drawn from text)"
                    if tuple(levels) == (1.0,)
                    else "choose one of them"
                )
                problems.append(Problem(where, f"{text}; it has {known}", remedy))
        elif executed_steps(steps, strength) < 1:
            needed = math.ceil(1 / strength - ROUNDING)
            text = f"{strength:g} with {steps} steps leaves 0 denoising steps"
            problems.append(
                Problem(where, text, f"use strength >= {math.ceil(1000 / steps) / 1000:g} or backend.steps >= {needed}")
            )
    return problems


def quantised_strengths(low: float, high: float, steps: int, levels: Sequence[float] | None) -> list[float]:
    """The strengths between two ends that differ in what is executed, for `strength_policy: uniform`; may be empty.

    >>> quantised_strengths(0.3, 0.5, 10, None)
    [0.3, 0.4, 0.5]
    """
    if steps == 1:
        grid = list(levels) if levels is not None else [k / 100 for k in range(1, 101)]
    else:
        grid = [k / steps for k in range(1, steps + 1)]
    return [value for value in grid if low - ROUNDING <= value <= high + ROUNDING]


class Evaluations(NamedTuple):
    """U-Net evaluations one image costs."""

    steps: int
    total: int  # twice as many with guidance, three times as many for guided edits


def evaluations(spec: BackendSpec, steps: int, passes: int = 1) -> Evaluations:
    """Of an image whose `passes` make `steps` steps together."""
    return Evaluations(steps, (steps + passes * spec.extra_evaluations) * spec.ways)


def spec_id(spec: BackendSpec) -> str:
    """What of a backend fixes an image's pixels, hashed; threads, batch and device fix only the last bits."""
    drawn_by = (spec.fingerprint, spec.adapter_hash, spec.adapter_parts)
    by_image = (spec.image_guidance_scale,) if spec.kind == "edit" else ()
    return content_id(*drawn_by, spec.dtype, spec.scheduler, spec.guidance_scale, spec.size_px, spec.steps, *by_image)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
