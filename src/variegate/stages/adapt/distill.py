"""Pairs for a one-step model: noised latents, and where its adapted many-step parent walks from there (arXiv 2101.02388).

Drawn in files of one noise level each, so that a stop loses at most one; every pair's noise comes from its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from variegate.backends.base import executed_steps, one_step_timestep, spec_id
from variegate.backends.devices import in_parts
from variegate.backends.diffusion import DiffusionBackend
from variegate.captions import captions_of
from variegate.files import write_atomic
from variegate.recipe import Recipe
from variegate.records import ClassInfo, RealImage, content_id, seed_from
from variegate.stages.adapt.fit import Views
from variegate.stages.adapt.sampling import image_weights
from variegate.stages.adapt.views import CACHE, fitting, read_cached

HELD_OUT_SHARE = 8  # one pair of so many is looked at only
PAIRS_PER_FILE = 64


def noise_levels(recipe: Recipe) -> tuple[float, ...]:
    """The strengths that will be drawn: pure noise, or those of the variants."""
    generate = recipe.generate
    return tuple(dict.fromkeys(generate.strength)) if generate.from_image else (1.0,)


def deal(labels: Sequence[int], num_pairs: int, seed: int) -> np.ndarray:
    """Which training image each pair starts from or is told of, every class as often as the next; int64 [num_pairs].

    >>> sorted(np.array([0, 0, 1])[deal([0, 0, 1], 4, 0)].tolist())
    [0, 0, 1, 1]
    """
    rng, weights = np.random.default_rng(seed), image_weights(labels, 1.0)
    order = rng.permutation(len(weights))
    places = (np.arange(num_pairs) + 0.5) / num_pairs
    return rng.permutation(order[np.minimum(np.searchsorted(np.cumsum(weights[order]), places), len(order) - 1)])


def pair_captions(
    recipe: Recipe,
    classes: Sequence[ClassInfo],
    images: Sequence[RealImage],
    placeholders: Sequence[str],
    seed: int,
) -> list[str]:
    """One caption a pair, in the words of drawing; where places are the data's groups, each pair's is drawn from all of them."""
    rng, groups = np.random.default_rng(seed), sorted({image.group for image in images if image.group})
    if groups:
        images = [replace(image, group=groups[rng.integers(len(groups))]) for image in images]
    texts = captions_of(recipe, classes, images, placeholders)
    return [own[rng.integers(len(own))] for own in texts]


def draw_pairs(
    parent: DiffusionBackend,
    sources: torch.Tensor,
    captions: Sequence[str],
    levels: Sequence[float],
    root: Path,
    *,
    flip: bool,
    seed: int,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[Views, Views]:
    """Pairs to learn from and pairs to look at; with `flip` their mirror images are second views.

    `sources`: scaled latents [N, C, h, w], one a pair, which count at levels below 1. Each file of pairs has one level,
    dealt in turn; what an earlier call left in the run's cache is read.
    """
    spec, starts, ends, times = parent.spec, [], [], []
    begun = hashlib.blake2b(sources.numpy().tobytes()).hexdigest()
    key = content_id("pairs", spec_id(spec), list(captions), list(levels), begun, seed, PAIRS_PER_FILE)
    for number, first in enumerate(range(0, len(captions), PAIRS_PER_FILE)):
        level, part = levels[number % len(levels)], slice(first, first + PAIRS_PER_FILE)
        path = root / CACHE / f"{key}-{number:05d}.safetensors"
        found = read_cached(path)
        if found is None:
            found = _draw(parent, sources[part], captions[part], level, [seed_from(seed, "pair", first + k)
                          for k in range(len(captions[part]))])  # fmt: skip
            write_atomic(path, save(found))
        starts.append(found["starts"])
        ends.append(found["ends"])
        times += [one_step_timestep(level, parent.num_train_timesteps)] * len(found["ends"])
        advance(len(found["ends"]))
    seen = _mirrored if flip else _alone
    whole = (seen(torch.cat(starts)), seen(torch.cat(ends)), torch.tensor(times))
    held_out = np.arange(len(captions)) % HELD_OUT_SHARE == HELD_OUT_SHARE - 1
    return _views(*whole, captions, ~held_out), _views(*whole, captions, held_out)


def _draw(
    parent: DiffusionBackend, sources: torch.Tensor, captions: Sequence[str], level: float, seeds: Sequence[int]
) -> dict[str, torch.Tensor]:
    spec, noise = parent.spec, parent.noise(seeds)
    given = None if level == 1.0 else sources.float()
    steps = executed_steps(spec.steps, level)

    def work(first: int, last: int) -> torch.Tensor:
        part, strengths = None if given is None else given[first:last], [level] * (last - first)
        return parent.draw_latents(
            captions[first:last], part, strengths=strengths, steps=steps, seeds=seeds[first:last]
        )

    with fitting("drawing pairs"):
        ends = torch.cat(in_parts(work, len(captions), len(captions), parent.free_memory))
    start = noise
    if given is not None:
        kept = parent.signal(one_step_timestep(level, parent.num_train_timesteps))
        start = kept**0.5 * given + (1 - kept) ** 0.5 * noise
    return {"starts": start.half().contiguous(), "ends": ends.cpu().half().clone(memory_format=torch.contiguous_format)}


def _alone(latents: torch.Tensor) -> torch.Tensor:
    return latents[:, None]


def _mirrored(latents: torch.Tensor) -> torch.Tensor:
    """[N, 2, C, h, w]: as it is, and mirrored; a pair mirrored as a whole is a pair as well."""
    return torch.stack([latents, latents.flip(-1)], dim=1)


def _views(
    starts: torch.Tensor, ends: torch.Tensor, times: torch.Tensor, captions: Sequence[str], chosen: np.ndarray
) -> Views:
    picked = torch.from_numpy(np.flatnonzero(chosen))
    count = max(len(picked), 1)
    return Views(
        latents=ends[picked],
        captions=[[captions[k]] for k in picked.tolist()],
        weights=np.full(len(picked), 1 / count),
        starts=starts[picked],
        times=times[picked],
    )
