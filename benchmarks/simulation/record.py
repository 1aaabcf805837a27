"""Records learning curves of real trainings: small networks on scikit-learn's handwritten digits.

python -m benchmarks.simulation.record [--count 150] [--epochs 81]
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np

CURVES = Path(__file__).parent / "digits.json"


def configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Return settings of a network, wide enough for some to diverge and some to stand still."""
    return {
        "hidden_layer_sizes": [int(2 ** rng.uniform(2, 6))] * int(rng.integers(1, 4)),
        "learning_rate_init": float(10 ** rng.uniform(-4.5, 0.3)),
        "alpha": float(10 ** rng.uniform(-6, 0)),
        "batch_size": int(2 ** rng.integers(4, 9)),
        "solver": str(rng.choice(["adam", "sgd"])),
        "activation": str(rng.choice(["relu", "tanh"])),
    }


def curve(settings: dict[str, Any], seed: int, epochs: int) -> list[float | None]:
    """Return the held-out cross entropy after each epoch; None where it is not a number."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, held_out = order[600:], order[:600]
    network = MLPClassifier(**settings, random_state=seed)
    losses: list[float | None] = []
    for _ in range(epochs):
        try:
            network.partial_fit(x[train] / 16, y[train], classes=range(10))
            loss = float(log_loss(y[held_out], network.predict_proba(x[held_out] / 16), labels=range(10)))
        except ValueError:  # weights that are no numbers any more
            loss = math.nan
        losses.append(round(loss, 4) if math.isfinite(loss) else None)
    return losses


@click.command()
@click.option("--count", default=150, show_default=True)
@click.option("--epochs", default=81, show_default=True)
def main(count: int, epochs: int) -> None:
    """Train and write digits.json."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    all_settings = [configuration(rng) for _ in range(count)]
    curves = [curve(settings, seed, epochs) for seed, settings in enumerate(all_settings)]
    rows = ",\n".join(json.dumps(c) for c in curves)
    about = "held-out cross entropy of small networks on scikit-learn's digits, per epoch; null: not a number"
    CURVES.write_text(f'{{"about": {json.dumps(about)}, "curves": [\n{rows}\n]}}\n')
    print(f"wrote {CURVES}")


if __name__ == "__main__":
    main()
