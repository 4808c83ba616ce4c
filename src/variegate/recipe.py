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


class PriorSection(Section):
    """Prior preservation (DreamBooth, arXiv 2208.12242): images of the model as it was, learned along."""

    images: int = Field(0, ge=0)  # drawn once and cached; 0: off
    text: str = "a photo"  # what they are drawn from and captioned with
    weight: float = Field(1.0, ge=0.0)


class AdaptSection(Section):
    """Teaching the model the classes: learned tokens (arXiv 2208.01618), LoRA (arXiv 2106.09685), or both at once."""

    method: Literal["none", "tokens", "lora", "tokens+lora", "file"] = "none"
    path: str | None = None  # method file: an adapter's folder, from another run or from variegate import
    model: str | None = None  # learn on this model, draw with backend.model: the many-step parent of a one-step model
    joint: bool = True  # false (tokens only): a run of its own for each class
    vectors: int = Field(1, ge=1, le=64)  # tokens a class
    init: str = "name"  # first values: name (the class's own words), random, or a word such as bird
    superclass: str = ""  # follows the token in every caption, when adapting and when drawing: "<class_3> bird"
    rank: int = Field(8, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0.0)  # null: the rank
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Literal["attention", "all"] | list[str] = "attention"  # where the U-Net gets a LoRA; all: convolutions and
    # feed-forward layers too, which small models need; or endings of module names
    text_encoder_lora: bool = False
    steps: int = Field(300, ge=1)
    batch: int = Field(32, ge=1)  # images a step, all processes together
    micro_batch: int | None = Field(None, ge=1)  # of them at a time; null: all. Halved when memory runs out
    optimizer: Literal["adamw", "adamw-8bit", "prodigy"] = "adamw"
    lr: float | None = Field(None, gt=0.0)  # of the LoRA; null: 8e-5 at the width of SD 1.5, more for narrower models
    token_lr: float | None = Field(None, gt=0.0)  # of the tokens; null: 4e-4 at the width of SD 1.5, likewise
    weight_decay: float = Field(0.01, ge=0.0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: Fraction = 0.05
    clip: float | None = Field(1.0, gt=0.0)  # of the gradient's norm
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # moving average of what is trained; 0: off
    dtype: Literal["auto", "bf16", "fp32"] = "auto"  # fp16 cannot hold these gradients
    gradient_checkpointing: bool = False
    snr_cap: float | None = Field(5.0, gt=0.0)  # min-SNR weighting (arXiv 2303.09556); null: off
    noise_offset: float = Field(0.0, ge=0.0, le=1.0)
    timesteps: Literal["all", "last"] = "all"  # last: DasDiff's rule for one-step models, which blurs (docs/methods.md)
    mask: Literal["none", "foreground"] = "none"  # foreground: the loss counts where the data's masks are
    flip: bool = True  # mirror images are images of the class too
    crops: int = Field(1, ge=1, le=64)  # views of each image, encoded once: the whole and random crops
    balance: float = Field(1.0, ge=0.0)  # an image is picked with 1 / n^balance, n the images of its class
    prior: PriorSection = PriorSection()
    evaluations: int = Field(4, ge=0)  # held-out losses, evenly spaced
    previews: int = Field(2, ge=0)  # grids of drawn images with fixed seeds, evenly spaced
    early_stop: int | None = Field(None, ge=1)  # stop after as many held-out losses without a better one
    checkpoints: int = Field(4, ge=1)  # how often the state is saved; the last two are kept

    @model_validator(mode="after")
    def _together(self) -> AdaptSection:
        if (self.method == "file") != (self.path is not None):
            raise ValueError("method file and path go together: path names the adapter's folder")
        if not self.joint and self.method != "tokens":
            raise ValueError("joint: false is for method tokens; a LoRA is learned for all classes at once")
        if self.early_stop is not None and not self.evaluations:
            raise ValueError("early_stop watches the held-out loss and evaluations is 0; raise it")
        if not self.init.strip():
            raise ValueError("init is empty; use name, random or a word")
        return self

    @property
    def has_tokens(self) -> bool:
        """Whether this recipe's own adapting learns tokens."""
        return "tokens" in self.method

    @property
    def has_lora(self) -> bool:
        return "lora" in self.method


class PromptsSection(Section):
    """What the model is told. Text may use {name}, {description}, {caption} and {environment}."""

    method: Literal["template"] = "template"
    text: str | list[str] = "a photo of a {name}"  # a list is dealt out evenly
    environments: list[str] | Literal["groups"] = []  # dealt out evenly for {environment}; groups: those of the images
    negative: str = ""

    @model_validator(mode="after")
    def _placeholders(self) -> PromptsSection:
        texts = [self.text] if isinstance(self.text, str) else self.text
        if not texts:
            raise ValueError("text is an empty list; give at least one prompt")
        for text in texts:
            _check_placeholders(text)
            if "{environment}" in text and not self.environments:  # "groups" is looked up in the data
                raise ValueError("text uses {environment} but environments is empty; list some phrases there")
        return self


class TokenNoiseSection(Section):
    """DIAGen's noise on learned tokens (arXiv 2408.14584): e + std N(0, I)."""

    std: list[Annotated[float, Field(ge=0.0, le=10.0)]] = []  # dealt out evenly; DIAGen: 0, 0.005, 0.01, 0.025
    relative: bool = False  # true: std is a share of the token's own standard deviation
    policy: Literal["fresh", "fixed"] = "fresh"  # fresh: new noise for every image; fixed: one draw a class and std


class GenerateSection(Section):
    """Which image becomes what. Methods are Diff-Mix's eight strategies: real|ti|diff x gen|aug|mix."""

    method: Strategy = "real-aug"
    per_real: float = Field(5.0, gt=0.0, le=10_000)  # images to make for each real training image
    per_class: int | None = Field(None, ge=1)  # exact number a class instead
    balance: Literal["equal", "need"] = "equal"  # need: fill every class up to the same real + synthetic total
    strength: Annotated[list[Strength], BeforeValidator(_as_list), Field(min_length=1)] = [0.5]  # one number or a list
    strength_policy: Literal["cycle", "choice", "uniform"] = "cycle"  # uniform: anywhere between the list's ends
    source_by: Literal["class", "image"] = "class"  # mix: draw sources uniformly over classes, or over images
    referring: int | None = Field(None, ge=1)  # mix: images of a class move to so many other classes only; null: to all
    token_noise: TokenNoiseSection = TokenNoiseSection()

    @model_validator(mode="after")
    def _referring(self) -> GenerateSection:
        if self.referring is not None and not self.method.endswith("-mix"):
            raise ValueError(f"referring is for methods that move images between classes and method is {self.method}")
        return self

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
    encoder: str = "auto"  # auto: the drawing model's own features; clip:NAME or clip:FOLDER through open_clip;
    # classifier: the recipe's own, taught by the real training images alone


class MixingSection(Section):
    """How synthetic images meet the real ones in training."""

    policy: Literal["replace", "pool", "concat"] = "pool"  # replace: by images made from the same real one
    fraction: Fraction = 0.3  # chance that a training sample is synthetic (replace, pool)
    schedule: Literal["constant", "falling", "linear", "step", "warm-up"] = "constant"  # of that chance over the steps;
    # falling: evenly to 0; linear: evenly from 0; step: 0, half, all in thirds; warm-up: 0 for a sixth, then linear

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

    model: str = (
        "resnet-small"  # our own, for small images; preact-resnet18, -34, wide-resnet-28-2, -28-10; any timm name
    )
    pretrained: bool | str = False  # true: timm's weights; a path: a safetensors file
    mode: Literal["full", "last-stages", "norms", "linear-probe"] = "full"  # what learns; the head always does
    last_stages: int = Field(1, ge=1)  # mode last-stages: so many stages of a ResNet (it has 4), blocks of a ViT (12)
    mixing: MixingSection = MixingSection()
    label: LabelSection = LabelSection()
    pools: list[str] = []  # other run folders whose kept synthetic images are added to this run's
    subset_per_class: int | None = Field(None, ge=1)  # an arm learns from so many images a class, real and synthetic
    # together, drawn at random once; null: all
    augment: Literal["none", "classic", "randaugment", "trivialaugment"] = "classic"
    mix: Literal["none", "mixup", "cutmix", "mixup+cutmix", "manifold-mixup", "puzzle-mix", "fractal-mixup"] = "none"
    transport: bool = False  # puzzle-mix: salient blocks also move, by optimal transport
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = Field(None, gt=0.0)  # null: 0.005 resnet-small, 0.001 others, 0.0003 pretrained; sgd 10 x
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_fraction: Fraction = 0.1
    batch: int = Field(48, ge=1)
    steps: int | None = Field(300, ge=1)  # optimiser steps, the same for every arm
    epochs: int | None = Field(None, ge=1)  # instead of steps: passes over the real training images
    evaluations: int = Field(10, ge=1)  # validation checks, evenly spaced

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, values: Any) -> Any:
        """Epochs without steps mean epochs; only both given by name contradict each other."""
        if isinstance(values, dict) and values.get("epochs") is not None and "steps" not in values:
            return {**values, "steps": None}
        return values

    @model_validator(mode="after")
    def _length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}; give one and set the other to null")
        return self

    @model_validator(mode="after")
    def _keys_of_a_value(self) -> TrainSection:
        if self.transport and self.mix != "puzzle-mix":
            raise ValueError(f"transport is a part of puzzle-mix and mix is {self.mix}; set one of them otherwise")
        if self.last_stages != 1 and self.mode != "last-stages":
            raise ValueError(f"last_stages has no effect on mode {self.mode}; set mode: last-stages")
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
        _check_adapter_use(self.adapt, self.generate)
        _check_tokens_said(self)
        synthetic = [arm for arm in self.evaluate.arms if "synthetic" in arm]
        if method == "none" and synthetic and not self.train.pools:
            raise ValueError(f"evaluate.arms has {synthetic[0]} but generate.method is none; set arms: [real]")
        if self.train.pools and not synthetic:
            raise ValueError(
                "train.pools adds synthetic images and no arm of evaluate.arms uses any; add real+synthetic"
            )
        if method.endswith("-gen") and self.train.mixing.policy == "replace" and "real+synthetic" in synthetic:
            raise ValueError(
                f"train.mixing.policy replace swaps a real image for one made from it and generate.method {method} "
                "draws from text alone; use pool or concat"
            )
        return self


