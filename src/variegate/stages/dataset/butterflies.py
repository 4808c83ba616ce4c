"""Draw one butterfly from its species and a pose. NumPy only.

A wing is a lobe in polar coordinates around its root: an outline R(angle) and, inside it, zones of the relative
radius rho = r / R. Everything random comes in through `rng`; nothing depends on the picture's size but the sensor
noise, so the same generator state gives the same scene at 32 and at 256 px.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

COLOURS = {
    "white": (0.96, 0.96, 0.93),
    "cream": (0.95, 0.86, 0.62),
    "yellow": (0.98, 0.82, 0.14),
    "orange": (0.95, 0.50, 0.08),
    "red": (0.82, 0.13, 0.12),
    "pink": (0.95, 0.50, 0.68),
    "violet": (0.50, 0.24, 0.70),
    "blue": (0.16, 0.33, 0.86),
    "teal": (0.10, 0.62, 0.62),
    "green": (0.40, 0.66, 0.20),
    "brown": (0.45, 0.27, 0.14),
    "black": (0.09, 0.08, 0.09),
}
FORE_SHAPES = ("rounded", "pointed", "long", "hooked")
HIND_SHAPES = ("round", "scalloped", "tailed", "drooping")
MARGIN_WIDTHS = {"narrow": 0.13, "wide": 0.25}  # share of rho
BAND_PLACES = {"inner": 0.36, "outer": 0.62}  # rho of the band's middle
SPOT_KINDS = ("spots", "eyespots")
SPOT_PLACES = ("forewings", "hindwings")
MAX_SPOTS = 4
NO_MARK = "none"

# Lobes: angle of the tip (rad above horizontal), angular reach above and below it, length, outline powers.
_FORE_LOBES = {
    "rounded": (0.66, 0.80, 0.95, 0.95, 2.3, 0.42),
    "pointed": (0.74, 0.44, 1.10, 1.12, 1.45, 0.55),
    "long": (0.40, 0.46, 0.66, 1.30, 2.0, 0.48),
    "hooked": (0.80, 0.48, 1.10, 1.05, 1.7, 0.42),
}
_HIND_LOBES = {
    "round": (-0.72, 0.90, 0.85, 0.80, 2.3, 0.42),
    "scalloped": (-0.74, 0.88, 0.84, 0.84, 2.4, 0.42),
    "tailed": (-0.80, 0.90, 0.76, 0.78, 2.1, 0.45),
    "drooping": (-1.02, 0.80, 0.54, 0.98, 2.0, 0.46),
}
_OUTLINE_JITTER = 0.07  # relative; fixed per genus, so its species share one outline
_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 721, dtype=np.float32)

_BODY_COLOUR = np.array((0.17, 0.12, 0.09), np.float32)
_VEINS_PER_RADIAN = 5.0
_BAND_HALF_WIDTH = 0.095
_SPOT_RADIUS = {"spots": 0.095, "eyespots": 0.145}
_SPOT_RHO = 0.66
_TIP_START = 0.70  # share of the wing's length where a coloured tip begins

# Nuisance
_FILL = (0.68, 0.90)  # share of the picture's width the butterfly spans
_ROTATION_STD = 0.30  # rad; clipped to +-40 degrees
_ROTATION_LIMIT = 0.70
_ANY_ROTATION_FRACTION = 0.08
_OPENING = (0.70, 1.0)  # lateral squeeze of half-closed wings
_PERSPECTIVE = 0.16
_SHIFT = 0.06  # share of the picture's width
_LIGHT = (0.82, 1.12)
_SIDE_LIGHT = 0.16
_BLADE_FRACTION = 0.15
_SENSOR_NOISE = 0.012
_SUPERSAMPLED_PX = 128  # pictures below this are painted at least this large, and never less than twice their size


@dataclass(frozen=True)
class Species:
    """What a butterfly of one species looks like, in discrete marks; the first four fields are its genus."""

    fore_shape: str
    hind_shape: str
    fore_colour: str
    hind_colour: str
    margin_colour: str = NO_MARK
    margin_width: str = NO_MARK
    band_colour: str = NO_MARK
    band_place: str = NO_MARK
    spot_count: int = 0
    spot_colour: str = NO_MARK
    spot_kind: str = NO_MARK
    spot_place: str = NO_MARK
    tip_colour: str = NO_MARK
    has_veins: bool = False

    @property
    def genus(self) -> tuple[str, str, str, str]:
        """Outline and colours that all species of one genus share."""
        return self.fore_shape, self.hind_shape, self.fore_colour, self.hind_colour

    def digest(self) -> int:
        """64 bits that depend on every mark and on nothing else (stable across processes and machines)."""
        text = "|".join(map(str, astuple(self)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Lobe:
    """One wing's outline, tabulated over `_ANGLES`."""

    tip_angle: float
    length: float
    radius: np.ndarray  # [angle], 0 outside the wing
    slant: np.ndarray  # [angle], cosine between the radius and the outline's normal


