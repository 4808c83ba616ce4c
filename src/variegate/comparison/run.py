"""Run a comparison: check everything, run what is missing, read what was found, write it down. Glue only."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from variegate import __version__
from variegate.api import check, default_out, environment, is_helper, run, settle
from variegate.comparison import outcomes, plan, results, retrieval, views
from variegate.comparison.plan import CLASSIC, CLASSIC_RUN, REAL, RETRIEVAL, Curve, Entry, Layout, Method
from variegate.comparison.shelf import Shelf
from variegate.errors import Problem, RecipeError, RunFolderError, UserError
from variegate.files import write_atomic
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe
from variegate.recipe_file import difference, dump_recipe, parse_yaml
from variegate.records import content_id
from variegate.stages.dataset.listing import did_you_mean
from variegate.stages.evaluate.results import rounded
from variegate.store import RunFolder, explained

RECIPES, RUNS, ADAPTERS, POOL = "recipes", "runs", "adapters", "pool"
PLAIN_KEYS = ("dataset.", "train.", "backend.device")  # of --set: what the baseline follows too


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, settled and checked."""

    entries: tuple[Entry, ...]  # the recipes named, then text-only ones, then points of curves
    base: Recipe
    shots: tuple[int | None, ...]
    draws: int
    seeds: int
    pool: str | None
    curves: tuple[Curve, ...]
    skip: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def named(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "recipe"]


@dataclass(frozen=True)
class Comparison:
    """Where a comparison is and what it found; `results` is comparison.json."""

    folder: Path
    results: dict[str, Any]

    @cached_property
    def verdict(self) -> str:
        """One sentence for each number of shots."""
        found = self.results["shots"]
        return "\n".join(f"{views.shots_words(one['shots'])}: {one['verdict']}" for one in found)


def compare(
    data: str | None,
    recipes: Sequence[str],
    *,
    draws: int,
    seeds: int,
    shots: Sequence[int] = (),
    out: Path | None = None,
    pool: str | None = None,
    curves: Sequence[str] = (),
    skip: Sequence[str] = (),
    overrides: Sequence[str] = (),
    workers: int = 1,
    reporter_class: type[QuietReporter] = QuietReporter,
) -> Comparison:
    """See api.compare."""
    if is_helper():
        raise UserError("compare makes many runs and takes no helpers; start it without accelerate or torchrun")
    wanted = settle_all(data, recipes, draws, seeds, shots, pool, curves, skip, overrides)
    folder = out or Path(f"{default_out(wanted.base.dataset.path)}-compare")
    _refuse_changes(folder, wanted)
    counts = _check_all(wanted, reporter_class)
    with explained(folder):
        for entry in wanted.entries:
            write_atomic(folder / RECIPES / f"{plan.slug(entry.name)}.yaml", dump_recipe(_timeless(entry.recipe)).encode())
    workshop = _Workshop(wanted, folder, workers, reporter_class, Shelf(folder / ADAPTERS, reporter_class))
    workshop.refuse_peeking()
    found = [workshop.shots(shot, counts[shot]) for shot in wanted.shots]
    answer = _assemble(wanted, found, command(data, recipes, draws, seeds, shots, out, pool, curves, skip, overrides))
    views.write(folder, answer)
    return Comparison(folder, answer)


def command(
    data: str | None, recipes: Sequence[str], draws: int, seeds: int, shots: Sequence[int], out: Path | None,
    pool: str | None, curves: Sequence[str], skip: Sequence[str], overrides: Sequence[str],
) -> str:  # fmt: skip
    """The command line that repeats a comparison."""
    words = ["variegate", "compare", *([data] if data else []), "--recipes", ",".join(recipes)]
    words += ["--draws", str(draws), "--seeds", str(seeds)]
    words += ["--shots", ",".join(map(str, shots))] if shots else []
    words += ["--pool", pool] if pool else []
    words += ["--skip", ",".join(skip)] if skip else []
    words += [word for curve in curves for word in ("--curve", curve)]
    words += [word for item in overrides for word in ("--set", item)]
    return shlex.join([*words, *(["--out", str(out)] if out else [])])


# ------------------------------------------------------------------------------------------------ before anything slow


