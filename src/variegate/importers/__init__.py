"""Read what other tools left behind: learned tokens, LoRA, U-Nets, prompts, tables of images, results, filters.

`import_artefact` tells the kind from the content, checks everything, says what it found, and writes it where asked to.
Nothing here imports torch before a weight file is read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from variegate.errors import DataError, ModelError, Problem, RunFolderError, UserError
from variegate.files import write_atomic
from variegate.importers.found import Found, as_record, as_text
from variegate.importers.image_table import NOTE
from variegate.importers.names import read_class_names
from variegate.store import explained

__all__ = ["as_text", "import_artefact"]

DOCS = "docs/import.md says what can be imported"


def import_artefact(
    path: Path, out: Path | None = None, *, base: str | None = None, classes: Sequence[Path] = ()
) -> dict[str, Any]:
    """Read `path`, write it to the new folder `out` if given, and return what was found and written.

    Raises UserError (ModelError, DataError, RunFolderError) with every problem found before anything is written.
    """
    names, base_folder = _arguments(path, out, base, classes)
    try:
        found = (_read_folder if path.is_dir() else _read_file)(path, names, base_folder, base or "")
    except OSError as exc:
        raise DataError(
            Problem(str(exc.filename or path), f"cannot be read: {exc.strerror}", "check its permissions")
        ) from exc
    _refuse_unused(found, names, base)
    record = as_record(found) | {"next": "", "wrote": []}
    if out is None:
        return record
    with _new_folder(out) as folder:
        found.write(folder)
        record["wrote"] = [str(out / name) for name in sorted(entry.name for entry in folder.iterdir())]
        record["next"] = found.next.replace("{out}", str(out))
        if not (folder / "adapter.json").exists():  # which says it itself
            record["wrote"].append(str(out / NOTE))
            write_atomic(folder / NOTE, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return record


# ------------------------------------------------------------------------------------------ arguments


def _arguments(
    path: Path, out: Path | None, base: str | None, classes: Sequence[Path]
) -> tuple[tuple[str, ...] | None, Path | None]:
    """Class names and the base model's folder; raises every problem of the arguments at once."""
    from variegate.backends.folder import find_model

    problems = []
    if not path.is_file() and not path.is_dir():
        what = "is neither file nor folder" if path.exists() else "does not exist"
        problems.append(Problem(str(path), what, "name a file or folder to import"))
    if out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        text = "is a file" if out.is_file() else f"is not empty (it has {min(entry.name for entry in out.iterdir())!r})"
        problems.append(Problem(str(out), text, "choose a new or empty --out folder"))
    steps: list[Callable[[], Any]] = [
        lambda: read_class_names(classes),
        lambda: None if base is None else find_model(base),
    ]
    answers = []
    for step in steps:
        try:
            answers.append(step())
        except UserError as exc:
            problems += exc.problems
    if problems:
        raise DataError(problems)
    return answers[0], answers[1]