@dataclass(frozen=True)
class Pose:
    """Everything about a picture that is not the species."""

    habitat: str
    rotation: float  # rad
    fill: float  # share of the width
    shift: tuple[float, float]  # share of the width
    opening: float
    perspective: float
    light: float
    side_light: float
    light_angle: float
    has_blade: bool


def sample_pose(rng: np.random.Generator, habitat: str) -> Pose:
    """A random pose; the number of draws is fixed, so what follows in `rng` does not shift."""
    turn = float(np.clip(rng.normal(0, _ROTATION_STD), -_ROTATION_LIMIT, _ROTATION_LIMIT))
    anywhere = float(rng.uniform(-np.pi, np.pi))
    return Pose(
        habitat=habitat,
        rotation=anywhere if rng.random() < _ANY_ROTATION_FRACTION else turn,
        fill=float(rng.uniform(*_FILL)),
        shift=tuple(rng.uniform(-_SHIFT, _SHIFT, 2)),
        opening=float(rng.uniform(*_OPENING)),
        perspective=float(rng.uniform(-_PERSPECTIVE, _PERSPECTIVE)),
        light=float(rng.uniform(*_LIGHT)),
        side_light=float(rng.uniform(0, _SIDE_LIGHT)),
        light_angle=float(rng.uniform(-np.pi, np.pi)),
        has_blade=bool(rng.random() < _BLADE_FRACTION),
    )


