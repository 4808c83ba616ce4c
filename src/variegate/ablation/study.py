"""Run an ablation: draw for every group of settings, train on a few seeds, keep the better half, and say what came out. Glue.

Everything is judged on validation images, by the weights after the last step, so that nothing was chosen by what it is judged by;
test images are not looked at. Candidates and real images alone share seeds, images and optimiser steps.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate import __version__
from variegate.ablation.halving import Effect, Tried, effect, halve, most_candidates, trainings
from variegate.ablation.settings import Candidate, by_drawing, grid, parse_axis, thinned
from variegate.ablation.words import as_markdown, sentence
from variegate.api import check, run, settle
from variegate.comparison.plan import arm_of, baseline
from variegate.comparison.shelf import Shelf
from variegate.errors import DataError, Problem, RecipeError, RunFolderError, UserError
from variegate.files import write_atomic
from variegate.pipeline import Context, run_stages
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe, overlaid
from variegate.recipe_file import dump_recipe
from variegate.records import content_id
from variegate.stages.evaluate.stage import read_seeds
from variegate.statistics import two_way_interval
from variegate.store import RunFolder, explained

SCHEMA = 1
CLOSING_SEEDS = 3  # that no choice was made by
USUAL = {  # what is tried where nothing is named; those that a recipe cannot take are left out
    "generate.strength": (0.3, 0.5, 0.7, 0.9),
    "train.mixing.fraction": (0.2, 0.45, 0.7),
}
RESULTS, TABLE, RECIPE = "ablation.json", "ablation.md", "recipe.yaml"
ASKED = "asked.json"  # what the folder is an ablation of


@dataclass(frozen=True, slots=True)
class Ablation:
    """Where an ablation is and what it found; `results` is ablation.json."""

    folder: Path
    verdict: str
    results: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Study:
    """What one ablation is about."""

    data: str | None
    recipe: str
    overrides: tuple[str, ...]
    root: Path
    workers: int
    reporter_class: type[QuietReporter]

    @property
    def asked(self) -> dict[str, Any]:
        """What the folder holds an ablation of; the settings tried may change, as they add to each other."""
        return {"data": self.data, "recipe": self.recipe, "overrides": list(self.overrides)}

    def settled(self, drawing: Iterable[str] = (), *more: str) -> Recipe:
        """The recipe with what changes the images put in, and KEY=VALUE besides."""
        return settle(self.data, self.recipe, [*self.overrides, *drawing, *more])

    def training(self, candidates: Sequence[Candidate], seeds: int, *, with_real: bool = False) -> Recipe:
        """The recipe that trains candidates, all of one drawing, as its arms."""
        arms: list[Any] = [{"name": one.name, "images": "real+synthetic", "train": one.training} for one in candidates]
        real = [_real_like(candidates[0])] if with_real else []
        keys = (f"evaluate.arms={json.dumps([*real, *arms])}", f"evaluate.seeds={seeds}")
        return self.settled(candidates[0].drawing, *keys)


def ablate(
    data: str | os.PathLike[str] | None = None,
    recipe: str = "variegate",
    out: str | os.PathLike[str] | None = None,
    *,
    over: Iterable[str] = (),
    max_trainings: int = 60,
    overrides: Iterable[str] = (),
    workers: int = 1,
    reporter_class: type[QuietReporter] = QuietReporter,
) -> Ablation:
    """Try settings of a recipe on validation data and write the best of them as a recipe; the same call again resumes.

    `over` are KEY=VALUE,VALUE strings; all combinations are tried, or as many of them as `max_trainings` classifiers allow.
    Raises UserError with every problem before anything slow, TaskFailed when a piece of the work fails.
    """
    path = None if data is None else os.fspath(data)
    plain = settle(path, recipe, overrides)
    root = Path(out) if out is not None else Path("runs") / f"{Path(plain.dataset.path.split(':')[-1]).stem}-ablation"
    study = Study(path, recipe, tuple(overrides), root, workers, reporter_class)
    _refuse_others(study)
    start = time.monotonic()
    axes = _axes(study, plain, over)
    candidates = _candidates(study, axes, max_trainings, plain.seed)
    _check(study, candidates)
    with explained(root):
        write_atomic(root / ASKED, json.dumps(study.asked).encode())
    reporter = reporter_class()

    def measure(places: Sequence[int], rung: int, seeds: int) -> list[np.ndarray]:
        reporter.line(f"ablation: rung {rung}: {len(places)} of {len(candidates)} settings, {seeds} seeds")
        return _train(study, [candidates[place] for place in places], seeds)

    tried = halve(len(candidates), measure)
    results = _results(study, plain, axes, candidates, tried) | {"seconds": round(time.monotonic() - start, 1)}
    _write(study, results, candidates[results["winner"]])
    return Ablation(root, results["verdict"], results)


def _refuse_others(study: Study) -> None:
    """A folder that is somebody else's, or the ablation of another recipe."""
    root, remedy = study.root, "choose a new or empty --out folder"
    if not root.is_dir() or not any(root.iterdir()):
        return
    try:
        old = json.loads((root / ASKED).read_text(encoding="utf-8"))
        name = old["recipe"]
    except (OSError, ValueError, TypeError, KeyError):
        raise RunFolderError(Problem(str(root), "is not empty and no ablation", remedy)) from None
    if old != study.asked:
        raise RunFolderError(Problem(str(root), f"is an ablation of {name} with other settings or data", remedy))


