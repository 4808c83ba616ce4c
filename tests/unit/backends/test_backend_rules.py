"""Settling a backend: strength rules, sizes, distilled models, auto values."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from variegate.backends.base import (
    check_model,
    evaluations,
    executed_steps,
    one_step_timestep,
    quantised_strengths,
    resolve_backend,
    strength_problems,
)
from variegate.backends.devices import (
    Machine,
    chunk_size,
    in_parts,
    own_device,
    resolve_device,
    resolve_dtype,
    worker_devices,
)
from variegate.errors import ModelError
from variegate.recipe import BackendSection, GenerateSection, Recipe

MACHINE = Machine(cores=2, cpu_bf16=True, free_memory=8 * 10**9)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("steps", "strength", "executed"),
    [(25, 0.3, 7), (25, 0.5, 12), (25, 0.7, 17), (25, 0.8, 20), (25, 0.9, 22), (25, 1.0, 25), (100, 0.29, 29), (50, 0.02, 1),
     (25, 0.039, 0), (1, 0.1, 1), (1, 1.0, 1), (4, 0.5, 2), (15, 0.3, 4)],
)  # fmt: skip
def test_executed_steps(steps: int, strength: float, executed: int) -> None:
    assert executed_steps(steps, strength) == executed


def test_a_strength_that_leaves_no_step_is_refused_with_a_remedy_that_works() -> None:
    [problem] = strength_problems([0.5, 0.03], 25, None)
    assert str(problem) == (
        "generate.strength: 0.03 with 25 steps leaves 0 denoising steps — use strength >= 0.04 or backend.steps >= 34"
    )
    assert executed_steps(25, 0.04) == executed_steps(34, 0.03) == 1


def test_one_step_strength_names_a_noise_level() -> None:
    assert [one_step_timestep(s) for s in (0.25, 0.5, 1.0)] == [249, 499, 999]
    assert strength_problems([0.01, 0.37, 1.0], 1, None) == []
    [problem] = strength_problems([0.5, 0.3], 1, (0.25, 0.5, 0.75, 1.0))
    assert "0.3 is no noise level" in problem.what and "0.25, 0.5, 0.75, 1" in problem.what
    [problem] = strength_problems([0.5], 1, (1.0,))
    assert "real-gen" in problem.remedy


def test_uniform_strengths_are_those_that_execute_differently() -> None:
    values = quantised_strengths(0.3, 0.7, 25, None)
    assert values[0] >= 0.3 and values[-1] <= 0.7
    assert [executed_steps(25, v) for v in values] == list(range(8, 18))
    assert quantised_strengths(0.01, 0.02, 25, None) == []
    assert quantised_strengths(0.2, 0.8, 1, (0.25, 0.5, 0.75, 1.0)) == [0.25, 0.5, 0.75]


def test_every_auto_is_settled_and_crosses_processes(tiny_sd: Path) -> None:
    spec = resolve_backend(BackendSection(model=str(tiny_sd)), MACHINE)
    assert (spec.dtype, spec.size_px, spec.threads, spec.memory_format) == ("bf16", 32, 2, "contiguous")
    assert spec.batch == 128  # 8 x 8 latents: a quarter of the positions, four times the images
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert json.loads(json.dumps(spec.to_json()))["dtype"] == "bf16"
    fixed = BackendSection(model=str(tiny_sd), batch=3, threads=1, dtype="fp32", size_px=64)
    spec = resolve_backend(fixed, MACHINE)
    assert (spec.batch, spec.threads, spec.dtype, spec.size_px) == (3, 1, "fp32", 64)


def test_a_scheduler_that_evaluates_twice_a_step_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "model")
    config = model / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "HeunDiscreteScheduler"}))
    section = BackendSection(model=str(model), device="cpu")
    assert resolve_backend(section).scheduler == "dpm-solver++"
    with pytest.raises(ModelError, match="evaluates the U-Net twice a step.*use dpm-solver"):
        resolve_backend(section.model_copy(update={"scheduler": "model"}))
    config.write_text(json.dumps({"_class_name": "EDMDPMSolverMultistepScheduler"}))
    with pytest.raises(ModelError, match="EDM's noise levels"):
        resolve_backend(section)


def test_each_process_of_a_team_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("LOCAL_RANK", "1")
    for has_gpus, own in ((True, "cuda:1"), (False, "auto")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpus=has_gpus: has_gpus)
        assert own_device("auto") == "auto", "alone"
        with monkeypatch.context() as team:
            team.setenv("WORLD_SIZE", "2")
            assert [own_device(asked) for asked in ("auto", "cuda:0", "cpu")] == [own, "cuda:0", "cpu"]


def test_workers_spread_over_the_gpus_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    kinds = ["H200", "T4", "H200"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: kinds[int(device.removeprefix("cuda:"))])
    assert worker_devices("auto", "cuda:0") == ("cuda:0", "cuda:2"), "other kinds would draw other bytes"
    assert worker_devices("cuda", "cuda:1") == ("cuda:1",)
    assert worker_devices("cuda:0", "cuda:0") == ("cuda:0",), "the recipe names one"
    assert worker_devices("auto", "cpu") == ("cpu",)


def test_work_that_does_not_fit_into_memory_is_done_in_parts() -> None:
    tried, freed = [], []

    def work(first: int, last: int) -> list[int]:
        tried.append(last - first)
        if last - first > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return list(range(first, last))

    found = in_parts(work, 10, 8, lambda: freed.append(1))
    assert sum(found, []) == list(range(10)) and tried == [8, 4, 2, 2, 2, 2, 2] and len(freed) == 2

    def never(first: int, last: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_parts(never, 4, 4, lambda: None)
    with pytest.raises(RuntimeError, match="other"):
        in_parts(lambda first, last: (_ for _ in ()).throw(RuntimeError("other")), 4, 4, lambda: None)


def test_evaluations_count_guidance(tiny_sd: Path) -> None:
    spec = resolve_backend(BackendSection(model=str(tiny_sd), guidance_scale=7.5), MACHINE)
    plain = resolve_backend(BackendSection(model=str(tiny_sd), guidance_scale=1.0), MACHINE)
    assert evaluations(spec, 12).total == 24
    assert evaluations(plain, 12).total == 12


def test_dtype_follows_the_processor() -> None:
    old = Machine(cores=2, cpu_bf16=False, free_memory=10**9)
    assert resolve_dtype("auto", "cpu", old) == "fp32"
    assert resolve_dtype("auto", "cpu", MACHINE) == "bf16"
    with pytest.raises(ModelError, match="slower than fp32"):
        resolve_dtype("fp16", "cpu", MACHINE)


def test_an_absent_device_is_never_replaced_by_the_cpu() -> None:
    import torch

    with pytest.raises(ModelError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="this machine has"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_chunks_shrink_with_the_memory() -> None:
    sizes = [
        chunk_size(device="cuda:0", latent_px=64, per_image=3 * 10**8, weights=2 * 10**9, free=free * 10**9)
        for free in (1, 4, 8, 24, 80)
    ]
    assert sizes == [1, 4, 8, 32, 128]


def test_size_that_the_unet_cannot_draw(tiny_sd: Path) -> None:
    with pytest.raises(ModelError, match="multiples of 8 px — use 32 or 40"):
        resolve_backend(BackendSection(model=str(tiny_sd), size_px=36), MACHINE)


def test_distilled_models_refuse_what_they_were_not_trained_for(tiny_sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "fast")
    edit(model / "model_index.json", _noise_levels=[1.0])
    recipe = Recipe(
        backend=BackendSection(model=str(model), steps=25, guidance_scale=7.5),
        generate=GenerateSection(method="real-aug", strength=[0.5]),
    )
    with pytest.raises(ModelError) as caught:
        check_model(recipe)
    assert [problem.where for problem in caught.value.problems] == ["backend.guidance_scale", "backend.steps"]
    right = BackendSection(model=str(model), steps=1, guidance_scale=0)
    with pytest.raises(ModelError, match="no noise level this one-step model"):
        check_model(Recipe(backend=right, generate=GenerateSection(method="real-aug", strength=[0.5])))
    assert check_model(Recipe(backend=right, generate=GenerateSection(method="real-gen"))).levels == (1.0,)


def test_all_strengths_of_a_recipe_are_checked(tiny_sd: Path) -> None:
    backend = BackendSection(model=str(tiny_sd), steps=10)
    with pytest.raises(ModelError, match="2 problems"):
        check_model(Recipe(backend=backend, generate=GenerateSection(strength=[0.5, 0.05, 0.01])))
    narrow = GenerateSection(strength=[0.31, 0.39], strength_policy="uniform")
    with pytest.raises(ModelError, match="no strength between 0.31 and 0.39"):
        check_model(Recipe(backend=backend, generate=narrow))
    check_model(Recipe(backend=backend, generate=GenerateSection(method="real-gen", strength=[0.01])))


def test_checking_a_model_needs_no_torch(tiny_sd: Path) -> None:
    code = (
        "import sys; from variegate.recipe import Recipe, BackendSection; from variegate.backends.base import check_model\n"
        f"check_model(Recipe(backend=BackendSection(model={str(tiny_sd)!r})))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
