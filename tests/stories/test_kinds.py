"""Somebody has a model that edits by instruction, or masks and an inpainting model: from the command line to the images."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from driving import PLAIN_ARGUMENTS, picture, settings, variegate
from PIL import Image
from tiny_models import tiny_edit, tiny_inpaint  # noqa: F401 - fixtures

from variegate.stages.generate.class_masks import SEPARABILITY
from variegate.store import RunFolder, class_slug

EDGE = 32
DRAW = ("backend.steps=3", "backend.guidance_scale=3", "backend.dtype=fp32", "adapt.method=none", "generate.per_real=1")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "synthetic/train/metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV of two classes with a mask for each picture: a square, white on black."""
    lines = ["file_name,label,mask"]
    for number in range(12):
        picture(number, width=EDGE, height=EDGE).save(tmp_path / f"{number}.png")
        mask = np.zeros((EDGE, EDGE), np.uint8)
        mask[8:24, 6:26] = 255
        Image.fromarray(mask).save(tmp_path / f"mask-{number}.png")
        lines.append(f"{number}.png,{'ant' if number % 2 else 'bee'},mask-{number}.png")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    return tmp_path / "data.csv"


def test_every_picture_of_the_meadow_is_edited_as_instructed(tiny_edit: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    own = (*DRAW, f"backend.model={tiny_edit}", "generate.method=edit", "prompts.text=[red snow, blue forest]",
           "dataset.meadow.n_per_species=2", "evaluate.seeds=1")  # fmt: skip
    said = variegate("run", *PLAIN_ARGUMENTS, *settings(*own), "--out", out)
    assert said.status == 0, said.text
    found = rows(out)
    assert len(found) == 6 == len({row["source"] for row in found}), "each real image once"
    assert {row["prompt"] for row in found} == {"red snow", "blue forest"}
    assert all(row["soft_label"] == [{"label": row["label"], "weight": 1.0}] for row in found)
    assert "54 U-Net evaluations" in said.text, "3 steps, 3 ways of guidance, 6 images"
    results = json.loads((out / "results.json").read_text())
    assert results["verdict"]


def test_only_what_the_masks_cover_is_repainted(tiny_inpaint: Path, table: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    own = (*DRAW, f"backend.model={tiny_inpaint}", "generate.method=real-aug", "generate.strength=1.0",
           "generate.mask=object", "generate.mask_from=data", "generate.mask_paste=true", "prompts.text=red owl")  # fmt: skip
    said = variegate("generate", table, *settings(*own), "--out", out)
    assert said.status == 0, said.text
    kept, changed = [], []
    names = {row["id"]: row["name"] for row in json.loads((out / "dataset/splits.json").read_text())["images"]}
    for row in rows(out):
        drawn = np.asarray(Image.open(out / "synthetic/train" / row["file_name"]), int)
        source = np.asarray(Image.open(table.parent / names[row["source"]]), int)
        apart = np.abs(drawn - source).mean(axis=2)
        kept.append(apart[:6].mean())
        changed.append(apart[10:22, 9:23].mean())
    assert max(kept) < 4 < 15 < min(changed), "but for JPEG's own noise"


def test_the_meadows_butterflies_stay_where_their_background_is_repainted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = (*DRAW, "generate.method=real-aug", "generate.strength=1.0", "generate.mask=background", "generate.mask_grow=0.03",
           "generate.mask_from=data", "generate.mask_paste=true", "dataset.meadow.n_species=2",
           "dataset.meadow.n_per_species=2")  # fmt: skip
    said = variegate("generate", "builtin:meadow", *settings(*own), "--out", out)
    assert said.status == 0, said.text
    names = {row["id"]: row["name"] for row in json.loads((out / "dataset/splits.json").read_text())["images"]}
    found = rows(out)
    assert len(found) == 4
    for row in found:
        _, class_name, number = names[row["source"]].split("/")
        (source,) = (out / "dataset/train").glob(f"{class_slug(row['label'], class_name)}/{number}.png")
        drawn = np.asarray(Image.open(out / "synthetic/train" / row["file_name"]), int)
        mask = np.asarray(Image.open(out / "dataset/masks" / source.relative_to(out / "dataset")).convert("L")) > 127
        apart = np.abs(drawn - np.asarray(Image.open(source), int)).mean(axis=2)
        assert apart[mask].mean() < 4 < 15 < apart[~mask].mean(), "but for JPEG's own noise"


@pytest.mark.parametrize("mask_from", ["data", "model"])
def test_the_page_shows_what_masks_keep(mask_from: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = (*DRAW, "generate.method=real-aug", "generate.strength=1.0", "generate.mask=background", f"generate.mask_from={mask_from}",
           "generate.mask_paste=true", "generate.mask_grow=0", "dataset.meadow.n_species=2", "dataset.meadow.n_per_species=2")  # fmt: skip
    assert variegate("generate", "builtin:meadow", *settings(*own), "--out", out).status == 0
    assert variegate("report", out).status == 0
    page = (out / "report.html").read_text()
    shown = re.findall(r'src="data:image/webp;base64,([^"]+)" alt="what is kept of it" title="(\w+)-kept"', page)
    assert len(shown) == 4
    assert "below it what its mask keeps" in page
    masks = {path.stem: path for path in (out / "masks").rglob("*.png")} if mask_from == "model" else {}
    for data, image_id in shown:
        kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 3] == 255
        assert 0.05 < kept.mean() < 0.9
        if masks:
            mask = Image.open(masks[image_id]).convert("L").resize(kept.shape, Image.Resampling.NEAREST)
            assert ((np.asarray(mask) > 127) == kept).mean() > 0.99
    next(iter(masks.values()), next((out / "dataset/masks").rglob("*.png"))).unlink()
    assert variegate("report", out).status == 0, "a mask that is gone is no reason to show nothing"
    assert (out / "report.html").read_text().count('alt="what is kept of it"') == 3


def test_masks_that_are_guesses_are_called_so(table: Path, tmp_path: Path) -> None:
    """The starter knows no rectangles of noise; it knows butterflies."""
    own = (*DRAW, "generate.method=real-aug", "generate.mask=background", "generate.mask_from=model",
           "prompts.text=a photo of a {name}")  # fmt: skip
    said = variegate("generate", table, *settings(*own), "--out", tmp_path / "run")
    assert said.status == 0 and "masks are guesses" in said.err, said.text
    assert variegate("report", tmp_path / "run").status == 0
    assert "masks are guesses" in (tmp_path / "run/report.html").read_text()
    again = variegate("generate", table, *settings(*own), "--out", tmp_path / "run")
    assert again.status == 0 and "already done" in again.err, again.text
    stopped = tmp_path / "stopped"
    with RunFolder.create(stopped) as folder:
        folder.set_meta(SEPARABILITY, "0.6")  # as where it was stopped before it drew, and its recipe was changed
    said = variegate(
        "generate", table, *settings(*own, "generate.mask=none", "generate.mask_from=data"), "--out", stopped
    )
    assert said.status == 0 and "masks are guesses" not in said.text, said.text
    meadow = settings(*own[:-1], "prompts.text=a photo of a {name} {description}", "dataset.meadow.n_per_species=1")
    said = variegate("generate", "builtin:meadow", *meadow, "--out", tmp_path / "meadow")
    assert said.status == 0 and "masks are guesses" not in said.text, said.text


def test_masks_and_models_that_do_not_fit_end_with_the_way_out(tiny_edit: Path, table: Path, tmp_path: Path) -> None:  # noqa: F811
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], *(line.rpartition(",")[0] + "," for line in lines[3:])]))
    said = variegate(
        "plan", table, *settings(*DRAW, "generate.method=real-aug", "generate.mask=object", "generate.mask_from=data")
    )
    assert said.status == 2
    assert "training images have no mask" in said.text and "generate.mask=none" in said.text
    said = variegate("plan", table, *settings(*DRAW, "generate.method=edit"))
    assert said.status == 2 and "starter is a text-to-image model" in said.text
    said = variegate("plan", table, *settings(*DRAW, "generate.method=real-aug", f"backend.model={tiny_edit}"))
    assert said.status == 2 and "use generate.method=edit" in said.text
    said = variegate("plan", table, *settings(*DRAW, "generate.method=real-aug", f"backend.unet={tiny_edit}"))
    assert said.status == 2 and f"did you mean {tiny_edit}/unet?" in said.text
