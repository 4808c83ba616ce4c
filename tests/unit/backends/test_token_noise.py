"""Noise on learned tokens (DIAGen): planned evenly, drawn from the row's own seed, on the right class only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import draw_with, spec_of

from variegate.backends.adapter import AdapterFacts, text_encoders, write_adapter
from variegate.backends.diffusion import DiffusionBackend, TokenNoise
from variegate.recipe import GenerateSection
from variegate.records import ClassInfo, RealImage
from variegate.stages.generate.plan import Plan, PlanBackend, make_plan
from variegate.stages.generate.pool import pool_of_names

CLASSES = 12


@pytest.fixture(scope="module")
def adapter(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of two vectors: <class_1> begins as <class_10> and <class_11> do."""
    folder = tmp_path_factory.mktemp("noise") / "adapt"
    placeholders = tuple(f"<class_{k}>" for k in range(CLASSES))
    rows = torch.randn(CLASSES, 2, 32, generator=torch.Generator().manual_seed(0))
    facts = AdapterFacts("tokens", tuple(f"c{k}" for k in range(CLASSES)), placeholders, 2)
    write_adapter(folder, facts, [dict(zip(placeholders, rows, strict=True))])
    return folder


@pytest.fixture
def backend(tiny_sd: Path, adapter: Path) -> Iterator[DiffusionBackend]:
    with DiffusionBackend.open(spec_of(tiny_sd, adapter)) as opened:
        yield opened


def embedded(backend: DiffusionBackend, prompt: str, noise: TokenNoise | None) -> torch.Tensor:
    with torch.inference_mode():
        return backend._encode_noised(prompt, noise).tokens


def test_no_noise_is_the_clean_picture_bit_by_bit(backend: DiffusionBackend) -> None:
    prompts = ["a photo of a <class_1>", "<class_10>"]
    clean = draw_with(backend, prompts, [1, 2])
    zero = [TokenNoise(1, 0.0, 5), TokenNoise(10, 0.0, 6)]
    assert np.array_equal(draw_with(backend, prompts, [1, 2], token_noise=zero), clean)
    assert np.array_equal(draw_with(backend, prompts, [1, 2], token_noise=[None, None]), clean)
    noisy = draw_with(backend, prompts, [1, 2], token_noise=[TokenNoise(1, 0.5, 5), TokenNoise(10, 0.5, 6)])
    assert all((noisy[k] != clean[k]).any() for k in range(2))


def test_noise_is_of_its_seed_and_changes_nothing_afterwards(backend: DiffusionBackend) -> None:
    _, encoder = text_encoders(backend.pipe)[0]
    before = encoder.get_input_embeddings().weight.clone()
    first = embedded(backend, "<class_1>", TokenNoise(1, 0.3, 5))
    clean = embedded(backend, "<class_1>", None)
    others = [embedded(backend, f"<class_{k}>", None) for k in (10, 11)]
    assert not torch.equal(first, embedded(backend, "<class_1>", TokenNoise(1, 0.3, 6)))
    assert torch.equal(first, embedded(backend, "<class_1>", TokenNoise(1, 0.3, 5)))
    assert torch.equal(clean, embedded(backend, "<class_1>", None)) and not torch.equal(clean, first)
    assert torch.equal(encoder.get_input_embeddings().weight, before)
    backend.forget_texts()
    assert all(
        torch.equal(embedded(backend, f"<class_{k}>", None), other) for k, other in zip((10, 11), others, strict=True)
    )


@pytest.mark.parametrize("label", [1, 10, 11])
def test_noise_falls_on_the_label_and_no_other_name(backend: DiffusionBackend, label: int) -> None:
    for asked in (0, 1, 10, 11):
        prompt = f"a photo of a <class_{asked}>"
        disturbed = not torch.equal(
            embedded(backend, prompt, TokenNoise(label, 0.5, 3)), embedded(backend, prompt, None)
        )
        assert disturbed == (asked == label)


def test_every_vector_gets_noise_absolute_or_relative_to_itself(
    backend: DiffusionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encoder = text_encoders(backend.pipe)[0]
    weight = encoder.get_input_embeddings().weight
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(["<class_4>", "<class_4>_1"]))
    with torch.inference_mode():
        weight[rows[1]] *= 10
    clean, seen = weight[rows].clone(), []
    monkeypatch.setattr(backend, "_encode_text", lambda text, negative: seen.append(weight[rows].clone()))
    with torch.inference_mode():
        for relative in (False, True):
            for seed in range(200):
                backend._encode_noised("<class_4>", TokenNoise(4, 0.1, seed, relative))
    added = torch.stack(seen) - clean
    absolute, relative = added[:200].std((0, 2)), added[200:].std((0, 2))
    assert torch.allclose(absolute, torch.tensor([0.1, 0.1]), rtol=0.05)
    assert torch.allclose(relative, 0.1 * clean.std(1), rtol=0.05) and relative[1] > 8 * relative[0]
    assert torch.equal(weight[rows], clean)


