"""quality.json as the report shows it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from variegate.image_quality.keys import images_key
from variegate.records import ClassInfo, SyntheticImage
from variegate.stages.report.contents import ClassQuality, CopyPair, Quality, QualityRow

NUM_PAIRS = 40  # copies with their pictures; the others are in quality.json
TITLES = {
    "frechet": ("Fréchet distance", "lower is nearer; too large for few images, so compare with the floor"),
    "kid": ("KID × 1000", "lower is nearer; free of the bias of few images, so it may fall below 0"),
    "precision": ("Precision", "share of synthetic images that lie among real ones"),
    "recall": ("Recall", "share of real images that lie among synthetic ones"),
    "density": ("Density", "as precision, weighted by how many real images are around"),
    "coverage": ("Coverage", "share of real images with a synthetic neighbour"),
    "vendi": ("Vendi score", "the number of different images that would be as diverse"),
}


def read_quality(text: str, synthetic: Sequence[SyntheticImage], classes: Sequence[ClassInfo]) -> Quality | None:
    """quality.json's text as records; None where there is none."""
    if not text:
        return None
    found: Mapping[str, Any] = json.loads(text)
    copies, overall = found["copies"], found["overall"]
    measured = overall["measures"]
    made = {image.id: image for image in synthetic}
    kept = [image for image in synthetic if image.action == "keep"]
    return Quality(
        encoder=found["encoder"],
        is_current=found["images_key"] == images_key(kept),
        compared=measured["compared"] if measured else None,
        against=measured["against"] if measured else None,
        rows=_rows(overall),
        agreement=(overall["agreement"] or {}).get("share"),
        judge_accuracy=found["judge"]["held_out_accuracy"] if found["judge"]["used"] else None,
        per_class=tuple(
            _of_class(entry, counts) for entry, counts in zip(found["per_class"], copies["per_class"], strict=True)
        ),
        images=copies["images"],
        copies=copies["copies"],
        of_source=copies["of_source"],
        of_other=copies["of_other"],
        threshold=copies["threshold"],
        nearest_real=(copies["distances"]["between_training_images"] or {}).get("low"),
        pairs=tuple(_pair(one, made[one["id"]], classes) for one in copies["list"][:NUM_PAIRS] if one["id"] in made),
        notes=tuple(found["notes"]),
    )


def _rows(overall: Mapping[str, Any]) -> tuple[QualityRow, ...]:
    rows = []
    for name, (title, meaning) in TITLES.items():
        values = (overall["measures"] or {}).get(name)
        if values:
            scale = 1000.0 if name == "kid" else 1.0  # features of length 1 make it small
            error = scale * values["standard_error"] if name == "kid" else None
            rows.append(QualityRow(title, meaning, scale * values["synthetic"], scale * values["real"], error))
    if overall["diversity"]:
        meaning = "mean distance of two images of a class in all of its layers, as LPIPS has it"
        rows.append(
            QualityRow(
                "Diversity within classes", meaning, overall["diversity"]["synthetic"], overall["diversity"]["real"]
            )
        )
    return tuple(rows)


def _of_class(entry: Mapping[str, Any], counts: Mapping[str, Any]) -> ClassQuality:
    measured, diversity = entry["measures"] or {}, entry["diversity"] or {}
    return ClassQuality(
        name=entry["class"],
        images=entry["images"]["measured"],
        reference=entry["images"]["reference"],
        precision=measured.get("precision", {}).get("synthetic"),
        recall=measured.get("recall", {}).get("synthetic"),
        diversity=diversity.get("synthetic"),
        real_diversity=diversity.get("real"),
        agreement=(entry["agreement"] or {}).get("share"),
        copies=counts["copies"],
        drawn=counts["images"],
    )


def _pair(one: Mapping[str, Any], image: SyntheticImage, classes: Sequence[ClassInfo]) -> CopyPair:
    return CopyPair(
        id=image.id,
        target=image.target,
        class_name=classes[image.target].name,
        of=one["of"],
        is_source=one["is_source"],
        distance=one["distance"],
        action=image.action,
        strength=image.strength,
    )
