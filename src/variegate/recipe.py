"""The recipe: typed sections in stage order, read from YAML, checked whole before anything slow.

`load_recipe` collects every problem with file, line and key, and suggests the near key. Nothing here imports torch.
What needs the data or the model (class counts, one-step models) is checked by the stage that knows it, at plan time.
"""

from __future__ import annotations

import difflib
import os
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import Problem, RecipeError

RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1_000_000

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
            raise ValueError("give steps or epochs and set the other to null")
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
        return self


# ---------------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML 1.2 booleans and floats, no duplicate keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: dict[str, Any] = {}
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = seen[key_node.value].start_mark.line + 1
                text = f"key {key_node.value!r} stands twice (first on line {line})"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            seen[key_node.value] = key_node
        return super().construct_mapping(node, deep)


def _yaml_1_2(loader: type[_Loader]) -> None:
    resolvers = {}
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        dropped = (
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:timestamp",
        )
        resolvers[letter] = [(tag, pattern) for tag, pattern in pairs if tag not in dropped]
    loader.yaml_implicit_resolvers = resolvers
    loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
    loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
    number = (
        r"^[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"
    )
    loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number), list("-+.0123456789"))


_yaml_1_2(_Loader)


def parse_yaml(text: str, where: str) -> Any:
    """Read one YAML document safely; raises RecipeError with file and line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        reason = getattr(exc, "problem", None) or str(exc)
        raise RecipeError(Problem(place, f"not valid YAML: {reason}")) from exc


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe or a path; raises RecipeError with the nearest name."""
    shipped = RECIPES / f"{name}.yaml"
    if name in recipe_names():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        raise RecipeError(Problem(name, "no such recipe file", "variegate recipes ls shows the shipped ones"))
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(recipe_names())}"
    raise RecipeError(Problem(name, "no shipped recipe and no file of this name", hint))


def load_recipe(name: str = "variegate", overrides: Iterable[str] = (), data: str | None = None) -> Recipe:
    """Read a shipped recipe or a file, apply KEY=VALUE overrides and DATA, and check everything.

    Raises RecipeError holding all problems, each with its file and line or the --set it came from.
    """
    path = find_recipe(name)
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(Problem(str(path), f"larger than {MAX_RECIPE_BYTES:,} bytes", "is this a recipe?"))
    shown = name if path.parent == RECIPES else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RecipeError(Problem(str(path), f"not a text file: {exc}", "give a YAML recipe")) from exc
    values = parse_yaml(text, shown)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(Problem(shown, f"a recipe is a mapping of sections, got {type(values).__name__}"))
    origins = _line_numbers(text, shown)
    problems = _apply_overrides(values, overrides, origins)
    if data is not None:
        _put(values, ["dataset", "path"], data)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as exc:
        problems.extend(_explain(error, origins, shown) for error in exc.errors())
        raise RecipeError(problems) from exc
    if problems:
        raise RecipeError(problems)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out, in stage order."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines like 'generate.strength: 0.5 -> 0.7' for every key whose value differs."""
    lines: list[str] = []
    for key in list(dict.fromkeys([*old, *new])):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _line_numbers(text: str, shown: str) -> dict[str, str]:
    """Dotted key -> 'file:line'."""
    places: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{prefix}{key.value}"
                places[dotted] = f"{shown}:{key.start_mark.line + 1}"
                walk(value, dotted + ".")
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                places[f"{prefix}{index}"] = f"{shown}:{value.start_mark.line + 1}"
                walk(value, f"{prefix}{index}.")

    walk(yaml.compose(text, Loader=_Loader), "")
    return places


def _apply_overrides(values: dict, overrides: Iterable[str], origins: dict[str, str]) -> list[Problem]:
    problems = []
    for item in overrides:
        key, equals, raw = item.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(f"--set {item}", "expected KEY=VALUE", "for example --set generate.strength=0.5"))
            continue
        try:
            value = parse_yaml(raw, f"--set {item}")
            if isinstance(value, dict) and None in value.values():
                value = raw  # prompts.text={name}: a placeholder, not a mapping
            _put(values, key.strip().split("."), value)
        except RecipeError as exc:
            problems.extend(exc.problems)
        except TypeError as exc:
            problems.append(Problem(f"--set {item}", str(exc)))
        origins[key.strip()] = f"--set {item}"
    return problems


def _put(values: dict, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = values[int(key)] if isinstance(values, list) and key.isdigit() else values.setdefault(key, {})
        if not isinstance(inner, dict | list):
            raise TypeError(f"{'.'.join(keys[: depth + 1])} is no section")
        values = inner
    if isinstance(values, list):
        if not keys[-1].isdigit() or int(keys[-1]) >= len(values):
            raise TypeError(f"{'.'.join(keys)}: no such item in a list of {len(values)}")
        values[int(keys[-1])] = value
    else:
        values[keys[-1]] = value


def _explain(error: Any, origins: Mapping[str, str], shown: str) -> Problem:
    """One pydantic error as where, what and remedy."""
    path = [str(part) for part in error["loc"] if not _is_union_branch(part)]
    dotted = ".".join(path)
    where = next((origins[key] for key in _prefixes(path) if key in origins), shown)
    place = f"{where}: {dotted}" if dotted else where
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        return Problem(
            place, "unknown key", f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        )
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return Problem(place, what)
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(
            str(error["input"]), error["ctx"]["expected"].replace("'", "").split(", "), n=1
        )
        return Problem(place, f"{what}, got {error['input']!r}", f"did you mean {near[0]!r}?" if near else "")
    is_placeholder = isinstance(error["input"], dict) and None in error["input"].values()
    remedy = "put quotes around text that holds braces" if is_placeholder else ""
    return Problem(place, f"{what[0].lower()}{what[1:]}, got {error['input']!r}", remedy)


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and (
        part in {"float", "int", "str", "bool"} or part.startswith(("list[", "constrained"))
    )


def _prefixes(path: list[str]) -> list[str]:
    return [".".join(path[:end]) for end in range(len(path), 0, -1)]


def _keys_at(path: list[str]) -> list[str]:
    """Known keys of the section at a dotted path."""
    model: Any = Recipe
    for part in path:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [
            kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Section)
        ]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
