"""Masks where the data have none: where the drawing model's prediction depends on what an image is of.

DiffEdit (arXiv 2210.11427): an image is noised half-way, and what the model predicts told of one thing and of another differs
where they do. Here it is told what adapting says of the image, and of its surroundings alone. DiffEdit takes half of the range
as threshold, which on the meadow lost half of every object; Otsu's on logarithms needs no scale (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.backends.adapter import ADAPTER, parts_used, read_adapter
from variegate.backends.base import BackendSpec
from variegate.captions import telling_of
from variegate.files import write_atomic
from variegate.images import encode_image, load_squares
from variegate.masks import found_mask_path
from variegate.pipeline import Context
from variegate.records import RealImage, content_id
from variegate.store import RunFolder
from variegate.templates import placeholders

BINS = 128
MOST_PX = 128  # edge at which an object's edge is looked for
TURNS, COLOURS, FITTED = 4, 5, 800  # colours of a mixture, and the pixels it is fitted to
FEWEST = 50  # pixels that a mixture is fitted to
SURE = 1.0  # what the object's own must have: a rim of the old surroundings tells images apart, not classes
HOLES = 0.25  # of the object that belong to it; larger ones are surroundings seen through it
MOST = 4.0  # that colours say, in logarithms, to one unit of the difference
FOUND = 0.72  # separability, the median over images; a bell has 0.64, the meadow 0.78, photos by a model of butterflies 0.65 to 0.68
SEPARABILITY = "mask_separability"  # meta key
_SLICE = 256  # images whose pixels are held at a time


def told_of(context: Context, images: Sequence[RealImage]) -> list[tuple[str, str]]:
    """What the model is told of each image: its caption, and its surroundings alone ("" where nobody knows them)."""
    recipe, folder = context.recipe, context.folder
    tokens: tuple[str, ...] = ()
    if parts_used(recipe.generate.method) != "none":
        facts = read_adapter(folder.path(ADAPTER))
        tokens, superclass = facts.placeholders, recipe.adapt.superclass or facts.superclass
        recipe = recipe.model_copy(update={"adapt": recipe.adapt.model_copy(update={"superclass": superclass})})
    telling = telling_of(recipe, folder.classes(), images, tokens)
    texts = recipe.prompts.texts
    naming = next((k for k, text in enumerate(texts) if placeholders(text) & {"name", "description"}), 0)
    return [(telling.of(k, naming), telling.images[k][2]) for k in range(len(images))]


def with_class_masks(context: Context, spec: BackendSpec, images: Sequence[RealImage]) -> list[RealImage]:
    """The images with squares of `spec.size_px` as masks, in the run's masks/; made once, by the model that draws."""
    folder, section = context.folder, context.recipe.dataset
    classes = folder.classes()
    paths = [folder.path(found_mask_path(classes[image.label], image.id)) for image in images]
    told = told_of(context, images)
    key = content_id(
        *(spec.fingerprint, spec.adapter_hash, spec.dtype, spec.size_px, section.fit, told),
        [(image.id, image.sha256) for image in images],
    )
    if folder.meta("class_masks") != key or not all(path.is_file() for path in paths):
        from variegate.backends.diffusion import DiffusionBackend

        separabilities: list[float] = []
        with (
            DiffusionBackend.open(spec) as backend,
            context.reporter.bar("finding what images are of", len(images)) as bar,
        ):
            for first in range(0, len(images), _SLICE):
                some = slice(first, first + _SLICE)
                files = [Path(image.path) for image in images[some]]
                squares = load_squares(files, spec.size_px, section.fit, section.max_megapixels)
                differences = backend.differences(squares, *zip(*told[some], strict=True), advance=bar.advance)
                separabilities += [separability(difference) for difference in differences]
                for path, difference, square in zip(paths[some], differences, squares, strict=True):
                    mask = object_mask(difference, square)
                    write_atomic(path, encode_image(mask[..., None].repeat(3, axis=2) * np.uint8(255), "png"))
        folder.set_meta("class_masks", key)
        folder.set_meta(SEPARABILITY, str(np.median(separabilities)))
    return [replace(image, mask=str(path)) for image, path in zip(images, paths, strict=True)]


