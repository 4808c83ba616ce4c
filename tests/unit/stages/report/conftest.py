"""One finished run for all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, some with hostile names, everything there."""
    return write_run(tmp_path_factory.mktemp("runs") / "butterflies", generate={"method": "real-mix"})
