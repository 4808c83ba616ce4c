"""Train one classifier for every arm and seed; arms of a seed share first weights, order of real images and steps.

Finished tasks are kept and an interrupted one goes on where its last checkpoint was. Test images are read once, after
the last step, and nothing is chosen by them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from variegate import __version__
from variegate.backends.devices import this_machine
from variegate.classifier import mixing
from variegate.classifier.fit import choose_compute, features, predict, rate_of
from variegate.classifier.models import (
    check_model_name,
    check_net,
    fetch_weights,
    open_classifier,
)
from variegate.errors import DataError, ModelError, Problem
from variegate.executors.local import run_tasks
from variegate.files import file_sha256
from variegate.leaks import seen_by, seen_problems
from variegate.pipeline import Context
from variegate.recipe import ArmSection, Recipe, TrainSection
from variegate.records import ClassInfo, RealImage, SyntheticImage, content_id, extra_tests, seed_from
from variegate.stages.train import class_agreement, feature_space
from variegate.stages.train.cache import ImageFile, carried, load_images
from variegate.stages.train.estimate import estimate
from variegate.stages.train.files import read_log
from variegate.stages.train.pools import (
    held_out_keys,
    pool_problems,
    pool_warnings,
    with_pools,
)
from variegate.stages.train.work import (
    CHECKPOINT,
    FILES,
    Trained,
    TrainTask,
    TrainWorker,
    Workshop,
    num_at_a_time,
    subset_of,
    threads_for,
)
from variegate.store import RunFolder

__all__ = ["NAME", "check", "estimate", "found", "inputs", "run"]
NAME = "train"
FEATURE_SPACE = "train/feature-space.json"


def inputs(recipe: Recipe) -> dict[str, Any]:
    """What trained classifiers depend on besides the data and the synthetic images."""
    keys = {"train": recipe.train.model_dump(), "evaluate": recipe.evaluate.model_dump(), "seed": recipe.seed}
    keys["rule"] = mixing.RULE
    return keys | {"weights": [_weights_sha256(recipe.train_of(arm)) for arm in recipe.evaluate.arm_sections]}


def found(context: Context) -> str:
    """The synthetic images that take part and their weights: a person's decision changes them after curate."""
    images = _synthetic_images(context.recipe, context.folder)
    return content_id(list(map(_tell, images)))


def _tell(image: SyntheticImage) -> tuple[object, ...]:
    """What tells a synthetic image, its picture, its label and its weight from others."""
    return (image.id, image.weight, *([image.original_share, image.refined] if image.refined else []))


def check(recipe: Recipe, classes: Sequence[ClassInfo] = (), held_out: Collection[str] = ()) -> None:
    """Raise ModelError with everything wrong with the classifiers' names, weights, size, last layer or stages.

    Raises DataError for pools that cannot be added to data of these `classes` with these held-out images (SHA-256).
    Fetches published weights that an arm starts from: without them all that is drawn before would wait in vain.
    """
    sections = [recipe.train_of(arm) for arm in recipe.evaluate.arm_sections]
    sections = [section for place, section in enumerate(sections) if section not in sections[:place]]
    size_px = recipe.dataset.size_px
    problems = list(dict.fromkeys(problem for section in sections for problem in _model_problems(section, size_px)))
    if problems:
        raise ModelError(problems)
    problems = pool_problems(recipe.train.pools, [i.name for i in classes], held_out) if classes else []
    problems += _leak_problems(recipe, held_out)
    if problems:
        raise DataError(problems)
    for section in sections:
        if section.pretrained is True:
            fetch_weights(section.model, size_px)


def _model_problems(section: TrainSection, size_px: int) -> list[Problem]:
    problems = check_model_name(section.model, section.pretrained)
    if problems:
        return problems
    try:
        check_net(section, size_px)
    except ModelError as exc:
        return list(exc.problems)
    return []


