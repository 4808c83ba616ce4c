"""Models to draw with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_sd, tiny_sdxl  # noqa: F401 - fixtures

from variegate.backends.folder import STARTER


@pytest.fixture(scope="session")
def drawing() -> Path:
    """The starter, where only the drawing model's tokenizer matters."""
    return STARTER


@pytest.fixture(scope="session")
def tiny_sd_long(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same, with a tokenizer that counts up to 77 as CLIP's does; only its words matter here."""
    folder = shutil.copytree(tiny_sd, tmp_path_factory.mktemp("long") / "model")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
    return folder
