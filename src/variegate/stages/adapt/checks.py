"""What would stop adapting, told from configuration files, tokenizers and the headers of weight files. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from variegate.backends.adapter import expand, placeholder
from variegate.backends.base import final_section, locate, training_section
from variegate.backends.folder import weight_shapes
from variegate.backends.tokenizers import load_tokenizers, speechless, word_pieces
from variegate.captions import captions_of
from variegate.errors import Problem
from variegate.recipe import CLASS_SLOTS, BackendSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.adapt.lengths import cut_captions
from variegate.stages.adapt.targets import targeted
from variegate.templates import class_word, described, placeholders, plain_name, render

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what objective.target knows


def model_problems(recipe: Recipe) -> list[Problem]:
    """Of the models that learn, and of what is carried over from one to the other."""
    return [*_prediction_problems(recipe), *_target_problems(recipe), *_carrying_problems(recipe)]


def word_problems(recipe: Recipe, classes: Sequence[ClassInfo]) -> list[Problem]:
    """Of class names and texts, as far as both are known before the data's own captions are."""
    tokenizers = load_tokenizers(locate(training_section(recipe))[0])
    if recipe.adapt.has_tokens:
        found = _vocabulary_problems(recipe, classes, tokenizers)
        return found or [
            *_first_word_problems(recipe, classes, tokenizers),
            *_cut_problems(recipe, classes, tokenizers),
        ]
    return _telling_problems(recipe, classes, tokenizers)


# ------------------------------------------------------------------------------------------ models


def _prediction_problems(recipe: Recipe) -> list[Problem]:
    problems = {}
    for section in (training_section(recipe), final_section(recipe)):
        path = locate(section)[0] / "scheduler/scheduler_config.json"
        kind = json.loads(path.read_text(encoding="utf-8")).get("prediction_type", PREDICTIONS[0])
        if kind not in PREDICTIONS:
            text = f"the scheduler of {section.model} says prediction_type {kind}, which this cannot teach"
            problems[section.model] = Problem("adapt.model", text, f"use a model of {', '.join(PREDICTIONS)}")
    return list(problems.values())


def _target_problems(recipe: Recipe) -> list[Problem]:
    targets = recipe.adapt.targets
    if not recipe.adapt.has_lora or isinstance(targets, str):
        return []
    shapes, problems = _unet_shapes(training_section(recipe)), []
    remedy = "use attention, all, or endings such as to_q, to_k, to_v, to_out.0, proj_in, conv1"
    found = {one: targeted(shapes, [one]) for one in targets}
    idle = [one for one, weights in found.items() if not weights]
    if idle:
        problems.append(Problem("adapt.targets", f"no module of the U-Net ends in {', '.join(idle)}", remedy))
    flat = [one for one, weights in found.items() if any(_is_flat(name, shape) for name, shape in weights.items())]
    if flat:
        text = f"{', '.join(flat)}: layers with one weight a channel, as those that normalise, take no LoRA"
        problems.append(Problem("adapt.targets", text, remedy))
    return problems


def _is_flat(name: str, shape: Sequence[int]) -> bool:
    return name.endswith(".weight") and len(shape) < 2


def _carrying_problems(recipe: Recipe) -> list[Problem]:
    """A parent and a model that draws which do not belong together."""
    section, name = recipe.adapt, recipe.backend.model
    if section.model is None:
        return []
    parent, problems = training_section(recipe), []
    where, remedy = "adapt.model", f"name the model that {name} was made from in adapt.model"
    if section.distill.pairs and recipe.backend.steps != 1:
        text = f"teaches a one-step model, and {name} is to draw in {recipe.backend.steps} steps"
        advice = "set backend.steps=1 and name a one-step model, or adapt.distill.pairs=0"
        problems.append(Problem("adapt.distill", text, advice))
    if section.has_lora and _carried_shapes(recipe, parent) != _carried_shapes(recipe, recipe.backend):
        text = f"the U-Nets of {section.model} and {name} differ in shape, so a LoRA cannot pass from one to the other"
        problems.append(Problem(where, text, remedy))
    reads = section.has_tokens or (section.has_lora and section.text_encoder_lora)
    widths = [_encoder_widths(locate(one)[0]) for one in (parent, recipe.backend)]
    if reads and widths[0] != widths[1]:
        told = " and ".join(
            f"{one} has {_counted(width)}" for one, width in zip((section.model, name), widths, strict=True)
        )
        text = f"{told}, so what is learned of texts cannot pass from one to the other"
        problems.append(Problem(where, text, remedy))
    return problems