def settle_all(
    data: str | None, recipes: Sequence[str], draws: int, seeds: int, shots: Sequence[int],
    pool: str | None, curves: Sequence[str], skip: Sequence[str], overrides: Iterable[str],
) -> Wanted:  # fmt: skip
    """Read every recipe and check all of them together; raises RecipeError with every problem."""
    overrides, problems, entries = list(overrides), _own_problems(recipes, skip), []
    for recipe in recipes:
        entries += _settled(Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe, recipe, data, overrides, problems)
    if problems:
        raise RecipeError(problems)
    problems += plan.disagreements(entries)
    plain = [item for item in overrides if item.startswith(PLAIN_KEYS) and not item.startswith(("train.pools", "train.mixing"))]
    parsed = [plan.parse_curve(text, [entry.name for entry in entries]) for text in curves]
    problems += [one for one in parsed if isinstance(one, Problem)]
    if problems:
        raise RecipeError(problems)
    base = plan.baseline(settle(data, "none", plain), entries[0].recipe)
    warnings, text_only = [], [] if "text-only" in skip else [plan.text_only(entry) for entry in entries]
    warnings += [one for one in text_only if isinstance(one, str) and one]
    known = [one for one in parsed if isinstance(one, Curve)]
    points = [point for curve in known for point in _points(curve, recipes, entries, data, overrides, problems)]
    if problems:
        raise RecipeError(problems)
    entries += [one for one in text_only if isinstance(one, Entry)] + points
    return Wanted(
        tuple(entries), base, tuple(shots) or (entries[0].recipe.dataset.shots,), draws, seeds, pool, tuple(known), tuple(skip), tuple(warnings)
    )


def _own_problems(recipes: Sequence[str], skip: Sequence[str]) -> list[Problem]:
    problems = [Problem("--recipes", "names no recipe", "variegate recipes ls shows the shipped ones")] if not recipes else []
    names = [plan.slug(Path(recipe).stem) for recipe in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem("--recipes", f"{name} stands twice", "give each recipe once, files under different names") for name in twice]
    for word in skip:
        if word not in plan.SKIPPABLE:
            problems.append(Problem(f"--skip {word}", "is no arm that can be left out", did_you_mean(word, plan.SKIPPABLE)))
    return problems


def _settled(
    name: str, recipe: str, data: str | None, overrides: Sequence[str], problems: list[Problem], **kind: str
) -> list[Entry]:
    try:
        return [Entry(name, settle(data, recipe, overrides), **kind)]  # type: ignore[arg-type]
    except RecipeError as exc:
        problems += exc.problems
        return []


def _points(
    curve: Curve, recipes: Sequence[str], entries: Sequence[Entry], data: str | None, overrides: Sequence[str], problems: list[Problem]
) -> list[Entry]:
    source = recipes[[entry.name for entry in entries].index(curve.recipe)]
    found = []
    for value in curve.values:
        changed = [*overrides, f"{curve.key}={value}"]
        found += _settled(curve.name(value), source, data, changed, problems, kind="curve", of=curve.recipe)
    return found


def _timeless(recipe: Recipe) -> Recipe:
    """Without what a comparison sets itself."""
    blank = {"seed": 0, "evaluate": Recipe().evaluate, "dataset": recipe.dataset.model_copy(update={"shots": None})}
    if recipe.generate.method == "none" and not recipe.train.pools:
        return recipe.model_copy(update={**blank, "evaluate": recipe.evaluate.model_copy(update={"seeds": 3})})
    arm = plan.arm_of(recipe)
    return recipe.model_copy(update={**blank, "evaluate": Recipe().evaluate.model_copy(update={"arms": [arm]})})


def _refuse_changes(folder: Path, wanted: Wanted) -> None:
    """A folder that is somebody else's, or a comparison with other settings under the same names."""
    if folder.is_dir() and not (folder / RECIPES).is_dir() and any(folder.iterdir()):
        text = "is not empty and no comparison"
        raise RunFolderError(Problem(str(folder), text, "choose a new or empty --out folder"))
    problems = []
    for entry in wanted.entries:
        path = folder / RECIPES / f"{plan.slug(entry.name)}.yaml"
        if path.is_file():
            old = parse_yaml(path.read_text(encoding="utf-8"), str(path))
            lines = difference(old, _timeless(entry.recipe).model_dump(mode="json"))
            problems += [Problem(str(folder), f"compared another {entry.name}: {line}") for line in lines]
    if problems:
        problems[-1] = replace(problems[-1], remedy="choose another --out folder, or give the recipe another name")
        raise RunFolderError(problems)


def _check_all(wanted: Wanted, reporter_class: type[QuietReporter]) -> dict[int | None, list[int]]:
    """Data of every draw and everything every recipe needs; returns training images of each class by shots."""
    from variegate.stages.dataset.stage import check as check_data

    counts: dict[int | None, list[int]] = {}
    problems: list[Problem] = []
    for shots in wanted.shots:
        base = plan.settled(wanted.base, [ArmSection(name=REAL, images="real")], draw=0, shots=shots, seeds=wanted.seeds)
        for draw in range(wanted.draws):
            facts = check_data(base.model_copy(update={"seed": draw}), reporter_class())
            trained = facts.counts()["train"]
            counts.setdefault(shots, list(trained.values()))
            few = {name: count for name, count in trained.items() if shots and count < shots}
            if few and base.dataset.imbalance is None:
                problems.append(_too_few(few, shots or 0, base))
                break
        for entry in (Entry(REAL, wanted.base), *wanted.entries) if not problems else ():
            label, recipe, arm = plan.place(entry, wanted.base)
            try:
                check(plan.settled(recipe, [arm], draw=0, shots=shots, seeds=wanted.seeds), reporter_class())
            except UserError as exc:
                problems += [replace(one, where=f"{entry.name}: {one.where}") for one in exc.problems]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return counts


