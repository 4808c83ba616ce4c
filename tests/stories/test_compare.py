"""variegate compare: one command, honest baselines, and more of it later."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import picture, settings, variegate
from PIL import Image

from variegate.backends.adapter import AdapterFacts, placeholder, write_adapter
from variegate.backends.devices import available_cores

TINY = settings(
    "dataset.size_px=32",
    "backend.steps=2",
    "backend.guidance_scale=1.0",
    "generate.per_real=1",
    "generate.strength=0.5",
    "train.steps=3",
    "train.batch=6",
    "train.evaluations=1",
)
MEADOW = settings(
    "dataset.meadow.n_species=3", "dataset.meadow.n_per_species=3", "dataset.meadow.n_val=2", "dataset.meadow.n_test=5"
)
TWIN = """# the baseline under another name: what it says of synthetic images has no effect on real ones
generate: {method: none}
curate: []
train: {mixing: {fraction: 0.9}}
evaluate: {arms: [real]}
"""


def compare(out: Path, recipes: str, *more: str | Path):
    skip = ("--skip", "randaugment,trivialaugment,mixup,text-only")
    return variegate("compare", "--recipes", recipes, "--shots", "2", "--out", out, *skip, *TINY, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A comparison of one draw, and of two after the same command with --draws 2; and the recipe file in it."""
    home = tmp_path_factory.mktemp("compare")
    twin, out = home / "twin.yaml", home / "out"
    twin.write_text(TWIN)
    for draws in ("1", "2"):
        said = compare(out, f"real-mix,{twin}", "--draws", draws, *MEADOW)
        assert said.status == 0, said.text
        (home / f"said-{draws}").write_text(said.text)
    return out, twin


def method(found: dict, name: str) -> dict:
    return next(one for one in found["shots"][0]["methods"] if one["method"] == name)


def test_a_second_draw_only_adds_to_the_first(finished: tuple[Path, Path]) -> None:
    said = (finished[0].parent / "said-2").read_text()
    assert available_cores() == 1 or "1 of 2 draws at a time; --workers 2 takes 2 beside each other" in said
    first, second = said.split("draw 2 of 2", 1)
    assert "training: " not in first and "draw 1 of 2" in first
    found = json.loads((finished[0] / "comparison.json").read_text())
    assert [draw["draw"] for draw in method(found, "real-mix")["draws"]] == [0, 1]
    assert found["schema"] == 1 and "--draws 2" in found["command"]


def test_an_arm_compared_with_itself_differs_not_at_all(finished: tuple[Path, Path]) -> None:
    """Trained apart in one run with the same seed: the same bytes, so a difference of nothing."""
    found = json.loads((finished[0] / "comparison.json").read_text())
    twin = method(found, "twin")
    assert twin["same_as"] is None
    for weights in ("selected", "last"):
        assert twin["against"][0][weights]["draws"] == [0.0, 0.0]
        assert twin["against"][0][weights]["verdict"].startswith("no difference seen: 0.0 points")


def test_every_view_has_the_same_numbers(finished: tuple[Path, Path]) -> None:
    out = finished[0]
    found = json.loads((out / "comparison.json").read_text())
    names = [one["method"] for one in found["shots"][0]["methods"]]
    assert {"real", "real+cutmix", "duplicated real", "real-mix", "twin"} <= set(names)
    accuracy = method(found, "real-mix")["selected"]["accuracy"]
    page, table = (out / "report.html").read_text(), (out / "comparison.md").read_text()
    assert f"{100 * accuracy:.1f} %" in page and f"| {100 * accuracy:.1f} % |" in table
    lines = table.splitlines()
    heads = [(lines[k - 1], line) for k, line in enumerate(lines) if line.startswith("|---")]
    assert heads and all(set(rule) == {"|", "-"} and head.count("|") == rule.count("|") for head, rule in heads)
    assert "one seed only" not in page, "the intervals are over draws"
    assert page.count("data:image/webp") >= 3 and "http" not in page.split("</style>")[1]
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    mine = [
        row
        for row in rows
        if (row["method"], row["checkpoint"], row["measure"]) == ("real-mix", "selected", "accuracy")
    ]
    assert [row["draw"] for row in mine] == ["", "0", "1"]
    assert float(mine[0]["value"]) == pytest.approx(accuracy, abs=1e-6)
    seeds = [seed["selected"]["test_accuracy"] for draw in method(found, "real-mix")["draws"] for seed in draw["seeds"]]
    assert accuracy == pytest.approx(sum(seeds) / 2, abs=1e-5)
    for draw in method(found, "real-mix")["draws"]:
        run = out / "runs" / "shots-2" / f"draw-{draw['draw']}" / method(found, "real-mix")["run"]
        arms = {arm["arm"]: arm for arm in json.loads((run / "results.json").read_text())["arms"]}
        assert (
            arms["real-mix"]["seeds"][0]["selected"]["test_accuracy"] == draw["seeds"][0]["selected"]["test_accuracy"]
        )


