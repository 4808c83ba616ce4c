"""Tables of images: CSV as people and Excel write them, JSONL, Parquet, and everything that can be wrong in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from variegate.errors import DataError
from variegate.recipe import Recipe
from variegate.stages.dataset.listing import Listing
from variegate.stages.dataset.source import read_source
from variegate.stages.dataset.stage import check
from variegate.stages.dataset.tables import find_metadata, read_table


def plant(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def text_of(listing: Listing) -> str:
    return "\n".join(str(problem) for problem in listing.problems)


ROWS = [
    {"file_name": "img/1.png", "label": "cat", "split": "train", "group": "g1", "caption": "a, cat", "mask": "m/1.png"},
    {"file_name": "img/2.png", "label": "dog", "split": "validation", "group": "g2", "caption": "a dog", "mask": ""},
    {"file_name": "img/3.png", "label": "dog", "split": "test", "group": "", "caption": "", "mask": ""},
]


def write_csv(path: Path, delimiter: str = ",", prefix: str = "") -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(prefix)
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{key: value or None for key, value in row.items()} for row in ROWS]), path)


WRITERS = {
    "t.csv": write_csv,
    "excel.csv": lambda path: write_csv(path, ";", "\ufeff"),
    "t.tsv": lambda path: write_csv(path, "\t"),
    "t.jsonl": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n"),
    "t.parquet": write_parquet,
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_kind_of_table_says_the_same(tmp_path, name):
    plant(tmp_path, "img/1.png", "img/2.png", "img/3.png", "m/1.png")
    WRITERS[name](tmp_path / name)
    listing = read_table(tmp_path / name, name)
    assert listing.problems == ()
    first, second, third = listing.images
    assert (first.name, first.class_name, first.split, first.group, first.caption) == (
        "img/1.png",
        "cat",
        "train",
        "g1",
        "a, cat",
    )
    assert (first.mask, first.content) == (tmp_path / "m/1.png", tmp_path / "img/1.png")
    assert (second.split, second.mask) == ("val", None)
    assert (third.split, third.group, third.caption) == ("test", None, None)


def test_two_columns_are_enough_and_numbers_are_names(tmp_path):
    plant(tmp_path, "1.png", "2.png")
    (tmp_path / "t.jsonl").write_text(
        '{"file_name": "1.png", "label": 3}\n\n{"file_name": "2.png", "label": 4.0, "x": [1]}\n'
    )
    listing = read_table(tmp_path / "t.jsonl", "t")
    assert [image.class_name for image in listing.images] == ["3", "4"]
    assert {image.split for image in listing.images} == {None}


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("filename,label", "has no column file_name (it has filename, label) — is it called filename?"),
        ("path,label", "has no column file_name (it has path, label) — rename the column 'path'"),
        ("file_name,labels", "has no column label (it has file_name, labels) — is it called labels?"),
        ("file_name,class", "rename the column 'class'"),
    ],
)
def test_wrong_columns_get_a_hint(tmp_path, header, wanted):
    (tmp_path / "t.csv").write_text(f"{header}\na.png,cat\n")
    assert wanted in text_of(read_table(tmp_path / "t.csv", "t.csv"))


def test_a_misspelt_optional_column_is_told(tmp_path):
    plant(tmp_path, "1.png")
    (tmp_path / "t.csv").write_text("file_name,label,captoin,note\n1.png,cat,hi,x\n")
    assert read_table(tmp_path / "t.csv", "t").warnings == ("column 'captoin' is not used; did you mean caption?",)


def test_all_missing_files_are_counted_and_ten_shown(tmp_path):
    plant(tmp_path, "here.png")
    rows = "".join(f"gone{k}.png,cat\n" for k in range(25))
    (tmp_path / "t.csv").write_text(f"file_name,label\nhere.png,dog\n{rows}sub\\win.png,cat\n")
    listing = read_table(tmp_path / "t.csv", "t")
    text = text_of(listing)
    assert text.count("does not exist") == 10
    assert "t.csv line 3: gone0.png does not exist" in text
    assert f"and 16 more missing files — file names are relative to {tmp_path}" in text


def test_wrong_rows_are_all_told(tmp_path):
    plant(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "t.csv").write_text(
        "file_name,label,split\n1.png,,train\n,cat,train\n2.png,cat,tset\n3.png,cat,train\n3.png,dog,train\n2.png,cat,\n"
    )
    text = text_of(read_table(tmp_path / "t.csv", "t"))
    for wanted in (
        "t.csv line 2: label is empty",
        "t.csv line 3: file_name is empty",
        "t.csv line 4: split is 'tset' (did you mean test?)",
        "t.csv line 6: names 3.png again, as t.csv line 5 does",
        "t.csv line 7: split is ''",
    ):
        assert wanted in text


def test_broken_tables_are_explained(tmp_path):
    cases = {
        "short.csv": (b"file_name,label\na.png\n", "short.csv line 2: has 1 fields, the header has 2"),
        "quote.csv": (b'file_name,label\n"a.png,cat\n', "is not valid CSV"),
        "latin.csv": ("file_name,label\né.png,cat\n".encode("latin-1"), "is not UTF-8 text"),
        "bad.jsonl": (b'{"file_name": "a.png", "label": "cat"}\n{oops\n', "bad.jsonl line 2: is not valid JSON"),
        "list.jsonl": (b"[1, 2]\n", "list.jsonl line 1: is no JSON object but list"),
        "bad.parquet": (b"PAR1 no", "is not a Parquet file"),
        "empty.csv": (b"", "has no column file_name (it has none)"),
        "header.csv": (b"file_name,label\n", "has no rows"),
    }
    for name, (data, wanted) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert wanted in text_of(read_table(tmp_path / name, name)), name


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_wrong_row_is_found_by_table_and_row(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert f"{name} {'row' if name == 't.parquet' else 'line'} 2: img/2.png does not exist" in text_of(
        read_table(tmp_path / name, name)
    )


def test_of_two_tables_in_one_folder_each_is_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "1.png", "label": "cat"}\n')
    (tmp_path / "test/metadata.jsonl").write_text('{"name": "1.png", "label": "cat"}\n')
    with pytest.raises(DataError) as caught:
        check(Recipe.model_validate({"dataset": {"path": str(tmp_path)}}))
    assert "train/metadata.jsonl line 1: 1.png does not exist" in str(caught.value)
    assert f"{tmp_path}/test/metadata.jsonl: has no column file_name" in str(caught.value)


def test_parquet_with_images_inside_points_to_hf(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), tmp_path / "t.parquet")
    assert f"hf:{tmp_path}" in text_of(read_table(tmp_path / "t.parquet", "t"))


def test_split_folders_without_a_table_beside_others_are_refused(tmp_path):
    plant(tmp_path, "train/1.png", "test/cat/1.png", "test/dog/2.png")
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "1.png", "label": "cat"}\n')
    with pytest.raises(DataError, match="test/: holds images and no table of their labels"):
        check(Recipe.model_validate({"dataset": {"path": str(tmp_path)}}))


def test_a_metadata_table_that_cannot_be_read_is_told(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "metadata.csv").write_bytes("file_name,label\ncat/1.png,k\u00e4tzchen\n".encode("latin-1"))
    with pytest.raises(DataError, match="metadata.csv.*UTF-8"):
        check(Recipe.model_validate({"dataset": {"path": str(tmp_path)}}))


def test_metadata_of_other_tools_beside_class_folders_is_passed_over(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/2.png")
    for content in (b"image;author;note\na;b;c;d\n", "caf\u00e9,x\n".encode("latin-1"), b"# a comment\na,b,c\n"):
        (tmp_path / "metadata.csv").write_bytes(content)
        assert find_metadata(tmp_path) == []
    plant(tmp_path / "more", "train/1.png", "test/1.png", "test_masks/1.png")
    for split in ("train", "test"):
        (tmp_path / f"more/{split}/metadata.csv").write_text("file_name,label,mask\n1.png,cat,../test_masks/1.png\n")
    listing = read_source(Recipe.model_validate({"dataset": {"path": str(tmp_path / "more")}}))
    assert [image.split for image in listing.images] == ["test", "train"], "a folder of masks is no split"


def test_labelled_metadata_makes_a_folder_a_table(tmp_path):
    plant(tmp_path, "train/1.png", "test/1.png")
    for split in ("train", "test"):
        (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "1.png", "label": "cat"}\n')
    tables = find_metadata(tmp_path)
    assert [(table.parent.name, split, prefix) for table, split, prefix in tables] == [
        ("test", "test", "test/"),
        ("train", "train", "train/"),
    ]
    listing = read_table(tables[0][0], "x", split="test", prefix="test/")
    assert [(image.name, image.split) for image in listing.images] == [("test/1.png", "test")]
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat"}\n')
    assert len(find_metadata(tmp_path)) == 1
