"""`builtin:meadow`: labelled butterflies drawn by code, as many species and pictures as wanted, all from a seed.

Species come in genera: a genus shares wing outlines and ground colours, its species differ in small marks only.
Pose, light, habitat and a blade of grass in front are nuisance. Drawing itself lives in butterflies.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from variegate.stages.dataset.butterflies import (
    BAND_PLACES,
    COLOURS,
    FORE_SHAPES,
    HABITAT_PAINTERS,
    HIND_SHAPES,
    MARGIN_WIDTHS,
    MAX_SPOTS,
    NO_MARK,
    SPOT_KINDS,
    SPOT_PLACES,
    Species,
    draw_butterfly,
    sample_pose,
)

HABITATS = tuple(HABITAT_PAINTERS)
HABITAT_PHRASES = {
    "grass": "on grass",
    "bark": "on bark",
    "sand": "on sand",
    "petals": "on petals",
    "sky": "in the sky",
    "leaves": "on leaves",
    "stone": "on stone",
    "water": "over water",
}
MIN_SIZE_PX, MAX_SIZE_PX = 32, 256
UNCOMMON_TEST = "test_uncommon_context"  # DIAGen's name for test images in surroundings that training does not show
SPLITS = ("train", "val", "test", UNCOMMON_TEST)  # the place seeds the images: append only

# How alike the species of a genus are: what makes five images a species hard to learn from (docs/log.md).
_GENUS_SIZE = 5  # species per genus
_GENUS_ATTEMPTS = 200
_CHANGES = (  # a species departs from another in one of these; spots are small, so they tell species apart least
    *("spot_count", "spot_count", "spot_count"),
    *("spot_colour", "spot_place", "margin_width"),
)
_COLOUR_ROWS = (
    ("white", "cream", "yellow", "orange", "red", "pink", "violet", "blue", "teal", "green"),
    ("brown", "black"),
)

_COLOUR_NAMES = tuple(COLOURS)
_SAME_COLOUR_FRACTION = 0.35  # fore and hind wings of one ground colour
_MARGIN_FRACTION, _BAND_FRACTION, _SPOTS_FRACTION, _TIP_FRACTION, _VEINS_FRACTION = 0.55, 0.4, 0.6, 0.25, 0.4
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

_GENUS_STARTS = (
    "Al",
    "Bri",
    "Cal",
    "Cor",
    "Del",
    "Eph",
    "Flo",
    "Gal",
    "Hel",
    "Iri",
    "Lor",
    "Mel",
    "Nym",
    "Ori",
    "Pal",
    "Sel",
)
_GENUS_MIDDLES = ("a", "an", "ar", "e", "el", "er", "i", "il", "o", "ol", "or", "yr")
_GENUS_ENDS = ("dia", "lia", "mis", "nia", "pis", "ria", "this", "tura", "via", "xia")
_EPITHET_STARTS = (
    "alb",
    "aur",
    "bell",
    "clar",
    "dulc",
    "fulv",
    "grac",
    "lun",
    "mont",
    "niv",
    "pall",
    "rub",
    "silv",
    "vesp",
    "vir",
)
_EPITHET_ENDS = ("aria", "ata", "ella", "ensis", "escens", "icola", "ifera", "ina", "osa", "ula")


@dataclass(frozen=True)
class Meadow:
    """A drawn dataset; image i has label `labels[i]`, habitat `habitats[i]` and caption `captions[i]`."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    masks: np.ndarray  # bool [N, H, W], where the butterfly is
    labels: np.ndarray  # int64 [N], index into class_names
    class_names: tuple[str, ...]  # unique binomials
    habitats: tuple[str, ...]  # [N]
    captions: tuple[str, ...]  # [N], description and habitat
    descriptions: tuple[str, ...]  # [class], without habitat
    species: tuple[Species, ...]  # [class]


