"""Teaching the model the user's classes, from the command line: adapted, drawn with, reported, killed, reused, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from driving import LEARN, QUICK, Said, settings, variegate
from PIL import Image

STARTER = Path(__file__).resolve().parents[2] / "src" / "variegate" / "backends" / "starter"


def hashes(out: Path) -> dict[str, str]:
    """The adapter's weights, as a user would compare them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "adapt").glob("*.safetensors"))
    }


def drawn(out: Path) -> dict[tuple[str, int], np.ndarray]:
    """Pictures by class and noise seed."""
    rows = [json.loads(line) for line in (out / "synthetic/train/metadata.jsonl").read_text().splitlines()]
    folder = out / "synthetic/train"
    return {
        (row["class_name"], row["seed"]): np.asarray(Image.open(folder / row["file_name"])).astype(int) for row in rows
    }


def reused(adapter: Path, *items: str) -> tuple[str, ...]:
    return (*QUICK, *settings("adapt.method=file", f"adapt.path={adapter}", *items))


def refused(*arguments: str | Path, out: Path, verb: str = "run", early: bool = True) -> str:
    """Run and expect a refusal that leaves no run folder behind; with `early` false, one that leaves no adapter."""
    said = variegate(verb, *arguments, "--out", out)
    assert said.status == 2, said.text
    assert "Traceback" not in said.text
    left = sorted(out.rglob("*")) if early else sorted((out / "adapt").rglob("*"))
    assert not left, left
    return said.err


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("adapted") / "out"
    said = variegate("adapt", "--out", out, *LEARN)
    assert said.status == 0, said.text
    return out, said


# ------------------------------------------------------------------------------------------ it works


def test_adapt_leaves_an_adapter_and_says_what_it_did(adapted: tuple[Path, Said]) -> None:
    out, said = adapted
    assert f"adapter: {out / 'adapt'}" in said.out and "tokens+lora for 3 classes, 6 steps" in said.out
    assert {path.name for path in (out / "adapt").iterdir() if path.is_file()} >= {
        "adapter.json", "learned_embeds.safetensors", "pytorch_lora_weights.safetensors", "preview.png", "log.jsonl",
    }  # fmt: skip
    facts = json.loads((out / "adapt/adapter.json").read_text())
    assert len(facts["classes"]) == 3 and facts["base"]["model"] == "starter"
    assert not (out / "synthetic").exists() and not list(out.rglob("*.tmp"))


def test_the_same_command_again_learns_nothing_twice(adapted: tuple[Path, Said]) -> None:
    out, _ = adapted
    before = {path: path.stat().st_mtime_ns for path in (out / "adapt").rglob("*") if path.is_file()}
    said = variegate("adapt", "--out", out, *LEARN)
    assert said.status == 0 and "adapt: already done" in said.err
    assert {path: path.stat().st_mtime_ns for path in (out / "adapt").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("strategy", "method"),
    [("diff-mix", "tokens+lora"), ("ti-aug", "tokens"), ("diff-gen", "lora")],
)
def test_a_whole_run_with_an_adapter_ends_in_a_report(tmp_path: Path, strategy: str, method: str) -> None:
    out = tmp_path / "out"
    said = variegate("run", "--out", out, *QUICK, *settings(f"generate.method={strategy}", f"adapt.method={method}",
                     "adapt.superclass=butterfly", "generate.mask=none"))  # fmt: skip
    assert said.status == 0, said.text
    results = json.loads((out / "results.json").read_text())
    assert [arm["arm"] for arm in results["arms"]] == ["real", "real+synthetic"]
    assert results["synthetic"]["drawn"] == 9 == len(list((out / "synthetic").rglob("*.jpg")))
    page = (out / "report.html").read_text()
    assert strategy in page and results["verdict"] in page.replace("&#39;", "'")
    prompts = [json.loads(line)["prompt"] for line in (out / "synthetic/train/metadata.jsonl").read_text().splitlines()]
    assert all(prompt.endswith("butterfly") or "butterfly" in prompt for prompt in prompts)
    assert all(("<class_" in prompt) == (method != "lora") for prompt in prompts)