def _refuse_unused(found: Found, names: Sequence[str] | None, base: str | None) -> None:
    """An option that changes nothing for this kind is a mistake."""
    problems = []
    if base is not None and found.kind not in ("tokens", "lora", "tokens+lora", "unet"):
        problems.append(Problem("--base", f"says nothing about {found.kind}", "leave it out"))
    if names is not None and found.kind in ("environments", "results", "unet"):
        problems.append(Problem("--classes", f"says nothing about {found.kind}", "leave it out"))
    if problems:
        raise DataError(problems)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and goes away when it does not."""
    temporary = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.tmp")
    with explained(out):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            try:
                temporary.replace(out.resolve())  # takes an empty folder's place; a full one is refused by the system
            except OSError as exc:
                raise RunFolderError(
                    Problem(str(out), f"cannot be made: {exc.strerror}", "choose another --out")
                ) from exc
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


# ------------------------------------------------------------------------------------------ which kind


def _read_file(path: Path, names: tuple[str, ...] | None, base: Path | None, base_name: str) -> Found:
    from variegate.importers.weights import file_format

    kind = file_format(path)
    if kind in ("pickle", "safetensors"):
        return _read_weights(path, names, base, base_name)
    if kind == "text":
        return _read_text(path, names)
    what = {"empty": "is empty (0 bytes)", "pointer": "is a Git LFS pointer, not the file itself; run git lfs pull"}
    raise DataError(Problem(str(path), what.get(kind, "is neither weights nor text"), DOCS))


def _read_weights(path: Path, names: tuple[str, ...] | None, base: Path | None, base_name: str) -> Found:
    from variegate.importers.adapters import adapter_found
    from variegate.importers.lora import is_lora, read_lora
    from variegate.importers.probe import is_probe, probe_found
    from variegate.importers.tokens import is_tokens, read_tokens
    from variegate.importers.unet import is_unet, unet_found
    from variegate.importers.weights import read_weights, unknown_keys

    weights = read_weights(path)
    keys = list(weights.values)
    adapter = partial(adapter_found, files=[path], classes=names, base=base, base_name=base_name)
    if is_tokens(keys):
        return adapter((path, read_tokens(weights)), None)
    if is_probe(keys):
        return probe_found(weights, names)
    if is_lora(keys):
        return adapter(None, (path, read_lora(weights)))
    if is_unet(keys):
        return unet_found(weights, base)
    raise ModelError(unknown_keys(keys, path, "this file (no tokens, no LoRA, no filter, no U-Net)"))


def _read_text(path: Path, names: tuple[str, ...] | None) -> Found:
    from variegate.importers import prompts, results, tables
    from variegate.importers.csv_files import header

    schemas: list[tuple[str, tuple[str, ...], Callable[[], Found]]] = [
        (",", tables.DIFF_MIX, lambda: tables.diff_mix_found(path, names)),
        (",", tables.DASDIFF, lambda: tables.dasdiff_found(path, names)),
        (";", prompts.DIAGEN, lambda: prompts.prompts_found(path, names)),
        (",", results.COLUMNS, lambda: results.results_found(path)),
    ]
    delimiter, columns = header(path)
    fits = [
        (len(set(schema) & set(columns)) / len(schema), read) for mark, schema, read in schemas if mark == delimiter
    ]
    share, read = max(fits, key=lambda item: item[0], default=(0.0, None))
    if read is not None and share >= 0.5:
        return read()
    if len(columns) > 1 and (path.suffix.lower() in (".csv", ".tsv") or share > 0):
        text = f"is a table whose columns are not understood: {', '.join(map(repr, columns[:20]))}"
        raise DataError(Problem(str(path), text, DOCS))
    return prompts.environments_found(path)


def _read_folder(path: Path, names: tuple[str, ...] | None, base: Path | None, base_name: str) -> Found:
    from variegate.backends.adapter import FACTS
    from variegate.importers import tables

    if (path / FACTS).is_file():
        text = "is an adapter of variegate's own already"
        raise DataError(Problem(str(path), text, f"use it: --set adapt.method=file --set adapt.path={path}"))
    if (path / "meta.csv").is_file():
        return _read_file(path / "meta.csv", names, base, base_name)
    for folder in (path, path / "result"):
        if folder.is_dir() and tables.is_diffusemix(folder):
            return tables.diffusemix_found(folder, names)
    from variegate.importers.adapters import adapter_found
    from variegate.importers.folder import read_parts

    parts = read_parts(path)
    if parts.tokens is None and parts.lora is None:
        there = ", ".join(parts.left_out[:10] or sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise DataError(Problem(str(path), f"holds no tokens, no LoRA and no table of images; it has {there}", DOCS))
    return adapter_found(parts.tokens, parts.lora, files=parts.files, classes=names, base=base, base_name=base_name,
                         notes=parts.notes, left_out=parts.left_out)  # fmt: skip
