"""What a recipe may say: typed sections in stage order, every key with a default, checked together.

Reading, overriding and explaining YAML is recipe_file.py's job. Nothing here imports torch.
What needs the data or the model (class counts, one-step models) is checked by the stage that knows it, at plan time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from variegate.records import arm_folder
from variegate.templates import slot_problems

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(gt=0.0, le=1.0)]
Strategy = Literal[
    "none", "edit", "real-gen", "real-aug", "real-mix", "ti-gen", "ti-aug", "ti-mix", "diff-gen", "diff-aug", "diff-mix"
]


MAX_PASSES = 8  # of compose: sequential
MIXES_BY_SHARE = ("mixup", "cutmix", "mixup+cutmix", "manifold-mixup")
VIEWS_PER_IMAGE = 192  # when adapting; 300 steps of 32 for 50 images
LEAST_VIEWS, MOST_VIEWS = 300 * 32, 3000 * 32
WEIGHTED_VIEWS = 0.5  # of them with timesteps weighted, which teaches as much (docs/log.md, 2026-11-29)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


CLASS_SLOTS = ("name", "description")  # what a text may say of a class alone


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _default(section: Section, key: str) -> Any:
    """What a key is where it is not given; resolved recipes give them all, so that being set tells nothing."""
    return type(section).model_fields[key].default


@dataclass(frozen=True, slots=True)
class Overrides:
    """Says of a mapping that its keys are those of another section."""

    section: type[Section]


class BackendSection(Section):
    """What draws."""

    model: str = "starter"  # starter, a hub id, or a local folder in any diffusers layout
    revision: str | None = None  # of a hub model
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the processor has it, fp16 on older GPUs
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    scheduler: Literal["model", "ddim", "dpm-solver++", "euler", "euler-a", "pndm", "lcm", "unipc"] = "dpm-solver++"
    steps: int = Field(25, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0.0, le=100.0)  # 1 or less: no guidance, half the work
    image_guidance_scale: float = Field(1.5, ge=1.0, le=100.0)  # generate.method edit: how much of the image stays
    unet: str | None = None  # another U-Net instead of the model's: a diffusers U-Net folder or a .safetensors file
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
    uncommon_test: bool = False  # an extra test set: every species anywhere but in its own habitat
    seed: int = Field(0, ge=0)  # which species; the recipe's seed chooses their training pictures

    @model_validator(mode="after")
    def _own_habitats(self) -> MeadowSection:
        if self.uncommon_test and not self.habitat_bias:
            raise ValueError(
                "uncommon_test shows species outside the habitat that training ties them to, and habitat_bias 0 ties "
                "them to none; set habitat_bias, 1 for no other habitat in training"
            )
        return self


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
    group_is: Literal["subject", "context"] = "subject"  # subject (an animal, a session): a group stays on one side of
    # the splits; context (a background, a camera): it may be on all, as in Waterbirds
    image_column: str = "image"  # hf: data
    label_column: str = "label"
    max_megapixels: float = Field(64.0, gt=0.0)  # larger pictures are refused
    skip_unreadable: bool = False  # true: leave unreadable files out and list them
    meadow: MeadowSection = MeadowSection()


class PriorSection(Section):
    """Prior preservation (DreamBooth, arXiv 2208.12242): images of the model as it was, learned along."""

    images: int = Field(0, ge=0)  # drawn once and cached; 0: off
    text: str = "a photo"  # what they are drawn from and captioned with; {name}: adapt.superclass, else each class's
    # own words in turn
    weight: float = Field(1.0, ge=0.0)

    @model_validator(mode="after")
    def _fillable(self) -> PriorSection:
        problems = slot_problems(self.text, ("name",))
        if problems:
            raise ValueError(problems[0])
        return self


class DistillSection(Section):
    """What the adapted parent draws, learned by the one-step model that will draw (knowledge distillation, arXiv 2101.02388)."""

    pairs: int = Field(
        0, ge=0
    )  # noised latents and what the parent makes of them; 0: its adapter is carried over as it is
    steps: int = Field(300, ge=1)  # optimiser steps on them
    lr: float | None = Field(None, gt=0.0)  # of the LoRA, and of tokens in proportion; null: half of the parent's


class AdaptSection(Section):
    """Teaching the model the classes: learned tokens (arXiv 2208.01618), LoRA (arXiv 2106.09685), or both at once."""

    method: Literal["none", "tokens", "lora", "tokens+lora", "file"] = "none"
    path: str | None = None  # method file: an adapter's folder, from another run or from variegate import
    model: str | None = None  # learn on this model, draw with backend.model: the many-step parent of a one-step model
    distill: DistillSection = DistillSection()  # with `model`: teach the one-step model what its parent has learned
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
    steps: int | None = Field(None, ge=1)  # null: what shows each training image 192 times (joint: false: each one of a
    # class), at least 300 batches of 32 and at most 3,000; half of it with timesteps weighted
    batch: int = Field(32, ge=1)  # images a step, all processes together
    micro_batch: int | None = Field(None, ge=1)  # of them at a time; null: all. Halved when memory runs out
    optimizer: Literal["adamw", "adamw-8bit", "prodigy"] = "adamw"
    lr: float | None = Field(None, gt=0.0)  # of the LoRA; null: 8e-5 at the width of SD 1.5, more for narrower models
    # and half as much again with timesteps weighted
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
    # how often each timestep is learned from: all: evenly; weighted: as often as snr_cap's weight says, instead of counting
    # it so much; last: that one alone, DasDiff's rule for one-step models, which blurs (docs/methods.md)
    timesteps: Literal["all", "weighted", "last"] = "all"
    mask: Literal["none", "foreground"] = "none"  # foreground: the loss counts where the data's masks are
    # share of the loss that goes by where the prompt's class matters: where the prediction told of another class differs
    focus: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
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
        if self.distill.pairs and (self.model is None or not self.has_lora or not self.joint):
            raise ValueError(
                "distill teaches a one-step model what its adapted parent draws; name the parent in model, and set "
                "method lora or tokens+lora"
            )
        if self.focus and not self.joint:
            raise ValueError(
                "focus asks what another class would look like, and with joint: false none is learned beside; set it to 0"
            )
        if self.early_stop is not None and not self.evaluations:
            raise ValueError("early_stop watches the held-out loss and evaluations is 0; raise it")
        if self.early_stop is not None and not self.joint:
            raise ValueError("early_stop watches one held-out loss of all classes and joint is false; leave it out")
        if not self.init.strip():
            raise ValueError("init is empty; use name, random or a word")
        return self

    def steps_for(self, num_images: int) -> int:
        """Optimiser steps of one course over so many training images.

        What five images a class learn in 300 steps takes 1,000 with twenty (docs/log.md); Diff-Mix (arXiv 2403.19600) has
        35,000 of 8 for the 5,994 of CUB.

        >>> [AdaptSection().steps_for(n) for n in (10, 50, 200, 6000)], AdaptSection(batch=8).steps_for(200)
        ([300, 300, 1200, 3000], 4800)
        >>> AdaptSection(timesteps="weighted").steps_for(50)
        150
        """
        if self.steps is not None:
            return self.steps
        views = min(max(VIEWS_PER_IMAGE * num_images, LEAST_VIEWS), MOST_VIEWS)
        share = WEIGHTED_VIEWS if self.timesteps == "weighted" else 1.0
        return math.ceil(views * share / self.batch)

    @property
    def has_tokens(self) -> bool:
        """Whether this recipe's own adapting learns tokens."""
        return "tokens" in self.method

    @property
    def has_lora(self) -> bool:
        return "lora" in self.method