def test_a_one_step_model_draws_with_what_its_parent_learned(tmp_path: Path) -> None:
    one_step = settings("backend.model=starter-onestep", "backend.steps=1", "generate.method=diff-aug")
    found = {}
    for method in ("tokens+lora", "none"):
        more = settings("adapt.model=starter", "adapt.method=tokens+lora", "adapt.lr=0.02")
        more = more if method != "none" else settings("adapt.method=none", "generate.method=real-aug")
        said = variegate("generate", "--out", tmp_path / method, *QUICK, *one_step, *more)
        assert said.status == 0, said.text
        found[method] = drawn(tmp_path / method)
    facts = json.loads((tmp_path / "tokens+lora/adapt/adapter.json").read_text())
    assert facts["base"]["model"] == "starter"
    assert [len(images) for images in found.values()] == [9, 9]
    apart = [abs(found["tokens+lora"][key] - found["none"][key]).max() for key in found["none"]]
    assert np.median(apart) > 10, apart


def test_a_distilled_model_is_not_taught_itself_unless_asked(tmp_path: Path) -> None:
    one_step = settings(
        "backend.model=starter-onestep", "backend.steps=1", "adapt.method=tokens+lora", "generate.method=diff-gen"
    )
    said = refused(*QUICK, *one_step, out=tmp_path / "out", verb="adapt")
    assert "starter-onestep is distilled" in said and "name its many-step parent in adapt.model" in said