def test_a_changed_recipe_is_refused_with_the_difference(finished: tuple[Path, Path]) -> None:
    out, twin = finished
    said = compare(out, f"real-mix,{twin}", "--draws", "2", *MEADOW, "--set", "generate.strength=0.9")
    assert said.status == 2
    assert "compared another real-mix: generate.strength: [0.5] -> [0.9]" in said.err


def test_everything_wrong_is_said_at_once_before_anything_is_written(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    said = compare(tmp_path / "out", "real-mx,diff-aug,nothing", "--skip", "mixupp", *MEADOW)
    assert said.status == 2
    assert "did you mean real-mix?" in said.err and "nothing: no shipped recipe" in said.err
    photos = make_folder({"ant": 8, "bee": 8})
    few = variegate("compare", photos, "--recipes", "real-mix", "--shots", "2,9", "--out", tmp_path / "out", *TINY)
    assert few.status == 2 and "--shots 9: 2 classes have fewer training images" in few.err
    assert variegate("compare", "--shots", "0.5").status == 2
    for shard, problem in (("3", "for example --shard 1/3"), ("3/2", "from 1/2 to 2/2"), ("3/3", "there are 2 draws")):
        wrong = variegate("compare", "--draws", "2", "--shard", shard, "--out", tmp_path / "out", *MEADOW)
        assert wrong.status == 2 and problem in wrong.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_whose_adapter_saw_other_splits_is_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The adapter may have learned from this draw's test images; real images alone are not even trained for."""
    photos = make_folder({"ant": 8, "bee": 8})
    facts = AdapterFacts("tokens", ("ant", "bee"), (placeholder(0), placeholder(1)), splits="of another seed")
    write_adapter(tmp_path / "adapter", facts, [{placeholder(k): torch.ones(1, 192) for k in range(2)}])
    peeking = tmp_path / "peeking.yaml"
    peeking.write_text(f"adapt: {{method: file, path: {tmp_path / 'adapter'}}}\ngenerate: {{method: ti-gen}}\n")
    said = compare(tmp_path / "out", f"real-mix,{peeking}", photos, "--draws", "1")
    assert said.status == 2 and "may have seen this split's test images" in said.err
    assert not list((tmp_path / "out").rglob("predictions.parquet"))


def test_pools_that_hold_test_images_are_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    photos = make_folder({"ant": 8, "bee": 8})
    said = variegate("generate", photos, "--recipe", "real-mix", "--out", tmp_path / "run", *TINY, "--set", "seed=5")
    assert said.status == 0, said.text
    peeking = tmp_path / "peeking.yaml"
    peeking.write_text(f"generate: {{method: none}}\ncurate: []\ntrain: {{pools: ['{tmp_path / 'run'}']}}\n")
    said = compare(tmp_path / "out", str(peeking), photos, "--draws", "1")
    assert said.status == 2 and "are validation or test images here" in said.err
    assert not (tmp_path / "out").exists()
    said = compare(tmp_path / "other", "real-mix", photos, "--draws", "1", "--pool", photos)
    assert said.status == 2 and "validation or test images, such as" in said.err
    assert not list((tmp_path / "other").rglob("predictions.parquet"))


def test_few_shot_classes_backgrounds_and_extra_tests_are_measured_apart(tmp_path: Path) -> None:
    """Every number is that of the run's own results.json."""
    keys = settings(
        "dataset.meadow.n_species=3", "dataset.meadow.n_val=2", "dataset.meadow.n_test=60",
        "dataset.meadow.n_per_species=24", "dataset.meadow.uncommon_test=true", "dataset.imbalance=12",
        "dataset.meadow.habitat_bias=0.5",
    )  # fmt: skip
    out = tmp_path / "out"
    skip = ("--skip", "randaugment,trivialaugment,mixup,cutmix,duplicated,text-only,best-classic")
    said = variegate("compare", "--recipes", "real-mix", "--draws", "1", "--out", out, *skip, *TINY, *keys)
    assert said.status == 0, said.text
    mine = method(json.loads((out / "comparison.json").read_text()), "real-mix")
    parts = {part["part"]: part["accuracy"] for part in mine["parts"]}
    run = json.loads((out / "runs" / "shots-all" / "draw-0" / mine["run"] / "results.json").read_text())
    arm = next(arm for arm in run["arms"] if arm["arm"] == "real-mix")
    extra = run["extra_tests"][0]
    uncommon = next(one for one in extra["arms"] if one["arm"] == "real-mix")["selected"]["accuracy"]
    assert parts == pytest.approx(
        {f"{kind}-shot": part["accuracy"] for kind, part in arm["shots"].items()}
        | {"worst group": arm["worst_group"], "worst cell": arm["worst_cell"]["accuracy"], extra["title"]: uncommon},
        abs=1e-6,
    )
    assert {"few-shot", "medium-shot", "worst cell"} <= set(parts)
    for view in ("comparison.md", "report.html", "comparison.csv"):
        text = (out / view).read_text()
        assert "few-shot" in text.lower() and extra["title"] in text.lower()


def test_a_method_that_draws_copies_is_shown_with_them(tmp_path: Path) -> None:
    echo = tmp_path / "echo.yaml"
    echo.write_text("generate: {method: real-aug}\nadapt: {method: none}\ncurate: []\n")
    still = settings("backend.steps=20", "generate.strength=0.05")  # one step of twenty: its source again
    out = tmp_path / "out"
    said = compare(out, f"real-mix,{echo}", "--draws", "1", *MEADOW, *still)
    assert said.status == 0, said.text
    found = json.loads((out / "comparison.json").read_text())
    made, real = method(found, "echo"), {m["method"]: m["copies"] for m in found["shots"][0]["methods"]}
    assert made["copies"]["copies_kept"] == made["copies"]["kept"] == 6 and real["real"] is None
    assert all(pair["is_source"] and (out / "runs/shots-2/draw-0" / made["run"] / pair["image"]).is_file()
               for pair in made["copies"]["shown"])  # fmt: skip
    assert "6 of 6" in (out / "comparison.md").read_text()
    page = (out / "report.html").read_text().split("Copies of training images")[1]
    assert page.count("its source, distance") >= len(made["copies"]["shown"]) == 6
    rows = csv.DictReader((out / "comparison.csv").read_text().splitlines())
    assert [row["value"] for row in rows if (row["method"], row["measure"]) == ("echo", "copies kept")] == ["6"]


def test_a_method_that_draws_a_class_as_another_is_told_with_the_draw(tmp_path: Path) -> None:
    """Two kinds of pictures that are easily told apart, and a recipe that keeps one's pictures under the other's name."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 12), ("test", 4)):
        for channel, name in ((0, "red"), (2, "blue")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{index}.png")
    swapped = tmp_path / "swapped.yaml"
    swapped.write_text("generate: {method: real-mix}\nadapt: {method: none}\ncurate: []\ntrain: {label: {gamma: 0}}\n")
    still = settings("backend.steps=20", "generate.strength=0.05", "train.steps=40", "dataset.size_px=32")
    skip = ("--skip", "randaugment,trivialaugment,mixup,cutmix,duplicated,text-only,best-classic")
    out = tmp_path / "out"
    asked = ("compare", tmp_path / "photos", "--recipes", swapped, "--draws", "1", "--out", out, *skip)
    asked += ("--curve", "train.mixing.fraction=0.1,0.5")  # three methods that share one run's images
    said = variegate(*asked, *TINY, *still)
    assert said.status == 0, said.text
    found = json.loads((out / "comparison.json").read_text())
    entry = method(found, "swapped")
    assert entry["class_agreement"] == 0.0 and method(found, "real")["class_agreement"] is None
    assert [(row["draw"], row["class"], row["as"], row["taken"]) for row in entry["drawn_as_others"]] == [
        (0, "blue", "red", 1.0),
        (0, "red", "blue", 1.0),
    ]
    told = "swapped: classifiers of the real images alone see classes drawn as others: blue as red in draw 1 (100 % of its images"
    assert (
        told in said.text and told in (out / "report.html").read_text() and told in (out / "comparison.md").read_text()
    )
    assert said.text.count("see classes drawn as others") == 1, "said once"
    rows = csv.DictReader((out / "comparison.csv").read_text().splitlines())
    assert {row["value"] for row in rows if row["measure"] == "class agreement"} == {"0.0"}
    kept = out / "runs/shots-all/draw-0" / entry["run"] / "class_agreement.json"
    before = kept.stat().st_mtime_ns
    assert variegate(*asked, *TINY, *still).status == 0 and kept.stat().st_mtime_ns == before, "asked once"


def test_shards_share_the_draws_out_recipes_the_adapters_and_nothing_is_done_twice(tmp_path: Path) -> None:
    """Not even in a folder that was moved in between."""
    learn = settings("adapt.steps=2", "adapt.batch=2", "adapt.previews=0", "adapt.evaluations=0")
    plain = ("--skip", "randaugment,trivialaugment,mixup,cutmix,duplicated,text-only,best-classic")
    asked = ("compare", "--recipes", "diff-aug,diff-mix", "--shots", "2", "--draws", "2")
    for shard in ("1/2", "2/2"):
        said = variegate(*asked, "--out", tmp_path / "begun", *plain, *TINY, *MEADOW, *learn, "--shard", shard)
        assert said.status == 0 and f"draw {shard[0]} of 2" in said.text, said.text
        assert f"draw {3 - int(shard[0])} of 2" not in said.text and "without --shard" in said.out
    assert not (tmp_path / "begun" / "report.html").exists()
    (tmp_path / "begun").rename(tmp_path / "out")
    said = variegate(*asked, "--out", tmp_path / "out", *plain, *TINY, *MEADOW, *learn)
    assert said.status == 0, said.text
    assert "training: " not in said.text and "adapting: " not in said.text and "drawing: " not in said.text
    adapters = list((tmp_path / "out" / "adapters").glob("*/adapt/pytorch_lora_weights.safetensors"))
    assert len(adapters) == 2  # one a draw
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    learned = [method(found, name)["cost"]["seconds"]["adapt"] for name in ("diff-aug", "diff-mix")]
    assert learned[0] == learned[1] > 0


def test_draws_beside_each_other_find_what_draws_in_turn_find(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Two workers on a core each: the same classifiers of real images, and nothing left for a second command."""
    alone, twin = finished
    if available_cores() < 2:
        pytest.skip("one core has one draw at a time")
    out, asked = tmp_path / "out", (f"real-mix,{twin}", "--draws", "2", "--workers", "2", *MEADOW)
    said = compare(out, *asked)
    assert said.status == 0, said.text
    assert "recipes: 2 draws at a time" in said.text and "training: " not in said.text
    logs = "".join(path.read_text() for path in sorted((out / "logs").glob("worker-*.log")))
    assert all(f"2 shots, draw {draw} of 2: real-mix" in logs for draw in (1, 2))
    found, before = (json.loads((folder / "comparison.json").read_text()) for folder in (out, alone))
    assert [draw["draw"] for draw in method(found, "real-mix")["draws"]] == [0, 1]
    for name in ("real", "real+cutmix", "twin"):
        assert method(found, name)["draws"] == method(before, name)["draws"], (
            "a classifier this small learns on one core"
        )
    again = compare(out, *asked)
    assert again.status == 0 and json.loads((out / "comparison.json").read_text()) == found
    assert "training: " not in "".join(path.read_text() for path in (out / "logs").glob("*.log"))[len(logs) :]


def test_a_draw_that_fails_beside_others_is_told(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The pool holds a test image of one draw: said before anything is trained, as with one draw at a time."""
    photos = make_folder({"ant": 8, "bee": 8})
    said = compare(tmp_path / "out", "real-mix", photos, "--draws", "2", "--workers", "2", "--pool", str(photos))
    assert said.status == 2 and "validation or test images" in said.err, said.text
    assert not list((tmp_path / "out").rglob("predictions.parquet"))


def drawn_from(photos: Path, out: Path, *more: str) -> Path:
    """A finished run whose images stem from some of the photos; and a recipe that pools them."""
    said = variegate("generate", photos, "--recipe", "real-mix", "--out", out, *TINY, *settings(*more))
    assert said.status == 0, said.text
    pooling = out.with_suffix(".yaml")
    pooling.write_text(f"generate: {{method: none}}\ncurate: []\ntrain: {{pools: ['{out}']}}\n")
    return pooling


def parted(make_folder: Callable[..., Path]) -> Path:
    """Photos whose test and validation images are the same for every seed."""
    return make_folder({f"{split}/{name}": 6 for split in ("train", "val", "test") for name in ("ant", "bee")})


def test_pools_that_know_more_training_images_than_a_draw_are_refused(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Images of all twelve photos against arms of two a class: a gain would be that of the other eight."""
    photos = parted(make_folder)
    all_of_them = drawn_from(photos, tmp_path / "all")
    said = compare(tmp_path / "out", str(all_of_them), photos, "--draws", "1")
    assert said.status == 2 and "made from 8 training images that the arms of this comparison do not have" in said.err
    assert "--set seed=0 --set dataset.shots=2" in said.err and not (tmp_path / "out").exists()
    own = drawn_from(photos, tmp_path / "own", "dataset.shots=2", "seed=0")
    said = compare(tmp_path / "out", str(own), photos, "--draws", "2")
    assert said.status == 2 and "(in draw 2, 2 shots) — use --draws 1, or make it from" in said.err
    assert not (tmp_path / "out").exists(), "nothing is trained for draw 1 either"
    said = compare(tmp_path / "out", str(own), photos, "--draws", "1")
    assert said.status == 0, said.text
    mine = method(json.loads((tmp_path / "out/comparison.json").read_text()), "own")["cost"]
    assert mine["made_elsewhere"] and mine["gain_per_minute"] is None


def test_a_pool_that_gives_a_later_draw_away_is_refused_before_the_first(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Splits are by seed here: what trains in draw 1 may be tested in draw 2."""
    photos = make_folder({"ant": 8, "bee": 8})
    own = drawn_from(photos, tmp_path / "own", "dataset.shots=2", "seed=0", "generate.per_real=4")
    said = compare(tmp_path / "out", str(own), photos, "--draws", "4")
    assert said.status == 2 and "(in draw " in said.err and "use --draws 1" in said.err
    assert not (tmp_path / "out").exists()


def test_a_pool_of_other_data_is_warned_about(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    others = parted(make_folder).rename(tmp_path / "others")
    for number, path in enumerate(sorted(others.rglob("*.png"))):
        picture(5000 + number).save(path)
    elsewhere = drawn_from(others, tmp_path / "elsewhere")
    said = compare(tmp_path / "out", str(elsewhere), parted(make_folder), "--draws", "1")
    assert said.status == 0, said.text
    assert "real images that are none of this data" in said.err
    warnings = json.loads((tmp_path / "out/comparison.json").read_text())["warnings"]
    assert any(text.startswith("elsewhere: ") and "none of this data" in text for text in warnings)


def test_changed_photos_are_refused_before_anything_is_done_again(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos = parted(make_folder)
    assert compare(tmp_path / "out", "real-mix", photos, "--draws", "1").status == 0
    before = (tmp_path / "out/comparison.json").read_bytes()
    picture(4000).save(photos / "test/ant/0.png")
    said = compare(tmp_path / "out", "real-mix", photos, "--draws", "1")
    assert said.status == 2 and "the data changed since this comparison began" in said.err
    assert "choose another --out folder" in said.err and "training: " not in said.text
    assert (tmp_path / "out/comparison.json").read_bytes() == before


def blots(seed: int) -> Image.Image:
    """Random blots, unlike any others."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8))
    return small.resize((48, 48), Image.Resampling.BILINEAR)


def test_retrieval_has_its_cost_and_takes_no_training_image_again(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos, pool = parted(make_folder), tmp_path / "pool"
    pool.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        blots(number).save(path)
        if "train" in path.parts:
            blots(number).save(pool / f"again-{number}.jpg", quality=90)
    for number in range(30):
        blots(100 + number).save(pool / f"{number}.png")
    said = compare(tmp_path / "out", "real-mix", photos, "--draws", "1", "--pool", pool)
    assert said.status == 0, said.text
    assert "retrieve: 4 of 42 images of the pool; left out: 4 that are training images, 0 nearly like" in said.err
    found = method(json.loads((tmp_path / "out/comparison.json").read_text()), "retrieval")
    cost, gain = found["cost"], found["against"][0]["selected"]["difference"]
    assert cost["seconds"]["retrieve"] > 0.1 and not cost["made_elsewhere"] and cost["images_kept"] == 4
    extra = cost["total_seconds"] - cost["seconds"]["train"]
    assert cost["gain_per_minute"] == pytest.approx(gain * 60 / extra, abs=1e-3)
    assert found["copies"]["images"] == found["copies"]["kept"] == 4
    page = (tmp_path / "out/report.html").read_text().split("Copies of training images")[1]
    assert '<th scope="row">retrieval</th><td class="num">4</td>' in page