def _carried_shapes(recipe: Recipe, section: BackendSection) -> dict[str, Sequence[int]]:
    """Of the weights that get a LoRA; of all where a model learns what the other one draws.

    An inpainting model's first layer takes more channels than its parent's, and no LoRA goes there.
    """
    shapes = _unet_shapes(section)
    return dict(shapes) if recipe.adapt.distill.pairs else targeted(shapes, recipe.adapt.targets)


def _unet_shapes(section: BackendSection) -> dict[str, list[int]]:
    """Of the U-Net that a backend draws with: the model's own, another folder's, or with layers from a file."""
    model, unet = locate(section)
    if unet is not None and unet.is_dir():
        return weight_shapes(unet)
    return weight_shapes(model / "unet") | (weight_shapes(unet) if unet else {})


def _encoder_widths(model: Path) -> list[int]:
    """Of the words of each text encoder."""
    parts = [model / part for part in ("text_encoder", "text_encoder_2") if (model / part).is_dir()]
    shapes = [weight_shapes(part) for part in parts]
    return [shape[-1] for one in shapes for name, shape in one.items() if name.endswith("token_embedding.weight")]


def _counted(widths: Sequence[int]) -> str:
    count = "one text encoder" if len(widths) == 1 else f"{len(widths)} text encoders"
    return f"{count} ({' and '.join(map(str, widths))} wide)"


# ------------------------------------------------------------------------------------------ words


def _vocabulary_problems(recipe: Recipe, classes: Sequence[ClassInfo], tokenizers: Sequence[Any]) -> list[Problem]:
    vectors = {placeholder(info.label): recipe.adapt.vectors for info in classes}
    names = expand(" ".join(vectors), vectors).split()
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    known = [name for name in names if any(name in words for words in vocabularies)]
    if not known:
        return []
    text = f"{known[0]} is a word of the vocabulary of {training_section(recipe).model} already"
    return [Problem("adapt", text, "use the base model, not one that was adapted before")]


def _first_word_problems(recipe: Recipe, classes: Sequence[ClassInfo], tokenizers: Sequence[Any]) -> list[Problem]:
    section = recipe.adapt
    if section.init == "random":
        return []
    texts = [plain_name(info) for info in classes] if section.init == "name" else [section.init]
    problem = speechless(texts, list(tokenizers))
    return [problem] if problem else []


def _cut_problems(recipe: Recipe, classes: Sequence[ClassInfo], tokenizers: Sequence[Any]) -> list[Problem]:
    """Learned tokens that no caption would say, even where the images bring no words of their own."""
    vectors = {placeholder(info.label): recipe.adapt.vectors for info in classes}
    images = [RealImage("", "", info.label, "train") for info in classes]
    captions = captions_of(recipe, classes, images, [placeholder(info.label) for info in classes])
    return cut_captions((text for texts in captions for text in texts), vectors, tokenizers).problems()


def _telling_problems(recipe: Recipe, classes: Sequence[ClassInfo], tokenizers: Sequence[Any]) -> list[Problem]:
    """Classes that captions cannot tell apart where no token stands for each; texts that say no class are the user's own."""
    texts = [text for text in recipe.prompts.texts if placeholders(text) & set(CLASS_SLOTS)]
    if not texts:
        return []
    problems, where = [], "adapt.method"
    remedy = "describe the classes and say {description}, or use adapt.method=tokens+lora"
    by_name_alone = not any("description" in placeholders(text) for text in texts)
    mute = [info.name for info in classes if not all(word_pieces(one, plain_name(info)) for one in tokenizers)]
    if mute and by_name_alone:
        text = (
            f"lora is told classes by their names, and {len(mute)} of them tokenise to nothing, for example {mute[0]!r}"
        )
        problems.append(Problem(where, text, f"{remedy} with adapt.init=random"))
    told: dict[Any, str] = {}
    for info in classes:
        words = class_word(info, (), recipe.adapt.superclass)
        captions = [render(text, name=words, description=described(info)) for text in texts]
        said = tuple(tuple(word_pieces(one, caption)) for caption in captions for one in tokenizers)
        other = told.setdefault(said, info.name)
        if other != info.name and not {other, info.name} <= set(mute):
            text = f"lora is told {other!r} and {info.name!r} in the same words: {captions[0]!r}"
            problems.append(Problem(where, text, remedy))
    return problems
