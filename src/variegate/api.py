"""The Python interface to a whole run: what the command line calls, and what a notebook calls.

`run` checks the recipe, the data and the model together, then opens the run folder and works through the stages.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variegate.backends.devices import size_of_team
from variegate.errors import Problem, RunFolderError, UserError
from variegate.pipeline import Context, run_stages
from variegate.progress import EventLog, QuietReporter, Reporter
from variegate.recipe import Recipe
from variegate.recipe_file import build_recipe, difference, dump_recipe, idle_settings, load_recipe
from variegate.store import RunFolder

if TYPE_CHECKING:
    from variegate.comparison.run import Comparison

# Beginnings of the lines of `difference` that mean another adapter, and of those among them that do not
LEARNED_FROM = ("seed:", "dataset.", "adapt.", "backend.model:", "backend.unet:", "backend.size_px:", "prompts.text:",
                "prompts.environments:")  # fmt: skip
NOT_LEARNED = ("adapt.previews:", "adapt.evaluations:", "adapt.checkpoints:", "dataset.max_megapixels:")
PACKAGES = ("torch", "torchvision", "timm", "diffusers", "transformers", "peft", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run is and what it found; `results` is results.json, None when the run stopped before evaluate."""

    folder: Path
    verdict: str
    results: dict[str, Any] | None
    summaries: dict[str, dict[str, Any]]


def default_out(data: str) -> Path:
    """runs/NAME, named after the data.

    >>> default_out("builtin:meadow").as_posix(), default_out("photos/birds/").as_posix(), default_out("a.csv").as_posix()
    ('runs/meadow', 'runs/birds', 'runs/a')
    """
    name = data.split(":", 1)[1] if data.startswith(("builtin:", "hf:")) else data
    path = Path(name)
    stem = path.stem if path.suffix in {".csv", ".jsonl", ".parquet"} else path.name
    return Path("runs") / (stem.replace("..", "") or Path(name).resolve().name or "data")


def run(
    data: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | Recipe = "variegate",
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Iterable[str] = (),
    workers: int = 1,
    last: str = "report",
    reporter_class: type[QuietReporter] = QuietReporter,
) -> RunResult:
    """Run a recipe over a data set and return what it found; the same call again resumes.

    `overrides` are KEY=VALUE strings as for --set; `last` names the stage to stop after. Raises UserError (with every
    problem found) before anything slow, TaskFailed when a piece of the work fails.
    """
    overrides = list(overrides)
    settled = settle(data, recipe, overrides)
    root = Path(out) if out is not None else default_out(settled.dataset.path)
    if is_helper():
        return _help_out(settled, root, reporter_class())
    check(settled, reporter_class(), root)
    with ExitStack() as stack:
        stack.callback(_dismiss_helpers, settled)
        folder = stack.enter_context(RunFolder.create(root))
        _same_recipe(folder, settled)
        events = EventLog(root / "events.jsonl")
        stack.callback(events.close)
        reporter = reporter_class(events)
        reporter.event("run", workers=workers, last=last)
        for text in idle_settings(settled, overrides):
            reporter.line(f"warning: --set {text}")
        summaries = run_stages(Context(settled, folder, reporter, workers), last)
        results = _results(root) if "evaluate" in summaries else None
    verdict = results["verdict"] if results else list(summaries.values())[-1]["line"]
    return RunResult(root, verdict, results, summaries)


def compare(
    data: str | os.PathLike[str] | None = None,
    recipes: Iterable[str | os.PathLike[str]] = ("variegate",),
    *,
    draws: int = 5,
    seeds: int = 1,
    shots: Iterable[int] = (),
    out: str | os.PathLike[str] | None = None,
    pool: str | os.PathLike[str] | None = None,
    curves: Iterable[str] = (),
    skip: Iterable[str] = (),
    overrides: Iterable[str] = (),
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    reporter_class: type[QuietReporter] = QuietReporter,
) -> Comparison:
    """Compare recipes with each other and with what needs no drawing, on the same draws and seeds; see docs/compare.md.

    A draw is one choice of the training images (the recipe's seed); `shots` are training images a class, each compared apart.
    `pool` are images to retrieve from, `curves` are [RECIPE:]KEY=V,V strings measured on validation images, `skip` names arms
    to leave out. On a CPU `workers` draws are worked through at a time, each on its share of the cores. The same call again goes
    on; more draws, seeds, shots or recipes add to what is there. With `shard` (i, n) only every n-th draw is run, from the i-th,
    and no results are read: n processes can share one `out`. Raises UserError (with every problem found) before anything slow,
    TaskFailed when a piece of the work fails.
    """
    from variegate.comparison.asked import Asked
    from variegate.comparison.run import compare as run_comparison

    asked = Asked(
        data=None if data is None else os.fspath(data),
        recipes=tuple(os.fspath(recipe) for recipe in recipes),
        draws=draws,
        seeds=seeds,
        shots=tuple(shots),
        out=None if out is None else Path(out),
        pool=None if pool is None else os.fspath(pool),
        curves=tuple(curves),
        skip=tuple(skip),
        overrides=tuple(overrides),
        shard=shard,
    )
    return run_comparison(asked, workers=workers, reporter_class=reporter_class)


