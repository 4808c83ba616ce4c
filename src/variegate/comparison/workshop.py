"""The runs of a comparison, in the order that lets most be shared: several draws at a time where there are cores for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from variegate.api import run
from variegate.backends.devices import available_cores, resolve_device, take_cores
from variegate.comparison import outcomes, plan, results, retrieval, views
from variegate.comparison.asked import Wanted
from variegate.comparison.drawn_classes import drawn_classes
from variegate.comparison.plan import CLASSIC_RUN, REAL, RETRIEVAL, Entry, Layout, Method
from variegate.comparison.shelf import Shelf
from variegate.cost import leave_energy_out
from variegate.executors.base import Report, ignore
from variegate.executors.local import run_tasks
from variegate.image_quality.copying import copies_of_run
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe
from variegate.recipe_file import load_recipe
from variegate.records import content_id
from variegate.stages.evaluate.stage import ONE_SEED
from variegate.store import RunFolder

RUNS, ADAPTERS, POOL, LOGS = "runs", "adapters", "pool", "logs"
Work = Callable[["Workshop", int, Report], None]  # of a draw; says when a run is done


def draws_at_a_time(workers: int, draws: int, device: str) -> int:
    """How many of `draws` are worked through beside each other: on a CPU as many as there are workers with a core each.

    On a GPU one, whose memory a draw may fill; the workers then draw images, on a GPU each. So it is where the system
    cannot keep a process to some of the cores.
    """
    if resolve_device(device) != "cpu" or not hasattr(os, "sched_setaffinity"):
        return 1
    return min(workers, draws, available_cores())


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What is retrieved for every draw, and the arm that learns from it."""

    folder: str  # of the images, beside the runs
    run: str
    arm: ArmSection
    wanted: tuple[int, ...]  # images of each class


