"""Makes the tables of scikit-learn's models: ``cd benchmarks && python -m search_tasks.sklearn_tables`` (minutes)."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Mapping
from typing import Any

from search_tasks.tables import FOLDER, GRIDS, key_of


def _score(name: str, values: Mapping[str, Any]) -> float:
    """Return a cross-validated loss: log loss, or mean squared error for diabetes."""
    import warnings

    import numpy as np
    from sklearn import datasets, ensemble, model_selection, neural_network, pipeline, preprocessing, svm

    folds: Any = model_selection.StratifiedKFold(4, shuffle=True, random_state=0)
    scoring, scale = "neg_log_loss", True
    settings = dict(values)
    if name == "svc-digits":
        x, y = datasets.load_digits(return_X_y=True)
        x, y = x[:500] / 16.0, y[:500]
        model: Any = svm.SVC(**settings)
        scoring, scale = "accuracy", False
    elif name == "trees-cancer":
        x, y = datasets.load_breast_cancer(return_X_y=True)
        model = ensemble.ExtraTreesClassifier(n_estimators=30, random_state=0, **settings)
    elif name == "boosting-diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
        model = ensemble.GradientBoostingRegressor(random_state=0, **settings)
        folds = model_selection.KFold(4, shuffle=True, random_state=0)
        scoring = "neg_mean_squared_error"
    else:
        x, y = datasets.load_wine(return_X_y=True)
        hidden = settings.pop("hidden")
        model = neural_network.MLPClassifier((hidden,), max_iter=60, random_state=0, **settings)
    made = pipeline.make_pipeline(preprocessing.StandardScaler(), model) if scale else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model_selection.cross_val_score(made, x, y, cv=folds, scoring=scoring)
    return round(-float(np.mean(found)), 6)


def build() -> None:
    """Write the tables that are missing."""
    import sklearn

    FOLDER.mkdir(exist_ok=True)
    for name, grid in GRIDS.items():
        path = FOLDER / f"{name}.json.gz"
        if path.exists():
            continue
        losses = {}
        for at in itertools.product(*(range(len(values)) for values in grid.values())):
            values = {k: grid[k][i] for k, i in zip(grid, at, strict=True)}
            places = {k: values[k] if isinstance(grid[k][0], str) else i for k, i in zip(grid, at, strict=True)}
            losses[key_of(grid, places)] = _score(name, values)
        text = json.dumps({"grid": grid, "scikit-learn": sklearn.__version__, "losses": losses})
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(name, len(losses), "configurations, best", min(losses.values()))


if __name__ == "__main__":
    build()
