"""The train stage on a small run: files, pairing, resuming, and refusals."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from variegate.backends.devices import Machine
from variegate.classifier import fit as fitting
from variegate.classifier.models import load_classifier
from variegate.errors import DataError, ModelError, TaskFailed
from variegate.files import file_sha256
from variegate.recipe import Recipe, written_out
from variegate.stages.train import stage, work
from variegate.stages.train.cache import ImageFile, load_images

TASKS = ["real/seed-0", "real/seed-1", "real-synthetic/seed-0", "real-synthetic/seed-1"]


class Killed(BaseException):
    pass


def digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in sorted((root / "train").rglob("*.*"))}


def test_every_task_leaves_model_log_and_predictions(coloured_run) -> None:
    context = coloured_run()
    summary = stage.run(context)
    assert summary["line"] == "2 arms x 2 seeds, 12 steps each"
    files = [f"train/{task}/{name}" for task in TASKS for name in sorted(stage.FILES)]
    assert [stage.FEATURE_SPACE, *files] == list(digests(context.folder.root))
    assert len(context.folder.artefacts("train")) == 13
    table = pq.read_table(context.folder.path("train/real/seed-0/predictions.parquet")).to_pylist()
    counts = {(split, weights): 0 for split in ("val", "test") for weights in ("selected", "last")}
    for row in table:
        counts[row["split"], row["weights"]] += 1
    assert counts == {(s, w): 12 if s == "val" else 36 for s, w in counts}
    assert all(sum(row["probabilities"]) == pytest.approx(1.0, abs=1e-4) for row in table)
    closing = json.loads(context.folder.path("train/real/seed-0/log.jsonl").read_text().splitlines()[-1])
    assert closing["steps"] == 12
    assert closing["selected_step"] in (4, 8, 12)
    assert closing["selected_by"] == "val"


def test_a_trained_model_can_be_loaded_and_says_the_same(coloured_run) -> None:
    context = coloured_run(evaluate={"arms": ["real"], "seeds": 1})
    stage.run(context)
    net, about = load_classifier(context.folder.path("train/real/seed-0/model.safetensors"))
    assert about["classes"] == ["blue", "green", "red"]
    rows = pq.read_table(context.folder.path("train/real/seed-0/predictions.parquet")).to_pylist()
    rows = [row for row in rows if row["split"] == "test" and row["weights"] == "selected"]
    files = [ImageFile(Path(image.path), image.id) for image in context.folder.real_images("test")]
    pixels = load_images(files, 16, "crop", 1.0, cache=context.folder.path("cache"))
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - about["mean"][0]) / about["std"][0]
    with torch.inference_mode():
        found = net(scaled).softmax(dim=1).numpy()
    assert np.abs(found - np.array([row["probabilities"] for row in rows])).max() < 0.05  # bf16 against fp32


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(coloured_run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = coloured_run("whole"), coloured_run("broken")
    stage.run(whole)
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY_S", 0.0)
    real_fit, steps = fitting.fit, []

    def fragile(*args, on_step, **options):
        def count(step: int) -> None:
            on_step(step)
            steps.append(step)
            if len(steps) == 18:  # in the middle of the second task
                raise Killed

        return real_fit(*args, on_step=count, save_every_s=0.0, **options)

    monkeypatch.setattr(work, "fit", fragile)
    with pytest.raises(Killed):
        stage.run(broken)
    assert broken.folder.path("train/real-synthetic/seed-0/checkpoint.safetensors").exists()
    stage.run(broken)
    assert len(steps) == 48, "finished tasks and finished steps are not done again"
    assert digests(broken.folder.root) == digests(whole.folder.root)


def test_classifiers_that_learn_beside_each_other_end_with_the_same_bytes(
    coloured_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, beside = coloured_run("alone"), coloured_run("beside")
    stage.run(alone)
    monkeypatch.setattr(stage, "num_at_a_time", lambda *_, **__: 2)
    monkeypatch.setattr(stage, "load_images", partial(stage.load_images, in_memory_bytes=0))  # sent by file
    found = stage.run(beside)
    assert digests(beside.folder.root) == digests(alone.folder.root)
    assert [task["arm"] for task in found["tasks"]] == ["real", "real+synthetic"] * 2
    assert beside.folder.path("logs/worker-1.log").is_file()


def test_how_many_classifiers_learn_at_a_time() -> None:
    compute = fitting.choose_compute("cpu", threads=1)
    machine = Machine(cores=4, cpu_bf16=False, free_memory=3 << 30)

    def count(tasks: int, machine: Machine = machine, pixels: int = 1 << 40, compute: fitting.Compute = compute) -> int:
        return work.num_at_a_time(tasks, pixels=pixels, held_bytes=0, compute=compute, machine=machine)

    assert count(4, pixels=1000) == 1, "a few steps are done before a process has started"
    assert [count(tasks) for tasks in (0, 1, 2, 9)] == [1, 1, 2, 3], "memory allows three"
    assert count(9, dataclasses.replace(machine, free_memory=1 << 40)) == 4
    assert count(9, compute=dataclasses.replace(compute, threads=4)) == 1


def test_the_time_of_training_grows_with_what_is_trained(coloured_run) -> None:
    recipe = coloured_run(train={"steps": 10}, evaluate={"arms": ["real"], "seeds": 1}).recipe
    counts = {"train": [4, 4, 4], "val": [1, 1, 1], "test": [5, 5, 5]}
    few = stage.estimate(recipe, counts, 0)
    longer = Recipe.model_validate(recipe.model_dump() | {"train": recipe.train.model_dump() | {"steps": 100_000}})
    many = stage.estimate(longer, counts, 0)
    assert (few["classifiers"], few["training_steps"], many["training_steps"]) == (1, 10, 100_000)
    assert many["seconds"]["train"] > 100 * few["seconds"]["train"] > 0
    assert "seconds" not in stage.estimate(recipe, counts, 0, measure=False)


def test_finished_tasks_are_kept_until_what_they_depend_on_changes(
    coloured_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = coloured_run()
    stage.run(context)
    trained: list[str] = []
    train = work.train
    monkeypatch.setattr(work, "train", lambda task, *rest: (trained.append(task.folder), train(task, *rest)))
    stage.run(context)
    assert trained == []
    dropped = context.folder.synthetic_images()[0].id
    context.folder.put_decisions("human", [(dropped, "drop", 0.0, "ugly")])
    stage.run(context)
    assert trained == ["train/real-synthetic/seed-0", "train/real-synthetic/seed-1"]
    context.folder.path("train/real/seed-1/log.jsonl").unlink()
    stage.run(context)
    assert trained[2:] == ["train/real/seed-1"]


def test_a_task_that_fails_is_named_with_its_log(coloured_run) -> None:
    context = coloured_run(train={"optimizer": "sgd", "lr": 1e30}, evaluate={"arms": ["real"]})
    with pytest.raises(TaskFailed, match=r"train real seed 0 failed: the loss became") as caught:
        stage.run(context)
    assert "ArithmeticError" in Path(caught.value.log).read_text()


def test_a_checkpoint_left_by_a_kill_is_cleared(coloured_run) -> None:
    context = coloured_run(evaluate={"arms": ["real"], "seeds": 1})
    stage.run(context)
    left = context.folder.path(f"train/real/seed-0/{stage.CHECKPOINT}")
    left.write_bytes(b"")
    stage.run(context)
    assert not left.exists()


@pytest.mark.parametrize(
    ("keys", "rate"),
    [
        ({}, 0.01),
        ({"optimizer": "sgd"}, 0.1),
        ({"model": "resnet18"}, 0.001),
        ({"model": "resnet18", "pretrained": True}, 0.0003),
        ({"model": "resnet18", "pretrained": True, "mode": "last-stages"}, 0.0003),
        ({"model": "resnet18", "pretrained": True, "mode": "linear-probe"}, 0.001),
        ({"model": "resnet18", "pretrained": True, "lr": 0.7}, 0.7),
    ],
)
def test_the_rate_fits_the_model_unless_the_recipe_names_one(keys: dict, rate: float) -> None:
    section = Recipe.model_validate({"train": keys}).train
    assert fitting.settings_of(section, 0).lr == pytest.approx(rate)


def test_arms_of_a_seed_are_paired(coloured_run) -> None:
    """Same first weights, same real images in the same order, same number of steps."""
    context = coloured_run()
    workshop = stage._open_workshop(context.recipe, context.folder)
    real, mixed = (work.slots_of(written_out(arm), 0, workshop) for arm in ("real", "real+synthetic"))
    assert real.index.shape == mixed.index.shape == (12, 8)
    shown = mixed.index[~mixed.is_synthetic]
    assert (real.index.ravel()[: len(shown)] == shown).all()
    assert mixed.is_synthetic.any()
    assert (work.slots_of(written_out("real"), 1, workshop).index != real.index).any()


def test_inverse_counts_give_rare_classes_more_synthetic_images(coloured_run) -> None:
    """Diff-Mix's long-tail script reads --syndata_p under a wrong name: its share is always a half. Ours is the recipe's."""
    mixing = {"weighting": "inverse-count", "fraction": 0.25}
    context = coloured_run(train={"mixing": mixing, "batch": 200}, evaluate={"shot_bounds": [2, 3]})
    with context.folder.transaction() as db:
        rare = [image.id for image in context.folder.real_images("train") if image.label == 2][1:]
        db.executemany("DELETE FROM real WHERE id = ?", [(image_id,) for image_id in rare])
    workshop = stage._open_workshop(context.recipe, context.folder)
    slots = work.slots_of(written_out("real+synthetic"), 0, workshop)
    assert slots.is_synthetic.mean() == pytest.approx(0.25, abs=0.03)
    targets = np.array([image.target for image in workshop.synthetic])
    shares = np.bincount(targets[slots.index[slots.is_synthetic]]) / slots.is_synthetic.sum()
    assert shares == pytest.approx(np.array([1 / 6, 1 / 6, 1 / 2]) / (5 / 6), abs=0.06)


def test_a_model_trained_with_margins_is_loaded_with_its_cosine_head(coloured_run) -> None:
    train = {
        "loss": "ldam",
        "ldam": {"scale": 20.0},
        "class_weights": "class-balanced",
        "reweight_from": 0.8,
        "mix": "cmo",
    }
    context = coloured_run(train=train, evaluate={"seeds": 1})
    stage.run(context)
    net, about = load_classifier(context.folder.path("train/real-synthetic/seed-0/model.safetensors"))
    assert about["cosine_scale"] == net.head.scale == 20.0
    rows = pq.read_table(context.folder.path("train/real-synthetic/seed-0/predictions.parquet")).to_pylist()
    assert max(max(row["probabilities"]) for row in rows) > 0.6, "probabilities are of scaled cosines"


def test_margins_on_a_model_without_a_linear_head_are_refused_before_anything_slow() -> None:
    recipe = Recipe.model_validate({"train": {"model": "dpn48b", "loss": "ldam"}})
    with pytest.raises(ModelError, match=r"dpn48b ends in Conv2d.*balanced-softmax"):
        stage.check(recipe)
    stage.check(Recipe.model_validate({"train": {"model": "resnet18", "loss": "ldam"}}))


def test_without_validation_images_the_summary_says_so(coloured_run) -> None:
    context = coloured_run(splits={"train": 4, "test": 4}, evaluate={"arms": ["real"], "seeds": 1})
    summary = stage.run(context)
    assert "no validation images" in summary["line"]
    assert summary["tasks"][0]["selected_by"] == "last step"


def test_an_arm_without_kept_images_is_refused(coloured_run) -> None:
    context = coloured_run()
    everything = [(image.id, "drop", 0.0, "off-class") for image in context.folder.synthetic_images()]
    context.folder.put_decisions("curate", everything)
    with pytest.raises(DataError, match="not one was kept"):
        stage.run(context)


def test_replace_without_sources_is_refused(coloured_run) -> None:
    context = coloured_run(drawn=1, train={"mixing": {"policy": "replace"}})
    with pytest.raises(DataError, match=r"use pool or concat"):
        stage.run(context)


def test_a_mistyped_model_stops_before_anything_is_read(coloured_run) -> None:
    with pytest.raises(ModelError, match="did you mean"):
        stage.check(coloured_run(train={"model": "resnet-smal"}).recipe)


def weights_for(train: dict, folder: Path) -> dict:
    """With a file of weights where only some of the net is to learn; a check does not open it."""
    if "mode" not in train:
        return train
    save_file({}, folder / "w.safetensors")
    return train | {"pretrained": str(folder / "w.safetensors")}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"mode": "last-stages", "last_stages": 5}, r"5 of the last stages should learn and ResNetSmall has 4"),
        ({"mode": "last-stages", "model": "vgg11"}, r"has no stages or blocks"),
        ({"mix": "manifold-mixup", "model": "vgg11"}, r"has no stages or blocks"),
        ({"model": "inception_v3"}, r"inception_v3 cannot learn from 2 images of 16 px: .* raise dataset.size_px"),
        ({"model": "deit_tiny_distilled_patch16_224", "loss": "ldam"}, r"ends in Linear and Linear, and train.loss"),
        ({"model": "qwen3_vit_88m_enc"}, r"has no last layer of its own"),
        ({"model": "resnet10t", "pretrained": True}, r"the weights of resnet10t could not be fetched.*go online once"),
    ],
)
def test_nets_that_do_not_fit_stop_the_run_before_it_starts(
    coloured_run, tmp_path: Path, train: dict, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        stage.check(coloured_run(train=weights_for(train, tmp_path)).recipe)


@pytest.mark.parametrize("model", ["preact-resnet18", "resnet18", "vit_tiny_patch16_224"])
def test_known_stages_pass_the_check(coloured_run, tmp_path: Path, model: str) -> None:
    train = {"mode": "last-stages", "last_stages": 3, "mix": "manifold-mixup", "model": model}
    stage.check(coloured_run(train=weights_for(train, tmp_path)).recipe)


def test_the_feature_space_is_that_of_the_real_arm_and_its_axes_of_real_images(coloured_run) -> None:
    """Whatever synthetic images are like, the plane stays; every image of the run is on it once."""
    context, fewer = coloured_run(), coloured_run("fewer")
    dropped = [(image.id, "drop", 0.0, "ugly") for image in fewer.folder.synthetic_images()[:9]]
    fewer.folder.put_decisions("human", dropped)
    stage.run(context)
    stage.run(fewer)
    one, two = (json.loads(run.folder.path(stage.FEATURE_SPACE).read_text()) for run in (context, fewer))
    assert (one["arm"], one["seed"], list(one["kinds"])) == ("real", 0, ["real", "synthetic", "validation"])
    assert [kind["total"] for kind in one["kinds"].values()] == [15, 18, 12]
    assert [len(kind["points"]) for kind in one["kinds"].values()] == [15, 18, 12]
    assert one["explained"] == two["explained"] and one["kinds"]["real"] == two["kinds"]["real"]
    assert two["kinds"]["synthetic"]["points"] == one["kinds"]["synthetic"]["points"][9:]
    assert np.mean([point[:2] for point in one["kinds"]["real"]["points"]], axis=0) == pytest.approx([0, 0], abs=1e-3)
    assert 0 < one["explained"][1] <= one["explained"][0] <= 1


def test_a_class_that_is_drawn_as_another_is_warned_of(coloured_run) -> None:
    """Every image of blue shows a green square; images between two classes are not held against them."""
    keys = {
        "train": {"steps": 60, "batch": 15, "lr": 0.005},
        "splits": {"train": 10, "val": 16, "test": 2},
        "drawn": 16,
    }
    context = coloured_run(**keys, evaluate={"seeds": 1})
    images = context.folder.synthetic_images()
    blue, green = ([image for image in images if image.target == label] for label in range(2))
    for mine, theirs in zip(blue, green, strict=True):
        context.folder.write(mine.path, context.folder.path(theirs.path).read_bytes())
    summary = stage.run(context)
    (warning,) = summary["warnings"]
    assert "classes drawn as others: blue as green (" in warning and warning in summary["line"] and "red" not in warning
    assert [entry["images"] for entry in summary["class_agreement"]] == [16, 16, 16]
    assert summary["class_agreement"][0]["taken_for"] == 1 and summary["class_agreement"][2]["agreement"] > 0.8
    with context.folder.transaction() as db:
        db.execute("UPDATE plan SET source = ? WHERE target = 0 AND source IS NOT NULL", (green[-1].source,))
    assert stage.run(context)["class_agreement"][0]["images"] == 1, "the one without a source"


@pytest.mark.parametrize("policy", ["pool", "concat", "replace"])
def test_a_subset_is_the_same_for_all_seeds_and_the_line_says_what_was_kept(coloured_run, policy: str) -> None:
    """gdl_term drops half of the originals on average and says nothing of it."""
    train = {"subset_per_class": 4, "steps": 30, "mixing": {"policy": policy, "fraction": 0.5}}
    context = coloured_run(train=train)
    workshop = stage._open_workshop(context.recipe, context.folder)
    for arm, total in (("real", 12), ("real+synthetic", 12), ("synthetic", 12)):
        real, synthetic = stage.subset_of(written_out(arm), workshop)
        assert len(real) + len(synthetic) == total
        for seed in range(2):
            slots = work.slots_of(written_out(arm), seed, workshop)
            assert set(slots.index[~slots.is_synthetic]) == set(real.tolist())
            used = set(slots.index[slots.is_synthetic])
            assert used <= set(synthetic.tolist())
            assert policy == "replace" or arm == "real" or used == set(synthetic.tolist())
    summary = stage.run(context)
    real, synthetic = summary["subset"]["real+synthetic"]
    assert real + synthetic == 12 and 0 < real < 12
    assert (
        f"; real learned from 12 real and 0 synthetic; real+synthetic learned from {real} real and {synthetic} synthetic"
        in summary["line"]
    )


def test_a_subset_that_leaves_an_arm_without_a_kind_stops_before_training(coloured_run) -> None:
    """One image a class out of 5 real ones and 6 synthetic ones: with this seed no real one is among the three."""
    for seed in range(50):
        context = coloured_run(seed=seed, train={"subset_per_class": 1})
        workshop = stage._open_workshop(context.recipe, context.folder)
        try:
            stage.subset_of(written_out("real+synthetic"), workshop)
        except DataError:
            break
    with pytest.raises(DataError, match=r"1 images a class left (0 real and 3|3 real and 0) synthetic"):
        stage.run(context)
    assert not context.folder.path("train").exists()


def test_without_a_subset_nothing_changes(coloured_run) -> None:
    context = coloured_run()
    workshop = stage._open_workshop(context.recipe, context.folder)
    real, synthetic = stage.subset_of(written_out("real+synthetic"), workshop)
    assert (len(real), len(synthetic)) == (15, 18)
    assert "learned from" not in stage.run(context)["line"]


def test_large_sets_are_memory_mapped_with_the_same_pixels(coloured_run) -> None:
    context = coloured_run()
    files = [ImageFile(Path(image.path), image.id) for image in context.folder.real_images("train")]
    cache = context.folder.path("cache")
    held = load_images(files, 16, "crop", 1.0, cache=cache)
    assert not cache.exists()
    mapped = load_images(files, 16, "crop", 1.0, cache=cache, in_memory_bytes=0)
    assert isinstance(mapped, np.memmap)
    assert (mapped == held).all()
    other = load_images(files[::-1], 16, "crop", 1.0, cache=cache, in_memory_bytes=0)
    assert (other == held[::-1]).all()
    data = fitting.LabelledImages(mapped, np.zeros((len(mapped), 3), np.float32))
    assert dataclasses.replace(data).pixels is mapped


@pytest.mark.parametrize("policy", ["pool", "concat"])
def test_dasdiff_fault_concat_resets_gamma_and_kappa(coloured_run, policy: str) -> None:
    """Its base class overwrites both when concatenating: always 1. Ours labels alike whatever the policy."""
    label = {"gamma": 0.3, "kappa": 0.8, "smoothing": 0.0}
    context = coloured_run(train={"mixing": {"policy": policy}, "label": label}, evaluate={"seeds": 1})
    with context.folder.transaction() as db:  # every drawn image moved here from the class after its own
        sources = {image.label: image.id for image in context.folder.real_images("train")}
        rows = [(sources[(target + 1) % 3], target) for target in range(3)]
        db.executemany("UPDATE plan SET source = ? WHERE target = ?", rows)
    workshop = stage._open_workshop(context.recipe, context.folder)
    found = work.fit_data(context.recipe.train, workshop).synthetic.targets
    share = 0.5**0.3  # drawn at strength 0.5
    assert sorted(found[0].tolist()) == pytest.approx([0.0, 0.8 * (1 - share), 0.8 * share], abs=1e-6)


@pytest.mark.parametrize("policy", ["pool", "replace", "concat"])
def test_rare_classes_are_shown_as_often_as_others_when_asked(coloured_run, policy: str) -> None:
    context = coloured_run(train={"sample_by": "class", "batch": 200, "mixing": {"policy": policy}})
    with context.folder.transaction() as db:
        rare = [image.id for image in context.folder.real_images("train") if image.label == 2][1:]
        db.executemany("DELETE FROM real WHERE id = ?", [(image_id,) for image_id in rare])
    workshop = stage._open_workshop(context.recipe, context.folder)
    labels = np.array([image.label for image in workshop.train])
    for name in ("real", "real+synthetic"):
        slots = work.slots_of(written_out(name), 0, workshop)
        shown = np.bincount(labels[slots.index[~slots.is_synthetic]]) / (~slots.is_synthetic).sum()
        assert shown == pytest.approx([1 / 3] * 3, abs=0.04)


ARMS = [
    "real",
    {"name": "real+cutmix", "images": "real", "train": {"mix": "cutmix"}},
    {"name": "duplicated real", "images": "real", "copies": 4},
    "real+synthetic",
    {"name": "less of it", "images": "real+synthetic", "train": {"mixing": {"fraction": 0.1}}},
]


def test_an_arm_may_learn_in_its_own_way_and_stays_paired(coloured_run) -> None:
    context = coloured_run(evaluate={"arms": ARMS, "seeds": 1}, train={"batch": 50})
    stage.run(context)
    workshop = stage._open_workshop(context.recipe, context.folder)
    arms = {arm.name: arm for arm in context.recipe.evaluate.arm_sections}
    real, cut, copied, mixed, less = (work.slots_of(arms[name], 0, workshop) for name in arms)
    assert (real.index == cut.index).all()
    assert context.recipe.train_of(arms["real+cutmix"]).mix == "cutmix"
    assert less.is_synthetic.mean() == pytest.approx(0.1, abs=0.03)
    fewer, more = less.index[less.is_synthetic], mixed.index[mixed.is_synthetic]
    assert len(fewer) < len(more) and (fewer == more[: len(fewer)]).all(), "the same synthetic images in the same order"
    assert not copied.is_synthetic.any()
    models = {name: context.folder.path(f"{arm.folder}/seed-0/model.safetensors") for name, arm in arms.items()}
    assert len({file_sha256(path) for path in models.values()}) == 5


def test_copies_of_real_images_come_equally_often(coloured_run) -> None:
    context = coloured_run(evaluate={"arms": ARMS, "seeds": 1}, train={"steps": 30, "batch": 10})
    workshop = stage._open_workshop(context.recipe, context.folder)
    copied = work.slots_of(context.recipe.evaluate.arm_sections[2], 0, workshop).index.ravel()
    assert np.bincount(copied[:75]).tolist() == [5] * 15  # one pass over 15 images, each there 5 times
    assert np.bincount(copied[:15], minlength=15).max() > 1


def test_arms_by_another_rule_of_filling_batches_are_trained_again(
    coloured_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a seed added later would be paired with classifiers that saw their images in another order."""
    context = coloured_run(evaluate={"arms": ["real"], "seeds": 1})
    stage.run(context)
    trained: list[str] = []
    train = work.train
    monkeypatch.setattr(work, "train", lambda task, *rest: (trained.append(task.folder), train(task, *rest)))
    stage.run(context)
    assert not trained
    before = stage.inputs(context.recipe)
    monkeypatch.setattr(stage.mixing, "RULE", stage.mixing.RULE + 1)
    stage.run(context)
    assert trained == ["train/real/seed-0"] and stage.inputs(context.recipe) != before


def test_more_arms_and_seeds_train_only_what_is_new(coloured_run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = coloured_run(evaluate={"arms": ["real"], "seeds": 1})
    stage.run(context)
    trained: list[str] = []
    train = work.train
    monkeypatch.setattr(work, "train", lambda task, *rest: (trained.append(task.folder), train(task, *rest)))
    section = context.recipe.evaluate.model_copy(update={"arms": ["real", "synthetic"], "seeds": 2})
    stage.run(dataclasses.replace(context, recipe=context.recipe.model_copy(update={"evaluate": section})))
    assert sorted(trained) == ["train/real/seed-1", "train/synthetic/seed-0", "train/synthetic/seed-1"]
