"""variegate: turn a small folder of labelled images into a better image classifier, and say honestly whether it helped.

Importing this loads no torch; each name is fetched from its module when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "MixedDataset": "variegate.data",
    "RealDataset": "variegate.data",
    "RunResult": "variegate.api",
    "SyntheticDataset": "variegate.data",
    "ablate": "variegate.ablation.study",
    "compare": "variegate.api",
    "load_classifier": "variegate.classifier.models",
    "make_meadow": "variegate.stages.dataset.meadow",
    "measure_quality": "variegate.api",
    "run": "variegate.api",
}

__all__ = sorted(["__version__", *_HOMES])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'variegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
