"""Decide which image becomes what: one row per image to make, in columns. Pure: no disk, no model.

gen draws from text; aug keeps a source's class, each source used equally often (Real Guidance, arXiv 2210.07574); edit does
too and follows an instruction (DiffuseMix, arXiv 2405.14881); mix moves a source into another class (Diff-Mix,
arXiv 2403.19600: there both were drawn independently and could coincide, here never). Everything is dealt in shuffled
rounds: every class has the same share of sources, prompts and strengths, and with aug and edit every source meets all
strengths, texts and styles before it meets one again. A plan for fewer images a class is the beginning of one for more.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from variegate.backends.base import executed_steps, quantised_strengths
from variegate.errors import DataError, Problem
from variegate.recipe import GenerateSection
from variegate.records import ID_CHARS, ClassInfo, RealImage, content_id, seed_from
from variegate.stages.generate.counts import images_per_class
from variegate.stages.generate.pool import PromptPool

FROM_TEXT = -1  # in the source column
DIGEST = 16  # bytes


@dataclass(frozen=True, slots=True)
class PlanBackend:
    """What planning needs of the backend."""

    identity: str  # hash of the model and of every setting that changes pixels
    steps: int
    levels: tuple[float, ...] | None
    batch: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows in drawing order, as columns of equal length; chunk k holds rows first[k] to first[k] + size[k]."""

    ids: list[str]
    source: np.ndarray  # int32, index into sources or FROM_TEXT
    target: np.ndarray  # int32, label
    prompt: np.ndarray  # int32, index into prompts
    strength: np.ndarray  # float64, (0, 1]
    steps: np.ndarray  # int32, executed
    seed: np.ndarray  # int64
    token_std: np.ndarray  # float64, noise on the learned tokens; 0 = none
    token_seed: np.ndarray  # int64, of that noise
    passes: np.ndarray  # int32, index into sequences
    first: np.ndarray  # int64 [chunk]
    size: np.ndarray  # int64 [chunk]
    sources: tuple[str, ...]  # RealImage.id
    masks: tuple[str, ...]  # by source: hash of what of it is repainted; "" = all of it
    sequences: tuple[tuple[float, ...], ...]  # strengths drawn one after another; () = the row's strength alone
    prompts: tuple[str, ...]
    negative: str

    def __len__(self) -> int:
        return len(self.ids)


def make_plan(
    classes: Sequence[ClassInfo],
    images: Sequence[RealImage],
    section: GenerateSection,
    pool: PromptPool,
    backend: PlanBackend,
    *,
    negative: str,
    seed: int,
    masks: Sequence[str] | None = None,
) -> Plan:
    """Plan every image; `images` are the real training images and `masks` the hashes of what of them is repainted.

    Raises DataError where the strategy lacks sources.

    The same arguments give the same plan in any process.
    """
    by_label = [np.flatnonzero([image.label == info.label for image in images]) for info in classes]
    counts = images_per_class([len(indices) for indices in by_label], section)
    problems = _missing_sources(classes, by_label, counts, section, pool)
    if problems:
        raise DataError(problems)
    target = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    ordinal = np.concatenate([np.arange(count) for count in counts]) if len(target) else np.zeros(0, np.int64)
    dealer = _Dealer(seed, [info.name for info in classes], counts)
    source = _sources(section, by_label, ordinal, dealer)
    if section.keeps_class:
        dealer.follow(source, by_label)
    passes, sequences = _sequences(section, dealer)
    if section.compose == "sequential":
        strength = np.array([max(one) for one in sequences])[passes]
        steps = np.array([sum(executed_steps(backend.steps, s) for s in one) for one in sequences], np.int32)[passes]
    else:
        strength = _strengths(section, dealer, backend)
        steps = executed_step_column(strength, backend.steps)
    prompt = _prompts(pool, source, target, by_label, dealer)
    order, first, size = _chunks(steps, passes, source, target, backend.batch)
    seeds = _seeds(seed, classes, target, ordinal)
    token_std, token_seed = _token_noise(section, classes, target, seeds, dealer)
    columns = [c[order] for c in (source, target, prompt, strength, steps, seeds, token_std, token_seed)]
    passes, more = passes[order], []
    source, target, prompt, strength, steps, seeds, token_std, token_seed = columns
    if masks is not None:
        more.append(_digests(masks)[source])
    if section.compose == "sequential":
        more.append(_digests([repr(one) for one in sequences])[passes])
    ids = _ids(images, classes, pool.texts, columns, more, f"{backend.identity}|{negative}")
    names = tuple(image.id for image in images)
    masks = tuple(masks) if masks is not None else ("",) * len(images)
    return Plan(
        ids, source, target, prompt, strength, steps, seeds, token_std, token_seed,
        passes, first, size, names, masks, sequences, pool.texts, negative,
    )  # fmt: skip


