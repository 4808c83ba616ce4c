"""The dataset card: true, complete, free of this machine's folders, and no hindrance to load_dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from variegate.card import CARD, write_card
from variegate.citations import PAPERS, papers_of
from variegate.metadata import write_metadata
from variegate.recipe import Recipe, overlaid
from variegate.stages.curate import stage as curate


def parts(text: str) -> tuple[dict, str]:
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


@pytest.fixture
def carded(coloured_run):
    """A curated run with a card; call it with changes to the recipe."""

    def make(**changes):
        context = coloured_run(curate=[{"score": "blank"}], **changes)
        write_metadata(context.folder, gamma=0.5, kappa=1.0)
        curate.run(context)
        return context, context.folder.path(CARD).read_text()

    return make


def test_the_header_is_one_the_hub_reads(carded) -> None:
    header, body = parts(carded()[1])
    assert header["task_categories"] == ["image-classification"] and header["size_categories"] == ["n<1K"]
    assert header["license"] == "unknown" and "synthetic" in header["tags"]
    assert body.startswith("# Synthetic images for builtin:meadow\n")


def test_counts_recipe_and_limits_are_said(carded) -> None:
    context, text = carded()
    _, body = parts(text)
    assert "| blue | 5 | 6 | 5 |" in body, "one black image of each class was dropped"
    assert "Left out of training by variegate: blank 3." in body
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert recipe == context.recipe.model_dump(mode="json")
    assert "Not measured" in body and "Known limits" in body


def test_images_from_text_alone_are_not_said_to_show_real_ones(carded) -> None:
    """Strength 1 is noise alone: the default recipe draws half of its images so."""

    def said(context, **changes: dict) -> str:
        write_card(context.folder, Recipe.model_validate(overlaid(context.recipe.model_dump(), changes)))
        return context.folder.path(CARD).read_text().split("## Known limits")[1]

    context, _ = carded()
    assert "15 of the 18 images were made from a real one and may show" in said(context)
    assert "the other 3 were drawn from text and noise alone." in said(context)
    with context.folder.transaction() as db:
        db.execute("UPDATE plan SET strength = 1.0 WHERE target < 2")
    assert "5 of the 18 images were made from a real one" in said(context)
    assert "15 of the 18 images" in said(context, generate={"mask": "object"}), "what a mask keeps stays"
    with context.folder.transaction() as db:
        db.execute("UPDATE plan SET strength = 0.5, source = (SELECT id FROM real LIMIT 1)")
    assert "Every image was made from a real one" in said(context)
    with context.folder.transaction() as db:
        db.execute("UPDATE plan SET source = NULL")
    assert "a real one" not in said(context)


def test_load_dataset_reads_the_folder_with_its_card(carded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    context, _ = carded()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(context.folder.path("synthetic")), cache_dir=str(tmp_path / "cache")
    )
    assert list(loaded) == ["train"] and len(loaded["train"]) == 18
    assert {"image", "class_name", "prompt", "soft_label"} <= set(loaded["train"].column_names)


def test_folders_of_this_machine_are_left_out(carded) -> None:
    _, text = carded(
        dataset={"path": "/home/ann/secret/birds"},
        backend={"model": "/srv/models/painter"},
        train={"pools": ["/home/ann/old"]},
    )
    assert "/home/ann" not in text and "/srv/models" not in text
    assert "`birds`" in text and "`.../painter`" in text and ".../old" in text
    _, text = carded(dataset={"path": "hf:/home/ann/secret/birds"})
    assert "/home/ann" not in text and "`birds`" in text


def test_validation_images_that_said_when_to_stop_are_owned_to(carded) -> None:
    context, text = carded()
    assert "validation and test images took no part" in text
    adapt = {"method": "lora", "early_stop": 2}
    changes = {"adapt": adapt, "generate": {"method": "diff-aug"}}
    write_card(context.folder, Recipe.model_validate(overlaid(context.recipe.model_dump(), changes)))
    text = context.folder.path(CARD).read_text()
    assert "validation images said when to stop" in text and "took no part" in text


def test_the_models_own_card_tells_its_licence(carded, tmp_path: Path) -> None:
    context, _ = carded()
    assert "Licence: unknown; ask before passing images on." in context.folder.path(CARD).read_text()
    (tmp_path / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# a model\n")
    context.folder.set_meta("backend", f'{{"path": "{tmp_path}"}}')
    write_card(context.folder, context.recipe)
    header, body = parts(context.folder.path(CARD).read_text())
    assert "Licence: creativeml-openrail-m." in body and header["license"] == "other"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    write_card(context.folder, context.recipe)
    assert parts(context.folder.path(CARD).read_text())[0]["license"] == "apache-2.0", "the meadow's and the model's"


def test_the_papers_of_a_recipe_are_cited(carded) -> None:
    _, text = carded(adapt={"method": "tokens+lora"}, generate={"method": "diff-mix"}, refine=[{"op": "concat"}])
    for key in ("sdedit", "lora", "textual-inversion", "diff-mix", "diffusemix"):
        assert f"@misc{{{key}," in text and PAPERS[key].arxiv in text
    assert "@misc{real-guidance" not in text and "soft_label" in text
    assert papers_of(Recipe.model_validate({"generate": {"method": "none"}, "evaluate": {"arms": ["real"]}})) == []


def test_hostile_class_names_stay_in_their_cell(carded) -> None:
    context, _ = carded()
    with context.folder.transaction() as db:
        db.execute("UPDATE classes SET name = 'a | b\n<script>' WHERE label = 0")
    write_card(context.folder, context.recipe)
    assert "| a \\| b &lt;script> | 5 | 6 | 5 |" in context.folder.path(CARD).read_text()
