"""What a comparison is asked for: as it was typed, and settled into recipes that are checked against each other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from variegate.api import settle
from variegate.comparison import plan
from variegate.comparison.plan import Curve, Entry, Kind
from variegate.errors import Problem, RecipeError, UserError
from variegate.recipe import Recipe
from variegate.recipe_file import idle_settings
from variegate.records import arm_folder
from variegate.stages.dataset.listing import did_you_mean

PLAIN_KEYS = ("dataset.", "train.", "backend.device")  # of --set: what the baseline follows too
NOT_PLAIN = ("train.pools", "train.mixing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The words of the command; see api.compare."""

    data: str | None
    recipes: tuple[str, ...]
    draws: int
    seeds: int
    shots: tuple[int, ...] = ()
    out: Path | None = None
    pool: str | None = None
    curves: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None  # (1, 3): the first of three machines that share the draws out

    @property
    def own_draws(self) -> list[int]:
        """The draws that this call works through.

        >>> Asked(data=None, recipes=(), draws=5, seeds=1, shard=(2, 3)).own_draws
        [1, 4]
        """
        first, step = self.shard or (1, 1)
        return list(range(first - 1, self.draws, step))

    def command(self) -> str:
        """The command line that repeats the comparison, all of it."""
        words = ["variegate", "compare", *([self.data] if self.data else []), "--recipes", ",".join(self.recipes)]
        words += ["--draws", str(self.draws), "--seeds", str(self.seeds)]
        words += ["--shots", ",".join(map(str, self.shots))] if self.shots else []
        words += ["--pool", self.pool] if self.pool else []
        words += ["--skip", ",".join(self.skip)] if self.skip else []
        words += [word for curve in self.curves for word in ("--curve", curve)]
        words += [word for item in self.overrides for word in ("--set", item)]
        return shlex.join([*words, *(["--out", str(self.out)] if self.out else [])])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, settled."""

    asked: Asked
    entries: tuple[Entry, ...]  # the recipes named, then text-only ones, then points of curves
    base: Recipe  # real images alone
    shots: tuple[int | None, ...]
    curves: tuple[Curve, ...]
    warnings: tuple[str, ...]

    @property
    def named(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "recipe"]


def settle_all(asked: Asked) -> Wanted:
    """Read every recipe and check all of them together; raises RecipeError with every problem."""
    problems, named = _misspelt(asked), []
    for recipe in asked.recipes:
        name = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
        named += _settled(name, recipe, asked, problems)
    _raise(problems)
    parsed = [plan.parse_curve(text, [entry.name for entry in named]) for text in asked.curves]
    _raise(
        [*plan.disagreements(named), *_idle_pool(asked, named), *(one for one in parsed if isinstance(one, Problem))]
    )
    curves = [one for one in parsed if isinstance(one, Curve)]
    points = [point for curve in curves for point in _points(curve, asked, named, problems)]
    _raise(problems)
    plain = [item for item in asked.overrides if item.startswith(PLAIN_KEYS) and not item.startswith(NOT_PLAIN)]
    base = plan.baseline(settle(asked.data, "none", plain), named[0].recipe)
    from_text = [] if "text-only" in asked.skip else [plan.text_only(entry, _kind(entry)) for entry in named]
    entries = (*named, *(one for one in from_text if isinstance(one, Entry)), *points)
    shots = asked.shots or (named[0].recipe.dataset.shots,)
    warnings = (*(one for one in from_text if isinstance(one, str) and one), *_idle_settings(asked, named))
    return Wanted(asked, entries, base, shots, tuple(curves), warnings)


def _kind(entry: Entry) -> str:
    """Of the model that draws; empty where it cannot be read, which the checks of the run explain."""
    from variegate.backends.base import locate
    from variegate.backends.folder import read_model

    try:
        return read_model(*locate(entry.recipe.backend)).kind
    except UserError:
        return ""


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise RecipeError(problems)


def _misspelt(asked: Asked) -> list[Problem]:
    """What is wrong with the names of recipes and of arms to skip, as far as no recipe has to be read."""
    problems = []
    if not asked.recipes:
        problems.append(Problem("--recipes", "names no recipe", "variegate recipes ls shows the shipped ones"))
    names = [plan.slug(Path(recipe).stem) for recipe in asked.recipes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem("--recipes", f"{name} stands twice", "give each once, files under different names"))
    taken = set(map(arm_folder, plan.TAKEN))
    for name in sorted({name for name in names if arm_folder(name) in taken}):
        problems.append(Problem("--recipes", f"{name} is what a baseline is called", "give the file another name"))
    for word in asked.skip:
        if word not in plan.SKIPPABLE:
            known = did_you_mean(word, plan.SKIPPABLE, f"known: {', '.join(plan.SKIPPABLE)}")
            problems.append(Problem(f"--skip {word}", "is no arm that can be left out", known))
    return problems + _wrong_shard(asked)


def _wrong_shard(asked: Asked) -> list[Problem]:
    if asked.shard is None:
        return []
    one, many = asked.shard
    if not 1 <= one <= many:
        return [Problem(f"--shard {one}/{many}", "is no part of a whole", f"from 1/{many} to {many}/{many}")]
    if not asked.own_draws:
        text = f"has nothing to do: there are {asked.draws} draws"
        return [Problem(f"--shard {one}/{many}", text, f"at most --shard 1/{asked.draws}, or more --draws")]
    return []


def _idle_pool(asked: Asked, named: Sequence[Entry]) -> list[Problem]:
    if asked.pool is None or any(entry.recipe.generate.method != "none" for entry in named):
        return []
    text = "as many images are retrieved as a recipe draws, and none of these draws any"
    return [Problem(f"--pool {asked.pool}", text, "name a recipe that draws, or leave the pool out")]


def _idle_settings(asked: Asked, named: Sequence[Entry]) -> list[str]:
    """Settings for all recipes that change none of them."""
    found = []
    for item in asked.overrides:
        idle = [idle_settings(entry.recipe, [item]) for entry in named]
        found += [f"--set {one[0]}" for one in idle[:1] if all(idle)]
    return found


def _settled(
    name: str,
    recipe: str,
    asked: Asked,
    problems: list[Problem],
    *,
    more: str = "",
    kind: Kind = "recipe",
    of: str = "",
) -> list[Entry]:
    """The entry of a recipe, or nothing and its problems added to the list."""
    try:
        return [Entry(name, settle(asked.data, recipe, [*asked.overrides, *([more] if more else [])]), kind, of)]
    except RecipeError as exc:
        problems += exc.problems
        return []


def _points(curve: Curve, asked: Asked, named: Sequence[Entry], problems: list[Problem]) -> list[Entry]:
    recipe = asked.recipes[[entry.name for entry in named].index(curve.recipe)]
    found = []
    for value in curve.values:
        more = f"{curve.key}={value}"
        found += _settled(curve.name(value), recipe, asked, problems, more=more, kind="curve", of=curve.recipe)
    return found
