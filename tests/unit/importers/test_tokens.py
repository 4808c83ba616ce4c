"""Learned tokens of every schema come in whole, or are refused with the reason."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

import pytest
import torch
from foreign import STARTER, WIDTH, da_fusion_tokens, dasdiff_tokens, diagen_tokens, diff_mix_values, numbers, save
from safetensors.torch import load_file

from variegate.backends.adapter import read_adapter
from variegate.errors import DataError, ModelError, UserError
from variegate.importers import import_artefact

NAMES = ("arctic fox", "black grouse", "saiga")


def class_file(folder: Path, names: tuple[str, ...] | list[str]) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def imported(path: Path, out: Path, **options: object) -> tuple[dict, dict[str, torch.Tensor]]:
    record = import_artefact(path, out, **options)
    return record, load_file(out / "learned_embeds.safetensors")


@pytest.mark.parametrize("vectors", [0, 4])
def test_da_fusion_tokens_keep_their_values_and_names(tmp_path: Path, vectors: int) -> None:
    path = da_fusion_tokens(tmp_path / "pascal-0-4.pt", NAMES, vectors=vectors)
    record, rows = imported(path, tmp_path / "out", base="starter")
    facts = read_adapter(tmp_path / "out")
    assert facts.classes == NAMES
    assert facts.placeholders == ("<arctic_fox>", "<black_grouse>", "<saiga>")
    assert facts.vectors == max(vectors, 1)
    original = torch.load(path, weights_only=True)
    for key, value in original.items():
        assert torch.equal(rows[key].reshape(value.shape), value)
    assert record["facts"]["tokens"] == 3 and record["facts"]["width"] == WIDTH
    assert facts.base["model"] == "starter" and len(facts.base["fingerprint"]) == 32


def test_one_file_a_class_becomes_one_adapter_and_the_final_file_is_taken(tmp_path: Path) -> None:
    for index, name in enumerate(NAMES):
        slug = name.replace(" ", "_")
        save({f"<{slug}>": numbers(WIDTH, seed=index)}, tmp_path / "tuned" / slug / "learned_embeds.bin")
        save({f"<{slug}>": numbers(WIDTH, seed=99)}, tmp_path / "tuned" / slug / "learned_embeds-steps-500.bin")
    record, rows = imported(tmp_path / "tuned", tmp_path / "out")
    assert torch.equal(rows["<saiga>"][0], numbers(WIDTH, seed=2))
    assert record["facts"]["classes"] == 3
    assert sum("learned_embeds-steps-500.bin" in name for name in record["left_out"]) == 3


def test_two_files_with_one_placeholder_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save({"<fox>": numbers(WIDTH)}, tmp_path / "tuned" / folder / "learned_embeds.bin")
    with pytest.raises(ModelError, match="<fox> again"):
        import_artefact(tmp_path / "tuned", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noisy_copies_of_diagen_are_left_out_and_reported(tmp_path: Path) -> None:
    record, rows = imported(diagen_tokens(tmp_path / "coco-0-2.pt", ("bus", "boeing_737", "boeing")), tmp_path / "out")
    assert sorted(rows) == ["<boeing>", "<boeing_737>", "<bus>"], "a number in a name is no noise"
    assert torch.equal(rows["<bus>"][0], numbers(WIDTH, seed=0)), "the clean vector"
    assert len(record["left_out"]) == 9
    assert any("0.005, 0.01, 0.025" in note and "fresh noise" in note for note in record["notes"])
    assert record["from"] == "DIAGen"


def test_diff_mix_tokens_bring_their_class_names_in_sorted_order(tmp_path: Path) -> None:
    path = save(diff_mix_values(["wren", "crow"]), tmp_path / "learned_embeds-steps-last.bin")
    _, rows = imported(path, tmp_path / "out")
    facts = read_adapter(tmp_path / "out")
    assert facts.classes == ("crow", "wren"), "label order is that of the names"
    assert facts.placeholders == ("<class_1>", "<class_0>")
    assert torch.equal(rows["<class_0>"][0], numbers(WIDTH, seed=0))


def test_dasdiff_tokens_need_class_names_to_be_written(tmp_path: Path) -> None:
    path = dasdiff_tokens(tmp_path / "learned_embeds.bin", 3)
    assert import_artefact(path)["facts"]["classes"] == "not named in the file"
    with pytest.raises(ModelError, match=r"--classes FILE with 3 class names"):
        import_artefact(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=r"3 tokens, and --classes has 2 names"):
        import_artefact(path, tmp_path / "out", classes=[class_file(tmp_path, ["a", "b"])])
    _, rows = imported(path, tmp_path / "out", classes=[class_file(tmp_path, ["sloth", "panda", "brown"])])
    assert read_adapter(tmp_path / "out").classes == ("brown", "panda", "sloth")
    assert read_adapter(tmp_path / "out").placeholders == ("<class_2>", "<class_1>", "<class_0>")
    assert torch.equal(rows["<class_2>"][0], numbers(3, WIDTH)[2]), "values, without their graph"


def test_class_file_restores_the_spelling_that_placeholders_lose(tmp_path: Path) -> None:
    path = da_fusion_tokens(tmp_path / "tokens.pt", ("arctic fox", "f/a 18"))
    imported(path, tmp_path / "out", classes=[class_file(tmp_path, ["arctic_fox", "f/a_18"])])
    assert read_adapter(tmp_path / "out").classes == ("arctic_fox", "f/a_18")
    with pytest.raises(ModelError, match="'f/a 18'"):
        import_artefact(path, classes=[class_file(tmp_path, ["arctic_fox", "tern"])])


def test_stock_diffusers_loads_the_tokens(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    path = da_fusion_tokens(tmp_path / "tokens.pt", NAMES, vectors=2)
    _, rows = imported(path, tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    pipe.load_textual_inversion([{name: value} for name, value in rows.items()])
    table = pipe.text_encoder.get_input_embeddings().weight
    for name, value in torch.load(path, weights_only=True).items():
        ids = pipe.tokenizer.convert_tokens_to_ids([name, f"{name}_1"])
        assert torch.equal(table[ids], value)


# ------------------------------------------------------------------------------------------ refusals


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "learned_embeds.bin"
    torch.save({"<fox>": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"asks to run (posix|nt)\.system; it was not run"):
        import_artefact(path, tmp_path / "out")
    assert not Path("pwned").exists() and not (tmp_path / "out").exists()


def broken(change: str) -> dict:
    values = diff_mix_values(["crow", "wren"])
    tokens = values["learned_embeds_dict"]
    if change == "extra key":
        values["surprise"] = 1
    elif change == "nan":
        tokens["<class_1>"][3] = float("nan")
    elif change == "orphan":
        tokens["<class_7>"] = numbers(WIDTH)
    elif change == "missing vector":
        del tokens["<class_0>"]
    elif change == "shared":
        values["name2placeholder"]["wren"] = "<class_0>"
    elif change == "disagree":
        values["placeholder2name"]["<class_0>"] = "owl"
    elif change == "widths":
        tokens["<class_1>"] = numbers(7)
    elif change == "shape":
        tokens["<class_1>"] = numbers(1, 1, WIDTH)
    elif change == "integers":
        tokens["<class_1>"] = torch.zeros(WIDTH, dtype=torch.int64)
    elif change == "bomb":
        tokens["<class_1>"] = torch.zeros(1).expand(1_000_000, 1_000_000)
    elif change == "no tensor":
        tokens["<class_1>"] = "text"
    elif change == "missing part":
        del values["placeholder2name"]
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("extra key", "1 keys not understood in a file of Diff-Mix tokens: surprise"),
        ("nan", "<class_1>: not finite"),
        ("orphan", "<class_7>"),
        ("missing vector", "no vector of <class_0>"),
        ("shared", "two classes share the placeholder <class_0>"),
        ("disagree", "disagree about <class_0>"),
        ("widths", "different widths: 7, 192"),
        ("shape", r"<class_1> \[1, 1, 192\]"),
        ("integers", "torch.int64"),
        ("bomb", "larger than what the file holds"),
        ("no tensor", "no tensor but str"),
        ("missing part", "lacks placeholder2name"),
    ],
)
def test_wrong_diff_mix_files_are_refused(tmp_path: Path, change: str, said: str) -> None:
    path = save(broken(change), tmp_path / "learned_embeds-steps-last.bin")
    with pytest.raises(ModelError, match=said):
        import_artefact(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    values = {"<a>": numbers(WIDTH), "<b>": numbers(WIDTH) * float("inf"), "c": numbers(WIDTH), "d": 1}
    with pytest.raises(ModelError) as caught:
        import_artefact(save(values, tmp_path / "x.bin"))
    assert "c, d" in str(caught.value) and "<b>: not finite" in str(caught.value)


def test_duplicate_placeholders_in_a_list_are_refused(tmp_path: Path) -> None:
    path = save({"text_embeds": numbers(2, WIDTH), "placeholder_tokens": ["<a>", "<a>"]}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="share the placeholder <a>"):
        import_artefact(path)
    path = save({"text_embeds": numbers(3, WIDTH), "placeholder_tokens": ["<a>", "<b>"]}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match=r"\[3, 192\] for 2"):
        import_artefact(path)


def test_placeholders_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    path = da_fusion_tokens(tmp_path / "x.bin", ("Fox", "fox"))
    with pytest.raises(ModelError, match="differ only in case"):
        import_artefact(path)


def test_tokens_of_another_width_do_not_fit_the_base(tmp_path: Path) -> None:
    path = da_fusion_tokens(tmp_path / "x.bin", NAMES, width=768)
    with pytest.raises(ModelError, match=r"768 wide, and the text encoder of .* takes 192"):
        import_artefact(path, tmp_path / "out", base="starter")
    imported(path, tmp_path / "out")
    assert read_adapter(tmp_path / "out").base == {}


def test_unknown_weights_are_refused_by_their_keys(tmp_path: Path) -> None:
    path = save({"conv.weight": numbers(2, 2), "conv.bias": numbers(2)}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match=r"2 keys not understood .*: conv.weight, conv.bias"):
        import_artefact(path)


@pytest.mark.parametrize("kept", [0, 40, 700])
def test_cut_off_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = da_fusion_tokens(tmp_path / "x.bin", NAMES)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((ModelError, DataError), match=r"damaged|empty"):
        import_artefact(path)


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    path = da_fusion_tokens(tmp_path / "x.bin", NAMES)
    out = tmp_path / "out"
    out.mkdir()
    import_artefact(path, out)
    before = json.dumps({entry.name: entry.stat().st_mtime_ns for entry in sorted(out.iterdir())})
    with pytest.raises(DataError, match="is not empty"):
        import_artefact(path, out)
    assert before == json.dumps({entry.name: entry.stat().st_mtime_ns for entry in sorted(out.iterdir())})
    assert not list(tmp_path.glob(".*.tmp"))


def test_archives_that_torch_never_writes_are_refused(tmp_path: Path) -> None:
    import zipfile

    path = da_fusion_tokens(tmp_path / "x.pt", NAMES)
    packed, other = tmp_path / "packed.pt", tmp_path / "other.zip"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with zipfile.ZipFile(other, "w") as target:
        target.writestr("photo.jpg", b"...")
    with pytest.raises(ModelError, match="compressed archive"):
        import_artefact(packed)
    with pytest.raises(ModelError, match="zip archive and no torch file"):
        import_artefact(other)


def test_damaged_files_of_any_kind_are_refused_in_words(tmp_path: Path) -> None:
    path = save(diff_mix_values(["a", "b"], width=8), tmp_path / "whole.bin")
    data, rng = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "damaged.bin").write_bytes(bytes(damaged))
        with contextlib.suppress(UserError):  # and nothing else may be raised
            import_artefact(tmp_path / "damaged.bin")
