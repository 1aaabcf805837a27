"""A configuration on trial: trained as in the search, then scored on the test part, and as an imputer.

Light to import, as the settings are checked at launch; torch comes with the first evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from autotune.errors import CampaignError, ObjectiveError
from workers.reporting import Metric, Result, Trial
from workers.workloads.base import MetricSpec
from workers.workloads.cells.corruption import KINDS, Corruption, corrupt
from workers.workloads.cells.prepared import PreparedCells
from workers.workloads.fields import Field, check_values, defaults
from workers.workloads.scvi.space import METRICS as RUN_METRICS
from workers.workloads.scvi.space import SEMI_SUPERVISED

if TYPE_CHECKING:
    from workers.workloads.scvi.imputation import Cells, Imputation, Imputed
    from workers.workloads.scvi.models import Trained
    from workers.workloads.scvi.scores import PartScores

HONEST, PUBLISHED = "honest", "published"

SETTINGS: dict[str, Field] = {
    "imputation": Field(kind="choice", default="uniform", choices=KINDS, optional=True),
    "imputation_rate": Field(kind="float", default=0.1, above=0, high=1),
    "imputation_draws": Field(kind="int", default=25, low=25),
    "imputation_seed": Field(kind="int", default=0, low=0, high=2**32 - 1),
    "imputation_protocol": Field(kind="choice", default=HONEST, choices=(HONEST, PUBLISHED)),
    "marginal_ll_draws": Field(kind="int", default=1000, low=1, optional=True),
}

METRICS: dict[str, MetricSpec] = {
    **RUN_METRICS,
    "marginal_ll_test": MetricSpec(
        mode="min",
        split="test",
        description="negative marginal log-likelihood per test cell, importance sampling, nats",
    ),
    "elbo_test": MetricSpec(
        mode="min", split="test", description="negative ELBO per test cell at the best epoch, nats"
    ),
    "reconstruction_test": MetricSpec(
        mode="min",
        split="test",
        description="reconstruction term of the negative ELBO per test cell at the best epoch, nats",
    ),
    "accuracy_test": MetricSpec(
        mode="max", split="test", description="share of test cells whose label is right (SCANVI only)"
    ),
    "imputation_median": MetricSpec(
        mode="min",
        split="test",
        description="median over test cells of the median absolute error over a cell's corrupted entries, counts",
    ),
    "imputation_mean": MetricSpec(
        mode="min",
        split="test",
        description="mean over test cells of the median absolute error over a cell's corrupted entries, counts",
    ),
}

_MOST_GROUPS = 500
_ESTIMATORS = {
    HONEST: "fresh model on corrupted counts; {} over cells of the cell's median absolute error",
    PUBLISHED: "2019: clean model trained on, cells without corrupted entries count 0;"
    " {} over cells of the cell's median absolute error",
}


def evaluation_settings() -> dict[str, Any]:
    """Return the settings of an evaluation and their defaults; ``marginal_ll_draws`` null: as in the search."""
    return defaults(SETTINGS)


def evaluation_metrics() -> Mapping[str, MetricSpec]:
    """Return every metric that an evaluation returns; those of imputation unless ``imputation`` is null."""
    return METRICS


def check_evaluation(settings: Mapping[str, Any]) -> None:
    """Check settings; raises `CampaignError`."""
    check_values("evaluation", SETTINGS, settings)


def evaluate_trial(
    trial: Trial, prepared: PreparedCells, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> Result:
    """Train one configuration as a run does, score it on the test part too, and as an imputer.

    Where there is no test part, the ``*_test`` metrics are those of the validation part, and say so in their
    ``split``; imputation is then scored on all cells. The test cells take no part in any training.

    Args:
        trial: Gives seed, device and threads, and takes the reports of both trainings.
        prepared: Cells and split, unsealed.
        config: Every parameter and setting, checked.
        settings: See `SETTINGS`; those that are absent have their defaults.

    Raises:
        CampaignError: On a wrong setting, or one that the model cannot serve.
        ObjectiveError: If the test part is sealed.
        DataError: If no cell can be scored as imputed.
        TrialStopped: Passed on from the trial.
        FloatingPointError: If training or scoring gave NaN or infinity.
    """
    check_evaluation(settings)
    chosen = {**evaluation_settings(), **settings}
    split = prepared.split
    if split.n_test and not len(split.test):
        raise ObjectiveError("the test part is sealed: it is opened by `autotune benchmark`, once")
    if chosen["imputation"] and chosen["imputation_protocol"] == PUBLISHED and config["model"] == SEMI_SUPERVISED:
        raise CampaignError("imputation_protocol: published is not there for SCANVI, which the study did not have")
    corruption = _corruption(prepared, chosen)
    draws = chosen["marginal_ll_draws"] or config["marginal_ll_draws"]
    from workers.workloads.scvi.training import train_and_score

    trained, result = train_and_score(trial, prepared, {**config, "marginal_ll_draws": draws})
    tested = _tested(trial, prepared, config, trained, result, draws)
    imputed = Result(metrics={})
    if corruption is not None:
        imputed = _imputed(trial, prepared, config, chosen, corruption, trained)
    return Result(
        metrics={**result.metrics, **tested.metrics, **imputed.metrics},
        facts={**result.facts, "n_test": split.n_test, **tested.facts, **imputed.facts},
    )


def _corruption(prepared: PreparedCells, chosen: Mapping[str, Any]) -> Corruption | None:
    """Return the corruption asked for; before any training, so that one that cannot be scored costs none.

    Raises:
        DataError: If no cell can be scored.
    """
    if chosen["imputation"] is None:
        return None
    made = corrupt(
        prepared.cells.counts, chosen["imputation"], chosen["imputation_rate"], int(chosen["imputation_seed"])
    )
    from workers.workloads.scvi.imputation import check_scorable, entries_of

    cells, _ = _scored_cells(prepared, chosen)
    check_scorable(len(entries_of(made, cells)[0]), made)
    return made


def _tested(
    trial: Trial, prepared: PreparedCells, config: Mapping[str, Any], trained: Trained, result: Result, draws: int
) -> Result:
    """Return metrics and facts of the test part, or of the validation part where there is none."""
    split, epoch = prepared.split, trained.n_epochs
    if not split.n_test:
        same = {"marginal_ll": "marginal_ll", "elbo": "elbo_validation", "reconstruction": "reconstruction_validation"}
        same |= {"accuracy": "accuracy_validation"} if "accuracy_validation" in result.metrics else {}
        return Result(metrics={f"{name}_test": result.metrics[there] for name, there in same.items()})
    from workers.workloads.scvi.quiet import quiet
    from workers.workloads.scvi.scores import accuracy, score_part, se_over_groups
    from workers.workloads.scvi.training import seed_all

    with quiet():
        seed_all(trial.seed)
        scores = score_part(trained.model, split.test, "test", draws=draws, epoch=epoch)
        metrics = {f"{name}_test": metric for name, metric in scores.metrics.items()}
        if config["model"] == SEMI_SUPERVISED:
            labels = prepared.cells.obs[prepared.spec.labels or ""]
            found = accuracy(trained.model, labels, split.test, "test", epoch=epoch)
            metrics |= {} if found is None else {"accuracy_test": found}
    facts: dict[str, Any] = {"marginal_ll_test_se_draws": scores.se_draws}
    if split.by is not None:
        facts["marginal_ll_test_se_groups"] = se_over_groups(scores, prepared, split.test)
        facts["test_groups"] = _by_group(prepared, scores, trial.metric)
    return Result(metrics=metrics, facts=facts)


def _by_group(prepared: PreparedCells, scores: PartScores, metric: str) -> dict[str, list[float]]:
    """Return group -> [number of test cells, mean of the trial's metric]; the first 500 groups by name.

    The metric is the trial's where that is a likelihood, else ``marginal_ll_test``. With more groups than that their
    means do not add up to the metric, and tables go by single cells.
    """
    own = {"elbo_test": scores.cells.negative_elbo, "reconstruction_test": scores.cells.reconstruction}
    values = own.get(metric, -scores.cells.log_likelihood)
    groups = prepared.cells.obs[prepared.split.by or ""][prepared.split.test]
    names, codes, numbers = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.bincount(codes, weights=values.numpy(), minlength=len(names))
    means = sums / numbers
    found = {}
    for name, number, mean in list(zip(names, numbers, means, strict=True))[:_MOST_GROUPS]:
        found[str(name).replace("\0", " ").lstrip("$")] = [int(number), float(mean)]
    return found


def _imputed(
    trial: Trial,
    prepared: PreparedCells,
    config: Mapping[str, Any],
    chosen: Mapping[str, Any],
    corruption: Corruption,
    trained: Trained,
) -> Result:
    """Return metrics and facts of imputation."""
    from workers.workloads.scvi.imputation import impute, impute_as_published, score
    from workers.workloads.scvi.quiet import quiet

    published, after = chosen["imputation_protocol"] == PUBLISHED, trained.n_epochs_run
    cells, part = _scored_cells(prepared, chosen)
    draws = 1 if published else int(chosen["imputation_draws"])
    with quiet():
        if published:
            made = impute_as_published(trial, prepared, config, corruption, trained, cells=cells, after=after)
        else:
            made = impute(trial, prepared, config, corruption, cells=cells, draws=draws, after=after)
    found = score(corruption, made.rates, cells=cells, empty_as_zero=published)
    return Result(
        metrics=_imputation_metrics(found, made, chosen["imputation_protocol"], part, draws),
        facts={
            "n_scored_cells": found.n_cells,
            "n_corrupted": len(corruption.rows),
            "n_compared": found.n_entries,
            "n_emptied_cells": made.n_emptied,
            "n_epochs_imputation": made.n_epochs,
            "corruption_sha256": corruption.sha256,
            "imputation": {
                "kind": corruption.kind,
                "rate": corruption.rate,
                "seed": corruption.seed,
                "draws": draws,
                "protocol": chosen["imputation_protocol"],
            },
        },
    )


def _imputation_metrics(found: Imputation, made: Imputed, protocol: str, part: str, draws: int) -> dict[str, Metric]:
    """Return median and mean as metrics."""
    values = {"median": (found.median, found.median_se), "mean": (found.mean, found.mean_se)}
    return {
        f"imputation_{name}": Metric(
            value=value,
            se=se,
            split=part,
            estimator=_ESTIMATORS[protocol].format(name),
            draws=draws,
            epoch=made.n_epochs,
            n=found.n_cells,
        )
        for name, (value, se) in values.items()
    }


def _scored_cells(prepared: PreparedCells, chosen: Mapping[str, Any]) -> tuple[Cells, str]:
    """Return sorted positions of the cells that imputation is scored on, and the name of that part."""
    split = prepared.split
    if split.n_test and chosen["imputation_protocol"] == HONEST:
        return split.test, "test"
    return np.sort(np.concatenate([split.train, split.validation, split.test])), "all"