def test_strategies_draw_with_what_they_say(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    """On the same noise: the base model, its tokens, and tokens with LoRA draw three different pictures of each class."""
    runs = {"diff-gen": reused(adapted[0] / "adapt"), "ti-gen": reused(adapted[0] / "adapt"), "real-gen": QUICK}
    found = {}
    for strategy, arguments in runs.items():
        said = variegate("generate", "--out", tmp_path / strategy, *arguments, *settings(f"generate.method={strategy}"))
        assert said.status == 0, said.text
        found[strategy] = drawn(tmp_path / strategy)
    assert found["diff-gen"].keys() == found["ti-gen"].keys() == found["real-gen"].keys() and len(found["ti-gen"]) == 9
    for one, other in (("diff-gen", "ti-gen"), ("diff-gen", "real-gen"), ("ti-gen", "real-gen")):
        apart = [abs(found[one][key] - found[other][key]).max() for key in found[one]]
        assert min(apart) > 0 and np.median(apart) > 10, (one, other, apart)


def test_a_taken_adapter_brings_its_super_class(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    adapter = shutil.copytree(adapted[0] / "adapt", tmp_path / "adapt")
    facts = json.loads((adapter / "adapter.json").read_text())
    facts["recipe"]["adapt"]["superclass"] = "moth"
    (adapter / "adapter.json").write_text(json.dumps(facts))
    said = variegate(
        "generate", "--out", tmp_path / "out", *reused(adapter, "generate.method=diff-aug", "generate.mask=none")
    )
    assert said.status == 0, said.text
    lines = (tmp_path / "out/synthetic/train/metadata.jsonl").read_text().splitlines()
    assert all(" moth" in json.loads(line)["prompt"] for line in lines)


def test_a_taken_adapter_draws_what_its_own_run_draws(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    said = variegate("generate", "--out", tmp_path / "taken", *reused(adapted[0] / "adapt", "generate.method=diff-aug"))
    assert said.status == 0, said.text
    own = shutil.copytree(adapted[0], tmp_path / "own")
    assert variegate("generate", "--out", own, *LEARN).status == 0
    assert hashes(tmp_path / "taken") == hashes(own) == hashes(adapted[0])
    one, other = drawn(tmp_path / "taken"), drawn(own)
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_token_noise_reaches_the_pictures(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    found = []
    for name, std in (("clean", "[]"), ("zero", "[0.0]"), ("noisy", "[0.5]")):
        said = variegate("generate", "--out", tmp_path / name, *reused(adapted[0] / "adapt", "generate.method=ti-gen"),
                         *settings(f"generate.token_noise.std={std}"))  # fmt: skip
        assert said.status == 0, said.text
        found.append(drawn(tmp_path / name))
    clean, zero, noisy = found
    assert all(np.array_equal(clean[key], zero[key]) for key in clean)
    assert all(not np.array_equal(clean[key], noisy[key]) for key in clean)


def test_one_image_in_a_class(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    said = variegate("generate", make_folder({"ant": 5, "bee": 4, "lonely": 1}), "--out", tmp_path / "out", *LEARN)
    assert said.status == 0, said.text
    assert len(json.loads((tmp_path / "out/adapt/adapter.json").read_text())["classes"]) == 3


# ------------------------------------------------------------------------------------------ stopped and gone on


def test_killed_in_the_middle_it_ends_with_the_same_adapter(
    adapted: tuple[Path, Said], tmp_path: Path, process: Callable[..., subprocess.Popen]
) -> None:
    out = tmp_path / "out"
    child = process("adapt", "--out", out, *LEARN, start_new_session=True)
    checkpoints = out / "adapt/checkpoints"
    while child.poll() is None and not any(checkpoints.glob("step-*")):
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    assert not (out / "adapt/adapter.json").exists(), "it was killed in the middle"
    changed = shutil.copytree(out, tmp_path / "changed")
    said = variegate("adapt", "--out", out, *LEARN)
    assert said.status == 0, said.text
    assert hashes(out) == hashes(adapted[0])
    assert not list(out.rglob("*.tmp"))
    said = variegate("adapt", "--out", changed, *LEARN, *settings("adapt.steps=3"))
    assert said.status == 0 and "3 steps" in said.out, "nothing was finished that another recipe would learn over"


def test_a_loss_that_is_no_number_fails_with_the_step_and_the_last_good_state(tmp_path: Path) -> None:
    """The first step ruins the weights: what it leaves is no state to go on from."""
    said = variegate("adapt", "--out", tmp_path / "out", *LEARN, *settings("adapt.lr=1e30", "adapt.token_lr=1e30",
                     "adapt.previews=0", "adapt.evaluations=0", "adapt.warmup_fraction=0"))  # fmt: skip
    assert said.status == 1, said.text
    assert "adapt failed: the" in said.err and " at step 1 is " in said.err and "lower adapt.lr" in said.err
    assert "last good checkpoint: none" in said.err and "Traceback" not in said.err
    assert not list((tmp_path / "out/adapt").rglob("*")), "nothing is kept of it"


# ------------------------------------------------------------------------------------------ refused


def test_an_adapter_for_other_classes(
    adapted: tuple[Path, Said], make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    said = refused(make_folder(), *reused(adapted[0] / "adapt", "generate.method=diff-aug"), out=tmp_path / "out")
    assert "was made for other classes" in said and "it lacks ant, bee" in said and "adapt again" in said


def test_an_adapter_for_another_model(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    model = shutil.copytree(STARTER, tmp_path / "model")
    config = model / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.021}))
    said = refused(
        *reused(adapted[0] / "adapt", "generate.method=diff-aug", f"backend.model={model}"), out=tmp_path / "out"
    )
    assert "was made for starter" in said and str(model) in said


def test_an_adapter_of_another_draw_of_the_data(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    """Other training images: the adapter may have seen this split's test images."""
    said = variegate(
        "run", "--out", tmp_path / "out", *reused(adapted[0] / "adapt", "generate.method=diff-aug", "seed=5")
    )
    assert said.status == 2 and "another split of the data" in said.err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere", "has no adapter.json"),
        ("run", "did you mean"),
        ("twice", "two classes share the placeholder <class_0>"),
    ],
)
def test_a_folder_that_is_no_sound_adapter(
    adapted: tuple[Path, Said], tmp_path: Path, name: str, expected: str
) -> None:
    path = {"nowhere": tmp_path / "nowhere", "run": adapted[0], "twice": tmp_path / "twice"}[name]
    if name == "twice":
        shutil.copytree(adapted[0] / "adapt", path)
        facts = json.loads((path / "adapter.json").read_text())
        (path / "adapter.json").write_text(
            json.dumps({**facts, "placeholders": ["<class_0>", "<class_0>", "<class_2>"]})
        )
    assert expected in refused(*reused(path, "generate.method=diff-aug"), out=tmp_path / "out")


def test_a_bad_adapter_is_refused_even_where_nothing_is_drawn(tmp_path: Path) -> None:
    arguments = reused(tmp_path / "nowhere", "generate.method=none", "evaluate.arms=[real]")
    assert "has no adapter.json" in refused(*arguments, out=tmp_path / "out")


def test_strategies_that_do_not_go_with_the_adapter(tmp_path: Path) -> None:
    said = refused(*QUICK, *settings("generate.method=real-aug", "adapt.method=tokens+lora"), out=tmp_path / "out")
    assert "real-aug draws with the model as it is" in said and "use diff-aug or set adapt.method=none" in said
    said = refused(*QUICK, *settings("generate.method=ti-mix", "adapt.method=lora"), out=tmp_path / "out")
    assert "ti-mix draws with learned tokens and adapt.method is lora; use diff-mix" in said
    said = refused(*QUICK, *settings("generate.method=ti-mix", "adapt.method=none"), out=tmp_path / "out")
    assert "real-mix" in said and "adapt.method=tokens+lora" in said


def test_an_adapter_with_lora_alone_has_no_tokens_to_draw_with(tmp_path: Path) -> None:
    out = tmp_path / "lora"
    learn = (*QUICK, *settings("adapt.method=lora", "generate.method=diff-aug", "adapt.previews=0", "adapt.steps=1"))
    assert variegate("adapt", "--out", out, *learn).status == 0
    said = refused(*reused(out / "adapt", "generate.method=ti-aug"), out=tmp_path / "out")
    assert "diff-aug" in said
    tokens = tmp_path / "diff"
    assert variegate("generate", "--out", tokens, *reused(out / "adapt", "generate.method=diff-aug")).status == 0


def test_class_names_that_tokenise_to_nothing(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A tokenizer that drops what it does not know, as those of many small models do."""
    model = shutil.copytree(STARTER, tmp_path / "model")
    path = model / "tokenizer/tokenizer.json"
    values = json.loads(path.read_text())
    drop = {"type": "Replace", "pattern": {"Regex": "[^\\x00-\\x7F]"}, "content": ""}
    values["normalizer"]["normalizers"].append(drop)
    path.write_text(json.dumps(values))
    config = model / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    index = model / "model_index.json"
    index.write_text(
        json.dumps({**json.loads(index.read_text()), "tokenizer": ["transformers", "PreTrainedTokenizerFast"]})
    )
    photos = make_folder({"🦋": 4, "🐝": 4, "ant": 4})
    said = refused(photos, *LEARN, *settings(f"backend.model={model}"), out=tmp_path / "out", verb="adapt")
    assert "2 of the first words tokenise to nothing" in said and "adapt.init=random" in said
    said = variegate(
        "adapt", photos, "--out", tmp_path / "random", *LEARN, *settings(f"backend.model={model}", "adapt.init=random")
    )
    assert said.status == 0, said.text


@pytest.mark.parametrize("part", ["text_encoder", "unet", "tokenizer"])
def test_a_base_model_without_the_expected_parts(tmp_path: Path, part: str) -> None:
    model = shutil.copytree(STARTER, tmp_path / "model")
    index = model / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), part: [None, None]}))
    said = refused(*LEARN, *settings(f"backend.model={model}"), out=tmp_path / "out", verb="adapt")
    assert f"its model_index.json names no {part}" in said


def test_lora_targets_that_the_unet_does_not_have(tmp_path: Path) -> None:
    said = refused(*LEARN, *settings("adapt.targets=[to_q, to_quux]"), out=tmp_path / "out", verb="adapt")
    assert "no module of the U-Net ends in to_quux" in said and "to_q" in said


def test_a_finished_adapter_is_not_learned_over(adapted: tuple[Path, Said], tmp_path: Path) -> None:
    """It may have taken days: another recipe in its folder is refused with the difference, one that only draws is not."""
    out = shutil.copytree(adapted[0], tmp_path / "out")
    said = variegate("adapt", "--out", out, *LEARN, *settings("adapt.steps=3", "adapt.rank=2"))
    assert said.status == 2 and "Traceback" not in said.text, said.text
    assert "adapt.steps: 6 -> 3" in said.err and "adapt.rank: 16 -> 2" in said.err
    assert "adapt.method=file" in said.err and f"adapt.path={out / 'adapt'}" in said.err
    assert hashes(out) == hashes(adapted[0])
    said = variegate("generate", "--out", out, *LEARN, *settings("generate.per_real=2", "backend.steps=3"))
    assert said.status == 0 and hashes(out) == hashes(adapted[0]), said.text
