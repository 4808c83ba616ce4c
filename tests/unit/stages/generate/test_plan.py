"""The plan: exact balance, the same table everywhere, rows that say everything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from variegate.errors import DataError
from variegate.recipe import GenerateSection
from variegate.records import ClassInfo, RealImage, content_id
from variegate.stages.generate.counts import fill_up, images_per_class
from variegate.stages.generate.plan import FROM_TEXT, Plan, PlanBackend, make_plan
from variegate.stages.generate.pool import parse_pool, pool_of_names

BACKEND = PlanBackend("settings", 25, None, 16)


def data(*counts: int) -> tuple[list[ClassInfo], list[RealImage]]:
    classes = [ClassInfo(label, f"class {label}", f"{label:04d}") for label in range(len(counts))]
    images = [
        RealImage(f"{label}-{k}", "", label, "train", sha256=content_id(label, k), caption=f"c{label}-{k}")
        for label, count in enumerate(counts)
        for k in range(count)
    ]
    return classes, images


def plan_of(
    counts: tuple[int, ...] = (5, 5, 5), *, backend: PlanBackend = BACKEND, seed: int = 0, **section: object
) -> Plan:
    classes, images = data(*counts)
    return make_plan(
        classes, images, GenerateSection(**section), pool_of_names(classes), backend, negative="", seed=seed
    )


def source_labels(plan: Plan) -> np.ndarray:
    return np.array([int(name.split("-")[0]) for name in plan.sources])[plan.source]


def spread(values: np.ndarray) -> int:
    counts = Counter(values.tolist()).values()
    return max(counts) - min(counts)


def test_aug_uses_every_source_equally_often_and_keeps_the_class() -> None:
    plan = plan_of((5, 5, 5), method="real-aug", per_real=7)
    assert len(plan) == 105
    assert (source_labels(plan) == plan.target).all()
    assert set(Counter(plan.source.tolist()).values()) == {7}
    uneven = plan_of((4, 5, 3), method="real-aug", per_class=10)
    assert all(spread(uneven.source[uneven.target == label]) <= 1 for label in range(3))


@pytest.mark.parametrize("source_by", ["class", "image"])
@pytest.mark.parametrize("referring", [1, 2, 4])
def test_referring_classes_are_as_many_for_every_target(source_by: str, referring: int) -> None:
    """Diff-Mix's ablation drew targets for each source class on its own: some targets had many sources, some none."""
    options = {"method": "real-mix", "per_class": 40, "source_by": source_by}
    plan = plan_of((3, 4, 5, 3, 3), **options, referring=referring)
    pairs = set(zip(source_labels(plan).tolist(), plan.target.tolist(), strict=True))
    assert all(source != target for source, target in pairs)
    assert Counter(target for _, target in pairs) == dict.fromkeys(range(5), referring)
    assert Counter(source for source, _ in pairs) == dict.fromkeys(range(5), referring)
    assert Counter(plan.target.tolist()) == dict.fromkeys(range(5), 40)
    if referring == 4:
        assert plan.ids == plan_of((3, 4, 5, 3, 3), **options).ids, "all others: nothing changes"
    else:
        other = plan_of((3, 4, 5, 3, 3), **options, referring=referring, seed=1)
        assert {*zip(source_labels(other).tolist(), other.target.tolist(), strict=True)} != pairs


@pytest.mark.parametrize("source_by", ["class", "image"])
def test_mix_balances_targets_and_never_keeps_the_class(source_by: str) -> None:
    plan = plan_of((2, 5, 11), method="real-mix", per_class=60, source_by=source_by)
    assert Counter(plan.target.tolist()) == {0: 60, 1: 60, 2: 60}
    assert (source_labels(plan) != plan.target).all()
    of_first = Counter(source_labels(plan)[plan.target == 0].tolist())
    if source_by == "class":
        assert of_first == {1: 30, 2: 30}
    else:  # 5 and 11 images: a share each
        assert of_first[1] in range(17, 21)


def test_gen_has_no_source_and_all_steps() -> None:
    plan = plan_of((3, 3), method="real-gen", per_real=2, strength=[0.3])
    assert (plan.source == FROM_TEXT).all() and (plan.strength == 1.0).all() and (plan.steps == 25).all()
    assert len(set(plan.seed.tolist())) == len(plan)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 200))
@settings(deadline=None, max_examples=60)
def test_need_fills_up_to_one_level(real: list[int], budget: int) -> None:
    drawn = fill_up(real, budget)
    totals = [a + b for a, b in zip(real, drawn, strict=True)]
    assert sum(drawn) == budget and min(drawn) >= 0
    filled = [total for total, count in zip(totals, drawn, strict=True) if count]
    assert not filled or (max(filled) - min(totals) <= 1)


def test_counts_a_class() -> None:
    assert images_per_class([10, 2, 1], GenerateSection(per_real=2)) == [9, 9, 9]
    assert images_per_class([10, 2, 1], GenerateSection(per_class=4)) == [4, 4, 4]
    assert images_per_class([10, 2, 1], GenerateSection(per_real=2, balance="need")) == [3, 11, 12]
    assert images_per_class([10, 2, 1], GenerateSection(method="none")) == [0, 0, 0]


@given(st.integers(1, 40), st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), min_size=1, max_size=5, unique=True))
@settings(deadline=None, max_examples=30)
def test_listed_strengths_are_exactly_balanced_inside_every_class(per_class: int, strengths: list[float]) -> None:
    plan = plan_of((3, 4), method="real-aug", per_class=per_class, strength=strengths)
    for label in range(2):
        counts = Counter(plan.strength[plan.target == label].tolist())
        assert max(counts.values()) - min(counts.get(value, 0) for value in strengths) <= 1


