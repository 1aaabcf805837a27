"""Held-out likelihood of an scVI module: importance sampling, ELBO and reconstruction, one value per cell.

Differs from scvi-tools' ``get_marginal_ll`` on purpose: every cell and every draw counts the same. There, unequal
last batches are over-weighted (means of batch means), and draws that are not a multiple of the draws per pass are
rounded up while the correction subtracts the logarithm of the number asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Normal, kl_divergence

from workers.workloads.scvi.priors import latent_prior, log_ratio
from workers.workloads.scvi.uncertainty import jackknife_variance

MAX_ELEMENTS = 2_000_000  # draws x cells x genes of one pass: fastest on a CPU, and some 100 MB of temporaries


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """Scores per cell, in nats, float64 on the CPU.

    Attributes:
        log_likelihood: Estimate of ``log p(x)``, shape ``(n_cells,)``; higher is better.
        negative_elbo: Reconstruction loss (mean over draws) plus KL divergences, shape ``(n_cells,)``.
        reconstruction: The mean over draws of ``-log p(x | z)`` alone, shape ``(n_cells,)``.
        draw_variance: Variance of `log_likelihood` over draws, by the jackknife, shape ``(n_cells,)``; None for a
            single draw.
    """

    log_likelihood: torch.Tensor
    negative_elbo: torch.Tensor
    reconstruction: torch.Tensor
    draw_variance: torch.Tensor | None = None


def log_mean_exp(log_weights: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean of ``exp(log_weights)`` over the first dimension.

    Args:
        log_weights: Shape ``(n_draws, ...)``.

    Returns:
        Shape ``(...)``; the importance sampling estimate of ``log p(x)`` for ``log p(x, z_k) - log q(z_k | x)``.
        Biased low for few draws (Jensen), less with more (Burda et al. 2016).
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def score_cells(
    module: Any, batches: Iterable[dict[str, torch.Tensor]], *, draws: int, max_elements: int = MAX_ELEMENTS
) -> CellScores:
    """Score cells under a trained scVI module, in evaluation mode.

    ``log p(x) ~ log mean_k exp(log p(x | z_k, l_k) + log p(z_k) - log q(z_k | x) + log p(l_k) - log q(l_k | x))``;
    the library terms are there only when the library size is latent. (scVI 2019, ``log_likelihood.py``.) Of SCANVI
    the label is latent too: see `priors.LabelledPrior`.

    Args:
        module: ``scvi.module.VAE`` or one of its kin (``LDVAE``, ``SCANVAE``).
        batches: Minibatches as scvi-tools' data loaders give them.
        draws: Number of draws per cell, each counted once, however they are spread over passes.
        max_elements: Bound on draws x cells x genes of one pass.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            parts = [
                _score_batch(module, part, draws=draws, max_elements=max_elements)
                for batch in batches
                for part in _small_enough(batch, max_elements)
            ]
    finally:
        module.train(was_training)
    variances = [part.draw_variance for part in parts if part.draw_variance is not None]
    return CellScores(
        log_likelihood=torch.cat([part.log_likelihood for part in parts]),
        negative_elbo=torch.cat([part.negative_elbo for part in parts]),
        reconstruction=torch.cat([part.reconstruction for part in parts]),
        draw_variance=torch.cat(variances) if variances else None,
    )


def _small_enough(batch: dict[str, torch.Tensor], max_elements: int) -> Iterable[dict[str, torch.Tensor]]:
    """Yield parts of a batch of which one draw stays below the bound."""
    cells, genes = batch["X"].shape
    step = max(1, min(cells, max_elements // genes))
    for start in range(0, cells, step):
        yield {name: tensor[start : start + step] for name, tensor in batch.items() if tensor is not None}


def _score_batch(module: Any, batch: dict[str, torch.Tensor], *, draws: int, max_elements: int) -> CellScores:
    """Return the scores of the cells of one batch."""
    batch = {name: tensor.to(module.device) for name, tensor in batch.items()}
    cells, genes = batch["X"].shape
    inferred = module.inference(**module._get_inference_input(batch))
    posterior, library_posterior = inferred["qz"], inferred["ql"]
    prior = latent_prior(module, posterior)
    library_prior = None if library_posterior is None else _library_prior(module, batch)
    per_pass = max(1, min(draws, max_elements // (cells * max(genes, prior.width))))
    log_weights, log_likelihoods = [], []
    for done in range(0, draws, per_pass):
        number = min(per_pass, draws - done)
        z = posterior.sample((number,))
        weight = prior.log_ratio(z)
        library = inferred["library"].expand(number, cells, 1)
        if library_posterior is not None:
            library = library_posterior.sample((number,))
            weight = weight + log_ratio(library_prior, library_posterior, library)
        log_p_x = _log_p_x(module, batch, z, library)
        log_weights.append(log_p_x + weight)
        log_likelihoods.append(log_p_x)
    divergence = prior.divergence()
    if library_posterior is not None:
        divergence = divergence + kl_divergence(library_posterior, library_prior).sum(-1, dtype=torch.float64)
    weights, mean = torch.cat(log_weights), torch.cat(log_likelihoods).mean(dim=0)
    variance = jackknife_variance(weights)
    return CellScores(
        log_likelihood=log_mean_exp(weights).cpu(),
        negative_elbo=(divergence - mean).cpu(),
        reconstruction=(-mean).cpu(),
        draw_variance=None if variance is None else variance.cpu(),
    )


def _log_p_x(module: Any, batch: dict[str, torch.Tensor], z: torch.Tensor, library: torch.Tensor) -> torch.Tensor:
    """Return ``log p(x | z, l)``, shape ``(n_draws, n_cells)``, float64.

    Draws and cells are laid out as one long batch, which the decoder takes in one go.
    """
    number, cells, latent = z.shape
    repeated = {name: tensor.repeat(number, 1) for name, tensor in batch.items()}
    drawn = {
        "z": module.z_encoder.z_transformation(z.reshape(number * cells, latent)),
        "library": library.reshape(number * cells, 1),
    }
    generated = module.generative(**module._get_generative_input(repeated, drawn))
    return generated["px"].log_prob(repeated["X"]).sum(-1, dtype=torch.float64).reshape(number, cells)


def _library_prior(module: Any, batch: dict[str, torch.Tensor]) -> Normal:
    """Return the prior of the log library size of each cell, shape ``(n_cells, 1)``."""
    means, variances = module._compute_local_library_params(batch["batch"])
    return Normal(means, variances.sqrt())
