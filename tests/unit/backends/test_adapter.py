"""Adapters as files: what stock diffusers makes of them, what is refused, and that several do not mix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import NAMES, draw, draw_with, learn, make_run, recipe_of, spec_of
from safetensors.torch import load_file, save_file

from variegate.backends.adapter import (
    FACTS,
    LORA,
    TOKENS,
    AdapterFacts,
    adapter_hash,
    adapter_problems,
    check_fit,
    expand,
    read_adapter,
    token_vectors,
    write_adapter,
)
from variegate.backends.base import spec_id
from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import ModelError

PROMPTS = ["a photo of a <class_0>", "a photo of a <class_1>", "<class_2> in snow"]


def adapted(model: Path, root: Path, seed: int = 0) -> Path:
    """An adapter that shows: high rates, tokens of two vectors, LoRA in U-Net and text encoders."""
    with make_run(root) as folder:
        learn(
            folder,
            recipe_of(model, vectors=2, rank=2, alpha=6.0, text_encoder_lora=True, lr=0.05, token_lr=0.05, seed=seed),
        )
    return root / "adapt"


@pytest.fixture(scope="module")
def made(tiny_sd: Path, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "tiny_sd": adapted(tiny_sd, root / "sd"),
        "other": adapted(tiny_sd, root / "other", seed=1),
        "tiny_sdxl": adapted(tiny_sdxl, root / "sdxl"),
    }


@pytest.fixture(params=["tiny_sd", "tiny_sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(family)


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter to spoil."""
    return shutil.copytree(made["tiny_sd"], tmp_path / "adapt")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change(path: Path, **changes: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    for function in changes.values():
        save_file({name: value.contiguous() for name, value in function(load_file(path)).items()}, path)


def apart(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


# ------------------------------------------------------------------------------------------ LoRA and tokens act


def test_what_was_learned_shows_in_every_part(made: dict[str, Path], family: str, model: Path) -> None:
    base = draw(spec_of(model), PROMPTS)
    tokens, whole = (draw(spec_of(model, made[family], parts), PROMPTS) for parts in ("tokens", "all"))
    assert apart(whole, tokens) > 3, "the LoRA really acts"
    assert apart(tokens, base) > 3 and apart(whole, base) > 3
    assert apart(whole[:1], draw(spec_of(model, made[family]), [PROMPTS[1]], [1])) > 0, (
        "classes differ on the same noise"
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_lora_of_zeros_draws_exactly_what_the_base_draws(
    made: dict[str, Path], family: str, model: Path, tmp_path: Path, dtype: str
) -> None:
    folder = shutil.copytree(made[family], tmp_path / "zero")
    change(folder / LORA, zero=lambda found: {name: value * (".lora_B." not in name) for name, value in found.items()})
    plain = ["a photo of a cat", "red owl", "dog in snow"]
    assert np.array_equal(draw(spec_of(model, folder, dtype=dtype), plain), draw(spec_of(model, dtype=dtype), plain))
    assert not np.array_equal(
        draw(spec_of(model, made[family], dtype=dtype), plain), draw(spec_of(model, dtype=dtype), plain)
    )


def test_small_updates_survive_half_precision(made: dict[str, Path], tiny_sd: Path) -> None:
    """Fused in fp32 and then rounded once: bf16 drawing stays close to fp32 drawing with the same adapter."""
    full, half, base = (
        draw(spec_of(tiny_sd, adapter, dtype=dtype), PROMPTS).astype(float)
        for adapter, dtype in ((made["tiny_sd"], "fp32"), (made["tiny_sd"], "bf16"), (None, "fp32"))
    )
    assert np.abs(full - half).mean() < 0.5 * np.abs(full - base).mean()


def test_guidance_and_unlearned_words_work_with_an_adapter(made: dict[str, Path], family: str, model: Path) -> None:
    spec = spec_of(model, made[family], guidance_scale=3.0)
    images = draw(spec, [PROMPTS[0], "a photo of a cat"], negative="blurry")
    assert images.shape == (2, 32, 32, 3) and apart(images[:1], images[1:]) > 0


# ------------------------------------------------------------------------------------------ stock diffusers


def stock(model: Path, adapter: Path):  # noqa: ANN201
    """As somebody without variegate loads our files."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    encoders = [(pipe.tokenizer, pipe.text_encoder)]
    if hasattr(pipe, "text_encoder_2"):
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
    for name, (tokenizer, encoder) in zip(TOKENS, encoders, strict=False):
        for key, rows in load_file(adapter / name).items():
            pipe.load_textual_inversion({key: rows}, tokenizer=tokenizer, text_encoder=encoder)
    pipe.load_lora_weights(adapter)
    return pipe


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own code
def test_stock_diffusers_draws_the_same_pictures(made: dict[str, Path], family: str, model: Path) -> None:
    pipe = stock(model, made[family])
    assert apart_from_stock(pipe, spec_of(model, made[family], scheduler="model"), PROMPTS) < 1.1
    pipe.unload_lora_weights()
    assert apart_from_stock(pipe, spec_of(model, made[family], "tokens", scheduler="model"), PROMPTS) < 1.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_stock_diffusers_draws_the_same_with_the_starter(tmp_path: Path) -> None:
    from variegate.backends.folder import STARTER

    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of("starter", vectors=2, steps=2, text_encoder_lora=True, lr=0.05))
    adapter = tmp_path / "run/adapt"
    spec = spec_of("starter", adapter, scheduler="model", steps=4)
    assert apart_from_stock(stock(STARTER, adapter), spec, PROMPTS[:2]) < 1.1
    assert apart(draw(spec, PROMPTS[:2]), draw(spec_of("starter", scheduler="model", steps=4), PROMPTS[:2])) > 3


def apart_from_stock(pipe, spec, prompts: list[str]) -> float:  # noqa: ANN001
    with DiffusionBackend.open(spec) as backend:
        ours = draw_with(backend, prompts, [1, 2, 3])
        noise = backend.noise([1, 2, 3][: len(prompts)])
    theirs = pipe(prompts, num_inference_steps=spec.steps, guidance_scale=1.0, latents=noise, height=spec.size_px,
                  width=spec.size_px, output_type="np").images  # fmt: skip
    return float(np.abs(ours / 255 - theirs).max() * 255)


def test_text_encoder_lora_is_written_and_read(made: dict[str, Path], family: str, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made[family], tmp_path / "unet-only")
    names = load_file(folder / LORA)
    parts = {name.split(".")[0] for name in names}
    assert parts == ({"unet", "text_encoder"} if family == "tiny_sd" else {"unet", "text_encoder", "text_encoder_2"})
    change(folder / LORA, unet=lambda found: {name: value for name, value in found.items() if name.startswith("unet.")})
    assert apart(draw(spec_of(model, folder), PROMPTS), draw(spec_of(model, made[family]), PROMPTS)) > 0


# ------------------------------------------------------------------------------------------ several in one process


def test_adapters_in_one_process_do_not_mix(made: dict[str, Path], tiny_sd: Path) -> None:
    fresh = draw(spec_of(tiny_sd), PROMPTS)
    first = draw(spec_of(tiny_sd, made["tiny_sd"]), PROMPTS)
    second = draw(spec_of(tiny_sd, made["other"]), PROMPTS)
    base = draw(spec_of(tiny_sd), PROMPTS)
    tokens = draw(spec_of(tiny_sd, made["tiny_sd"], "tokens"), PROMPTS)
    again = draw(spec_of(tiny_sd, made["tiny_sd"]), PROMPTS)
    assert np.array_equal(first, again) and np.array_equal(base, fresh)
    assert apart(first, second) > 3 and apart(tokens, first) > 3


def test_two_open_at_once_do_not_mix(made: dict[str, Path], tiny_sd: Path) -> None:
    alone = [draw(spec_of(tiny_sd, made[name]), PROMPTS) for name in ("tiny_sd", "other")]
    with (
        DiffusionBackend.open(spec_of(tiny_sd, made["tiny_sd"])) as one,
        DiffusionBackend.open(spec_of(tiny_sd, made["other"])) as two,
    ):
        for _ in range(2):
            assert np.array_equal(draw_with(one, PROMPTS, [1, 2, 3]), alone[0])
            assert np.array_equal(draw_with(two, PROMPTS, [1, 2, 3]), alone[1])


def test_pixels_are_identified_by_the_adapter_and_what_of_it_is_used(
    made: dict[str, Path], tiny_sd: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(made["tiny_sd"], tmp_path / "moved")
    edit(moved / FACTS, scores={"anything": 1})
    ids = [spec_id(spec_of(tiny_sd, *which)) for which in
           ((), (made["tiny_sd"], "all"), (made["tiny_sd"], "tokens"), (made["other"], "all"))]  # fmt: skip
    assert len(set(ids)) == 4
    assert spec_id(spec_of(tiny_sd, moved)) == ids[1] and adapter_hash(moved) == adapter_hash(made["tiny_sd"])
    assert spec_of(tiny_sd, made["tiny_sd"], "none") == spec_of(tiny_sd)


# ------------------------------------------------------------------------------------------ refused


def problems(folder: Path) -> str:
    return "\n".join(map(str, adapter_problems(folder)))


def test_a_whole_adapter_has_no_problems(made: dict[str, Path]) -> None:
    for folder in made.values():
        assert adapter_problems(folder) == [] and read_adapter(folder).classes == NAMES
        assert token_vectors(folder) == {f"<class_{k}>": 2 for k in range(3)}


def test_no_adapter_suggests_the_one_near(made: dict[str, Path], tmp_path: Path) -> None:
    assert f"did you mean {made['tiny_sd']}?" in problems(made["tiny_sd"].parent)
    assert "name the adapt/ folder of a run" in problems(tmp_path / "nothing")


def test_files_that_are_missing_or_damaged_are_named_together(copy: Path) -> None:
    (copy / TOKENS[0]).unlink()
    (copy / LORA).write_bytes((copy / LORA).read_bytes()[:200])
    said = problems(copy)
    assert f"{TOKENS[0]}: is missing" in said and f"{LORA}: is cut off, damaged or empty" in said
    with pytest.raises(ModelError, match="2 problems"):
        read_adapter(copy)


def test_a_file_cut_at_its_end_is_noticed(copy: Path) -> None:
    (copy / LORA).write_bytes((copy / LORA).read_bytes()[:-50])
    assert f"{LORA}: is cut off, damaged or empty" in problems(copy)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"method": "lora"}', '"tokens"', '{"method": "lora", "classes": [], "colour": 1}']
)
def test_facts_that_cannot_be_read(copy: Path, text: str) -> None:
    (copy / FACTS).write_text(text)
    assert f"{FACTS}: cannot be read" in problems(copy)


def test_another_format_is_refused_by_number(copy: Path) -> None:
    edit(copy / FACTS, format=2)
    assert "was written in format 2, this version reads 1" in problems(copy)


def test_a_later_format_with_other_keys_is_refused_by_number_too(copy: Path) -> None:
    edit(copy / FACTS, format=2, something_new=[])
    assert "was written in format 2, this version reads 1" in problems(copy)


def test_placeholders_that_two_classes_share(copy: Path) -> None:
    edit(copy / FACTS, placeholders=["<class_0>", "<class_0>", "<class_2>"])
    assert "two classes share the placeholder <class_0> — give each class its own" in problems(copy)
    edit(copy / FACTS, placeholders=["<class_0>", "<class_0>"])
    said = problems(copy)
    assert "two classes share" in said and "2 placeholders for 3 classes" in said


def test_placeholders_whose_further_vectors_are_another_class(tmp_path: Path) -> None:
    """<a> has two vectors, <a> and <a>_1; a class cannot be called <a>_1 then."""
    facts = AdapterFacts("tokens", ("a", "b"), ("<a>", "<a>_1"), 0)
    write_adapter(tmp_path, facts, [{"<a>": torch.ones(2, 32), "<a>_1": torch.ones(1, 32)}])
    assert "share the placeholder <a>_1" in problems(tmp_path)


def test_vectors_that_are_missing_are_named(copy: Path) -> None:
    change(copy / TOKENS[0], drop=lambda found: {name: value for name, value in found.items() if name != "<class_1>"})
    assert f"{TOKENS[0]}: holds no vectors of <class_1>" in problems(copy)


def test_a_second_encoder_without_its_file(made: dict[str, Path], tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made["tiny_sdxl"], tmp_path / "half")
    (folder / TOKENS[1]).unlink()
    with pytest.raises(ModelError, match=f"{TOKENS[1]}: is missing: this model has two text encoders"):
        draw(spec_of(tiny_sdxl, folder), PROMPTS)


def test_tokens_of_another_width(copy: Path, tiny_sd: Path) -> None:
    change(copy / TOKENS[0], widen=lambda found: {name: torch.cat([value, value], 1) for name, value in found.items()})
    with pytest.raises(ModelError, match="<class_0> is 64 wide and this model's text encoder takes 32"):
        draw(spec_of(tiny_sd, copy), PROMPTS)


def test_lora_keys_that_match_nothing(copy: Path, tiny_sd: Path) -> None:
    renamed = {"to_q": "to_quux"}
    change(
        copy / LORA,
        rename=lambda found: {name.replace("to_q", renamed["to_q"]): value for name, value in found.items()},
    )
    with pytest.raises(
        ModelError, match=r"\d+ of \d+ keys fit nothing in this model, for example unet\..*to_quux\.lora_A"
    ):
        draw(spec_of(tiny_sd, copy), PROMPTS)
    change(copy / LORA, rename=lambda found: {f"transformer.{name}": value for name, value in found.items()})
    with pytest.raises(ModelError, match="none of its keys fits in this model, for example transformer.text_encoder"):
        draw(spec_of(tiny_sd, copy), PROMPTS)


def test_lora_shapes_that_differ_and_unknown_keys_come_together(copy: Path, tiny_sd: Path) -> None:
    def spoil(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in found if name.startswith("unet.") and ".lora_A." in name)
        return {**found, name: torch.cat([found[name]] * 2, 1), "unet.nowhere.lora_A.weight": torch.ones(2, 2)}

    change(copy / LORA, spoil=spoil)
    with pytest.raises(ModelError, match="2 problems") as caught:
        draw(spec_of(tiny_sd, copy), PROMPTS)
    assert "1 shapes differ" in str(caught.value) and "unet.nowhere" in str(caught.value)


def test_half_of_a_lora_pair_is_refused(copy: Path, tiny_sd: Path) -> None:
    """A without B would be loaded as an update of zero: silently nothing."""
    change(copy / LORA, half=lambda found: {name: value for name, value in found.items() if "to_k.lora_B" not in name})
    with pytest.raises(ModelError, match="lora_B"):
        draw(spec_of(tiny_sd, copy), PROMPTS)


def test_an_adapter_for_another_family_is_refused_when_loaded(made: dict[str, Path], tiny_sdxl: Path) -> None:
    with pytest.raises(ModelError):
        draw(spec_of(tiny_sdxl, made["tiny_sd"]), PROMPTS)


def test_fit_is_judged_by_model_classes_and_splits(made: dict[str, Path]) -> None:
    folder = made["tiny_sd"]
    facts = read_adapter(folder)
    right = {"fingerprint": facts.base["fingerprint"], "model": "m", "classes": NAMES, "splits": facts.splits}
    assert check_fit(folder, **right) == []
    assert check_fit(folder, **{**right, "splits": None}) == []
    for wrong in ({"fingerprint": "0" * 32}, {"classes": NAMES[:2]}, {"splits": "other"}):
        assert len(check_fit(folder, **{**right, **wrong})) == 1
    assert len(check_fit(folder, fingerprint="0" * 32, model="m", classes=("x",), splits="other")) == 3


def test_a_folder_with_facts_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """adapter.json is written last: stopped before it, there is no adapter."""
    from variegate import files

    write, written = files.write_atomic, []

    def stop_at_lora(path: Path, data: bytes) -> None:
        if path.name == LORA:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(files, "write_atomic", stop_at_lora)
    with pytest.raises(OSError, match="No space"):
        write_adapter(tmp_path, AdapterFacts("tokens+lora", ("a",), ("<class_0>",)), [{"<class_0>": torch.ones(1, 4)}],
                      {"unet.x.lora_A.weight": torch.ones(1, 1)})  # fmt: skip
    assert written == [TOKENS[0]] and "has no adapter.json" in problems(tmp_path)


def test_what_another_adapter_left_in_the_folder_goes(tmp_path: Path) -> None:
    lora = {"unet.x.lora_A.weight": torch.ones(1, 1)}
    (tmp_path / TOKENS[1]).write_bytes(b"somebody else's")
    write_adapter(
        tmp_path, AdapterFacts("tokens+lora", ("a",), ("<class_0>",)), [{"<class_0>": torch.ones(1, 4)}], lora
    )
    assert (tmp_path / TOKENS[1]).is_file(), "there were no facts beside it"
    write_adapter(tmp_path, AdapterFacts("tokens", ("a",), ("<class_0>",)), [{"<class_0>": torch.ones(1, 4)}])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([TOKENS[0], "adapter.json"])


def test_reading_facts_needs_no_torch(made: dict[str, Path]) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from variegate.backends.adapter import read_adapter, token_vectors, adapter_hash\n"
        f"p = Path({str(made['tiny_sd'])!r}); read_adapter(p); token_vectors(p); adapter_hash(p)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_expand_leaves_plain_words_alone() -> None:
    assert expand("a photo of class_1", {"<class_1>": 2}) == "a photo of class_1"
    assert expand("<class_1>", {}) == "<class_1>"
