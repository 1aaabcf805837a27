"""Imputation: known imputers, a known decoder and posterior, and a model that has never seen what it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.distributions import Normal

from autotune.errors import DataError
from workers.reporting import Trial, TrialStopped
from workers.workloads.cells.corruption import Corruption, corrupt
from workers.workloads.fields import defaults
from workers.workloads.scvi import imputation
from workers.workloads.scvi.imputation import (
    cell_medians,
    corrupted_cells,
    impute,
    impute_as_published,
    median_se,
    predict_rates,
    score,
)
from workers.workloads.scvi.quiet import quiet
from workers.workloads.scvi.space import FIELDS
from workers.workloads.scvi.training import seed_all, train

pytestmark = pytest.mark.heavy

CONFIG: dict[str, Any] = {
    **defaults(FIELDS),
    "n_hidden": 16,
    "n_latent": 3,
    "max_epochs": 2,
    "lr": 0.01,
    "n_epochs_kl_warmup": None,
}


def by_hand(after: Any, before: Any) -> Corruption:
    """Return the corruption that leads from one small matrix to another."""
    after, before = np.asarray(after, dtype=np.float32), np.asarray(before, dtype=np.float32)
    made = corrupt(sparse.csr_matrix(before), "uniform", 0, 0)
    counts = made.counts.copy()
    counts.data = after[before > 0]
    rows, columns = np.nonzero(after != before)
    return replace(
        made,
        counts=counts,
        rows=rows.astype(np.int32),
        columns=columns.astype(np.int32),
        original=before[rows, columns],
        n_chosen=len(rows),
    )


def all_of(corruption: Corruption) -> Any:
    return np.arange(corruption.counts.shape[0])


# Three cells: errors of the constant 2 are {1, 3} -> 2, {2} -> 2 and {0, 1, 7} -> 1; the fourth has no corrupted entry.
BEFORE = [[3, 5, 1, 0], [4, 1, 1, 0], [2, 1, 9, 0], [1, 1, 1, 1]]
AFTER = [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
SMALL = by_hand(AFTER, BEFORE)


# --- scores


def test_imputer_that_knows_the_answer_has_no_error() -> None:
    found = score(SMALL, SMALL.original.astype(float), cells=all_of(SMALL))
    assert (found.median, found.mean, found.n_cells, found.n_entries) == (0, 0, 3, 6)


def test_constant_imputer_has_the_error_worked_out_by_hand() -> None:
    found = score(SMALL, np.full(6, 2.0), cells=all_of(SMALL))
    assert found.median == 2
    assert found.mean == pytest.approx(5 / 3)
    assert found.mean_se == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))
    assert (found.n_cells, found.n_entries) == (3, 6)


def test_leaving_the_counts_as_they_are_is_an_error_of_what_was_lost() -> None:
    found = score(SMALL, np.zeros(6), cells=all_of(SMALL))
    assert (found.median, found.mean) == (4, pytest.approx((4 + 4 + 2) / 3))


def test_only_the_cells_asked_for_are_scored() -> None:
    found = score(SMALL, np.full(4, 2.0), cells=np.array([1, 2, 3]))
    assert (found.median, found.n_cells, found.n_entries) == (1.5, 2, 4)


def test_published_median_collapses_to_zero_where_most_cells_lost_nothing() -> None:
    """One entry in a hundred changes in the uniform kind: with few genes most cells have none."""
    counts = sparse.csr_matrix(np.full((400, 20), 5, dtype=np.float32))
    made = corrupt(counts, "uniform", 0.1, 0)
    wrong = np.zeros(len(made.rows))
    honest = score(made, wrong, cells=all_of(made))
    published = score(made, wrong, cells=all_of(made), empty_as_zero=True)
    assert len(np.unique(made.rows)) < 200
    assert (published.median, published.n_cells) == (0, 400)
    assert (honest.median, honest.mean, honest.n_cells) == (5, 5, len(np.unique(made.rows)))
    assert published.mean == pytest.approx(5 * honest.n_cells / 400)


def test_no_cell_to_score_is_said() -> None:
    with pytest.raises(DataError, match=r"no held-out cell has a corrupted entry .* raise imputation_rate"):
        score(SMALL, np.zeros(0), cells=np.array([3]))


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), min_size=1, max_size=40))
def test_medians_of_cells_are_medians(entries: list[tuple[int, float]]) -> None:
    entries.sort(key=lambda entry: entry[0])
    rows, errors = np.array([row for row, _ in entries]), np.array([error for _, error in entries])
    expected = [np.median(errors[rows == row]) for row in np.unique(rows)]
    np.testing.assert_allclose(cell_medians(rows, errors), expected)


@pytest.mark.parametrize(("n", "tolerance"), [(3, 0.02), (11, 0.02), (101, 0.02), (100, 0.05)])
def test_error_of_the_median_is_that_of_a_bootstrap(n: int, tolerance: float) -> None:
    """Exact for odd n; for even n the mean of the middle two is a little steadier than the weights say."""
    generator = np.random.default_rng(n)
    values = generator.uniform(size=n)
    drawn = np.median(generator.choice(values, size=(40_000, n)), axis=1).std()
    assert median_se(values) == pytest.approx(drawn, rel=tolerance)


def test_error_of_the_median_of_normal_values_is_known() -> None:
    samples = np.random.default_rng(0).normal(size=(300, 501))
    errors = [median_se(sample) or math.nan for sample in samples]
    assert np.mean(errors) == pytest.approx(math.sqrt(math.pi / 2 / 501), rel=0.05)
    assert np.mean(errors) == pytest.approx(np.median(samples, axis=1).std(), rel=0.1)


def test_error_of_the_median_of_one_value_is_not_known() -> None:
    assert median_se(np.ones(1)) is None
    assert median_se(np.full(9, 3.0)) == 0


# --- predictions of a known model


class Known:
    """A model with a known posterior, ``z ~ N(first count, 1)``, and a known rate per draw, cell and gene.

    Args:
        counts: Of its table.
        rate: Takes counts, draws of z and log library size, one row each, and gives the rates.
        library: Posterior of the log library size; None: observed.
    """

    gene_likelihood = "nb"
    device = torch.device("cpu")
    training = True

    def __init__(self, counts: Any, rate: Any, library: Normal | None = None) -> None:
        self.module, self.adata = self, SimpleNamespace(X=counts)
        self.z_encoder = SimpleNamespace(z_transformation=lambda z: z)
        self._rate, self._library, self.draws = rate, library, 0

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def _make_data_loader(self, *, adata: Any, indices: Any, batch_size: int) -> Iterator[dict[str, Any]]:
        for start in range(0, len(indices), batch_size):
            rows = indices[start : start + batch_size]
            yield {"X": torch.from_numpy(adata.X[rows].toarray()), "absent": None}

    def _get_inference_input(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {"x": tensors["X"]}

    def inference(self, x: torch.Tensor) -> dict[str, Any]:
        mean, library = x[:, :1], self._library
        ql = None if library is None else Normal(library.loc.expand(len(x), 1), library.scale.expand(len(x), 1))
        return {"qz": Normal(mean, torch.ones_like(mean)), "ql": ql, "library": x.sum(1, keepdim=True).log()}

    def _get_generative_input(self, tensors: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {"x": tensors["X"], **drawn}

    def generative(self, x: torch.Tensor, z: torch.Tensor, library: torch.Tensor) -> dict[str, Any]:
        assert not self.training
        self.draws += len(z)
        return {"px": SimpleNamespace(mu=self._rate(x, z, library))}


def random_corruption(n_cells: int = 60, n_genes: int = 8) -> Corruption:
    counts = np.random.default_rng(0).poisson(1.0, size=(n_cells, n_genes)).astype(np.float32)
    return corrupt(sparse.csr_matrix(counts), "binomial", 0.5, 0)


@pytest.mark.parametrize("cells_at_a_time", [1, 7, 128])
def test_each_prediction_is_that_of_its_own_entry(cells_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imputation, "_CELLS", cells_at_a_time)
    made = random_corruption()
    model = Known(made.counts, lambda x, z, library: 10 * x + torch.arange(8))
    cells = np.arange(0, 60, 2)
    kept = made.rows % 2 == 0
    found = predict_rates(model, made, cells=cells, draws=3)
    corrupted = made.counts.toarray()[made.rows, made.columns]
    np.testing.assert_allclose(found, (10 * corrupted + made.columns)[kept])
    assert model.training
    assert model.draws == 3 * len(np.unique(made.rows[kept]))  # cells without corrupted entries are not looked at


@pytest.mark.parametrize("max_elements", [1, 500, 2_000_000])
def test_prediction_is_the_mean_of_the_rate_over_the_posterior(
    max_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``z ~ N(m, 1)`` the mean of ``exp(z)`` is ``exp(m + 1/2)``: the rate at the mean of z would be wrong."""
    monkeypatch.setattr(imputation, "MAX_ELEMENTS", max_elements)
    torch.manual_seed(0)
    made = by_hand([[1, 0], [2, 0]], [[1, 1], [2, 1]])
    model = Known(made.counts, lambda x, z, library: torch.exp(z / 2).expand(-1, 2))
    found = predict_rates(model, made, cells=all_of(made), draws=4000)
    means = np.exp(np.array([1, 2]) / 2 + 1 / 8)
    errors = means * math.sqrt(math.expm1(1 / 4) / 4000)
    assert model.draws == 8000
    assert (np.abs(found - means) < 5 * errors).all()
    assert (np.abs(found - np.exp(np.array([1, 2]) / 2)) > 5 * errors).all()


