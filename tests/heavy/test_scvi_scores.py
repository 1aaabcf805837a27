"""Scores against known answers: integrals on a grid through the models' own decoders, closed forms, brute force."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from workers.reporting import Trial
from workers.workloads.fields import defaults
from workers.workloads.registry import get_workload
from workers.workloads.scvi.likelihood import score_cells
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.scores import score_part
from workers.workloads.scvi.space import FIELDS
from workers.workloads.scvi.training import seed_all, train
from workers.workloads.scvi.uncertainty import cluster_se, jackknife_variance, se_over_draws

pytestmark = pytest.mark.heavy

WORKLOAD = get_workload("scvi")
ONE_LATENT: dict[str, Any] = {
    **defaults(FIELDS),
    "n_hidden": 16,
    "n_latent": 1,
    "max_epochs": 12,
    "lr": 0.01,
    "n_epochs_kl_warmup": None,
}


def loader(model: Any, indices: Any) -> Any:
    return model._make_data_loader(adata=model.adata, indices=indices, batch_size=128)


@pytest.fixture(scope="module")
def labelled(cells_path: Path) -> Any:
    data = {"path": str(cells_path), "genes": {"top_variance": 12}, "labels": "cell_type"}
    return WORKLOAD.prepare(data, {"validation": 0.2, "seed": 1})


def trained(labelled: Any, **params: Any) -> Any:
    with quiet():
        seed_all(0)
        return train(Trial(params={}), labelled, {**ONE_LATENT, **params}).model


class LinearGaussian(torch.nn.Module):
    """``z ~ N(0, I), x | z ~ N(W z, s^2 I)`` with orthogonal columns of W, and a slightly too wide posterior."""

    device = torch.device("cpu")
    widened = 1.15

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight = torch.linalg.qr(torch.randn(20, 4))[0] * torch.tensor([0.5, 1.0, 2.0, 3.0])
        self.noise = 0.7
        self.z_encoder = SimpleNamespace(z_transformation=lambda z: z)

    def _get_inference_input(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": batch["X"]}

    def inference(self, x: torch.Tensor) -> dict[str, Any]:
        precision = 1 + self.weight.square().sum(0) / self.noise**2
        posterior = Normal((x @ self.weight) / self.noise**2 / precision, self.widened * precision.rsqrt())
        return {"qz": posterior, "ql": None, "library": torch.zeros(len(x), 1)}

    def _get_generative_input(self, batch: dict[str, torch.Tensor], drawn: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"z": drawn["z"]}

    def generative(self, z: torch.Tensor) -> dict[str, Any]:
        return {"px": Normal(z @ self.weight.T, self.noise)}


def test_linear_gaussian_model_agrees_with_its_closed_form_to_a_thousandth_of_a_nat() -> None:
    module = LinearGaussian()
    torch.manual_seed(4)
    x = torch.randn(400, 4) @ module.weight.T + module.noise * torch.randn(400, 20)
    covariance = module.weight @ module.weight.T + module.noise**2 * torch.eye(20)
    exact = MultivariateNormal(torch.zeros(20).double(), covariance.double()).log_prob(x.double())
    scores = score_cells(module, [{"X": x[:300]}, {"X": x[300:]}], draws=3000)
    assert float(scores.log_likelihood.mean()) == pytest.approx(float(exact.mean()), abs=1e-3)
    assert float((scores.log_likelihood - exact).abs().max()) < 0.05
    se = se_over_draws(scores.draw_variance)
    assert se is not None
    assert se < 1e-3
    assert abs(float((scores.log_likelihood - exact).mean())) < 4 * se
    posterior = module.inference(x)["qz"]
    divergence = torch.distributions.kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1)
    residual = (x - posterior.loc @ module.weight.T).square().sum(-1)
    spread = (posterior.scale.square() * module.weight.square().sum(0)).sum(-1)
    constant = 10 * math.log(2 * math.pi * module.noise**2)
    reconstruction = constant + (residual + spread) / (2 * module.noise**2)
    torch.testing.assert_close(scores.reconstruction.mean(), reconstruction.double().mean(), rtol=0, atol=0.02)
    elbo = (reconstruction + divergence).double().mean()
    torch.testing.assert_close(scores.negative_elbo.mean(), elbo, rtol=0, atol=0.02)


def _decoded(module: Any, batch: dict[str, torch.Tensor], grid: torch.Tensor) -> torch.Tensor:
    """Return ``log p(x | z)`` of every cell at every point of a grid, shape ``(n_points, n_cells)``."""
    cells, points = len(batch["X"]), len(grid)
    z = grid.repeat_interleave(cells)[:, None]
    x, batches = batch["X"].repeat(points, 1), batch["batch"].repeat(points, 1)
    library = torch.log(x.sum(1, keepdim=True))
    with torch.no_grad():
        generated = module.generative(z=z, library=library, batch_index=batches, y=batch["labels"].repeat(points, 1))
    return generated["px"].log_prob(x).sum(-1).double().view(points, cells)


GRID = torch.linspace(-9, 9, 1201)
STEP = float(GRID[1] - GRID[0])


@pytest.mark.parametrize("model", ["SCVI", "LinearSCVI"])
@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
def test_likelihood_is_the_integral_over_one_latent_dimension(labelled: Any, model: str, loss: str) -> None:
    """``p(x) = int p(x | z) N(z; 0, 1) dz`` on a grid, through scvi-tools' own decoder and distributions."""
    fitted = trained(labelled, model=model, reconstruction_loss=loss)
    fitted.module.z_encoder.var_eps = 9.0  # so wide that no tail is missed: the integral does not depend on it
    positions = labelled.split.validation
    batch = next(iter(loader(fitted, positions)))
    prior = Normal(0.0, 1.0).log_prob(GRID.double())[:, None]
    exact = torch.logsumexp(_decoded(fitted.module, batch, GRID) + prior, dim=0) + math.log(STEP)
    seed_all(1)
    scores = score_part(fitted, positions, "validation", draws=20_000, epoch=1)
    assert scores.se_draws is not None
    difference = float((scores.cells.log_likelihood - exact).mean())
    assert abs(difference) < 0.005 + 4 * scores.se_draws
    assert scores.metrics["marginal_ll"].value == -float(scores.cells.log_likelihood.mean())