def run(context: Context) -> dict[str, Any]:
    """Train what is not trained yet; returns the counted line, the tasks with their seconds, and warnings."""
    recipe, folder = context.recipe, context.folder
    check(recipe)
    workshop = _open_workshop(recipe, folder)
    arms = recipe.evaluate.arm_sections
    subset = {arm.name: tuple(len(chosen) for chosen in subset_of(arm, workshop)) for arm in arms}
    tasks = [_task(arm, seed, workshop) for seed in range(recipe.evaluate.seeds) for arm in arms]
    finished = [task for task in tasks if _is_finished(task, folder)]
    for task in finished:
        folder.path(f"{task.folder}/{CHECKPOINT}").unlink(missing_ok=True)  # a kill may have left it
    _train(context, [task for task in tasks if task not in finished], len(tasks), workshop)
    _draw_feature_space(tasks, workshop, folder)
    return _summary(tasks, subset, _look_at_classes(tasks, workshop, folder), workshop, folder)


def _train(context: Context, pending: list[TrainTask], num_tasks: int, workshop: Workshop) -> None:
    """Several at a time where each learns on few of the cores."""
    folder, steps = context.folder, workshop.steps
    open_worker = partial(TrainWorker, replace(workshop, pixels={}), carried(workshop.pixels))
    workers = num_at_a_time(
        len(pending),
        pixels=steps * workshop.recipe.train.batch * workshop.recipe.dataset.size_px**2,
        held_bytes=sum(one.nbytes for one in workshop.pixels.values() if not isinstance(one, np.memmap)),
        compute=workshop.compute,
        machine=this_machine(),
    )
    done = steps * (num_tasks - len(pending))
    with context.reporter.bar("training", steps * num_tasks, unit="steps", done=done) as bar:
        log_dir = folder.root / "logs"
        for task, result in run_tasks(open_worker, pending, workers, log_dir=log_dir, report=bar.advance):
            _record(task, result, context)


def _record(task: TrainTask, result: Trained, context: Context) -> None:
    """The files are in place; now the classifier counts."""
    for name in FILES:
        context.folder.put_artefact(NAME, f"{task.arm.name}/seed-{task.seed}/{name}", f"{task.folder}/{name}")
    about = {"key": task.key, "seconds": result.seconds}
    context.folder.set_meta(f"task:{task.folder}", json.dumps(about))
    context.folder.path(f"{task.folder}/{CHECKPOINT}").unlink(missing_ok=True)
    context.reporter.event("task-done", stage=NAME, arm=task.arm.name, seed=task.seed)


# ------------------------------------------------------------------------------------------------ preparing


def _open_workshop(recipe: Recipe, folder: RunFolder) -> Workshop:
    train = folder.real_images("train")
    extra = extra_tests(image.split for image in folder.real_images())
    held_out = {split: folder.real_images(split) for split in ("val", "test", *extra)}
    names = tuple(info.name for info in folder.classes())
    unseen = [image for images in held_out.values() for image in images]
    problems = pool_problems(recipe.train.pools, names, held_out_keys(unseen))
    problems += _leak_problems(recipe, held_out_keys(unseen))
    if problems:
        raise DataError(problems)
    synthetic = _synthetic_images(recipe, folder)
    problems = _problems(recipe, train, held_out["test"], synthetic if _uses_synthetic(recipe) else None)
    if problems:
        raise DataError(problems)
    pixels = {split: _real_pixels(recipe, folder, images) for split, images in {"train": train, **held_out}.items()}
    pixels["synthetic"] = _synthetic_pixels(recipe, folder, synthetic)
    section = recipe.train
    steps = mixing.num_steps(steps=section.steps, epochs=section.epochs, num_real=len(train), batch=section.batch)
    return Workshop(
        recipe=recipe,
        root=str(folder.root.resolve()),
        class_names=names,
        train=train,
        held_out=held_out,
        synthetic=synthetic,
        pixels=pixels,
        compute=choose_compute(recipe.backend.device, threads_for(recipe)),
        steps=steps,
        weights_sha256={arm.name: _weights_sha256(recipe.train_of(arm)) for arm in recipe.evaluate.arm_sections},
    )