def test_latent_library_size_is_drawn_too() -> None:
    torch.manual_seed(0)
    made = by_hand([[1, 0]], [[1, 1]])
    model = Known(made.counts, lambda x, z, library: library.exp().expand(-1, 2), Normal(1.0, 0.5))
    found = predict_rates(model, made, cells=all_of(made), draws=20_000)
    mean = math.exp(1 + 0.125)
    assert found[0] == pytest.approx(mean, abs=5 * mean * math.sqrt(math.expm1(0.25) / 20_000))


def test_observed_library_size_is_that_of_the_corrupted_counts() -> None:
    made = by_hand([[4, 0]], [[4, 3]])
    model = Known(made.counts, lambda x, z, library: library.exp().expand(-1, 2))
    assert predict_rates(model, made, cells=all_of(made), draws=1) == pytest.approx(4)


def test_rate_that_is_no_number_is_not_a_number() -> None:
    made = by_hand([[1, 0]], [[1, 1]])
    model = Known(made.counts, lambda x, z, library: torch.full((len(x), 2), math.inf))
    with pytest.raises(FloatingPointError, match="rate is NaN or infinite"):
        predict_rates(model, made, cells=all_of(made), draws=1)


def test_nothing_to_predict_is_nothing() -> None:
    made = by_hand([[1, 1]], [[1, 1]])
    assert len(predict_rates(Known(made.counts, None), made, cells=all_of(made), draws=1)) == 0