def _integral_of_scanvi(module: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return ``log p(x)`` of SCANVI with one latent dimension: two integrals and a sum over labels."""
    labels = module.n_labels
    density = torch.zeros(len(GRID), dtype=torch.float64)
    inner = torch.linspace(-6, 6, 801)
    weight = Normal(0.0, 1.0).log_prob(inner.double()).exp() * float(inner[1] - inner[0])
    for code in range(labels):
        one_hot = torch.nn.functional.one_hot(torch.full((len(inner),), code), labels)
        with torch.no_grad():
            mean, variance = module.decoder_z1_z2(inner[:, None], one_hot)
        conditional = Normal(mean.double().T, variance.double().sqrt().T).log_prob(GRID.double()[:, None]).exp()
        density += (conditional @ weight) / labels
    return torch.logsumexp(_decoded(module, batch, GRID) + density.log()[:, None], dim=0) + math.log(STEP)


def test_likelihood_of_scanvi_is_the_integral_and_scvi_tools_is_off(labelled: Any) -> None:
    fitted = trained(labelled, model="SCANVI", max_epochs=25)
    positions = labelled.split.validation
    exact = _integral_of_scanvi(fitted.module, next(iter(loader(fitted, positions))))
    seed_all(1)
    scores = score_part(fitted, positions, "validation", draws=4000, epoch=1)
    assert scores.se_draws is not None
    assert float((scores.cells.log_likelihood - exact).mean()) == pytest.approx(0, abs=0.01 + 4 * scores.se_draws)
    theirs = fitted.get_marginal_ll(indices=positions, n_mc_samples=100, return_mean=False).double()
    assert abs(float((theirs - exact).mean())) > 0.2


def test_elbo_of_scanvi_is_that_of_scvi_tools(labelled: Any) -> None:
    fitted = trained(labelled, model="SCANVI", n_latent=4)
    positions = labelled.split.validation
    seed_all(1)
    scores = score_part(fitted, positions, "validation", draws=300, epoch=1)
    theirs = [-float(fitted.get_elbo(indices=positions)) for _ in range(60)]
    tolerance = 4 * np.std(theirs) / math.sqrt(len(theirs)) + 0.01
    assert scores.metrics["elbo"].value == pytest.approx(np.mean(theirs), abs=tolerance)
    assert scores.metrics["marginal_ll"].value < scores.metrics["elbo"].value


@pytest.mark.parametrize("which", ["observed_library", "latent_library"])
def test_reconstruction_is_that_of_scvi_tools(which: str, request: pytest.FixtureRequest) -> None:
    fitted = request.getfixturevalue(which).model
    positions = fitted.validation_indices
    seed_all(1)
    ours = score_part(fitted, positions, "validation", draws=200, epoch=1).metrics["reconstruction"]
    found = [fitted.get_reconstruction_error(indices=positions) for _ in range(30)]
    theirs = [float(value["reconstruction_loss"]) for value in found]  # its docstring says the negative
    assert ours.value == pytest.approx(np.mean(theirs), abs=4 * np.std(theirs) / math.sqrt(30) + 0.02)


@pytest.mark.parametrize("draws", [2, 3, 40])
def test_jackknife_is_leaving_out_one_draw_at_a_time(draws: int) -> None:
    torch.manual_seed(0)
    log_weights = torch.randn(draws, 7, dtype=torch.float64) * 4 - 900
    log_weights[1, 3] += 60  # one draw is nearly the whole sum
    left_out = torch.stack(
        [
            torch.logsumexp(torch.cat([log_weights[:k], log_weights[k + 1 :]]), dim=0) - math.log(draws - 1)
            for k in range(draws)
        ]
    )
    expected = (left_out - left_out.mean(dim=0)).square().sum(dim=0) * (draws - 1) / draws
    found = jackknife_variance(log_weights)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert jackknife_variance(log_weights[:1]) is None


def test_error_over_draws_is_the_spread_of_repeated_estimates(observed_library: Any) -> None:
    model = observed_library.model
    positions = model.validation_indices[:40]
    seed_all(0)
    scores = [score_part(model, positions, "validation", draws=50, epoch=1) for _ in range(60)]
    spread = np.std([part.metrics["marginal_ll"].value for part in scores], ddof=1)
    said = np.sqrt(np.mean([(part.se_draws or math.nan) ** 2 for part in scores]))
    assert said == pytest.approx(
        spread, rel=0.5
    )  # 60 repeats: the spread itself is known to a tenth; weights have tails
    alone = score_part(model, positions, "validation", draws=1, epoch=1)
    assert alone.se_draws is None


def test_error_over_groups_is_the_sandwich() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0, 5.0], dtype=torch.float64)
    groups = ["a", "a", "a", "b", "b", "c"]
    mean = 14 / 6
    sums = [3 * (1 - mean), 2 * (3 - mean), 5 - mean]
    assert cluster_se(values, groups) == pytest.approx(math.sqrt(1.5 * sum(s * s for s in sums)) / 6)
    assert cluster_se(values, ["a"] * 6) is None
    single = cluster_se(values, list("uvwxyz"))
    assert single == pytest.approx(float(values.std(correction=1)) / math.sqrt(6))  # each cell a group: the usual one


def test_split_by_groups_says_the_error_over_groups(cells_path: Path) -> None:
    data = {"path": str(cells_path), "genes": {"top_variance": 20}}
    params = {"n_hidden": 8, "max_epochs": 2, "marginal_ll_draws": 5}
    facts = {}
    for share in (0.25, 0.5):
        cells = WORKLOAD.prepare(data, {"by": "donor_id", "validation": share})
        facts[len(cells.split.validation_groups)] = WORKLOAD.run(Trial(params=params, data=cells)).facts
    assert facts[1]["marginal_ll_se_groups"] is None
    assert facts[2]["marginal_ll_se_groups"] > 0


def test_modules_draw_from_scvi_tools_own_distributions(labelled: Any) -> None:
    """The known answers of `test_scvi_likelihood` are of these classes."""
    from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

    kinds = {"zinb": ZeroInflatedNegativeBinomial, "nb": NegativeBinomial, "poisson": Poisson}
    for loss, kind in kinds.items():
        model = trained(labelled, reconstruction_loss=loss, max_epochs=1)
        batch = next(iter(loader(model, labelled.split.validation)))
        module = model.module
        inferred = module.inference(**module._get_inference_input(batch))
        assert type(module.generative(**module._get_generative_input(batch, inferred))["px"]) is kind
