"""Write report.html, report.md and summary.json from a run folder; the images are the only other thing read.

Never imports torch. Works on any run folder, finished or stopped half-way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variegate.errors import Problem, UserError
from variegate.files import write_atomic
from variegate.recipe_file import load_recipe
from variegate.stages.report import html
from variegate.stages.report.contents import Summary
from variegate.stages.report.summary import summarize
from variegate.stages.report.thumbnails import image_files, kept_parts, thumbnails
from variegate.stages.report.words import file_size
from variegate.store import RunFolder, explained

if TYPE_CHECKING:
    from variegate.pipeline import Context
    from variegate.recipe import Recipe

NAME = "report"
PREVIEW_EDGE_PX = 1200
VIEWS = {".html": "report.html", ".md": "report.md", ".json": "summary.json"}


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The page depends on nothing but the stages before it."""
    return {}


def run(context: Context) -> dict[str, Any]:
    """Write all views into the run folder."""
    path = write_report(context.folder)
    for name in VIEWS.values():
        context.folder.put_artefact(NAME, name, name)
    size = path.stat().st_size
    return {"line": f"{path.name} written ({file_size(size)})", "bytes": size}


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Write the page and return its path; raises UserError for an unknown suffix.

    Without `out`, report.html, report.md and summary.json in the run folder are replaced. With it, one file is
    written there, in the format that its suffix names.
    """
    if out is not None and out.suffix not in VIEWS:
        kind = out.suffix or "a file without suffix"
        raise UserError(Problem(str(out), f"cannot write a report as {kind}", "use .html, .md or .json"))
    summary = summarize(folder)
    views = _views(folder, summary)
    if out is not None:
        with explained(out.parent):
            write_atomic(out, _bytes(views[out.suffix]()))
        return out
    for suffix, name in VIEWS.items():
        folder.write(name, _bytes(views[suffix]()))
    return folder.root / VIEWS[".html"]


def _views(folder: RunFolder, summary: Summary) -> dict[str, Callable[[], str]]:
    return {
        ".html": lambda: html.render_html(summary, _thumbnails(folder, summary)),
        ".md": lambda: html.render_markdown(summary),
        ".json": lambda: html.render_json(summary),
    }


def _thumbnails(folder: RunFolder, summary: Summary) -> dict[str, str]:
    """Thumbnails by image id, and the preview grid under its path."""
    found = thumbnails(image_files(folder, summary))
    if summary.recipe:
        found |= kept_parts(folder, summary, load_recipe(str(folder.root / "recipe.yaml")))
    preview = summary.adapting.preview if summary.adapting else None
    return found | (thumbnails({preview: folder.path(preview)}, PREVIEW_EDGE_PX) if preview else {})


def _bytes(text: str) -> bytes:
    """UTF-8; a path that is no valid text (lone surrogates) is written with question marks."""
    return text.encode("utf-8", "replace")
