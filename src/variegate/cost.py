"""What a piece of work took beside its time: peak memory, and energy where the machine tells.

Memory is the resident set of this process and of the largest worker, which tells its own. Energy is that of the processor
packages (RAPL, /sys/class/powercap) and of all NVIDIA devices (NVML): of the whole machine, whoever else is using it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
SAMPLE_S = 20.0  # a RAPL counter wraps after minutes at the earliest


Cost = Mapping[str, float | None]
UNKNOWN: Cost = dict.fromkeys(("peak_memory_mb", "worker_memory_mb", "gpu_memory_mb", "energy_j"))
Peaks = tuple[float | None, float | None]  # MB resident, MB on the GPU
_counts_energy = True
_peaks_told: list[Peaks] = []  # by workers, since the latest meter began


def own_peaks() -> Peaks:
    """What this process has taken at most, since it began or a meter in it did; None where the system does not say."""
    return _peak_mb(), _gpu_peak_mb()


def tell_peaks(peaks: Peaks) -> None:
    """What a worker has taken counts for the work that is being measured here."""
    _peaks_told.append(peaks)


def leave_energy_out() -> None:
    """From now on nobody here tells energy: this process shares the machine with others that are measured too."""
    global _counts_energy
    _counts_energy = False


def largest(values: Iterable[float | None]) -> float | None:
    """The most of what is known; None where nothing is."""
    return max((value for value in values if value is not None), default=None)


def together(earlier: Cost | None, later: Cost) -> Cost:
    """What two sessions of one piece of work took: the larger memory, all of the energy, unknown where one does not tell.

    >>> together({**UNKNOWN, "peak_memory_mb": 9.0, "energy_j": 1.0}, {**UNKNOWN, "energy_j": 2.0})["energy_j"]
    3.0
    """
    if earlier is None:
        return later
    found = {name: largest([earlier[name], later[name]]) for name in UNKNOWN}
    before, after = earlier["energy_j"], later["energy_j"]
    return found | {"energy_j": None if before is None or after is None else round(before + after, 1)}


class Meter:
    """Measures between `with` and its end; `cost()` then gives peak_memory_mb, worker_memory_mb, gpu_memory_mb, energy_j.

    What the machine does not tell is None.
    """

    def __init__(self, powercap: Path = POWERCAP, sample_s: float = SAMPLE_S) -> None:
        self._counters: list[Counter] = [*rapl_counters(powercap), *nvml_counters()] if _counts_energy else []
        self._sample_s, self._done = sample_s, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="cost")
        self._cost: dict[str, float | None] = {}

    def __enter__(self) -> Meter:
        self._is_reset = _forget_peak()
        _peaks_told.clear()
        _forget_gpu_peak()
        for counter in self._counters:
            counter.read()
        if self._counters:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._counters:
            self._thread.join()
        for counter in self._counters:
            counter.read()
        told = [counter.joules for counter in self._counters if counter.joules is not None]
        self._cost = {
            "peak_memory_mb": _peak_mb() if self._is_reset else None,
            "worker_memory_mb": largest(memory for memory, _ in _peaks_told),
            "gpu_memory_mb": largest([_gpu_peak_mb(), *(gpu for _, gpu in _peaks_told)]),
            "energy_j": round(sum(told), 1) if told else None,
        }

    def cost(self) -> dict[str, float | None]:
        return dict(self._cost)

    def _sample(self) -> None:
        while not self._done.wait(self._sample_s):
            for counter in self._counters:
                counter.read()


class Counter:
    """An energy counter that may wrap; `joules` are those since the first reading, None once it could not be read."""

    def __init__(self, reading: Callable[[], float], wraps_at: float | None = None) -> None:
        self._reading, self._wraps_at = reading, wraps_at
        self._last: float | None = None
        self.joules: float | None = 0.0

    def read(self) -> None:
        """Take a reading; in joules."""
        if self.joules is None:
            return
        try:
            now = self._reading()
        except (OSError, ValueError):
            self.joules = None
            return
        if self._last is not None:
            gone = now - self._last
            self.joules += gone + (self._wraps_at or 0.0) if gone < 0 else gone
        self._last = now


def rapl_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """One for each processor package; none where they are not there or only root may read them."""
    found = []
    for domain in sorted(powercap.glob("intel-rapl:*")):
        if domain.name.count(":") == 1 and _number(domain / "energy_uj") is not None:  # inner domains count twice
            limit = _number(domain / "max_energy_range_uj")
            found.append(Counter(_microjoules(domain / "energy_uj"), None if limit is None else limit / 1e6))
    return found


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def nvml_counters() -> list[Counter]:
    """One for each NVIDIA device that counts its energy (Volta and later); none without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            found.append(Counter(_millijoules(nvml, handle)))
    return found


def _millijoules(nvml: Any, handle: ctypes.c_void_p) -> Callable[[], float]:
    def reading() -> float:
        value = ctypes.c_ulonglong()
        status = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        if status:
            raise OSError(f"NVML says {status}")
        return value.value / 1e3

    return reading


def _forget_peak() -> bool:
    """Let the kernel count this process's peak anew; False where it does not (no Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return _mb(1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]))
    return None


def _mb(num_bytes: int) -> float:
    return round(num_bytes / 1e6, 1)


def _forget_gpu_peak() -> None:
    if _cuda():
        _cuda().reset_peak_memory_stats()


def _gpu_peak_mb() -> float | None:
    """Of tensors of this process on the current device; None where it has used none."""
    return _mb(_cuda().max_memory_allocated()) if _cuda() else None


def _cuda() -> Any:
    """torch.cuda where this process has begun to use it; never loads torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