def is_helper() -> bool:
    """Whether `accelerate launch` or torchrun started this process beside the one that does the run."""
    return size_of_team() > 1 and int(os.environ.get("RANK", "0")) > 0


def _help_out(recipe: Recipe, root: Path, reporter: Reporter) -> RunResult:
    """What a helper needs is checked and no more: the data may be on the first process's machine alone."""
    if not _learns(recipe):
        return RunResult(root, "helped with nothing: nothing is learned", None, {})
    from variegate.backends.base import check_device, check_model
    from variegate.stages.adapt.optimizers import check_optimizer
    from variegate.stages.adapt.team import help_out

    _all_at_once(
        {
            "model": lambda: check_model(recipe),
            "device": lambda: check_device(recipe),
            "optimizer": lambda: check_optimizer(recipe.adapt.optimizer),
        }
    )
    return RunResult(root, f"helped with {help_out(recipe, reporter.line)} lessons", None, {})


def _learns(recipe: Recipe) -> bool:
    return recipe.adapt.method not in {"none", "file"}


def _dismiss_helpers(recipe: Recipe) -> None:
    if size_of_team() > 1 and _learns(recipe):
        from variegate.stages.adapt.team import dismiss

        dismiss(recipe)


def settle(
    data: str | os.PathLike[str] | None, recipe: str | os.PathLike[str] | Recipe, overrides: Iterable[str] = ()
) -> Recipe:
    """The recipe with DATA and overrides put in; raises RecipeError with every problem."""
    path = None if data is None else os.fspath(data)
    if isinstance(recipe, Recipe):
        return build_recipe(recipe.model_dump(exclude_unset=True), overrides, path)
    return load_recipe(os.fspath(recipe), overrides, path)


def check(recipe: Recipe, reporter: Reporter | None = None, root: Path | None = None) -> dict[str, Any]:
    """Validate everything a run depends on without writing anything; returns the facts of data and model.

    `root` is the run folder, where there is one: what it holds already need not be to be had elsewhere.

    Raises UserError holding all problems: first those of data and model, which are found in a moment, then those of device,
    prompts, refining, curating and training, which need the libraries loaded.
    """
    from variegate.backends.base import check_device, check_model
    from variegate.stages.dataset.stage import check as check_data

    draws, adapts = recipe.generate.method != "none", recipe.adapt.method != "none"
    steps: dict[str, Callable[[], Any]] = {"data": lambda: check_data(recipe, reporter)}
    if draws or adapts:
        steps["model"] = lambda: check_model(recipe)
    facts = _all_at_once(steps)

    from variegate.stages.adapt.stage import check as check_adapt
    from variegate.stages.curate.stage import check as check_curate
    from variegate.stages.generate.stage import check as check_generate
    from variegate.stages.prompts.stage import check as check_prompts
    from variegate.stages.refine.stage import check as check_refine
    from variegate.stages.train.stage import check as check_train

    steps = {
        "device": lambda: check_device(recipe),
        "train": lambda: check_train(recipe, data.classes, data.held_out()),
    }
    data = facts["data"]
    if adapts:
        steps["adapt"] = lambda: check_adapt(recipe, data.classes)
    if draws:
        steps["prompts"] = lambda: check_prompts(
            recipe, data.classes, data.num_training(), data.num_uncaptioned(), root
        )
        steps["refine"] = lambda: check_refine(recipe)
        steps["generate"] = lambda: check_generate(recipe, data.training_images())
        steps["curate"] = lambda: check_curate(recipe, [info.name for info in data.classes], data.held_out())
    _all_at_once(steps)
    return facts


