"""A fractal laid over each picture: DiffuseMix's A = (1 - w) H + w F (arXiv 2405.14881). Pure.

The weight is the fractal's share of the pixels and nothing else. gdl_term used it as the share of the image's own
class, so that 0.8 of the label went to another class at random; here no label is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from variegate.fractals import draw_fractals
from variegate.recipe import FractalStep
from variegate.stages.refine.batch import Batch, mix


def overlay_fractal(step: FractalStep, batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
    """Images have to be square: fractals are."""
    low, high = step.weight[0], step.weight[-1]
    weights = np.array([rng.uniform(low, high) for rng in rngs], np.float32)
    fractals = draw_fractals([int(rng.integers(2**63)) for rng in rngs], batch.pixels.shape[1], step.kinds)
    return replace(batch, pixels=mix(batch.pixels, fractals, weights[:, None, None, None]))
