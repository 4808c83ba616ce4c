"""Draw fractals from seeds: iterated function systems, flames and Julia sets. No picture set is needed.

DiffuseMix (arXiv 2405.14881) blends a fractal into each image and ships none; formula-driven pretraining draws
them (iterated function systems: arXiv 2101.08515, contraction control: arXiv 2110.03091; flames: Draves 2003).
A seed gives its picture whatever is drawn beside it: batches are for speed alone. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

Kind = Literal["ifs", "flame", "julia"]
KINDS: tuple[Kind, ...] = ("ifs", "flame", "julia")

MIN_SIZE_PX = 8
ATTEMPTS = 40  # about one draw in six is rejected
_MAPS = 6  # affine maps of a system: 2 to this many
_STEPS, _UNSETTLED = 64, 16  # chaos game: steps that count, and steps before a point is on the attractor
_POINTS_PER_PIXEL = 8
_BLOCK_POINTS = 1 << 20  # points in memory at a time
_FLAME_STRETCH = 1.3
_ESCAPE_STEPS, _ESCAPE = 48, 64.0  # Julia: iterations, and the squared radius that counts as gone
_NUM_UNIFORM = 64  # uniform numbers that fix a picture's parameters
_SPREAD_LEVELS, _LARGEST_SHARE = 14.0, 0.8  # nearly blank: less contrast than this, or more pixels of one grey level

Points = tuple[np.ndarray, np.ndarray]


def draw_fractals(seeds: Sequence[int], size_px: int, kinds: Sequence[Kind] = KINDS) -> np.ndarray:
    """One fractal for each seed: uint8 [N, size_px, size_px, 3].

    `kinds` are equally likely. Nearly blank pictures are drawn again from the same seed's next parameters. Raises
    ValueError for a size under 8 px, an unknown kind or none.

    >>> draw_fractals([1, 2], 16).shape
    (2, 16, 16, 3)
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds is {list(kinds)}, should be some of {', '.join(KINDS)}")
    if size_px < MIN_SIZE_PX:
        raise ValueError(f"size_px is {size_px}, should be at least {MIN_SIZE_PX}")
    pictures = np.empty((len(seeds), size_px, size_px, 3), np.uint8)
    left = np.arange(len(seeds))
    for attempt in range(ATTEMPTS):
        for block in _blocks(left, size_px):
            pictures[block] = _draw([np.random.default_rng([seeds[i], attempt]) for i in block], size_px, kinds)
        left = left[is_nearly_blank(pictures[left])] if len(left) else left
        if not len(left):
            return pictures
    raise RuntimeError(f"seed {seeds[left[0]]} gave {ATTEMPTS} nearly blank fractals of {', '.join(kinds)}")


def is_nearly_blank(pictures: np.ndarray) -> np.ndarray:
    """Whether there is next to nothing to see: uint8 [N, H, W, 3] to bool [N]."""
    grey = pictures.astype(np.float32).mean(axis=3).reshape(len(pictures), -1)
    level = (grey / 8.0).astype(np.int64) + 32 * np.arange(len(pictures))[:, None]
    largest = np.bincount(level.ravel(), minlength=32 * len(pictures)).reshape(-1, 32).max(axis=1) / grey.shape[1]
    return (grey.std(axis=1) < _SPREAD_LEVELS) | (largest > _LARGEST_SHARE)


def _blocks(left: np.ndarray, size_px: int) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_POINTS // (_POINTS_PER_PIXEL * size_px**2))
    for start in range(0, len(left), step):
        yield left[start : start + step]


def _draw(rngs: Sequence[np.random.Generator], size_px: int, kinds: Sequence[Kind]) -> np.ndarray:
    """Pictures of all kinds at once: the escape-time ones together, the chaos games together."""
    uniform = np.stack([rng.random(_NUM_UNIFORM) for rng in rngs])
    kind = np.array([kinds[int(share * len(kinds))] for share in uniform[:, 0]])
    is_julia = kind == "julia"
    pictures = np.empty((len(rngs), size_px, size_px, 3), np.uint8)
    if is_julia.any():
        pictures[is_julia] = _julia(uniform[is_julia], size_px)
    if not is_julia.all():
        games = [rng for rng, other in zip(rngs, is_julia, strict=True) if not other]
        pictures[~is_julia] = _chaos_game(uniform[~is_julia], kind[~is_julia] == "flame", games, size_px)
    return pictures


# ------------------------------------------------------------------------------------------------ colours


