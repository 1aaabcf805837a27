"""Tables in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from autotune.report.formatting import Scores, as_text, is_numeric, score_names

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "[": "{[}",
    "]": "{]}",
}
_MARKDOWN = re.compile(
    r"[\\|*`<>\[\]~$]"
    r"|&(?=#?\w+;)"
    r"|(?<![^\W_])_|_(?![^\W_])"  # between letters an underscore is plain text
)


def latex_text(text: str) -> str:
    """Return `text` with every character that means something to LaTeX escaped."""
    text = " ".join(text.split())
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_text(text: str) -> str:
    """Return `text` with every character that would mean something to Markdown, tables included, escaped."""
    return _MARKDOWN.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def markdown_table(table: pd.DataFrame, metric: Scores = None, label: str | None = None) -> str:
    """Return a pipe table, columns padded so that it can be read as it is.

    Args:
        table: A table of `autotune.report.tables`.
        metric: Name or names of the columns that hold scores, or None.
        label: Header of the row labels; None: they are left out.
    """
    header, rows, right = parts(table, metric, label)
    lines = [[markdown_text(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    padded = [
        [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]]) + "\n"


def latex_table(table: pd.DataFrame, caption: Sequence[str], metric: Scores = None, label: str | None = None) -> str:
    """Return a ``table`` environment with booktabs rules.

    Args:
        table: A table of `autotune.report.tables`.
        caption: Sentences under the table.
        metric: Name or names of the columns that hold scores, or None.
        label: Header of the row labels; None: they are left out.
    """
    header, rows, right = parts(table, metric, label)
    lines = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in [header, *rows]]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_text(' '.join(caption))}}}",
            rf"\begin{{tabular}}{{{''.join('r' if flush else 'l' for flush in right)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def parts(
    table: pd.DataFrame, metric: Scores = None, label: str | None = None
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Return header, rows and which columns are set flush right, as text for people, not escaped.

    Args:
        table: A table of `autotune.report.tables`.
        metric: Name or names of the columns that hold scores, or None.
        label: Header of the row labels; None: they are left out.
    """
    texts = as_text(table, metric)
    header = [str(name) for name in table.columns]
    right = [name in score_names(metric) or is_numeric(table, name) for name in header]
    rows = [[str(cell) for cell in row] for row in texts.itertuples(index=False, name=None)]
    if label is not None:
        header, right = [label, *header], [True, *right]
        rows = [[str(rank), *row] for rank, row in zip(table.index.tolist(), rows, strict=True)]
    return header, rows, right