def make_meadow(
    n_species: int = 10,
    n_per_species: int = 5,
    size_px: int = 64,
    habitat_bias: float = 0.0,
    imbalance: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    split: str = "train",
) -> Meadow:
    """Draw a dataset of butterflies; images uint8 [N, size_px, size_px, 3], grouped by species.

    `seed` fixes the species and the val and test images, `draw` which train images are seen. The first k images of
    a species are the same for every `n_per_species` >= k, and the first k species for every `n_species` >= k.
    `habitat_bias` is the probability that a train image shows its species' own habitat; val and test are never biased,
    and test_uncommon_context shows every habitat but the species' own.
    `imbalance` r gives species k `n_per_species * r**(-k / (n_species - 1))` images, at least one.
    Raises ValueError naming every argument out of range.

    >>> meadow = make_meadow(n_species=3, n_per_species=2, size_px=32)
    >>> meadow.images.shape, meadow.labels.tolist()
    ((6, 32, 32, 3), [0, 0, 1, 1, 2, 2])
    """
    _check(locals())
    species, names = meadow_species(n_species, seed), meadow_names(n_species, seed)
    own_habitats = _own_habitats(n_species, seed)
    others = [[habitat for habitat in HABITATS if habitat != own] for own in own_habitats]
    bias = habitat_bias if split == "train" else 0.0
    images, masks, labels, habitats = [], [], [], []
    for label, count in enumerate(_counts(n_species, n_per_species, imbalance)):
        for index in range(count):
            rng = _image_rng(seed, draw, split, label, index)
            if split == UNCOMMON_TEST:
                habitat = _pick(rng, others[label])
            else:
                habitat = _pick_habitat(rng, own_habitats[label], bias)
            image, mask = draw_butterfly(species[label], sample_pose(rng, habitat), rng, size_px)
            images.append(image)
            masks.append(mask)
            labels.append(label)
            habitats.append(habitat)
    descriptions = tuple(describe(one) for one in species)
    captions = tuple(f"{descriptions[k]}, {HABITAT_PHRASES[h]}" for k, h in zip(labels, habitats, strict=True))
    return Meadow(
        np.stack(images),
        np.stack(masks),
        np.array(labels, np.int64),
        names,
        tuple(habitats),
        captions,
        descriptions,
        species,
    )


def meadow_species(n_species: int, seed: int) -> tuple[Species, ...]:
    """The species of a meadow, genus after genus; none of them is a starter species, and no two are equal."""
    found: list[Species] = []
    genus = 0
    while len(found) < n_species:
        rng = np.random.default_rng([seed, 1, genus])
        found.extend(one for one in _sample_genus(rng) if one not in found)
        genus += 1
    return tuple(found[:n_species])


def meadow_names(n_species: int, seed: int) -> tuple[str, ...]:
    """Unique invented binomials, one genus word for every genus of `meadow_species`."""
    rng = np.random.default_rng([seed, 2])
    genus_words: dict[tuple[str, ...], str] = {}
    names: list[str] = []
    for one in meadow_species(n_species, seed):
        if one.genus not in genus_words:
            taken = set(genus_words.values())
            genus_words[one.genus] = _fresh_word(rng, (_GENUS_STARTS, _GENUS_MIDDLES, _GENUS_ENDS), taken)
        taken = {name.split()[1] for name in names}
        names.append(f"{genus_words[one.genus]} {_fresh_word(rng, (_EPITHET_STARTS, _EPITHET_ENDS), taken)}")
    return tuple(names)


def is_starter_species(species: Species) -> bool:
    """Whether the starter model may be trained on this species; a hash of its marks decides, so anyone can check."""
    return species.digest() % 2 == 0


def sample_starter_species(rng: np.random.Generator) -> Species:
    """A random species that no meadow ever contains."""
    while True:
        species = _sample_species(rng)
        if is_starter_species(species):
            return species


def describe(species: Species) -> str:
    """A caption of every mark of the species, without habitat.

    >>> describe(Species("pointed", "tailed", "blue", "blue", tip_colour="white"))
    'a photo of a butterfly with pointed blue forewings, tailed blue hindwings, white tips'
    """
    return "a photo of a butterfly with " + ", ".join(mark_phrases(species))