def _too_few(few: dict[str, int], shots: int, base: Recipe) -> Problem:
    name, count = min(few.items(), key=lambda item: item[1])
    remedy = f"use --shots {count}, or add images"
    if base.dataset.path == "builtin:meadow":
        remedy = f"let more be drawn: --set dataset.meadow.n_per_species={shots}"
    text = f"{len(few)} classes have fewer training images, {name} {count}"
    return Problem(f"--shots {shots}", text, remedy)


# ------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class _Workshop:
    """Runs what a comparison needs, in the order that lets most be shared."""

    wanted: Wanted
    folder: Path
    workers: int
    reporter_class: type[QuietReporter]
    shelf: Shelf

    def home(self, shots: int | None, draw: int, name: str) -> Path:
        return self.folder / RUNS / f"shots-{shots or 'all'}" / f"draw-{draw}" / name

    def refuse_peeking(self) -> None:
        """Take every adapter that a recipe brings along, before anything is drawn: one that saw other splits is refused."""
        for entry in self.wanted.entries:
            label, recipe, arm = plan.place(entry, self.wanted.base)
            if recipe.adapt.method == "file":
                for shots in self.wanted.shots:
                    for draw in range(self.wanted.draws):
                        self._run(label, recipe, [arm], shots, draw, last="adapt")

    def shots(self, shots: int | None, counts: list[int]) -> dict[str, Any]:
        """Everything at one number of shots: an entry of comparison.json's `shots`."""
        wanted, draws = self.wanted, range(self.wanted.draws)
        drawn = plan.largest([entry for entry in wanted.named], counts)
        copies, extra = plan.copies_of(drawn, counts), None
        pooled: list[Recipe] = []
        if wanted.pool and sum(drawn):
            pooled, arm = [self._retrieved(shots, draw, drawn) for draw in draws], _retrieval_arm(wanted.named)
            label = f"{RETRIEVAL}-{content_id(Path(pooled[0].train.pools[0]).name, arm.model_dump())[:8]}"
            extra = (label, arm)
        first = plan.lay_out(wanted.entries, wanted.base, copies=copies, retrieval=extra, best=None, skip=wanted.skip)
        for draw in draws:
            self._run(CLASSIC_RUN, wanted.base, first.arms(CLASSIC_RUN), shots, draw)
            if extra:
                self._run(extra[0], pooled[draw], [extra[1]], shots, draw)
        best = self._best_classic(first, shots)
        key = best.removeprefix("real+") if best and best != REAL else None
        layout = plan.lay_out(wanted.entries, wanted.base, copies=copies, retrieval=extra, best=key, skip=wanted.skip)
        for draw in draws:
            for label, recipe in layout.runs.items():
                if label != CLASSIC_RUN:
                    self._run(label, recipe, layout.arms(label), shots, draw)
        return self._read(layout, shots, best)

    def _run(
        self, label: str, recipe: Recipe, arms: Sequence[ArmSection], shots: int | None, draw: int, last: str = "evaluate"
    ) -> None:
        """One run, with all that its folder had already: another arm or seed is no reason to lose one."""
        root, seeds = self.home(shots, draw, label), self.wanted.seeds
        path = root / "recipe.yaml"
        if path.is_file():
            old = Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path))).evaluate
            names = {arm.name for arm in arms}
            arms = [*arms, *(arm for arm in old.arm_sections if arm.name not in names)]
            seeds = max(seeds, old.seeds)
        settled = plan.settled(recipe, arms, draw=draw, shots=shots, seeds=seeds)
        reporter = self.reporter_class()
        reporter.line(f"--- {views.shots_words(shots)}, draw {draw + 1} of {self.wanted.draws}: {label}")
        run(None, self.shelf.taught(settled), root, workers=self.workers, last=last, reporter_class=self.reporter_class)

    def _retrieved(self, shots: int | None, draw: int, drawn: list[int]) -> Recipe:
        """The baseline's recipe with the images retrieved for this draw as its pool."""
        wanted, first = self.wanted, self.wanted.named[0].recipe
        encoder = retrieval.encoder_of(first)
        label = f"retrieved-{content_id(wanted.pool, encoder, first.backend.model_dump(), drawn)[:8]}"
        root = self.home(shots, draw, label)
        plain = plan.settled(wanted.base, [ArmSection(name=REAL, images="real")], draw=draw, shots=shots, seeds=1)
        run(None, plain, root, last="dataset", reporter_class=self.reporter_class)
        pool = retrieval.read_pool(str(wanted.pool), plain, self.folder / POOL)
        with RunFolder.create(root) as folder:
            retrieval.retrieve(folder, pool, first, drawn, self.reporter_class())
        train = wanted.base.train.model_copy(update={"pools": [str(root)]})
        return wanted.base.model_copy(update={"train": train})

    def _best_classic(self, layout: Layout, shots: int | None) -> str | None:
        """The real-only arm with the best mean validation accuracy over draws; None without validation images."""
        means: dict[str, float] = {}
        for method in layout.methods:
            if method.kind in ("real", "classic"):
                roots = [self.home(shots, draw, CLASSIC_RUN) for draw in range(self.wanted.draws)]
                values = [outcomes.read_val(root, method.arm, self.wanted.seeds) for root in roots]
                if None in values:
                    return None
                means[method.name] = sum(values) / len(values)  # type: ignore[arg-type]
        return max(means, key=lambda name: means[name])

    def _read(self, layout: Layout, shots: int | None, best: str | None) -> dict[str, Any]:
        """Every outcome of every draw, summarised."""
        wanted, found = self.wanted, {}
        classic = [self.home(shots, draw, CLASSIC_RUN) for draw in range(wanted.draws)]
        tested = [outcomes.test_images(root) for root in classic]
        for method in layout.methods:
            if not method.same_as:
                found[method.name] = [self._outcome(method, layout, shots, draw, tested[draw]) for draw in range(wanted.draws)]
        names = {method.name: method.same_as or method.name for method in layout.methods}
        curves = []
        for curve in wanted.curves:
            values = {curve.name(value): value for value in curve.values}
            points = {name: found[names[name]] for name in values}
            curves.append({"recipe": curve.recipe, "key": curve.key, "points": results.summarise_curve(points, values)})
        warnings = {text: None for each in found.values() for one in each for text in one.warnings}
        summary = results.summarise(layout, found, best, wanted.draws)
        head = {"shots": shots, "counts": outcomes.counts_of(classic[0])}
        return {**head, **summary, "curves": curves, "warnings": list(warnings)}

    def _outcome(self, method: Method, layout: Layout, shots: int | None, draw: int, tested: list) -> outcomes.Outcome:
        root, lesson = self.home(shots, draw, method.run), None
        if method.run in layout.runs:
            settled = plan.settled(layout.runs[method.run], [method.arm], draw=draw, shots=shots, seeds=self.wanted.seeds)
            lesson = self.shelf.cost(settled)
        return outcomes.read_outcome(root, method.arm, self.wanted.seeds, lesson, test=tested)


