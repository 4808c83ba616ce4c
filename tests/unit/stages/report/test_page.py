"""The page as a reader meets it: its numbers, its images, hostile input, missing parts, one self-contained file."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from fake_run import HOSTILE, class_names, write_run
from pages import Page, read_page
from PIL import Image

from variegate.errors import UserError
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe_file import load_recipe
from variegate.stages.report import stage
from variegate.store import RunFolder

PERCENT = "{:.1f} %".format


def page_of(root: Path) -> Page:
    with RunFolder.read(root) as folder:
        return read_page(stage.write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(finished_run: Path) -> str:
    with RunFolder.read(finished_run) as folder:
        return stage.write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return read_page(html)


@pytest.fixture(scope="module")
def results(finished_run: Path) -> dict:
    return json.loads((finished_run / "results.json").read_text())


def percent(value: float) -> str:
    return PERCENT(100 * value)


def signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


# ------------------------------------------------------------------------------------------------ numbers


def test_every_image_of_the_feature_space_is_one_mark(page: Page, html: str) -> None:
    assert "Where the images lie" in page.headings
    assert "the plane holds 63 % of their variance" in " ".join(page.all_text().split())
    legend = re.sub(r"<[^>]+>", "", html[html.index("Kinds of images") :][:2500])
    for said in ("real, 50", "synthetic, 4,321 (200 drawn)", "validation, 30"):
        assert said in legend
    figure = html[html.index('<svg class="scatter"') :]
    figure = figure[: figure.index("</svg>")]
    marks = [path.count("M") for path in re.findall(r'<path class="spot[^>]*"', figure)]
    assert sorted(marks) == [30, 50, 200] and marks[-1] == 50, "real images are drawn last, on top"
    places = [float(value) for value in re.findall(r"M(-?\d+) (-?\d+)", figure)[0]]
    assert all(0 <= value <= 700 for value in places)


def test_a_run_without_a_feature_space_has_no_such_section(finished_run: Path, tmp_path: Path) -> None:
    for text in ("null", None):
        root = tmp_path / str(text)
        shutil.copytree(finished_run, root)
        path = root / "train/feature-space.json"
        path.unlink() if text is None else path.write_text(text)
        assert "Where the images lie" not in page_of(root).headings


def test_accuracies_are_those_of_results_json(page: Page, results: dict) -> None:
    expected = []
    for arm in results["arms"]:
        for title, kind in (("Best on validation", "selected"), ("Last step", "last")):
            found = arm[kind]
            bounds = f"{percent(found['low'])} to {percent(found['high'])}"
            expected.append([arm["arm"] + title, percent(found["accuracy"]), bounds])
    assert page.table("Test accuracy of each training set")[1:] == expected


def test_differences_and_verdict_are_those_of_results_json(page: Page, results: dict) -> None:
    [comparison] = results["comparisons"]
    expected = [
        [title, signed(one["difference"]), f"{signed(one['low'])} to {signed(one['high'])}"]
        for title, one in (("Best on validation", comparison["selected"]), ("Last step", comparison["last"]))
    ]
    assert page.table("Paired difference")[1:] == expected
    assert page.headings[0] == results["verdict"]
    assert comparison["verdict"] in page.all_text()
    assert f"smaller than {100 * comparison['detectable']:.1f} points" in page.all_text()


def test_classes_are_listed_by_change(page: Page, results: dict) -> None:
    before, after = (arm["per_class"] for arm in results["arms"])
    differences = results["comparisons"][0]["per_class"]
    order = sorted(range(10), key=lambda label: -differences[label])
    expected = [[results["classes"][i], percent(before[i]), percent(after[i]), signed(differences[i])] for i in order]
    assert page.table("Test accuracy per class")[1:] == expected


def test_every_seed_is_listed(page: Page, results: dict) -> None:
    rows = page.table("Accuracy of every trained classifier")[1:]
    assert len(rows) == 6
    first = results["arms"][0]["seeds"][0]
    values = [first["selected"]["val_accuracy"], first["selected"]["test_accuracy"]]
    assert rows[0][:5] == ["real", "0", "270", *map(percent, values)]
    assert rows[0][-1] == "20 s"


def test_groups_calibration_and_most_frequent_mistake(page: Page, results: dict) -> None:
    rows = {row[0]: row[1:] for row in page.table("Test accuracy per group")}
    shares = [percent(arm["groups"]["<u>forest</u>"]) for arm in results["arms"]]
    assert rows["<u>forest</u>"] == ["30", *shares, "+5.7 +0.7 to +10.7"]
    assert rows["Worst group"] == ["", *(percent(arm["worst_group"]) for arm in results["arms"]), ""]
    assert percent(results["arms"][0]["ece"]) in page.all_text()
    shares = {
        (true, predicted): count / sum(line)
        for true, line in enumerate(results["arms"][0]["confusion"])
        for predicted, count in enumerate(line)
        if true != predicted
    }
    assert page.table("Most frequent mistakes")[1][2] == percent(max(shares.values()))


def test_the_worst_cell_is_named_and_so_are_cells_too_small_for_it(page: Page, results: dict) -> None:
    cell = results["arms"][0]["worst_cell"]
    text = " ".join(page.all_text().split()).replace(" ,", ",").replace(" :", ":")
    assert f"{results['classes'][1]}, <u>forest</u>: {percent(cell['accuracy'])} of 12 test images" in text
    assert "Fewer than 10 test images: 1 group, 1 of 3 classes within groups" in text
    assert f"{results['classes'][2]}, bog (3)" in text


def test_shot_groups_and_extra_tests_have_their_tables(page: Page, results: dict) -> None:
    rows = page.table("Test accuracy of many-, medium- and few-shot")[1:]
    accuracies = [percent(arm["shots"]["few"]["accuracy"]) for arm in results["arms"]]
    assert rows[2] == ["few7 classes of fewer than 20 training images", *accuracies, "−2.0 −7.0 to +3.0"]
    (row,) = page.table("Accuracy on each extra test set")[1:]
    accuracies = [percent(arm["selected"]["accuracy"]) for arm in results["extra_tests"][0]["arms"]]
    assert row == ["test: uncommon context", "90", *accuracies, "+4.4 −0.6 to +9.4"]


def test_a_run_without_tail_groups_and_extra_tests_has_none_of_their_tables(tmp_path: Path) -> None:
    root = write_run(tmp_path / "plain")
    path = root / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"shots": None, "groups": None, "extra_tests": []}))
    text = page_of(root).all_text()
    assert "Extra test sets" not in text
    assert "By number of training images" not in text
    assert "Accuracy within each group" not in text


def test_counts_are_those_of_the_database(page: Page, finished_run: Path) -> None:
    with RunFolder.read(finished_run) as folder:
        drawn = folder.synthetic_images(kept_only=False)
        kept = folder.synthetic_images()
    total = page.table("Images per class and split")[-1]
    assert total == ["All", "50", "30", "60", str(len(drawn)), str(len(kept))]
    assert f"{len(drawn) - len(kept)} of {len(drawn)} drawn images" in page.all_text()
    reasons = {"blank": 0, "off-class": 0}
    for image in drawn:
        if image.action == "drop":
            reasons[image.reason] += 1
    for reason, count in reasons.items():
        assert re.search(rf"{reason}\s+{count} images", page.all_text())


def test_times_and_rates(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.table("Wall time")}
    assert rows["generate"][:3] == ["34 s", "21 %", "5.8"]
    assert rows["Total"][0] == "2 min 48 s"


# ------------------------------------------------------------------------------------------------ images


def test_images_are_small_and_inside_the_page(page: Page) -> None:
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) > 50
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/webp;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 96
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == len(sources) and all(alts)


def test_gallery_says_what_each_image_is(page: Page) -> None:
    text = " ".join(page.all_text().split())
    assert "4 of 4 made from this image" in text
    assert "strength 0.7" in text and "class-agreement 0.37" in text
    assert "kept, weight 0.37" in text and "dropped: blank" in text
    assert "16 % Adonis blue 84 % Clouded yellow" in text  # gamma 0.5, strength 0.7
    assert "a photo of a Adonis blue" in text


def test_images_drawn_from_text_stand_beside_real_examples(tmp_path: Path) -> None:
    root = write_run(tmp_path / "text", from_text=True, generate={"method": "real-gen"})
    text = " ".join(page_of(root).all_text().split())
    assert "Real examples on the left" in text and "6 of 20 made for this class" in text


def test_a_run_without_synthetic_images_shows_real_ones(tmp_path: Path) -> None:
    arms = {"evaluate": {"arms": ["real"]}, "generate": {"method": "none"}}
    page = page_of(write_run(tmp_path / "real", until="dataset", **arms))
    assert "Real images" in page.headings and "What was made" not in page.headings
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alts.count(f"real image of {class_names(10)[6]}") == 4
    assert len(alts) == 40


def test_a_missing_image_leaves_a_frame(tmp_path: Path, finished_run: Path) -> None:
    root = shutil.copytree(finished_run, tmp_path / "copy")
    one_class = min((root / "data" / "train").iterdir())  # the page shows one of its images
    for path in one_class.iterdir():
        path.write_bytes(b"no image")
    page = page_of(root)
    assert page.all_text().count("file missing or unreadable") == 1


# ------------------------------------------------------------------------------------------------ safe and whole


def test_hostile_names_stay_text(page: Page) -> None:
    assert not page.tags & {"script", "u", "i", "iframe", "object"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for name in (*HOSTILE, "class 3 <i>has</i> few test images", "train/<a>.jpg", "train/<broken>.jpg"):
        assert name in page.all_text()
    assert page.unclosed == []


def test_page_loads_nothing(page: Page, html: str) -> None:
    for tag, name, value in page.attributes:
        if name in {"src", "href", "srcset", "action", "data"}:
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html


def test_every_link_leads_to_a_heading(page: Page) -> None:
    targets = {value for _, name, value in page.attributes if name == "id"}
    links = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert links and links <= targets
    labels = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert labels <= targets


def test_equal_runs_give_equal_bytes(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = write_run(tmp_path / finished_run.name, generate={"method": "real-mix"})
    for root in (finished_run, again):
        monkeypatch.chdir(root.parent)  # the command to repeat names the folder from here
        with RunFolder.read(root) as folder:
            stage.write_report(folder)
    for name in ("report.html", "report.md", "summary.json"):
        assert (again / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_hundred_classes_stay_readable_and_small(tmp_path: Path) -> None:
    root = write_run(tmp_path / "many", 100, generate={"method": "real-mix"})
    page = page_of(root)
    assert (root / "report.html").stat().st_size < 3_000_000
    assert len(page.table("The 10 classes that gained most")) == 11
    assert len(page.table("Test accuracy per class")) == 101  # the whole list can be opened
    assert set(class_names(100)) <= {row[0] for row in page.table("Images per class")}


def test_eight_arms_look_different_in_colour_and_shape(tmp_path: Path, finished_run: Path) -> None:
    root = shutil.copytree(finished_run, tmp_path / "arms")
    found = json.loads((root / "results.json").read_text())
    arms = [{**found["arms"][1], "arm": f"arm {index}"} for index in range(9)]
    (root / "results.json").write_text(json.dumps(found | {"arms": arms, "comparisons": []}))
    page_of(root)
    html = (root / "report.html").read_text()
    swatches = re.findall(r'<svg class="swatch (arm-\d)"[^>]*><path class="mark" d="([^"]+)"', html)
    assert len({colour for colour, _ in swatches}) == len({shape for _, shape in swatches}) == 8
    assert set(re.findall(r'class="row (arm-\d+)"', html)) == {colour for colour, _ in swatches}
    for colour in {colour for colour, _ in swatches}:  # light, dark and paper each have their own
        values = re.findall(rf"--{colour}: (#\w+)", html)
        assert len(values) == 3 and len(set(values)) == 2
    light = {re.findall(rf"--arm-{index}: (#\w+)", html)[0] for index in range(8)}
    dark = {re.findall(rf"--arm-{index}: (#\w+)", html)[1] for index in range(8)}
    assert len(light) == len(dark) == 8


# ------------------------------------------------------------------------------------------------ unfinished runs


@pytest.mark.parametrize(
    ("until", "recipe", "expected"),
    [
        ("dataset", {}, "nothing is drawn yet"),
        ("generate", {}, "the run stopped before or in the stage 'train'"),
        (
            "dataset",
            {"generate": {"method": "none"}, "evaluate": {"arms": ["real"]}},
            "this recipe makes none (generate.method: none)",
        ),
    ],
)
def test_an_unfinished_run_says_what_is_missing(tmp_path: Path, until: str, recipe: dict, expected: str) -> None:
    page = page_of(write_run(tmp_path / "part", until=until, **recipe))
    assert expected in page.all_text()
    assert page.headings[0] == "No verdict yet: this run has no results."
    assert "Data" in page.headings and "Accuracy on the test images" not in page.headings


def test_an_empty_run_folder_has_a_page(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "empty").close()
    page = page_of(tmp_path / "empty")
    assert "the run folder has no recipe.yaml" in page.all_text()
    assert "No stage has finished yet." in page.all_text()


def test_one_arm_and_one_seed_give_no_interval(tmp_path: Path, finished_run: Path) -> None:
    root = shutil.copytree(finished_run, tmp_path / "single")
    found = json.loads((root / "results.json").read_text())
    arm = found["arms"][0]
    arm["seeds"] = arm["seeds"][:1]
    for kind in ("selected", "last"):
        arm[kind] |= {"low": None, "high": float("nan")}
    arm |= {"groups": None, "worst_group": None, "ece": None, "confusion": []}
    (root / "results.json").write_text(json.dumps(found | {"arms": [arm], "comparisons": [], "groups": None}))
    page = page_of(root)
    rows = page.table("Test accuracy of each training set")
    assert [row[2] for row in rows[1:]] == ["no interval"] * 2
    assert "Change per class" not in page.headings and "Groups" not in page.headings
    assert "trains one arm only (real)" in page.all_text()
    assert "NaN" not in (root / "summary.json").read_text()


def test_decisions_made_after_the_evaluation_are_told(tmp_path: Path, finished_run: Path) -> None:
    root = shutil.copytree(finished_run, tmp_path / "reviewed")
    with RunFolder.create(root) as folder:
        first = folder.synthetic_images()[0]
        folder.put_decisions("human", [(first.id, "drop", 0.0, "wrong <em>wing</em>")])
        page = read_page(stage.write_report(folder).read_text(encoding="utf-8"))
    assert "156 kept synthetic images; 155 are kept now" in page.all_text()
    assert "wrong <em>wing</em>" in page.all_text()


# ------------------------------------------------------------------------------------------------ glue


def test_stage_writes_all_views(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    with RunFolder.create(root) as folder:
        summary = stage.run(Context(load_recipe(str(root / "recipe.yaml")), folder, QuietReporter()))
    size = (root / "report.html").stat().st_size
    assert summary == {"line": f"report.html written ({size / 1e3:.0f} kB)", "bytes": size}
    assert (root / "report.md").is_file() and (root / "summary.json").is_file()


def test_suffix_of_out_chooses_the_view(finished_run: Path, tmp_path: Path) -> None:
    with RunFolder.read(finished_run) as folder:
        for name, start in (("a.html", "<!doctype html>"), ("b.md", "# variegate report"), ("c.json", "{")):
            assert stage.write_report(folder, tmp_path / name).read_text().lstrip().startswith(start)
        with pytest.raises(UserError, match=r"use \.html, \.md or \.json"):
            stage.write_report(folder, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
