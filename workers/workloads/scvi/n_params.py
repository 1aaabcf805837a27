"""The parameter count that scVI's autotune tables print."""

from __future__ import annotations


def n_params(*, n_genes: int, n_layers: int, n_hidden: int, n_latent: int) -> int:
    """Return the published parameter count of a configuration.

    ``2 G H + 2 (L - 1) H^2 + 2 H Z``, or ``2 G Z`` without hidden layers: the weight matrices from genes to hidden
    to latent units and back. It leaves out biases, batch normalisation, the variance, dispersion, dropout and
    library parts, so it is smaller than the true number of weights.

    Source: ``n_params`` in scVI, ``tests/notebooks/utils/autotune_advanced_notebook.py`` (commit fe67ff31).

    Args:
        n_genes: Number of genes G.
        n_layers: Number of hidden layers L of encoder and of decoder; 0 for the linear model.
        n_hidden: Number of units H of a hidden layer.
        n_latent: Number of latent dimensions Z.
    """
    if n_layers == 0:
        return 2 * n_genes * n_latent
    return 2 * n_genes * n_hidden + 2 * (n_layers - 1) * n_hidden**2 + 2 * n_hidden * n_latent
