"""Whatever is wrong with the input: exit 2, every problem at once, where and what to do, and nothing written or lost."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driving import PLAIN_ARGUMENTS, picture, variegate

STARTER = Path(__file__).resolve().parents[2] / "src" / "variegate" / "backends" / "starter"


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refused(*arguments: str | Path, out: Path) -> str:
    """Run and expect a refusal that leaves no run folder behind."""
    said = variegate("run", *PLAIN_ARGUMENTS, *arguments, "--out", out)
    assert said.status == 2, said.text
    assert not out.exists() or not any(out.iterdir()), sorted(out.rglob("*"))
    assert "Traceback" not in said.text
    return said.err


def huge_png(path: Path, edge: int) -> None:
    """A few bytes whose header claims edge x edge pixels."""
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def test_every_bad_image_is_named_at_once_and_the_folder_is_left_alone(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder()
    whole = (root / "ant" / "0.png").read_bytes()
    (root / "ant" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "ant" / "empty.jpg").write_bytes(b"")
    (root / "bee" / "notes.jpg").write_text("this is no picture")
    huge_png(root / "bee" / "huge.png", 50_000)
    before = snapshot(root)
    said = refused(root, out=tmp_path / "out")
    for name in ("truncated.png", "empty.jpg", "notes.jpg", "huge.png"):
        assert name in said
    assert "50000" in said.replace(",", "").replace(" ", "")
    assert "skip_unreadable" in said
    assert snapshot(root) == before


def test_unreadable_images_can_be_left_out_by_choice(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder()
    (root / "ant" / "empty.jpg").write_bytes(b"")
    said = variegate("plan", root, "--no-measure", "--set", "dataset.skip_unreadable=true")
    assert said.status == 0, said.text


def test_a_class_without_images(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder()
    (root / "wasp").mkdir()
    assert "wasp" in refused(root, out=tmp_path / "out")


def test_one_class_only(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    assert "one class" in refused(make_folder({"ant": 4}), out=tmp_path / "out")


def test_a_symlink_loop_is_named_and_not_followed(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder()
    (root / "ant" / "again").symlink_to(root / "ant", target_is_directory=True)
    assert "again" in refused(root, out=tmp_path / "out")


def test_data_that_does_not_exist_suggests_the_near_name(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    make_folder()
    said = refused(tmp_path / "fotos", out=tmp_path / "out")
    assert "fotos" in said and "photos" in said


def test_unknown_builtin(tmp_path: Path) -> None:
    assert "builtin:meadow" in refused("builtin:medow", out=tmp_path / "out")


def test_typo_and_wrong_type_and_bad_value_come_together(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("generate:\n  strenght: 0.5\n  per_class: many\ntrain:\n  lr: -1\n")
    said = refused("--recipe", recipe, out=tmp_path / "out")
    assert "mine.yaml:2" in said and "did you mean 'strength'" in said
    assert "mine.yaml:3" in said and "mine.yaml:5" in said


def test_duplicate_keys_and_aliases_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 1\nseed: 2\n")
    assert "twice" in refused("--recipe", recipe, out=tmp_path / "out")
    recipe.write_text("train: &a {lr: 0.1}\nlabel: *a\n")
    assert "alias" in refused("--recipe", recipe, out=tmp_path / "out")


def test_strength_that_leaves_no_step(tmp_path: Path) -> None:
    said = refused("--set", "generate.strength=0.1", out=tmp_path / "out")
    assert "0.1" in said and "4 steps" in said


@pytest.mark.parametrize(("item", "part"), [("device=gpu", "unknown device"), ("dtype=fp16", "on a CPU")])
def test_a_device_or_dtype_that_is_not_here(item: str, part: str, tmp_path: Path) -> None:
    device = () if "device" in item else ("--set", "backend.device=cpu")
    assert part in refused("--set", f"backend.{item}", *device, out=tmp_path / "out")


def test_adapter_strategies_wait_for_an_adapter(tmp_path: Path) -> None:
    said = refused("--set", "generate.method=diff-mix", out=tmp_path / "out")
    assert "diff-mix" in said and "real-mix" in said


def test_unknown_model_and_bad_data_come_together(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    said = refused(make_folder({"ant": 2}), "--set", f"backend.model={tmp_path / 'nothing-here'}", out=tmp_path / "out")
    assert "nothing-here" in said and "one class" in said


def test_half_downloaded_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(STARTER, model)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    said = refused("--set", f"backend.model={model}", out=tmp_path / "out")
    assert "unet" in said


def test_pickle_where_safetensors_is_expected(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(STARTER, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    said = refused("--set", f"backend.model={model}", out=tmp_path / "out")
    assert ".bin" in said and "safetensors" in said


def test_second_run_in_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    from variegate.store import RunFolder

    with RunFolder.create(tmp_path / "out"):
        said = variegate("run", "--out", tmp_path / "out", *PLAIN_ARGUMENTS)
    assert said.status == 2 and "another variegate process" in said.err


def test_a_folder_with_other_things_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    said = variegate("run", "--out", tmp_path / "out", *PLAIN_ARGUMENTS)
    assert said.status == 2 and "thesis.txt" in said.err
    assert snapshot(tmp_path / "out") == {"thesis.txt": b"years of work"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own: of 300 kB, or read-only."""
    point = tmp_path / "disk"
    point.mkdir()

    def mount(options: str) -> Path:
        if (
            os.geteuid() != 0
            or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", point], check=False).returncode
        ):
            pytest.skip("mounting a small file system is not allowed here")
        return point

    yield mount
    subprocess.run(["umount", point], check=False, capture_output=True)