def test_choice_and_uniform_strengths() -> None:
    chosen = plan_of((5, 5), method="real-aug", per_class=200, strength=[0.3, 0.7], strength_policy="choice")
    assert 60 < Counter(chosen.strength.tolist())[0.3] / 2 < 140
    uniform = plan_of((5, 5), method="real-aug", per_class=200, strength=[0.3, 0.7], strength_policy="uniform")
    assert np.array_equal(uniform.steps, np.round(uniform.strength * 25))
    assert uniform.strength.min() >= 0.3 and uniform.strength.max() <= 0.7
    assert len(set(uniform.steps.tolist())) == 10


def test_texts_environments_and_sources_are_dealt_evenly_and_independently() -> None:
    classes, images = data(5, 5)
    environments = ["e0", "e1", "e2", "e3", "e4"]
    lines = [
        json.dumps({"label": c.label, "image": None, "text": t, "environment": e, "prompt": f"{c.name} t{t} {name}"})
        for c in classes
        for t in range(2)
        for e, name in enumerate(environments)
    ]
    pool = parse_pool(lines, classes, images)
    section = GenerateSection(method="real-aug", per_class=50)
    plan = make_plan(classes, images, section, pool, BACKEND, negative="", seed=0)
    for label in range(2):
        said = [plan.prompts[k] for k in plan.prompt[plan.target == label]]
        assert set(Counter(text.split()[2] for text in said).values()) == {25}
        assert set(Counter(text.split()[3] for text in said).values()) == {10}
        assert all(text.startswith(classes[label].name) for text in said)
    one = plan.source == 0
    assert len({plan.prompts[k] for k in plan.prompt[one]}) > 5  # a source meets many prompts


def test_captions_come_from_the_source_or_from_the_target_class() -> None:
    classes, images = data(3, 3)
    lines = [
        json.dumps({"label": i.label, "image": i.id, "text": 0, "environment": None, "prompt": i.caption})
        for i in images
    ]
    pool = parse_pool(lines, classes, images)
    aug = make_plan(classes, images, GenerateSection(method="real-aug"), pool, BACKEND, negative="", seed=0)
    assert [aug.prompts[k] for k in aug.prompt] == ["c" + aug.sources[k] for k in aug.source]
    mix = make_plan(classes, images, GenerateSection(method="real-mix"), pool, BACKEND, negative="", seed=0)
    assert [int(mix.prompts[k][1]) for k in mix.prompt] == mix.target.tolist()


@given(st.integers(1, 50), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_chunks_are_equal_parts_of_one_kind(per_class: int, batch: int) -> None:
    backend = PlanBackend("settings", 25, None, batch)
    plan = plan_of((4, 4), backend=backend, method="real-mix", per_class=per_class, strength=[0.3, 0.7])
    assert plan.first.tolist() == np.r_[0, np.cumsum(plan.size)[:-1]].tolist()
    assert plan.size.sum() == len(plan) and plan.size.max() <= batch
    by_steps: dict[int, list[int]] = {}
    for first, size in zip(plan.first, plan.size, strict=True):
        [steps] = set(plan.steps[first : first + size].tolist())
        by_steps.setdefault(steps, []).append(int(size))
    assert all(max(sizes) - min(sizes) <= 1 for sizes in by_steps.values())


def test_an_id_changes_with_everything_that_changes_the_image() -> None:
    base = set(plan_of(method="real-aug", per_real=2, strength=[0.5]).ids)
    assert len(base) == 30
    assert base == set(plan_of(method="real-aug", per_real=2, strength=[0.5]).ids)
    assert base == set(
        plan_of(method="real-aug", per_real=2, strength=[0.5], backend=PlanBackend("settings", 25, None, 3)).ids
    )
    others = [
        plan_of(method="real-aug", per_real=2, strength=[0.54]),
        plan_of(method="real-aug", per_real=2, strength=[0.5], seed=1),
        plan_of(method="real-gen", per_real=2),
        plan_of(method="real-aug", per_real=2, strength=[0.5], backend=PlanBackend("other", 25, None, 16)),
    ]
    assert all(not base & set(other.ids) for other in others)


def test_strengths_are_compared_on_the_same_noise() -> None:
    low, high = (plan_of(method="real-aug", per_real=2, strength=[s]) for s in (0.3, 0.9))
    assert sorted(low.seed.tolist()) == sorted(high.seed.tolist())


def test_impossible_strategies_are_refused() -> None:
    with pytest.raises(DataError, match="only one has any — use real-aug"):
        plan_of((5,), method="real-mix")
    with pytest.raises(DataError, match="1 have none: class 1"):
        plan_of((5, 0), method="real-aug")
    assert len(plan_of((5, 0), method="real-gen", per_class=2)) == 4
    assert len(plan_of((5, 0, 5), method="real-mix", per_class=2)) == 6


def test_any_process_plans_the_same() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_plan import digest; print(digest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "77")
    }
    assert found == {digest()}


def digest() -> str:
    plan = plan_of((3, 7, 2), method="real-mix", per_real=9, strength=[0.3, 0.5, 0.9])
    columns = (plan.source, plan.target, plan.prompt, plan.strength, plan.steps, plan.seed, plan.first, plan.size)
    return hashlib.sha256(repr(plan.ids).encode() + b"".join(column.tobytes() for column in columns)).hexdigest()
