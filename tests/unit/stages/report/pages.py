"""Read a report back the way a browser does: its tags, attributes, text and table rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "wbr"}


@dataclass
class Page:
    """What is in an HTML page; `rows` maps a table's caption to its rows of cell texts."""

    tags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)  # (tag, name, value)
    text: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)  # (caption, cells)
    headings: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def table(self, caption: str) -> list[list[str]]:
        return [cells for title, cells in self.rows if title.startswith(caption)]

    def all_text(self) -> str:
        return " ".join(self.text)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.open = Page(), []
        self.caption = self.cell = self.heading = None
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.add(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells = []
        if tag in {"th", "td"}:
            self.cell = ""
        if tag == "caption":
            self.caption = ""
        if tag in {"h1", "h2"}:
            self.heading = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.add(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()
        if tag in {"th", "td"}:
            self.cells.append(" ".join(self.cell.split()))
            self.cell = None
        if tag == "tr":
            self.page.rows.append((self.caption, self.cells))
        if tag in {"h1", "h2"}:
            self.page.headings.append(" ".join(self.heading.split()))
            self.heading = None

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.page.text.append(data)
        if self.cell is not None and "svg" not in self.open:
            self.cell += data
        if self.open[-1:] == ["caption"]:
            self.caption += data
        if self.heading is not None:
            self.heading += data


def read_page(html: str) -> Page:
    """Parse a page; fails where tags do not nest."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.page.unclosed = reader.open
    return reader.page
