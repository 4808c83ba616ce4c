"""Files of prompts: DIAGen's CSV, JSON lines, plain text; every class served or named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from variegate.errors import DataError
from variegate.prompt_lists import read_prompts, texts_by_class

HEADER = "class_name;class_idx;prompt\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_diagens_csv_is_read_with_its_quotes_where_diagen_splits_at_every_semicolon(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="") as file:
        rows = [
            ("cell phone", 1, 'a "{name}"; on a table'),
            ("cell phone", 2, "a {name},\nwet"),
            ("car", 1, "a {name}"),
        ]
        csv.writer(file, delimiter=";").writerows([("class_name", "class_idx", "prompt"), *rows])
    found = texts_by_class(read_prompts(path), ["car", "cell_phone"], path)
    assert found.texts == (("a {name}",), ('a "{name}"; on a table', "a {name},\nwet"))
    assert found.notes == ()


def test_a_class_without_prompts_is_named_where_diagen_fails_with_a_key_error_later(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEADER + "car;1;a {name}\ncarot;1;a {name}\n")
    with pytest.raises(DataError) as caught:
        texts_by_class(read_prompts(path), ["car", "carrot", "dog"], path)
    said = str(caught.value)
    assert "no prompt for 2 of 3 classes: 'carrot', 'dog'" in said and "'carot'" in said


def test_json_lines_and_text_may_serve_every_class(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        '{"prompt": "a {name} {environment}"}\n{"class_name": "cell phone", "prompt": "a wet {name}"}\n'
        '{"class_name": "bus", "prompt": "a {name}"}\n{"prompt": "a {name} {environment}"}\n',
    )
    found = texts_by_class(read_prompts(path), ["car", "cell_phone"], path)
    assert found.texts == (("a {name} {environment}",), ("a {name} {environment}", "a wet {name}"))
    assert "1 of 4 prompts repeat another one" in found.notes[0] and "'bus'" in found.notes[1]
    path = write(tmp_path / "p.txt", "# mine\na {name}\n\nthe  {name}, {style}\n")
    assert texts_by_class(read_prompts(path), ["car"], path).texts == (("a {name}", "the {name}, {style}"),)


def test_a_name_that_fits_two_classes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", HEADER + "hot  dog;1;a {name}\n")
    with pytest.raises(DataError, match="may be any of 'hot_dog', 'hot dog'"):
        texts_by_class(read_prompts(path), ["hot_dog", "hot dog"], path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", HEADER + "car;1;a {nmae}\n;1;a\n", "line 3: class_name is empty"),
        ("p.csv", HEADER + "car;1;a {nmae}\n", r"unknown \{nmae\}"),
        ("p.csv", HEADER + "car;1;a {name\n", "unbalanced brace"),
        ("p.csv", HEADER + "car;1;\n", "prompt is empty"),
        ("p.csv", "class;prompt\ncar;a\n", "columns not understood: 'class'"),
        ("p.jsonl", '{"class": "car", "prompt": "a"}\n', "unknown key 'class'"),
        ("p.jsonl", "car\n", "is no JSON"),
        ("p.jsonl", '{"class_name": 3, "prompt": "a"}\n', "class_name is 3"),
        ("p.jsonl", '["a"]\n{"class_name": "car"}\n', "line 2: has no prompt"),
        ("p.txt", "\n", "has no prompts"),
        ("p.txt", "a {}\n", r"unknown \{\}"),
    ],
)
def test_wrong_files_are_refused_with_their_lines(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_prompts(write(tmp_path / name, text))
    with pytest.raises(DataError, match="does not exist"):
        read_prompts(tmp_path / "other.csv")
