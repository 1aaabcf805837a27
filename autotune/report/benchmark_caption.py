"""What stands under the table of a benchmark: which cells, which estimator, which seeds, which tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any

from autotune.report.formatting import number_text
from autotune.report.tables import dataset, is_simulated
from autotune.trial import ACTIVE_STATES, TrialState

if TYPE_CHECKING:
    from autotune.report.benchmark import Benchmark

_NAMED = 5


def benchmark_caption(made: Benchmark) -> list[str]:
    """Return sentences for the caption of a benchmark's tables.

    Args:
        made: The benchmark.
    """
    lines = [_simulated(made), _part(made), _score(made), _seeds(made), _missing(made), _verdict(made), _gap(made)]
    return [line for line in [*lines, _imputation(made), _split(made), _data(made), *_warnings(made)] if line]


def _simulated(made: Benchmark) -> str:
    return "The data are simulated: these scores say nothing about real cells." if is_simulated(made.parent) else ""


def _part(made: Benchmark) -> str:
    """Say which part was scored, and when it was opened."""
    parent, split = made.parent, made.parent.facts.get("split") or {}
    if split.get("protocol") == "published":
        return (
            "Protocol: published. There is no test part: configurations were chosen and are reported on the same "
            "validation part, so the scores of the tuned ones are optimistic."
        )
    at = "" if parent.unsealed_at is None else f"{parent.unsealed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if not split:
        return f"The objective reads its own data and says what its test part is; it was opened at {at}."
    said = f"The test part was opened at {at}, when the search was finished; no trial of it has seen these cells."
    if made.opened_by:
        named = ", ".join(made.opened_by[:_NAMED]) + (", ..." if len(made.opened_by) > _NAMED else "")
        said += f" The same test part was opened by {named} too: it is no longer fresh."
    return said


def _score(made: Benchmark) -> str:
    """Say metric, direction, estimator, draws, part, epochs, number of cells."""
    metric, better = made.metric, "higher" if made.companion.metric["mode"] == "max" else "lower"
    said = [t.metrics[metric] for t in made.trials_of_companion if metric in t.metrics]
    parts = [str(text) for text in _distinct(said, "estimator")]
    parts += [f"{_range(values)} draws" for values in [_distinct(said, "draws")] if values]
    parts += [
        f"measured on the {' or '.join(map(str, values))} part" for values in [_distinct(said, "split")] if values
    ]
    parts += [f"after {_range(values)} epochs" for values in [_distinct(said, "epoch")] if values]
    thing = "cells" if made.parent.facts.get("data") else "items"
    parts += [f"on {_range(values)} {thing}" for values in [_distinct(said, "n")] if values]
    return f"Score: {metric} ({better} is better)" + "".join(f", {part}" for part in parts) + "."


def _seeds(made: Benchmark) -> str:
    count = int((made.companion.evaluation or {}).get("seeds", 0))
    if count < 2:
        return "One seed: there are no standard errors."
    few = " Fewer than 5 seeds: take the verdict with care." if count < 5 else ""
    return f"Mean ± standard error over {count} seeds; all runs of a replicate share the seed.{few}"


def _missing(made: Benchmark) -> str:
    """Say which trials are not in the table."""
    states = [trial.state for trial in made.trials_of_companion]
    total = made.companion.max_trials
    active = sum(state in ACTIVE_STATES for state in states) + total - len(states)
    parts = [
        f"{n} of {total} trials {what}"
        for n, what in (
            (active, "have not ended yet"),
            (states.count(TrialState.FAILED), "failed and are left out"),
            (states.count(TrialState.CANCELLED), "were cancelled and are left out"),
        )
        if n
    ]
    return f"{'; '.join(parts)}." if parts else ""


def _verdict(made: Benchmark) -> str:
    if "default" not in made.runs:
        return "The objective has no default configuration: there is nothing to compare with."
    return (
        "Verdict: against default in the score, paired t-test over seeds, two-sided, alpha 0.05. It says whether the "
        "difference is more than chance of training on these cells; other cells are another question. Tests of "
        "several configurations and of the other metrics are not corrected for their number."
    )


def _gap(made: Benchmark) -> str:
    worse = "negative" if made.companion.metric["mode"] == "min" else "positive"
    what = "whole groups of the test part" if made.resamples_groups else "the cells of the test part"
    known = any("se" in t.metrics.get(made.metric, {}) for t in made.trials_of_companion)
    is_of_cells = (known or made.resamples_groups) and not made.same_cells
    cells = f"seeds, {what} and the cells of the validation part" if is_of_cells else "seeds"
    return (
        f"Optimism gap: the score of the configuration in the search minus its score here ({worse}: the search was too "
        f"optimistic), with a 95% bootstrap interval over {cells}."
    )


def _imputation(made: Benchmark) -> str:
    """Say how values were corrupted, and how many cells were scored."""
    settings = (made.companion.evaluation or {}).get("settings") or {}
    if not settings.get("imputation"):
        return ""
    facts = [t.facts for t in made.trials_of_companion if t.state is TrialState.FINISHED]
    parts = [f"{settings['imputation']} corruption"]
    parts += [
        f"{word} {settings[key]}"
        for key, word in (("imputation_rate", "rate"), ("imputation_draws", "draws"), ("imputation_seed", "seed"))
        if settings.get(key) is not None
    ]
    if settings.get("imputation_protocol"):
        parts.append(f"protocol {settings['imputation_protocol']}")
    parts += [f"{_range(values)} scored cells" for values in [_distinct(facts, "n_scored_cells")] if values]
    parts += [f"{_range(values)} corrupted entries" for values in [_distinct(facts, "n_corrupted")] if values]
    hashes = _distinct(facts, "corruption_sha256")
    parts += [f"sha256 {str(hashes[0])[:12]}"] if len(hashes) == 1 else []
    return f"Imputation: {', '.join(parts)}; per cell the median absolute error of its corrupted entries."


def _split(made: Benchmark) -> str:
    split = made.parent.facts.get("split") or {}
    if not split:
        return ""
    parts = [f"whole groups of {split['by']} held out together" if split.get("by") else "cell by cell"]
    parts += [f"seed {split['seed']}"] if split.get("seed") is not None else []
    parts += [
        f"{part} {split[f'n_{part}']} cells" for part in ("train", "validation", "test") if split.get(f"n_{part}")
    ]
    parts += [f"sha256 {str(split['sha256'])[:12]}"] if split.get("sha256") else []
    return f"Split: {', '.join(parts)}."


def _data(made: Benchmark) -> str:
    data = made.parent.facts.get("data") or {}
    parts = [str(name)] if (name := dataset(made.parent)) else []
    parts += [f"{data[key]} {unit}" for key, unit in (("n_cells", "cells"), ("n_genes", "genes")) if data.get(key)]
    parts += [f"sha256 {str(data['sha256'])[:12]}"] if data.get("sha256") else []
    return f"Data: {', '.join(parts)}." if parts else ""


def _warnings(made: Benchmark) -> list[str]:
    found = (made.parent.facts.get("data") or {}).get("warnings") or []
    return [f"Note: {text}." for text in (str(item).strip().rstrip(".") for item in found) if text]


def _distinct(said: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(entry[key] for entry in said if entry.get(key) is not None))


def _range(values: list[Any]) -> str:
    low, high = number_text(min(values)), number_text(max(values))
    return low if low == high else f"{low} to {high}"
