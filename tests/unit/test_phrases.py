"""Banks and text files of phrases: what is shipped keeps its promises, what users bring is read and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from variegate.errors import DataError, RecipeError
from variegate.importers.prompts import PLACES
from variegate.phrases import bank_names, find_phrases, phrases_of, read_lines
from variegate.stages.prompts.naming import Names
from variegate.templates import render

SUBJECTS = {  # what a bank for these must not put into the picture itself
    "animals": "animal cat dog horse cow sheep bird wolf bear fox deer lion person man woman child hunter",
    "birds-and-insects": "animal bird insect butterfly bee beetle moth wasp feeder person man woman child",
    "plants": "plant flower mushroom fruit rose tulip oak person man woman child bee",
    "products": "product item object phone shoe bag bottle chair person man woman child",
    "vehicles": "vehicle car truck bus train bicycle motorcycle boat ship plane driver person man woman",
    "defects": "defect scratch crack dent stain hole part screw person man woman",
    "medical": "lesion tumour mole wound disease patient person man woman child doctor",
}


def test_there_is_a_bank_for_each_domain() -> None:
    assert bank_names("environments") == sorted(SUBJECTS)
    assert bank_names("styles") == ["art", "camera", "edits", "light"]


@pytest.mark.parametrize("bank", sorted(SUBJECTS))
def test_places_begin_with_a_preposition_repeat_nothing_and_name_no_subject(bank: str) -> None:
    found = phrases_of(bank, "environments")
    assert 30 <= len(found.phrases) <= 60 and found.repeated == 0
    assert [phrase for phrase in found.phrases if phrase.split()[0] not in PLACES] == []
    assert [phrase for phrase in found.phrases if len(phrase.split()) > 8 or phrase != phrase.strip(" ,.")] == []
    subjects = Names(SUBJECTS[bank].split())
    assert {phrase: subjects.mentions(phrase) for phrase in found.phrases if subjects.mentions(phrase)} == {}
    assert find_phrases(bank, "environments").read_text().startswith("# ")


@pytest.mark.parametrize("bank", ["art", "camera", "edits", "light"])
def test_styles_are_twenty_or_more_and_say_what_they_are_safe_for(bank: str) -> None:
    found = phrases_of(bank, "styles")
    assert len(found.phrases) >= 20 and found.repeated == 0
    header = find_phrases(bank, "styles").read_text().split("\n\n")[0]
    assert any(word in header for word in ("medical", "classes", "Safe"))
    filled = [render("a photo of a {name}, {style}", name="cat", style=phrase) for phrase in found.phrases]
    assert not [text for text in filled if ", ," in text or text.endswith(",") or "  " in text]


def test_a_file_with_repeated_lines_counts_each_phrase_once_as_dasdiffs_34_of_100(tmp_path: Path) -> None:
    path = tmp_path / "env.txt"
    path.write_text("\n".join(["# places", *(f"in  place {k % 34}," for k in range(100)), ""]))
    found = phrases_of(str(path), "environments")
    assert len(found.phrases) == 34 and found.phrases[0] == "in place 0"
    assert found.repeats("env.txt") == ["env.txt: 66 of 100 lines repeat another one and count once"]


def test_names_that_are_no_bank_and_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'animals'"):
        phrases_of("animls", "environments")
    with pytest.raises(RecipeError, match="did you mean 'groups'"):
        phrases_of("group", "environments")
    with pytest.raises(RecipeError, match="banks: art, camera, edits, light"):
        phrases_of("nothing/here.txt", "styles")
    (tmp_path / "a.txt").write_text("# only a remark\n\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "c.txt").write_text("word " * 200)
    for name, said in {"a.txt": "has no phrases", "b.txt": "no UTF-8", "c.txt": "999 characters"}.items():
        with pytest.raises(DataError, match=said):
            phrases_of(str(tmp_path / name), "styles")
    with pytest.raises(DataError, match="cannot be read"):
        read_lines(tmp_path / "nothing.txt")


def test_only_line_ends_end_a_line_and_comments_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("# mine\r\n\na \u2028 line\u0085with signs\n", encoding="utf-8")
    assert read_lines(path) == [(2, ""), (3, "a \u2028 line\u0085with signs"), (4, "")]
