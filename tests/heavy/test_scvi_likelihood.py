"""The held-out likelihood: closed forms, published formulas, and where scvi-tools' own estimate differs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from workers.workloads.scvi.likelihood import log_mean_exp, score_cells
from workers.workloads.scvi.models import library_prior
from workers.workloads.scvi.uncertainty import mean_and_se

pytestmark = pytest.mark.heavy

LOG_P = -1.5155121  # log N(1; 0, variance 2)


def weights(proposal: Normal, draws: int, repeats: int) -> torch.Tensor:
    """Log weights of z ~ N(0, 1), x | z ~ N(z, 1), x = 1; shape (draws, repeats)."""
    z = proposal.sample((draws, repeats))
    return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0)) - proposal.log_prob(z)


@pytest.mark.parametrize("draws", [1, 3, 100])
def test_exact_posterior_gives_the_exact_answer_with_any_number_of_draws(draws: int) -> None:
    torch.manual_seed(0)
    estimate = log_mean_exp(weights(Normal(0.5, math.sqrt(0.5)), draws, 20))
    torch.testing.assert_close(estimate, torch.full((20,), LOG_P), rtol=0, atol=1e-5)


# One draw: E[log N(1; z, 1)] = -log(2 pi) / 2 - E[(1 - z)^2] / 2. More draws: the bias is -Var(w) / (2 K E[w]^2) to
# first order, with E[w^2] = N(1; 0, 3/2) / (2 sqrt(pi)); for 10 draws the next order is in the tolerance.
SPREAD = math.exp(-1 / 3) / math.sqrt(3 * math.pi) / (2 * math.sqrt(math.pi)) / math.exp(2 * LOG_P) - 1


@pytest.mark.parametrize(
    ("draws", "expected", "tolerance"),
    [
        (1, -0.5 * math.log(2 * math.pi) - 1, 1e-3),
        (10, LOG_P - SPREAD / 20, 3e-3),
        (100, LOG_P - SPREAD / 200, 1e-4),
    ],
)
def test_poor_proposal_is_biased_low_by_the_known_amount(draws: int, expected: float, tolerance: float) -> None:
    torch.manual_seed(0)
    estimate = log_mean_exp(weights(Normal(0.0, 1.0), draws, 100_000))
    mean, se = mean_and_se(estimate.double())
    assert se is not None
    assert mean == pytest.approx(expected, abs=4 * se + tolerance)


def test_reconstruction_likelihoods_of_scvi_tools_are_the_published_formulas() -> None:
    from scipy.stats import nbinom
    from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

    mu, theta, x = torch.tensor(2.0), torch.tensor(1.5), torch.tensor([0.0, 3.0])
    nb = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    zinb = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=torch.tensor(0.3)).log_prob(x)
    torch.testing.assert_close(nb, torch.tensor([-1.2709468, -2.1670348]), rtol=0, atol=2e-6)
    torch.testing.assert_close(zinb, torch.tensor([-0.3655147, -3.0213901]), rtol=0, atol=2e-6)
    assert float(Poisson(rate=mu).log_prob(x)[1]) == pytest.approx(-1.7123179, abs=2e-6)
    np.testing.assert_allclose(nb, nbinom.logpmf([0, 3], 1.5, 1.5 / 3.5), atol=2e-6)


def loader(model: Any, indices: Any, batch_size: int = 128) -> Any:
    return model._make_data_loader(adata=model.adata, indices=indices, batch_size=batch_size)


def held_out(trained: Any) -> Any:
    return trained.model.validation_indices


@pytest.mark.parametrize("which", ["observed", "latent"])
def test_agrees_with_scvi_tools_where_that_is_right(which: str, request: pytest.FixtureRequest) -> None:
    trained = request.getfixturevalue(f"{which}_library")
    indices = held_out(trained)
    torch.manual_seed(0)
    theirs = trained.model.get_marginal_ll(indices=indices, n_mc_samples=400, return_mean=False).double()
    ours = score_cells(trained.model.module, loader(trained.model, indices), draws=400)
    difference, se = mean_and_se(ours.log_likelihood - theirs)
    assert se is not None
    assert abs(difference) < 4 * se + 0.02
    assert float((ours.log_likelihood - theirs).abs().median()) < 1


@pytest.mark.parametrize("which", ["observed", "latent"])
def test_elbo_agrees_with_scvi_tools_and_is_above_the_likelihood(which: str, request: pytest.FixtureRequest) -> None:
    trained = request.getfixturevalue(f"{which}_library")
    indices = held_out(trained)
    torch.manual_seed(0)
    ours = score_cells(trained.model.module, loader(trained.model, indices), draws=200)
    theirs = [-float(trained.model.get_elbo(indices=indices)) for _ in range(20)]
    assert float(ours.negative_elbo.mean()) == pytest.approx(
        np.mean(theirs), abs=4 * np.std(theirs) / math.sqrt(20) + 0.02
    )
    assert (ours.negative_elbo > -ours.log_likelihood).all()


def test_one_draw_is_the_elbo_in_expectation(observed_library: Any) -> None:
    model, indices = observed_library.model, held_out(observed_library)
    torch.manual_seed(0)
    single = torch.stack(
        [score_cells(model.module, loader(model, indices), draws=1).log_likelihood for _ in range(100)]
    ).mean(dim=0)
    elbo = score_cells(model.module, loader(model, indices), draws=400).negative_elbo
    assert float((single + elbo).mean()) == pytest.approx(0, abs=0.3)


def test_more_draws_never_look_worse_on_average(observed_library: Any) -> None:
    model, indices = observed_library.model, held_out(observed_library)
    torch.manual_seed(0)
    means = [
        float(score_cells(model.module, loader(model, indices), draws=draws).log_likelihood.mean())
        for draws in (1, 10, 200)
    ]
    assert means == sorted(means)


def test_scvi_tools_overweights_a_small_last_batch_and_ours_does_not(observed_library: Any) -> None:
    model, indices = observed_library.model, np.sort(held_out(observed_library))
    size = len(indices) - 1  # a last batch of one cell
    torch.manual_seed(0)
    per_cell = model.get_marginal_ll(indices=indices, n_mc_samples=100, return_mean=False, batch_size=size)
    theirs = float(model.get_marginal_ll(indices=indices, n_mc_samples=100, batch_size=size))
    ours = score_cells(model.module, loader(model, indices, size), draws=100).log_likelihood
    halves = 0.5 * float(per_cell[:-1].mean()) + 0.5 * float(per_cell[-1])
    assert theirs == pytest.approx(halves, abs=2)  # half of the weight is on one cell
    assert float(ours.mean()) == pytest.approx(float(per_cell.mean()), abs=0.5)
    assert abs(theirs - float(per_cell.mean())) > 3


def test_scvi_tools_adds_a_constant_when_draws_do_not_divide_and_ours_does_not(observed_library: Any) -> None:
    model, indices = observed_library.model, held_out(observed_library)
    torch.manual_seed(0)
    even = score_cells(model.module, loader(model, indices), draws=800).log_likelihood
    theirs = model.get_marginal_ll(
        indices=indices, n_mc_samples=101, n_mc_samples_per_pass=100, return_mean=False
    ).double()
    cells, genes = len(indices), model.module.n_input
    ours = score_cells(model.module, loader(model, indices, cells), draws=101, max_elements=100 * cells * genes)
    assert float((theirs - even).mean()) > 0.3  # log(200 / 101) = 0.68 too high, less the bias of fewer draws
    assert float((ours.log_likelihood - even).mean()) < 0.0


def test_every_draw_counts_once_however_passes_are_cut(observed_library: Any) -> None:
    model, indices = observed_library.model, held_out(observed_library)
    genes = model.module.n_input
    reference = score_cells(model.module, loader(model, indices), draws=200).log_likelihood.mean()
    for max_elements in (1, 7 * genes, 30 * 40 * genes, 10**9):
        if max_elements == 1:
            chosen = indices[:10]
            scores = score_cells(model.module, loader(model, chosen), draws=20, max_elements=max_elements)
            assert scores.log_likelihood.shape == (10,)
            continue
        scores = score_cells(model.module, loader(model, indices, 33), draws=50, max_elements=max_elements)
        assert scores.log_likelihood.shape == (len(indices),)
        assert float(scores.log_likelihood.mean()) == pytest.approx(float(reference), abs=1.5)


def test_scoring_is_in_evaluation_mode_and_puts_the_mode_back(observed_library: Any) -> None:
    module = observed_library.model.module
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    score_cells(module, loader(observed_library.model, held_out(observed_library)), draws=2)
    assert module.training
    module.eval()
    for name, value in module.state_dict().items():
        assert torch.equal(before[name], value), name


def test_library_prior_is_of_each_batch_with_a_fallback() -> None:
    log_library, codes = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2])
    means, variances = library_prior(log_library, codes, 4)
    np.testing.assert_allclose(means, [[2.0, 3.0, 5.0, 3.0]])
    np.testing.assert_allclose(variances, [[1.0, 8 / 3, 8 / 3, 8 / 3]])


def test_standard_error_is_over_cells() -> None:
    assert mean_and_se(torch.tensor([1.0, 2.0, 3.0])) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean_and_se(torch.tensor([1.0])) == (1.0, None)
