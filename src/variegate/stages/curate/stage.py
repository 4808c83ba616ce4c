"""Score every synthetic image and write down what follows; nothing is deleted, and other makers' decisions stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from variegate.card import write_card
from variegate.encoders import (
    CLASSIFIER,
    TRAINED,
    Encoder,
    Reader,
    check_encoder,
    encoder_fingerprint,
    open_encoder,
    trained_classes,
    trained_file,
)
from variegate.errors import Problem, RecipeError, first_of
from variegate.files import file_sha256
from variegate.image_quality.copying import find_copies, units_of
from variegate.images import load_squares
from variegate.judge import Judge, class_agreement, judge_of_logits, train_judge
from variegate.leaks import encoder_problems, seen_by
from variegate.pipeline import Context
from variegate.recipe import CurateStep, Recipe
from variegate.records import RealImage, SyntheticImage, rounded, seed_from
from variegate.stages.curate.scores import blank_scores
from variegate.stages.curate.select import (
    COPY,
    Decision,
    drop_blank,
    drop_copies,
    drop_off_class,
    weigh_by_agreement,
    weigh_copies,
)
from variegate.stages.curate.views import views_of
from variegate.templates import class_text

NAME = "curate"
_SLICE = 512  # images in memory at a time
_JUDGED = ("held_out_accuracy", "held_out_low", "chance", "temperature", "ece_before", "ece_after")


def inputs(recipe: Recipe) -> dict[str, Any]:
    """What decisions depend on besides the images."""
    keys = {"curate": [step.model_dump() for step in recipe.curate], "seed": recipe.seed}
    if any(step.encoder == CLASSIFIER for step in recipe.curate):
        keys["classifier"] = recipe.train.model_dump(exclude={"mixing"})
        if isinstance(recipe.train.pretrained, str):
            keys["weights"] = file_sha256(Path(recipe.train.pretrained))
    return keys


def found(context: Context) -> list[list[str]]:
    """The named encoders as they are now: a folder's files may change under the same name."""
    names = [step.encoder for step in context.recipe.curate if ":" in step.encoder]
    return [encoder_fingerprint(name) for name in names]


def check(recipe: Recipe, names: Sequence[str] = (), held_out: Collection[str] = ()) -> None:
    """Raise RecipeError with every curate key that could not be acted on; loads no model.

    `names` are the classes; a trained classifier has to know them. `held_out` are SHA-256 digests of validation and test
    images; an encoder that has learned from them is refused.
    """
    problems = _leak_problems(recipe, held_out)
    for place, step in enumerate(recipe.curate):
        where = f"curate.{place}"
        if step.score == "blank":
            idle = _set_keys(step) - {"score"}
            why = "has no effect on blank, which has one fixed rule"
        elif step.score == COPY:
            idle = _set_keys(step) - {"score", "policy", "drop_below", "of_sources"}
            why = "has no effect on copy, which compares pixels"
        else:
            problems += check_encoder(step.encoder, f"{where}.encoder")
            problems += _unknown_classes(step.encoder, names, f"{where}.encoder")
            unused = {"text", "against", "of_sources"} if step.score == "class-agreement" else {"of_sources"}
            idle = _set_keys(step) & unused
            why = f"has no effect on {step.score}"
            if idle & {"text", "against"}:
                why += ", which learns from images; use text-agreement"
        problems += [Problem(f"{where}.{key}", why, "leave it out") for key in sorted(idle)]
    if problems:
        raise RecipeError(problems)


def run(context: Context) -> dict[str, Any]:
    """Write scores and decisions; returns the counted line, counts by reason, the judges and warnings."""
    recipe, folder = context.recipe, context.folder
    names = [info.name for info in folder.classes()]
    check(recipe, names, {image.sha256 for image in folder.real_images() if image.split != "train"})
    images = folder.synthetic_images(kept_only=False)
    decisions = [Decision(image.id) for image in images]
    judges: list[dict[str, Any]] = []
    notes: list[str] = []
    warnings: list[str] = []
    for step in recipe.curate if images else ():
        if step.score == "blank":
            spread = _blank(context, images)
            folder.put_scores("blank", spread.items())
            decisions = drop_blank(decisions, spread)
            continue
        if step.score == COPY:
            decisions, doubts = _without_copies(context, step, decisions, images)
            warnings += doubts
            continue
        if few := _too_few(context, step, names):
            notes.append(few)
            continue
        judge, agreement = _agreement(context, step, images)
        doubt = _doubt(step, judge)
        unfit = "" if judge is None or doubt else _unfit(step, judge)
        judges.append(_judge_facts(step, judge, used=not doubt and not unfit))
        if step.encoder.startswith(TRAINED) and seen_by(trained_file(step.encoder)) is None:
            warnings.append(
                f"{step.encoder} does not tell which images it was made from: it may have seen validation or test images"
            )
        if judge is not None:
            folder.put_scores(_score_name(step), agreement.items())
        if doubt:
            warnings.append(doubt)
        elif unfit:
            notes.append(unfit)
        else:
            decisions = _follow(step, decisions, agreement, images, num_classes=len(names))
    folder.put_decisions(NAME, ((d.id, d.action, d.weight, d.reason) for d in decisions))
    if images:
        write_card(folder, recipe)
    return _summary(images, decisions, judges, notes, warnings, names)


