"""The state of adapting on disk: written whole, checked when read, the last two kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from variegate.files import write_atomic

FOLDER = "adapt/checkpoints"
FORMAT = 4  # of the state; others are not read
KEPT = 2


@dataclass(frozen=True, slots=True)
class State:
    """Everything a restart needs; tensors by "part/name"."""

    step: int  # steps done
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(root: Path, state: State, key: str) -> Path:
    """Write a state; of these settings the last two stay, of others none."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(state.tensors.items())}
    told = {"step": state.step, "key": key, "facts": state.facts}
    facts = {**told, "digest": _digest(tensors, told)}
    path = root / FOLDER / f"step-{state.step:08d}.safetensors"
    write_atomic(path, save(tensors, metadata={"checkpoint": json.dumps(facts)}))
    own = _of(root, key)
    for old in set(path.parent.glob("step-*.safetensors")) - set(own[-KEPT:]):
        old.unlink()
    return path


def read_checkpoint(root: Path, key: str) -> tuple[State | None, list[str]]:
    """The newest sound state made with these settings, and a line about each file that was passed over."""
    notes = []
    for path in sorted((root / FOLDER).glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt") as file:
                found = json.loads(file.metadata()["checkpoint"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if found["key"] != key:
                continue
            digest = found.pop("digest")
            state = State(found["step"], tensors, found["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
            notes.append(f"checkpoint {path.name} is damaged ({type(exc).__name__}); going back to the one before it")
            continue
        if digest != _digest(tensors, found):
            notes.append(f"checkpoint {path.name} is damaged (its bytes changed); going back to the one before it")
            continue
        return state, notes
    return None, notes


def last_checkpoint(root: Path, key: str) -> str:
    """Name of the newest file made with these settings, for messages; "none" when there is no file."""
    own = _of(root, key)
    return own[-1].name if own else "none"


def _of(root: Path, key: str) -> list[Path]:
    """Files made with these settings, oldest first; only their headers are read."""
    found = []
    for path in sorted((root / FOLDER).glob("step-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                if json.loads(file.metadata()["checkpoint"])["key"] == key:
                    found.append(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _digest(tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any]) -> str:
    """Of the tensors, and of all that is told beside them: a wrong step or a wrong number spoils a restart as well."""
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