# --- real models


@pytest.mark.parametrize("which", ["observed", "latent"])
def test_prediction_is_scvi_tools_own_rate(which: str, request: pytest.FixtureRequest) -> None:
    """Every stored entry of some cells is asked for; ``library_size="latent"`` is scvi-tools' name for px_rate."""
    model = request.getfixturevalue(f"{which}_library").model
    cells = np.arange(0, 40)
    counts = model.adata.X.tocsr()
    rows, columns = (index.astype(np.int32) for index in counts[cells].nonzero())
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    asked = replace(
        corrupt(counts, "uniform", 0, 0), rows=rows, columns=columns, original=np.ones(len(rows), np.float32)
    )
    seed_all(1)
    ours = predict_rates(model, asked, cells=cells, draws=1500)
    seed_all(2)
    theirs = model.get_normalized_expression(
        indices=cells, library_size="latent", n_samples=1500, return_mean=True, return_numpy=True
    )[rows, columns]
    ratio = ours / theirs
    assert np.median(ratio) == pytest.approx(1, abs=0.005)
    assert np.abs(np.log(ratio)).max() < 0.2


def changed_originals(prepared: Any, corruption: Corruption) -> Any:
    """Return the cells with other clean counts at the corrupted entries."""
    counts = prepared.cells.counts.copy()
    at = sparse.csr_matrix((np.full(len(corruption.rows), 7, np.float32), (corruption.rows, corruption.columns)),
                           shape=counts.shape)  # fmt: skip
    return replace(prepared, cells=replace(prepared.cells, counts=(counts + at).tocsr()))


@pytest.mark.parametrize("params", [{}, {"use_observed_lib_size": False, "reconstruction_loss": "nb"}])
def test_fresh_model_has_not_seen_the_clean_counts(prepared: Any, params: dict[str, Any]) -> None:
    """Whatever was there before, the predictions are the same bits; those of the published way are not."""
    made = corrupt(prepared.cells.counts, "uniform", 0.3, 0)
    other = changed_originals(prepared, made)
    cells, trial, config = prepared.split.validation, Trial(params={}, seed=3), {**CONFIG, **params}
    assert abs(other.cells.counts - prepared.cells.counts).sum() == 7 * len(made.rows)
    with quiet():
        first, second = (impute(trial, data, config, made, cells=cells, draws=25) for data in (prepared, other))
        np.testing.assert_array_equal(first.rates, second.rates)
        seen = []
        for data in (prepared, other):
            seed_all(3)
            clean = train(replace(trial, send=lambda step, metrics: None), data, config)
            seen.append(impute_as_published(trial, data, config, made, clean, cells=cells))
    assert not np.array_equal(seen[0].rates, seen[1].rates)