def _retrieval_arm(named: Sequence[Entry]) -> ArmSection:
    """Retrieved images are mixed in as the first recipe that draws mixes its own, from the whole pool."""
    mixing = next(
        entry.recipe.train_of(plan.arm_of(entry.recipe)).mixing for entry in named if entry.recipe.generate.method != "none"
    )
    policy = "pool" if mixing.policy == "replace" else mixing.policy
    return ArmSection(name=RETRIEVAL, images="real+synthetic", train={"mixing": mixing.model_dump() | {"policy": policy}})


# ------------------------------------------------------------------------------------------------ writing


def _assemble(wanted: Wanted, found: list[dict[str, Any]], repeat: str) -> dict[str, Any]:
    """comparison.json."""
    train, protocol = wanted.base.train, ("model", "steps", "epochs", "batch", "augment", "mix")
    warnings = [*wanted.warnings, *(text for one in found for text in one.pop("warnings"))]
    if wanted.draws == 1:
        warnings.insert(0, "one draw: intervals cover other seeds and test images, not other training images")
    elif wanted.draws < 5:
        warnings.insert(0, f"{wanted.draws} draws make wide intervals; the same command with more --draws only adds to this")
    return rounded(
        {
            "schema": results.SCHEMA,
            "variegate": __version__,
            "data": wanted.base.dataset.path,
            "command": repeat,
            "recipes": [entry.name for entry in wanted.named],
            "draws": wanted.draws,
            "seeds": wanted.seeds,
            "pool": wanted.pool,
            "skip": list(wanted.skip),
            "protocol": {key: getattr(train, key) for key in protocol},
            "environment": environment(),
            "shots": found,
            "warnings": list(dict.fromkeys(warnings)),
        }
    )
