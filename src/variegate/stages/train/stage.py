"""Train one classifier for every arm and seed; arms of a seed share first weights, order of real images and steps.

Finished tasks are kept and an interrupted one goes on where its last checkpoint was. Test images are read once, after
the last step, and nothing is chosen by them.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from variegate import __version__
from variegate.classifier import labels, mixing
from variegate.classifier.fit import (
    Compute,
    FitData,
    Fitted,
    LabelledImages,
    choose_compute,
    features,
    fit,
    predict,
    rate_of,
    settings_of,
)
from variegate.classifier.models import (
    Classifier,
    build_model,
    check_cosine_head,
    check_model_name,
    check_parts,
    open_classifier,
)
from variegate.errors import DataError, ModelError, Problem, TaskFailed, VariegateError
from variegate.files import file_sha256
from variegate.leaks import SEEN, marks, seen_by, seen_problems
from variegate.pipeline import Context
from variegate.progress import Bar
from variegate.recipe import ArmSection, Recipe, TrainSection
from variegate.records import ClassInfo, RealImage, SyntheticImage, content_id, extra_tests, seed_from
from variegate.stages.train import feature_space
from variegate.stages.train.cache import ImageFile, load_images
from variegate.stages.train.files import (
    Prediction,
    checkpoint_bytes,
    log_lines,
    model_bytes,
    predictions_bytes,
    read_checkpoint,
    read_log,
)
from variegate.stages.train.pools import (
    held_out_keys,
    near_duplicate_warnings,
    pool_problems,
    seen_by_pools,
    with_pools,
)
from variegate.store import RunFolder

NAME = "train"
FILES = ("model.safetensors", "log.jsonl", "predictions.parquet")
CHECKPOINT = "checkpoint.safetensors"
FEATURE_SPACE = "train/feature-space.json"


@dataclass(frozen=True, slots=True)
class Task:
    """One classifier to train."""

    arm: ArmSection
    seed: int
    key: str  # changes when the outcome may

    @property
    def folder(self) -> str:
        return f"{self.arm.folder}/seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all tasks of a run share."""

    recipe: Recipe
    class_names: tuple[str, ...]
    train: list[RealImage]
    held_out: dict[str, list[RealImage]]  # val, test and extra test sets
    synthetic: list[SyntheticImage]
    pixels: dict[str, np.ndarray]  # of real and synthetic training images and of held_out
    compute: Compute
    steps: int
    weights_sha256: dict[str, str]  # by arm, of train.pretrained's file


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
    """Raise ModelError with everything wrong with the classifier's name, weights, last layer or stages; downloads nothing.

    Raises DataError for pools that cannot be added to data of these `classes` with these held-out images (SHA-256).
    """
    sections = [recipe.train_of(arm) for arm in recipe.evaluate.arm_sections]
    problems = list(dict.fromkeys(problem for section in sections for problem in _model_problems(section)))
    if problems:
        raise ModelError(problems)
    problems = pool_problems(recipe.train.pools, [i.name for i in classes], held_out) if classes else []
    problems += _leak_problems(recipe, held_out)
    if problems:
        raise DataError(problems)
    for section in sections:
        check_parts(section, recipe.dataset.size_px)


def _model_problems(section: TrainSection) -> list[Problem]:
    problems = check_model_name(section.model, section.pretrained)
    return problems or (check_cosine_head(section.model) if section.cosine_scale is not None else [])


