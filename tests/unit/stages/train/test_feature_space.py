"""The plane of the feature space: fitted on real images alone, coordinates that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.stages.train.feature_space import MAX_IMAGES, Kind, drawn, picture


def kind(features: np.ndarray) -> Kind:
    return Kind(features.astype(np.float32), np.zeros(len(features), np.int64), len(features))


def flat(seed: int = 0) -> np.ndarray:
    """Features that differ along the first two of five directions, most along the second."""
    rng = np.random.default_rng(seed)
    return np.pad(rng.normal(size=(40, 2)) * [1.0, 3.0], [(0, 0), (0, 3)])


def test_components_are_the_directions_in_which_real_images_differ() -> None:
    found = picture({"real": kind(flat())})
    assert found is not None and sum(found["explained"]) == pytest.approx(1.0, abs=1e-3)
    places = np.array(found["kinds"]["real"]["points"])[:, :2]
    centred = flat()[:, [1, 0]] - flat()[:, [1, 0]].mean(axis=0)
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.linalg.norm(centred, axis=1), abs=1e-3)
    assert abs(np.corrcoef(places[:, 0], centred[:, 0])[0, 1]) > 0.99


def test_synthetic_images_do_not_turn_the_axes() -> None:
    far = np.zeros((30, 5)) + [0, 0, 50.0, 0, 0]  # all of their difference lies outside the plane
    alone, both = picture({"real": kind(flat())}), picture({"real": kind(flat()), "synthetic": kind(far)})
    assert alone is not None and both is not None
    assert both["kinds"]["real"] == alone["kinds"]["real"]
    places = np.array(both["kinds"]["synthetic"]["points"])[:, :2]
    assert np.linalg.norm(places + flat()[:, :2].mean(), axis=1).max() < 3.0


def test_kinds_without_images_are_left_out_and_a_line_is_no_plane() -> None:
    found = picture({"real": kind(flat()), "validation": kind(flat()[:0])})
    assert found is not None and list(found["kinds"]) == ["real"]
    assert picture({"real": kind(flat()[:, 1:])}) is None
    assert picture({"real": kind(flat()[:1])}) is None


def test_many_images_are_drawn_without_repeats() -> None:
    some = drawn(5000, 3)
    assert len(np.unique(some)) == MAX_IMAGES and some.max() > 4000 and some.min() < 1000
    assert (some == drawn(5000, 3)).all() and (some != drawn(5000, 4)).any()
