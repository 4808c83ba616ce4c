"""Image tables, prompts, results and filters of other tools: every row counted, every column understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import dasdiff_images, diff_mix_images, diffusemix_tree, filter_values, save
from PIL import Image

from variegate.classifier.models import build_model, load_classifier
from variegate.encoders import check_encoder, encoder_fingerprint
from variegate.errors import DataError, ModelError
from variegate.importers import import_artefact
from variegate.recipe_file import load_recipe


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_diff_mix_table_has_soft_labels_and_leaves_the_images_alone(tmp_path: Path) -> None:
    source = diff_mix_images(tmp_path / "shot5_diff-mix")
    before = snapshot(source)
    record = import_artefact(source, tmp_path / "out")
    rows = {row["file_name"]: row for row in lines(tmp_path / "out" / "metadata.jsonl")}
    mixed = rows["images/song_sparrow/black_grouse-000002-0.25.png"]
    assert mixed["class_name"] == "black grouse" and mixed["label"] == 0 and mixed["source_class"] == "song sparrow"
    assert mixed["strength"] == 0.25
    assert mixed["soft_label"] == [{"label": 1, "weight": 0.5}, {"label": 0, "weight": 0.5}]
    same = rows["images/black_grouse/black_grouse-000001-0.7.png"]
    assert same["soft_label"] == [{"label": 0, "weight": 1.0}]
    assert record["facts"]["images"] == 3 and record["facts"]["between_classes"] == 2
    assert any("gamma 0.5" in note for note in record["notes"])
    assert snapshot(source) == before


def test_the_table_loads_as_an_hf_imagefolder(tmp_path: Path) -> None:
    from datasets import load_dataset

    import_artefact(diff_mix_images(tmp_path / "set"), tmp_path / "out")
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c"))
    assert len(loaded) == 3 and loaded[0]["image"].size == (8, 8)
    assert set(loaded["class_name"]) == {"black grouse", "song sparrow"}


def test_missing_and_broken_images_are_counted_and_named(tmp_path: Path) -> None:
    source = diff_mix_images(tmp_path / "set")
    (source / "data/black_grouse/song_sparrow-000000-0.5.png").unlink()
    (source / "data/song_sparrow/black_grouse-000002-0.25.png").write_text("no picture")
    record = import_artefact(source / "meta.csv", tmp_path / "out")
    assert record["facts"]["images"] == 1 and record["facts"]["images_unusable"] == 2
    assert any("song_sparrow-000000-0.5.png (does not exist)" in name for name in record["left_out"])
    assert len(lines(tmp_path / "out" / "metadata.jsonl")) == 1
    assert json.loads((tmp_path / "out" / "import.json").read_text())["left_out"] == record["left_out"]


def test_class_file_gives_the_label_numbers_of_the_users_data(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("albatross\nsong_sparrow\nblack_grouse\n")
    import_artefact(diff_mix_images(tmp_path / "set"), tmp_path / "out", classes=[names])
    assert {(row["label"], row["class_name"]) for row in lines(tmp_path / "out" / "metadata.jsonl")} == {
        (1, "black_grouse"),
        (2, "song_sparrow"),
    }
    names.write_text("albatross\nblack_grouse\n")
    with pytest.raises(DataError, match="'song sparrow'"):
        import_artefact(tmp_path / "set", classes=[names])


def test_dasdiff_table_is_of_text_alone(tmp_path: Path) -> None:
    import_artefact(dasdiff_images(tmp_path / "set"), tmp_path / "out")
    rows = lines(tmp_path / "out" / "metadata.jsonl")
    assert [row["label"] for row in rows] == [0, 0, 1, 1]
    assert all(
        row["source_class"] is None and row["soft_label"] == [{"label": row["label"], "weight": 1.0}] for row in rows
    )
    with Image.open(tmp_path / "out" / rows[0]["file_name"]) as image:
        assert image.size == (8, 8)


def test_diffusemix_tree_lists_its_blended_images(tmp_path: Path) -> None:
    record = import_artefact(diffusemix_tree(tmp_path / "work" / "result").parent, tmp_path / "out")
    rows = lines(tmp_path / "out" / "metadata.jsonl")
    assert len(rows) == 4 and {row["prompt"] for row in rows} == {"sunset", "watercolor art"}
    assert all("_blended_" in row["file_name"] for row in rows)
    assert record["facts"]["classes"] == 2
    import_artefact(tmp_path / "work" / "result" / "generated", tmp_path / "generated")
    assert all("_generated_" in row["file_name"] for row in lines(tmp_path / "generated" / "metadata.jsonl"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",0.5,", ",1.5,", "Strength is '1.5'"),
        (",0.5,", ",nan,", "Strength is 'nan'"),
        (",0,", ",zero,", "Number is 'zero'"),
        ("Number,", "Number,Seed,", "columns not understood: 'Seed'"),
        ("Strength,", "Power,", "lacks the columns 'Strength'"),
        ("black_grouse/song_sparrow-000000", "../../etc/song_sparrow-000000", "leaves the folder"),
        ("black_grouse/song_sparrow-000000", "/etc/song_sparrow-000000", "leaves the folder"),
        ("song_sparrow/black_grouse-000002-0.25", "black_grouse/black_grouse-000001-0.7", "twice"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = diff_mix_images(tmp_path / "set") / "meta.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=said):
        import_artefact(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_without_its_images_is_refused(tmp_path: Path) -> None:
    path = diff_mix_images(tmp_path / "set") / "meta.csv"
    alone = tmp_path / "alone" / "meta.csv"
    alone.parent.mkdir()
    alone.write_text(path.read_text())
    with pytest.raises(DataError, match="none of its 3 images can be read"):
        import_artefact(alone)


# ------------------------------------------------------------------------------------------ prompts


def test_environment_file_becomes_a_valid_recipe(tmp_path: Path) -> None:
    path = tmp_path / "bear_env_prompt.txt"
    path.write_text("in a snowy forest\nbeside a river\nin a  snowy forest\n\non a rock: wet, grey\n")
    record = import_artefact(path, tmp_path / "out")
    assert record["facts"] == {"lines": 4, "different": 3, "repeated": 1}
    section = load_recipe(str(tmp_path / "out" / "prompts.yaml")).prompts
    assert section.environments == ["in a snowy forest", "beside a river", "on a rock: wet, grey"]
    assert section.text == "a photo of a {name}, {environment}"


def test_any_other_text_is_no_environment_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bear\npanda\nin snow\n")
    with pytest.raises(DataError, match="no list of places"):
        import_artefact(tmp_path / "classes.txt")


DIAGEN = (
    "class_name;class_idx;prompt\ncar;1;a photo of a red {name}, at dusk\ncar;2;a photo of a {name}\nbus;1;a {name}\n"
)


def test_diagen_prompts_keep_their_classes_and_say_how_to_draw_with_them(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(DIAGEN)
    record = import_artefact(tmp_path / "prompts.csv", tmp_path / "out")
    assert lines(tmp_path / "out" / "prompts.jsonl") == [
        {"class_name": "car", "prompt": "a photo of a red {name}, at dusk"},
        {"class_name": "car", "prompt": "a photo of a {name}"},
        {"class_name": "bus", "prompt": "a {name}"},
    ]
    assert record["facts"]["classes"] == 2 and record["facts"]["prompts_each"] == "1 to 2"
    assert record["next"].endswith(f"prompts.file={tmp_path / 'out'}/prompts.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a {name}\n", "a bus\n", r"needs the slot \{name\}"),
        ("a {name}\n", "a {name} {0.__class__}\n", r"uses unknown \{0.__class__\}; known: name"),
        ("a {name}\n", "a {name\n", "unbalanced brace"),
        ("bus;1", "bus;one", "class_idx is 'one'"),
        ("bus;1;", "bus;1;2;", "has 4 fields"),
        ("class_idx;", "class_idx;model;", "columns not understood: 'model'"),
    ],
)
def test_wrong_prompt_files_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "prompts.csv").write_text(DIAGEN.replace(old, new))
    with pytest.raises(DataError, match=said):
        import_artefact(tmp_path / "prompts.csv")


# ------------------------------------------------------------------------------------------ results and filters


def test_results_are_summarised_over_seeds(tmp_path: Path) -> None:
    rows = [",seed,examples_per_class,epoch,value,metric,split"]
    for seed, values in enumerate([(0.2, 0.6, 0.5), (0.3, 0.4, 0.7)]):
        rows += [f"{len(rows)},{seed},4,{epoch},{value},Accuracy,Validation" for epoch, value in enumerate(values)]
        rows.append(f"{len(rows)},{seed},4,2,0.9,Accuracy Bus,Validation")
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    record = import_artefact(tmp_path / "results.csv", tmp_path / "out")
    assert record["facts"]["4-shot validation accuracy"].startswith("last 0.6000 ± 0.1414, best 0.6500 (2 seeds)")
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {item["metric"] for item in summary} == {"Accuracy", "Accuracy Bus"}
    (tmp_path / "results.csv").write_text("\n".join([*rows, "9,0,4,2,,Accuracy,Validation"]))
    with pytest.raises(DataError, match="line 10: has no number"):
        import_artefact(tmp_path / "results.csv")


def test_a_filter_becomes_a_classifier_that_judges_and_can_be_learned_from(tmp_path: Path) -> None:
    values = filter_values()
    path = save(values, tmp_path / "filter_coco_0_2.pth")
    (tmp_path / "names.txt").write_text("bus\ncar\nvan\n")
    import_artefact(path, tmp_path / "out", classes=[tmp_path / "names.txt"])
    net, about = load_classifier(tmp_path / "out" / "model.safetensors")
    assert about["classes"] == ["bus", "car", "van"] and about["size_px"] == 224 and "seen" not in about
    features = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    plain = features @ values["out.weight"].T + values["out.bias"]
    assert torch.allclose(net.get_classifier()(features), plain / 1.5, atol=1e-4), "calibrated as it was"
    assert (
        encoder_fingerprint(f"classifier:{tmp_path / 'out'}") and check_encoder(f"classifier:{tmp_path / 'out'}") == []
    )
    build_model("resnet50", num_classes=7, size_px=64, pretrained=str(tmp_path / "out/model.safetensors"), seed=0)
    nameless = import_artefact(path, tmp_path / "nameless")
    assert "names no classes" in " ".join(nameless["notes"])
    (tmp_path / "out" / "model.safetensors").unlink()

    values["base_model.layer9.weight"] = torch.zeros(1)
    del values["base_model.conv1.weight"]
    values["num_classes"], values["temperature"] = torch.tensor(3), torch.tensor([1.5])
    with pytest.raises(ModelError) as caught:
        import_artefact(save(values, path))
    assert "base_model.layer9.weight" in str(caught.value) and "base_model.conv1.weight" in str(caught.value)
    path.unlink()


def test_options_that_say_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "env.txt").write_text("in snow\non ice\n")
    (tmp_path / "names.txt").write_text("bear\n")
    with pytest.raises(DataError) as caught:
        import_artefact(tmp_path / "env.txt", base="starter", classes=[tmp_path / "names.txt"])
    assert "--base" in str(caught.value) and "--classes" in str(caught.value)


def test_every_wrong_argument_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError) as caught:
        import_artefact(
            tmp_path / "no.bin", tmp_path / "out", base=str(tmp_path / "nomodel"), classes=[tmp_path / "no.txt"]
        )
    for word in ("no.bin", "mine.txt", "nomodel", "no.txt"):
        assert word in str(caught.value)


def test_places_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    source = diff_mix_images(tmp_path / "set")
    with pytest.raises(DataError, match="lies among the images"):
        import_artefact(source, source / "data" / "out")
    assert not (source / "data" / "out").exists() and not list((source / "data").glob(".*"))
    import_artefact(source, tmp_path / "out")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "adapter.json").write_text("{}")
    with pytest.raises(DataError, match="adapter of variegate's own"):
        import_artefact(tmp_path / "own")
    with pytest.raises(DataError, match="neither file nor folder"):
        import_artefact(Path("/dev/null"))