def mark_phrases(species: Species) -> tuple[str, ...]:
    """One phrase per mark: the words that captions are made of."""
    phrases = [
        f"{species.fore_shape} {species.fore_colour} forewings",
        f"{species.hind_shape} {species.hind_colour} hindwings",
    ]
    if species.margin_colour != NO_MARK:
        phrases.append(f"{species.margin_width} {species.margin_colour} margins")
    if species.band_colour != NO_MARK:
        phrases.append(f"{species.band_colour} {species.band_place} band")
    if species.spot_count:
        kind = species.spot_kind[: len(species.spot_kind) - (species.spot_count == 1)]
        phrases.append(f"{_NUMBERS[species.spot_count]} {species.spot_colour} {kind} on {species.spot_place}")
    if species.tip_colour != NO_MARK:
        phrases.append(f"{species.tip_colour} tips")
    if species.has_veins:
        phrases.append("dark veins")
    return tuple(phrases)


# ---------------------------------------------------------------------------------------------------- sampling


def _sample_species(rng: np.random.Generator) -> Species:
    fore_colour = _pick(rng, _COLOUR_NAMES)
    hind_colour = fore_colour if rng.random() < _SAME_COLOUR_FRACTION else _pick(rng, _COLOUR_NAMES)
    species = Species(_pick(rng, FORE_SHAPES), _pick(rng, HIND_SHAPES), fore_colour, hind_colour)
    if rng.random() < _MARGIN_FRACTION:
        species = replace(species, margin_colour=_pick(rng, _COLOUR_NAMES), margin_width=_pick(rng, MARGIN_WIDTHS))
    if rng.random() < _BAND_FRACTION:
        species = replace(species, band_colour=_pick(rng, _COLOUR_NAMES), band_place=_pick(rng, BAND_PLACES))
    if rng.random() < _SPOTS_FRACTION:
        species = _with_spots(species, rng)
    if rng.random() < _TIP_FRACTION:
        species = replace(species, tip_colour=_pick(rng, _COLOUR_NAMES))
    return replace(species, has_veins=bool(rng.random() < _VEINS_FRACTION))


def _sample_genus(rng: np.random.Generator) -> list[Species]:
    """Species with one outline and ground colours, each a small mark or two away from another one of them."""
    while True:
        genus = _grow_genus(_first_of_genus(rng), rng)
        if len(genus) == _GENUS_SIZE:
            return genus


def _first_of_genus(rng: np.random.Generator) -> Species:
    while True:
        first = _with_spots(_sample_species(rng), rng)
        if not is_starter_species(first) and _shows_every_mark(first):
            return first


def _grow_genus(first: Species, rng: np.random.Generator) -> list[Species]:
    """Species that go back to `first`; too few where hardly a departure is allowed."""
    genus = [first]
    for _ in range(_GENUS_ATTEMPTS):
        if len(genus) == _GENUS_SIZE:
            break
        other = _with_changed_mark(genus[int(rng.integers(len(genus)))], rng)
        if other not in genus and not is_starter_species(other) and _shows_every_mark(other):
            genus.append(other)
    return genus


def _shows_every_mark(species: Species) -> bool:
    """No mark has the colour of what lies beneath it: species that differ in words must differ in pictures."""
    grounds = {species.fore_colour, species.hind_colour}
    under_spots = {species.fore_colour if species.spot_place == "forewings" else species.hind_colour}
    if species.band_place == "outer":  # the row of spots lies on it
        under_spots.add(species.band_colour)
    hidden_margin, hidden_band = {species.margin_colour} == grounds, species.band_colour in grounds
    covered_tip = species.tip_colour != NO_MARK and species.margin_width == "wide"
    hidden_tip = covered_tip or species.tip_colour == species.fore_colour
    return not (hidden_margin or hidden_band or hidden_tip or species.spot_colour in under_spots)


def _with_changed_mark(species: Species, rng: np.random.Generator) -> Species:
    """One small mark changed; a change that the species has no mark for becomes one of the number of spots."""
    change = _pick(rng, _CHANGES)
    if change.endswith("_colour") and getattr(species, change) != NO_MARK:
        changed: dict[str, Any] = {change: _similar_colour(getattr(species, change), rng)}
        return replace(species, **changed)
    if change == "spot_place":
        return replace(species, spot_place=_other(SPOT_PLACES, species.spot_place))
    if change == "margin_width" and species.margin_colour != NO_MARK:
        return replace(species, margin_width=_other(MARGIN_WIDTHS, species.margin_width))
    return replace(species, spot_count=int(rng.integers(1, MAX_SPOTS + 1)))


