"""The ``data`` and ``split`` sections of a campaign, checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import CampaignError, nearest

_DATA_KEYS = ("path", "layer", "genes", "labels", "batch", "name", "sha256")
_SPLIT_KEYS = ("validation", "seed", "by")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which counts of which file.

    Attributes:
        path: The ``.h5ad`` file.
        name: Name of the data set in tables; the file's stem by default.
        layer: Layer that holds the raw counts; None for ``X``.
        top_variance: Keep this many genes, those whose raw counts vary most; None for all genes.
        labels: Column of ``obs`` with cell types, or None.
        batch: Column of ``obs`` with technical batches, or None.
        sha256: Hash that the file must have, or None.
    """

    path: Path
    name: str
    layer: str | None = None
    top_variance: int | None = None
    labels: str | None = None
    batch: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How cells are divided.

    Attributes:
        validation: Fraction of cells held out, in (0, 1); 0.25 by default.
        seed: Seed of the division.
        by: Column of ``obs`` whose groups (donors, samples) are never divided; None to divide cell by cell.
    """

    validation: float = 0.25
    seed: int = 0
    by: str | None = None


def data_spec(data: Mapping[str, Any]) -> DataSpec:
    """Check the ``data`` section.

    Raises:
        CampaignError: On an unknown key, a missing path or a value of the wrong type.
    """
    _check_keys("data", data, _DATA_KEYS)
    for key in ("layer", "labels", "batch", "name", "sha256"):
        if data.get(key) is not None and not isinstance(data[key], str):
            raise CampaignError(f"data.{key} must be text, not {data[key]!r}")
    path = data.get("path")
    if not isinstance(path, str | Path) or not str(path):
        raise CampaignError("data.path must name an .h5ad file")
    path = Path(path).expanduser()
    return DataSpec(
        path=path,
        name=data.get("name") or path.stem,
        layer=data.get("layer"),
        top_variance=_top_variance(data.get("genes")),
        labels=data.get("labels"),
        batch=data.get("batch"),
        sha256=data["sha256"].lower() if data.get("sha256") else None,
    )


def split_spec(split: Mapping[str, Any]) -> SplitSpec:
    """Check the ``split`` section.

    Raises:
        CampaignError: On an unknown key, a fraction outside (0, 1), or a seed that is not in 0 .. 2^32 - 1.
    """
    _check_keys("split", split, _SPLIT_KEYS)
    validation = split.get("validation", 0.25)
    is_number = isinstance(validation, numbers.Real) and not isinstance(validation, bool)
    if not is_number or not 0 < float(validation) < 1:
        raise CampaignError(f"split.validation must be a fraction between 0 and 1 (as 0.25), not {validation!r}")
    seed = split.get("seed", 0)
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not 0 <= int(seed) < 2**32:
        raise CampaignError(f"split.seed must be a whole number from 0 to 4294967295, not {seed!r}")
    by = split.get("by")
    if by is not None and not isinstance(by, str):
        raise CampaignError(f"split.by must name a column of obs, not {by!r}")
    return SplitSpec(validation=float(validation), seed=int(seed), by=by)


def _check_keys(section: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise `CampaignError` on the first key that is not known."""
    if not isinstance(given, Mapping):
        raise CampaignError(f"{section} must be a mapping, not {given!r}")
    for key in given:
        if key not in known:
            raise CampaignError(f"unknown key {section}.{key}{nearest(str(key), known)}")


def _top_variance(genes: Any) -> int | None:
    """Return the number of genes asked for, None for all.

    Raises:
        CampaignError: Unless `genes` is None, ``all`` or ``{"top_variance": N}`` with N >= 1.
    """
    if genes is None or genes == "all":
        return None
    if not isinstance(genes, Mapping):
        raise CampaignError(f"data.genes must be `all` or `top_variance: N`, not {genes!r}")
    _check_keys("data.genes", genes, ("top_variance",))
    number = genes.get("top_variance")
    if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < 1:
        raise CampaignError(f"data.genes.top_variance must be a whole number >= 1, not {number!r}")
    return int(number)
