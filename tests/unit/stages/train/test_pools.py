"""Synthetic images of other runs: added with their labels, refused where they would give the test away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from variegate.errors import DataError
from variegate.files import file_sha256
from variegate.images import encode_image
from variegate.importers import import_artefact
from variegate.pipeline import Context
from variegate.recipe import Recipe, written_out
from variegate.recipe_file import dump_recipe
from variegate.stages.train import stage, work
from variegate.stages.train.pools import pool_warnings

Run = Callable[..., Context]


def rename_images(context: Context) -> None:
    """Ids of a run with another seed: other names, the same pictures."""
    for image_id, slug in context.folder.db.execute(
        "SELECT plan.id, slug FROM plan JOIN classes ON label = target"
    ).fetchall():
        new = f"ff{image_id[2:]}"
        old_path = context.folder.path(f"synthetic/train/{slug}/{image_id[:2]}/{image_id}.png")
        context.folder.write(f"synthetic/train/{slug}/ff/{new}.png", old_path.read_bytes())
        with context.folder.transaction() as db:
            db.execute("UPDATE plan SET id = ? WHERE id = ?", (new, image_id))


@pytest.fixture
def other(coloured_run: Run) -> Context:
    """A run over the same images whose synthetic ones are others."""
    context = coloured_run("other")
    rename_images(context)
    return context


def pooled(coloured_run: Run, *others: Context, **changes: dict) -> Context:
    pools = [str(one.folder.root) for one in others]
    train = {"pools": pools, **changes.pop("train", {})}
    return coloured_run("run", train=train, **changes)


def test_kept_images_of_other_runs_are_learned_from_with_their_labels(coloured_run: Run, other: Context) -> None:
    images = other.folder.synthetic_images()
    other.folder.put_decisions("human", [(images[0].id, "drop", 0.0, "ugly"), (images[1].id, "keep", 0.25, "")])
    with other.folder.transaction() as db:  # one was moved from another class, half way
        db.execute("UPDATE plan SET target = 2, strength = 0.25 WHERE id = ?", (images[2].id,))
    folder, slug = other.folder, other.folder.classes()[2].slug
    folder.write(f"synthetic/train/{slug}/ff/{images[2].id}.png", folder.path(images[2].path).read_bytes())
    context = pooled(coloured_run, other)
    workshop = stage._open_workshop(context.recipe, context.folder)
    data = work.fit_data(context.recipe.train, workshop)
    assert [len(workshop.synthetic), len(data.synthetic.pixels)] == [18 + 17, 35]
    found = {image.id: place for place, image in enumerate(workshop.synthetic)}
    assert images[0].id not in found
    assert workshop.synthetic[found[images[1].id]].weight == 0.25
    soft = data.synthetic.targets[found[images[2].id]]
    even = (1 - 0.1) * np.array([0.5, 0.0, 0.5]) + 0.1 / 3  # sqrt(0.25) of the mass moved; smoothing 0.1
    assert soft == pytest.approx(even, abs=1e-6)
    slots = work.slots_of(written_out("real+synthetic"), 0, workshop)
    assert {place >= 18 for place in slots.index[slots.is_synthetic]} == {True, False}


def test_what_refine_made_of_an_image_is_another_image(coloured_run: Run) -> None:
    twin = coloured_run("twin")
    with twin.folder.transaction() as db:
        db.execute("INSERT INTO refined SELECT id, 0.5 FROM plan")
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("drawn_format", "png"), ("refined_by", "halves")])
    context = pooled(coloured_run, twin)
    before = stage.found(context)
    assert len(stage._open_workshop(context.recipe, context.folder).synthetic) == 18 + 18
    twin.folder.set_meta("refined_by", "fractals")
    assert stage.found(context) != before, "the same ids, other pictures"


def test_the_same_image_in_two_runs_counts_once(coloured_run: Run) -> None:
    twin = coloured_run("twin")
    context = pooled(coloured_run, twin)
    assert len(stage._open_workshop(context.recipe, context.folder).synthetic) == 18


def test_a_run_may_draw_nothing_and_learn_from_pools_alone(coloured_run: Run, other: Context) -> None:
    context = pooled(coloured_run, other, generate={"method": "none"}, evaluate={"seeds": 1})
    with context.folder.transaction() as db:
        db.execute("DELETE FROM plan")
    stage.run(context)
    assert context.folder.path("train/real-synthetic/seed-0/model.safetensors").is_file()


def test_a_decision_in_a_pool_trains_again(coloured_run: Run, other: Context) -> None:
    context = pooled(coloured_run, other)
    before = stage.found(context)
    other.folder.put_decisions("human", [(other.folder.synthetic_images()[0].id, "drop", 0.0, "ugly")])
    assert stage.found(context) != before


@pytest.mark.parametrize("is_adapted", [False, True])
def test_a_run_that_saw_our_test_images_is_refused(coloured_run: Run, other: Context, is_adapted: bool) -> None:
    """Diff-Mix pools folders by name: a generator tuned on test images would not be noticed."""
    with other.folder.transaction() as db:
        if is_adapted:  # a training image there, which nothing was drawn from
            db.execute("UPDATE plan SET source = NULL")
        ours = coloured_run("run").folder.real_images("test")[0]
        used = other.folder.real_images("train")[1]
        db.execute("UPDATE real SET sha256 = ? WHERE id = ?", (ours.sha256, used.id))
    adapted = {"adapt": {"method": "lora"}, "generate": {"method": "diff-aug"}}
    recipe = Recipe.model_validate(other.recipe.model_dump() | (adapted if is_adapted else {}))
    other.folder.write("recipe.yaml", dump_recipe(recipe))
    context = pooled(coloured_run, other)
    with pytest.raises(DataError, match=r"1 images that .*other drew from or was adapted to are validation or test"):
        stage._open_workshop(context.recipe, context.folder)
    with pytest.raises(DataError, match="1 images that"):
        stage.check(context.recipe, context.folder.classes(), {ours.sha256})


def test_other_classes_other_folders_and_empty_runs_are_all_named_at_once(
    coloured_run: Run, other: Context, tmp_path: Path
) -> None:
    with other.folder.transaction() as db:
        db.execute("UPDATE classes SET name = 'pink' WHERE label = 2")
    empty = coloured_run("empty")
    empty.folder.put_decisions("human", [(i.id, "drop", 0.0, "") for i in empty.folder.synthetic_images()])
    context = pooled(coloured_run, other, empty)
    recipe = context.recipe.model_copy(
        update={
            "train": context.recipe.train.model_copy(
                update={"pools": [*context.recipe.train.pools, str(tmp_path / "no")]}
            )
        }
    )
    with pytest.raises(DataError) as caught:
        stage.check(recipe, context.folder.classes())
    text = str(caught.value)
    assert "it lacks 'red' and has 'pink'" in text
    assert "has no kept synthetic image" in text
    assert "is no run folder" in text
    assert len(caught.value.problems) == 3


# ------------------------------------------------------------------------------------------------ tables


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Diff-Mix's images of blue and green, one moved from blue to green by a quarter, as import writes them."""
    rng = np.random.default_rng(0)
    rows = [("blue", "blue", 0.7), ("blue", "green", 0.25), ("green", "green", 0.5)]
    lines = ["First Directory,Second Directory,Number,Strength,Path"]
    for number, (source, target, strength) in enumerate(rows):
        path = tmp_path / "set" / "data" / source / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), "png"))
        lines.append(f"{source},{target},{number},{strength},{source}/{number}.png")
    (tmp_path / "set" / "meta.csv").write_text("\n".join(lines) + "\n")
    import_artefact(tmp_path / "set", tmp_path / "table")
    return tmp_path / "table"