def run(context: Context) -> dict[str, Any]:
    """Train what is not trained yet; returns the counted line, the tasks with their seconds, and warnings."""
    recipe, folder = context.recipe, context.folder
    check(recipe)
    workshop = _open_workshop(recipe, folder)
    arms = recipe.evaluate.arm_sections
    subset = {arm.name: tuple(len(chosen) for chosen in subset_of(arm, workshop)) for arm in arms}
    tasks = [_task(arm, seed, workshop) for seed in range(recipe.evaluate.seeds) for arm in arms]
    finished = [task for task in tasks if _is_finished(task, folder)]
    total = workshop.steps * len(tasks)
    with context.reporter.bar("training", total, unit="steps", done=workshop.steps * len(finished)) as bar:
        for task in tasks:
            if task in finished:
                folder.path(f"{task.folder}/{CHECKPOINT}").unlink(missing_ok=True)  # a kill may have left it
                continue
            with _named(task, folder):
                _run_task(task, workshop, folder, bar)
            context.reporter.event("task-done", stage=NAME, arm=task.arm.name, seed=task.seed)
    _draw_feature_space(tasks, workshop, folder)
    return _summary(tasks, subset, workshop, folder)


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
        class_names=names,
        train=train,
        held_out=held_out,
        synthetic=synthetic,
        pixels=pixels,
        compute=choose_compute(recipe.backend.device),
        steps=steps,
        weights_sha256={arm.name: _weights_sha256(recipe.train_of(arm)) for arm in recipe.evaluate.arm_sections},
    )


