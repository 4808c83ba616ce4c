"""LoRA files of every naming change the model exactly as their tool meant: up times down, scale included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import (
    STARTER,
    attention_layers,
    dasdiff_lora,
    diff_mix_lora,
    diff_mix_output,
    diff_mix_values,
    numbers,
    save,
    save_safetensors,
)
from safetensors.torch import load_file

from variegate.backends.adapter import apply_adapter, check_fit, read_adapter
from variegate.errors import ModelError
from variegate.importers import import_artefact


def weights_of(pipe: object) -> dict[str, torch.Tensor]:
    modules = dict(pipe.unet.named_modules())
    return {name: modules[name].weight.detach().clone() for name in attention_layers()}


def test_stock_diffusers_applies_an_imported_diff_mix_lora(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    values = diff_mix_lora()
    record = import_artefact(save_safetensors(values, tmp_path / "pytorch_lora_weights.safetensors"), tmp_path / "out",
                             base="starter")  # fmt: skip
    assert record["from"] == "Diff-Mix" and record["facts"]["rank"] == 4
    assert record["facts"]["layers"] == len(attention_layers())
    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    before = weights_of(pipe)
    pipe.load_lora_weights(tmp_path / "out")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for name, weight in weights_of(pipe).items():
        head, _, projection = name.removesuffix(".0").rpartition(".")
        stem = f"{head}.processor.{projection}_lora"
        expected = values[f"{stem}.up.weight"] @ values[f"{stem}.down.weight"]
        torch.testing.assert_close(weight - before[name], expected, atol=1e-5, rtol=0)


def test_the_old_accelerate_pickle_gives_the_same_adapter(tmp_path: Path) -> None:
    import_artefact(save_safetensors(diff_mix_lora(), tmp_path / "a.safetensors"), tmp_path / "one")
    import_artefact(save(diff_mix_lora(), tmp_path / "checkpoint-35000" / "pytorch_model.bin"), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_dasdiff_names_pass_unchanged(tmp_path: Path) -> None:
    values = dasdiff_lora()
    record = import_artefact(save_safetensors(values, tmp_path / "lora.safetensors"), tmp_path / "out", base="starter")
    written = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert written.keys() == values.keys() and all(torch.equal(written[key], values[key]) for key in values)
    assert record["from"].startswith("DasDiff")


def stock(tmp_path: Path, alpha: int) -> tuple[Path, dict[str, torch.Tensor]]:
    """What diffusers' own training script saves, and the change it makes."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "stock", unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict()
    )
    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    before = weights_of(pipe)
    pipe.load_lora_weights(tmp_path / "stock")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return tmp_path / "stock", {name: weight - before[name] for name, weight in weights_of(pipe).items()}


@pytest.mark.parametrize("alpha", [4, 16])
def test_a_stock_diffusers_lora_keeps_its_scale(tmp_path: Path, alpha: int) -> None:
    from diffusers import StableDiffusionPipeline

    folder, change = stock(tmp_path, alpha)
    record = import_artefact(folder, tmp_path / "out", base="starter")
    assert any("alpha / rank" in note for note in record["notes"]) == (alpha != 4)
    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    before = weights_of(pipe)
    apply_adapter(pipe, tmp_path / "out", "all")
    assert any(value.abs().max() > 0 for value in change.values())
    for name, weight in weights_of(pipe).items():
        torch.testing.assert_close(weight - before[name], change[name], atol=2e-5, rtol=0)


