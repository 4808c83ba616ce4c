"""Nets as small as these are quicker on one thread, above all beside other work."""

from __future__ import annotations

import pytest

from variegate.stages.train import fit


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_cores", lambda: 1)