class LLMSection(Section):
    """The language model that writes prompts: a server with the OpenAI interface, or a transformers chat model."""

    endpoint: str | None = None  # http://127.0.0.1:8000/v1 or https://HOST/v1
    local: str | None = None  # instead: the folder of a transformers chat model
    cache: str | None = None  # answers of another run (its prompts/llm.jsonl); what is in there is not asked again
    model: str = ""  # the server's name for it
    key_env: str | None = "OPENAI_API_KEY"  # environment variable with the key; null: none is sent
    per_class: int = Field(10, ge=1, le=1000)  # prompts a class, shared evenly between the contexts
    contexts: Annotated[list[str], Field(min_length=1)] = ["usual"]  # usual, uncommon, or words of your own
    about: str = ""  # a sentence about the pictures, said in every request
    max_words: int = Field(20, ge=3, le=200)  # of a prompt
    temperature: float | None = Field(1.0, ge=0.0, le=2.0)  # null: the server's own
    max_tokens: int | None = Field(2048, ge=16)  # of an answer; null: the server's own
    tries: int = Field(5, ge=1, le=100)  # requests for each 40 prompts of a class and context until they are there
    parallel: int = Field(4, ge=1, le=64)  # requests at a time
    timeout_s: float = Field(120.0, gt=0.0)
    usd_per_million: Annotated[list[float], Field(min_length=2, max_length=2)] | None = (
        None  # tokens [in, out], for plan
    )

    @model_validator(mode="after")
    def _who(self) -> LLMSection:
        if self.endpoint and self.local:
            raise ValueError("endpoint and local are both given; keep one")
        if self.endpoint and not self.model:
            raise ValueError("endpoint needs model: the server's name for it")
        if len(set(self.contexts)) < len(self.contexts) or len(self.contexts) > self.per_class:
            raise ValueError(
                f"contexts must be different and at most per_class ({self.per_class}), got {self.contexts}"
            )
        if self.endpoint:
            _check_endpoint(self.endpoint)
        return self

    @property
    def named(self) -> bool:
        """Whether it is said who answers."""
        return any((self.endpoint, self.local, self.cache))


