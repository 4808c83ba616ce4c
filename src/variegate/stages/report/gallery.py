"""Choose which images the page shows: sources with what was made of them, and examples of what was dropped.

Pure and deterministic: spread over the classes, in plan order, no random choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from variegate.records import ClassInfo, RealImage, SoftLabel, SyntheticImage, soft_label
from variegate.stages.report.contents import Dropped, Exhibit, Variant

Describe = Callable[[SyntheticImage], Variant]

NUM_EXHIBITS = 10
NUM_VARIANTS = 6
NUM_EXAMPLES = 4  # real images shown beside images drawn from text
NUM_DROPPED = 7  # example images for each reason
NUM_REASONS = 8  # reasons with example images; the others are counted only


def spread(items: Sequence, most: int) -> list:
    """At most `most` items, evenly spaced, in order.

    >>> spread(range(10), 3), spread("ab", 3)
    ([0, 3, 6], ['a', 'b'])
    """
    return list(items) if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


def variant(
    image: SyntheticImage,
    classes: Sequence[ClassInfo],
    scores: Mapping[str, Mapping[str, float]],
    label_rule: tuple[float, float] | None,
) -> Variant:
    """One drawn image for the page; `label_rule` is the recipe's (gamma, kappa), without it the label is not known."""
    pairs: SoftLabel = ()
    if label_rule:
        gamma, kappa = label_rule
        rule = {"gamma": gamma, "kappa": kappa, "original_share": image.original_share}
        pairs = soft_label(image.source_label, image.target, image.strength, **rule)
    return Variant(
        id=image.id,
        target=image.target,
        class_name=classes[image.target].name,
        prompt=image.prompt,
        strength=image.strength,
        label=tuple((classes[label].name, share) for label, share in pairs),
        action=image.action,
        weight=image.weight,
        reason=image.reason,
        scores=tuple((name, values[image.id]) for name, values in sorted(scores.items()) if image.id in values),
    )


def exhibits(
    classes: Sequence[ClassInfo], real: Sequence[RealImage], synthetic: Sequence[SyntheticImage], describe: Describe
) -> tuple[Exhibit, ...]:
    """About NUM_EXHIBITS sources over all classes; for images drawn from text, or none at all, classes with real examples.

    `real` are the training images in label order.
    """
    if any(image.source is not None for image in synthetic):
        return _by_source(classes, real, synthetic, describe)
    return _by_class(classes, real, synthetic, describe)


def dropped(synthetic: Sequence[SyntheticImage], describe: Describe) -> tuple[Dropped, ...]:
    """Dropped images by reason, the most frequent reason first."""
    groups: dict[str, list[SyntheticImage]] = {}
    for image in synthetic:
        if image.action == "drop":
            groups.setdefault(image.reason, []).append(image)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        Dropped(reason, len(images), tuple(map(describe, spread(images, NUM_DROPPED))) if rank < NUM_REASONS else ())
        for rank, (reason, images) in enumerate(ranked)
    )


def _by_source(
    classes: Sequence[ClassInfo], real: Sequence[RealImage], synthetic: Sequence[SyntheticImage], describe: Describe
) -> tuple[Exhibit, ...]:
    made: dict[str, list[SyntheticImage]] = {}
    for image in synthetic:
        if image.source is not None:
            made.setdefault(image.source, []).append(image)
    sources: dict[int, list[RealImage]] = {}
    for source in real:
        if source.id in made:
            sources.setdefault(source.label, []).append(source)
    labels = spread(sorted(sources), NUM_EXHIBITS)
    each = max(1, NUM_EXHIBITS // max(len(labels), 1))
    shown = [source for label in labels for source in spread(sources[label], each)]
    return tuple(
        Exhibit(
            class_name=classes[source.label].name,
            made_from=True,
            real=(source.id,),
            variants=tuple(map(describe, spread(made[source.id], NUM_VARIANTS))),
            num_made=len(made[source.id]),
        )
        for source in shown
    )


def _by_class(
    classes: Sequence[ClassInfo], real: Sequence[RealImage], synthetic: Sequence[SyntheticImage], describe: Describe
) -> tuple[Exhibit, ...]:
    made: dict[int, list[SyntheticImage]] = {}
    for image in synthetic:
        made.setdefault(image.target, []).append(image)
    return tuple(
        Exhibit(
            class_name=classes[label].name,
            made_from=False,
            real=tuple(spread([image.id for image in real if image.label == label], NUM_EXAMPLES)),
            variants=tuple(map(describe, spread(made.get(label, []), NUM_VARIANTS))),
            num_made=len(made.get(label, [])),
        )
        for label in spread(sorted(made or {image.label for image in real}), NUM_EXHIBITS)
    )
