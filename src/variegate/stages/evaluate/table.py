"""results.csv: the accuracies and differences of results.json as one long table, for a spreadsheet or a plot. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = ("test", "part", "checkpoint", "measure", "arm", "baseline", "value", "low", "high")
Row = tuple[str | float | None, ...]


def csv_text(results: Mapping[str, Any]) -> str:
    """A row for every test set, part of it, checkpoint, and arm or comparison; fractions, intervals of 95 %.

    `test` is the split; `part` is all, many, medium or few (shot), or `group: NAME`; `measure` is accuracy or difference.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows("test", results))
    for extra in results["extra_tests"]:
        writer.writerows(_rows(extra["split"], extra))
    return text.getvalue()


def _rows(test: str, results: Mapping[str, Any]) -> Iterator[Row]:
    for measure, entries in (("accuracy", results["arms"]), ("difference", results["comparisons"])):
        for entry in entries:
            for part, checkpoint, found in _parts(entry):
                found = found if isinstance(found, Mapping) else {measure: found}
                numbers = (found[measure], found.get("low"), found.get("high"))
                yield test, part, checkpoint, measure, entry["arm"], entry.get("baseline"), *numbers


def _parts(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(part, checkpoint, numbers); only the whole is measured with the last weights too."""
    for checkpoint in ("selected", "last"):
        yield "all", checkpoint, entry[checkpoint]
    for kind, found in (entry["shots"] or {}).items():
        yield kind, "selected", found
    for name, found in (entry["groups"] or {}).items():
        yield f"group: {name}", "selected", found