def _palettes(uniform: np.ndarray) -> np.ndarray:
    """Cyclic cosine palettes: [N, 12] numbers in [0, 1) to float32 [N, 256, 3] in [0, 255]."""
    where = np.linspace(0.0, 1.0, 256, endpoint=False)[None, :, None]
    middle, height = 0.4 + 0.25 * uniform[:, None, 0:3], 0.25 + 0.25 * uniform[:, None, 3:6]
    turns, phase = 0.6 + 1.2 * uniform[:, None, 6:9], uniform[:, None, 9:12]
    waves = middle + height * np.cos(2.0 * np.pi * (turns * where + phase))
    return (255.0 * waves.clip(0.0, 1.0)).astype(np.float32)


def _look_up(palettes: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Colours at places in [0, 1]: float32 [N, 256, 3] and [N, S] to [N, S, 3]."""
    index = (where * 255.0).clip(0.0, 255.0).astype(np.int64) + 256 * np.arange(len(palettes))[:, None]
    return palettes.reshape(-1, 3)[index]


# ------------------------------------------------------------------------------------------------ Julia sets


def _julia(uniform: np.ndarray, size_px: int) -> np.ndarray:
    """z -> z^p + c with c just outside the main body of the p-th Mandelbrot set, coloured by smooth escape time."""
    count, num_pixels = len(uniform), size_px**2
    power = np.array([2, 2, 3, 4])[(uniform[:, 1] * 4).astype(np.int64)]
    # On the body's rim the fixed point z has multiplier p z^(p-1) = e^(i angle), so c = z - z^p.
    angle = 2.0 * np.pi * uniform[:, 2]
    fixed = (np.exp(1j * angle) / power) ** (1.0 / (power - 1))
    c = (fixed - fixed**power) * (1.0 + 0.01 + 0.12 * uniform[:, 3])
    line = (np.arange(size_px) + 0.5) / size_px * 2.0 - 1.0
    corner = (line[None, :] + 1j * line[:, None]).ravel()
    turn = (0.5 + 0.9 * uniform[:, 4]) * np.exp(2j * np.pi * uniform[:, 5])
    middle = 0.3 * (uniform[:, 6] - 0.5 + 1j * (uniform[:, 7] - 0.5))
    z = (corner[None, :] * turn[:, None] + middle[:, None]).ravel()
    owner = np.repeat(np.arange(count), num_pixels)
    time = _escape_times(z, c[owner], power[owner]).reshape(count, num_pixels)
    colours = _look_up(_palettes(uniform[:, 8:20]), (time * (1.0 + 2.0 * uniform[:, 20:21])) % 1.0)
    inside = (time >= 1.0)[:, :, None]
    colours = np.where(inside, 0.35 * colours, colours)
    return colours.round().astype(np.uint8).reshape(count, size_px, size_px, 3)


def _escape_times(z: np.ndarray, c: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Smooth escape time as float32 in [0, 1], logarithmic; 1 = never left.

    In real numbers: a complex product may be fused in the middle of an array and not at its end.
    """
    x, y = z.real.astype(np.float32), z.imag.astype(np.float32)
    a, b = c.real.astype(np.float32), c.imag.astype(np.float32)
    times = np.full(len(z), float(_ESCAPE_STEPS), np.float32)
    here = np.arange(len(z))
    for step in range(_ESCAPE_STEPS):
        u, v = x * x - y * y, 2.0 * x * y
        for more in (3, 4):
            again = power >= more
            if again.any():
                u, v = np.where(again, u * x - v * y, u), np.where(again, u * y + v * x, v)
        x, y = u + a, v + b
        radius = x * x + y * y
        gone = radius > _ESCAPE
        if gone.any():
            times[here[gone]] = step + 1.0 - np.log(np.log(radius[gone]) / np.log(_ESCAPE)) / np.log(power[gone])
            keep = ~gone
            x, y, a, b, power, here = x[keep], y[keep], a[keep], b[keep], power[keep], here[keep]
        if not len(here):
            break
    return (np.log1p(times.clip(0.0)) / np.log1p(float(_ESCAPE_STEPS))).astype(np.float32)


# ------------------------------------------------------------------------------------------------ chaos games


def _chaos_game(
    uniform: np.ndarray, is_flame: np.ndarray, rngs: Sequence[np.random.Generator], size_px: int
) -> np.ndarray:
    """Many points wander by randomly chosen maps; the picture is the logarithm of how often a pixel was hit."""
    count = len(uniform)
    walkers = -(-_POINTS_PER_PIXEL * size_px**2 // _STEPS)
    table = _systems(uniform[:, 1:43], is_flame)
    bend = _Bend(uniform[:, 43], uniform[:, 44], is_flame)
    draws = [np.frombuffer(rng.bytes(walkers * (_STEPS + _UNSETTLED)), np.uint8) for rng in rngs]
    picks = np.stack(draws).reshape(count, _STEPS + _UNSETTLED, walkers)
    first = np.linspace(-1.0, 1.0, walkers, dtype=np.float32)
    x, y, hue = np.tile(first, (count, 1)), np.tile(first[::-1], (count, 1)), np.full((count, walkers), 0.5, np.float32)
    trail = np.empty((3, count, _STEPS, walkers), np.float32)
    system = 256 * np.arange(count)[:, None]
    own = np.empty((7, count, walkers), np.float32)
    for step in range(_STEPS + _UNSETTLED):
        index = system + picks[:, step]
        for row, values in zip(own, table, strict=True):
            np.take(values, index, out=row, mode="clip")  # clip: no check, no buffer
        x, y = bend(own[0] * x + own[1] * y + own[4], own[2] * x + own[3] * y + own[5])
        hue = 0.5 * (hue + own[6])
        if step >= _UNSETTLED:
            trail[0, :, step - _UNSETTLED], trail[1, :, step - _UNSETTLED] = x, y
            trail[2, :, step - _UNSETTLED] = hue
    return _develop(trail.reshape(3, count, -1), uniform[:, 45:64], size_px)


def _systems(uniform: np.ndarray, is_flame: np.ndarray) -> np.ndarray:
    """Random affine maps, as a table by random byte: float32 [(matrix, shift, hue) = 7, N * 256].

    A map is turn, stretch, turn, and half of them mirror. The singular values s1 >= s2 of n maps are bent so that
    the sum of s1 + 2 s2 lies between (5 + n) / 2 and (6 + n) / 2: the pictures are neither dust nor blots
    (arXiv 2110.03091). Flames, whose variations hold the points together, get more. A map is chosen as often as it
    covers area.
    """
    count = len(uniform)
    num = 2 + (uniform[:, 40] * (_MAPS - 1)).astype(np.int64)  # [N]
    used = np.arange(_MAPS) < num[:, None]
    per_map = uniform[:, :36].reshape(count, 6, _MAPS)
    wanted = 0.5 * (5.0 + num + uniform[:, 41]) * np.where(is_flame, _FLAME_STRETCH, 1.0)
    longer = 0.02 + 0.96 * per_map[:, 0]
    stretch = _bent_to_sum(np.stack([longer * (0.2 + 0.8 * per_map[:, 1]), longer], axis=1), used, wanted)
    small, large = stretch[:, 0], stretch[:, 1]
    before, after = 2.0 * np.pi * per_map[:, 2], 2.0 * np.pi * per_map[:, 3]
    mirror = np.where((per_map[:, 2] * 97.0) % 1.0 < 0.5, -1.0, 1.0)
    cos_a, sin_a, cos_b, sin_b = np.cos(after), np.sin(after), np.cos(before), np.sin(before)
    matrix = (
        large * cos_a * cos_b - mirror * small * sin_a * sin_b,
        -large * cos_a * sin_b - mirror * small * sin_a * cos_b,
        large * sin_a * cos_b + mirror * small * cos_a * sin_b,
        -large * sin_a * sin_b + mirror * small * cos_a * cos_b,
    )
    shift = (2.0 * per_map[:, 4] - 1.0, 2.0 * per_map[:, 5] - 1.0)
    hue = np.where(used, np.arange(_MAPS) / np.maximum(num - 1, 1)[:, None], 0.0)
    maps = np.stack([*matrix, *shift, hue]).astype(np.float32)  # [7, N, _MAPS]
    area = np.where(used, small * large + 0.02, 0.0)
    edges = np.cumsum(area, axis=1) / area.sum(axis=1, keepdims=True)  # [N, _MAPS]
    byte = (np.arange(256) + 0.5) / 256.0
    choice = np.minimum((byte[None, :, None] > edges[:, None, :]).sum(axis=2), num[:, None] - 1)
    return np.take_along_axis(maps, np.broadcast_to(choice, (7, count, 256)), axis=2).reshape(7, -1)


def _bent_to_sum(values: np.ndarray, used: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[N, (smaller, larger), _MAPS] in (0, 1) to powers of themselves, so that s1 + 2 s2 sums to `wanted`."""
    low, high = np.full(len(values), 0.01), np.full(len(values), 20.0)
    weight = np.array([2.0, 1.0])[None, :, None] * used[:, None, :]
    for _ in range(24):
        middle = np.sqrt(low * high)
        total = (weight * values ** middle[:, None, None]).sum(axis=(1, 2))
        low, high = np.where(total > wanted, middle, low), np.where(total > wanted, high, middle)
    return values ** high[:, None, None]


class _Bend:
    """A flame's non-linear variation, after every affine map; other systems stay affine."""

    def __init__(self, which: np.ndarray, amount: np.ndarray, is_flame: np.ndarray) -> None:
        index = (which * len(VARIATIONS)).astype(np.int64)
        self.rows = [(bend, np.flatnonzero(is_flame & (index == i))) for i, bend in enumerate(VARIATIONS.values())]
        self.amount = (0.5 + 0.5 * amount).astype(np.float32)[:, None]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Points:
        for bend, rows in self.rows:
            if len(rows):
                share, was_x, was_y = self.amount[rows], x[rows], y[rows]
                new_x, new_y = bend(was_x, was_y)
                x[rows] = (share * new_x + (1.0 - share) * was_x).clip(-1e3, 1e3)
                y[rows] = (share * new_y + (1.0 - share) * was_y).clip(-1e3, 1e3)
        return x, y


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x + y * y + np.float32(1e-6)


def _sinusoidal(x: np.ndarray, y: np.ndarray) -> Points:
    return np.sin(1.7 * x), np.sin(1.7 * y)


def _spherical(x: np.ndarray, y: np.ndarray) -> Points:
    scale = 1.0 / (_square(x, y) + np.float32(0.05))
    return x * scale, y * scale


def _swirl(x: np.ndarray, y: np.ndarray) -> Points:
    square = _square(x, y)
    sin, cos = np.sin(square), np.cos(square)
    return x * sin - y * cos, x * cos + y * sin


def _horseshoe(x: np.ndarray, y: np.ndarray) -> Points:
    radius = np.sqrt(_square(x, y))
    return (x - y) * (x + y) / radius, 2.0 * x * y / radius


def _polar(x: np.ndarray, y: np.ndarray) -> Points:
    return np.arctan2(x, y) / np.float32(np.pi), np.sqrt(_square(x, y)) - 1.0


def _handkerchief(x: np.ndarray, y: np.ndarray) -> Points:
    radius, angle = np.sqrt(_square(x, y)), np.arctan2(x, y)
    return radius * np.sin(angle + radius), radius * np.cos(angle - radius)


def _disc(x: np.ndarray, y: np.ndarray) -> Points:
    turn, angle = np.float32(np.pi) * np.sqrt(_square(x, y)), np.arctan2(x, y) / np.float32(np.pi)
    return angle * np.sin(turn), angle * np.cos(turn)


def _bubble(x: np.ndarray, y: np.ndarray) -> Points:
    scale = 4.0 / (_square(x, y) + 4.0)
    return x * scale, y * scale


VARIATIONS: dict[str, Callable[[np.ndarray, np.ndarray], Points]] = {
    "sinusoidal": _sinusoidal,
    "spherical": _spherical,
    "swirl": _swirl,
    "horseshoe": _horseshoe,
    "polar": _polar,
    "handkerchief": _handkerchief,
    "disc": _disc,
    "bubble": _bubble,
}


def _develop(trail: np.ndarray, uniform: np.ndarray, size_px: int) -> np.ndarray:
    """Points to pictures: float32 (x, y, hue) [3, N, points] to uint8 [N, size_px, size_px, 3]."""
    count, num_pixels = trail.shape[1], size_px**2
    column, row = (_binned(trail[axis], size_px) for axis in (0, 1))
    seen = (column >= 0) & (row >= 0)
    place = (np.arange(count)[:, None] * num_pixels + row * size_px + column)[seen]
    hits = np.bincount(place, minlength=count * num_pixels).reshape(count, num_pixels)
    hues = np.bincount(place, weights=trail[2][seen], minlength=count * num_pixels).reshape(count, num_pixels)
    hue = hues / np.maximum(hits, 1)
    bright = np.log1p(hits) / np.log1p(hits.max(axis=1, keepdims=True))  # log-density, as flames are developed
    bright = (bright ** (1.0 / 1.6))[:, :, None].astype(np.float32)
    palettes = _palettes(uniform[:, :12])
    ground = palettes[:, 128, :] * (0.6 * uniform[:, 12:13] ** 2).astype(np.float32)
    colours = bright * _look_up(palettes, hue) + (1.0 - bright) * ground[:, None, :]
    return colours.round().astype(np.uint8).reshape(count, size_px, size_px, 3)


def _binned(values: np.ndarray, size_px: int) -> np.ndarray:
    """Pixel index along one axis, -1 outside of what holds all but 2 % of a system's points: [N, points] to int64."""
    sample = np.sort(values[:, :: max(1, values.shape[1] // 2048)], axis=1)
    cut = sample.shape[1] // 100
    low, high = sample[:, cut : cut + 1], sample[:, -1 - cut][:, None]
    margin = 0.04 * (high - low) + np.float32(1e-6)
    scaled = (values - (low - margin)) / (high - low + 2.0 * margin) * size_px
    inside = (scaled >= 0.0) & (scaled < size_px)
    return np.where(inside, scaled, -1.0).astype(np.int64)
