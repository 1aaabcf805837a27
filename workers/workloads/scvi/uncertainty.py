"""How far a mean over cells may be off: over cells, over groups of cells, and over Monte Carlo draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def mean_and_se(values: torch.Tensor) -> tuple[float, float | None]:
    """Return mean and standard error over cells.

    Args:
        values: Shape ``(n_cells,)``.

    Returns:
        The error is None for a single cell. It takes cells as independent: see `cluster_se` for cells of donors.
    """
    count = values.shape[0]
    se = float(values.std(correction=1)) / math.sqrt(count) if count > 1 else None
    return float(values.mean()), se


def cluster_se(values: torch.Tensor, groups: npt.NDArray[np.str_] | Sequence[str]) -> float | None:
    """Return the standard error of the mean over cells when cells of one group are alike.

    ``sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n``: the sandwich estimate of a mean with clusters
    (Liang and Zeger 1986), G groups, with the usual correction for few of them.

    Args:
        values: Shape ``(n_cells,)``.
        groups: Group of each cell, length ``n_cells``.

    Returns:
        None with fewer than two groups: nothing can be said from one.
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    number = int(codes.max()) + 1 if len(codes) else 0
    if number < 2:
        return None
    residuals = (values - values.mean()).double().numpy()
    sums = np.bincount(codes, weights=residuals, minlength=number)
    return float(math.sqrt(number / (number - 1) * float(sums @ sums)) / len(codes))


def jackknife_variance(log_weights: torch.Tensor) -> torch.Tensor | None:
    """Return the variance over draws of ``log mean_k exp(log_weights)``, by leaving out one draw at a time.

    ``(K - 1) / K * sum_k (theta_(k) - mean)^2`` with ``theta_(k)`` the estimate without draw k (Tukey 1958). Like any
    estimate from the draws it is too small where a rare draw of great weight has not come up.

    Args:
        log_weights: Shape ``(n_draws, n_cells)``.

    Returns:
        Shape ``(n_cells,)``, or None for a single draw.
    """
    draws = log_weights.shape[0]
    if draws < 2:
        return None
    total = torch.logsumexp(log_weights, dim=0)
    rest = total + torch.log1p(-torch.exp(log_weights - total).clamp(max=0.75))
    # The largest weight may be nearly the whole sum: what is left without it is summed anew, not subtracted.
    largest = log_weights.argmax(dim=0, keepdim=True)
    others = torch.logsumexp(log_weights.scatter(0, largest, -math.inf), dim=0, keepdim=True)
    rest = rest.scatter(0, largest, others)
    return (rest - rest.mean(dim=0)).square().sum(dim=0) * ((draws - 1) / draws)


def se_over_draws(variances: torch.Tensor | None) -> float | None:
    """Return the standard error over draws of the mean over cells; draws of different cells are independent.

    Args:
        variances: Variance over draws of each cell's estimate, shape ``(n_cells,)``, or None when unknown.
    """
    if variances is None or not len(variances):
        return None
    return math.sqrt(float(variances.sum())) / len(variances)
