"""Everything here needs a CUDA device; without one all of it is skipped, and one line says why."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest

GIB = 2**30


def why_no_cuda() -> str:
    """Why nothing can be drawn on a GPU here; empty where it can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    detail = f" ({str(said[0].message).splitlines()[0]})" if said else ""
    return f"torch {torch.__version__} finds no CUDA device{detail}; nvidia-smi should list one"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """-q hides reasons, and tests that were asked for and did not run must say so."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "tests/gpu/" in report.nodeid]
    if skipped:
        reason = skipped[0].longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"{len(skipped)} gpu tests skipped: {reason}", yellow=True)


@pytest.fixture(autouse=True)
def cuda() -> Iterator[str]:
    """The device; its memory is given back after each test."""
    reason = why_no_cuda()
    if reason:
        pytest.skip(reason)
    import torch

    yield "cuda:0"
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def only_free(cuda: str) -> Iterator[Callable[[float], None]]:
    """Call it with GiB: all other memory of the device is held until the test ends."""
    import torch

    held: list[torch.Tensor] = []

    def hold(gib: float) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(cuda)[0]
        if free < gib * GIB:
            pytest.skip(f"needs {gib} GiB of free device memory, {free / GIB:.1f} are there")
        held.append(torch.empty(free - int(gib * GIB), dtype=torch.uint8, device=cuda))

    yield hold
    held.clear()
