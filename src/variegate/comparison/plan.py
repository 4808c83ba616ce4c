"""What a comparison trains: the methods of its table, and the runs that hold them. Pure; reads and writes nothing.

Methods that differ only in how the classifier learns are arms of one run, so that they share its images. A run is named
after what it draws and a hash of its settings: the same settings are the same run, whoever asks for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from variegate.errors import Problem, RecipeError
from variegate.recipe import SAME_FOR_ALL_ARMS, ArmSection, Recipe, TrainSection, overlaid
from variegate.recipe_file import difference, parse_values
from variegate.records import content_id
from variegate.stages.generate.counts import images_per_class, round_half_up

Kind = Literal["real", "classic", "duplicated", "retrieval", "recipe", "combined", "text-only", "curve"]

CLASSIC: dict[str, dict[str, Any]] = {
    "randaugment": {"augment": "randaugment"},
    "trivialaugment": {"augment": "trivialaugment"},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
}
SKIPPABLE = (*CLASSIC, "duplicated", "text-only", "best-classic")
OWN_KEYS = ("mixing", "label", "pools", "augment", "mix", "transport")  # of train: what a method may have of its own
REAL, DUPLICATED, RETRIEVAL, CLASSIC_RUN = "real", "duplicated real", "retrieval", "classic"
TAKEN = (REAL, DUPLICATED, RETRIEVAL, *(f"real+{key}" for key in CLASSIC))  # names that no recipe's file may have


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe to compare, under the name people see."""

    name: str
    recipe: Recipe
    kind: Kind = "recipe"
    of: str = ""  # the named recipe behind a text-only one or a point of a curve


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table: an arm of a run."""

    name: str
    kind: Kind
    run: str  # name of the run's folder
    arm: ArmSection
    of: str = ""  # the named recipe that this is, or comes from
    same_as: str = ""  # a method before it with the same settings, which is not trained twice


@dataclass(frozen=True, slots=True)
class Layout:
    """All methods of one number of shots, and the runs they are arms of (without seed, shots and arms)."""

    methods: tuple[Method, ...]
    runs: Mapping[str, Recipe]

    def arms(self, run: str) -> list[ArmSection]:
        return [method.arm for method in self.methods if method.run == run and not method.same_as]


# ------------------------------------------------------------------------------------------------ what is fair


def disagreements(entries: Sequence[Entry]) -> list[Problem]:
    """What would make a comparison unfair: other data, or classifiers that learn in other ways than a method may choose."""
    first, problems = entries[0], []
    for entry in entries[1:]:
        for line in difference(_common(first.recipe), _common(entry.recipe)):
            key, _, values = line.partition(": ")
            text = f"{key} differs from that of {first.name} ({values}); a gain could be its doing"
            problems.append(Problem(entry.name, text, f"give it for all: --set {key}=..."))
    return problems


def _common(recipe: Recipe) -> dict[str, Any]:
    """What all recipes of a comparison share; the classifier is that of the arm which is compared."""
    train = recipe.train_of(arm_of(recipe))
    return {
        "dataset": recipe.dataset.model_dump(),
        "train": train.model_dump(exclude=set(OWN_KEYS)) | {"label": {"smoothing": train.label.smoothing}},
        "evaluate": {"shot_bounds": recipe.evaluate.shot_bounds},
    }


def baseline(plain: Recipe, first: Recipe) -> Recipe:
    """Real images alone, on the data of the recipes and with a classifier that learns as theirs does.

    `plain` is the recipe none with what the user set for all; OWN_KEYS are its own.
    """
    common = _common(first) | {"backend": {"device": first.backend.device}}
    return Recipe.model_validate(overlaid(plain.model_dump(), common))


# ------------------------------------------------------------------------------------------------ derived recipes


def text_only(entry: Entry, model_kind: str = "") -> Entry | str:
    """The same adapter and as many images, drawn from text; or why there is none, empty where the recipe is that already."""
    recipe, method = entry.recipe, entry.recipe.generate.method
    kind, _, use = method.partition("-")
    if method == "none" or use == "gen":
        return ""
    if method == "edit":
        return f"{entry.name}: a model that edits images draws none from text, so there is no text-only arm"
    if model_kind == "inpaint":
        return f"{entry.name}: an inpainting model draws none from text, so there is no text-only arm"
    if any("{caption}" in text for text in recipe.prompts.texts):
        return f"{entry.name}: its prompts are the captions of single images, so there is no text-only arm"
    kept = {key: getattr(recipe.generate, key) for key in ("per_real", "per_class", "balance")}
    generate = {**kept, "method": f"{kind}-gen", "token_noise": recipe.generate.token_noise.model_dump()}
    values = recipe.model_dump()
    values |= {"generate": generate, "refine": [step for step in values["refine"] if step["op"] == "fractal"]}
    if recipe.train.mixing.policy == "replace":
        values["train"]["mixing"]["policy"] = "pool"
    for arm in values["evaluate"]["arms"]:
        if isinstance(arm, dict) and arm["train"].get("mixing", {}).get("policy") == "replace":
            arm["train"]["mixing"]["policy"] = "pool"
    return Entry(f"{entry.name}, text only", Recipe.model_validate(values), "text-only", entry.name)


def largest(entries: Sequence[Entry], counts: Sequence[int]) -> list[int]:
    """Images of each class that the recipe drawing most of them draws; zeros where none draws.

    `counts` are the real training images of each class.
    """
    drawn = [images_per_class(counts, entry.recipe.generate) for entry in entries]
    return max(drawn, key=sum, default=[0] * len(counts))


# ------------------------------------------------------------------------------------------------ methods and runs


def arm_of(recipe: Recipe) -> ArmSection:
    """The arm that a recipe is compared by: its last one with synthetic images, else its last."""
    arms = recipe.evaluate.arm_sections
    return next((arm for arm in reversed(arms) if arm.has_synthetic), arms[-1])


def slug(name: str) -> str:
    """A name that an arm may have.

    >>> slug("My recipe (v2), text only"), slug("variegate train.mixing.fraction=0.1")
    ('My recipe v2 text only', 'variegate train.mixing.fraction 0.1')
    """
    return " ".join(re.sub(r"[^A-Za-z0-9+._-]+", " ", name).split())[:80] or "recipe"


def place(entry: Entry, base: Recipe) -> tuple[str, Recipe, ArmSection]:
    """Name of the run that an entry is an arm of, that run's recipe, and the arm.

    A run's own `train` is the baseline's, and what the method has of its own stands in its arm; where the classifier takes
    part in curating, the run's is the method's.
    """
    recipe, chosen = entry.recipe, arm_of(entry.recipe)
    own = recipe.train_of(chosen)
    draws = recipe.generate.method != "none" or bool(own.pools)
    if draws:
        judged = any(step.encoder == "classifier" for step in recipe.curate)
        fixed = {"pools": own.pools, "label": own.label.model_dump()}
        shared = own if judged else TrainSection.model_validate(base.train.model_dump() | fixed)
        run = recipe.model_copy(update={"train": shared})
        label = f"{recipe.generate.method if recipe.generate.method != 'none' else 'pooled'}-{_settings(run)[:8]}"
    else:
        shared, run, label = base.train, base, CLASSIC_RUN
    mine, theirs = own.model_dump(), shared.model_dump()
    changes = {key: mine[key] for key in mine if mine[key] != theirs[key]}
    arm = ArmSection(name=slug(entry.name), images=chosen.images, copies=chosen.copies, train=changes)
    return label, run, arm


def _settings(recipe: Recipe) -> str:
    left_out: Any = {"seed": True, "evaluate": True, "dataset": {"shots"}}
    # a key that a later version adds leaves the runs of an earlier one where they are
    return content_id(recipe.model_dump(mode="json", exclude=left_out, exclude_defaults=True))


def lay_out(
    entries: Sequence[Entry],
    base: Recipe,
    *,
    copies: int,
    retrieval: tuple[str, ArmSection] | None,
    best: str | None,
    skip: Sequence[str] = (),
) -> Layout:
    """Methods in the order of the table; `best` is the classic augmentation that recipes are combined with.

    `copies` of every real image make duplicated real; 0 leaves it out. `retrieval` is the name of its run, and its arm.
    """
    methods = [Method(REAL, "real", CLASSIC_RUN, ArmSection(name=REAL, images="real"))]
    methods += [
        Method(name, "classic", CLASSIC_RUN, ArmSection(name=name, images="real", train=train))
        for name, train in ((f"real+{key}", train) for key, train in CLASSIC.items() if key not in skip)
    ]
    if copies and "duplicated" not in skip:
        arm = ArmSection(name=f"real x{copies + 1}", images="real", copies=copies)
        methods.append(Method(DUPLICATED, "duplicated", CLASSIC_RUN, arm))
    if retrieval is not None:
        methods.append(Method(RETRIEVAL, "retrieval", *retrieval))
    runs: dict[str, Recipe] = {CLASSIC_RUN: base}
    for entry in entries:
        label, run, arm = place(entry, base)
        runs.setdefault(label, run)
        method = _known(Method(entry.name, entry.kind, label, arm, entry.of or entry.name), methods)
        methods.append(method)
        if best and entry.kind == "recipe" and arm.has_synthetic and "best-classic" not in skip:
            methods.append(_known(_combined(method, best), methods))
    return Layout(tuple(methods), runs)


def _combined(method: Method, best: str) -> Method:
    own = {key: value for key, value in method.arm.train.items() if key != "transport" or "mix" not in CLASSIC[best]}
    train = {**own, **CLASSIC[best]}
    arm = method.arm.model_copy(update={"name": f"{method.arm.name}+{best}", "train": train})
    return replace(method, name=f"{method.name} + {best}", kind="combined", arm=arm, same_as="")


def _known(method: Method, methods: Sequence[Method]) -> Method:
    """The method, pointing to one before it that would learn the same from the same images."""
    unnamed = method.arm.model_copy(update={"name": ""})
    for other in methods:
        if other.run == method.run and not other.same_as and other.arm.model_copy(update={"name": ""}) == unnamed:
            return replace(method, arm=other.arm, same_as=other.name)
    return method


def settled(run: Recipe, arms: Sequence[ArmSection], *, draw: int, shots: int | None, seeds: int) -> Recipe:
    """A run's recipe for one draw: its seed, shots, arms and seeds put in."""
    values = run.model_dump()
    values["seed"] = draw
    values["dataset"]["shots"] = shots
    values["evaluate"] |= {"arms": [arm.model_dump() for arm in arms], "seeds": seeds}
    return Recipe.model_validate(values)


