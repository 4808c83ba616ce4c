"""Masks as files: cut like their pictures, grown by what is said, pasted without a trace of what they keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from variegate.errors import DataError
from variegate.images import grow_mask, load_mask, load_square, paste_kept
from variegate.masks import Masking
from variegate.records import RealImage


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def disc(width: int = 60, height: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return (x - 20) ** 2 + (y - 18) ** 2 < 120


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_mask_is_cut_as_its_picture_is(tmp_path: Path, fit: str) -> None:
    inside = disc()
    picture = np.where(inside[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    path, mask = saved(tmp_path / "a.png", picture), saved(tmp_path / "m.png", inside.astype(np.uint8) * 255)
    shown = load_square(path, 32, fit)[..., 0] >= 128
    found = load_mask(mask, 32, fit, shape=(60, 40))
    assert found.dtype == bool and found.shape == (32, 32)
    assert np.mean(found != shown) < 0.04, "they agree up to the edge's pixels"


def test_a_mask_of_another_size_is_brought_to_the_pictures_first(tmp_path: Path) -> None:
    whole, half = disc(), disc()[::2, ::2]
    paths = [saved(tmp_path / f"{len(mask)}.png", mask.astype(np.uint8) * 255) for mask in (whole, half)]
    large, small = (load_mask(path, 40, shape=(60, 40)) for path in paths)
    assert np.mean(large != small) < 0.04


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_any_kind_of_black_and_white_file_is_a_mask(tmp_path: Path, mode: str) -> None:
    Image.fromarray(disc(40, 40).astype(np.uint8) * 255).convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png", 40), disc(40, 40))


def test_growing_adds_what_is_said_on_every_side() -> None:
    """DA-Fusion calls its window of 16 a radius: it adds 8 px. Here the number is what is added."""
    point = np.zeros((33, 33), bool)
    point[16, 16] = True
    grown = grow_mask(point, 8)
    rows, columns = np.nonzero(grown)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 24, 8, 24) and grown.sum() == 17**2
    assert np.array_equal(grow_mask(point, 0), point)
    assert np.array_equal(grow_mask(grown, -8), point), "what shrinks loses as much on every side"


def test_the_object_grows_and_the_background_is_what_it_leaves(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", disc(64, 64).astype(np.uint8) * 255)
    image = RealImage("a", "", 0, "train", mask=str(path), width=64, height=64)
    plain, grown, around, shrunk = (
        Masking(part, grow, 64, "crop", 64.0).repainted(image)
        for part, grow in (("object", 0.0), ("object", 1 / 16), ("background", 1 / 16), ("object", -1 / 32))
    )
    assert np.array_equal(grown, grow_mask(plain, 4)) and np.array_equal(around, ~grown)
    assert np.array_equal(shrunk, grow_mask(plain, -2)) and shrunk.sum() < plain.sum()


def test_pasting_keeps_every_kept_pixel_and_softens_the_seam_inside() -> None:
    rng = np.random.default_rng(0)
    source, drawn = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    repainted = np.zeros((128, 128), bool)
    repainted[30:90, 40:100] = True
    pasted = paste_kept(drawn, source, repainted)
    assert np.array_equal(pasted[~repainted], source[~repainted])
    assert np.array_equal(pasted[40:80, 50:90], drawn[40:80, 50:90])
    seam = pasted[30, 50:90].astype(float)
    between = np.stack([source[30, 50:90], drawn[30, 50:90]]).astype(float)
    assert (seam >= between.min(0) - 1).all() and (seam <= between.max(0) + 1).all()
    assert not np.array_equal(seam, drawn[30, 50:90]) and not np.array_equal(seam, source[30, 50:90])
    assert np.array_equal(paste_kept(drawn, source, np.ones((128, 128), bool)), drawn)


def test_masks_that_mask_nothing_are_refused_with_their_count(tmp_path: Path) -> None:
    """PASCAL's loader of DA-Fusion zeroes the last instance and may hand over an empty mask."""
    paths = [saved(tmp_path / f"{k}.png", np.full((8, 8), value, np.uint8)) for k, value in enumerate((0, 255, 1))]
    paths.append(saved(tmp_path / "good.png", disc(40, 40).astype(np.uint8) * 255))
    images = [RealImage(f"{k}", f"{k}.jpg", 0, "train", mask=str(path)) for k, path in enumerate(paths)]
    with pytest.raises(
        DataError, match=r"3 of 4 training images have masks that are all black or all white.*0.jpg, 1.jpg"
    ):
        Masking("object", 0.0, 32, "crop", 64.0).check(images)
    with pytest.raises(
        DataError, match=r"1 of 5 training images have no mask: x.jpg — give a table with a mask column"
    ):
        Masking("object", 0.0, 32, "crop", 64.0).keys([*images, RealImage("x", "x.jpg", 0, "train")])


def test_a_masks_key_is_its_content_and_what_is_made_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", disc().astype(np.uint8) * 255)
    copy = saved(tmp_path / "copy.png", disc().astype(np.uint8) * 255)
    images = [RealImage(str(k), "", 0, "train", mask=str(one)) for k, one in enumerate((path, copy))]

    def keys(part: str = "object", grow: float = 0.0) -> list[str]:
        return Masking(part, grow, 32, "crop", 64.0).keys(images)

    base = keys()
    assert base[0] == base[1] and len({base[0], keys("background")[0], keys(grow=0.1)[0]}) == 3
    saved(path, (~disc()).astype(np.uint8) * 255)
    assert keys()[0] != base[0] and keys()[1] == base[1]