def _problems(
    recipe: Recipe, train: list[RealImage], test: list[RealImage], synthetic: list[SyntheticImage] | None
) -> list[Problem]:
    problems = []
    if not train:
        problems.append(Problem("train", "there is no training image"))
    if not test:
        problems.append(Problem("train", "there is no test image, so nothing could be said about the result"))
    if synthetic is None:
        return problems
    usable = [image for image in synthetic if image.weight > 0]
    if not usable:
        text = "an arm uses synthetic images and not one was kept"
        problems.append(Problem("train", text, "loosen curate, draw more, or set evaluate.arms to [real]"))
    elif any(
        arm.images == "real+synthetic" and recipe.train_of(arm).mixing.policy == "replace"
        for arm in recipe.evaluate.arm_sections
    ):
        known = {image.id for image in train}
        if not any(image.source in known for image in usable):
            text = "replace swaps a real image for one made from it, and these were drawn from text alone or do not tell theirs"
            problems.append(Problem("train.mixing.policy", text, "use pool or concat"))
    return problems


def _real_pixels(recipe: Recipe, folder: RunFolder, images: list[RealImage]) -> np.ndarray:
    files = [ImageFile(Path(image.path), image.sha256 or image.id) for image in images]
    return _pixels(recipe, folder, files)


def _synthetic_images(recipe: Recipe, folder: RunFolder) -> list[SyntheticImage]:
    """Those that were kept, here and in the pools."""
    if not _uses_synthetic(recipe):
        return []
    return with_pools(folder.synthetic_images(), recipe.train.pools, [info.name for info in folder.classes()])


def _synthetic_pixels(recipe: Recipe, folder: RunFolder, images: list[SyntheticImage]) -> np.ndarray:
    return _pixels(recipe, folder, [ImageFile(folder.root / image.path, image.id + image.refined) for image in images])


def _pixels(recipe: Recipe, folder: RunFolder, files: list[ImageFile]) -> np.ndarray:
    section = recipe.dataset
    return load_images(files, section.size_px, section.fit, section.max_megapixels, cache=folder.path("cache"))


def _task(arm: ArmSection, seed: int, workshop: Workshop) -> TrainTask:
    recipe = workshop.recipe
    real = [(i.id, i.sha256, i.label) for split in (workshop.train, *workshop.held_out.values()) for i in split]
    synthetic = list(map(_tell, workshop.synthetic)) if arm.has_synthetic else []
    size, section = (recipe.dataset.size_px, recipe.dataset.fit), recipe.train_of(arm)
    weights = workshop.weights_sha256[arm.name]
    settings = (__version__, mixing.RULE, recipe.seed, section.model_dump(), weights, size, workshop.class_names)
    return TrainTask(arm, seed, content_id(arm.images, arm.copies, seed, settings, real, synthetic))


def _uses_synthetic(recipe: Recipe) -> bool:
    return any(arm.has_synthetic for arm in recipe.evaluate.arm_sections)


def _leak_problems(recipe: Recipe, held_out: Collection[str]) -> list[Problem]:
    return [one for path in _given_weights(recipe) for one in seen_problems("train.pretrained", path, held_out)]


def _given_weights(recipe: Recipe) -> list[Path]:
    """Files of weights that arms start from, each once."""
    given = [recipe.train_of(arm).pretrained for arm in recipe.evaluate.arm_sections]
    return [Path(path) for path in dict.fromkeys(given) if isinstance(path, str)]


def _weights_sha256(section: TrainSection) -> str:
    """Of the file that train.pretrained names; empty where it names none."""
    return file_sha256(Path(section.pretrained)) if isinstance(section.pretrained, str) else ""


def _is_finished(task: TrainTask, folder: RunFolder) -> bool:
    return _meta(task, folder).get("key") == task.key and all(
        folder.path(f"{task.folder}/{name}").is_file() for name in FILES
    )


def _meta(task: TrainTask, folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.meta(f"task:{task.folder}") or "{}")


# ------------------------------------------------------------------------------------------------ one task