def _check_adapter_use(adapt: AdaptSection, generate: GenerateSection) -> None:
    """A strategy and an adapter that do not go together."""
    method = generate.method
    kind, _, use = method.partition("-")
    if kind in {"ti", "diff"} and adapt.method == "none":
        raise ValueError(
            f"generate.method {method} draws with an adapter and adapt.method is none; set adapt.method=tokens+lora, "
            f"or use real-{use}, which draws with the model as it is"
        )
    if kind == "ti" and adapt.method == "lora":
        raise ValueError(f"generate.method {method} draws with learned tokens and adapt.method is lora; use diff-{use}")
    if kind == "real" and adapt.method != "none":
        raise ValueError(
            f"generate.method {method} draws with the model as it is, so adapt.method {adapt.method} would be "
            f"for nothing; use diff-{use} or set adapt.method=none"
        )
    if generate.token_noise.std and (kind not in {"ti", "diff"} or adapt.method == "lora"):
        raise ValueError(
            f"generate.token_noise needs learned tokens; {method} with adapt.method {adapt.method} has none"
        )


def _check_tokens_said(recipe: Recipe) -> None:
    """Learned tokens that no prompt would say."""
    texts = [recipe.prompts.text] if isinstance(recipe.prompts.text, str) else recipe.prompts.text
    silent = next((text for text in texts if "{name}" not in text), None)
    if recipe.adapt.has_tokens and silent is not None:
        raise ValueError(
            f"prompts.text {silent!r} never says {{name}}, so adapt.method {recipe.adapt.method} would learn tokens "
            "for nothing; put {name} where the class is named, or use adapt.method=lora"
        )
