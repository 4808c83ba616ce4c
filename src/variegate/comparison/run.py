"""Run a comparison: check everything, run what is missing, read what was found, write it down. Glue only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from variegate import __version__
from variegate.api import check, default_out, environment, is_helper
from variegate.comparison import draws, plan, results, views
from variegate.comparison.asked import Asked, Wanted, settle_all
from variegate.comparison.draws import Draw
from variegate.comparison.plan import REAL, Entry
from variegate.comparison.workshop import Workshop, draws_at_a_time
from variegate.errors import Problem, RunFolderError, UserError
from variegate.files import write_atomic
from variegate.progress import QuietReporter
from variegate.recipe import Recipe
from variegate.recipe_file import difference, dump_recipe, load_recipe
from variegate.records import rounded
from variegate.store import explained

RECIPES = "recipes"


@dataclass(frozen=True)
class Comparison:
    """Where a comparison is and what it found; `results` is comparison.json, None where only a shard of the draws was run."""

    folder: Path
    results: dict[str, Any] | None

    @cached_property
    def verdict(self) -> str:
        """One sentence for each number of shots."""
        if self.results is None:
            return "this shard is done; when all are, the same command without --shard writes the report"
        found = self.results["shots"]
        return "\n".join(f"{views.shots_words(one['shots'])}: {one['verdict']}" for one in found)


def compare(asked: Asked, *, workers: int = 1, reporter_class: type[QuietReporter] = QuietReporter) -> Comparison:
    """Run what is asked for, or what is missing of it; see api.compare."""
    if is_helper():
        raise UserError("compare makes many runs and takes no helpers; start it without accelerate or torchrun")
    wanted = settle_all(asked)
    folder = asked.out or Path(f"{default_out(wanted.base.dataset.path)}-compare")
    _refuse_changes(folder, wanted)
    found, warnings = _check_all(wanted, reporter_class)
    draws.refuse_other_data(folder, found)
    wanted = replace(wanted, warnings=(*wanted.warnings, *warnings))
    for text in wanted.warnings:
        reporter_class().line(f"warning: {text}")
    counts = {shots: list(next(draw.counts for draw in found if draw.shots == shots)) for shots in wanted.shots}
    with explained(folder):
        for entry in wanted.entries:
            write_atomic(_recipe_path(folder, entry), dump_recipe(_timeless(entry.recipe)).encode())
        draws.remember(folder, found)
    device, own = wanted.base.backend.device, len(asked.own_draws)
    at_a_time, possible = draws_at_a_time(workers, own, device), draws_at_a_time(own, own, device)
    if possible > at_a_time:
        reporter_class().line(
            f"{at_a_time} of {own} draws at a time; --workers {possible} takes {possible} beside each other"
        )
    workshop = Workshop(wanted, folder, workers, at_a_time, reporter_class)
    workshop.refuse_peeking()
    if asked.shard:
        for shots in wanted.shots:
            workshop.run_shard(shots, counts[shots])
        return Comparison(folder, None)
    answer = _assemble(wanted, [workshop.shots(shots, counts[shots]) for shots in wanted.shots])
    views.write(folder, answer)
    for text in answer["warnings"]:
        if text not in wanted.warnings:
            reporter_class().line(f"warning: {text}")
    return Comparison(folder, answer)


def _recipe_path(folder: Path, entry: Entry) -> Path:
    return folder / RECIPES / f"{plan.slug(entry.name)}.yaml"


# ------------------------------------------------------------------------------------------------ before anything slow


def _timeless(recipe: Recipe) -> Recipe:
    """Without what a comparison sets itself."""
    blank = {"seed": 0, "dataset": recipe.dataset.model_copy(update={"shots": None})}
    told: dict[str, Any] = {"seeds": Recipe().evaluate.seeds}
    if recipe.generate.method != "none" or recipe.train.pools:
        told["arms"] = [plan.arm_of(recipe)]
    return recipe.model_copy(update={**blank, "evaluate": recipe.evaluate.model_copy(update=told)})


def _refuse_changes(folder: Path, wanted: Wanted) -> None:
    """A folder that is somebody else's, or a comparison with other settings under the same names."""
    if folder.is_dir() and not (folder / RECIPES).is_dir() and any(folder.iterdir()):
        text = "is not empty and no comparison"
        raise RunFolderError(Problem(str(folder), text, "choose a new or empty --out folder"))
    problems = []
    for entry in wanted.entries:
        path = _recipe_path(folder, entry)
        if path.is_file():
            old = load_recipe(str(path))  # keys that came since have their defaults
            lines = difference(old.model_dump(mode="json"), _timeless(entry.recipe).model_dump(mode="json"))
            problems += [Problem(str(folder), f"compared another {entry.name}: {line}") for line in lines]
    if problems:
        problems[-1] = replace(problems[-1], remedy="choose another --out folder, or give the recipe another name")
        raise RunFolderError(problems)


def _check_all(wanted: Wanted, reporter_class: type[QuietReporter]) -> tuple[list[Draw], list[str]]:
    """Data of every draw, then everything every recipe needs; returns the draws, and what is to be known of pools."""
    placed = {entry.name: plan.place(entry, wanted.base)[1:] for entry in (Entry(REAL, wanted.base), *wanted.entries)}
    asked, hashed = wanted.asked, any(draws.brings_along(recipe) for recipe, _ in placed.values())
    found = [
        draw
        for shots in wanted.shots
        for draw in draws.read_draws(wanted.base, shots, asked.draws, reporter_class(), hashed=hashed)
    ]
    whole = draws.whole_data(wanted.base, asked.draws, reporter_class()) if hashed else frozenset()
    problems: list[Problem] = []
    warnings: list[str] = []
    for shots in wanted.shots:
        own = [draw for draw in found if draw.shots == shots and draw.number in asked.own_draws]
        for name, (recipe, arm) in placed.items():
            try:
                settled = plan.settled(recipe, [arm], draw=own[0].number, shots=shots, seeds=1)
                check(settled, reporter_class())
                unfair = draws.unfair(recipe, own, whole) if draws.brings_along(recipe) else []
                warnings += [f"{name}: {text}" for text in draws.foreign(recipe, found, whole)]
            except UserError as exc:
                unfair = list(exc.problems)
            problems += [replace(one, where=f"{name}: {one.where}") for one in unfair]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return found, list(dict.fromkeys(warnings))


# ------------------------------------------------------------------------------------------------ writing


def _assemble(wanted: Wanted, found: list[dict[str, Any]]) -> dict[str, Any]:
    """comparison.json."""
    train, protocol = wanted.base.train, ("model", "steps", "epochs", "batch", "augment", "mix")
    warnings = [*wanted.warnings, *(text for one in found for text in one.pop("warnings"))]
    if wanted.asked.draws == 1:
        warnings.insert(0, "one draw: intervals cover other seeds and test images, not other training images")
    elif wanted.asked.draws < 5:
        warnings.insert(
            0, f"{wanted.asked.draws} draws make wide intervals; the same command with more --draws only adds to this"
        )
    return rounded(
        {
            "schema": results.SCHEMA,
            "variegate": __version__,
            "data": wanted.base.dataset.path,
            "command": wanted.asked.command(),
            "recipes": [entry.name for entry in wanted.named],
            "draws": wanted.asked.draws,
            "seeds": wanted.asked.seeds,
            "pool": wanted.asked.pool,
            "skip": list(wanted.asked.skip),
            "protocol": {key: getattr(train, key) for key in protocol},
            "environment": environment(),
            "shots": found,
            "curves": results.over_shots(found),
            "warnings": list(dict.fromkeys(warnings)),
        }
    )
