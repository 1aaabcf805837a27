"""Minibatches of training and held-out cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scvi.dataloaders import AnnDataLoader, DataSplitter, SemiSupervisedDataLoader
from torch.utils.data import RandomSampler

_SMALLEST_BATCH = 3  # smaller last batches are skipped, as in scVI of 2019
_AT_ONCE = 1 << 14


class Shuffled(RandomSampler):
    """The order of torch's own sampler, drawn by the same random numbers, without a list of it.

    That list of Python numbers takes 40 MB of a million cells in each trial.
    """

    def __iter__(self) -> Iterator[int]:
        """Yield each position once."""
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        for some in torch.randperm(len(self), generator=generator).split(_AT_ONCE):
            yield from some.tolist()


class _Splitter(DataSplitter):
    def train_dataloader(self) -> Any:
        """Create the training batches."""
        loader = super().train_dataloader()
        loader.sampler.sampler = Shuffled(loader.dataset)
        return loader


def drops_last(n_cells: int, batch_size: int) -> bool:
    """Return whether the last batch of so many cells is too small to be trained on."""
    return 0 < n_cells % batch_size < _SMALLEST_BATCH


def unsupervised(model: Any, train: Any, validation: Any, *, batch_size: int) -> DataSplitter:
    """Return Lightning's data: training cells, shuffled, and held-out cells, in order.

    Args:
        model: A model of scvi-tools.
        train: Positions of training cells.
        validation: Positions of held-out cells.
        batch_size: Cells per batch.
    """
    return _splitter(_Splitter, model, train, validation, batch_size)


def semi_supervised(model: Any, train: Any, validation: Any, *, batch_size: int) -> DataSplitter:
    """Return the same for SCANVI: each training batch comes with a batch of labelled training cells."""
    return _splitter(_LabelledSplitter, model, train, validation, batch_size)


class _LabelledSplitter(DataSplitter):
    """Training batches as of scvi-tools' ``SemiSupervisedDataSplitter``.

    That one also asks for labels of held-out cells, which have none here, and does not skip a last labelled batch of
    a single cell, which batch normalisation cannot take.
    """

    def train_dataloader(self) -> Any:
        """Create pairs of batches: any training cells, labelled training cells."""
        arguments = {"shuffle": True, "pin_memory": self.pin_memory, **self.data_loader_kwargs}
        loader = SemiSupervisedDataLoader(
            self.adata_manager, indices=self.train_idx, drop_last=self.drop_last, **arguments
        )
        labelled: npt.NDArray[np.int64] = np.concatenate(loader.labeled_locs)
        loader.dataloaders[1] = AnnDataLoader(
            self.adata_manager,
            indices=labelled,
            drop_last=drops_last(len(labelled), self.data_loader_kwargs["batch_size"]),
            **arguments,
        )
        return loader


def _splitter(kind: type[DataSplitter], model: Any, train: Any, validation: Any, batch_size: int) -> DataSplitter:
    """Return a splitter with given parts.

    They are set after it was made: scvi-tools checks them in sets of Python objects, which for a million cells take
    hundreds of megabytes and a second in each trial, and ours were checked when they were drawn.
    """
    left_out = np.ones(model.adata_manager.adata.n_obs, dtype=bool)
    left_out[train] = left_out[validation] = False
    splitter = kind(model.adata_manager, batch_size=batch_size, drop_last=True)
    splitter.drop_last = drops_last(len(train), batch_size)
    splitter.external_indexing = [train, validation, np.flatnonzero(left_out)]
    splitter.n_train, splitter.n_val = len(train), len(validation)
    return splitter