def copies_of(drawn: Sequence[int], counts: Sequence[int]) -> int:
    """How many copies of every real image are about as many images as were drawn."""
    return max(round_half_up(sum(drawn) / sum(counts)), 1) if sum(drawn) else 0


# ------------------------------------------------------------------------------------------------ curves


@dataclass(frozen=True, slots=True)
class Curve:
    """A recipe at several values of one key."""

    recipe: str
    key: str
    values: tuple[str, ...]

    def name(self, value: str) -> str:
        return f"{self.recipe} {self.key}={value}"


def parse_curve(text: str, names: Sequence[str]) -> Curve | Problem:
    """Read [RECIPE:]KEY=V,V,..., values as YAML; without RECIPE the first one named.

    >>> parse_curve("generate.strength=0.3,0.5", ["variegate"])
    Curve(recipe='variegate', key='generate.strength', values=('0.3', '0.5'))
    >>> parse_curve("b:generate.strength=[0.3, 0.5],0.7", ["a", "b"]).values
    ('[0.3, 0.5]', '0.7')
    """
    where = f"--curve {text}"
    head, equals, tail = text.partition("=")
    recipe, colon, key = head.rpartition(":")
    try:
        values = tuple(json.dumps(value) for value in parse_values(tail, where))
    except RecipeError as exc:
        return exc.problems[0]
    if not equals or not key.strip() or len(values) < 2:
        return Problem(where, "expected [RECIPE:]KEY=V,V", "for example --curve generate.strength=0.3,0.5,0.7")
    if colon and recipe not in names:
        return Problem(where, f"{recipe!r} is none of --recipes", f"they are {', '.join(names)}")
    if key.startswith(("evaluate.", "dataset.shots")) or key == "seed":
        return Problem(where, f"{key} is part of the comparison itself", "use --seeds, --draws or --shots")
    if key.removeprefix("train.") in SAME_FOR_ALL_ARMS:
        return Problem(where, f"{key} is the same for every arm of a comparison", "compare twice, with --set")
    return Curve(recipe or names[0], key.strip(), values)
