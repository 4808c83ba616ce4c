"""DIAGen's filter: a ResNet-50 with a new last layer and a temperature, as a classifier like those that train writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from variegate.errors import ModelError, Problem, first_of
from variegate.files import write_atomic
from variegate.importers.found import Found
from variegate.importers.weights import Weights, tensor_problems, unknown_keys

BASE = "base_model."
NUMBERS = ("num_classes", "temperature")
HEAD = ("out.weight", "out.bias")
UNUSED = ("fc.weight", "fc.bias")  # the pre-trained last layer, which the filter does not read
SIZE_PX, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as ResNet-50 learned
REMEDY = "export it again with DIAGen's train_filter"


def is_probe(keys: Sequence[str]) -> bool:
    return "temperature" in keys and any(key.startswith(("out.", BASE)) for key in keys)


def probe_found(weights: Weights, classes: Sequence[str] | None) -> Found:
    """Check every key and shape against torchvision's ResNet-50; raises ModelError with every problem."""
    values, path = dict(weights.values), weights.path
    problems = _key_problems(values, path)
    counters = {key for key in values if key.endswith("num_batches_tracked") and hasattr(values[key], "shape")}
    floats = {key: value for key, value in values.items() if key not in counters and key not in NUMBERS}
    problems += tensor_problems(floats, path)
    if problems:
        raise ModelError(problems)
    count, temperature = _numbers(weights)
    if classes is not None and len(classes) != count:
        text = f"knows {count:,} classes, and --classes has {len(classes):,} names"
        raise ModelError(Problem(str(path), text, "give one name a line for each class, in label order"))
    names = list(classes) if classes is not None else [str(label) for label in range(count)]

    def write(folder: Path) -> None:
        from variegate.classifier.models import model_bytes

        body = {key.removeprefix(BASE): value for key, value in values.items() if key.startswith(BASE)}
        head = {f"fc.{part}": values[f"out.{part}"] / temperature for part in ("weight", "bias")}
        kept = {key: value.detach().contiguous().clone() for key, value in (body | head).items()}
        about = {"model": "resnet50", "classes": names, "size_px": SIZE_PX, "mean": MEAN, "std": STD}
        write_atomic(folder / "model.safetensors", model_bytes(kept, about))

    shown = {"model": "resnet50", "num_classes": count, "temperature": temperature}
    shown |= {"features": values["out.weight"].shape[1], "tensors": len(values) - len(NUMBERS)}
    notes = ["the temperature is folded into the last layer"]
    if classes is None:
        notes.append(
            "the file names no classes, so nothing can be judged by it; --classes FILE does, one a line in label order"
        )
    return Found("classifier", "DIAGen", (path,), shown, write, notes=tuple(notes))


def _numbers(weights: Weights) -> tuple[int, float]:
    """The class count and the temperature; raises ModelError where they are not what they should be."""
    path, problems, numbers = str(weights.path), [], {}
    for key in NUMBERS:
        value = weights.values[key]
        if isinstance(value, int | float) or getattr(value, "numel", int)() == 1:
            numbers[key] = float(value)
        else:
            problems.append(Problem(path, f"{key} is no single number", REMEDY))
    rows = weights.values["out.weight"].shape[0]
    if numbers.get("num_classes", rows) != rows:
        problems.append(
            Problem(path, f"num_classes is {numbers['num_classes']:g} and out.weight has {rows} rows", REMEDY)
        )
    temperature = numbers.get("temperature", 1.0)
    if not (math.isfinite(temperature) and temperature > 0):
        problems.append(Problem(path, f"temperature is {temperature}, should be above 0", REMEDY))
    if problems:
        raise ModelError(problems)
    return rows, temperature


def _key_problems(values: Mapping[str, Any], path: Path) -> list[Problem]:
    """Keys unknown or missing, and shapes that are not ResNet-50's."""
    expected = {f"{BASE}{key}": shape for key, shape in _resnet50().items()}
    optional = {f"{BASE}{key}" for key in UNUSED}
    known = {*expected, *HEAD, *NUMBERS}
    problems = unknown_keys([key for key in values if key not in known], path, "a DIAGen filter")
    missing = sorted(known - optional - set(values))
    if missing:
        problems.append(Problem(str(path), f"lacks {len(missing):,} keys: {first_of(missing, 10)}", REMEDY))
    head: Sequence[int] = getattr(values.get("out.weight"), "shape", ())
    shapes = expected | ({"out.weight": (head[0], 2048), "out.bias": (head[0],)} if len(head) == 2 else {})
    wrong = [
        f"{key} {list(values[key].shape)} against {list(shape)}"
        for key, shape in shapes.items()
        if hasattr(values.get(key), "shape") and tuple(values[key].shape) != tuple(shape)
    ]
    if wrong or ("out.weight" in values and len(head) != 2):
        problems.append(Problem(str(path), f"shapes differ: {', '.join(wrong[:10]) or 'out.weight'}", REMEDY))
    return problems


def _resnet50() -> dict[str, tuple[int, ...]]:
    import torch
    from torchvision.models import resnet50

    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in resnet50().state_dict().items()}
