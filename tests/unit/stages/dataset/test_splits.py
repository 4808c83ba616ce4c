"""Who is in which split: rules that hold for every data set and seed."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from variegate.stages.dataset.splits import Item, drop_leaks, fill_splits, groups_across, take_shots, train_limits


def images(counts: dict[str, int], split=None, **fields) -> list[Item]:
    return [Item(f"{split or ''}{name}/{k}", name, split, **fields) for name, n in counts.items() for k in range(n)]


def fill(items, seed=0, val_fraction=0.2, test_fraction=0.3, **options):
    return fill_splits(items, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, **options)


def count(items) -> Counter:
    return Counter((item.split, item.class_name) for item in items)


def test_shares_are_stratified():
    found = count(fill(images({"a": 100, "b": 10})))
    assert [found[split, "a"] for split in ("train", "val", "test")] == [56, 14, 30]
    assert [found[split, "b"] for split in ("train", "val", "test")] == [6, 1, 3]


def test_given_splits_are_kept():
    items = images({"a": 4, "b": 4}, "train") + images({"a": 4, "b": 4}, "test")
    filled = fill(items)
    assert [item.name for item in filled if item.split == "test"] == [
        item.name for item in items if item.split == "test"
    ]
    assert count(filled)["val", "a"] == 1
    again = fill(items + images({"a": 1}, "val"))
    assert count(again)["val", "b"] == 0


def test_a_single_image_stays_for_training():
    filled = fill(images({"a": 1, "b": 2, "c": 3}))
    found = count(filled)
    assert (found["train", "a"], found["train", "b"], found["train", "c"]) == (1, 1, 1)
    assert (found["test", "b"], found["test", "c"], found["val", "c"]) == (1, 1, 1)


def test_the_seed_decides_and_other_classes_do_not_matter():
    items = images({"a": 30, "b": 30})
    first = {item.name: item.split for item in fill(items)}
    assert first == {item.name: item.split for item in fill(items[::-1])}
    assert first != {item.name: item.split for item in fill(items, seed=1)}
    with_more = {item.name: item.split for item in fill(items + images({"c": 7, "z": 9}))}
    assert {name: split for name, split in with_more.items() if name in first} == first


@pytest.mark.parametrize("case", range(60))
def test_no_class_loses_its_last_training_image(case):
    rng = np.random.default_rng(case)
    counts = {name: int(rng.integers(1, 13)) for name in "abcdef"[: rng.integers(1, 7)]}
    val, test = rng.uniform(0.01, 0.99, 2)
    filled = fill(images(counts), case % 5, val, test)
    assert sorted(item.name for item in filled) == sorted(item.name for item in images(counts))
    trained = {item.class_name for item in filled if item.split == "train"}
    assert trained == set(counts)


@pytest.mark.parametrize("case", range(100))
def test_groups_and_copies_stay_on_one_side(case):
    rng = np.random.default_rng(case)
    items = [
        Item(
            f"{k}", str(rng.choice([*"abc"])), None, rng.choice([None, *"uvwxyz"]), str(rng.choice(["", *"123456789"]))
        )
        for k in range(rng.integers(1, 41))
    ]
    filled = fill(items, case)
    sides = defaultdict(set)
    for item in filled:
        sides["group", item.group].add(item.split)
        sides["bytes", item.sha256].add(item.split)
    assert groups_across(filled) == []
    assert all(len(splits) == 1 for (kind, value), splits in sides.items() if value)
    assert {item.class_name for item in filled if item.split == "train"} == {item.class_name for item in items}


def test_groups_are_held_out_whole_but_every_class_gets_some():
    items = [Item(f"{name}/{k}", name, None, f"{name}{k // 5}") for name in "ab" for k in range(20)]
    found = count(fill(items))
    assert all(found[split, name] in (5, 10, 15) for name in "ab" for split in ("train", "val", "test"))
    free = count(fill(items, by_group=False))
    assert free["test", "a"] == 6


# ---------------------------------------------------------------------------------------------------- copies


def test_a_copy_in_train_makes_way_for_test():
    items = [
        Item("train/1", "a", "train", sha256="x"),
        Item("val/1", "a", "val", sha256="x"),
        Item("test/1", "a", "test", sha256="x"),
        Item("train/2", "a", "train", sha256="y"),
        Item("val/2", "b", "val", sha256="y"),
        Item("train/3", "a", "train"),
        Item("train/4", "a", "train"),
    ]
    left, duplicates = drop_leaks(items)
    assert [item.name for item in left] == ["test/1", "val/2", "train/3", "train/4"]
    assert [(d.kept, d.left_out) for d in duplicates] == [
        (("test/1",), ("train/1", "val/1")),
        (("val/2",), ("train/2",)),
    ]
    assert duplicates[1].class_names == ("a", "b")


def test_extra_test_images_are_never_trained_on_and_may_be_in_two_test_sets():
    def one(name, split):
        return Item(name, "a", split, sha256=name[-1])

    items = [one("train/x", "train"), one("train/y", "train"), one("val/z", "val"), one("test/x", "test")]
    items += [one("odd/x", "test_odd"), one("odd/y", "test_odd"), one("odd/z", "test_odd"), one("train/w", "train")]
    kept, duplicates = drop_leaks(items)
    assert [item.name for item in kept] == ["test/x", "odd/x", "odd/y", "odd/z", "train/w"]
    assert {duplicate.left_out for duplicate in duplicates} == {("train/x",), ("train/y",), ("val/z",)}
    filled = fill(images({"a": 10}) + images({"a": 5}, "test_odd"))
    assert count(filled) == {("train", "a"): 6, ("val", "a"): 1, ("test", "a"): 3, ("test_odd", "a"): 5}


def test_a_tail_longer_than_a_class_takes_what_there_is():
    """Diff-Mix's random.sample raises where a class has fewer images than its place in the tail; its exponent k / (C - 2)
    also leaves the last class fewer than 1 / factor."""
    counts = {"a": 100, "b": 3, "c": 100}
    assert train_limits(counts, shots=None, imbalance=10) == {"a": 100, "b": 3, "c": 10}
    items = images(counts, "train")
    assert count(take_shots(items, shots=None, imbalance=10, seed=0)) == {
        ("train", "a"): 100,
        ("train", "b"): 3,
        ("train", "c"): 10,
    }


def test_copies_inside_a_split_stay():
    items = [Item("1", "a", None, sha256="x"), Item("2", "a", None, sha256="x")]
    left, (duplicate,) = drop_leaks(items)
    assert left == items
    assert (duplicate.kept, duplicate.left_out) == (("1", "2"), ())


# ---------------------------------------------------------------------------------------------------- shots, tails


def test_shots_are_nested_and_leave_val_and_test_alone():
    items = fill(images({"a": 40, "b": 3, "c": 20}))
    held_out = [item for item in items if item.split != "train"]
    before: set[str] = set()
    for shots in range(1, 12):
        taken = take_shots(items, shots=shots, imbalance=None, seed=0)
        names = {item.name for item in taken if item.split == "train"}
        assert before <= names
        assert [item for item in taken if item.split != "train"] == held_out
        assert count(taken)["train", "a"] == shots
        before = names


def test_shots_of_a_class_do_not_depend_on_the_others():
    alone = take_shots(images({"a": 30}, "train"), shots=4, imbalance=None, seed=3)
    among = take_shots(images({"A": 5, "a": 30, "b": 9}, "train"), shots=4, imbalance=None, seed=3)
    assert {item.name for item in alone} == {item.name for item in among if item.class_name == "a"}
    other = take_shots(images({"a": 30}, "train"), shots=4, imbalance=None, seed=4)
    assert {item.name for item in alone} != {item.name for item in other}


def test_everything_stays_without_shots_or_imbalance():
    items = images({"a": 3, "b": 5}, "train")
    assert take_shots(items, shots=None, imbalance=None, seed=0) == items


@pytest.mark.parametrize(
    ("counts", "shots", "imbalance", "wanted"),
    [
        ({"a": 100, "b": 100, "c": 100}, None, 100, [100, 10, 1]),
        ({"a": 50, "b": 100, "c": 100}, None, 100, [50, 10, 1]),
        ({"a": 100, "b": 100}, 10, 10, [10, 1]),
        ({"a": 100, "b": 4}, 5, None, [5, 4]),
        ({"a": 5, "b": 5}, None, 100, [5, 1]),
        ({"b": 100, "a": 100}, None, 10, [100, 10]),
        ({"a": 7}, None, 10, [7]),
        ({}, 5, 10, []),
    ],
)
def test_long_tails(counts, shots, imbalance, wanted):
    limits = train_limits(counts, shots=shots, imbalance=imbalance)
    assert list(limits.values()) == wanted
    assert list(limits) == sorted(counts)
