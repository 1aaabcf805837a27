"""What commands share: options, and printing as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_INSECURE_VARIABLE = "AUTOTUNE_INSECURE"
_F = TypeVar("_F", bound=Callable[..., Any])


def store_option(command: _F) -> _F:
    """Add ``--store``, given to the command as `store_uri`, and ``--insecure``, which it need not know of."""
    store = click.option(
        "--store",
        "store_uri",
        metavar="URI",
        help="The store; default: AUTOTUNE_STORE, else the URI in file AUTOTUNE_STORE_FILE, else the embedded store.",
    )
    insecure = click.option(
        "--insecure",
        is_flag=True,
        expose_value=False,
        callback=_accept_insecure,
        help="Use the store even if anybody can reach it without a password.",
    )
    return store(insecure(command))


def _accept_insecure(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Write it into the environment, so that the processes that a command starts accept it as well."""
    if given:
        os.environ[_INSECURE_VARIABLE] = "1"


def format_option(*choices: str) -> Callable[[_F], _F]:
    """Add ``--format`` with these choices; the first is the default."""
    return click.option(
        "--format", "format_", type=click.Choice(choices), default=choices[0], show_default=True, help="How to print."
    )


def echo_json(value: Any) -> None:
    """Print a value as strict JSON: times in ISO 8601, NaN and infinity as null."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a value of nothing but JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def echo_frame(frame: pd.DataFrame, format_: str, *, title: str = "") -> None:
    """Print a table: for people, or as CSV or Parquet on standard output."""
    if format_ == "csv":
        click.echo(frame.to_csv(index=False), nl=False)
    elif format_ == "parquet":
        write_parquet(frame)
    else:
        columns, rows = [str(c) for c in frame.columns], frame.to_numpy().tolist()
        count = fitting(
            [[column, *(show(row[i]) for row in rows)] for i, column in enumerate(columns)], console().width
        )
        echo_table(columns[:count], [row[:count] for row in rows], title=title)
        if count < len(columns):
            names = ", ".join(columns[count:])
            click.echo(f"not shown, for lack of width: {names} (choose with --columns, or --format csv)", err=True)


def fitting(columns: list[list[str]], width: int) -> int:
    """Return how many columns, from the left, fit side by side; at least one.

    Args:
        columns: The texts of each column.
        width: Characters in a line; two lie between columns.
    """
    used = 0
    for count, texts in enumerate(columns):
        used += max(map(len, texts)) + (2 if count else 0)
        if used > width and count:
            return count
    return len(columns)


def write_parquet(frame: pd.DataFrame) -> None:
    """Write a table as Parquet to standard output.

    Raises:
        InputError: If standard output is a terminal, or the library for it is not installed.
    """
    if sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal; write it to a file: --format parquet > trials.parquet")
    try:
        frame.to_parquet(click.get_binary_stream("stdout"), index=False)  # type: ignore[operator] # wrong in stubs
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'autotune[parquet]'") from None


def echo_table(columns: list[str], rows: list[list[Any]], *, title: str = "") -> None:
    """Print a table for people."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[show(v) for v in row])
    console().print(table)


def console() -> Any:
    """Return a console on standard output; wide where it is no terminal, so that nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)


def show(value: Any) -> str:
    """Return a value as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if type(value).__name__ in ("NaTType", "NAType"):
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def existing_folder(path: str | None) -> Path | None:
    """Return a folder to write to, or None."""
    return None if path is None else Path(path).expanduser()