def executed_step_column(strength: np.ndarray, steps: int) -> np.ndarray:
    values, inverse = np.unique(strength, return_inverse=True)
    return np.array([executed_steps(steps, float(value)) for value in values], np.int32)[inverse]


# ------------------------------------------------------------------------------------------ dealing


class _Dealer:
    """Deals options to the rows of each class from streams named by class and purpose."""

    def __init__(self, seed: int, names: Sequence[str], counts: Sequence[int]) -> None:
        self.seed, self.names, self.counts = seed, names, counts
        self.place: np.ndarray | None = None  # of each row's source among its class's images, where it keeps the class
        self.num_sources = [0] * len(counts)

    def follow(self, source: np.ndarray, by_label: Sequence[np.ndarray]) -> None:
        """From now on deal to the sources: each meets every option before it meets one again."""
        own = np.split(source, np.cumsum(self.counts)[:-1])
        self.place = np.concatenate([np.searchsorted(all_, some) for all_, some in zip(by_label, own, strict=True)])
        self.num_sources = [len(all_) for all_ in by_label]

    def rng(self, label: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng(seed_from(self.seed, "plan", purpose, self.names[label]))

    def even(self, purpose: str, options: Sequence[int] | np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """For every row one of its class's options, each as often as the others; 0 where it is not `chosen`: int64 [row]."""
        dealt = np.zeros(sum(self.counts), np.int64)
        for c, rows in enumerate(np.split(np.arange(len(dealt)), np.cumsum(self.counts)[:-1])):
            mine, rng = rows if chosen is None else rows[chosen[rows]], self.rng(c, purpose)
            if self.place is None:
                dealt[mine] = deal(rng, options[c], len(mine))
            else:
                dealt[mine] = deal_to_sources(rng, options[c], self.place[mine], self.num_sources[c])
        return dealt

    def free(self, purpose: str, options: int, weights: Sequence[float] | None = None) -> np.ndarray:
        """For every row one of the options by chance, equal or as `weights` say: int64 [row]."""
        parts = []
        for label, count in enumerate(self.counts):
            rng = self.rng(label, purpose)
            if weights is None:
                parts.append(rng.integers(options, size=count))
            else:
                parts.append(rng.choice(options, size=count, p=np.array(weights) / sum(weights)))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def deal(rng: np.random.Generator, options: int, count: int) -> np.ndarray:
    """Shuffled rounds of 0..options-1, cut to `count`: every option as often as any other, within one."""
    if count == 0:
        return np.zeros(0, np.int64)
    rounds = -(-count // options)
    return rng.permuted(np.tile(np.arange(options), (rounds, 1)), axis=1).ravel()[:count]


def deal_to_sources(rng: np.random.Generator, options: int, place: np.ndarray, num_sources: int) -> np.ndarray:
    """0..options-1 for rows whose sources are `place` [row] of `num_sources`: a source meets all of them before it meets one
    again, and whenever every source has the same number of rows the options are even, too, within one."""
    if not len(place):
        return np.zeros(0, np.int64)
    blocks, turn = np.divmod(_occurrence(place), options)
    # The sources in random order take the options in turn, one round after the other. Where the rounds come round to the same
    # options before every source has met all, which is when all are even, one step more leads on to the others.
    common = math.gcd(num_sources, options)
    turn = rng.permutation(num_sources)[place] + turn * num_sources + turn * common // options
    orders = rng.permuted(np.tile(np.arange(options), (blocks.max() + 1, 1)), axis=1)
    return orders[blocks, turn % options]


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each one.

    >>> _occurrence(np.array([3, 1, 3, 3, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(first, np.diff(np.r_[first, len(values)]))
    return found


def _sources(
    section: GenerateSection, by_label: Sequence[np.ndarray], ordinal: np.ndarray, dealer: _Dealer
) -> np.ndarray:
    """Index of each row's source image, or FROM_TEXT."""
    if section.method.endswith("-gen") or section.method == "none":
        return np.full(sum(dealer.counts), FROM_TEXT, np.int32)
    if section.keeps_class:
        return _dealt_from(list(by_label), dealer, "source")
    allowed = _source_classes(section.referring, by_label, dealer.seed)
    if section.source_by == "image":
        others = [np.sort(np.concatenate([by_label[0][:0], *(by_label[own] for own in some)])) for some in allowed]
        return _dealt_from(others, dealer, "source")
    return _by_class(by_label, allowed, ordinal, dealer)


def _source_classes(referring: int | None, by_label: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """For each target the classes that its sources come from: all others with images, or `referring` of them.

    The classes stand on a ring in random order and each refers to as many after it. Diff-Mix's ablation draws a
    subset of targets for each source class: some classes are the target of many and some of none.
    """
    filled = np.array([label for label, own in enumerate(by_label) if len(own)])
    others = [filled[filled != label] for label in range(len(by_label))]
    if referring is None:
        return others
    place = np.random.default_rng(seed_from(seed, "plan", "referring")).permutation(len(by_label))
    steps = [(place[label] - place[own]) % len(by_label) for label, own in enumerate(others)]
    return [np.sort(own[np.argsort(step)[:referring]]) for own, step in zip(others, steps, strict=True)]


def _dealt_from(options: Sequence[np.ndarray], dealer: _Dealer, purpose: str) -> np.ndarray:
    parts = []
    for label, count in enumerate(dealer.counts):
        parts.append(options[label][deal(dealer.rng(label, purpose), len(options[label]), count)] if count else [])
    return np.concatenate(parts).astype(np.int32)


def _by_class(
    by_label: Sequence[np.ndarray], allowed: Sequence[np.ndarray], ordinal: np.ndarray, dealer: _Dealer
) -> np.ndarray:
    """First a class that the target's sources may come from, then one of its images; both dealt evenly.

    Images go to the first rows of every target first, so that more rows a class leave those as they are.
    """
    source_class = _dealt_from(allowed, dealer, "source-class")
    source = np.zeros(len(source_class), np.int32)
    for label in np.unique(source_class):
        rows = np.flatnonzero(source_class == label)
        rows = rows[np.argsort(ordinal[rows], kind="stable")]
        source[rows] = by_label[label][deal(dealer.rng(int(label), "source-image"), len(by_label[label]), len(rows))]
    return source


def _strengths(section: GenerateSection, dealer: _Dealer, backend: PlanBackend) -> np.ndarray:
    """Each row's strength; text-to-image and edits are strength 1."""
    if not section.from_image:
        return np.ones(sum(dealer.counts))
    if section.strength_policy == "uniform":
        low, high = sorted(section.strength)
        values = np.array(quantised_strengths(low, high, backend.steps, backend.levels))
    else:
        values = np.array(section.strength, np.float64)
    if section.strength_policy == "cycle":
        return values[dealer.even("strength", [len(values)] * len(dealer.counts))]
    return values[dealer.free("strength", len(values), section.strength_weights)]


def _sequences(section: GenerateSection, dealer: _Dealer) -> tuple[np.ndarray, tuple[tuple[float, ...], ...]]:
    """(index of each row's strengths, the lists of strengths), drawn one after another; one empty list when parallel.

    DA-Fusion's sequential composition (arXiv 2302.07944) takes each strength with its own probability. A row that takes
    none would be the real image again, so the draw is among the others: probabilities as they are given that one is taken.
    """
    count = sum(dealer.counts)
    if section.compose == "parallel":
        return np.zeros(count, np.int32), ((),)
    chances = section.probability * (len(section.strength) // len(section.probability))
    sequences, weights = [], []
    for taken in itertools.product((True, False), repeat=len(chances)):
        weight = math.prod(chance if one else 1.0 - chance for one, chance in zip(taken, chances, strict=True))
        if any(taken) and weight > 0.0:
            sequences.append(tuple(itertools.compress(section.strength, taken)))
            weights.append(weight)
    return dealer.free("passes", len(sequences), weights).astype(np.int32), tuple(sequences)


def _prompts(
    pool: PromptPool, source: np.ndarray, target: np.ndarray, by_label: Sequence[np.ndarray], dealer: _Dealer
) -> np.ndarray:
    """Texts, environments and styles dealt evenly and apart from each other, environments and styles among the rows whose
    text uses them; captions come from the source where it has the target's class, else from a dealt image of it."""
    text = dealer.even("text", pool.num_texts)
    places, styles = ([pool.table.shape[axis]] * len(dealer.counts) for axis in (2, 3))
    environment = dealer.even("environment", places, pool.uses_environment[target, text])
    style = dealer.even("style", styles, pool.uses_style[target, text])
    key = target
    if pool.per_image:
        labels = np.zeros(sum(len(own) for own in by_label), np.int64)
        for label, own in enumerate(by_label):
            labels[own] = label
        same = (source != FROM_TEXT) & (labels[source] == target)
        key = np.where(same, source, _dealt_from(by_label, dealer, "caption"))
    return pool.table[key, text, environment, style]


# ------------------------------------------------------------------------------------------ order and names


def _chunks(
    steps: np.ndarray, passes: np.ndarray, source: np.ndarray, target: np.ndarray, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(order of rows, first row of each chunk, size of each chunk): equal steps and passes a chunk, near sources together.

    A group is cut into equal parts of at most `batch`, so that no chunk is a costly leftover of one.
    """
    from_text = source == FROM_TEXT
    order = np.lexsort((target, source, from_text, passes, steps))
    if not len(order):
        return order, np.zeros(0, np.int64), np.zeros(0, np.int64)
    kind = (steps[order].astype(np.int64) * (passes.max() + 1) + passes[order]) * 2 + from_text[order]
    starts = np.flatnonzero(np.r_[True, kind[1:] != kind[:-1]])
    edges = []
    for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        parts = -(-(end - start) // batch)
        edges.append(start + (end - start) * np.arange(parts) // parts)
    first = np.concatenate(edges)
    return order, first, np.diff(np.r_[first, len(order)])


def _token_noise(
    section: GenerateSection, classes: Sequence[ClassInfo], target: np.ndarray, seeds: np.ndarray, dealer: _Dealer
) -> tuple[np.ndarray, np.ndarray]:
    """(std, seed) of the noise on each row's learned tokens: a row's own noise, or one draw a class and std (DIAGen)."""
    noise = section.token_noise
    if not noise.std:
        return np.zeros(len(target)), np.zeros(len(target), np.int64)
    level = dealer.even("token-noise", [len(noise.std)] * len(dealer.counts))
    std = np.array(noise.std)[level]
    if noise.policy == "fresh":
        return std, np.where(std > 0, seeds, 0)
    fixed = np.array(
        [
            [seed_from(dealer.seed, "token-noise", info.name, place) for place in range(len(noise.std))]
            for info in classes
        ],
        np.int64,
    )
    return std, np.where(std > 0, fixed[target, level], 0)


def _seeds(seed: int, classes: Sequence[ClassInfo], target: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
    """Noise seeds from the recipe's seed, the class and the row's number in it: strengths compare on the same noise."""
    bases = [hashlib.blake2b(content_id(seed, "noise", info.name).encode(), digest_size=8) for info in classes]
    seeds = np.empty(len(target), np.int64)
    for row, (label, number) in enumerate(zip(target.tolist(), ordinal.tolist(), strict=True)):
        base = bases[label].copy()
        base.update(number.to_bytes(8, "little"))
        seeds[row] = int.from_bytes(base.digest(), "little") >> 1
    return seeds


def _ids(
    images: Sequence[RealImage],
    classes: Sequence[ClassInfo],
    prompts: Sequence[str],
    columns: Sequence[np.ndarray],
    more: Sequence[np.ndarray],
    settings: str,
) -> list[str]:
    """Content ids: a hash over the hashes of source, class name and prompt, the row's numbers, and the common settings.

    `more`: digests [row, DIGEST] of what few recipes have, so that the ids of the others stay what they were.
    """
    source, target, prompt, *numbers = columns
    parts = [
        _digests([image.sha256 or image.id for image in images] + [""])[source],  # the last one is FROM_TEXT's
        _digests([info.name for info in classes])[target],
        _digests(list(prompts))[prompt],
        *(np.ascontiguousarray(column).view(np.uint8).reshape(len(target), -1) for column in numbers),
        *more,
    ]
    rows = np.concatenate(parts, axis=1)
    base = hashlib.blake2b(settings.encode(), digest_size=ID_CHARS // 2)
    ids = []
    for row in rows:
        digest = base.copy()
        digest.update(row)
        ids.append(digest.hexdigest())
    return ids


def _digests(texts: Sequence[str]) -> np.ndarray:
    data = b"".join(hashlib.blake2b(text.encode(), digest_size=DIGEST).digest() for text in texts)
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST)


def _missing_sources(
    classes: Sequence[ClassInfo],
    by_label: Sequence[np.ndarray],
    counts: Sequence[int],
    section: GenerateSection,
    pool: PromptPool,
) -> list[Problem]:
    where = "generate.method"
    if section.method.endswith("-mix") and sum(len(own) > 0 for own in by_label) < 2:
        return [Problem(where, f"{section.method} moves images between classes and only one has any", "use real-aug")]
    if not section.keeps_class and not pool.per_image:
        return []
    empty = [info.name for info, own, count in zip(classes, by_label, counts, strict=True) if count and not len(own)]
    text = (
        f"{section.method} needs a real training image of every class; {len(empty)} have none: {', '.join(empty[:3])}"
    )
    return [Problem(where, text, "add images, or use real-gen")] if empty else []
