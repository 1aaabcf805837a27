"""Tables on a terminal: no number is cut or broken, however narrow it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotune.report.formatting import Scores, as_text, is_numeric, score_names

_LONGEST_TEXT = 28
"""Longer texts than so many characters may be folded."""

_SHORTEST_BREAK = 7
"""Words of a header are broken where nothing else helps, into parts of at least so many characters."""


@dataclass(frozen=True, kw_only=True)
class _Column:
    header: str
    cells: tuple[str, ...]
    right: bool

    @property
    def width(self) -> int:
        """Width that the cells need."""
        return self.widest if self.right else min(self.widest, _LONGEST_TEXT)

    @property
    def widest(self) -> int:
        """Width of the widest cell."""
        return max((cell_len(cell) for cell in self.cells), default=0)


def render(
    console: Console,
    tables: Sequence[tuple[str, pd.DataFrame | None, str | None]],
    caption: Sequence[str],
    metric: Scores = None,
) -> None:
    """Print tables with their titles, then the caption.

    Args:
        console: Where to; its width decides how headers are broken.
        tables: Title, table (None: the title alone) and header of the row labels (None: no row labels).
        caption: Sentences, one paragraph each.
        metric: Name or names of the columns that hold scores, of tables with row labels.
    """
    for title, table, label in tables:
        console.print(Text(title, style="bold"), highlight=False)
        if table is not None:
            render_table(console, table, label, metric if label is not None else None)
        console.print()
    for line in caption:
        console.print(Text(line), highlight=False)


def render_table(console: Console, table: pd.DataFrame, label: str | None = None, metric: Scores = None) -> None:
    """Print one table, in several parts where its columns do not fit side by side.

    Args:
        console: Where to.
        table: A table of `autotune.report.tables`, or any other without row labels.
        label: Header of the row labels; they and the first column are repeated in each part.
        metric: Name or names of the columns that hold scores, or None.
    """
    texts, scores = as_text(table, metric, digits=4), score_names(metric)
    columns = [
        _Column(header=name, cells=tuple(texts[name].tolist()), right=name in scores or is_numeric(table, name))
        for name in texts.columns
    ]
    lead: list[_Column] = []
    if label is not None:
        ranks = tuple(str(rank) for rank in table.index.tolist())
        lead, columns = [_Column(header=label, cells=ranks, right=True), columns[0]], columns[1:]
    for number, part in enumerate(_parts(lead, columns, console.width)):
        if number:
            console.print()
        headers, gap = _fit(part, console.width)
        console.print(_table(part, headers, gap), highlight=False)


def _parts(lead: list[_Column], columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Divide columns into parts that fit, each after the leading columns."""
    parts = [list(lead)]
    for column in columns:
        if len(parts[-1]) > len(lead) and _least(parts[-1]) + 1 + _least([column]) > width:
            parts.append(list(lead))
        parts[-1].append(column)
    return parts


def _least(columns: Sequence[_Column]) -> int:
    """Return the width that columns need at least."""
    return sum(_narrowest(column, whole_words=False) for column in columns) + len(columns) - 1


def _narrowest(column: _Column, whole_words: bool) -> int:
    """Return the least width of a column, its header broken between words, or also within long ones."""
    longest = max((len(word.rstrip()) for word in _words(column.header)), default=0)
    return max(column.width, longest if whole_words else min(longest, _SHORTEST_BREAK))


def _fit(columns: Sequence[_Column], width: int) -> tuple[list[str], int]:
    """Return headers, broken as little as the width allows, and the gap between columns."""
    headers: list[str] = []
    for gap, whole_words in ((2, True), (1, True), (1, False)):
        start = [cell_len(c.header) if whole_words else _narrowest(c, whole_words=True) for c in columns]
        headers = [_broken(column.header, limit) for column, limit in zip(columns, start, strict=True)]
        widths = [max(c.width, _widest(header)) for c, header in zip(columns, headers, strict=True)]
        least = [_narrowest(column, whole_words) for column in columns]
        while sum(widths) + gap * (len(columns) - 1) > width:
            slack = [now - lowest for now, lowest in zip(widths, least, strict=True)]
            if max(slack) <= 0:
                break
            i = max(range(len(columns)), key=lambda k: (slack[k] > 0, widths[k]))
            headers[i] = _broken(columns[i].header, widths[i] - 1)
            widths[i] = max(columns[i].width, _widest(headers[i]))
        else:
            break
    return headers, gap


def _words(header: str) -> list[str]:
    """Return the parts of a header, each with the ``_``, ``.`` or space at its end."""
    return re.findall(r"[^_.\s]*[_.\s]+|[^_.\s]+", header)


def _broken(header: str, limit: int) -> str:
    """Return `header` in lines of at most `limit` characters, broken after ``_``, ``.`` and spaces where possible."""
    lines: list[str] = [""]
    for word in _words(header):
        if len((lines[-1] + word).rstrip()) <= limit:
            lines[-1] += word
            continue
        lines += [word[i : i + limit] for i in range(0, len(word.rstrip()), limit)]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _widest(header: str) -> int:
    return max((len(line) for line in header.split("\n")), default=0)


def _table(columns: Sequence[_Column], headers: Sequence[str], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    folded = any(column.widest > column.width for column in columns)
    for column, header in zip(columns, headers, strict=True):
        table.add_column(
            Text(header),
            justify="right" if column.right else "left",
            vertical="top" if folded else "bottom",
            no_wrap=column.widest <= column.width,
            overflow="fold",
            min_width=max(column.width, _widest(header)),
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table
