"""What a recipe may say: typed sections in stage order, every key with a default, checked together.

Reading, overriding and explaining YAML is recipe_file.py's job. Nothing here imports torch.
What needs the data or the model (class counts, one-step models) is checked by the stage that knows it, at plan time.
"""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(gt=0.0, le=1.0)]
Strategy = Literal[
    "none", "real-gen", "real-aug", "real-mix", "ti-gen", "ti-aug", "ti-mix", "diff-gen", "diff-aug", "diff-mix"
]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _check_placeholders(text: str) -> None:
    known = {"name", "description", "caption", "environment"}
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as exc:
        raise ValueError(f"prompt {text!r} has an unbalanced brace; write {{{{ for a literal one") from exc
    unknown = sorted(fields - known)
    if unknown:
        raise ValueError(f"prompt {text!r} uses unknown {{{unknown[0]}}}; known: {', '.join(sorted(known))}")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackendSection(Section):
    """What draws."""

    model: str = "starter"  # starter, a hub id, or a local folder in any diffusers layout
    revision: str | None = None  # of a hub model
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the processor has it, fp16 on older GPUs
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    scheduler: Literal["model", "ddim", "dpm-solver++", "euler", "euler-a", "pndm", "lcm", "unipc"] = "dpm-solver++"
    steps: int = Field(25, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0.0, le=100.0)  # 1 or less: no guidance, half the work
    size_px: int | None = Field(None, ge=16, le=4096)  # drawn size; null: the model's own
    batch: int | None = Field(
        None, ge=1, le=4096
    )  # images a chunk; null: from the device's memory, written into the plan
    threads: int | None = Field(None, ge=1, le=512)  # a worker's threads on CPU; null: all cores, written into the plan
    memory_format: Literal["auto", "channels-last", "contiguous"] = "auto"
    compile: bool = False  # pays off on long GPU runs only


class MeadowSection(Section):
    """Options of builtin:meadow."""

    n_species: int = Field(10, ge=2, le=1000)
    n_per_species: int = Field(5, ge=1, le=10_000)  # training images
    n_val: int = Field(10, ge=0, le=1000)
    n_test: int = Field(50, ge=1, le=1000)
    habitat_bias: Fraction = 0.0
    seed: int = Field(0, ge=0)  # which species; the recipe's seed chooses their training pictures


class DatasetSection(Section):
    """The user's images."""

    path: str = "builtin:meadow"  # folder, .csv/.jsonl/.parquet, hf:org/name, builtin:meadow, builtin:digits
    size_px: int = Field(64, ge=16, le=4096)  # edge of the classifier's square input
    fit: Literal["crop", "pad", "stretch"] = "crop"  # how other shapes become square
    shots: int | None = Field(None, ge=1)  # training images a class, drawn by seed, nested; null: all
    imbalance: float | None = Field(None, ge=1.0)  # long tail: first class has this many times the last one's images
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = (
        0.2  # of the training images, where the data has no val split
    )
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3  # of all images, where the data has no test split
    image_column: str = "image"  # hf: data
    label_column: str = "label"
    max_megapixels: float = Field(64.0, gt=0.0)  # larger pictures are refused
    skip_unreadable: bool = False  # true: leave unreadable files out and list them
    meadow: MeadowSection = MeadowSection()


class AdaptSection(Section):
    """Teaching the model the classes."""

    method: Literal["none"] = "none"


class PromptsSection(Section):
    """What the model is told. Text may use {name}, {description}, {caption} and {environment}."""

    method: Literal["template"] = "template"
    text: str | list[str] = "a photo of a {name}"  # a list is dealt out evenly
    environments: list[str] = []  # dealt out evenly for {environment}
    negative: str = ""

    @model_validator(mode="after")
    def _placeholders(self) -> PromptsSection:
        texts = [self.text] if isinstance(self.text, str) else self.text
        if not texts:
            raise ValueError("text is an empty list; give at least one prompt")
        for text in texts:
            _check_placeholders(text)
            if "{environment}" in text and not self.environments:
                raise ValueError("text uses {environment} but environments is empty; list some phrases there")
        return self


