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
@settings(deadline=None, max_examples=60)
def test_listed_strengths_are_balanced_for_every_source_and_inside_every_class(
    per_class: int, strengths: list[float]
) -> None:
    """A source never meets one again before it has met all; a class has each as often, within one in whole rounds."""
    plan = plan_of((3, 4), method="real-aug", per_class=per_class, strength=strengths)
    for label, num_sources in enumerate((3, 4)):
        mine = plan.target == label
        for source in set(plan.source[mine].tolist()):
            counts = Counter(plan.strength[mine & (plan.source == source)].tolist())
            assert max(counts.values()) - min(counts.get(value, 0) for value in strengths) <= 1
        counts = Counter(plan.strength[mine].tolist())
        apart = max(counts.values()) - min(counts.get(value, 0) for value in strengths)
        assert apart <= (1 if per_class % num_sources == 0 else 2)


@pytest.mark.parametrize("method", ["real-gen", "real-aug", "real-mix"])
@pytest.mark.parametrize("source_by", ["class", "image"])
def test_a_plan_for_fewer_images_is_the_beginning_of_one_for_more(method: str, source_by: str) -> None:
    """Nested subsets of a master set by size, as DasDiff cuts them: nothing is drawn twice."""
    source = {"source_by": source_by} if method == "real-mix" else {}
    few, more = (
        plan_of((5, 5, 4), method=method, per_class=count, strength=[0.5, 0.7, 0.9], **source) for count in (7, 31)
    )
    assert set(few.ids) < set(more.ids)


def test_styles_and_strengths_meet_in_many_pairs() -> None:
    """Each source goes through both, but not through both in the same order."""
    classes, images = data(6, 6)
    pool = parse_pool(lines_of(classes, [1, 1], 1, 4, first_is_plain=False), classes, images)
    section = GenerateSection(method="real-aug", per_real=4, strength=[0.2, 0.4, 0.6, 0.8])
    plan = make_plan(classes, images, section, pool, BACKEND, negative="", seed=0)
    styles = np.array([int(plan.prompts[k].rpartition("s")[2]) for k in plan.prompt])
    for source in range(12):
        mine = plan.source == source
        assert sorted(styles[mine].tolist()) == [0, 1, 2, 3]
        assert sorted(plan.strength[mine].tolist()) == [0.2, 0.4, 0.6, 0.8]
    assert len(set(zip(styles.tolist(), plan.strength.tolist(), strict=True))) > 10


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


def lines_of(
    classes: list[ClassInfo], texts: list[int], environments: int, styles: int, *, first_is_plain: bool
) -> list[str]:
    """Prompt lines: `texts` of each class, of which the first may use no environment."""
    rows = []
    for info, count in zip(classes, texts, strict=True):
        for text in range(count):
            places = [None] if first_is_plain and text == 0 else range(environments)
            rows += [
                {"label": info.label, "image": None, "text": text, "environment": e, "style": s,
                 "prompt": f"{info.label} t{text} e{e} s{s}"}
                for e in places for s in range(styles)
            ]  # fmt: skip
    return [json.dumps(row) for row in rows]


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=40)
def test_every_class_deals_its_own_texts_evenly_and_places_and_styles_too(
    texts: list[int], environments: int, styles: int, first_is_plain: bool, per_class: int
) -> None:
    classes, images = data(*[2] * len(texts))
    pool = parse_pool(lines_of(classes, texts, environments, styles, first_is_plain=first_is_plain), classes, images)
    section = GenerateSection(method="real-aug", per_class=per_class)
    plan = make_plan(classes, images, section, pool, BACKEND, negative="", seed=0)
    for label, count in enumerate(texts):
        said = [plan.prompts[k].split() for k in plan.prompt[plan.target == label]]
        assert {words[0] for words in said} == {str(label)}
        for column, options in ((1, count), (2, environments), (3, styles)):
            dealt = Counter(words[column] for words in said if words[column] != "eNone")
            assert len(dealt) <= options
            if dealt:
                apart = max(dealt.values()) - (min(dealt.values()) if len(dealt) == options else 0)
                assert apart <= 2  # one where every source has as many rows


def test_prompts_and_token_noise_meet_in_every_pair_where_diagens_shared_counter_skips_half() -> None:
    """DIAGen takes prompt n mod 10 and token n mod 4: only 20 of the 40 pairs ever occur."""
    classes, images = data(2, 2)
    pool = parse_pool(lines_of(classes, [10, 10], 1, 1, first_is_plain=False), classes, images)
    section = GenerateSection(method="ti-aug", per_class=400, token_noise={"std": [0.0, 0.005, 0.01, 0.025]})
    plan = make_plan(classes, images, section, pool, BACKEND, negative="", seed=0)
    pairs = set(zip(plan.prompt[plan.target == 0].tolist(), plan.token_std[plan.target == 0].tolist(), strict=True))
    assert len(pairs) == 40


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


# ------------------------------------------------------------------------------------------ edits, masks, sequences


def test_ids_of_plans_without_masks_and_sequences_stay_what_they_were() -> None:
    """Found by the version before edits, masks and sequences came: images drawn then are found again."""
    known = {
        "dee8196b11c115198c952b82": {"method": "real-aug", "strength_policy": "choice", "strength": [0.3, 0.7]},
        "676d4ae0ab2bdcf6fdd1983b": {"method": "real-gen"},
        "b278ddceb62953b359624fe9": {"method": "real-mix", "strength": [0.1, 0.4], "strength_policy": "uniform"},
    }
    assert {content_id(plan_of((3, 5), **section).ids): section for section in known.values()} == known