def with_table(coloured_run: Run, *tables: Path, **changes: dict) -> Context:
    pools = [str(one) for one in tables]
    return coloured_run("run", train={"pools": pools}, **changes)


def test_an_imported_table_is_learned_from_with_its_soft_labels(coloured_run: Run, table: Path) -> None:
    context = with_table(coloured_run, table, table, generate={"method": "none"}, evaluate={"seeds": 1})
    with context.folder.transaction() as db:
        db.execute("DELETE FROM plan")
    stage.check(context.recipe, context.folder.classes())
    workshop = stage._open_workshop(context.recipe, context.folder)
    assert [image.target for image in workshop.synthetic] == [0, 1, 1], "a table that is named twice counts once"
    moved = work.fit_data(context.recipe.train, workshop).synthetic.targets[1]
    even = (1 - 0.1) * np.array([0.5, 0.5, 0.0]) + 0.1 / 3  # sqrt(0.25) of the mass moved; smoothing 0.1
    assert moved == pytest.approx(even, abs=1e-6)
    summary = stage.run(context)
    assert context.folder.path("train/real-synthetic/seed-0/model.safetensors").is_file()
    assert f"{table} does not tell which real images it was made from" in summary["line"]


def test_a_table_with_another_picture_or_label_trains_again(coloured_run: Run, table: Path) -> None:
    context = with_table(coloured_run, table)
    found = [stage.found(context)]
    rows = (table / "metadata.jsonl").read_text()
    (table / "metadata.jsonl").write_text(rows.replace('"strength": 0.25', '"strength": 0.5'))
    found.append(stage.found(context))
    (table / "images" / "blue" / "0.png").write_bytes(encode_image(np.zeros((16, 16, 3), np.uint8), "png"))
    found.append(stage.found(context))
    assert len(set(found)) == 3


def test_tables_of_other_classes_gone_images_and_test_images_are_refused(coloured_run: Run, table: Path) -> None:
    context = with_table(coloured_run, table)
    classes = context.folder.classes()
    with pytest.raises(DataError, match="1 images of .*table are validation or test images here, such as 0.png"):
        stage.check(context.recipe, classes, {file_sha256(table / "images" / "blue" / "0.png")})
    with pytest.raises(DataError, match=r"has the class 'blue', and the data have not .* --classes FILE"):
        stage.check(context.recipe, classes[1:])
    (table.parent / "set" / "data" / "blue" / "0.png").unlink()
    with pytest.raises(DataError, match=r"1 of its 3 images are gone, such as .*blue/0.png"):
        stage.check(context.recipe, classes)
    (table / "metadata.jsonl").write_text('{"file_name": 3}\n')
    with pytest.raises(DataError, match=r"metadata.jsonl line 1: is no row of an image table"):
        stage.check(context.recipe, classes)


def test_nearly_the_same_picture_as_a_test_image_is_said(coloured_run: Run, table: Path) -> None:
    """DiffuseMix's blends of a test image are not that image, so their bytes tell nothing."""
    context = with_table(coloured_run, table)
    held_out = context.folder.real_images("test")
    with Image.open(held_out[0].path) as image:
        image.resize((32, 32)).save(table / "images" / "blue" / "0.png")
    said = pool_warnings(context.recipe.train.pools, held_out, context.recipe.dataset)
    assert any("1 images of or behind" in text and "0.png" in text for text in said)
