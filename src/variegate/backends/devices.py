"""What this machine offers and what `auto` therefore means: device, dtype, threads, memory format, images a chunk.

torch is imported inside the functions that ask it about accelerators; the rest is arithmetic on plain numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from variegate.errors import ModelError, Problem

T = TypeVar("T")
Dtype = Literal["fp32", "bf16", "fp16"]
BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
CPU_BATCH = 32  # pictures of 16 x 16 latents: 16 to 128 draw equally fast, small chunks lose less when stopped
CPU_POSITIONS = CPU_BATCH * 16 * 16  # latent positions a chunk on CPU; more only costs memory
GPU_MEMORY_FRACTION = 0.6  # of what is free once the weights are in; the rest is fragmentation and decoding
MAX_BATCH = 256
ACTIVATION_COPIES = (
    24  # a guess, not measured: full-resolution maps of the first width alive at the peak; too low only halves chunks
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What `auto` is resolved against; memory in bytes."""

    cores: int
    cpu_bf16: bool
    free_memory: int


def this_machine() -> Machine:
    return Machine(cores=available_cores(), cpu_bf16=cpu_has_bf16(), free_memory=free_memory())


def available_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return max(cores, 1)


def take_cores(number: int, shares: int) -> None:
    """Keep this process to part `number` of `shares` equal parts of its cores, and those that it starts.

    To be called before torch is loaded, which counts the cores then. Where the system has no such thing (macOS) nothing happens.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))[: available_cores()]
    first, last = (len(cores) * k // shares for k in (number, number + 1))
    os.sched_setaffinity(0, cores[first:last])


def cpu_has_bf16() -> bool:
    """Whether matrix products in bf16 are native (AVX512-BF16, AMX, ARMv8.6); elsewhere they are slower than fp32."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    words = set(next(lines, "").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def free_memory() -> int:
    """Bytes of main memory that can be used without swapping, cut by the container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def resolve_device(requested: str) -> str:
    """`auto`: the first accelerator, else the CPU; a named device that is absent raises ModelError, never the CPU instead."""
    import torch

    if requested == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = requested.partition(":")
    if kind not in {"cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise ModelError(
            Problem("backend.device", f"unknown device {requested!r}", "use auto, cpu, cuda, cuda:1 or mps")
        )
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        text = f"{requested} was asked for and this machine has {count} of that kind"
        raise ModelError(
            Problem("backend.device", text, "set backend.device to auto or cpu, or run it where the device is")
        )
    return f"cuda:{index or 0}" if kind == "cuda" else kind


def size_of_team() -> int:
    """Processes that `accelerate launch` or torchrun started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(requested: str) -> str:
    """What a process of a team asks for where the recipe names no particular GPU: its own one."""
    if size_of_team() == 1 or requested not in {"auto", "cuda"}:
        return requested
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else requested


def worker_devices(requested: str, device: str) -> tuple[str, ...]:
    """Where workers do what was planned on `device`: there, and on all GPUs of its kind where the recipe names no one GPU."""
    if requested not in {"auto", "cuda"} or not device.startswith("cuda"):
        return (device,)
    import torch

    every = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    kind = torch.cuda.get_device_name(device)
    return (device, *(one for one in every if one != device and torch.cuda.get_device_name(one) == kind))


def num_workers(wanted: int, tasks: int, devices: Sequence[str]) -> int:
    """How many workers there are for `tasks`: on accelerators one for each, whose memory batches are made to fill.

    >>> num_workers(4, 9, ["cpu"]), num_workers(4, 9, ["cuda:0", "cuda:1"]), num_workers(4, 1, ["cpu"])
    (4, 2, 1)
    """
    return min(wanted, tasks, wanted if devices[0] == "cpu" else len(devices))


def resolve_dtype(requested: Dtype | Literal["auto"], device: str, machine: Machine) -> Dtype:
    """`auto`: bf16 where it is native, fp16 on older GPUs, else fp32; raises ModelError for fp16 on a CPU."""
    if requested == "fp16" and device == "cpu":
        text = "fp16 is slower than fp32 on a CPU and some operations lack it"
        raise ModelError(Problem("backend.dtype", text, "use auto, bf16 or fp32"))
    if requested != "auto":
        return requested
    if device == "cpu":
        return "bf16" if machine.cpu_bf16 else "fp32"
    if device == "mps":
        return "fp32"
    import torch

    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def device_free_memory(device: str, machine: Machine) -> int:
    if not device.startswith("cuda"):
        return machine.free_memory
    import torch

    return torch.cuda.mem_get_info(device)[0]


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error of any device says that memory ran out."""
    words = str(exc).lower()
    return isinstance(exc, MemoryError) or any(
        phrase in words for phrase in ("out of memory", "not enough memory", "can't allocate memory")
    )


def in_parts(work: Callable[[int, int], T], count: int, size: int, free_memory: Callable[[], None]) -> list[T]:
    """What `work(first, last)` gives over `count` images, `size` at a time, in halves from where memory ran out on.

    Raises what `work` raises for a single image.
    """
    found: list[T] = []
    start = 0
    while start < count:
        try:
            found.append(work(start, min(start + size, count)))
        except (MemoryError, RuntimeError) as exc:
            if not is_out_of_memory(exc) or size == 1:
                raise
        else:
            start += size
            continue
        free_memory()  # outside the handler, whose traceback holds on to what filled the memory
        size = (min(size, count - start) + 1) // 2
    return found


def image_bytes(*, latent_px: int, width: int, dtype: str, ways: int) -> int:
    """Memory one more image in a chunk takes at the peak of a U-Net evaluation of `ways` copies of it (guidance)."""
    return latent_px**2 * width * BYTES[dtype] * ACTIVATION_COPIES * ways


def chunk_size(*, device: str, latent_px: int, per_image: int, weights: int, free: int) -> int:
    """Images a chunk: as many as help and as fit; a power of two, so that the same machine chooses the same again.

    >>> chunk_size(device="cpu", latent_px=16, per_image=10**6, weights=10**8, free=10**10)
    32
    >>> chunk_size(device="cuda:0", latent_px=64, per_image=6 * 10**8, weights=2 * 10**9, free=24 * 10**9)
    16
    """
    fitting = int(max(free - weights, 0) * GPU_MEMORY_FRACTION / per_image)
    useful = CPU_POSITIONS // latent_px**2 if device == "cpu" else MAX_BATCH
    return 2 ** int(math.log2(max(min(fitting, useful, MAX_BATCH), 1)))