def _leak_problems(recipe: Recipe, held_out: Collection[str]) -> list[Problem]:
    """Encoders in folders whose weights say that they have learned from validation or test images."""
    return [
        problem
        for place, step in enumerate(recipe.curate)
        for problem in encoder_problems(f"curate.{place}.encoder", step.encoder, held_out)
    ]


def _unknown_classes(encoder: str, names: Sequence[str], where: str) -> list[Problem]:
    """Classes that a trained classifier cannot tell, as it was never taught them."""
    known = trained_classes(encoder) if encoder.startswith(TRAINED) else []
    missing = [name for name in names if name not in known]
    if not known or not missing:
        return []
    text = f"{encoder} tells {first_of(known, 5)} and not {first_of(missing, 5)}"
    return [
        Problem(
            where, text, "use one taught with these class names; variegate import --classes gives a filter its names"
        )
    ]


# ------------------------------------------------------------------------------------------------ scoring


def _blank(context: Context, images: Sequence[SyntheticImage]) -> dict[str, float]:
    found: dict[str, float] = {}
    with context.reporter.bar("looking for blank images", len(images)) as bar:
        paths = [context.folder.path(image.path) for image in images]
        for start, pixels in _slices(context.recipe, paths, context.recipe.dataset.size_px):
            ids = [image.id for image in images[start : start + len(pixels)]]
            found.update(zip(ids, blank_scores(pixels).tolist(), strict=True))
            bar.advance(len(pixels))
    return found


def _without_copies(
    context: Context, step: CurateStep, decisions: list[Decision], images: Sequence[SyntheticImage]
) -> tuple[list[Decision], list[str]]:
    """Decisions about copies of training images, and what limits them; the score is the distance to the nearest one."""
    recipe, folder = context.recipe, context.folder
    seed, pasted = recipe.seed, recipe.generate.mask_paste
    copies = find_copies(
        folder, recipe.dataset, images, context.reporter, seed=seed, pasted=pasted, of_sources=step.of_sources
    )
    ids = [image.id for image in images]
    distance = dict(zip(ids, copies.distance.tolist(), strict=True))
    folder.put_scores(COPY, ((name, value) for name, value in distance.items() if np.isfinite(value)))
    below = copies.calibration.threshold if step.drop_below is None else step.drop_below
    doubts = []
    if step.drop_below is None and not copies.calibration.is_sharp:
        doubts.append("training images are as near to each other as altered copies are: some copies may be kept")
    act = drop_copies if step.policy == "drop" else weigh_copies
    return act(decisions, distance, below), doubts


def _agreement(
    context: Context, step: CurateStep, images: Sequence[SyntheticImage]
) -> tuple[Judge | None, dict[str, float]]:
    """A judge taught by the real training images, and its opinion of every synthetic one; none where nothing could measure it."""
    if step.encoder.startswith(CLASSIFIER) and not context.folder.real_images("val"):
        return None, {}
    paths = [context.folder.path(image.path) for image in images]
    with _taught(context, step) as (encoder, judge):
        if judge is None:
            return None, {}
        values: list[float] = []
        with context.reporter.bar("judging", len(images)) as bar:
            for start, pixels in _slices(context.recipe, paths, encoder.size_px):
                here = images[start : start + len(pixels)]
                targets = np.array([image.target for image in here], np.int64)
                views = views_of(pixels, [image.id for image in here], step.views, context.recipe.seed)
                values += np.mean([_opinion(judge, encoder, view, targets) for view in views], axis=0).tolist()
                bar.advance(len(pixels))
    return judge, {image.id: value for image, value in zip(images, values, strict=True)}