def test_checkpoint_of_the_first_training_is_left_alone(prepared: Any) -> None:
    class Clean:
        def load(self) -> Path | None:
            raise AssertionError("it belongs to a model that saw the clean counts")

        wanted = save = load

    made = corrupt(prepared.cells.counts, "uniform", 0.3, 0)
    trial = Trial(params={}, checkpoint=Clean())  # type: ignore[arg-type]
    with quiet():
        found = impute(trial, prepared, CONFIG, made, cells=prepared.split.validation, draws=25)
    assert found.n_epochs in (1, 2)


def test_reports_come_behind_those_of_the_first_training(prepared: Any) -> None:
    sent: list[tuple[int, set[str]]] = []
    made = corrupt(prepared.cells.counts, "uniform", 0.3, 0)
    trial = Trial(params={}, send=lambda step, values: sent.append((step, set(values))))
    with quiet():
        impute(trial, prepared, CONFIG, made, cells=prepared.split.validation, draws=25, after=10)
        clean = train(replace(trial, send=lambda step, metrics: None), prepared, CONFIG)
        impute_as_published(trial, prepared, CONFIG, made, clean, cells=prepared.split.validation, after=20)
    both = {"imputation_elbo_train", "imputation_elbo_validation", "imputation_elbo_validation_batch"}
    assert sent[:2] == [(11, both), (12, both)]
    assert sent[2:] == [(21 + i, {"imputation_elbo_train"}) for i in range(clean.n_epochs)]


@pytest.mark.parametrize("published", [False, True])
def test_stop_is_obeyed(prepared: Any, published: bool) -> None:
    def stop(step: int, values: Mapping[str, float]) -> None:
        raise TrialStopped("cancelled")

    made = corrupt(prepared.cells.counts, "uniform", 0.3, 0)
    trial, cells = Trial(params={}, send=stop), prepared.split.validation
    with quiet():
        clean = train(replace(trial, send=lambda step, metrics: None), prepared, CONFIG)
        way = partial(impute_as_published, trained=clean) if published else partial(impute, draws=25)
        with pytest.raises(TrialStopped):
            way(trial, prepared, CONFIG, made, cells=cells)


def emptied(prepared: Any, cells: list[int]) -> Corruption:
    """Return a corruption after which these cells have no counts."""
    counts = prepared.cells.counts
    values = counts.data.copy()
    rows = np.repeat(np.arange(counts.shape[0], dtype=np.int32), np.diff(counts.indptr))
    lost = np.isin(rows, cells)
    values[lost] = 0
    made = corrupt(counts, "uniform", 0, 0)
    return replace(
        made,
        counts=sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape),
        rows=rows[lost],
        columns=counts.indices[lost].astype(np.int32),
        original=counts.data[lost],
    )


@pytest.mark.parametrize("use_observed", [True, False])
@pytest.mark.parametrize("published", [False, True])
def test_cell_that_lost_all_counts_does_not_break_the_training(
    prepared: Any, use_observed: bool, published: bool
) -> None:
    """It is left out of training and validation, and still scored: with an observed library of 0 its rates are 0."""
    train_cell, held_out = int(prepared.split.train[4]), int(prepared.split.validation[2])
    made = emptied(prepared, [train_cell, held_out])
    config, cells = {**CONFIG, "use_observed_lib_size": use_observed}, np.sort([train_cell, held_out])
    trial = Trial(params={})
    with quiet():
        if published:
            clean = train(replace(trial, send=lambda step, metrics: None), prepared, config)
            found = impute_as_published(trial, prepared, config, made, clean, cells=cells)
        else:
            found = impute(trial, prepared, config, made, cells=cells, draws=25)
    left = corrupted_cells(prepared, made).split
    assert found.n_emptied == 2
    assert train_cell not in left.train
    assert held_out not in left.validation
    assert len(left.train) == len(prepared.split.train) - 1
    assert np.isfinite(found.rates).all()
    assert (found.rates == 0).all() == use_observed
    assert score(made, found.rates, cells=cells).n_cells == 2


def test_part_without_counts_is_said(prepared: Any) -> None:
    made = emptied(prepared, list(prepared.split.validation))
    with pytest.raises(DataError, match="lower imputation_rate"):
        corrupted_cells(prepared, made)


def test_corrupted_counts_are_shared_with_the_model(prepared: Any) -> None:
    from workers.workloads.scvi.models import build_model

    made = corrupt(prepared.cells.counts, "uniform", 0.3, 0)
    model = build_model(corrupted_cells(prepared, made), CONFIG)
    assert np.shares_memory(model.adata.X.data, made.counts.data)