def test_read_only_output_folder(small_disk: Callable[[str], Path]) -> None:
    said = variegate("run", "--out", small_disk("ro") / "out", *PLAIN_ARGUMENTS)
    assert said.status == 2 and "read-only" in said.err and "--out" in said.err


def test_full_disk_keeps_what_is_done_and_says_how_to_go_on(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=300k")
    said = variegate("run", "--out", disk / "out", *PLAIN_ARGUMENTS)
    assert said.status == 2, said.text
    assert "full" in said.err and "run the same command again" in said.err
    assert not list(disk.rglob("*.tmp"))


def test_another_recipe_in_an_old_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--recipe", "none", "--out", out, *PLAIN_ARGUMENTS[:-2])
    assert variegate(*arguments, "--set", "evaluate.seeds=1").status == 0
    before = {name: data for name, data in snapshot(out).items() if not name.startswith("run.db")}
    said = variegate(*arguments, "--set", "evaluate.seeds=2", "--set", "train.steps=7")
    assert said.status == 2 and "evaluate.seeds: 1 -> 2" in said.err and "train.steps: 6 -> 7" in said.err
    assert said.err.count("--out") == 1, "one remedy for all differences"
    assert {name: data for name, data in snapshot(out).items() if not name.startswith("run.db")} == before


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({"two words": 4, "crème brûlée": 4, "🦋": 4}, id="spaces, accents and emoji"),
        pytest.param({".hidden": 4, "..dots": 4}, id="leading dots"),
        pytest.param({"x" * 200: 4, "y" * 200: 4}, id="200 characters"),
        pytest.param({"Ant": 4, "ant": 4, "ANT": 4}, id="names that differ only in case"),
        pytest.param({"<script>": 4, "{name}": 4, "a'b\"c;--": 4}, id="hostile names"),
        pytest.param({"single": 1, "several": 6}, id="a class with one image"),
    ],
)
def test_what_looks_odd_but_is_right_works(
    names: dict[str, int], make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    if (
        len({name.lower() for name in names}) < len(names)
        and (tmp_path / "CASE").mkdir() is None
        and (tmp_path / "case").exists()
    ):
        pytest.skip("this file system does not tell case apart")
    root = make_folder(names)
    said = variegate("run", root, "--out", tmp_path / "out", *PLAIN_ARGUMENTS, "--set", "dataset.size_px=32")
    assert said.status == 0, said.text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted(results["classes"]) == sorted(names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>:" not in page and "class <script>" not in page
    if "single" in names:
        assert "single" in " ".join(results["warnings"])


def test_images_of_very_different_sizes_and_shapes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for index, (width, height) in enumerate(((32, 900), (900, 32), (21, 21), (640, 480), (1200, 1200))):
            picture(number * 10 + index, width=width, height=height).save(root / name / f"{index}.png")
    said = variegate("run", root, "--out", tmp_path / "out", *PLAIN_ARGUMENTS)
    assert said.status == 0, said.text
    page = (tmp_path / "out" / "report.html").read_text()
    warning = "starter has seen drawn butterflies and nothing else"
    assert warning in page and said.err.index(warning) < said.err.index("adapt:")  # before anything slow


def test_a_setting_without_effect_is_said_and_the_run_goes_on(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    keys = ("--recipe", "none", "--set", "generate.per_real=9", "--set", "train.steps=2", "--set", "train.batch=4")
    said = variegate("run", make_folder({"ant": 8, "bee": 8}), *keys, "--out", tmp_path / "out")
    assert said.status == 0, said.text
    assert "warning: --set generate.per_real has no effect: generate.method is none, so nothing is drawn" in said.err