def test_an_edit_takes_every_image_once_a_round_and_all_steps() -> None:
    plan = plan_of((4, 4), method="edit", per_real=3, strength=0.3)
    assert set(Counter(plan.source.tolist()).values()) == {3} and (source_labels(plan) == plan.target).all()
    assert (plan.strength == 1.0).all() and (plan.steps == 25).all()


def test_an_unbalanced_edit_is_balanced_as_aug_is() -> None:
    edits, augs = (plan_of((2, 6), method=method, per_class=12) for method in ("edit", "real-aug"))
    assert sorted(edits.source.tolist()) == sorted(augs.source.tolist())


@given(st.integers(1, 60), st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=3, max_size=3))
@settings(deadline=None, max_examples=40)
def test_sequences_keep_their_order_and_never_are_empty(per_class: int, probability: list[float]) -> None:
    if not any(probability):
        return
    strengths = [0.75, 0.25, 0.5]
    plan = plan_of(
        (3, 3),
        method="real-aug",
        per_class=per_class,
        strength=strengths,
        compose="sequential",
        probability=probability,
    )
    never = {s for s, p in zip(strengths, probability, strict=True) if p == 0.0}
    always = {s for s, p in zip(strengths, probability, strict=True) if p == 1.0}
    for row in range(len(plan)):
        taken = plan.sequences[plan.passes[row]]
        assert taken and list(taken) == [s for s in strengths if s in taken]
        assert always <= set(taken) and not never & set(taken)
        assert plan.strength[row] == max(taken)
        assert plan.steps[row] == sum({0.75: 18, 0.25: 6, 0.5: 12}[s] for s in taken)
    for first, size in zip(plan.first, plan.size, strict=True):
        assert len(set(plan.passes[first : first + size].tolist())) == 1, "a chunk goes through one sequence"


def test_each_strength_of_a_sequence_comes_with_its_probability() -> None:
    plan = plan_of(
        (4, 4), method="real-aug", per_class=1000, strength=[0.5, 0.25], compose="sequential", probability=[0.8, 0.5]
    )
    taken = [plan.sequences[index] for index in plan.passes]
    some = 1 - 0.2 * 0.5  # rows that take neither would be the real image and are not planned
    assert abs(sum(0.5 in one for one in taken) / 2000 - 0.8 / some) < 0.03
    assert abs(sum(0.25 in one for one in taken) / 2000 - 0.5 / some) < 0.03
    whole, parallel = (
        plan_of((4, 4), method="real-aug", strength=[0.5, 0.25], compose=compose)
        for compose in ("sequential", "parallel")
    )
    assert whole.sequences == ((0.5, 0.25),) and not set(whole.ids) & set(parallel.ids)


def test_weighted_choice_takes_strengths_as_often_as_it_says() -> None:
    plan = plan_of(
        (4, 4), method="real-aug", per_class=1000, strength=[0.2, 0.6, 0.9], strength_policy="choice",
        strength_weights=[3, 1, 0],
    )  # fmt: skip
    counts = Counter(plan.strength.tolist())
    assert abs(counts[0.2] / 2000 - 0.75) < 0.03 and counts[0.9] == 0


def test_a_mask_is_part_of_the_id_of_its_own_rows_alone() -> None:
    classes, images = data(2, 2)
    section = GenerateSection(method="real-aug", mask="object")

    def ids(masks: list[str] | None) -> dict[int, set[str]]:
        plan = make_plan(classes, images, section, pool_of_names(classes), BACKEND, negative="", seed=0, masks=masks)
        assert plan.masks == tuple(masks or [""] * 4)
        return {k: {plan.ids[row] for row in np.flatnonzero(plan.source == k)} for k in range(4)}

    none, base, edited = ids(None), ids(["a", "b", "c", "d"]), ids(["a", "b", "c", "e"])
    assert all(base[k] == edited[k] for k in range(3)) and not base[3] & edited[3]
    assert not set.union(*none.values()) & set.union(*base.values())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "real-gen", "compose": "sequential", "strength": [0.5, 0.2]}, "needs an aug or mix method"),
        ({"compose": "sequential", "strength": 0.5}, "2 to 8 strengths"),
        ({"compose": "sequential", "strength": [0.5, 0.2], "strength_policy": "choice"}, "strength_policy cycle"),
        ({"compose": "sequential", "strength": [0.5, 0.2], "probability": [1.0, 0.5, 0.5]}, "one for each strength"),
        ({"compose": "sequential", "strength": [0.5, 0.2], "probability": 0}, "not all 0"),
        ({"probability": 0.5}, "probability is for compose: sequential"),
        ({"strength_weights": [1.0]}, "set it to choice"),
        (
            {"strength_policy": "choice", "strength": [0.5, 0.2], "strength_weights": [1.0]},
            "a weight for each strength",
        ),
        ({"mask_grow": 0.1}, "need a mask"),
        ({"mask_paste": True}, "need a mask"),
        ({"mask_from": "model"}, "need a mask"),
        ({"mask": "object", "mask_text": "a photo"}, "is for what is around the object"),
        ({"mask": "background", "mask_text": "a {name}"}, "uses unknown {name}"),
        ({"mask": "object", "method": "real-gen"}, "has none to start from"),
        ({"mask": "object", "method": "edit"}, "has none to start from"),
    ],
)
def test_contradicting_sections_are_refused(section: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateSection(**section)
