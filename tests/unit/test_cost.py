"""What a stage takes is measured where the machine tells, and None where it does not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from variegate import cost
from variegate.cost import Counter, Meter, rapl_counters


def test_peak_memory_is_that_of_the_piece_of_work() -> None:
    with Meter() as large:
        block = np.ones(40_000_000)  # 320 MB
        del block
    with Meter() as small:
        pass
    if large.cost()["peak_memory_mb"] is None:
        pytest.skip("this system does not let a process count its peak anew")
    assert large.cost()["peak_memory_mb"] > small.cost()["peak_memory_mb"] + 250
    assert small.cost()["worker_memory_mb"] is None


def test_the_memory_of_workers_is_their_own() -> None:
    from functools import partial

    from squaring import Job, Squarer

    from variegate.executors.local import run_tasks

    block = np.ones(100_000_000)  # 800 MB that no worker has, though it is started from here
    with Meter() as meter:
        assert len(list(run_tasks(partial(Squarer, None), [Job(1), Job(2)], 2))) == 2
    del block
    if meter.cost()["peak_memory_mb"] is None:
        pytest.skip("this system does not tell a process's peak")
    assert 5 < meter.cost()["worker_memory_mb"] < 500
    with Meter() as nobody:
        pass
    assert nobody.cost()["worker_memory_mb"] is None


def package(root: Path, number: int, microjoules: int, limit: int = 1_000_000_000) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_energy_is_the_sum_of_the_packages_and_inner_domains_count_once(tmp_path: Path) -> None:
    counters = [package(tmp_path, number, 5_000_000) for number in (0, 1)]
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("1\n")
    with Meter(tmp_path) as meter:
        for counter in counters:
            counter.write_text("8000000\n")
        (tmp_path / "intel-rapl:0:0/energy_uj").write_text("900000000\n")
    assert meter.cost()["energy_j"] == 6.0


def test_a_process_that_shares_the_machine_tells_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others beside it use would be counted for each of them."""
    package(tmp_path, 0, 1_000_000)
    monkeypatch.setattr(cost, "_counts_energy", True)
    with Meter(tmp_path) as meter:
        pass
    assert meter.cost()["energy_j"] == 0.0
    cost.leave_energy_out()
    with Meter(tmp_path) as meter:
        pass
    assert meter.cost()["energy_j"] is None


def test_a_counter_that_wraps_more_than_once_is_sampled(tmp_path: Path) -> None:
    counter = package(tmp_path, 0, 900, limit=1000)
    found = rapl_counters(tmp_path)[0]
    for reading in (900, 100, 950, 50):
        counter.write_text(str(reading))
        found.read()
    assert found.joules == pytest.approx((200 + 850 + 100) / 1e6)
    put(counter, 0)
    with Meter(tmp_path, sample_s=0.01) as meter:
        for reading in (600, 100, 700, 0):
            put(counter, reading)
            time.sleep(0.3)  # thirty samples, were nothing else running
    assert meter.cost()["energy_j"] == pytest.approx(0.0, abs=0.1)
    assert meter._counters[0].joules == pytest.approx((600 + 500 + 600 + 300) / 1e6)


def put(counter: Path, microjoules: int) -> None:
    """As the kernel does: never an empty file."""
    whole = counter.with_suffix(".new")
    whole.write_text(str(microjoules))
    whole.replace(counter)


def test_what_the_machine_does_not_tell_is_none(tmp_path: Path) -> None:
    with Meter(tmp_path) as meter:
        pass
    if not meter._counters:  # no NVIDIA device here
        assert meter.cost()["energy_j"] is None
    package(tmp_path, 0, 1).unlink()
    assert rapl_counters(tmp_path) == []

    def broken() -> float:
        raise OSError("gone")

    counter = Counter(broken)
    counter.read()
    assert counter.joules is None
