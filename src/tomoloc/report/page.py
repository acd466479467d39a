"""One self-contained HTML page from blocks of text, numbers and pictures.

A page is a list of sections, a section a list of blocks; each kind of block renders itself. A new
report (training curves, clusters) makes its own sections and shares everything here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tomoloc.atomic import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "Facts", "Note", "Page", "Picture", "Section", "Table", "write_page"]

DOTS_PER_INCH = 130
# Characters from which a cell breaks into lines.
LONG = 30


class Block(Protocol):
    """A piece of a page."""

    def to_html(self) -> str:
        """Return HTML that needs no other file."""
        ...


@dataclass(frozen=True)
class Note:
    """A sentence; `warning` sets it off."""

    text: str
    warning: bool = False

    def to_html(self) -> str:
        """Return a paragraph."""
        kind = "warning" if self.warning else "note"
        return f'<p class="{kind}">{escape(self.text)}</p>'


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the parameters of a run."""

    items: Sequence[tuple[str, str]]

    def to_html(self) -> str:
        """Return a description list."""
        rows = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in self.items
        )
        return f"<dl>{rows}</dl>"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row, the others hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def to_html(self) -> str:
        """Return a table that scrolls sideways where the page is narrow."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        body = "".join(
            "<tr>"
            + f'<th scope="row">{escape(row[0])}</th>'
            + "".join(
                f"<td{' class=long' if len(cell) > LONG else ''}>{escape(cell)}</td>"
                for cell in row[1:]
            )
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return (
            f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, also written to the folder of pictures.

    Parameters
    ----------
    name : str
        File name without ending.
    png : bytes
        Content.
    caption : str
        Below the picture, and read to those who do not see it.
    wide : bool
        Whether it takes the whole width of the page.
    """

    name: str
    png: bytes
    caption: str
    wide: bool = False

    @classmethod
    def of(cls, figure: Figure, *, name: str, caption: str, wide: bool = False) -> Picture:
        """Render a matplotlib figure."""
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        return cls(name, _shrink(drawn.getvalue()), caption, wide)

    def to_html(self) -> str:
        """Return a figure with its picture inside."""
        data = base64.b64encode(self.png).decode("ascii")
        kind = "wide" if self.wide else "half"
        caption = escape(self.caption)
        return (
            f'<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


def _shrink(png: bytes) -> bytes:
    """Keep 64 greys and 192 colours: a third of the bytes, and slices stay grey."""
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    index = np.rint(pixels.mean(axis=-1) * (63 / 255)).astype(np.uint8)
    palette = np.repeat(np.rint(np.linspace(0, 255, 64)), 3).astype(int).tolist()
    coloured = np.ptp(pixels, axis=-1) > 12
    if coloured.any():
        strip = Image.fromarray(pixels[coloured][None])
        strip = strip.quantize(192, method=Image.Quantize.MAXCOVERAGE)
        index[coloured] = np.asarray(strip).ravel() + 64
        palette += strip.getpalette() or []
    reduced = Image.fromarray(index, mode="P")
    reduced.putpalette(palette[:768])
    small = BytesIO()
    reduced.save(small, format="png", optimize=True)
    return small.getvalue()


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    blocks: Sequence[Block]

    def to_html(self) -> str:
        """Return the section with all its blocks."""
        body = "".join(block.to_html() for block in self.blocks)
        return f'<section id="{_anchor(self.title)}"><h2>{escape(self.title)}</h2>{body}</section>'


@dataclass(frozen=True)
class Page:
    """A whole report.

    Parameters
    ----------
    title, subtitle : str
        At the top.
    tiles : sequence of (name, value)
        The few numbers that say most.
    sections : sequence of Section
        In the order of reading.
    """

    title: str
    subtitle: str = ""
    tiles: Sequence[tuple[str, str]] = field(default_factory=list)
    sections: Sequence[Section] = field(default_factory=list)

    def to_html(self) -> str:
        """Return the page as one HTML document that refers to nothing outside itself."""
        tiles = "".join(
            f"<div><strong>{escape(value)}</strong><span>{escape(name)}</span></div>"
            for name, value in self.tiles
        )
        links = "".join(
            f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>'
            for section in self.sections
        )
        body = "".join(section.to_html() for section in self.sections)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>"
            f"<header><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>"
            f'<div class="tiles">{tiles}</div><nav>{links}</nav></header>'
            f"<main>{body}</main></body></html>\n"
        )

    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Picture)]


def _anchor(title: str) -> str:
    return re.sub(r"[^\w]+", "-", title).strip("-").lower()


def write_page(page: Page, folder: str | Path) -> Path:
    """Write report.html and the folder of pictures, each whole or not at all.

    Parameters
    ----------
    page : Page
        What to write.
    folder : path
        Where; an older report there is replaced.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    home = Path(folder)
    with writing(home / "pictures") as draft:
        draft.mkdir()
        for picture in page.pictures():
            name = re.sub(r"[^\w.-]+", "_", picture.name)
            (draft / f"{name}.png").write_bytes(picture.png)
    target = home / "report.html"
    with writing(target) as draft:
        draft.write_text(page.to_html(), "utf-8")
    return target


_STYLE = """
:root { --ink: #1d2733; --soft: #5b6770; --line: #dfe5ea; --ground: #f5f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
header > p { color: var(--soft); margin: 4px 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 14px; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tiles div { background: white; border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 18px; min-width: 110px; }
.tiles strong { display: block; font-size: 22px; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 20px 0; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px 24px;
  align-items: start; background: white; border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin: 0 0 20px; }
section > * { grid-column: 1 / -1; margin: 0; }
section > h2 { margin: 0; }
section > .half { grid-column: span 1; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figure.half img { max-width: 560px; }
figure.wide img { max-width: 1000px; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 6px; max-width: 75ch; }
.note { color: var(--soft); max-width: 90ch; }
.warning { background: #fff6e5; border-left: 4px solid #e69f00; border-radius: 4px;
  padding: 8px 14px; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; min-width: 50%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 13px; padding-bottom: 6px; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 26ch; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; padding-left: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 2px 28px;
  font-size: 14px; }
dl div { display: flex; justify-content: space-between; gap: 14px; padding: 3px 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--soft); white-space: nowrap; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
@media screen and (max-width: 760px) { section { grid-template-columns: minmax(0, 1fr); }
  header, main { padding: 0 14px; } header { padding-top: 20px; } section { padding: 16px; } }
@media print { body { background: white; font-size: 10.5pt; } nav { display: none; }
  header, main { max-width: none; padding: 0; }
  section, .tiles div { border: 0; padding: 0; } section { margin: 0 0 18pt; }
  section { display: block; } section > * { margin: 0 0 10pt; }
  .tiles { gap: 24pt; } figure.half { display: inline-block; width: 48%; }
  figure, table, dl { break-inside: avoid; } h2 { break-after: avoid; }
  figure.wide img { max-width: 15.5cm; } .table { overflow: visible; }
  th, td { white-space: normal; padding: 3pt 4pt; }
  table { font-size: 8.5pt; } thead th { font-size: 8pt; }
  td.long { min-width: 0; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
