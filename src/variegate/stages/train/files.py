"""The files of one training task: checkpoint, model, log and predictions. Equal runs write equal bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from variegate.classifier.fit import Progress

PREDICTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),  # val | test | test_<word>
        ("weights", pa.string()),  # selected | last
        ("label", pa.int32()),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
_PARTS = ("net", "best", "optimizer")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one set of weights says of one split."""

    ids: Sequence[str]
    split: str
    weights: str
    labels: Sequence[int]
    probabilities: np.ndarray  # float32 [N, C]


def checkpoint_bytes(progress: Progress, key: str) -> bytes:
    """One file holds everything, so that it is in place whole or not at all."""
    tensors = {f"{part}/{name}": value for part in _PARTS for name, value in getattr(progress, part).items()}
    names = ("step", "best_step", "best_accuracy", "loss_sum", "seconds", "log")
    numbers = {name: getattr(progress, name) for name in names}
    return save(tensors, {"progress": json.dumps({"key": key, **numbers})})


def read_checkpoint(path: Path, key: str) -> Progress | None:
    """What an interrupted task left; None where there is nothing, or only something of another task key."""
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads((file.metadata() or {})["progress"])
            if numbers.pop("key") != key:
                return None
            progress = Progress(**numbers)
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                part, _, rest = name.partition("/")
                getattr(progress, part)[rest] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError):
        return None
    return progress


def log_lines(log: Sequence[Mapping[str, Any]], *, steps: int, selected_step: int, selected_by: str) -> str:
    """One JSON line a validation, then one that says which weights were kept."""
    rows = [*log, {"steps": steps, "selected_step": selected_step, "selected_by": selected_by}]
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_log(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The validation rows and the closing row of a log.jsonl."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows[:-1], rows[-1]


def predictions_bytes(predictions: Sequence[Prediction]) -> bytes:
    """Parquet, rows in the order given."""
    columns: dict[str, list] = {name: [] for name in PREDICTIONS.names}
    for one in predictions:
        count = len(one.ids)
        columns["id"] += list(one.ids)
        columns["split"] += [one.split] * count
        columns["weights"] += [one.weights] * count
        columns["label"] += [int(label) for label in one.labels]
        columns["probabilities"] += list(one.probabilities)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=PREDICTIONS), buffer, compression="zstd")
    return buffer.getvalue()
