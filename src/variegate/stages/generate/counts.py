"""How many images each class gets. Pure arithmetic on counts."""

from __future__ import annotations

from collections.abc import Sequence

from variegate.recipe import GenerateSection


def images_per_class(real: Sequence[int], section: GenerateSection) -> list[int]:
    """Images to draw for each class, given its real training images.

    `equal`: the same number for every class, per_real x real images in all, rounded to whole images a class.
    `need`: that total, dealt so that real + synthetic end as equal as they can.
    """
    if section.method == "none":
        return [0] * len(real)
    each = (
        section.per_class if section.per_class is not None else round_half_up(section.per_real * sum(real) / len(real))
    )
    if section.balance == "equal":
        return [each] * len(real)
    budget = each * len(real) if section.per_class is not None else round_half_up(section.per_real * sum(real))
    return fill_up(real, budget)


def fill_up(real: Sequence[int], budget: int) -> list[int]:
    """Deal `budget` images so that the smallest classes are raised first, to a common level; ties go to the first class.

    >>> fill_up([10, 4, 1], 8)
    [0, 3, 5]
    """
    low, high = min(real), max(real) + budget
    while low < high:  # the highest common level that the budget pays for
        level = (low + high + 1) // 2
        if sum(max(level - count, 0) for count in real) <= budget:
            low = level
        else:
            high = level - 1
    drawn = [max(low - count, 0) for count in real]
    left = budget - sum(drawn)
    for label in sorted(range(len(real)), key=lambda label: (real[label] + drawn[label], label))[:left]:
        drawn[label] += 1
    return drawn


def round_half_up(value: float) -> int:
    """
    >>> round_half_up(2.5), round_half_up(11.67)
    (3, 12)
    """
    return int(value + 0.5)
