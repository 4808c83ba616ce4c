"""Read a run folder into one `Summary`; what is not there yet is listed with the reason.

The database is the truth for images and decisions, results.json for what was measured. Never imports torch.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from variegate import __version__
from variegate.recipe import Recipe
from variegate.recipe_file import load_recipe
from variegate.records import ClassInfo, RealImage, SyntheticImage
from variegate.stages.report import gallery, results
from variegate.stages.report.contents import Adapting, ClassCounts, Duplicate, Missing, StageCost, Summary
from variegate.stages.report.quality import read_quality
from variegate.store import RunFolder

Done = tuple[str, dict[str, Any], float]  # (key, summary, seconds) of a finished stage
# The report's own time is no cost.
STAGES = ("dataset", "adapt", "prompts", "generate", "refine", "curate", "train", "evaluate")


def summarize(folder: RunFolder) -> Summary:
    """Everything the page shows of one run, finished or not."""
    recipe_text = _text(folder, "recipe.yaml")
    recipe = load_recipe(str(folder.root / "recipe.yaml")) if recipe_text else None
    found: dict[str, Any] = json.loads(_text(folder, "results.json") or "{}")
    stages = {name: folder.stage(name) for name in STAGES}
    said: dict[str, dict[str, Any]] = {name: done[1] if done else {} for name, done in stages.items()}
    classes, real, synthetic = folder.classes(), folder.real_images(), folder.synthetic_images(kept_only=False)
    describe = _describer(folder, classes, recipe)
    arms = results.arms(found, said["train"].get("tasks", ()))
    names = [info.name for info in classes]
    kept = [image for image in synthetic if image.action == "keep"]
    return Summary(
        run=folder.root.resolve().name,
        version=found.get("variegate") or __version__,
        verdict=found.get("verdict") or "",
        data=found.get("data") or (recipe.dataset.path if recipe else ""),
        model=recipe.backend.model if recipe else "",
        method=recipe.generate.method if recipe else "",
        classifier=recipe.train.model if recipe else "",
        recipe=recipe_text,
        command=_command(folder.root) if recipe_text else "",
        environment=_environment(folder),
        classes=_class_counts(classes, real, synthetic),
        mean_weight=sum(image.weight for image in kept) / len(kept) if kept else None,
        warnings=_warnings(found, said, kept),
        duplicates=tuple(_duplicate(entry) for entry in said["dataset"].get("duplicates", ())),
        unreadable=tuple((entry["name"], entry["reason"]) for entry in said["dataset"].get("unreadable", ())),
        arms=arms,
        comparisons=results.comparisons(found),
        shots=results.shots(found),
        groups=results.groups(found),
        extra_tests=results.extra_tests(found),
        confused=tuple((arm.name, results.confused(arm, names)) for arm in arms if arm.confusion),
        curves=results.read_curves(folder.root, arms),
        adapting=_adapting(said["adapt"]),
        feature_space=results.feature_space(_text(folder, "train/feature-space.json"), names),
        exhibits=gallery.exhibits(classes, [image for image in real if image.split == "train"], synthetic, describe),
        dropped=gallery.dropped(synthetic, describe),
        curation=str(said["curate"].get("line", "")),
        quality=read_quality(_text(folder, "quality.json"), synthetic, classes),
        costs=_costs(stages, len(real), len(synthetic)),
        missing=_missing(recipe, stages, found, synthetic),
    )


def _text(folder: RunFolder, relative: str) -> str:
    path = folder.path(relative)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _describer(folder: RunFolder, classes: Sequence[ClassInfo], recipe: Recipe | None) -> gallery.Describe:
    """Turns images into what the gallery shows; contrast (`blank`) says nothing beyond its decision."""
    found = folder.db.execute("SELECT DISTINCT score FROM scores WHERE score != 'blank' ORDER BY score")
    scores = {name: folder.scores(name) for (name,) in found.fetchall()}
    rule = (recipe.train.label.gamma, recipe.train.label.kappa) if recipe else None
    return partial(gallery.variant, classes=classes, scores=scores, label_rule=rule)


def _command(root: Path) -> str:
    """Repeats the run from the folder it was started in, where relative data paths lead to the same data."""
    whole, here = root.resolve(), Path.cwd()
    run = whole.relative_to(here) if whole.is_relative_to(here) and whole != here else whole
    return shlex.join(["variegate", "run", "--recipe", f"{run / 'recipe.yaml'}", "--out", f"{run}-again"])


def _environment(folder: RunFolder) -> tuple[tuple[str, str], ...]:
    """env.json in its own order, inner tables (package versions) written out."""
    found: dict[str, Any] = json.loads(_text(folder, "env.json") or "{}")
    tables = (value.items() if isinstance(value, dict) else [(key, value)] for key, value in found.items())
    return tuple((key, str(value)) for table in tables for key, value in table if value is not None)


def _class_counts(
    classes: Sequence[ClassInfo], real: Sequence[RealImage], synthetic: Sequence[SyntheticImage]
) -> tuple[ClassCounts, ...]:
    splits = Counter((image.label, image.split) for image in real)
    drawn = Counter(image.target for image in synthetic)
    kept = Counter(image.target for image in synthetic if image.action == "keep")
    return tuple(
        ClassCounts(
            name=info.name,
            train=splits[info.label, "train"],
            val=splits[info.label, "val"],
            test=splits[info.label, "test"],
            drawn=drawn[info.label],
            kept=kept[info.label],
        )
        for info in classes
    )


def _warnings(
    found: Mapping[str, Any], said: Mapping[str, Mapping[str, Any]], kept: Sequence[SyntheticImage]
) -> tuple[str, ...]:
    """What the stages and the evaluation warned of, each sentence once, in stage order."""
    lines = [str(line) for summary in (*said.values(), found) for line in summary.get("warnings", ())]
    trained = (found.get("synthetic") or {}).get("kept")
    if trained is not None and trained != len(kept):
        lines.append(
            f"The results below were measured with {trained:,} kept synthetic images; {len(kept):,} are kept now. "
            "Run the same command again to bring them up to date."
        )
    return tuple(dict.fromkeys(lines))


def _adapting(said: Mapping[str, Any]) -> Adapting | None:
    """What the adapt stage said; None where nothing was learned."""
    if said.get("method", "none") == "none":
        return None
    scores, log = said.get("scores", {}), said.get("log", ())
    return Adapting(
        method=said["method"],
        line=str(said["line"]),
        held_out=tuple((line["step"], line["held_out_loss"]) for line in log if "held_out_loss" in line),
        loss=tuple((line["step"], line["loss"]) for line in log if "loss" in line),
        agreement=scores.get("preview_agreement"),
        judge_accuracy=scores.get("judge_accuracy"),
        copies=scores.get("preview_copies"),
        num_previews=scores.get("preview_images", 0),
        preview=said.get("preview"),
        columns=tuple((name, prompt) for name, prompt in said.get("preview_columns", ())),
    )


def _duplicate(entry: Mapping[str, Any]) -> Duplicate:
    return Duplicate(tuple(entry["kept"]), tuple(entry["left_out"]), tuple(entry["class_names"]))


def _costs(stages: Mapping[str, Done | None], num_real: int, num_drawn: int) -> tuple[StageCost, ...]:
    """Finished stages in order; generate's own rate counts what its last session drew, also after a restart."""
    handled = {"dataset": num_real, "curate": num_drawn}
    costs = []
    for name, done in stages.items():
        if done and (name != "refine" or done[1].get("refined")):
            _, said, seconds = done
            rate = said.get("images_per_second") or (handled.get(name, 0) / seconds if seconds else 0.0)
            told = {key: (said.get("cost") or {}).get(key) for key in ("peak_memory_mb", "gpu_memory_mb", "energy_j")}
            costs.append(StageCost(name, seconds or 0.0, rate or None, str(said.get("line", "")), **told))
    return tuple(costs)


def _missing(
    recipe: Recipe | None,
    stages: Mapping[str, Done | None],
    found: Mapping[str, Any],
    synthetic: Sequence[SyntheticImage],
) -> tuple[Missing, ...]:
    open_stages = [name for name, done in stages.items() if not done]
    later = "run the same command again to go on where it stopped"
    lines = []
    if not recipe:
        lines.append(Missing("recipe", "the run folder has no recipe.yaml"))
    if not synthetic:
        none = recipe is not None and recipe.generate.method == "none"
        why = "this recipe makes none (generate.method: none)" if none else f"nothing is drawn yet; {later}"
        lines.append(Missing("synthetic images", why))
    if not found:
        stage = open_stages[0] if open_stages else "evaluate"
        lines.append(Missing("results", f"the run stopped before or in the stage {stage!r}; {later}"))
    elif not found.get("comparisons"):
        only = ", ".join(entry["arm"] for entry in found.get("arms", ()))
        lines.append(Missing("comparison", f"the recipe trains one arm only ({only}); add another to evaluate.arms"))
    return tuple(lines)
