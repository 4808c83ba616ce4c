"""The plan in run.db: written whole in one transaction, read back as chunks."""

from __future__ import annotations

from collections.abc import Iterator

from variegate.stages.generate.plan import FROM_TEXT, Plan
from variegate.store import RunFolder


def write_plan(folder: RunFolder, plan: Plan, meta: dict[str, str]) -> None:
    """Replace the plan, its chunks, its prompts and the notes on how it was made, all or nothing."""
    texts = list(dict.fromkeys([*plan.prompts, plan.negative]))
    negative = texts.index(plan.negative)
    with folder.transaction() as db:
        for table in ("plan", "chunks", "prompts", "refined"):
            db.execute(f"DELETE FROM {table}")
        db.executemany("INSERT INTO prompts VALUES (?, ?)", enumerate(texts))
        db.executemany(f"INSERT INTO plan VALUES ({', '.join('?' * 14)})", _plan_rows(plan, negative))
        chunks = zip(range(len(plan.first)), plan.first.tolist(), plan.size.tolist(), strict=True)
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, 'pending', NULL, NULL)", chunks)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())


def _plan_rows(plan: Plan, negative: int) -> Iterator[tuple]:
    """In blocks, so that a million rows are never a million tuples."""
    for chunk, (first, size) in enumerate(zip(plan.first.tolist(), plan.size.tolist(), strict=True)):
        rows = slice(first, first + size)
        sources = [None if index == FROM_TEXT else plan.sources[index] for index in plan.source[rows].tolist()]
        masks = ["" if index == FROM_TEXT else plan.masks[index] for index in plan.source[rows].tolist()]
        passes = [" ".join(map(repr, plan.sequences[index])) for index in plan.passes[rows].tolist()]
        numbers = (plan.strength, plan.steps, plan.seed, plan.token_std, plan.token_seed)
        columns = (column[rows].tolist() for column in (plan.target, plan.prompt, *numbers))
        for row, (image_id, source, target, prompt, *rest) in enumerate(
            zip(plan.ids[rows], sources, *columns, masks, passes, strict=True), start=first
        ):
            yield row, image_id, chunk, source, target, prompt, negative, *rest