def _opinion(judge: Judge, encoder: Encoder, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Probability of each target; for a pair of texts that of the one against the other, as the model itself has it."""
    features = encoder.features(pixels)
    if isinstance(encoder, Reader) and encoder.is_pair:
        return 1.0 / (1.0 + np.exp(-features[np.arange(len(targets)), targets]))
    return class_agreement(judge, features, targets)


@contextmanager
def _taught(context: Context, step: CurateStep) -> Iterator[tuple[Encoder, Judge | None]]:
    """What sees the images, and the judge on it; no judge where there are too few real images to test one on."""
    if step.encoder.startswith(CLASSIFIER):
        jury = _trained(context, step) if step.encoder.startswith(TRAINED) else _jury(context)
        yield jury, _heard(context, jury)
        return
    if step.score == "text-agreement":
        yield _reader(context, step)
        return
    with open_encoder(step.encoder, context.recipe) as encoder:
        yield encoder, _probe(context, encoder)


def _trained(context: Context, step: CurateStep) -> Encoder:
    """A classifier from a file, asked about the classes of this run."""
    from variegate.stages.curate.jury import open_jury

    return open_jury(context.recipe, trained_file(step.encoder), [info.name for info in context.folder.classes()])


def _jury(context: Context) -> Encoder:
    """Classifiers taught by the training images."""
    from variegate.stages.curate.jury import JURORS, num_steps, teach_jury

    recipe, folder = context.recipe, context.folder
    train = folder.real_images("train")
    pixels = _pixels(recipe, train, recipe.dataset.size_px)
    with context.reporter.bar("teaching the jury", JURORS * num_steps(recipe, len(train)), unit="steps") as bar:
        labels = [image.label for image in train]
        return teach_jury(recipe, pixels, labels, len(folder.classes()), on_step=lambda _: bar.advance(1))


def _heard(context: Context, jury: Encoder) -> Judge:
    """How far to trust a jury, measured on the validation images."""
    held_out = context.folder.real_images("val")
    logits = jury.features(_pixels(context.recipe, held_out, jury.size_px))
    truth = np.array([image.label for image in held_out])
    return judge_of_logits(logits, truth, units_of(context.folder, held_out))


def _reader(context: Context, step: CurateStep) -> tuple[Encoder, Judge]:
    """An image-text model told of the classes, measured on the training images: it has learned from none of them."""
    classes, train = context.folder.classes(), context.folder.real_images("train")
    against = [class_text(step.against, info) for info in classes] if step.against is not None else None
    reader = Reader(step.encoder, [class_text(step.text, info) for info in classes], against)
    logits = reader.features(_pixels(context.recipe, train, reader.size_px))
    truth, groups = np.array([image.label for image in train]), units_of(context.folder, train)
    judge = judge_of_logits(logits, truth, groups)
    if reader.is_pair:  # yes or no of each class: right where a real image gets a yes
        is_right = logits[np.arange(len(truth)), truth] > 0
        right = float(is_right.mean())
        judge = replace(judge, held_out_accuracy=right, chance=0.5, temperature=1.0, ece_before=None, ece_after=None)
    return reader, judge


def _probe(context: Context, encoder: Encoder) -> Judge | None:
    """A regression on the encoder's features of the training images, cross-validated on them."""
    train = context.folder.real_images("train")
    features = []
    for _, pixels in _slices(context.recipe, [Path(image.path) for image in train], encoder.size_px):
        features.append(np.stack([encoder.features(pixels), encoder.features(pixels[:, :, ::-1])], axis=1))
    both = np.concatenate(features)  # [N, 2, D]: each image and its mirror image
    labels = np.repeat([image.label for image in train], 2)
    groups = np.repeat(units_of(context.folder, train), 2)
    seed = seed_from(context.recipe.seed, "judge")
    return train_judge(both.reshape(-1, both.shape[-1]), labels, groups.tolist(), seed=seed)


def _pixels(recipe: Recipe, images: Sequence[RealImage], size_px: int) -> np.ndarray:
    section = recipe.dataset
    return load_squares([Path(image.path) for image in images], size_px, section.fit, section.max_megapixels)


def _slices(recipe: Recipe, paths: Sequence[Path], size_px: int) -> Iterator[tuple[int, np.ndarray]]:
    section = recipe.dataset
    for start in range(0, len(paths), _SLICE):
        yield start, load_squares(paths[start : start + _SLICE], size_px, section.fit, section.max_megapixels)


# ------------------------------------------------------------------------------------------------ deciding


def _follow(
    step: CurateStep,
    decisions: list[Decision],
    agreement: dict[str, float],
    images: Sequence[SyntheticImage],
    num_classes: int,
) -> list[Decision]:
    """Act on agreement as the recipe says; with neither threshold nor share given, drop means worse than a guess."""
    below, fraction = step.drop_below, step.drop_fraction
    if step.policy == "drop" and below is None and fraction is None:
        below = 1.0 / num_classes
    if below is not None or fraction is not None:
        targets = {image.id: image.target for image in images}
        decisions = drop_off_class(decisions, agreement, targets, below=below, fraction=fraction)
    return weigh_by_agreement(decisions, agreement) if step.policy == "weight" else decisions


def _doubt(step: CurateStep, judge: Judge | None) -> str:
    """Why a judge is not listened to; empty when it is."""
    if judge is None:
        needs = "validation images to be measured on"
        if not step.encoder.startswith(CLASSIFIER):
            needs = "two real training images (or groups) of every class"
        return f"{_score_name(step)} was not used: a judge needs {needs}"
    if judge.is_weak:
        values = (judge.held_out_accuracy, judge.chance, judge.held_out_low, judge.needed)
        right, chance, low, needed = (f"{100 * value:.0f} %" for value in values)
        facts = f"its judge is right on {right} of held-out real images and a guess on {chance}"
        need = f"with {judge.num_tested} tested that may be {low} in truth, and {needed} is needed"
        return f"{_score_name(step)} was not used: {facts}; {need}"
    return ""


def _too_few(context: Context, step: CurateStep, names: Sequence[str]) -> str:
    """Why no judge is asked: a class has fewer training images than the step wants; empty when one is."""
    counts = Counter(image.label for image in context.folder.real_images("train"))
    label = min(range(len(names)), key=lambda label: counts[label])
    if counts[label] >= step.min_images:
        return ""
    return f"{_score_name(step)} was not asked: {counts[label]} training images of {names[label]}, min_images {step.min_images}"


def _unfit(step: CurateStep, judge: Judge) -> str:
    """Why a judge that is better than guessing is not listened to; empty when it is."""
    if step.min_accuracy is None or judge.held_out_accuracy >= step.min_accuracy:
        return ""
    right, needed = 100 * judge.held_out_accuracy, 100 * step.min_accuracy
    return f"{_score_name(step)} was not used: its judge is right on {right:.0f} % of held-out real images, min_accuracy {needed:.0f} %"


def _judge_facts(step: CurateStep, judge: Judge | None, *, used: bool) -> dict[str, Any]:
    """What is known of a judge; calibration errors are on held-out real images, without its temperature and with it."""
    numbers = {name: getattr(judge, name, None) for name in _JUDGED}
    return {"encoder": step.encoder, **rounded(numbers), "used": used}


def _score_name(step: CurateStep) -> str:
    return step.score if step.encoder == "auto" else f"{step.score} {step.encoder}"


def _set_keys(step: CurateStep) -> set[str]:
    """Keys that differ from their defaults: a resolved recipe names them all."""
    fields = type(step).model_fields
    return {key for key in fields if getattr(step, key) != fields[key].default}


def _summary(
    images: Sequence[SyntheticImage],
    decisions: Sequence[Decision],
    judges: list[dict],
    notes: list[str],
    warnings: list[str],
    names: list[str],
) -> dict[str, Any]:
    kept = [decision for decision in decisions if decision.action == "keep"]
    dropped = Counter(decision.reason for decision in decisions if decision.action == "drop")
    reasons = {reason: dropped[reason] for reason in sorted(dropped)}
    line = f"{len(images):,} in, {len(kept):,} kept, {len(images) - len(kept):,} dropped"
    if reasons:
        line += " (" + ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) + ")"
    mean_weight = float(np.mean([decision.weight for decision in kept])) if kept else 0.0
    if any(decision.weight < 1.0 for decision in kept):
        line += f", mean weight {mean_weight:.2f}"
    for judge in judges:
        if judge["used"]:
            line += f"; judge right on {100 * judge['held_out_accuracy']:.0f} % of held-out real images"
        if judge["used"] and judge["ece_before"] is not None:
            before, after = 100 * judge["ece_before"], 100 * judge["ece_after"]
            line += f", calibration error {before:.1f} % before its temperature and {after:.1f} % after"
    action = {decision.id: decision.action for decision in decisions}
    left = Counter(image.target for image in images if action[image.id] == "keep")
    emptied = sorted({image.target for image in images} - set(left))
    warnings = [*warnings, *(f"every synthetic image of {names[label]} was dropped" for label in emptied)]
    return {
        "line": "; ".join([line, *notes, *warnings]),
        "in": len(images),
        "kept": len(kept),
        "dropped": reasons,
        "mean_weight": round(mean_weight, 6),
        "judges": judges,
        "warnings": warnings,
    }
