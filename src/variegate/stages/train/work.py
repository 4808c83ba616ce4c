"""Train one classifier: what a worker does, in this process or in another.

A classifier depends on its task and on the images alone, so any worker writes the same bytes. Files are in place before anything is
recorded.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from variegate.backends.devices import Machine
from variegate.classifier import labels, mixing
from variegate.classifier.fit import (
    Compute,
    FitData,
    Fitted,
    LabelledImages,
    Progress,
    fit,
    predict,
    settings_of,
    threads_of,
)
from variegate.classifier.models import Classifier, build_model, model_bytes
from variegate.errors import DataError, Problem, TaskFailed, VariegateError
from variegate.executors.base import Report
from variegate.files import write_atomic
from variegate.leaks import SEEN, marks, seen_by
from variegate.recipe import ArmSection, Recipe, TrainSection
from variegate.records import RealImage, SyntheticImage, seed_from
from variegate.stages.train.cache import opened
from variegate.stages.train.files import (
    Prediction,
    checkpoint_bytes,
    log_lines,
    predictions_bytes,
    read_checkpoint,
)
from variegate.stages.train.pools import seen_by_pools
from variegate.store import explained

WORTH_A_WORKER = 1 << 26  # pixels to learn from: a minute and a half of one core, where a worker takes 10 s to start
WORKER_BYTES = 1 << 30  # a process with torch, a small net and its optimiser
FILES = ("model.safetensors", "log.jsonl", "predictions.parquet")
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One classifier to train."""

    arm: ArmSection
    seed: int
    key: str  # changes when the outcome may

    @property
    def folder(self) -> str:
        return f"{self.arm.folder}/seed-{self.seed}"

    @property
    def name(self) -> str:
        return f"train {self.arm.name} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all tasks of a run share."""

    recipe: Recipe
    root: str  # run folder
    class_names: tuple[str, ...]
    train: list[RealImage]
    held_out: dict[str, list[RealImage]]  # val, test and extra test sets
    synthetic: list[SyntheticImage]
    pixels: dict[str, np.ndarray]  # of real and synthetic training images and of held_out
    compute: Compute
    steps: int
    weights_sha256: dict[str, str]  # by arm, of train.pretrained's file


@dataclass(frozen=True, slots=True)
class Trained:
    """A classifier whose files are in place."""

    seconds: float  # of all its sessions


def threads_for(recipe: Recipe) -> int:
    """Cores that each classifier of a run learns on."""
    arms, size_px = recipe.evaluate.arm_sections, recipe.dataset.size_px
    return max(threads_of(recipe.train_of(arm), size_px) for arm in arms)


def num_at_a_time(num_tasks: int, *, pixels: int, held_bytes: int, compute: Compute, machine: Machine) -> int:
    """Classifiers that learn at a time: as many as cores and memory allow, one where others would take longer to start.

    `pixels` are what one of them learns from, `held_bytes` the images that each worker holds.
    """
    if compute.device.type != "cpu" or num_tasks * pixels < WORTH_A_WORKER:
        return 1
    fitting = machine.free_memory // (WORKER_BYTES + held_bytes)
    return max(min(num_tasks, machine.cores // compute.threads, fitting), 1)


class TrainWorker:
    """Trains classifier after classifier; `pixels` as cache.carried has them."""

    def __init__(self, workshop: Workshop, pixels: Mapping[str, np.ndarray | Path], number: int = 0) -> None:
        self.workshop = replace(workshop, pixels=opened(pixels))

    def __call__(self, task: TrainTask, report: Report) -> Trained:
        """Raises TaskFailed, with a log of its own, where training breaks."""
        with _named(task, self.workshop.root):
            resume = read_checkpoint(Path(self.workshop.root) / task.folder / CHECKPOINT, task.key)
            start = time.monotonic() - (resume.seconds if resume else 0.0)
            train(task, self.workshop, report, resume, start)
        return Trained(round(time.monotonic() - start, 1))

    def close(self) -> None:
        """Nothing is held open."""


@contextmanager
def _named(task: TrainTask, root: str) -> Iterator[None]:
    """Say which task failed and where its traceback is."""
    try:
        yield
    except VariegateError:
        raise
    except Exception as exc:
        log = Path(root) / f"logs/{task.folder.replace('/', '-')}.log"
        write_atomic(log, traceback.format_exc().encode())
        raise TaskFailed(task.name, str(exc) or type(exc).__name__, str(log)) from exc


def train(task: TrainTask, workshop: Workshop, report: Report, resume: Progress | None, start: float) -> None:
    """Fit one classifier, from its last checkpoint on, and put its files in place; `start` is put back by earlier sessions."""
    section = workshop.recipe.train_of(task.arm)
    classifier = build_model(
        section.model,
        num_classes=len(workshop.class_names),
        size_px=workshop.recipe.dataset.size_px,
        pretrained=section.pretrained,
        seed=seed_from(workshop.recipe.seed, "weights", task.seed),
        cosine_scale=section.cosine_scale,
    )
    checkpoint = Path(workshop.root) / task.folder / CHECKPOINT
    if resume:
        report(resume.step)
    fitted = fit(
        classifier,
        replace(fit_data(section, workshop), subset=subset_of(task.arm, workshop)[0]),
        slots_of(task.arm, task.seed, workshop),
        settings_of(section, seed_from(workshop.recipe.seed, "steps", task.seed)),
        workshop.compute,
        resume=resume,
        save=lambda progress: _keep(checkpoint, progress, time.monotonic() - start, task, workshop),
        on_step=lambda step: report(1),
    )
    for name, content in files_of(task, workshop, classifier, fitted).items():
        _put(checkpoint.with_name(name), content, workshop)


def _keep(checkpoint: Path, progress: Progress, seconds: float, task: TrainTask, workshop: Workshop) -> None:
    _put(checkpoint, checkpoint_bytes(replace(progress, seconds=seconds), task.key), workshop)


def _put(path: Path, content: bytes, workshop: Workshop) -> None:
    with explained(Path(workshop.root)):
        write_atomic(path, content)


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


def files_of(task: TrainTask, workshop: Workshop, classifier: Classifier, fitted: Fitted) -> dict[str, bytes]:
    """The contents of FILES."""
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
    contents = (model_bytes(fitted.selected, about), log.encode(), predictions_bytes(predictions))
    return dict(zip(FILES, contents, strict=True))


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
