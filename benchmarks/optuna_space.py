"""Our spaces, asked of Optuna."""

from __future__ import annotations

from typing import Any


def suggest(trial: Any, name: str, definition: Any) -> Any:
    """Ask Optuna for a value of a definition of ours, of the kinds that the benchmarks use."""
    if not isinstance(definition, dict):
        return definition
    if "choice" in definition:
        options = definition["choice"]
        chosen = options[trial.suggest_categorical(name, list(range(len(options))))]
        if not isinstance(chosen, dict):
            return chosen
        return {k: suggest(trial, f"{name}.{chosen['kind']}.{k}", d) for k, d in chosen.items()}
    ((kind, (low, high)),) = definition.items()
    ask = trial.suggest_int if kind.endswith("int") else trial.suggest_float
    return ask(name, low, high, log=kind.startswith("log"))
