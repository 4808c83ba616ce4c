"""What this machine can do: devices, dtypes, memory, disk, optional parts, with the remedy for each gap."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from variegate.backends.folder import OWN

GB = 1e9
EXTRAS = (  # name, module, what for
    ("clip", "open_clip", "to judge images by CLIP"),
    ("8bit", "bitsandbytes", "for adapt.optimizer=adamw-8bit"),
    ("prodigy", "prodigyopt", "for adapt.optimizer=prodigy"),
)


def examine() -> list[dict[str, str]]:
    """Findings in a fixed order, each with state (ok, note, missing), what, found and remedy."""
    import torch

    from variegate import __version__

    findings = [_finding("ok", "variegate", f"{__version__}, torch {torch.__version__}")]
    findings += _processors(torch)
    findings += _accelerators(torch)
    findings += [_memory(), _disk(), *(_own_model(*one) for one in OWN.items())]
    findings += [_extra(*one) for one in EXTRAS]
    return findings


def _finding(state: str, what: str, found: str, remedy: str = "") -> dict[str, str]:
    return {"state": state, "what": what, "found": found, "remedy": remedy}


def _processors(torch: Any) -> list[dict[str, str]]:
    from variegate.backends.devices import available_cores, cpu_has_bf16

    found = [_finding("ok", "processor", f"{available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}")]
    if cpu_has_bf16():
        found.append(_finding("ok", "bf16 on cpu", "yes: drawing and training use it"))
    else:
        found.append(_finding("note", "bf16 on cpu", "no: fp32 is used, which is slower"))
    return found


def _accelerators(torch: Any) -> list[dict[str, str]]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [_finding("ok", f"cuda:{i}", f"{p.name}, {p.total_memory / GB:.0f} GB") for i, p in enumerate(names)]
    if torch.backends.mps.is_available():
        return [_finding("ok", "mps", "Apple GPU")]
    remedy = "the starter runs on the CPU; models of Stable Diffusion size want a GPU and its driver"
    return [_finding("note", "gpu", "none found", remedy)]


def _memory() -> dict[str, str]:
    try:
        pages = {key: os.sysconf(key) for key in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES")}
    except (ValueError, OSError):
        return _finding("note", "memory", "unknown on this system")
    total, free = (pages["SC_PAGE_SIZE"] * pages[key] / GB for key in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    if total < 4:
        return _finding("missing", "memory", f"{total:.1f} GB", "a run needs about 3 GB; close other programs")
    return _finding("ok", "memory", f"{total:.1f} GB, {free:.1f} GB free")


def _disk() -> dict[str, str]:
    free = shutil.disk_usage(".").free / GB
    if free < 1:
        return _finding("missing", "disk", f"{free:.1f} GB free here", "free some space or use --out on another disk")
    return _finding("ok", "disk", f"{free:.0f} GB free here")


def _own_model(name: str, folder: Path) -> dict[str, str]:
    if (folder / "model_index.json").is_file():
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
        return _finding("ok", name, f"{size:.0f} MB")
    return _finding("missing", name, "not in this installation", "install variegate again")


def _extra(name: str, module: str, purpose: str) -> dict[str, str]:
    if importlib.util.find_spec(module):
        return _finding("ok", name, f"{module} is installed")
    return _finding("note", name, f"{module} is not installed", f"pip install 'variegate[{name}]' {purpose}")