def test_a_failure_in_between_leaves_the_tokens_as_they_were(
    backend: DiffusionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = backend.pipe.text_encoder.get_input_embeddings().weight
    before = weight.clone()
    monkeypatch.setattr(backend, "_encode_text", lambda text, negative: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError), torch.inference_mode():
        backend._encode_noised("<class_4>", TokenNoise(4, 0.1, 1))
    assert torch.equal(weight, before)


def test_sdxl_disturbs_both_encoders(tiny_sdxl: Path, tmp_path: Path) -> None:
    rows = {"<class_0>": torch.ones(1, 32), "<class_1>": -torch.ones(1, 32)}
    write_adapter(tmp_path, AdapterFacts("tokens", ("a", "b"), tuple(rows)), [rows, rows])
    with DiffusionBackend.open(spec_of(tiny_sdxl, tmp_path)) as backend:
        clean = embedded(backend, "<class_1>", None)
        noisy = embedded(backend, "<class_1>", TokenNoise(1, 0.5, 1))
        assert all((clean[:, half] != noisy[:, half]).any() for half in (slice(0, 32), slice(32, 64)))


def test_names_that_contain_each_other_are_kept_apart(tiny_sd: Path, tmp_path: Path) -> None:
    """Placeholders of other tools: <a> and <a_1>."""
    rows = {"<a>": torch.ones(2, 32), "<a_1>": -torch.ones(2, 32)}
    write_adapter(tmp_path, AdapterFacts("tokens", ("a", "a_1"), tuple(rows), 2), [rows])
    with DiffusionBackend.open(spec_of(tiny_sd, tmp_path)) as backend:
        for asked, label in ((0, 0), (0, 1), (1, 0), (1, 1)):
            prompt = list(rows)[asked]
            changed = not torch.equal(
                embedded(backend, prompt, TokenNoise(label, 0.5, 3)), embedded(backend, prompt, None)
            )
            assert changed == (asked == label)


# ------------------------------------------------------------------------------------------ planned


def plan_of(seed: int = 0, names: tuple[str, ...] = ("a", "a_1"), **noise: object) -> Plan:
    classes = [ClassInfo(k, name, f"{k:04d}") for k, name in enumerate(names)]
    images = [
        RealImage(f"{c.label}-{k}", "", c.label, "train", sha256=f"{c.label}{k}") for c in classes for k in range(3)
    ]
    section = GenerateSection(method="diff-aug", per_class=12, strength=0.5, token_noise=noise)
    backend = PlanBackend("settings", 10, None, 8)
    return make_plan(classes, images, section, pool_of_names(classes), backend, negative="", seed=seed)


def test_levels_are_dealt_evenly_inside_every_class() -> None:
    plan = plan_of(std=[0.0, 0.005, 0.01, 0.025])
    for label in range(2):
        assert Counter(plan.token_std[plan.target == label].tolist()) == {0.0: 3, 0.005: 3, 0.01: 3, 0.025: 3}
    assert (plan.token_seed[plan.token_std == 0] == 0).all()


def test_fresh_noise_is_every_images_own_and_the_same_on_restart() -> None:
    plan, again = plan_of(std=[0.1]), plan_of(std=[0.1])
    assert len(set(plan.token_seed.tolist())) == len(plan) == 24
    assert plan.ids == again.ids and (plan.token_seed == again.token_seed).all()
    assert not set(plan.token_seed.tolist()) & set(plan_of(std=[0.1], seed=1).token_seed.tolist())


def test_fixed_noise_is_one_draw_a_class_and_level() -> None:
    plan = plan_of(std=[0.0, 0.01, 0.1], policy="fixed")
    found = {(int(t), s): set() for t in range(2) for s in (0.01, 0.1)}
    for target, std, seed in zip(plan.target.tolist(), plan.token_std.tolist(), plan.token_seed.tolist(), strict=True):
        if std:
            found[target, std].add(seed)
    assert all(len(seeds) == 1 for seeds in found.values())
    assert len(set.union(*found.values())) == 4, "each class and level its own"


def test_noise_is_part_of_an_images_id() -> None:
    plain, noisy, fixed = plan_of(), plan_of(std=[0.1]), plan_of(std=[0.1], policy="fixed")
    assert (plain.token_std == 0).all() and len({*plain.ids, *noisy.ids, *fixed.ids}) == 72
    assert set(plan_of(std=[0.0]).ids) == set(plain.ids), "no noise is no noise"