# ------------------------------------------------------------------------------------------ what is tried


def _axes(study: Study, plain: Recipe, over: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    named = dict(map(parse_axis, over))
    if plain.generate.method == "none":
        text = f"recipe {study.recipe} draws nothing, so there is nothing to try"
        raise RecipeError(Problem("--recipe", text, "name a recipe that draws"))
    if named:
        return named
    without = set()
    if not plain.generate.from_image or plain.generate.compose == "sequential":
        without.add("generate.strength")
    if plain.train_of(arm_of(plain)).mixing.policy == "concat":
        without.add("train.mixing.fraction")
    if len(without) == len(USUAL):
        text = f"recipe {study.recipe} has neither a strength nor a fraction to try"
        raise RecipeError(Problem("--over", text, "name keys and values, such as --over generate.per_real=2,5,10"))
    return {key: values for key, values in USUAL.items() if key not in without}


def _candidates(study: Study, axes: dict[str, tuple[Any, ...]], budget: int, seed: int) -> list[Candidate]:
    """Different recipes only: a point that is the recipe as it is counts once. Raises RecipeError with every problem."""
    most = most_candidates(budget, CLOSING_SEEDS)
    if not most:
        need = trainings(2, CLOSING_SEEDS)
        raise RecipeError(Problem("--trainings", f"{budget} are too few to choose by", f"give {need} or more"))
    found: dict[str, Candidate] = {}
    problems: dict[Problem, None] = {}
    for candidate in grid(axes):
        try:
            found.setdefault(_recipe_id(study, candidate), candidate)
        except UserError as exc:
            problems |= dict.fromkeys(exc.problems)
    if problems:
        raise RecipeError(list(problems))
    return thinned(list(found.values()), most, seed)


def _recipe_id(study: Study, candidate: Candidate) -> str:
    return content_id({key: value for key, value in _as_tried(study, candidate).items() if key != "evaluate"})


def _check(study: Study, candidates: Sequence[Candidate]) -> None:
    """Data, model and everything the settings ask for, before anything slow."""
    problems: dict[Problem, None] = {}
    for members in by_drawing(candidates).values():
        try:
            facts = check(study.training(members, 1))
            if not any(facts["data"].counts()["val"].values()):
                remedy = "give a val split, or set dataset.val_fraction above 0"
                raise DataError(Problem("dataset", "has no validation images to choose by", remedy))
        except UserError as exc:
            problems |= dict.fromkeys(exc.problems)
    if problems:
        raise UserError(list(problems))


# ------------------------------------------------------------------------------------------ drawing and training


def _real_like(candidate: Candidate) -> dict[str, Any]:
    """Real images alone, by a classifier that learns as the candidate's does: a gain must not be its augmentation's."""
    train = {key: value for key, value in candidate.training.items() if key not in ("mixing", "label", "pools")}
    if "smoothing" in candidate.training.get("label", {}):
        train["label"] = {"smoothing": candidate.training["label"]["smoothing"]}
    return {"name": "real", "images": "real", "train": train}


def _train(study: Study, candidates: Sequence[Candidate], seeds: int, *, with_real: bool = False) -> list[np.ndarray]:
    """Which validation images each got right, float64 [seeds, N], in the order of `candidates`; real images alone last."""
    found: dict[str, np.ndarray] = {}
    for drawing, members in by_drawing(candidates).items():
        taught = Shelf(study.root / "adapters", study.reporter_class).taught(study.settled(drawing))
        folder = study.root / "runs" / content_id(study.data, study.recipe, study.overrides, drawing)
        run(None, taught, folder, workers=study.workers, last="curate", reporter_class=study.reporter_class)
        recipe = study.training(members, seeds, with_real=with_real)
        found |= _correct(recipe.model_copy(update={"adapt": taught.adapt}), folder, study)
    return [found[candidate.name] for candidate in candidates] + ([found["real"]] if with_real else [])


def _correct(recipe: Recipe, root: Path, study: Study) -> dict[str, np.ndarray]:
    """Train the arms of a recipe in the folder of its images; arm name -> what it got right."""
    with RunFolder.create(root) as folder:
        run_stages(Context(recipe, folder, study.reporter_class(), study.workers), "train")
        images = folder.real_images("val")
        labels = np.array([image.label for image in images], np.int64)
        seeds = range(recipe.evaluate.seeds)
        return {arm.name: _right(folder, arm, seeds, images, labels) for arm in recipe.evaluate.arm_sections}


def _right(folder: RunFolder, arm: ArmSection, seeds: range, images: Sequence[Any], labels: np.ndarray) -> np.ndarray:
    outcomes = read_seeds(folder, arm, seeds, "val", images)
    return np.stack([outcome.test["last"].argmax(axis=1) == labels for outcome in outcomes]).astype(np.float64)


# ------------------------------------------------------------------------------------------ what came out


def _results(
    study: Study,
    plain: Recipe,
    axes: dict[str, tuple[Any, ...]],
    candidates: Sequence[Candidate],
    tried: dict[int, Tried],
) -> dict[str, Any]:
    """ablation.json: everything tried, what each key did, and the winner against real images alone on seeds of its own."""
    winner = max(tried, key=lambda place: tried[place].rung)
    used = len(tried[winner].accuracies)
    best_, real = _train(study, [candidates[winner]], used + CLOSING_SEEDS, with_real=True)
    interval = two_way_interval(best_[used:] - real[used:])
    entries = [
        {
            "settings": dict(candidate.settings),
            "rung": tried[place].rung,
            "seeds": len(tried[place].accuracies),
            "val_accuracy": statistics.mean(tried[place].accuracies),
            "first_seed": tried[place].accuracies[0],
        }
        for place, candidate in enumerate(candidates)
    ]
    closing = {
        "seeds": CLOSING_SEEDS,
        "images": best_.shape[1],
        "winner": float(best_[used:].mean()),
        "real": float(real[used:].mean()),
        "difference": asdict(interval),
    }
    return {
        "schema": SCHEMA,
        "variegate": __version__,
        "data": plain.dataset.path,
        "recipe": study.recipe,
        "overrides": list(study.overrides),
        "axes": {key: list(values) for key, values in axes.items()},
        "candidates": entries,
        "effects": [asdict(one) for one in _effects(study, axes, candidates, entries)],
        "winner": winner,
        "closing": closing,
        "trainings": trainings(len(candidates), CLOSING_SEEDS),
        "verdict": sentence(candidates[winner], len(candidates), closing, interval),
    }


def _effects(
    study: Study, axes: dict[str, tuple[Any, ...]], candidates: Sequence[Candidate], entries: Sequence[dict[str, Any]]
) -> list[Effect]:
    """By the first rung, the largest effect first; a candidate that does not name a key has the recipe's own value."""
    scores = [entry["first_seed"] for entry in entries]
    recipes = [_as_tried(study, candidate) for candidate in candidates]
    found = [effect(key, [json.dumps(_at(recipe, key)) for recipe in recipes], scores) for key in axes]
    return sorted(found, key=lambda one: -one.explained)


def _as_tried(study: Study, candidate: Candidate) -> dict[str, Any]:
    """The keys of a candidate's recipe, with those of its training in `train`."""
    recipe = study.training([candidate], 1)
    train = recipe.train_of(recipe.evaluate.arm_sections[0])
    return recipe.model_dump(mode="json") | {"train": train.model_dump(mode="json")}


def _settled(study: Study, candidate: Candidate) -> Recipe:
    return study.settled((), *(f"{key}={json.dumps(value)}" for key, value in candidate.settings))


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key; one number and a list of it alone are the same."""
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values[0] if isinstance(values, list) and len(values) == 1 else values


def _real_alone(study: Study) -> Recipe:
    """The recipe none, on the data and with the classifier of the recipe that was tried."""
    tried = study.settled()
    train = tried.train_of(arm_of(tried))
    plain = baseline(settle(study.data, "none", [f"seed={tried.seed}"]), tried)
    kept = {key: getattr(train, key) for key in ("augment", "mix", "transport")}
    return Recipe.model_validate(overlaid(plain.model_dump(), {"train": kept}))


def _write(study: Study, results: dict[str, Any], winner: Candidate) -> None:
    """ablation.json, ablation.md, and the recipe to go on with: the winner's, or `none` where nothing was gained."""
    if results["closing"]["difference"]["low"] > 0:
        chosen = _settled(study, winner)
    else:
        chosen = _real_alone(study)
    write_atomic(study.root / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(study.root / TABLE, as_markdown(results).encode())
    write_atomic(study.root / RECIPE, dump_recipe(chosen).encode())
