"""Are drawn images copies of training images? Nearest distances against those among the real images. Pure."""

from __future__ import annotations

import numpy as np

EDGE = 32  # px; below this drawing and JPEG noise no longer count
SUSPICIOUS = 0.5  # of the smallest distance between two real images


def nearest_distances(drawn: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Root mean squared difference of each drawn image to the nearest real one or its mirror image, float64 [N], in [0, 1].

    Both uint8 [N, S, S, 3].
    """
    small, known = _small(drawn), _small(np.concatenate([real, real[:, :, ::-1]]))
    squares = (small**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * small @ known.T
    return np.sqrt(np.clip(squares, 0, None).min(1) / small.shape[1])


def count_copies(drawn: np.ndarray, real: np.ndarray) -> int:
    """Drawn images that are nearer to a training image than half of what any two training images are apart."""
    if len(real) < 2:
        return 0
    apart = min(
        float(nearest_distances(real[k : k + 1], np.delete(real, k, axis=0))[0]) for k in range(min(len(real), 200))
    )
    return int((nearest_distances(drawn, real) < SUSPICIOUS * apart).sum())


def _small(pixels: np.ndarray) -> np.ndarray:
    """Block means, float64 [N, EDGE * EDGE * 3] in [0, 1]."""
    count, edge = len(pixels), pixels.shape[1]
    factor = max(edge // EDGE, 1)
    kept = edge // factor * factor
    blocks = pixels[:, :kept, :kept].reshape(count, kept // factor, factor, kept // factor, factor, 3)
    return blocks.mean((2, 4)).reshape(count, -1) / 255.0
