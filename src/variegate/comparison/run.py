"""Run a comparison: check everything, run what is missing, read what was found, write it down. Glue only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from variegate import __version__
from variegate.api import check, default_out, environment, is_helper, run
from variegate.comparison import draws, outcomes, plan, results, retrieval, views
from variegate.comparison.asked import Asked, Wanted, settle_all
from variegate.comparison.draws import Draw
from variegate.comparison.plan import CLASSIC_RUN, REAL, RETRIEVAL, Entry, Layout, Method
from variegate.comparison.shelf import Shelf
from variegate.errors import Problem, RunFolderError, UserError
from variegate.files import write_atomic
from variegate.image_quality.copying import copies_of_run
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe
from variegate.recipe_file import difference, dump_recipe, parse_yaml
from variegate.records import content_id, rounded
from variegate.stages.evaluate.stage import ONE_SEED
from variegate.store import RunFolder, explained

RECIPES, RUNS, ADAPTERS, POOL = "recipes", "runs", "adapters", "pool"


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
    for text in warnings:
        reporter_class().line(f"warning: {text}")
    wanted = replace(wanted, warnings=(*wanted.warnings, *warnings))
    counts = {shots: list(next(draw.counts for draw in found if draw.shots == shots)) for shots in wanted.shots}
    with explained(folder):
        for entry in wanted.entries:
            write_atomic(_recipe_path(folder, entry), dump_recipe(_timeless(entry.recipe)).encode())
        draws.remember(folder, found)
    workshop = _Workshop(wanted, folder, workers, reporter_class, Shelf(folder / ADAPTERS, reporter_class))
    workshop.refuse_peeking()
    if asked.shard:
        for shots in wanted.shots:
            workshop.run_shard(shots, counts[shots])
        return Comparison(folder, None)
    answer = _assemble(wanted, [workshop.shots(shots, counts[shots]) for shots in wanted.shots])
    views.write(folder, answer)
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
            old = parse_yaml(path.read_text(encoding="utf-8"), str(path))
            lines = difference(old, _timeless(entry.recipe).model_dump(mode="json"))
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
                    for draw in self.wanted.asked.own_draws:
                        self._run(label, recipe, [arm], shots, draw, last="adapt")

    def shots(self, shots: int | None, counts: list[int]) -> dict[str, Any]:
        """Everything at one number of shots: an entry of comparison.json's `shots`."""
        copies, extra = self._run_baselines(shots, counts)
        best = self._best_classic(self._layout(copies, extra, None), shots)
        layout = self._layout(copies, extra, best.removeprefix("real+") if best and best != REAL else None)
        self._run_methods(layout, shots)
        return self._read(layout, shots, best)

    def run_shard(self, shots: int | None, counts: list[int]) -> None:
        """Everything that can be done without the other draws; which classic augmentation is best takes them all."""
        self._run_methods(self._layout(*self._run_baselines(shots, counts), None), shots)

    def _layout(self, copies: int, extra: tuple[str, ArmSection] | None, best: str | None) -> Layout:
        skip = self.wanted.asked.skip
        return plan.lay_out(self.wanted.entries, self.wanted.base, copies=copies, retrieval=extra, best=best, skip=skip)

    def _run_baselines(self, shots: int | None, counts: list[int]) -> tuple[int, tuple[str, ArmSection] | None]:
        """Classifiers without drawn images; returns how often real images are duplicated, and the run and arm of retrieval if any."""
        wanted, own = self.wanted, self.wanted.asked.own_draws
        drawn = plan.largest(wanted.named, counts)
        copies, extra = plan.copies_of(drawn, counts), None
        pooled: dict[int, Recipe] = {}
        if wanted.asked.pool and sum(drawn):
            pool = retrieval.read_pool(wanted.asked.pool, wanted.base, self.folder / POOL)
            pooled = {draw: self._retrieved(pool, shots, draw, drawn) for draw in own}
            arm, name = _retrieval_arm(wanted.named), Path(pooled[own[0]].train.pools[0]).name
            extra = (f"{RETRIEVAL}-{content_id(name, arm.model_dump())[:8]}", arm)
        layout = self._layout(copies, extra, None)
        for draw in own:
            self._run(CLASSIC_RUN, wanted.base, layout.arms(CLASSIC_RUN), shots, draw)
            if extra:
                self._run(extra[0], pooled[draw], [extra[1]], shots, draw)
        return copies, extra

    def _run_methods(self, layout: Layout, shots: int | None) -> None:
        for draw in self.wanted.asked.own_draws:
            for label, recipe in layout.runs.items():
                if label != CLASSIC_RUN:
                    self._run(label, recipe, layout.arms(label), shots, draw)
                    with RunFolder.read(self.home(shots, draw, label)) as folder:
                        copies_of_run(folder, self.reporter_class())

    def _run(
        self,
        label: str,
        recipe: Recipe,
        arms: Sequence[ArmSection],
        shots: int | None,
        draw: int,
        last: str = "evaluate",
    ) -> None:
        """One run, with all that its folder had already: another arm or seed is no reason to lose one."""
        root, seeds = self.home(shots, draw, label), self.wanted.asked.seeds
        path = root / "recipe.yaml"
        if path.is_file():
            old = Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path))).evaluate
            names = {arm.name for arm in arms}
            arms = [*arms, *(arm for arm in old.arm_sections if arm.name not in names)]
            seeds = max(seeds, old.seeds)
        settled = plan.settled(recipe, arms, draw=draw, shots=shots, seeds=seeds)
        reporter = self.reporter_class()
        reporter.line(f"--- {views.shots_words(shots)}, draw {draw + 1} of {self.wanted.asked.draws}: {label}")
        run(None, self.shelf.taught(settled), root, workers=self.workers, last=last, reporter_class=self.reporter_class)

    def _retrieved(self, pool: list[retrieval.PoolImage], shots: int | None, draw: int, drawn: list[int]) -> Recipe:
        """The baseline's recipe with the images retrieved for this draw as its pool."""
        wanted, first = self.wanted, _first_that_draws(self.wanted.named)
        encoder = retrieval.encoder_of(first)
        label = f"retrieved-{content_id(wanted.asked.pool, encoder, first.backend.model_dump(), drawn)[:8]}"
        root = self.home(shots, draw, label)
        plain = plan.settled(wanted.base, [ArmSection(name=REAL, images="real")], draw=draw, shots=shots, seeds=1)
        run(None, plain, root, last="dataset", reporter_class=self.reporter_class)
        with RunFolder.create(root) as folder:
            retrieval.retrieve(folder, pool, first, drawn, self.reporter_class())
            copies_of_run(folder, self.reporter_class())
        train = wanted.base.train.model_copy(update={"pools": [str(root)]})
        return wanted.base.model_copy(update={"train": train})

    def _best_classic(self, layout: Layout, shots: int | None) -> str | None:
        """The real-only arm with the best mean validation accuracy over draws; None without validation images."""
        means: dict[str, float] = {}
        for method in layout.methods:
            if method.kind in ("real", "classic"):
                roots = [self.home(shots, draw, CLASSIC_RUN) for draw in range(self.wanted.asked.draws)]
                values = [outcomes.read_val(root, method.arm, self.wanted.asked.seeds) for root in roots]
                mean = outcomes.mean_if_all(values)
                if mean is None:
                    return None
                means[method.name] = mean
        return max(means, key=lambda name: means[name])

    def _read(self, layout: Layout, shots: int | None, best: str | None) -> dict[str, Any]:
        """Every outcome of every draw, summarised."""
        wanted, found = self.wanted, {}
        classic = [self.home(shots, draw, CLASSIC_RUN) for draw in range(wanted.asked.draws)]
        tested = [outcomes.test_images(root) for root in classic]
        for method in layout.methods:
            if not method.same_as:
                found[method.name] = [
                    self._outcome(method, layout, shots, draw, tested[draw]) for draw in range(wanted.asked.draws)
                ]
        names = {method.name: method.same_as or method.name for method in layout.methods}
        curves = []
        for curve in wanted.curves:
            values = {curve.name(value): value for value in curve.values}
            points = {name: found[names[name]] for name in values}
            curves.append({"recipe": curve.recipe, "key": curve.key, "points": results.summarise_curve(points, values)})
        warnings = {text: None for each in found.values() for one in each for text in one.warnings}
        if wanted.asked.draws > 1:
            warnings.pop(ONE_SEED, None)  # intervals are over draws here
        summary = results.summarise(layout, found, best, wanted.asked.draws)
        head = {"shots": shots, "counts": outcomes.counts_of(classic[0])}
        return {**head, **summary, "curves": curves, "warnings": list(warnings)}

    def _outcome(self, method: Method, layout: Layout, shots: int | None, draw: int, tested: list) -> outcomes.Outcome:
        root, lesson = self.home(shots, draw, method.run), None
        if method.run in layout.runs:
            settled = plan.settled(
                layout.runs[method.run], [method.arm], draw=draw, shots=shots, seeds=self.wanted.asked.seeds
            )
            lesson = self.shelf.cost(settled)
        return outcomes.read_outcome(root, method.arm, self.wanted.asked.seeds, lesson, test=tested)


def _first_that_draws(named: Sequence[Entry]) -> Recipe:
    return next(entry.recipe for entry in named if entry.recipe.generate.method != "none")


def _retrieval_arm(named: Sequence[Entry]) -> ArmSection:
    """Retrieved images are mixed in as the first recipe that draws mixes its own, from the whole pool."""
    first = _first_that_draws(named)
    mixing = first.train_of(plan.arm_of(first)).mixing
    policy = "pool" if mixing.policy == "replace" else mixing.policy
    return ArmSection(
        name=RETRIEVAL, images="real+synthetic", train={"mixing": mixing.model_dump() | {"policy": policy}}
    )


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
