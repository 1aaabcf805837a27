"""Scores of predicted labels and their standard errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.intp]


def accuracy(truth: Codes, predicted: Codes) -> float:
    """Return the share of right labels."""
    return float(np.mean(truth == predicted))


def macro_f1(truth: Codes, predicted: Codes, n_classes: int) -> float:
    """Return the mean over all classes of F1 = 2 TP / (2 TP + FP + FN).

    As ``sklearn.metrics.f1_score(average="macro", labels=all classes, zero_division=0)``: a class that is neither
    present nor predicted counts as 0, so that a score does not depend on which classes a model dares to predict.

    Args:
        truth: True classes, 0 .. n_classes - 1, shape ``(n_cells,)``.
        predicted: Predicted classes, same shape.
        n_classes: Number of classes.
    """
    right = np.bincount(truth[truth == predicted], minlength=n_classes)
    present, named = np.bincount(truth, minlength=n_classes), np.bincount(predicted, minlength=n_classes)
    return float(np.mean(2 * right / np.maximum(present + named, 1)))


def bootstrap_se(truth: Codes, predicted: Codes, n_classes: int, *, draws: int, seed: int) -> tuple[float, float]:
    """Return the standard errors of macro F1 and accuracy over resampled cells.

    Cells are drawn with replacement; the model is not trained again. Cells of one donor are treated as independent,
    so with few held-out donors the true error is larger.

    Args:
        truth: True classes, shape ``(n_cells,)``.
        predicted: Predicted classes, same shape.
        n_classes: Number of classes.
        draws: Number of resamples.
        seed: Seed of the resamples.
    """
    rng = np.random.RandomState(seed % 2**32)
    scores = np.empty((draws, 2))
    for draw in range(draws):
        chosen = rng.randint(0, len(truth), size=len(truth))
        scores[draw] = macro_f1(truth[chosen], predicted[chosen], n_classes), accuracy(truth[chosen], predicted[chosen])
    f1_se, accuracy_se = scores.std(axis=0, ddof=1)
    return float(f1_se), float(accuracy_se)