def _draw_feature_space(tasks: list[TrainTask], workshop: Workshop, folder: RunFolder) -> None:
    """Where the images of the run lie for a classifier that learned from real ones alone, where there is one."""
    task = next((task for task in tasks if task.arm.images == "real"), tasks[0])
    classifier, _ = open_classifier(folder.path(f"{task.folder}/{FILES[0]}"))
    held_out, kept = workshop.held_out["val"], np.flatnonzero([image.weight > 0 for image in workshop.synthetic])
    whole = workshop.pixels
    images = {
        "real": (whole["train"], [image.label for image in workshop.train], np.arange(len(workshop.train))),
        "synthetic": (whole["synthetic"], [image.target for image in workshop.synthetic], kept),
        "validation": (whole["val"], [image.label for image in held_out], np.arange(len(held_out))),
    }
    kinds = {}
    for kind, (pixels, targets, usable) in images.items():
        chosen = usable[feature_space.drawn(len(usable), seed_from(workshop.recipe.seed, "feature-space", kind))]
        found = features(classifier, pixels[chosen], workshop.compute)
        kinds[kind] = feature_space.Kind(found, np.array(targets, np.int64)[chosen], len(usable))
    picture = feature_space.picture(kinds)
    folder.write(FEATURE_SPACE, json.dumps(picture and {"arm": task.arm.name, "seed": task.seed, **picture}) + "\n")
    folder.put_artefact(NAME, "feature-space", FEATURE_SPACE)


def _look_at_classes(tasks: list[TrainTask], workshop: Workshop, folder: RunFolder) -> list[dict[str, Any]]:
    """What the classifiers of an arm of real images alone take the drawn ones for, those with labels of two classes left out."""
    arm = next((task.arm for task in tasks if task.arm.images == "real" and not task.arm.copies), None)
    if arm is None or not workshop.synthetic:
        return []
    gamma, held_out = workshop.recipe.train_of(arm).label.gamma, workshop.held_out["val"]
    rng = np.random.default_rng(seed_from(workshop.recipe.seed, "class-agreement"))
    chosen = class_agreement.asked_about(workshop.synthetic, len(workshop.class_names), gamma, rng)
    targets = np.array([workshop.synthetic[k].target for k in chosen], np.int64)
    seen = {"synthetic": chosen, "val": np.arange(len(held_out))}
    own = [open_classifier(folder.path(f"{task.folder}/{FILES[0]}"))[0] for task in tasks if task.arm == arm]
    drawn, real = (
        np.mean([predict(one, workshop.pixels[kind][which], workshop.compute) for one in own], axis=0)
        for kind, which in seen.items()
    )
    return class_agreement.class_agreement(drawn, targets, real, np.array([i.label for i in held_out], np.int64))


def _summary(
    tasks: list[TrainTask],
    subset: dict[str, tuple[int, ...]],
    agreement: list[dict[str, Any]],
    workshop: Workshop,
    folder: RunFolder,
) -> dict[str, Any]:
    rows = []
    for task in tasks:
        validations, closing = read_log(folder.path(f"{task.folder}/log.jsonl"))
        best = max((row["val_accuracy"] for row in validations if "val_accuracy" in row), default=None)
        seconds = _meta(task, folder)["seconds"]
        rows.append({"arm": task.arm.name, "seed": task.seed, "val_accuracy": best, "seconds": seconds, **closing})
    arms, seeds = workshop.recipe.evaluate.arms, workshop.recipe.evaluate.seeds
    line = f"{len(arms)} arm{'s' * (len(arms) > 1)} x {seeds} seed{'s' * (seeds > 1)}, {workshop.steps} steps each"
    if workshop.recipe.train.subset_per_class is not None:
        line += "".join(
            f"; {arm} learned from {real} real and {drawn} synthetic" for arm, (real, drawn) in subset.items()
        )
    warnings = []
    if not workshop.held_out["val"]:
        warnings.append("there are no validation images: the weights after the last step are taken as they are")
    if any(seen_by(path) is None for path in _given_weights(workshop.recipe)):
        warnings.append(
            "the file at train.pretrained does not tell which images it was made from: it may have seen test images"
        )
    if drawn_as_others := class_agreement.warning(agreement, workshop.class_names):
        warnings.append(drawn_as_others)
    unseen = [image for images in workshop.held_out.values() for image in images]
    warnings += pool_warnings(workshop.recipe.train.pools, unseen, workshop.recipe.dataset)
    return {
        "line": "; ".join([line, *warnings]),
        "tasks": rows,
        "subset": subset,
        "class_agreement": agreement,
        "steps": workshop.steps,
        "lr": rate_of(workshop.recipe.train),
        "warnings": warnings,
    }
