"""Nearly equal images are found across splits and pools; other ones are not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from variegate.near_duplicates import look_of, near_pairs
from variegate.recipe import Recipe
from variegate.stages.dataset import stage
from variegate.stages.dataset.meadow import make_meadow


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((150, 150), Image.Resampling.BICUBIC),
    "a JPEG": jpeg,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "smaller, mirrored, a JPEG": lambda image: jpeg(image.resize((48, 48)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}
PICTURES = [Image.fromarray(one) for one in make_meadow(n_species=20, n_per_species=10).images]


@pytest.mark.parametrize("how", CHANGES)
def test_changed_copies_are_found_and_others_are_not(how: str) -> None:
    looks = [look_of(image) for image in PICTURES]
    changed = [look_of(CHANGES[how](image)) for image in PICTURES[:50]]
    assert near_pairs(changed, looks) == [(k, k) for k in range(50)]
    assert near_pairs(looks[:100], looks[100:]) == []


def test_images_of_one_grey_are_like_none_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = look_of(Image.new("RGB", (30, 20), (120, 120, 120)))
    assert near_pairs([grey, b""], [grey, b""]) == [] == near_pairs([], [grey])
    monkeypatch.setattr("variegate.near_duplicates.MAX_PAIRS", 3)
    with pytest.raises(ValueError, match="2 x 2 images are too many"):
        near_pairs([grey] * 2, [grey] * 2)


def test_near_duplicates_across_splits_are_named_in_a_warning(tmp_path: Path) -> None:
    for number, image in enumerate(PICTURES[:40]):
        name = (
            tmp_path / "data" / ("train", "val", "test")[number % 3] / ("ant", "bee")[number // 3 % 2] / f"{number}.png"
        )
        name.parent.mkdir(parents=True, exist_ok=True)
        image.save(name)
    CHANGES["smaller, mirrored, a JPEG"](PICTURES[0]).save(tmp_path / "data/test/ant/again.png")
    facts = stage.check(Recipe.model_validate({"dataset": {"path": str(tmp_path / "data")}}))
    assert facts.near_duplicates == (("train/ant/0.png", "test/ant/again.png"),)
    told = "1 images are nearly the same picture as one in another split, so results may be too good"
    assert f"{told}: train/ant/0.png ~ test/ant/again.png" in facts.warnings
    assert facts.num_training() == 14, "a warning, not a removal"