def _check_endpoint(endpoint: str) -> None:
    url = urlsplit(endpoint)
    try:
        whole = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number
        whole = False
    if not whole:
        raise ValueError(f"endpoint {endpoint!r} is no address; give one like http://127.0.0.1:8000/v1")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("endpoint holds more than an address; keys belong into the environment variable key_env names")


class PromptsSection(Section):
    """What the model is told. Texts may use {name}, {description}, {caption}, {environment} and {style}."""

    method: Literal["template", "file", "llm"] = "template"  # where texts come from: `text`, `file`, or `llm`
    text: str | list[str] = "a photo of a {name}"  # a list is dealt out evenly; the words of adapting with any method
    file: str | None = None  # DIAGen's .csv, a .jsonl of class_name and prompt, or a text with one prompt a line
    environments: str | list[str] = []  # dealt out evenly for {environment}: a bank, phrases, a text file with one a
    # line, or groups: those of the images
    styles: str | list[str] = []  # dealt out evenly for {style}: a bank, phrases, or a text file
    negative: str = ""
    llm: LLMSection = LLMSection()

    @model_validator(mode="after")
    def _placeholders(self) -> PromptsSection:
        if not self.texts:
            raise ValueError("text is an empty list; give at least one prompt")
        for text in self.texts:
            for problem in slot_problems(text):
                raise ValueError(problem)
        self._check_source()
        if self.method == "template":
            self._check_phrases()
        return self

    @property
    def texts(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else list(self.text)

    def _check_source(self) -> None:
        if (self.method == "file") != (self.file is not None):
            raise ValueError("method file and file go together: file names the list of prompts")
        if (self.method == "llm") != self.llm.named:
            raise ValueError("method llm and llm.endpoint, llm.local or llm.cache go together: they say who answers")
        places = [] if self.environments == "groups" else self.environments  # groups: for adapting, as text is
        if self.method == "llm" and (places or self.styles):
            raise ValueError("method llm writes whole prompts; use llm.contexts instead of environments and styles")

    def _check_phrases(self) -> None:
        for slot, key, given in (("environment", "environments", self.environments), ("style", "styles", self.styles)):
            used = any(f"{{{slot}}}" in text for text in self.texts)
            if used and not given:  # "groups" is looked up in the data
                raise ValueError(f"text uses {{{slot}}} but {key} is empty; name a bank or list some phrases there")
            if given and given != "groups" and not used:  # groups are there anyway; what was listed was to be said
                raise ValueError(
                    f"{key} is given and no text says {{{slot}}}; put it there: 'a photo of a {{name}}, {{{slot}}}'"
                )


class TokenNoiseSection(Section):
    """DIAGen's noise on learned tokens (arXiv 2408.14584): e + std N(0, I)."""

    std: list[Annotated[float, Field(ge=0.0, le=10.0)]] = []  # dealt out evenly; DIAGen: 0, 0.005, 0.01, 0.025
    relative: bool = False  # true: std is a share of the token's own standard deviation
    policy: Literal["fresh", "fixed"] = "fresh"  # fresh: new noise for every image; fixed: one draw a class and std


class GenerateSection(Section):
    """Which image becomes what. Methods are Diff-Mix's nine strategies, real|ti|diff x gen|aug|mix, and edit, which
    changes every real image as the prompt instructs."""

    method: Strategy = "real-aug"
    per_real: float = Field(5.0, gt=0.0, le=10_000)  # images to make for each real training image
    per_class: int | None = Field(None, ge=1)  # exact number a class instead
    balance: Literal["equal", "need"] = "equal"  # need: fill every class up to the same real + synthetic total
    strength: Annotated[list[Strength], BeforeValidator(_as_list), Field(min_length=1)] = [0.5]  # one number or a list
    strength_policy: Literal["cycle", "choice", "uniform"] = "cycle"  # uniform: anywhere between the list's ends
    strength_weights: list[Annotated[float, Field(ge=0.0)]] | None = None  # choice: how often each; null: equally often
    compose: Literal["parallel", "sequential"] = (
        "parallel"  # parallel: one strength a row; sequential: one after another
    )
    probability: Annotated[list[Fraction], BeforeValidator(_as_list), Field(min_length=1)] = [1.0]  # sequential: chance
    # that a row goes through a strength: one number, or one for each; rows that would go through none are not planned
    mask: Literal["none", "object", "background"] = "none"  # what is repainted: what masks show, or all around it
    mask_from: Literal["data", "model"] = "data"  # model: where its prediction depends on what the image is of
    mask_text: str | None = (
        None  # what a repainted background is drawn from, such as "a photo, {environment}"; null: prompts
    )
    mask_grow: float = Field(0.0, ge=-0.5, le=0.5)  # the object's mask, each side, as a share of the edge; < 0 shrinks
    mask_paste: bool = False  # true: what is not repainted is the source's own pixels, with a soft seam
    source_by: Literal["class", "image"] = "class"  # mix: draw sources uniformly over classes, or over images
    referring: int | None = Field(None, ge=1)  # mix: images of a class move to so many other classes only; null: to all
    token_noise: TokenNoiseSection = TokenNoiseSection()

    @model_validator(mode="after")
    def _referring(self) -> GenerateSection:
        if self.referring is not None and not self.method.endswith("-mix"):
            raise ValueError(f"referring is for methods that move images between classes and method is {self.method}")
        if self.source_by != _default(self, "source_by") and not self.method.endswith("-mix"):
            raise ValueError(f"source_by is for methods that move images between classes and method is {self.method}")
        return self

    @model_validator(mode="after")
    def _strengths(self) -> GenerateSection:
        if self.strength_policy == "uniform" and len(self.strength) != 2:
            raise ValueError(f"strength_policy uniform needs strength: [low, high], got {self.strength}")
        weights = self.strength_weights
        if weights is not None and self.strength_policy != "choice":
            raise ValueError("strength_weights says how often strength_policy choice takes each; set it to choice")
        if weights is not None and (len(weights) != len(self.strength) or not sum(weights)):
            raise ValueError(f"strength_weights needs a weight for each strength, not all 0, got {weights}")
        return self

    @model_validator(mode="after")
    def _sequence(self) -> GenerateSection:
        if self.compose == "parallel":
            if self.probability != [1.0]:
                raise ValueError("probability is for compose: sequential; parallel rows have one strength each")
            return self
        if not self.from_image or not 2 <= len(self.strength) <= MAX_PASSES or self.strength_policy != "cycle":
            raise ValueError(
                f"compose sequential needs an aug or mix method, strength_policy cycle and 2 to {MAX_PASSES} strengths, "
                f"got {self.method}, {self.strength_policy} and {self.strength}"
            )
        if len(self.probability) not in (1, len(self.strength)) or not any(self.probability):
            raise ValueError(
                f"probability needs one number, or one for each strength, not all 0, got {self.probability}"
            )
        return self

    @model_validator(mode="after")
    def _masks(self) -> GenerateSection:
        if self.mask == "none" and (self.mask_grow or self.mask_paste or self.mask_from != "data"):
            raise ValueError("mask_from, mask_grow and mask_paste need a mask; set mask to object or background")
        if self.mask_text is not None and self.mask != "background":
            raise ValueError(
                f"mask_text is for what is around the object and mask is {self.mask}; set mask to background"
            )
        for problem in slot_problems(self.mask_text or "", ("environment", "style")):
            raise ValueError(problem)
        if self.mask != "none" and not self.from_image:
            raise ValueError(
                f"mask {self.mask} repaints a part of a source and method {self.method} has none to start from; set mask to none"
            )
        if self.mask == "background" and self.method.endswith("-mix"):
            raise ValueError(
                f"mask background keeps the object of the source, and {self.method} would call it another class; use "
                "mask object or none, or an aug method"
            )
        return self

    @property
    def from_image(self) -> bool:
        """Whether rows begin with a source image, moved by strength."""
        return self.method.endswith(("-aug", "-mix"))

    @property
    def keeps_class(self) -> bool:
        """Whether a row's source is of the class it shows."""
        return self.method.endswith("-aug") or self.method == "edit"


class ConcatStep(Section):
    """Part of the original beside part of the drawn image (DiffuseMix, arXiv 2405.14881)."""

    op: Literal["concat"]
    orientation: Literal["random", "horizontal", "vertical"] = "random"  # horizontal: side by side
    first: Literal["original", "random"] = "original"  # whose half is left or on top; random: tossed for each image
    seam: Fraction = 0.08  # width of the ramp between the halves as a share of the edge; 0: a hard edge
    seam_px: int | None = Field(None, ge=0)  # the same in pixels, instead

    @model_validator(mode="after")
    def _one_seam(self) -> ConcatStep:
        if self.seam_px is not None and self.seam != type(self).model_fields["seam"].default:
            raise ValueError(f"seam is {self.seam} and seam_px is {self.seam_px}; give one of them")
        return self


class FractalStep(Section):
    """A fractal laid over the image, (1 - weight) image + weight fractal; labels stay as they are."""

    op: Literal["fractal"]
    weight: Annotated[list[Fraction], BeforeValidator(_as_list), Field(min_length=1, max_length=2)] = [0.2]
    # one number, or [low, high] for one drawn uniformly for each image
    kinds: Annotated[list[Literal["ifs", "flame", "julia"]], Field(min_length=1)] = ["ifs", "flame", "julia"]

    @model_validator(mode="after")
    def _in_order(self) -> FractalStep:
        if self.weight[0] > self.weight[-1]:
            raise ValueError(f"weight is {self.weight}, should be [low, high]")
        return self


class PatchesStep(Section):
    """Rectangles of the drawn image pasted into the original."""

    op: Literal["patches"]
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5  # share of the picture that is the drawn image's
    max_patches: int = Field(5, ge=1, le=16)  # each image gets 1 to as many, equally likely
    softness: Annotated[float, Field(ge=0.0, le=0.25)] = 0.0  # blur of the patches' edges, share of the edge; 0: hard


class HybridBlendStep(Section):
    """The original where the drawn image says least about its class, as a CLIP model sees it."""

    op: Literal["hybrid-blend"]
    encoder: str  # clip:NAME or clip:FOLDER through open_clip; clip:FOLDER of a transformers CLIPModel
    text: str = "a photo of a {name}"  # may use {name} and {description}
    mode: Literal["soft", "binary"] = "soft"  # binary: every pixel from one image, the published rule
    percentile: Annotated[float, Field(gt=0.0, lt=100.0)] = (
        30.0  # pixels up to it are the original's: higher = more of it
    )
    map: Literal["patches", "dense"] = "patches"  # where the class is seen: patch by patch, as published, or dense
    # features of the whole image by one pass (MaskCLIP, arXiv 2112.01071), for CLIPs with a ViT or ResNet of their own
    patch: Annotated[float, Field(gt=0.0, le=0.5)] = 0.125  # map patches: edge of a patch, share of the image's
    stride: Annotated[float, Field(gt=0.0, le=0.5)] = 0.0625  # from place to place, share of the image's shorter edge
    smoothing: Annotated[float, Field(ge=0.0, le=0.25)] = 0.02  # sigma of the mask's blur, share of the edge

    @model_validator(mode="after")
    def _sees_all(self) -> HybridBlendStep:
        if self.map == "dense" and self.patch != _default(self, "patch"):
            raise ValueError(
                f"patch {self.patch} has no effect on map dense, whose places are stride wide; leave it out"
            )
        if self.map == "patches" and self.stride > self.patch:
            raise ValueError(
                f"stride {self.stride} is larger than patch {self.patch}: parts would not be seen; lower it"
            )
        for problem in slot_problems(self.text, CLASS_SLOTS):
            raise ValueError(problem)
        if "{" not in self.text.replace("{{", ""):
            raise ValueError(f"text {self.text!r} says nothing of the class; put {{name}} or {{description}} in it")
        return self


RefineStep = Annotated[ConcatStep | FractalStep | PatchesStep | HybridBlendStep, Field(discriminator="op")]


class CurateStep(Section):
    """One score and what follows from it."""

    score: Literal["blank", "class-agreement", "text-agreement", "copy"]
    policy: Literal["drop", "weight"] = "drop"
    drop_below: float | None = (
        None  # probability of the target; copy: distance, null: calibrated on the training images;
    )
    # blank has its own fixed rule
    drop_fraction: Fraction | None = None  # instead: the lowest share of each class
    # auto: the drawing model's own features; clip:starter, clip:NAME or clip:FOLDER: an image-text model;
    # timm:NAME or timm:FOLDER: any timm model; classifier: the recipe's own, taught by the real training images alone;
    # classifier:PATH: a trained one, a run's model.safetensors or what variegate import made of a filter
    encoder: str = "auto"
    views: int = Field(1, ge=1, le=64)  # that agreement is the mean of: the whole image, then random windows of it
    min_images: int = Field(0, ge=0)  # training images of the smallest class under which no judge is asked
    min_accuracy: Fraction | None = None  # share of held-out real images a judge gets right, or it is not listened to;
    # null: clearly more than a guess would
    text: str = "a photo of a {name}"  # text-agreement: what is said of each class; {description} may be used too
    against: str | None = None  # text-agreement: what else an image may show; null: the other classes' texts
    of_sources: bool = (
        True  # copy: an image that is nearly its own source again counts as a copy; false: only of others
    )

    @model_validator(mode="after")
    def _texts(self) -> CurateStep:
        if self.score != "text-agreement":
            return self
        if not self.encoder.startswith("clip:"):
            known = "clip:starter, clip:NAME or clip:FOLDER"
            raise ValueError(f"text-agreement needs an image-text model and encoder is {self.encoder}; use {known}")
        for problem in [*slot_problems(self.text, CLASS_SLOTS), *slot_problems(self.against or "", CLASS_SLOTS)]:
            raise ValueError(problem)
        if self.against is None and "{" not in self.text.replace("{{", ""):
            raise ValueError(
                f"text {self.text!r} says the same of every class; put {{name}} or {{description}} in it, or give against"
            )
        return self


class MixingSection(Section):
    """How synthetic images meet the real ones in training."""

    policy: Literal["replace", "pool", "concat"] = "pool"  # replace: by images made from the same real one
    fraction: Fraction = 0.3  # chance that a training sample is synthetic (replace, pool)
    weighting: Literal["none", "inverse-count"] = "none"  # inverse-count: target classes by 1 / (real images + 1)
    schedule: Literal["constant", "falling", "linear", "step", "warm-up"] = "constant"  # of that chance over the steps;
    # falling: evenly to 0; linear: evenly from 0; step: 0, half, all in thirds; warm-up: 0 for a sixth, then linear

    @model_validator(mode="after")
    def _schedule(self) -> MixingSection:
        if self.policy == "concat" and self.schedule != "constant":
            raise ValueError("schedule has no effect on policy concat; use pool or replace")
        return self


class LdamSection(Section):
    """LDAM's margins (arXiv 1906.07413), on cosines of features and class vectors."""

    max_margin: float = Field(0.5, gt=0.0, le=2.0)  # of the rarest class
    scale: float = Field(30.0, gt=0.0)  # of the cosines


class LabelSection(Section):
    """Diff-Mix's soft label, kappa * ((1 - s^gamma) source + s^gamma target)."""

    gamma: float = Field(0.5, ge=0.0)
    kappa: float = Field(1.0, gt=0.0, le=1.0)
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = (
        0.1  # 5 points better than 0 with five images a class (docs/log.md)
    )


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
    pools: list[str] = []  # other run folders, whose kept synthetic images are added to this run's, and image tables of
    # variegate import
    subset_per_class: int | None = Field(None, ge=1)  # an arm learns from so many images a class, real and synthetic
    # together, drawn at random once; null: all
    sample_by: Literal["image", "class"] = "image"  # class: real images of every class come equally often
    augment: Literal["none", "classic", "randaugment", "trivialaugment"] = "classic"
    # cmo: patches of rare classes pasted in; manifold-mixup: features inside the net
    mix: Literal["none", "mixup", "cutmix", "mixup+cutmix", "cmo", "manifold-mixup", "puzzle-mix", "fractal-mixup"] = (
        "none"
    )
    mix_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # chance that a batch is mixed; CutMix's paper: 0.5
    mix_alpha: float | None = Field(None, gt=0.0)  # the share is of Beta(alpha, alpha); null: mixup 0.8, cutmix 1,
    # manifold-mixup 2
    fractal_share: Annotated[list[Fraction], BeforeValidator(_as_list), Field(min_length=1, max_length=2)] = [0.2]
    # fractal-mixup: one number, or [low, high] for one drawn uniformly for each image
    loss: Literal["ce", "ldam", "balanced-softmax"] = "ce"  # ldam, balanced-softmax: for long-tailed classes
    ldam: LdamSection = LdamSection()
    class_weights: Literal["none", "class-balanced"] = "none"  # by the effective number of real images
    class_balance_beta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    reweight_from: Fraction = 0.0  # share of the steps after which class weights apply; deferred re-weighting: 0.8
    transport: bool = False  # puzzle-mix: salient blocks also move, by optimal transport
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = Field(None, gt=0.0)  # null: 0.01 resnet-small, 0.001 others, 0.0003 pretrained; sgd 10 x
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_fraction: Fraction = 0.1
    batch: int = Field(
        16, ge=1
    )  # few images: 900 steps of 16 take as long as 300 of 48 and learn far more (docs/log.md)
    steps: int | None = Field(900, ge=1)  # optimiser steps, the same for every arm
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
    def _weights_for_something(self) -> TrainSection:
        if self.reweight_from > 0 and self.class_weights == "none":
            raise ValueError(
                f"reweight_from {self.reweight_from} says when class weights begin and class_weights is none; "
                "set class_weights to class-balanced"
            )
        if self.sample_by == "class" and self.class_weights != "none":
            raise ValueError(
                f"sample_by class and class_weights {self.class_weights} both make up for unequal class counts, "
                "together twice; use one of them"
            )
        if self.loss == "balanced-softmax" and self.class_weights != "none":
            raise ValueError(
                f"loss balanced-softmax and class_weights {self.class_weights} both make up for unequal class counts, "
                "together twice; use one of them"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_a_value(self) -> TrainSection:
        if self.transport and self.mix != "puzzle-mix":
            raise ValueError(f"transport is a part of puzzle-mix and mix is {self.mix}; set one of them otherwise")
        if self.last_stages != 1 and self.mode != "last-stages":
            raise ValueError(f"last_stages has no effect on mode {self.mode}; set mode: last-stages")
        if self.ldam != LdamSection() and self.loss != "ldam":
            raise ValueError(f"ldam has no effect on loss {self.loss}; leave it out, or set loss: ldam")
        if self.class_balance_beta != _default(self, "class_balance_beta") and self.class_weights == "none":
            raise ValueError("class_balance_beta shapes class weights and class_weights is none; leave it out")
        return self

    @model_validator(mode="after")
    def _keys_of_a_mix(self) -> TrainSection:
        if self.mix_probability != 1.0 and self.mix in {"none", "cmo"}:
            raise ValueError(
                f"mix_probability has no effect on mix {self.mix}; leave it out (cmo changes half of the batches)"
            )
        if self.mix_alpha is not None and self.mix not in MIXES_BY_SHARE:
            raise ValueError(f"mix_alpha has no effect on mix {self.mix}; it is for {', '.join(MIXES_BY_SHARE)}")
        if self.fractal_share != _default(self, "fractal_share") and self.mix != "fractal-mixup":
            raise ValueError(f"fractal_share has no effect on mix {self.mix}; set mix: fractal-mixup")
        if self.fractal_share[0] > self.fractal_share[-1]:
            raise ValueError(f"fractal_share is {self.fractal_share}, should be [low, high]")
        return self

    @model_validator(mode="after")
    def _something_to_keep(self) -> TrainSection:
        if self.mode in ("linear-probe", "last-stages") and self.pretrained is False:
            raise ValueError(
                f"mode {self.mode} keeps most weights as they are, and with pretrained: false those are chance; "
                "set pretrained, or mode: full"
            )
        return self

    @property
    def cosine_scale(self) -> float | None:
        """The scale of a cosine last layer; None where it is the network's own, linear one."""
        return self.ldam.scale if self.loss == "ldam" else None


# keys of train that belong to some values of another one
BELONGING: dict[str, tuple[str, ...]] = {
    "mix": ("transport", "mix_probability", "mix_alpha", "fractal_share"),
    "loss": ("ldam",),
    "class_weights": ("class_balance_beta", "reweight_from"),
    "mode": ("last_stages",),
}
Images = Literal["real", "real+synthetic", "synthetic"]
SAME_FOR_ALL_ARMS = (
    "steps",
    "epochs",
    "batch",
    "evaluations",
    "pools",
)  # else an arm would see more, or choose oftener


class ArmSection(Section):
    """One training set to compare, and how the classifier learns from it where that is not as in `train`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._ -]{0,79}$")
    images: Images
    copies: int = Field(0, ge=0)  # images real: every one of them so many times more, as many as a method would draw
    train: Annotated[dict[str, Any], Overrides(TrainSection)] = {}  # keys of train that differ here

    @model_validator(mode="after")
    def _fair(self) -> ArmSection:
        if self.copies and self.images != "real":
            raise ValueError(f"copies are of real images and images is {self.images}; set images: real")
        fixed = [key for key in SAME_FOR_ALL_ARMS if key in self.train]
        if fixed:
            raise ValueError(f"train.{fixed[0]} is the same for every arm of a run; set it in train")
        return self

    @property
    def has_synthetic(self) -> bool:
        return "synthetic" in self.images

    @property
    def folder(self) -> str:
        return arm_folder(self.name)


def _kind_of_arm(value: Any) -> str:
    return "ArmSection" if isinstance(value, dict | ArmSection) else "str"


Arm = Annotated[
    Annotated[Images, Tag("str")] | Annotated[ArmSection, Tag("ArmSection")],
    Discriminator(_kind_of_arm),
]


def written_out(arm: Images | ArmSection) -> ArmSection:
    """An arm as a mapping; a bare name is the kind of its images as well."""
    return ArmSection(name=arm, images=arm) if isinstance(arm, str) else arm


class EvaluateSection(Section):
    """The comparison at the end of a run."""

    arms: list[Arm] = [
        "real",
        "real+synthetic",
    ]  # real, real+synthetic, synthetic, or {name:, images:, copies:, train:}
    seeds: int = Field(3, ge=1, le=1000)
    shot_bounds: tuple[int, int] = (20, 100)  # real images of a medium class; fewer: few-shot, more: many-shot

    @model_validator(mode="after")
    def _bounds(self) -> EvaluateSection:
        low, high = self.shot_bounds
        if not 0 < low <= high:
            raise ValueError(f"shot_bounds must be two rising numbers of images, got {list(self.shot_bounds)}")
        return self

    @model_validator(mode="after")
    def _unique(self) -> EvaluateSection:
        names = [arm.name for arm in self.arm_sections]
        if not names or len({arm.folder for arm in self.arm_sections}) < len(names):
            raise ValueError(f"arms must be a list of different names, got {names}")
        return self

    @property
    def arm_sections(self) -> tuple[ArmSection, ...]:
        """Every arm as a mapping."""
        return tuple(map(written_out, self.arms))


class Recipe(Section):
    """Everything a run does. Frozen: stages read it, nobody changes it."""

    seed: int = Field(0, ge=0, lt=2**31)
    backend: BackendSection = BackendSection()
    dataset: DatasetSection = DatasetSection()
    adapt: AdaptSection = AdaptSection()
    prompts: PromptsSection = PromptsSection()
    generate: GenerateSection = GenerateSection()
    refine: list[RefineStep] = []  # operations on each drawn image, in order
    curate: list[CurateStep] = [CurateStep(score="blank")]
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        method = self.generate.method
        _check_adapter_use(self.adapt, self.generate)
        _check_tokens_said(self)
        _check_refine_use(self.refine, method)
        if self.generate.mask_text is not None and self.prompts.method != "template":
            raise ValueError(
                f"generate.mask_text stands instead of prompts and prompts.method is {self.prompts.method}; set mask_text "
                "to null to draw from those"
            )
        if self.backend.image_guidance_scale != _default(self.backend, "image_guidance_scale") and method != "edit":
            raise ValueError(
                f"backend.image_guidance_scale is for generate.method edit and it is {method}; leave it out"
            )
        arms = self.evaluate.arm_sections
        synthetic = [arm.name for arm in arms if arm.has_synthetic]
        if method == "none" and synthetic and not self.train.pools:
            raise ValueError(f"evaluate.arms has {synthetic[0]} but generate.method is none; set arms: [real]")
        if self.train.pools and not synthetic:
            raise ValueError(
                "train.pools adds synthetic images and no arm of evaluate.arms uses any; add real+synthetic"
            )
        for place, arm in enumerate(arms):
            _check_arm(arm, _train_of(self.train, arm, place), method)
        return self

    def train_of(self, arm: ArmSection) -> TrainSection:
        """How the classifier of an arm learns."""
        return _train_of(self.train, arm) if arm.train else self.train


def _train_of(base: TrainSection, arm: ArmSection, place: int = 0) -> TrainSection:
    """`train` with the arm's own keys laid over it; raises ValidationError naming the key of the arm at `place`."""
    values = overlaid(base.model_dump(), arm.train)
    for key, belonging in BELONGING.items():
        if arm.train.get(key, getattr(base, key)) != getattr(base, key):
            for own in set(belonging) - set(arm.train):
                values[own] = _default(base, own)  # it was the other mix's, or loss's
    try:
        return TrainSection.model_validate(values)
    except ValidationError as exc:
        errors = [{**error, "loc": ("evaluate", "arms", place, "train", *error["loc"])} for error in exc.errors()]
        raise ValidationError.from_exception_data("Recipe", errors) from exc  # type: ignore[arg-type]


def overlaid(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with some of its values replaced.

    >>> overlaid({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    result = dict(values)
    for key, value in changes.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            result[key] = overlaid(inner, value)
        else:
            result[key] = value
    return result


def _check_arm(arm: ArmSection, train: TrainSection, method: Strategy) -> None:
    """A way of training and the images it would be given."""
    if train.mix == "cmo" and arm.images == "synthetic":
        raise ValueError(
            f"train.mix cmo pastes patches of real images, so the arm {arm.name} would not be of synthetic images alone; "
            "take it out of evaluate.arms, or use cutmix"
        )
    if method.endswith("-gen") and train.mixing.policy == "replace" and arm.images == "real+synthetic":
        raise ValueError(
            f"train.mixing.policy replace swaps a real image for one made from it and generate.method {method} "
            "draws from text alone; use pool or concat"
        )


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
    if method == "edit" and adapt.method != "none":
        raise ValueError(
            f"generate.method edit draws with the model as it is, so adapt.method {adapt.method} would be for nothing; "
            "set adapt.method=none"
        )
    if kind == "real" and adapt.method != "none":
        raise ValueError(
            f"generate.method {method} draws with the model as it is, so adapt.method {adapt.method} would be "
            f"for nothing; use diff-{use} or set adapt.method=none"
        )
    if generate.token_noise.std and (kind not in {"ti", "diff"} or adapt.method == "lora"):
        raise ValueError(
            f"generate.token_noise needs learned tokens; {method} with adapt.method {adapt.method} has none"
        )


def _check_refine_use(steps: list[RefineStep], method: Strategy) -> None:
    """Operations on images that are not there."""
    if steps and method == "none":
        raise ValueError("refine has operations but generate.method is none; set refine: []")
    with_original = next((step.op for step in steps if step.op != "fractal"), None)
    kind, _, use = method.partition("-")
    if with_original and use == "gen":
        raise ValueError(
            f"refine {with_original} mixes each drawn image with its original and generate.method {method} draws from "
            f"text alone; use {kind}-aug or {kind}-mix, or leave {with_original} out"
        )


def _check_tokens_said(recipe: Recipe) -> None:
    """Learned tokens that no prompt would say."""
    silent = next((text for text in recipe.prompts.texts if "{name}" not in text), None)
    if recipe.adapt.has_tokens and silent is not None:
        raise ValueError(
            f"prompts.text {silent!r} never says {{name}}, so adapt.method {recipe.adapt.method} would learn tokens "
            "for nothing; put {name} where the class is named, or use adapt.method=lora"
        )