def draw_butterfly(
    species: Species, pose: Pose, rng: np.random.Generator, size_px: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """One picture, uint8 [size_px, size_px, 3], and the butterfly's silhouette, bool [size_px, size_px].

    The silhouette has what a blade of grass hides of it, and no shadow.
    """
    picture = HABITAT_PAINTERS[pose.habitat](rng, *_unit_grid(size_px))
    paint, cover = _butterfly_layer(species, pose, size_px)
    picture *= 1 - 0.38 * _soft_shadow(cover)[..., None]
    picture = picture * (1 - cover[..., None]) + paint
    blade = rng.uniform(0, 1, 6)  # drawn even when unused: see sample_pose
    if pose.has_blade:
        picture = _grass_blade(picture, blade)
    picture = picture * pose.light + rng.normal(0, _SENSOR_NOISE, picture.shape).astype(np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), cover >= 0.5


# ---------------------------------------------------------------------------------------------------- the butterfly


@lru_cache(maxsize=4096)
def genus_lobes(genus: tuple[str, str, str, str]) -> tuple[Lobe, Lobe]:
    """Fore and hind outline of a genus."""
    seed = int.from_bytes(hashlib.sha256("|".join(genus).encode()).digest()[:8], "big")
    jitter = np.random.default_rng(seed).uniform(1 - _OUTLINE_JITTER, 1 + _OUTLINE_JITTER, (2, 6))
    fore = _outline(np.array(_FORE_LOBES[genus[0]]) * jitter[0], genus[0])
    return fore, _outline(np.array(_HIND_LOBES[genus[1]]) * jitter[1], genus[1])


def _outline(lobe: np.ndarray, shape: str) -> Lobe:
    tip, above, below, length, flatness, roundness = lobe
    offset = _ANGLES - tip
    reach = np.where(offset > 0, above, below)
    radius = length * np.clip(1 - np.abs(offset / reach) ** flatness, 0, 1) ** roundness
    if shape == "hooked":  # a concave outer edge below the apex
        radius = radius * (1 - 0.17 * np.exp(-(((offset + 0.42) / 0.17) ** 2)))
    if shape == "scalloped":
        radius = radius * (1 + 0.075 * np.cos(13 * offset))
    if shape == "tailed":
        radius = radius + 0.52 * length * np.exp(-(((offset + 0.34) / 0.085) ** 2))
    slope = np.gradient(radius, _ANGLES)
    slant = np.maximum(radius / np.sqrt(radius**2 + slope**2 + 1e-6), 0.15)
    return Lobe(float(tip), float(length), radius.astype(np.float32), slant.astype(np.float32))


def _butterfly_layer(species: Species, pose: Pose, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied colour [size, size, 3] and coverage [size, size] of the butterfly, box-filtered."""
    fine = max(2, -(-_SUPERSAMPLED_PX // size_px))
    lobes = genus_lobes(species.genus)
    x, y = _unit_grid(size_px * fine)
    lateral, along, unit = _wing_coordinates(x, y, pose, lobes)
    unit_px = unit * size_px * fine
    side = np.abs(lateral)
    radius, angle = np.hypot(side, along), np.arctan2(along, side)
    column = np.clip((angle + np.pi / 2) * ((len(_ANGLES) - 1) / np.pi) + 0.5, 0, len(_ANGLES) - 1).astype(np.int32)
    paint = np.zeros((*side.shape, 3), np.float32)
    cover = np.zeros(side.shape, np.float32)
    for lobe, is_fore in ((lobes[1], False), (lobes[0], True)):
        reach = lobe.radius[column]
        alpha = np.clip((reach - radius) * lobe.slant[column] * unit_px + 0.5, 0, 1) * (reach > 0.02)
        where = np.nonzero(alpha > 0)  # only the wing's own pixels are painted
        polar = (radius[where], angle[where], side[where], along[where], reach[where])
        colour = _wing_paint(species, lobe, is_fore, polar, unit_px)
        a = alpha[where][:, None]
        paint[where] = paint[where] * (1 - a) + colour * a
        cover = np.maximum(cover, alpha)
    shade = 1 + pose.side_light * (np.cos(pose.light_angle) * lateral + np.sin(pose.light_angle) * along)
    paint *= shade[..., None]
    body = _body_cover(side, along, unit_px)
    paint += body[..., None] * (_BODY_COLOUR * (1.25 - 5 * side[..., None].clip(0, 0.07)) - paint)
    cover = np.maximum(cover, body)
    return _shrink(paint, fine), _shrink(cover, fine)


def _wing_coordinates(
    x: np.ndarray, y: np.ndarray, pose: Pose, lobes: tuple[Lobe, Lobe]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Picture coordinates in [0, 1] to lateral, along the body, and the picture-size of one unit of length."""
    half_width = max(float((lobe.radius * np.cos(_ANGLES)).max()) for lobe in lobes)
    top = float((lobes[0].radius * np.sin(_ANGLES)).max())
    bottom = float((lobes[1].radius * -np.sin(_ANGLES)).max())
    unit = pose.fill / max(2 * half_width * pose.opening, 0.98 * (top + bottom))
    middle = (top - bottom) / 2  # the wings' middle, not the root, sits in the picture's middle
    dx, dy = (x - 0.5 - pose.shift[0]) / unit, (0.5 + pose.shift[1] - y) / unit
    cos, sin = np.float32(np.cos(pose.rotation)), np.float32(np.sin(pose.rotation))
    lateral, along = dx * cos + dy * sin, dy * cos - dx * sin + np.float32(middle)
    lateral = lateral / np.float32(pose.opening)
    lateral = lateral * (1 + np.float32(pose.perspective) * np.sign(lateral))
    return lateral, along, unit


def _wing_paint(
    species: Species, lobe: Lobe, is_fore: bool, polar: tuple[np.ndarray, ...], unit_px: float
) -> np.ndarray:
    """Colours [pixel, 3] of one wing, from the ground colour outwards to the marks on top."""
    radius, angle, side, along, reach = polar
    rho = radius / np.maximum(reach, 1e-3)
    edge = 1.2 / np.maximum(reach * unit_px, 1)  # width in rho of an anti-aliased step
    colour = np.empty((len(rho), 3), np.float32)
    colour[:] = COLOURS[species.fore_colour if is_fore else species.hind_colour]
    colour *= (0.74 + 0.26 * np.minimum(rho * 1.6, 1))[:, None]  # darker at the root
    if species.has_veins:
        from_vein = np.abs(np.remainder((angle - lobe.tip_angle) * _VEINS_PER_RADIAN, 1) - 0.5) / _VEINS_PER_RADIAN
        _blend(colour, 0.8 * np.clip(1.3 - from_vein * radius * unit_px * 0.8, 0, 1) * (rho > 0.12), (0.12, 0.09, 0.08))
    if species.band_colour != NO_MARK:
        centre = BAND_PLACES[species.band_place]
        _blend(colour, _step(_BAND_HALF_WIDTH - np.abs(rho - centre), edge), COLOURS[species.band_colour])
    if species.tip_colour != NO_MARK and is_fore:
        reached = (side * np.cos(lobe.tip_angle) + along * np.sin(lobe.tip_angle)) / lobe.length
        _blend(colour, _step(reached - _TIP_START, edge), COLOURS[species.tip_colour])
    if species.margin_colour != NO_MARK:
        inside = 1 - MARGIN_WIDTHS[species.margin_width]
        _blend(colour, _step(rho - inside, edge), COLOURS[species.margin_colour])
    if species.spot_count and (species.spot_place == "forewings") == is_fore:
        _paint_spots(colour, species, lobe, side, along, unit_px)
    _blend(colour, 0.55 * _step(rho - 0.965, edge), (0.05, 0.04, 0.04))  # a thin dark rim keeps outlines crisp
    return colour


def _paint_spots(
    colour: np.ndarray, species: Species, lobe: Lobe, side: np.ndarray, along: np.ndarray, unit_px: float
) -> None:
    radius = _SPOT_RADIUS[species.spot_kind]
    if species.spot_kind == "eyespots" and species.spot_count > 2:
        radius *= 0.8  # more would touch each other
    spread = 0.31 * (np.arange(species.spot_count) - (species.spot_count - 1) / 2)
    for angle in lobe.tip_angle - 0.10 + spread:
        reach = float(np.interp(angle, _ANGLES, lobe.radius)) * _SPOT_RHO
        distance = np.hypot(side - np.float32(reach * np.cos(angle)), along - np.float32(reach * np.sin(angle)))
        _blend(colour, _step(radius - distance, 1 / unit_px), COLOURS[species.spot_colour])
        if species.spot_kind == "eyespots":
            dark = COLOURS["white" if species.spot_colour == "black" else "black"]
            _blend(colour, _step(radius * 0.52 - distance, 1 / unit_px), dark)


def _body_cover(side: np.ndarray, along: np.ndarray, unit_px: float) -> np.ndarray:
    """Coverage of abdomen, thorax, head and the two clubbed antennae."""
    abdomen = (1 - np.hypot(side / 0.058, (along + 0.17) / 0.33)) * 0.058
    thorax = (1 - np.hypot(side / 0.082, (along - 0.06) / 0.17)) * 0.082
    head = 0.072 - np.hypot(side, along - 0.25)
    bend = np.clip(along - 0.27, 0, None)
    antenna = (
        0.017
        - np.abs(side - 0.03 - 0.75 * bend**1.25)
        - 10 * np.clip(along - 0.66, 0, None)
        - 10 * np.clip(0.27 - along, 0, None)
    )
    club = 0.036 - np.hypot(side - 0.03 - 0.75 * 0.39**1.25, along - 0.66)
    inside = np.maximum.reduce([abdomen, thorax, head, antenna, club])
    return np.clip(inside * unit_px + 0.5, 0, 1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- habitats
# Each painter gets rng and the grid (x, y in [0, 1]) and returns float32 [size, size, 3] in about [0, 1].


def _grass(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lean = rng.uniform(-0.35, 0.35)
    streaks = _noise(rng, x + lean * y, 0.35 * y, cells=13)
    patches = _noise(rng, x, y, cells=3)
    return _mix((0.10, 0.30, 0.09), (0.50, 0.72, 0.22), 0.75 * streaks + 0.25 * patches)


def _bark(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lean = rng.uniform(-0.25, 0.25)
    wander = 0.10 * _noise(rng, x, y, cells=4)
    ridges = _noise(rng, x + wander + lean * y, 0.18 * y, cells=10)
    return _mix((0.17, 0.11, 0.07), (0.50, 0.37, 0.25), ridges)


def _sand(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turn, phase = rng.uniform(-0.5, 0.5), rng.uniform(0, 6.28)
    wander = _noise(rng, x, y, cells=4)
    ripples = 0.5 + 0.5 * np.sin(30 * (y + turn * x) + 5 * wander + phase)
    return _mix((0.72, 0.60, 0.40), (0.92, 0.83, 0.63), 0.65 * ripples + 0.35 * wander)


def _petals(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cx, cy = rng.uniform(0.0, 1.0, 2)
    count, phase = rng.integers(6, 10), rng.uniform(0, 6.28)
    radius, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
    petal = np.abs(np.sin(angle * count / 2 + phase)) ** 0.7
    colour = _mix((0.70, 0.20, 0.44), (0.98, 0.66, 0.80), 0.75 * petal + 0.25 * np.clip(radius, 0, 1))
    return colour + np.clip(1.2 - radius / 0.09, 0, 1)[..., None] * (np.array((0.95, 0.78, 0.25), np.float32) - colour)


def _sky(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    clouds = np.clip(
        1.7 * (0.7 * _noise(rng, x, 1.6 * y, cells=3) + 0.3 * _noise(rng, x, 1.6 * y, cells=7)) - 0.45, 0, 1
    )
    return _mix((0.33, 0.58, 0.90), (0.97, 0.98, 1.0), np.clip(clouds + 0.18 * y, 0, 1))


def _leaves(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    picture = _mix((0.03, 0.12, 0.06), (0.07, 0.22, 0.10), _noise(rng, x, y, cells=4))
    for _ in range(6):
        (cx, cy), turn, tone = rng.uniform(0, 1, 2), rng.uniform(-np.pi, np.pi), rng.uniform(0, 1)
        a, b = _rotated(x - cx, y - cy, turn)
        inside = 0.17 * (1 - (a / 0.42) ** 2) - np.abs(b)
        ribs = 0.5 + 0.5 * np.cos((a - 0.7 * np.abs(b)) * 52)
        midrib = np.clip(1 - np.abs(b) / 0.014, 0, 1)
        low, high = np.array((0.06, 0.25, 0.12)), np.array((0.26, 0.46, 0.16))
        colour = _mix(
            low + (high - low) * tone * 0.6,
            low + (high - low) * (0.5 + 0.5 * tone),
            np.clip(0.55 * ribs + 0.9 * midrib, 0, 1),
        )
        picture += np.clip(inside * 60, 0, 1)[..., None] * (colour - picture)
    return picture


def _stone(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points, tones = rng.uniform(-0.1, 1.1, (11, 2)), rng.uniform(0.25, 1.0, 11)
    distance = np.stack([np.hypot(x - px, y - py) for px, py in points.astype(np.float32)])
    nearest = distance.argmin(0)
    two = np.partition(distance, 1, axis=0)
    gap = np.clip((two[1] - two[0]) / 0.05, 0, 1)
    tone = 0.75 * tones[nearest] + 0.25 * _noise(rng, x, y, cells=8)
    return _mix((0.27, 0.28, 0.30), (0.72, 0.71, 0.70), gap * tone)


def _water(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fold = 0.16 * (_noise(rng, x, 2 * y, cells=4) - 0.5)
    light = 1 - np.abs(2 * _noise(rng, x + fold, 2.2 * y, cells=5) - 1)
    return _mix((0.02, 0.27, 0.36), (0.55, 0.88, 0.88), light**4 * 0.9 + 0.12 * y)


HABITAT_PAINTERS = {
    "grass": _grass,
    "bark": _bark,
    "sand": _sand,
    "petals": _petals,
    "sky": _sky,
    "leaves": _leaves,
    "stone": _stone,
    "water": _water,
}


def _grass_blade(picture: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """A tapering blade across the picture's rim; `chance` is six numbers in [0, 1]."""
    x, y = _unit_grid(len(picture))
    around = 2 * np.pi * chance[0]
    root_x, root_y = 0.5 + 0.62 * np.cos(around), 0.5 + 0.62 * np.sin(around)
    a, b = _rotated(x - root_x, y - root_y, around + np.pi + 0.9 * (chance[1] - 0.5))
    b = b - (chance[2] - 0.5) * 0.8 * a**2
    length = 0.5 + 0.3 * chance[3]
    half_width = (0.045 + 0.02 * chance[4]) * np.sqrt(np.clip(1 - a / length, 0, 1))
    cover = np.clip((half_width - np.abs(b)) * len(picture) + 0.5, 0, 1) * (a < length)
    colour = _mix((0.10, 0.32, 0.08), (0.48, 0.70, 0.22), np.clip(0.5 + 0.4 * chance[5] - 6 * b, 0, 1))
    return picture + cover[..., None] * (colour - picture)


# ---------------------------------------------------------------------------------------------------- brushes


@lru_cache(maxsize=8)
def _unit_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, x to the right and y down, in (0, 1)."""
    centres = ((np.arange(size_px) + 0.5) / size_px).astype(np.float32)
    x, y = np.meshgrid(centres, centres)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _rotated(x: np.ndarray, y: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return x * cos + y * sin, y * cos - x * sin


def _noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, cells: int) -> np.ndarray:
    """Smooth value noise in [0, 1] with `cells` cells a picture width; the lattice wraps, so any x and y are good."""
    lattice = rng.uniform(0, 1, (16, 16)).astype(np.float32)
    fx, fy = x * cells, y * cells
    ix, iy = np.floor(fx).astype(np.int32), np.floor(fy).astype(np.int32)
    fx, fy = fx - ix, fy - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    ix, iy, jx, jy = ix & 15, iy & 15, (ix + 1) & 15, (iy + 1) & 15
    top = lattice[iy, ix] + fx * (lattice[iy, jx] - lattice[iy, ix])
    low = lattice[jy, ix] + fx * (lattice[jy, jx] - lattice[jy, ix])
    return top + fy * (low - top)


def _mix(low: ArrayLike, high: ArrayLike, share: np.ndarray) -> np.ndarray:
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low + (high - low) * share[..., None].astype(np.float32)


def _step(inside: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """0 outside, 1 inside, a ramp of `width` between."""
    return np.clip(inside / width + 0.5, 0, 1)


def _blend(colour: np.ndarray, share: np.ndarray, paint: ArrayLike) -> None:
    colour += share[:, None] * (np.asarray(paint, np.float32) - colour)


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    size = len(picture) // factor
    return picture.reshape(size, factor, size, factor, *picture.shape[2:]).mean((1, 3))


def _soft_shadow(cover: np.ndarray) -> np.ndarray:
    """The butterfly's shadow: its shape, moved down right and blurred."""
    reach = max(1, len(cover) // 32)
    shadow = np.zeros_like(cover)
    shadow[reach:, reach:] = cover[:-reach, :-reach]
    for axis in (0, 1):
        shadow = (np.roll(shadow, reach, axis) + 2 * shadow + np.roll(shadow, -reach, axis)) / 4
    return shadow
