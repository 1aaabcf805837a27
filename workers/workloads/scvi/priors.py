"""What lies before the decoder: the latent variables' prior against their posterior, for each kind of model."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.distributions import Categorical, Normal, kl_divergence


class LatentPrior(Protocol):
    """Prior and posterior of the latent variables of one batch.

    Attributes:
        width: Numbers held per draw and cell beyond the decoder's.
    """

    width: int

    def log_ratio(self, z: torch.Tensor) -> torch.Tensor:
        """Return ``log p(z) - log q(z | x)``, float64.

        Args:
            z: Draws from the posterior, shape ``(n_draws, n_cells, n_latent)``.

        Returns:
            Shape ``(n_draws, n_cells)``.
        """
        ...

    def divergence(self) -> torch.Tensor:
        """Return what the latent variables add to the negative ELBO, shape ``(n_cells,)``; after all draws."""
        ...


class StandardPrior:
    """``z ~ N(0, I)``: SCVI and LinearSCVI. The divergence is exact."""

    width = 0

    def __init__(self, posterior: Normal) -> None:
        self._posterior = posterior

    def log_ratio(self, z: torch.Tensor) -> torch.Tensor:
        """Return ``log p(z) - log q(z | x)``."""
        return log_ratio(standard_normal(z), self._posterior, z)

    def divergence(self) -> torch.Tensor:
        """Return the Kullback-Leibler divergence from prior to posterior."""
        return kl_divergence(self._posterior, standard_normal(self._posterior.loc)).sum(-1, dtype=torch.float64)


class LabelledPrior:
    """``y ~ p(y), z2 ~ N(0, I), z1 ~ p(z1 | z2, y)``: SCANVI, for cells whose label is not known.

    The likelihood needs ``p(z1) = sum_y p(y) E_{q(z2 | z1, y)}[p(z1 | z2, y) p(z2) / q(z2 | z1, y)]``. The sum over
    labels is exact, the mean is taken with one draw of z2 per label and draw of z1; the weights keep their mean, so
    the estimate of ``log p(x)`` is, as ever, low on average. (scvi-tools' ``get_marginal_ll`` puts N(0, I) in place
    of ``p(z1)`` and takes terms of the ELBO for the reconstruction: for SCANVI it is no likelihood.)

    The ELBO is that of scvi-tools' ``SCANVAE.loss`` without the classification loss (Xu et al. 2021).
    """

    def __init__(self, module: Any, posterior: Normal) -> None:
        self._module, self._posterior = module, posterior
        self._divergences: list[torch.Tensor] = []
        self.width = module.n_labels * max(module.n_hidden, module.n_latent)

    def log_ratio(self, z: torch.Tensor) -> torch.Tensor:
        """Return an estimate of ``log p(z1) - log q(z1 | x)`` without bias of its exponential."""
        from scvi.module._utils import broadcast_labels

        module, n_labels = self._module, self._module.n_labels
        flat = z.reshape(-1, z.shape[-1])
        labels, repeated = broadcast_labels(flat, n_broadcast=n_labels)
        inner, z2 = module.encoder_z2_z1(repeated, labels)
        mean, variance = module.decoder_z1_z2(z2, labels)
        log_p = Normal(mean, variance.sqrt()).log_prob(repeated).sum(-1, dtype=torch.float64).view(n_labels, -1)
        inner_ratio = log_ratio(standard_normal(z2), inner, z2).view(n_labels, -1)
        log_prior = module.y_prior.double().log().t() + log_p + inner_ratio
        log_q = self._posterior.log_prob(z).sum(-1, dtype=torch.float64)
        inner_divergence = kl_divergence(inner, standard_normal(inner.loc)).sum(-1, dtype=torch.float64)
        self._divergences.append(log_q + self._expected(flat, inner_divergence.view(n_labels, -1) - log_p, z))
        return torch.logsumexp(log_prior, dim=0).view(z.shape[:2]) - log_q

    def divergence(self) -> torch.Tensor:
        """Return the mean over draws of all terms of the negative ELBO but the reconstruction."""
        return torch.cat(self._divergences).mean(dim=0)

    def _expected(self, flat: torch.Tensor, per_label: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return ``E_{q(y | z1)}[per_label] + KL(q(y | z1) | p(y))``, shape ``(n_draws, n_cells)``."""
        scores = self._module.classifier(flat)
        shares = torch.softmax(scores, dim=-1) if self._module.classifier.logits else scores
        prior = self._module.y_prior.expand(len(shares), -1)
        known = kl_divergence(Categorical(probs=shares), Categorical(probs=prior)).double()
        return ((per_label * shares.t()).sum(dim=0) + known).view(z.shape[:2])


def latent_prior(module: Any, posterior: Normal) -> LatentPrior:
    """Return the prior of a module of scvi-tools."""
    if hasattr(module, "encoder_z2_z1"):
        return LabelledPrior(module, posterior)
    return StandardPrior(posterior)


def log_ratio(prior: Any, posterior: Any, value: torch.Tensor) -> torch.Tensor:
    """Return ``log prior(value) - log posterior(value)`` summed over the last dimension, float64."""
    return (prior.log_prob(value) - posterior.log_prob(value)).sum(-1, dtype=torch.float64)


def standard_normal(like: torch.Tensor) -> Normal:
    """Return N(0, 1) of the shape of `like`."""
    return Normal(torch.zeros_like(like), torch.ones_like(like))