def test_alpha_keys_are_folded_in(tmp_path: Path) -> None:
    name = next(iter(attention_layers()))
    values = {key: value for key, value in dasdiff_lora().items() if key.startswith(f"unet.{name}.")}
    path = save_safetensors(values | {f"unet.{name}.alpha": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    import_artefact(path, tmp_path / "out", base="starter")
    written = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert torch.equal(written[f"unet.{name}.lora_B.weight"], values[f"unet.{name}.lora_B.weight"] * 0.5)
    assert len(written) == 2


def test_a_whole_diff_mix_folder_becomes_tokens_and_lora(tmp_path: Path) -> None:
    record = import_artefact(diff_mix_output(tmp_path / "run", ["crow", "wren"]), tmp_path / "out", base="starter")
    facts = read_adapter(tmp_path / "out")
    assert facts.method == "tokens+lora" and facts.classes == ("crow", "wren")
    rows = load_file(tmp_path / "out" / "learned_embeds.safetensors")
    assert torch.equal(rows["<class_0>"][0], numbers(192, seed=0)), "the last tokens, not those of step 500"
    assert any("learned_embeds-steps-last.bin was taken" in note for note in record["notes"])
    assert any("learned_embeds-steps-500.bin" in name for name in record["left_out"])
    assert any("optimizer.bin" in name for name in record["left_out"])
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    apply_adapter(pipe, tmp_path / "out", "all")


def test_an_interrupted_training_gives_its_highest_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (500, 1500, 1000):
        save(diff_mix_values(["crow", "wren"], seed=step), run / f"learned_embeds-steps-{step}.bin")
        save_safetensors(diff_mix_lora(), run / f"checkpoint-{step}" / "model.safetensors")
        save_safetensors({"text_model.x": numbers(2)}, run / f"checkpoint-{step}" / "model_1.safetensors")
    record = import_artefact(run, tmp_path / "out")
    assert torch.equal(
        load_file(tmp_path / "out" / "learned_embeds.safetensors")["<class_0>"][0], numbers(192, seed=1500)
    )
    assert any("learned_embeds-steps-1500.bin was taken" in note for note in record["notes"])
    assert any("checkpoint-1500" in note for note in record["notes"])
    assert any("model_1.safetensors" in name for name in record["left_out"])


# ------------------------------------------------------------------------------------------ refusals


def broken(change: str) -> dict[str, torch.Tensor]:
    values = dasdiff_lora()
    first, second = list(values)[:2]
    if change == "unknown key":
        values["unet.conv_in.lora_magnitude_vector"] = numbers(3)
    elif change == "half":
        del values[second]
    elif change == "rank":
        values[second] = numbers(values[second].shape[0], 5)
    elif change == "nan":
        values[first][0, 0] = float("nan")
    elif change == "kohya":
        values["lora_unet_down_blocks_0_attn.lora_down.weight"] = numbers(2, 2)
    elif change == "twice":
        values[first.replace("lora_A", "lora.down")] = values[first].clone()
    elif change == "stray alpha":
        values["unet.mid_block.nothing.alpha"] = torch.tensor(1.0)
    return values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("unknown key", "lora_magnitude_vector"),
        ("half", "have one half"),
        ("rank", "do not multiply"),
        ("nan", "not finite"),
        ("kohya", "lora_unet_down_blocks_0_attn.lora_down.weight"),
        ("twice", "names a layer twice"),
        ("stray alpha", "unet.mid_block.nothing"),
    ],
)
def test_wrong_lora_files_are_refused(tmp_path: Path, change: str, said: str) -> None:
    path = save_safetensors(broken(change), tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match=said):
        import_artefact(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_variants_of_lora_are_refused_by_their_note(tmp_path: Path) -> None:
    note = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.use_dora": True})}
    with pytest.raises(ModelError, match=r"unet\.use_dora"):
        import_artefact(save_safetensors(dasdiff_lora(), tmp_path / "x.safetensors", note))


def test_a_lora_of_another_model_does_not_fit_the_base(tmp_path: Path) -> None:
    values = {"unet.mid_block.attentions.9.to_q.lora_A.weight": numbers(4, 8),
              "unet.mid_block.attentions.9.to_q.lora_B.weight": numbers(8, 4)}  # fmt: skip
    with pytest.raises(ModelError, match="none of its keys fits"):
        import_artefact(save_safetensors(values, tmp_path / "x.safetensors"), tmp_path / "out", base="starter")


def test_two_final_files_are_not_chosen_between(tmp_path: Path) -> None:
    save_safetensors(dasdiff_lora(), tmp_path / "run" / "a.safetensors")
    save_safetensors(dasdiff_lora(), tmp_path / "run" / "b.safetensors")
    with pytest.raises(ModelError, match=r"several files of LoRA weights: a\.safetensors, b\.safetensors"):
        import_artefact(tmp_path / "run")


def test_a_lora_alone_fits_any_classes_and_only_its_own_model(tmp_path: Path) -> None:
    import_artefact(save_safetensors(dasdiff_lora(), tmp_path / "x.safetensors"), tmp_path / "out", base="starter")
    made_for = read_adapter(tmp_path / "out").base["fingerprint"]
    assert check_fit(tmp_path / "out", fingerprint=made_for, model="starter", classes=["ant", "bee"]) == []
    assert check_fit(tmp_path / "out", fingerprint="0" * 32, model="other", classes=["ant", "bee"])


@pytest.mark.parametrize("inner", ["", "text_model."])
@pytest.mark.parametrize("ends", [("q_proj.lora_linear_layer.down", "q_proj.lora_linear_layer.up"),
                                  ("to_q_lora.down", "to_q_lora.up")])  # fmt: skip
def test_text_encoder_layers_are_found_under_old_and_new_names(
    tmp_path: Path, inner: str, ends: tuple[str, str]
) -> None:
    from diffusers import StableDiffusionPipeline

    layer = "encoder.layers.0.self_attn"
    shapes = ((2, 192), (192, 2))
    values = {
        f"text_encoder.{inner}{layer}.{end}.weight": numbers(*shape) for end, shape in zip(ends, shapes, strict=True)
    }
    import_artefact(save_safetensors(values, tmp_path / "x.safetensors"), tmp_path / "out", base="starter")
    pipe = StableDiffusionPipeline.from_pretrained(STARTER)
    before = pipe.text_encoder.get_submodule(f"{layer}.q_proj").weight.detach().clone()
    apply_adapter(pipe, tmp_path / "out", "all")
    down, up = values.values()
    change = pipe.text_encoder.get_submodule(f"{layer}.q_proj").weight - before
    torch.testing.assert_close(change, up @ down, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("note", "factor"),
    [
        ({"unet.lora_alpha": 8}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"tn1.to_q": 2}}, 1.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_the_scale_of_the_note_is_that_of_peft(tmp_path: Path, note: dict, factor: float) -> None:
    values = {key: value for key, value in dasdiff_lora().items() if ".attn1.to_q." in key}
    metadata = {"lora_adapter_metadata": json.dumps(note)}
    import_artefact(save_safetensors(values, tmp_path / "x.safetensors", metadata), tmp_path / "out")
    written = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    for key, value in values.items():
        assert torch.equal(written[key], value * (factor if "lora_B" in key else 1.0))


@pytest.mark.parametrize("note", ["[]", "{", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": {"(a+)+b": 2}}',
                                  '{"unet.alpha_pattern": [1]}', '{"unet.lora_alpha": NaN}'])  # fmt: skip
def test_notes_that_cannot_be_read_are_refused(tmp_path: Path, note: str) -> None:
    path = save_safetensors(dasdiff_lora(), tmp_path / "x.safetensors", {"lora_adapter_metadata": note})
    with pytest.raises(ModelError, match="lora_adapter_metadata"):
        import_artefact(path)


def test_a_model_with_two_text_encoders_takes_lora_and_no_single_tokens(tmp_path: Path, tiny_sdxl: Path) -> None:
    values = {}
    for root, inner in (("text_encoder", ""), ("text_encoder_2", "text_model.")):
        layer = f"{root}.{inner}encoder.layers.0.self_attn.q_proj"
        values |= {f"{layer}.lora_A.weight": numbers(2, 32), f"{layer}.lora_B.weight": numbers(32, 2)}
    path = save_safetensors(values, tmp_path / "x.safetensors")
    assert import_artefact(path, tmp_path / "out", base=str(tiny_sdxl))["facts"]["layers"] == 2
    with pytest.raises(ModelError, match="this model has two"):
        import_artefact(save({"<a>": numbers(32)}, tmp_path / "x.bin"), base=str(tiny_sdxl))
