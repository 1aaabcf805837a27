"""Keeps Lightning's and scvi-tools' chatter out of a trial's log."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric", "scvi")

# Beginnings of messages (regular expressions) about things that are so on purpose.
_EXPECTED = (
    r"The '\w+_dataloader' does not have many workers",  # the counts are in memory: workers would only copy them
    r"GPU available but not used",  # a slot on the CPU of a host that has GPUs
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
    r"Category \d+ in adata\.obs\[.*\] has fewer than 3 cells",  # told once, at launch
    r"This dataset has some empty cells",  # they are left out; the library prior is computed without them
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lower the libraries' loggers to errors and drop warnings that are expected here; put both back afterwards."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
