"""What an import found in a file or folder: counted facts, what was left out and why, and how to write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Write = Callable[[Path], None]  # puts its files into a new folder
SHOWN = 10  # names of one kind on a terminal; --json and import.json have all


@dataclass(frozen=True, slots=True)
class Found:
    """One artefact, read and checked whole; nothing is written before `write` is called."""

    kind: str  # tokens, lora, tokens+lora, unet, image table, prompts, environments, results, classifier
    system: str  # whose format it is
    files: tuple[Path, ...]
    facts: Mapping[str, Any]
    write: Write
    next: str = ""  # what to do with it; {out} is the folder written
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())


def as_record(found: Found) -> dict[str, Any]:
    """Everything but how to write it, for --json and import.json."""
    return {
        "kind": found.kind,
        "from": found.system,
        "files": [str(path) for path in found.files],
        "facts": dict(found.facts),
        "notes": list(found.notes),
        "left_out": list(found.left_out),
    }


def as_text(record: Mapping[str, Any]) -> str:
    """The record as lines for a person."""
    lines = [("found", record["kind"]), ("from", record["from"])]
    lines += [("file" if len(record["files"]) == 1 else "files", _listed(record["files"]))]
    lines += [(key.replace("_", " "), _shown(value)) for key, value in record["facts"].items()]
    lines += [("note", note) for note in record["notes"]]
    if record["left_out"]:
        lines.append(("left out", f"{len(record['left_out']):,}: {_listed(record['left_out'])}"))
    lines.append(("wrote", _listed(record["wrote"]) if record["wrote"] else "nothing; add --out DIR to write it"))
    if record["next"]:
        lines.append(("next", record["next"]))
    return "\n".join(f"{key:<16}{value}" for key, value in lines)


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return _listed([_shown(item) for item in value])
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
