"""Somebody comes with what another tool made: `variegate import` says what it is, and the pipeline takes it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from driving import command, variegate
from foreign import da_fusion_tokens, diff_mix_images, diff_mix_output, pictures

from variegate.backends.adapter import adapter_problems


def test_looking_writes_nothing_and_says_how_to_write(tmp_path: Path) -> None:
    run = diff_mix_output(tmp_path / "run", ["ant", "bee"])
    before = sorted(tmp_path.rglob("*"))
    said = variegate("import", run)
    assert said.status == 0, said.text
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert lines["found"] == "tokens+lora" and lines["from"] == "Diff-Mix" and lines["classes"] == "2"
    assert "rank            4" in said.out and "--out DIR" in lines["wrote"]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_imported_adapter_is_whole_and_the_next_command_is_named(tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    run = diff_mix_output(tmp_path / "run", ["ant", "bee"])
    said = variegate("import", run, "--out", out, "--base", "starter", "--json")
    assert said.status == 0, said.text
    answer = json.loads(said.out)
    assert answer["kind"] == "tokens+lora" and answer["facts"]["classes"] == 2
    assert sorted(Path(name).name for name in answer["wrote"]) == [
        "adapter.json",
        "learned_embeds.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    assert f"adapt.path={out}" in answer["next"] and adapter_problems(out) == []
    again = variegate("import", run, "--out", out)
    assert again.status == 2 and "is not empty" in again.err


def test_the_pipeline_draws_with_an_imported_adapter(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    said = variegate(
        "import", diff_mix_output(tmp_path / "tool", ["ant", "bee"]), "--out", tmp_path / "adapter", "--json"
    )
    _, _, _, *next_arguments = shlex.split(json.loads(said.out)["next"])
    small = ["--set", "backend.steps=2", "--set", "generate.per_real=1", "--set", "generate.strength=0.5"]
    said = variegate("generate", make_folder(), *next_arguments, *small, "--out", tmp_path / "run")
    assert said.status == 0, said.text
    rows = (tmp_path / "run" / "synthetic" / "train" / "metadata.jsonl").read_text()
    assert "<class_0>" in rows and "<class_1>" in rows


def test_a_table_of_images_says_what_it_counted(tmp_path: Path) -> None:
    source = diff_mix_images(tmp_path / "set")
    (source / "data/black_grouse/song_sparrow-000000-0.5.png").unlink()
    said = variegate("import", source, "--out", tmp_path / "out")
    assert said.status == 0, said.text
    assert "image table" in said.out and "song_sparrow-000000-0.5.png (does not exist)" in said.out
    assert "gamma 0.5" in said.out and 'load_dataset("imagefolder"' in said.out


def test_a_classifier_learns_from_an_imported_table(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """The command that import names, on data with the same classes."""
    pictures(tmp_path / "tool" / "data", ["ant/0.png", "bee/1.png"])
    rows = [
        "First Directory,Second Directory,Number,Strength,Path",
        "ant,bee,0,0.5,ant/0.png",
        "bee,bee,1,0.7,bee/1.png",
    ]
    (tmp_path / "tool" / "meta.csv").write_text("\n".join(rows) + "\n")
    said = variegate("import", tmp_path / "tool", "--out", tmp_path / "table", "--json")
    _, verb, _, *next_arguments = shlex.split(json.loads(said.out)["next"])
    small = ["--set", "train.steps=2", "--set", "evaluate.seeds=1"]
    said = variegate(verb, make_folder(), *next_arguments, *small, "--out", tmp_path / "run")
    assert said.status == 0, said.text
    assert "does not tell which real images it was made from" in said.text
    assert (tmp_path / "run" / "train" / "real-synthetic" / "seed-0" / "model.safetensors").is_file()


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def test_whatever_is_wrong_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    torch.save({"<a>": Evil()}, tmp_path / "evil.bin")
    torch.save({"weight": torch.zeros(2), "bias": torch.zeros(2)}, tmp_path / "unknown.pt")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "table.csv").write_text("file,caption\na,b\n")
    (tmp_path / "empty").mkdir()
    expected = {
        "evil.bin": "system; it was not run",
        "unknown.pt": "weight, bias",
        "picture.png": "neither weights nor text",
        "table.csv": "'file', 'caption'",
        "empty": "holds no tokens, no LoRA and no table",
        "nothing.bin": "does not exist",
    }
    for name, words in expected.items():
        said = variegate("import", tmp_path / name, "--out", tmp_path / "out")
        assert said.status == 2 and words in said.err and "Traceback" not in said.text, said.text
        assert not (tmp_path / "out").exists()
    assert not Path("pwned").exists()


def test_tokens_of_another_model_are_refused_where_the_base_is_named(tmp_path: Path) -> None:
    path = da_fusion_tokens(tmp_path / "tokens.pt", ("ant", "bee"), width=768)
    said = variegate("import", path, "--base", "starter", "--out", tmp_path / "out")
    assert said.status == 2 and "768" in said.err and "192" in said.err
    said = variegate("import", path, "--out", tmp_path / "out")
    assert said.status == 0 and "checked when drawing" in said.out


def test_help_names_the_options_without_torch(tmp_path: Path) -> None:
    answer = subprocess.run(command("import", "--help"), capture_output=True, text=True, check=True)
    assert "--classes" in answer.stdout and "--base" in answer.stdout
    code = "import sys, variegate.importers, variegate.importers.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([*command()[:1], "-c", code]).returncode == 0
