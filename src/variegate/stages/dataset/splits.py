"""Pure rules of who is in train, val and test: copies, held-out shares, shots and long tails, all from a seed.

Images are chosen by hashes of their names, so adding a class or an image elsewhere moves nobody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from variegate.records import Split, seed_from


def _rank(split: Split | None) -> int:
    """Whose copy of an image stays: those of test sets, then of val; one image may be in several test sets."""
    return {"train": 2, "val": 1}.get(split or "train", 0)


@dataclass(frozen=True, slots=True)
class Item:
    """What a splitting rule may know of an image."""

    name: str
    class_name: str
    split: Split | None
    group: str | None = None
    sha256: str = ""  # empty: not known, never a copy


@dataclass(frozen=True, slots=True)
class Duplicate:
    """One image that occurs more than once: same bytes."""

    kept: tuple[str, ...]  # names still in use
    left_out: tuple[str, ...]  # names taken out of use, because the image is in a split that comes first
    class_names: tuple[str, ...]  # sorted; more than one means that the labels contradict each other


def drop_leaks(items: Sequence[Item]) -> tuple[list[Item], list[Duplicate]]:
    """Take an image out of train if val or a test set has it, out of val if a test set has it; report every copy."""
    by_hash: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.sha256:
            by_hash[item.sha256].append(item)
    duplicates, dropped = [], set()
    for copies in by_hash.values():
        if len(copies) < 2:
            continue
        first = min(_rank(item.split) for item in copies)
        out = {item.name for item in copies if _rank(item.split) > first}
        dropped |= out
        names = sorted(item.name for item in copies)
        classes = tuple(sorted({item.class_name for item in copies}))
        duplicates.append(
            Duplicate(tuple(n for n in names if n not in out), tuple(n for n in names if n in out), classes)
        )
    duplicates.sort(key=lambda duplicate: min(duplicate.kept))
    return [item for item in items if item.name not in dropped], duplicates


def fill_splits(
    items: Sequence[Item], *, val_fraction: float, test_fraction: float, seed: int, by_group: bool = True
) -> list[Item]:
    """Give every image a split: where no image has split test (then val), a share of the rest is held out.

    Each class gives `round(fraction * n)` images, at least one where it has two or more, never its last one. Copies
    of an image, and with `by_group` all images of a group, stay on one side. `test_fraction` counts the images of
    train and val together, `val_fraction` those left for training.
    """
    items = [replace(item, split=item.split or "train") for item in items]
    present = {item.split for item in items}
    if "test" not in present:
        base = Counter(item.class_name for item in items if item.split in ("train", "val"))
        items = _hold_out(items, "test", test_fraction, base=base, seed=seed, by_group=by_group)
    if "val" not in present:
        base = Counter(item.class_name for item in items if item.split == "train")
        items = _hold_out(items, "val", val_fraction, base=base, seed=seed, by_group=by_group)
    return items


def _hold_out(
    items: list[Item], split: Split, fraction: float, *, base: Mapping[str, int], seed: int, by_group: bool
) -> list[Item]:
    pool = [item for item in items if item.split == "train"]
    left = Counter(item.class_name for item in pool)
    need = {name: min(max(1, round(fraction * base[name])), count - 1) for name, count in left.items()}
    taken: Counter[str] = Counter()
    chosen: set[str] = set()

    def offer(unit: Sequence[Item], wanted: Callable[[Counter[str]], bool]) -> None:
        counts = Counter(item.class_name for item in unit)
        keeps_one = all(taken[name] + count < left[name] for name, count in counts.items())
        if keeps_one and unit[0].name not in chosen and wanted(counts):
            taken.update(counts)
            chosen.update(item.name for item in unit)

    def nearer(counts: Counter[str]) -> bool:
        gaps = ((need[name] - taken[name], count) for name, count in counts.items())
        return sum(abs(gap) - abs(gap - count) for gap, count in gaps) > 0

    units = sorted(_units(pool, by_group), key=lambda unit: seed_from(seed, split, min(item.name for item in unit)))
    for unit in units:
        offer(unit, nearer)
    for unit in sorted(units, key=len):  # large groups can leave a class without: the smallest that fits then
        offer(unit, lambda counts: any(need[name] > 0 and taken[name] == 0 for name in counts))
    return [replace(item, split=split) if item.name in chosen else item for item in items]


def _units(items: Sequence[Item], by_group: bool) -> list[list[Item]]:
    """Images that must stay together: equal bytes, or one group; connected by union-find."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        if item.sha256:
            parent[root(f"name:{item.name}")] = root(f"bytes:{item.sha256}")
        if by_group and item.group is not None:
            parent[root(f"name:{item.name}")] = root(f"group:{item.group}")
    units: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        units[root(f"name:{item.name}")].append(item)
    return list(units.values())


def train_limits(counts: Mapping[str, int], *, shots: int | None, imbalance: float | None) -> dict[str, int]:
    """How many training images each class keeps; `counts` are those it has.

    `shots` caps every class; `imbalance` r is the long tail of class-balanced loss (arXiv 1901.05555),
    n_k = max(int(n_max r^(-k/(C-1))), 1) over the sorted class names, n_max the largest capped class.

    >>> train_limits({"a": 100, "b": 100, "c": 100}, shots=None, imbalance=100)
    {'a': 100, 'b': 10, 'c': 1}
    """
    capped = {name: count if shots is None else min(count, shots) for name, count in sorted(counts.items())}
    if imbalance is None or not capped:
        return capped
    largest, last = max(capped.values()), max(len(capped) - 1, 1)
    tail = [max(int(largest * imbalance ** (-k / last) + 1e-9), 1) for k in range(len(capped))]  # 9.999... is 10
    return {name: min(count, limit) for (name, count), limit in zip(capped.items(), tail, strict=True)}


def take_shots(items: Sequence[Item], *, shots: int | None, imbalance: float | None, seed: int) -> list[Item]:
    """Keep some training images of each class; val and test stay whole.

    Nested: k shots are among the k + 1 shots of the same seed. Each class has its own permutation, from its name.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.split == "train":
            by_class[item.class_name].append(item.name)
    limits = train_limits({name: len(names) for name, names in by_class.items()}, shots=shots, imbalance=imbalance)
    kept = set()
    for class_name, names in by_class.items():
        order = np.random.default_rng(seed_from(seed, "shots", class_name)).permutation(len(names))
        kept |= {sorted(names)[index] for index in order[: limits[class_name]]}
    return [item for item in items if item.split != "train" or item.name in kept]


def groups_across(items: Sequence[Item]) -> list[str]:
    """Groups that occur in more than one split, sorted: what is learned of them leaks."""
    splits: dict[str, set[Split | None]] = defaultdict(set)
    for item in items:
        if item.group is not None:
            splits[item.group].add(item.split)
    return sorted(group for group, found in splits.items() if len(found) > 1)