def mask_warnings(folder: RunFolder) -> list[str]:
    """What the masks in the run are worth, where they are guesses."""
    found = folder.meta(SEPARABILITY)
    if found is None or float(found) >= FOUND:
        return []
    text = f"masks are guesses: the model hardly tells what an image is of from its surroundings ({float(found):.2f}, less than {FOUND})"
    return [
        f"{text}; look at what they keep, give masks (generate.mask_from=data), or draw whole images (generate.mask=none)"
    ]


def separability(difference: np.ndarray) -> float:
    """How far an image falls into two parts, in [0, 1]: the share of the variance of logarithms that lies between them (Otsu 1979).

    float32 [h, w] of no negative values. A bell, which has no two parts, comes to 2/pi.
    """
    logarithm = np.log(np.maximum(difference, max(float(difference.max()), 1e-6) * 1e-4))
    is_above = logarithm > otsu_threshold(logarithm)
    if is_above.all() or not is_above.any():
        return 0.0
    gap = logarithm[is_above].mean() - logarithm[~is_above].mean()
    return float(is_above.mean() * (~is_above).mean() * gap**2 / logarithm.var())


def object_mask(difference: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Where the object of uint8 [S, S, 3] is: bool [S, S], from float32 [h, w] of no negative values, large inside it.

    The difference is as coarse as the latents. Mixtures of the colours inside and outside find the edge, in turns with the
    split they make, as in GrabCut (Rother et al. 2004); a blur stands in for its graph cut.
    """
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    edge = min(len(square), MOST_PX)
    colours = np.asarray(Image.fromarray(square).resize((edge, edge), Image.Resampling.BOX)).reshape(-1, 3) / 255.0
    larger = Image.fromarray(difference.astype(np.float32)).resize((edge, edge), Image.Resampling.BICUBIC)
    least = max(float(difference.min()) / 2, 1e-6)  # a cubic passes below what it goes through
    logarithm = np.log(np.maximum(np.asarray(larger), least))
    evidence = (logarithm - otsu_threshold(logarithm)) / max(float(logarithm.std()), 1e-6)
    inside = sure = evidence > 0
    for _ in range(TURNS):
        parts = [colours[part.ravel()] for part in (inside, ~inside)]
        if min(len(part) for part in parts) < FEWEST:
            break
        own, other = (_likelihood(part, colours).reshape(evidence.shape) for part in parts)
        both = gaussian_filter(np.clip(own - other, -MOST, MOST) + evidence, edge / 64)
        if (both > 0).all() or not (both > SURE).any():
            break
        inside, sure = both > 0, both > SURE
    filled = binary_fill_holes(sure)
    is_whole = not filled.all() and filled.sum() <= (1 + HOLES) * sure.sum()
    shown = Image.fromarray((filled if is_whole else sure).astype(np.uint8) * 255)
    return np.asarray(shown.resize(square.shape[:2], Image.Resampling.BILINEAR)) >= 128


def _likelihood(some: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The logarithm of how likely colours [N, 3] are among `some` others [M, 3], by a mixture of normal distributions."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    some = some[np.random.default_rng(0).permutation(len(some))[:FITTED]]
    mixture = GaussianMixture(COLOURS, reg_covar=1e-3, init_params="k-means++", random_state=0, max_iter=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten rounds do
        return mixture.fit(some).score_samples(colours)


def otsu_threshold(values: np.ndarray) -> float:
    """The value that splits numbers into the two groups whose means are farthest apart for their sizes (Otsu 1979).

    >>> 1.0 < otsu_threshold(np.array([0.9, 1.0, 1.0, 4.9, 5.0])) < 4.9
    True
    """
    counts, edges = np.histogram(values, BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    above = counts.sum() - below
    gap = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * gap**2
    return float(edges[1:-1][between == between.max()].mean())  # the middle of a gap that no value lies in