class GenerateSection(Section):
    """Which image becomes what. Methods are Diff-Mix's eight strategies: real|ti|diff x gen|aug|mix."""

    method: Strategy = "real-aug"
    per_real: float = Field(5.0, gt=0.0, le=10_000)  # images to make for each real training image
    per_class: int | None = Field(None, ge=1)  # exact number a class instead
    balance: Literal["equal", "need"] = "equal"  # need: fill every class up to the same real + synthetic total
    strength: Annotated[list[Strength], BeforeValidator(_as_list), Field(min_length=1)] = [0.5]  # one number or a list
    strength_policy: Literal["cycle", "choice", "uniform"] = "cycle"  # uniform: anywhere between the list's ends
    source_by: Literal["class", "image"] = "class"  # mix: draw sources uniformly over classes, or over images

    @model_validator(mode="after")
    def _strengths(self) -> GenerateSection:
        if self.strength_policy == "uniform" and len(self.strength) != 2:
            raise ValueError(f"strength_policy uniform needs strength: [low, high], got {self.strength}")
        return self


class CurateStep(Section):
    """One score and what follows from it."""

    score: Literal["blank", "class-agreement"]
    policy: Literal["drop", "weight"] = "drop"
    drop_below: float | None = None  # class-agreement: probability of the target; blank has its own fixed rule
    drop_fraction: Fraction | None = None  # instead: the lowest share of each class
    encoder: str = "auto"  # auto: the drawing model's own features; clip:NAME or clip:FOLDER through open_clip


class MixingSection(Section):
    """How synthetic images meet the real ones in training."""

    policy: Literal["replace", "pool", "concat"] = "pool"  # replace: by images made from the same real one
    fraction: Fraction = 0.3  # chance that a training sample is synthetic (replace, pool)
    schedule: Literal["constant", "falling"] = "constant"  # falling: the chance falls evenly to 0 at the last step

    @model_validator(mode="after")
    def _schedule(self) -> MixingSection:
        if self.policy == "concat" and self.schedule != "constant":
            raise ValueError("schedule has no effect on policy concat; use pool or replace")
        return self


class LabelSection(Section):
    """Diff-Mix's soft label, kappa * ((1 - s^gamma) source + s^gamma target)."""

    gamma: float = Field(0.5, ge=0.0)
    kappa: float = Field(1.0, gt=0.0, le=1.0)
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1  # 5 shots of meadow: 79 % real-only, 74 % without


class TrainSection(Section):
    """The classifier."""

    model: str = "resnet-small"  # our own, for small images; or any timm name
    pretrained: bool | str = False  # true: timm's weights; a path: a safetensors file
    mode: Literal["full", "linear-probe"] = "full"
    mixing: MixingSection = MixingSection()
    label: LabelSection = LabelSection()
    augment: Literal["none", "classic", "randaugment", "trivialaugment"] = "classic"
    mix: Literal["none", "mixup", "cutmix", "mixup+cutmix"] = "none"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = Field(None, gt=0.0)  # null: 0.005 resnet-small, 0.001 others, 0.0003 pretrained; sgd 10 x
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_fraction: Fraction = 0.1
    batch: int = Field(48, ge=1)
    steps: int | None = Field(300, ge=1)  # optimiser steps, the same for every arm
    epochs: int | None = Field(None, ge=1)  # instead of steps: passes over the real training images
    evaluations: int = Field(10, ge=1)  # validation checks, evenly spaced

    @model_validator(mode="after")
    def _length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}; give one and set the other to null")
        return self


class EvaluateSection(Section):
    """The comparison at the end of a run."""

    arms: list[Literal["real", "real+synthetic", "synthetic"]] = ["real", "real+synthetic"]
    seeds: int = Field(3, ge=1, le=1000)

    @model_validator(mode="after")
    def _unique(self) -> EvaluateSection:
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms must be a list of different names, got {self.arms}")
        return self


class Recipe(Section):
    """Everything a run does. Frozen: stages read it, nobody changes it."""

    seed: int = Field(0, ge=0, lt=2**31)
    backend: BackendSection = BackendSection()
    dataset: DatasetSection = DatasetSection()
    adapt: AdaptSection = AdaptSection()
    prompts: PromptsSection = PromptsSection()
    generate: GenerateSection = GenerateSection()
    curate: list[CurateStep] = [CurateStep(score="blank")]
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        method = self.generate.method
        if method.startswith(("ti-", "diff-")):
            kin = "real-" + method.split("-")[1]
            raise ValueError(
                f"generate.method {method} draws with an adapter and adapt.method is {self.adapt.method}; "
                f"use {kin}, which draws with the model as it is"
            )
        synthetic = [arm for arm in self.evaluate.arms if "synthetic" in arm]
        if method == "none" and synthetic:
            raise ValueError(f"evaluate.arms has {synthetic[0]} but generate.method is none; set arms: [real]")
        if method == "real-gen" and self.train.mixing.policy == "replace" and "real+synthetic" in synthetic:
            raise ValueError(
                "train.mixing.policy replace swaps a real image for one made from it and generate.method real-gen "
                "draws from text alone; use pool or concat"
            )
        return self
