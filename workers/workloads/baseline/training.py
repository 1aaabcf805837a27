"""One trial of the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from workers.reporting import Metric, Result, Trial, is_finite
from workers.workloads.baseline.features import LabelledCells
from workers.workloads.baseline.scores import accuracy, bootstrap_se, macro_f1

Matrix = npt.NDArray[np.float64]


def run_trial(trial: Trial, cells: LabelledCells, config: Mapping[str, Any]) -> Result:
    """Train on the training cells and score on the held-out cells.

    Reports ``macro_f1`` and ``accuracy`` once, at step 1.

    Args:
        trial: Gives seed and threads, and takes the report.
        cells: Features and labels.
        config: Every parameter and setting, checked.

    Raises:
        TrialStopped: Passed on from the trial.
        FloatingPointError: If the weights are not finite.
    """
    split, n_classes = cells.prepared.split, len(cells.classes)
    genes = np.sort(cells.gene_order[: config["n_genes"]])
    with threadpool_limits(limits=trial.threads):
        train, validation = standardised(
            cells.expression[split.train][:, genes].toarray(), cells.expression[split.validation][:, genes].toarray()
        )
        model, converged = _fit(train, cells.codes[split.train], config, trial.seed)
        predicted = model.predict(validation).astype(np.intp)
    truth = cells.codes[split.validation]
    if not is_finite(float(np.abs(model.coef_).sum())):
        raise FloatingPointError("weights of the logistic regression are not finite")
    values = {"macro_f1": macro_f1(truth, predicted, n_classes), "accuracy": accuracy(truth, predicted)}
    draws = config["bootstrap_draws"]
    f1_se, accuracy_se = bootstrap_se(truth, predicted, n_classes, draws=draws, seed=trial.seed)
    trial.report(1, **values)
    by = f"se by {draws} bootstrap draws"
    return Result(
        metrics={
            "macro_f1": Metric(
                value=values["macro_f1"],
                se=f1_se,
                split="validation",
                estimator=f"mean F1 of {n_classes} classes ({by})",
                n=len(truth),
            ),
            "accuracy": Metric(
                value=values["accuracy"],
                se=accuracy_se,
                split="validation",
                estimator=f"share of right labels ({by})",
                n=len(truth),
            ),
        },
        facts={
            "n_genes_used": len(genes),
            "n_classes": n_classes,
            "converged": converged,
            "n_iter": int(np.max(model.n_iter_)),
            "n_train": len(split.train),
            "n_validation": len(split.validation),
        },
    )


def standardised(train: npt.NDArray[np.float32], validation: npt.NDArray[np.float32]) -> tuple[Matrix, Matrix]:
    """Return both parts with mean 0 and variance 1 of the training part; constant genes become 0.

    Args:
        train: Shape ``(n_train, n_genes)``.
        validation: Shape ``(n_validation, n_genes)``.
    """
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1.0
    return (train - mean) / spread, (validation - mean) / spread


def _fit(features: Matrix, codes: npt.NDArray[np.intp], config: Mapping[str, Any], seed: int) -> tuple[Any, bool]:
    """Return a fitted model and whether it converged."""
    weight = None if config["class_weight"] == "none" else config["class_weight"]
    model = LogisticRegression(
        C=config["C"], class_weight=weight, max_iter=config["max_iter"], random_state=seed % 2**32
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, codes)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in said)
