"""The Summary behind the page, and its Markdown and JSON views."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fake_run import class_names

from variegate.stages.report import html, results
from variegate.stages.report.contents import Summary
from variegate.stages.report.scale import nice_scale
from variegate.stages.report.summary import summarize
from variegate.store import RunFolder


@pytest.fixture(scope="module")
def summary(finished_run: Path) -> Iterator[Summary]:
    with pytest.MonkeyPatch.context() as patch, RunFolder.read(finished_run) as folder:
        patch.chdir(finished_run.parent)
        yield summarize(folder)


def test_json_holds_the_whole_summary(summary: Summary) -> None:
    text = html.render_json(summary)
    assert json.loads(text) == json.loads(json.dumps(asdict(summary)))
    assert json.loads(text)["arms"][1]["name"] == "real+synthetic"


def test_summary_names_images_by_id_not_by_path(summary: Summary, finished_run: Path) -> None:
    assert str(finished_run) not in html.render_json(summary)
    assert len(set(summary.image_ids)) == len(summary.image_ids) > 40


def test_gallery_covers_the_classes(summary: Summary) -> None:
    assert [exhibit.class_name for exhibit in summary.exhibits] == class_names(10)
    assert all(len(exhibit.variants) == 4 for exhibit in summary.exhibits)


def test_curves_are_read_and_averaged(summary: Summary) -> None:
    assert len(summary.curves) == 6
    curve = summary.curves[0]
    assert [step for step, _ in curve.val_accuracy] == list(range(30, 301, 30))
    assert len(curve.loss) <= results.MAX_POINTS and curve.loss[-1][0] == 300
    mean = results.mean_curve([curve.val_accuracy for curve in summary.curves[:3]])
    assert mean[-1][1] == pytest.approx(sum(c.val_accuracy[-1][1] for c in summary.curves[:3]) / 3)


def test_command_repeats_the_run(summary: Summary) -> None:
    assert summary.command == "variegate run --recipe butterflies/recipe.yaml --out butterflies-again"


def test_environment_names_versions(summary: Summary) -> None:
    expected = (("python", "3.11.9"), ("cores", "2"), ("torch", "2.15.0"), ("diffusers", "0.42.0"))
    assert summary.environment == expected


def test_markdown_keeps_hostile_names_inside_their_cell(summary: Summary) -> None:
    text = html.render_markdown(summary)
    assert "<script>" not in text and "<b>" not in text
    row = next(line for line in text.splitlines() if "pipe" in line)
    assert row.replace("\\|", "").count("|") == 5
    assert summary.verdict in text


def test_markdown_has_the_tables_of_extra_tests_shots_and_groups(summary: Summary) -> None:
    lines = html.render_markdown(summary).splitlines()
    for start, columns in (
        ("| test: uncommon context ", 6),
        ("| few (7 classes of fewer than 20", 6),
        ("| meadow |", 6),
    ):
        (place,) = (index for index, line in enumerate(lines) if line.startswith(start))
        assert lines[place].count("|") == columns + 1, lines[place]
        head = next(line for line in reversed(lines[:place]) if line.startswith("|---"))
        assert head.count("|") == columns + 1
    assert any(line.startswith("- Worst class within a group, real: ") for line in lines)


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 1.0], [], [None], [0.33, 0.3300001], [-0.02, 0.4], [2.31, 0.004], [1e-7, 2e-7]]
)
def test_scales_hold_their_values(values: list[float | None]) -> None:
    scale = nice_scale(values)
    assert 2 <= len(scale.ticks) <= 9
    for value in values:
        assert value is None or scale.low - 1e-9 <= value <= scale.high + 1e-9


def test_pictures_of_sixteen_bits_are_shown_as_they_are_seen(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    from variegate.stages.report.thumbnails import thumbnails

    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = thumbnails({"deep": tmp_path / "deep.png", "bad": tmp_path / "bad.png"})
    assert list(found) == ["deep"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["deep"].split(",")[1]))).convert("L"))
    assert abs(shown.mean() - 127.5) < 3 and shown[:, :4].mean() < 15 and shown[:, -4:].mean() > 240


def test_warnings_of_every_stage_are_shown_those_of_prompts_too(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        stages = ("dataset", "adapt", "prompts", "generate", "curate", "train")
        for stage in stages:
            folder.finish_stage(stage, "k", 1.0, {"line": "", "warnings": [f"{stage} has a doubt"]})
        summary = summarize(folder)
        assert summary.warnings == tuple(f"{stage} has a doubt" for stage in stages)
        assert "prompts has a doubt" in html.render_html(summary, {})
        assert "prompts has a doubt" in html.render_markdown(summary)