@dataclass(frozen=True)
class Workshop:
    """Runs what a comparison needs and reads what came of it."""

    wanted: Wanted
    folder: Path
    workers: int
    at_a_time: int  # draws; see draws_at_a_time
    reporter_class: type[QuietReporter]

    @cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.folder / ADAPTERS, self.reporter_class)

    @cached_property
    def pool(self) -> list[retrieval.PoolImage]:
        """Read once, by whoever needs it first."""
        assert self.wanted.asked.pool is not None, "asked for by those who retrieve"
        return retrieval.read_pool(self.wanted.asked.pool, self.wanted.base, self.folder / POOL)

    def home(self, shots: int | None, draw: int, name: str) -> Path:
        return self.folder / RUNS / f"shots-{shots or 'all'}" / f"draw-{draw}" / name

    def refuse_peeking(self) -> None:
        """Take every adapter that a recipe brings along, before anything is drawn: one that saw other splits is refused."""
        for entry in self.wanted.entries:
            label, recipe, arm = plan.place(entry, self.wanted.base)
            if recipe.adapt.method == "file":
                for shots in self.wanted.shots:
                    for draw in self.wanted.asked.own_draws:
                        self.run(label, recipe, [arm], shots, draw, last="adapt")

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

    def run(
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
            old = load_recipe(str(path)).evaluate
            names = {arm.name for arm in arms}
            arms = [*arms, *(arm for arm in old.arm_sections if arm.name not in names)]
            seeds = max(seeds, old.seeds)
        settled = plan.settled(recipe, arms, draw=draw, shots=shots, seeds=seeds)
        reporter = self.reporter_class()
        reporter.line(f"--- {views.shots_words(shots)}, draw {draw + 1} of {self.wanted.asked.draws}: {label}")
        workers = max(self.workers // self.at_a_time, 1)
        run(None, self.shelf.taught(settled), root, workers=workers, last=last, reporter_class=self.reporter_class)

    # ---------------------------------------------------------------- the order of the work

    def _for_each_draw(self, what: str, runs: int, work: Work) -> None:
        """`work` of so many runs for every draw of this call, beside each other or in turn; it depends on the draw alone."""
        own = self.wanted.asked.own_draws
        if self.at_a_time == 1:
            for draw in own:
                work(self, draw, ignore)
            return
        logs, reporter = self.folder / LOGS, self.reporter_class()
        reporter.line(f"{what}: {self.at_a_time} draws at a time; what each says is in {logs}/worker-N.log")
        tasks, open_worker = [DrawTask(what, draw) for draw in own], partial(DrawWorker, self, work)
        with reporter.bar(what, runs * len(tasks), unit="runs") as bar:
            for _ in run_tasks(open_worker, tasks, self.at_a_time, log_dir=logs, report=bar.advance, are_nested=True):
                pass

    def _layout(self, copies: int, extra: Retrieval | None, best: str | None) -> Layout:
        retrieved = (extra.run, extra.arm) if extra else None
        skip = self.wanted.asked.skip
        return plan.lay_out(
            self.wanted.entries, self.wanted.base, copies=copies, retrieval=retrieved, best=best, skip=skip
        )

    def _run_baselines(self, shots: int | None, counts: list[int]) -> tuple[int, Retrieval | None]:
        """Classifiers without drawn images; returns how often real images are duplicated, and what is retrieved if anything."""
        drawn = plan.largest(self.wanted.named, counts)
        copies, extra = plan.copies_of(drawn, counts), None
        if self.wanted.asked.pool and sum(drawn):
            extra = _retrieval(self.wanted, drawn)
            _ = self.pool  # one that cannot be read is told now, one that holds test images before anything is trained
            self._for_each_draw("retrieval", 1, partial(_retrieve, extra=extra, shots=shots))
        layout = self._layout(copies, extra, None)
        work = partial(_train_baselines, layout=layout, extra=extra, shots=shots)
        self._for_each_draw("baselines", 2 if extra else 1, work)
        return copies, extra

    def _run_methods(self, layout: Layout, shots: int | None) -> None:
        if set(layout.runs) == {CLASSIC_RUN}:
            return
        self._for_each_draw("recipes", len(layout.runs) - 1, partial(_run_recipes, layout=layout, shots=shots))

    # ---------------------------------------------------------------- what came of it

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
        place = f", {views.shots_words(shots)}" if len(wanted.shots) > 1 else ""
        first: dict[str, str] = {}  # of the methods of a run, which share its images
        for name in found:
            first.setdefault(next(method.run for method in layout.methods if method.name == name), name)
        for name in first.values():
            warnings[outcomes.drawn_as_others(name + place, found[name])] = None
        warnings.pop("", None)
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
        draws_own = method.run in layout.runs and method.run != CLASSIC_RUN and method.kind != "combined"
        judges = self.home(shots, draw, CLASSIC_RUN) if draws_own else None
        return outcomes.read_outcome(root, method.arm, self.wanted.asked.seeds, lesson, test=tested, judges=judges)


# ------------------------------------------------------------------------------------------------ one draw


@dataclass(frozen=True, slots=True)
class DrawTask:
    """One draw's part of a step."""

    what: str
    draw: int

    @property
    def name(self) -> str:
        return f"{self.what} of draw {self.draw + 1}"


class DrawWorker:
    """Works draw after draw through on its share of the cores."""

    def __init__(self, workshop: Workshop, work: Work, number: int) -> None:
        take_cores(number, workshop.at_a_time)
        leave_energy_out()
        self.workshop, self.work = workshop, work

    def __call__(self, task: DrawTask, report: Report) -> None:
        self.work(self.workshop, task.draw, report)

    def close(self) -> None:
        """Nothing is held open."""


def _train_baselines(
    workshop: Workshop, draw: int, report: Report, *, layout: Layout, extra: Retrieval | None, shots: int | None
) -> None:
    base = workshop.wanted.base
    workshop.run(CLASSIC_RUN, base, layout.arms(CLASSIC_RUN), shots, draw)
    report(1)
    if extra:
        train = base.train.model_copy(update={"pools": [str(workshop.home(shots, draw, extra.folder))]})
        workshop.run(extra.run, base.model_copy(update={"train": train}), [extra.arm], shots, draw)
        report(1)


def _run_recipes(workshop: Workshop, draw: int, report: Report, *, layout: Layout, shots: int | None) -> None:
    for label, recipe in layout.runs.items():
        if label != CLASSIC_RUN:
            workshop.run(label, recipe, layout.arms(label), shots, draw)
            with RunFolder.read(workshop.home(shots, draw, label)) as folder:
                copies_of_run(folder, workshop.reporter_class())
                drawn_classes(folder, workshop.home(shots, draw, CLASSIC_RUN), workshop.wanted.asked.seeds)
            report(1)


def _retrieve(workshop: Workshop, draw: int, report: Report, *, extra: Retrieval, shots: int | None) -> None:
    """Fill the pool of a draw."""
    root, reporter_class = workshop.home(shots, draw, extra.folder), workshop.reporter_class
    real = [ArmSection(name=REAL, images="real")]
    plain = plan.settled(workshop.wanted.base, real, draw=draw, shots=shots, seeds=1)
    run(None, plain, root, last="dataset", reporter_class=reporter_class)
    with RunFolder.create(root) as folder:
        retrieval.retrieve(
            folder, workshop.pool, _first_that_draws(workshop.wanted.named), extra.wanted, reporter_class()
        )
        copies_of_run(folder, reporter_class())
    report(1)


# ------------------------------------------------------------------------------------------------ retrieval


def _retrieval(wanted: Wanted, drawn: Sequence[int]) -> Retrieval:
    """Retrieved images are mixed in as the first recipe that draws mixes its own, from the whole pool."""
    first = _first_that_draws(wanted.named)
    settings = (wanted.asked.pool, retrieval.encoder_of(first), first.backend.model_dump(), list(drawn))
    folder = f"retrieved-{content_id(*settings)[:8]}"
    mixing = first.train_of(plan.arm_of(first)).mixing
    policy = "pool" if mixing.policy == "replace" else mixing.policy
    train = {"mixing": mixing.model_dump() | {"policy": policy}}
    arm = ArmSection(name=RETRIEVAL, images="real+synthetic", train=train)
    return Retrieval(folder, f"{RETRIEVAL}-{content_id(folder, arm.model_dump())[:8]}", arm, tuple(drawn))


def _first_that_draws(named: Sequence[Entry]) -> Recipe:
    return next(entry.recipe for entry in named if entry.recipe.generate.method != "none")
