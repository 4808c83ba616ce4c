"""Tiny models on disk: one that draws, one that reads images and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import build_sd, clip_folder  # noqa: F401 - fixture


@pytest.fixture(scope="session")
def drawing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd(tmp_path_factory.mktemp("models") / "tiny-sd")