def _all_at_once(steps: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run every step and raise what they raised as one error."""
    found: dict[str, Any] = {}
    raised: list[UserError] = []
    for name, step in steps.items():
        try:
            found[name] = step()
        except UserError as exc:
            raised.append(exc)
    if len(raised) == 1:
        raise raised[0]
    if raised:
        raise UserError([problem for exc in raised for problem in exc.problems])
    return found


def _same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Write the resolved recipe into a folder; refuse a different one once anything was drawn or trained with the old, and one
    that would learn another adapter over a finished one.

    More arms or seeds than before are no difference: they add to what is there. Nor is another place of the same adapter: a
    comparison's folder may have been moved.
    """
    path = folder.root / "recipe.yaml"
    begun = "done" in folder.chunk_states() or (folder.root / "train").exists()
    old = load_recipe(str(path)) if path.exists() else None  # keys that came since have their defaults
    if old is not None and not begun:
        _keep_adapter(folder, old, recipe)
    if old is not None and begun:
        changed = difference(old.model_dump(mode="json"), recipe.model_dump(mode="json"))
        if not changed:
            return
        if _has_its_adapter(folder, old, recipe):
            old = old.model_copy(update={"adapt": old.adapt.model_copy(update={"path": recipe.adapt.path})})
        if not extends(old, recipe):
            remedy = "choose another --out folder, or repeat the old recipe with --recipe " + str(path)
            problems = [Problem(str(folder.root), f"was made by another recipe: {line}") for line in changed]
            problems[-1] = replace(problems[-1], remedy=remedy)
            raise RunFolderError(problems)
    folder.write("env.json", json.dumps(environment(), indent=1) + "\n")
    folder.write("recipe.yaml", dump_recipe(recipe))


def _has_its_adapter(folder: RunFolder, old: Recipe, recipe: Recipe) -> bool:
    """Whether what the recipe takes from a file is what the run took from a file, wherever that was."""
    from variegate.backends.adapter import ADAPTER, FACTS, adapter_hash

    own = folder.path(ADAPTER)
    taken = old.adapt.method == recipe.adapt.method == "file" and (own / FACTS).is_file()
    return taken and adapter_hash(own) == adapter_hash(Path(str(recipe.adapt.path)))


def _keep_adapter(folder: RunFolder, old: Recipe, recipe: Recipe) -> None:
    """Refuse to learn another adapter where one is finished: it may have taken days."""
    from variegate.backends.adapter import ADAPTER, FACTS

    own = folder.path(ADAPTER)
    if not (own / FACTS).is_file() or old.adapt.method in {"none", "file"}:
        return
    if recipe.adapt.method == "file" and Path(str(recipe.adapt.path)).resolve() == own.resolve():
        return
    changed = difference(old.model_dump(mode="json"), recipe.model_dump(mode="json"))
    changed = [line for line in changed if line.startswith(LEARNED_FROM) and not line.startswith(NOT_LEARNED)]
    if changed:
        remedy = (
            f"choose another --out folder, or draw with what is there: --set adapt.method=file --set adapt.path={own}"
        )
        problems = [Problem(str(own), f"is finished and was learned otherwise: {line}") for line in changed]
        problems[-1] = replace(problems[-1], remedy=remedy)
        raise RunFolderError(problems)


def extends(old: Recipe, new: Recipe) -> bool:
    """Whether a recipe asks for all that another one did, and for more arms or seeds of it at most."""
    same = new.model_copy(update={"evaluate": old.evaluate}) == old
    arms = set(map(repr, old.evaluate.arms)) <= set(map(repr, new.evaluate.arms))
    return same and arms and old.evaluate.seeds <= new.evaluate.seeds


def environment() -> dict[str, Any]:
    """Versions and the machine, as written to env.json: no names of users, hosts or folders."""
    from variegate import __version__
    from variegate.backends.devices import available_cores

    return {
        "variegate": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": available_cores(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _results(root: Path) -> dict[str, Any]:
    return json.loads((root / "results.json").read_text(encoding="utf-8"))


def measure_quality(
    run: str | os.PathLike[str], encoder: str | None = None, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """How good a run's kept synthetic images are and which are copies; written as quality.json, into its report and card.

    `encoder` names the features (docs/quality.md); without one clip:starter for the
    package's models on builtin:meadow, else the drawing model's.
    Raises UserError for a folder that is no run, has no images, or an encoder that is not to be had.
    """
    from variegate.card import QUALITY, write_card
    from variegate.image_quality.run import default_encoder, measure
    from variegate.stages.report.stage import VIEWS, write_report

    with RunFolder.read(Path(run)) as folder:
        recipe = load_recipe(str(folder.root / "recipe.yaml"))
        found = measure(folder, recipe, encoder or default_encoder(recipe), reporter or QuietReporter())
        folder.write(QUALITY, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_card(folder, recipe)
        if folder.path(VIEWS[".html"]).is_file():
            write_report(folder)
    return found