def _similar_colour(colour: str, rng: np.random.Generator) -> str:
    """A neighbour of a colour: yellow may become cream or orange, but not blue."""
    row = next(row for row in _COLOUR_ROWS if colour in row)
    neighbours = [row[k] for k in (row.index(colour) - 1, row.index(colour) + 1) if 0 <= k < len(row)]
    return _pick(rng, neighbours)


def _other(choices: Iterable[str], current: str) -> str:
    """The other one of two."""
    return next(choice for choice in choices if choice != current)


def _with_spots(species: Species, rng: np.random.Generator) -> Species:
    count, colour = int(rng.integers(1, MAX_SPOTS + 1)), _pick(rng, _COLOUR_NAMES)
    return replace(
        species,
        spot_count=count,
        spot_colour=colour,
        spot_kind=_pick(rng, SPOT_KINDS),
        spot_place=_pick(rng, SPOT_PLACES),
    )


def _pick(rng: np.random.Generator, choices: Collection[str]) -> str:
    return list(choices)[int(rng.integers(len(choices)))]


def _fresh_word(rng: np.random.Generator, parts: tuple[tuple[str, ...], ...], taken: set[str]) -> str:
    """A word put together from syllables that is not taken; once most are, it grows another syllable."""
    word, misses = "".join(_pick(rng, part) for part in parts), 0
    while word in taken:
        misses += 1
        stem = "".join(_pick(rng, parts[0]).lower() for _ in range(misses // 20))
        word = (_pick(rng, parts[0]) + stem + "".join(_pick(rng, part) for part in parts[1:])).capitalize()
        word = word if parts is not None and parts[0][0][0].isupper() else word.lower()
    return word


# ---------------------------------------------------------------------------------------------------- images


def _image_rng(seed: int, draw: int, split: str, label: int, index: int) -> np.random.Generator:
    """One generator per image, so that neither the number nor the order of images changes any of them."""
    return np.random.default_rng([seed, 3, SPLITS.index(split), draw if split == "train" else 0, label, index])


def _pick_habitat(rng: np.random.Generator, own: str, bias: float) -> str:
    anywhere, biased = _pick(rng, HABITATS), rng.random() < bias  # both always drawn: the rest of the image stays put
    return own if biased else anywhere


def _own_habitats(n_species: int, seed: int) -> list[str]:
    order = np.random.default_rng([seed, 4]).permutation(len(HABITATS))
    return [HABITATS[order[label % len(HABITATS)]] for label in range(n_species)]


def _counts(n_species: int, n_per_species: int, imbalance: float) -> list[int]:
    last = max(n_species - 1, 1)
    return [max(1, round(n_per_species * imbalance ** (-label / last))) for label in range(n_species)]


def _check(arguments: dict) -> None:
    a = arguments
    rules = {
        "n_species": (_is_int(a["n_species"]) and a["n_species"] >= 1, "an integer of at least 1"),
        "n_per_species": (_is_int(a["n_per_species"]) and a["n_per_species"] >= 1, "an integer of at least 1"),
        "size_px": (
            _is_int(a["size_px"]) and MIN_SIZE_PX <= a["size_px"] <= MAX_SIZE_PX,
            f"an integer from {MIN_SIZE_PX} to {MAX_SIZE_PX}",
        ),
        "habitat_bias": (0 <= a["habitat_bias"] <= 1, "in [0, 1]"),
        "imbalance": (a["imbalance"] >= 1 and np.isfinite(a["imbalance"]), "at least 1 (1 = balanced)"),
        "seed": (_is_int(a["seed"]) and a["seed"] >= 0, "an integer of at least 0"),
        "draw": (_is_int(a["draw"]) and a["draw"] >= 0, "an integer of at least 0"),
        "split": (a["split"] in SPLITS, f"one of {', '.join(SPLITS)}"),
    }
    problems = [
        f"{name} is {a[name]!r}, should be {wanted}" for name, (is_fine, wanted) in rules.items() if not is_fine
    ]
    if problems:
        raise ValueError("make_meadow: " + "; ".join(problems))


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
