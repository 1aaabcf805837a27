"""``report.html``: one page with everything in it; it asks no network and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from autotune.report import markup
from autotune.report.formatting import Scores

if TYPE_CHECKING:
    from autotune.report.figures.drawing import Drawing

_LARGEST_SVG = 400_000  # bytes; a larger one is shown as PNG

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --rule: #b9b9b9; --soft: #f3f3f3; --link: #0a4fd6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --rule: #55595e; --soft: #202327; --link: #8ab4ff; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 80rem; padding: 1rem 1.5rem 3rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; } h2, h3 { break-after: avoid; }
a { color: var(--link); }
nav a { margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: left; } td { white-space: nowrap; }
td { max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
th { border-bottom: 1px solid var(--ink); vertical-align: bottom; }
tr:last-child td { border-bottom: 1px solid var(--ink); } tbody tr:nth-child(even) { background: var(--soft); }
.right { text-align: right; }
.notes { font-size: .85rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
.simulated { border: 2px solid #b35c00; padding: .4rem .8rem; font-weight: 600; }
figure { break-inside: avoid; margin: 1rem 0 2rem; }
figure img { background: #fff; border: 1px solid var(--rule); display: block; height: auto; max-width: 100%; }
figcaption { font-size: .85rem; margin-top: .4rem; max-width: 60rem; overflow-wrap: anywhere; }
.small { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
@media print {
  :root { --ink: #000; --paper: #fff; --rule: #999; --soft: #fff; --link: #000; }
  body { font-size: 10pt; max-width: none; padding: 0; } nav { display: none; }
  table { font-size: 7.5pt; } th, td { padding: .1rem .3rem; white-space: normal; } .wide { overflow: visible; }
  tr { break-inside: avoid; }
}
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Section = tuple[str, str]
"""Title and content; the content is HTML."""


def page(title: str, sections: Sequence[Section], banner: str = "") -> str:
    """Return a whole page.

    Args:
        title: Text.
        sections: Sections; their titles are text, their contents HTML.
        banner: A sentence above everything, text; or nothing.
    """
    links = "".join(f'<a href="#s{i}">{text(head)}</a>' for i, (head, _) in enumerate(sections))
    parts = [f'<section id="s{i}"><h2>{text(head)}</h2>\n{body}\n</section>' for i, (head, body) in enumerate(sections)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{text(title)}</h1>",
            f'<p class="simulated">{text(banner)}</p>' if banner else "",
            f"<nav>{links}</nav>",
            *parts,
            "</body>\n</html>\n",
        ]
    )


def text(value: object) -> str:
    """Return text for HTML, with all that means something to it escaped, and without control characters."""
    return escape("".join(c if c.isprintable() or c in " \n" else "\ufffd" for c in str(value)), quote=True)


def table(frame: pd.DataFrame, metric: Scores = None, label: str | None = None) -> str:
    """Return a table.

    Args:
        frame: A table of `autotune.report.tables`.
        metric: Name or names of the columns that hold scores, or None.
        label: Header of the row labels; None: they are left out.
    """
    header, rows, right = markup.parts(frame, metric, label)
    kinds = [' class="right"' if flush else "" for flush in right]
    head = "".join(f'<th scope="col"{kind}>{text(cell)}</th>' for kind, cell in zip(kinds, header, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def notes(sentences: Sequence[str]) -> str:
    """Return sentences as a list."""
    return '<ul class="notes">' + "".join(f"<li>{text(sentence)}</li>" for sentence in sentences) + "</ul>"


def figure(drawing: Drawing) -> str:
    """Return a figure with its caption; the picture is in the page."""
    svg = len(drawing.svg) <= _LARGEST_SVG
    kind, content = ("svg+xml", drawing.svg) if svg else ("png", drawing.png)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    caption = f"<b>{text(drawing.title)}.</b> {text(drawing.caption)}"
    return (
        f'<figure><img alt="{text(drawing.alt)}" src="{source}" width="{drawing.width_px}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def figures(drawings: Sequence[Drawing], first: int) -> str:
    """Return figures; those after the first `first` ones small, side by side.

    Args:
        drawings: The figures.
        first: Number of those that are shown large.
    """
    parts = [figure(drawing) for drawing in drawings[:first]]
    if drawings[first:]:
        parts.append('<div class="small">' + "\n".join(figure(drawing) for drawing in drawings[first:]) + "</div>")
    return "\n".join(parts)
