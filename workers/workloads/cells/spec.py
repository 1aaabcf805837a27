"""The ``data`` and ``split`` sections of a campaign, checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import CampaignError, nearest
from workers.workloads.cells.named import by_path

_DATA_KEYS = ("path", "dataset", "layer", "genes", "labels", "batch", "name", "sha256")
_SPLIT_KEYS = ("validation", "test", "seed", "by", "protocol")
_PRIVATE_KEYS = ("unsealed",)  # set by the service in campaigns that score the test part, never by a person
_PUBLISHED_VALIDATION = 0.25
PROTOCOLS = ("honest", "published")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which counts of which file.

    Attributes:
        path: The file: ``.h5ad``, ``.loom`` or 10x ``.h5``; or a 10x folder.
        name: Name of the data set in tables; the file's stem by default.
        layer: Layer that holds the raw counts; None for ``X``.
        top_variance: Keep this many genes, those whose raw counts vary most; None for all genes.
        labels: Column of ``obs`` with cell types, or None.
        batch: Column of ``obs`` with technical batches, or None.
        sha256: Hash that the file must have, or None.
        dataset: Name of the public data set that the file holds, which is fetched where it is missing; or None.
    """

    path: Path
    name: str
    layer: str | None = None
    top_variance: int | None = None
    labels: str | None = None
    batch: str | None = None
    sha256: str | None = None
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How cells are divided.

    Attributes:
        validation: Fraction of all cells that trials are compared on, in (0, 1); 0.25 by default.
        test: Fraction of all cells that no trial of a search sees, in [0, 1); 0: there is no such part.
        seed: Seed of the division.
        by: Column of ``obs`` whose groups (donors, samples) are never divided; None to divide cell by cell.
        protocol: ``honest``, or ``published``: selection and report on the same quarter of the cells, without a test
            part, as scVI's autotune of 2019 did.
    """

    validation: float = 0.25
    test: float = 0.0
    seed: int = 0
    by: str | None = None
    protocol: str = "honest"


def data_spec(data: Mapping[str, Any]) -> DataSpec:
    """Check the ``data`` section.

    Raises:
        CampaignError: On an unknown key, a missing path or a value of the wrong type.
    """
    _check_keys("data", data, _DATA_KEYS)
    for key in ("dataset", "layer", "labels", "batch", "name", "sha256"):
        if data.get(key) is not None and not isinstance(data[key], str):
            raise CampaignError(f"data.{key} must be text, not {data[key]!r}")
    dataset = data.get("dataset")
    if dataset is not None:
        if data.get("path") is not None:
            raise CampaignError("data has both dataset and path: remove one of them")
        data = by_path(data)
    path = data.get("path")
    if not isinstance(path, str | Path) or not str(path):
        raise CampaignError("data.path must name a file (.h5ad, .loom, 10x .h5) or a 10x folder, or set data.dataset")
    path = Path(path).expanduser()
    return DataSpec(
        path=path,
        name=data.get("name") or path.stem,
        layer=data.get("layer"),
        top_variance=_top_variance(data.get("genes")),
        labels=data.get("labels"),
        batch=data.get("batch"),
        sha256=data["sha256"].lower() if data.get("sha256") else None,
        dataset=dataset,
    )


def split_spec(split: Mapping[str, Any]) -> SplitSpec:
    """Check the ``split`` section.

    Raises:
        CampaignError: On an unknown key, a fraction that is none, fractions that leave nothing to train on, a seed that
            is not in 0 .. 2^32 - 1, or a protocol that is none.
    """
    _check_keys("split", split, _SPLIT_KEYS, _PRIVATE_KEYS)
    validation, test = split.get("validation", 0.25), split.get("test", 0.0)
    if not _is_number(validation) or not 0 < float(validation) < 1:
        raise CampaignError(f"split.validation must be a fraction between 0 and 1 (as 0.25), not {validation!r}")
    if not _is_number(test) or not 0 <= float(test) < 1:
        raise CampaignError(f"split.test must be a fraction of at least 0 and below 1 (as 0.2), not {test!r}")
    if float(validation) + float(test) >= 1:
        raise CampaignError(f"split.validation {validation:g} and split.test {test:g} leave no cells to train on")
    seed = split.get("seed", 0)
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not 0 <= int(seed) < 2**32:
        raise CampaignError(f"split.seed must be a whole number from 0 to 4294967295, not {seed!r}")
    by = split.get("by")
    if by is not None and not isinstance(by, str):
        raise CampaignError(f"split.by must name a column of obs, not {by!r}")
    if not isinstance(split.get("unsealed", False), bool):
        raise CampaignError("split.unsealed is set by the service alone: remove it")
    return SplitSpec(
        validation=float(validation),
        test=float(test),
        seed=int(seed),
        by=by,
        protocol=_protocol(split.get("protocol", "honest"), float(validation), float(test)),
    )


def _protocol(protocol: Any, validation: float, test: float) -> str:
    """Return a protocol that fits the fractions.

    Raises:
        CampaignError: If it does not, or is none.
    """
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise CampaignError(f"split.protocol must be honest or published, not {protocol!r}")
    if protocol == "published" and (test or validation != _PUBLISHED_VALIDATION):
        raise CampaignError(
            "split.protocol: published has validation 0.25 and no test part: remove split.validation and split.test,"
            " or use protocol: honest"
        )
    return protocol


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_keys(section: str, given: Mapping[str, Any], known: tuple[str, ...], private: tuple[str, ...] = ()) -> None:
    """Raise `CampaignError` on the first key that is not known; private keys are taken and never proposed."""
    if not isinstance(given, Mapping):
        raise CampaignError(f"{section} must be a mapping, not {given!r}")
    for key in given:
        if key not in known and key not in private:
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