def fit_data(section: TrainSection, workshop: Workshop) -> FitData:
    """What an arm may see, with the labels that its own section asks for."""
    options, pixels, count = section.label, workshop.pixels, len(workshop.class_names)
    soft = labels.soft_targets(workshop.synthetic, count, gamma=options.gamma, kappa=options.kappa)
    hard = labels.one_hot([image.label for image in workshop.train], count)
    return FitData(
        real=LabelledImages(pixels["train"], labels.smooth(hard, options.smoothing)),
        synthetic=LabelledImages(pixels["synthetic"], labels.smooth(soft, options.smoothing)),
        val=LabelledImages(pixels["val"], labels.one_hot([i.label for i in workshop.held_out["val"]], count)),
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
            text = "replace swaps a real image for one made from it, and these were drawn from text alone"
            problems.append(Problem("train.mixing.policy", text, "use pool or concat"))
    return problems


def _real_pixels(recipe: Recipe, folder: RunFolder, images: list[RealImage]) -> np.ndarray:
    files = [ImageFile(Path(image.path), image.sha256 or image.id) for image in images]
    return _pixels(recipe, folder, files)


def _synthetic_images(recipe: Recipe, folder: RunFolder) -> list[SyntheticImage]:
    """Those that were kept, here and in the pools."""
    return with_pools(folder.synthetic_images(), recipe.train.pools) if _uses_synthetic(recipe) else []


def _synthetic_pixels(recipe: Recipe, folder: RunFolder, images: list[SyntheticImage]) -> np.ndarray:
    return _pixels(recipe, folder, [ImageFile(folder.root / image.path, image.id + image.refined) for image in images])


def _pixels(recipe: Recipe, folder: RunFolder, files: list[ImageFile]) -> np.ndarray:
    section = recipe.dataset
    return load_images(files, section.size_px, section.fit, section.max_megapixels, cache=folder.path("cache"))


def _task(arm: ArmSection, seed: int, workshop: Workshop) -> Task:
    recipe = workshop.recipe
    real = [(i.id, i.sha256, i.label) for split in (workshop.train, *workshop.held_out.values()) for i in split]
    synthetic = list(map(_tell, workshop.synthetic)) if arm.has_synthetic else []
    size, section = (recipe.dataset.size_px, recipe.dataset.fit), recipe.train_of(arm)
    weights = workshop.weights_sha256[arm.name]
    settings = (__version__, mixing.RULE, recipe.seed, section.model_dump(), weights, size, workshop.class_names)
    return Task(arm, seed, content_id(arm.images, arm.copies, seed, settings, real, synthetic))


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


def _is_finished(task: Task, folder: RunFolder) -> bool:
    return _meta(task, folder).get("key") == task.key and all(
        folder.path(f"{task.folder}/{name}").is_file() for name in FILES
    )


def _meta(task: Task, folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.meta(f"task:{task.folder}") or "{}")


# ------------------------------------------------------------------------------------------------ one task


@contextmanager
def _named(task: Task, folder: RunFolder) -> Iterator[None]:
    """Say which task failed and where its traceback is."""
    try:
        yield
    except VariegateError:
        raise
    except Exception as exc:
        log = folder.write(f"logs/{task.folder.replace('/', '-')}.log", traceback.format_exc())
        raise TaskFailed(f"{NAME} {task.arm.name} seed {task.seed}", str(exc) or type(exc).__name__, str(log)) from exc


def _run_task(task: Task, workshop: Workshop, folder: RunFolder, bar: Bar) -> None:
    start = time.monotonic()
    section = workshop.recipe.train_of(task.arm)
    classifier = build_model(
        section.model,
        num_classes=len(workshop.class_names),
        size_px=workshop.recipe.dataset.size_px,
        pretrained=section.pretrained,
        seed=seed_from(workshop.recipe.seed, "weights", task.seed),
        cosine_scale=section.cosine_scale,
    )
    checkpoint = folder.path(f"{task.folder}/{CHECKPOINT}")
    resume = read_checkpoint(checkpoint, task.key)
    if resume:
        bar.advance(resume.step)
    fitted = fit(
        classifier,
        replace(fit_data(section, workshop), subset=subset_of(task.arm, workshop)[0]),
        slots_of(task.arm, task.seed, workshop),
        settings_of(section, seed_from(workshop.recipe.seed, "steps", task.seed)),
        workshop.compute,
        resume=resume,
        save=lambda progress: folder.write(f"{task.folder}/{CHECKPOINT}", checkpoint_bytes(progress, task.key)),
        on_step=lambda step: bar.advance(1),
    )
    _write(task, workshop, folder, classifier, fitted)
    folder.set_meta(f"task:{task.folder}", json.dumps({"key": task.key, "seconds": round(time.monotonic() - start, 1)}))
    checkpoint.unlink(missing_ok=True)


def slots_of(arm: ArmSection, seed: int, workshop: Workshop) -> mixing.Slots:
    """Every place of every batch. The order of real images hangs on the seed alone: arms are paired."""
    section, base = workshop.recipe.train_of(arm), workshop.recipe.seed
    count = workshop.steps * section.batch
    real, synthetic = subset_of(arm, workshop)
    rng = np.random.default_rng(seed_from(base, "real-order", seed))
    order = real[_real_order(real, arm.copies, count, section, workshop, rng)]
    if arm.images == "real":
        return mixing.real_only(order).shaped(workshop.steps, section.batch)
    weights = np.zeros(len(workshop.synthetic), np.float64)
    weights[synthetic] = _pool_weights(section, workshop)[synthetic]
    parents = mixing.parent_indices([i.source for i in workshop.synthetic], [i.id for i in workshop.train])
    pool = mixing.Pool(weights, parents, np.array([i.target for i in workshop.synthetic], np.int64))
    rng = np.random.default_rng(seed_from(base, "synthetic-order", seed))
    if arm.images == "synthetic":
        slots = mixing.synthetic_only(count, pool, rng)
    else:
        options = section.mixing
        chances = mixing.chances(options.fraction, options.schedule, workshop.steps, section.batch)
        slots = mixing.mix(options.policy, order, pool, fraction=chances, num_real=len(real), rng=rng)
    return slots.shaped(workshop.steps, section.batch)


def _real_order(
    real: np.ndarray, copies: int, count: int, section: TrainSection, workshop: Workshop, rng: np.random.Generator
) -> np.ndarray:
    """`count` places among the arm's `real` images and their copies, as train.sample_by has them drawn."""
    labels = np.array([image.label for image in workshop.train], np.int64)[real]
    if section.sample_by == "class":  # copies change nothing: those of a class share its turns
        return mixing.class_order(labels, count, rng)
    return mixing.real_order(np.tile(labels, 1 + copies), count, rng) % max(len(real), 1)


def _pool_weights(section: TrainSection, workshop: Workshop) -> np.ndarray:
    """What curate gave the synthetic images, shaped by the recipe's weighting of classes; float64 [M]."""
    weights = np.array([image.weight for image in workshop.synthetic], np.float64)
    if section.mixing.weighting == "none":
        return weights
    counts = mixing.real_counts([image.label for image in workshop.train], len(workshop.class_names))
    return mixing.inverse_count_weights(weights, np.array([i.target for i in workshop.synthetic], np.int64), counts)


def subset_of(arm: ArmSection, workshop: Workshop) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the real and of the synthetic images that an arm learns from, the same for all its seeds.

    Raises DataError where train.subset_per_class leaves an arm without images of a kind it is made of.
    """
    per_class = workshop.recipe.train_of(arm).subset_per_class
    real = np.array([image.label for image in workshop.train], np.int64)
    targets = np.array([image.target for image in workshop.synthetic], np.int64)
    usable = np.array([image.weight > 0 for image in workshop.synthetic], bool)
    if per_class is None:
        return np.arange(len(real)), np.flatnonzero(usable)
    rng = np.random.default_rng(seed_from(workshop.recipe.seed, "subset", arm.images))
    if arm.images == "synthetic":  # real images take no part, so they take no place either
        real = real[:0]
    usable &= arm.has_synthetic
    real, synthetic = mixing.balanced_subset(real, targets, usable, per_class=per_class, rng=rng)
    if arm.images != "synthetic" and not len(real) or arm.has_synthetic and not len(synthetic):
        text = f"{per_class} images a class left {len(real)} real and {len(synthetic)} synthetic ones to arm {arm.name}"
        raise DataError(Problem("train.subset_per_class", text, "raise it"))
    return real, synthetic


def _write(task: Task, workshop: Workshop, folder: RunFolder, classifier: Classifier, fitted: Fitted) -> None:
    recipe, section, predictions = workshop.recipe, workshop.recipe.train_of(task.arm), []
    for weights, state in (("selected", fitted.selected), ("last", fitted.last)):
        classifier.net.load_state_dict(state, strict=True)
        for split, images in workshop.held_out.items():
            found = predict(classifier, workshop.pixels[split], workshop.compute)
            predictions.append(Prediction([i.id for i in images], split, weights, [i.label for i in images], found))
    about = {
        "model": section.model,
        "classes": workshop.class_names,
        "size_px": recipe.dataset.size_px,
        "fit": recipe.dataset.fit,
        "cosine_scale": section.cosine_scale,
        "mean": classifier.mean,
        "std": classifier.std,
        **({SEEN: seen} if (seen := _seen(task.arm, workshop)) is not None else {}),
    }
    selected_by = "val" if workshop.held_out["val"] else "last step"
    log = log_lines(fitted.log, steps=workshop.steps, selected_step=fitted.selected_step, selected_by=selected_by)
    contents: tuple[bytes | str, ...] = (model_bytes(fitted.selected, about), log, predictions_bytes(predictions))
    for name, content in zip(FILES, contents, strict=True):
        folder.write(f"{task.folder}/{name}", content)
        folder.put_artefact(NAME, f"{task.arm.name}/seed-{task.seed}/{name}", f"{task.folder}/{name}")


def _seen(arm: ArmSection, workshop: Workshop) -> list[str] | None:
    """Marks of all images that a classifier has learned from, by way of its first weights and of pools too; None where
    weights that came from elsewhere do not tell theirs."""
    section = workshop.recipe.train_of(arm)
    before = seen_by(Path(section.pretrained)) if isinstance(section.pretrained, str) else []
    if before is None:
        return None
    own = marks(
        [*(image.sha256 for image in workshop.train), *(seen_by_pools(section.pools) if arm.has_synthetic else [])]
    )
    return sorted({*own, *before})


def _draw_feature_space(tasks: list[Task], workshop: Workshop, folder: RunFolder) -> None:
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


def _summary(
    tasks: list[Task], subset: dict[str, tuple[int, ...]], workshop: Workshop, folder: RunFolder
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
    unseen = [image for images in workshop.held_out.values() for image in images]
    warnings += near_duplicate_warnings(workshop.recipe.train.pools, unseen, workshop.recipe.dataset)
    return {
        "line": "; ".join([line, *warnings]),
        "tasks": rows,
        "subset": subset,
        "steps": workshop.steps,
        "lr": rate_of(workshop.recipe.train),
        "warnings": warnings,
    }
