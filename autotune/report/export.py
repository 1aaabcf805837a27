"""Files of a report: CSV in full precision, Markdown and LaTeX for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from autotune.errors import InputError


def csv_text(table: pd.DataFrame, label: str | None = None, mark: str | None = None) -> str:
    """Return a table as CSV in full precision.

    Args:
        table: Any table.
        label: Header of the row labels; a missing number is then ``NaN``. None: they are left out, and what is missing
            is empty.
        mark: Text of a trailing column ``data`` in every row; None: no such column.
    """
    if mark is not None:
        name = "data"
        while name in table.columns:
            name += "_"
        table = table.assign(**{name: mark})
    missing = "" if label is None else "NaN"
    return table.to_csv(index=label is not None, index_label=label, na_rep=missing, lineterminator="\n")


def write(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files; each is there whole or not at all. Returns their paths in order.

    Args:
        folder: Made where it does not exist; files of these names are replaced.
        files: Name, with ``/`` where it lies deeper -> content.

    Raises:
        InputError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder / name, content) for name, content in files.items()]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write the report to '{folder}': {reason}; choose another folder") from None


def _write(path: Path, content: str | bytes) -> Path:
    """Write beside `path`, then rename."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
