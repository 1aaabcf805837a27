"""What stands under every table: what the score is, on which data, and how far it can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.report.formatting import number_text, score_text
from autotune.report.ranking import has_folds, rank
from autotune.report.run_time import idle_time
from autotune.report.tables import dataset, is_simulated
from autotune.store.base import CampaignRecord
from autotune.trial import ACTIVE_STATES, Trial, TrialState


def caption(campaign: CampaignRecord, trials: Sequence[Trial]) -> list[str]:
    """Return sentences for the caption of the campaign's tables.

    Args:
        campaign: The campaign.
        trials: Its trials.
    """
    said = [trial.metrics[name] for trial in trials if (name := campaign.metric["name"]) in trial.metrics]
    lines = [_simulated(campaign), _score(campaign, said), _best(campaign, trials), _folds(trials)]
    lines += [
        _split(campaign),
        _protocol(campaign),
        _seen(campaign, said),
        _counts(campaign, trials),
        _pruned(trials),
        _idle(trials),
        _data(campaign),
    ]
    return [line for line in [*lines, *_warnings(campaign)] if line]


def _simulated(campaign: CampaignRecord) -> str:
    if not is_simulated(campaign):
        return ""
    return "The data are simulated: these scores say nothing about real cells."


def _distinct(said: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the different values of `key`, without missing ones."""
    return list(dict.fromkeys(entry[key] for entry in said if entry.get(key) is not None))


def _range(values: Sequence[Any]) -> str:
    low, high = number_text(min(values)), number_text(max(values))
    return low if low == high else f"{low} to {high}"


def _score(campaign: CampaignRecord, said: Sequence[Mapping[str, Any]]) -> str:
    """Say metric, direction, estimator, draws, split, epochs and number of items."""
    name, better = campaign.metric["name"], "higher" if campaign.metric["mode"] == "max" else "lower"
    objective = campaign.facts.get("objective") or {}
    estimators = _distinct(said, "estimator") or _distinct([objective], "estimator")
    draws = _distinct(said, "draws") or _distinct([objective], "draws")
    splits, epochs, items = (_distinct(said, key) for key in ("split", "epoch", "n"))
    parts = []
    if estimators:
        parts.append(" or ".join(str(estimator) for estimator in estimators))
    if draws:
        parts.append(f"{_range(draws)} {'draw' if draws == [1] else 'draws'}")
    if splits:
        parts.append(f"measured on the {' or '.join(str(split) for split in splits)} part")
    if epochs:
        parts.append(f"after {_range(epochs)} {'epoch' if epochs == [1] else 'epochs'}")
    if items:
        thing = "cells" if "n_cells" in (campaign.facts.get("data") or {}) else "items"
        parts.append(f"on {_range(items)} {thing}")
    if not splits and said:
        parts.append("the objective does not say on which part of the data it is measured")
    return f"Score: {name} ({better} is better)" + "".join(f", {part}" for part in parts) + "."


def _best(campaign: CampaignRecord, trials: Sequence[Trial]) -> str:
    """Say the standard error of the best score, where there is one."""
    first = next(iter(rank(trials, campaign.metric["mode"])), None)
    if first is None or first.state is not TrialState.FINISHED or has_folds(trials):
        return ""
    name = campaign.metric["name"]
    trial = next(trial for trial in trials if trial.number == first.number)
    error = trial.metrics.get(name, {}).get("se")
    if error is None:
        return ""
    return f"The best score is {score_text(name, first.score)}, standard error {number_text(error, digits=3)}."


def _folds(trials: Sequence[Trial]) -> str:
    if not has_folds(trials):
        return ""
    return (
        "Each row is a configuration: its score is the mean over its folds and replicates, "
        "its run index the number of the first."
    )


def _split(campaign: CampaignRecord) -> str:
    """Say how the data were divided."""
    split = campaign.facts.get("split") or {}
    if not split:
        return ""
    parts = [f"whole groups of {split['by']} held out together" if split.get("by") else "cell by cell"]
    if split.get("seed") is not None:
        parts.append(f"seed {split['seed']}")
    sizes = {"train": split.get("n_train"), "validation": split.get("n_validation"), "test": split.get("n_test")}
    fractions = split.get("fractions") or {}
    for part in dict.fromkeys([*sizes, *fractions]):
        size, fraction = sizes.get(part), fractions.get(part)
        if (size is None and fraction is None) or (part == "test" and not size and not fraction):
            continue
        shown = f"{100 * fraction:.3g}%" if fraction is not None else ""
        cells = f"{size} cells" if size is not None else ""
        parts.append(f"{part} {f'{cells} ({shown})' if cells and shown else cells or shown}")
    if split.get("sha256"):
        parts.append(f"sha256 {str(split['sha256'])[:12]}")
    return f"Split: {', '.join(parts)}."


def _protocol(campaign: CampaignRecord) -> str:
    """Say which cells choose and which ones judge, where the campaign has a test part or follows the 2019 study."""
    split = campaign.facts.get("split") or {}
    if split.get("protocol") == "published":
        return "Protocol published: selected and reported on the same held-out cells, so these scores are optimistic."
    if not split.get("n_test"):
        return ""
    if campaign.evaluation:
        return "The test part is open: these scores are of a benchmark."
    if campaign.unsealed_at is not None:
        return f"The test part has been opened by the benchmark: autotune benchmark {campaign.name}."
    return "The test part is sealed: no trial has been trained or scored on its cells."


def _seen(campaign: CampaignRecord, said: Sequence[Mapping[str, Any]]) -> str:
    """Say that the search chose by these scores."""
    if campaign.evaluation:
        return ""
    splits = _distinct(said, "split")
    where = f"the {splits[0]} part" if len(splits) == 1 else "the data of these scores"
    if splits == ["train"]:
        return "The score is of the training part: it does not say how well a configuration does on new data."
    how = "score the chosen configuration on new data"
    if (campaign.facts.get("split") or {}).get("n_test"):
        how = "autotune benchmark scores the chosen configuration on the test part"
    return f"The search has seen {where}: the best score is optimistic; {how}."


def _counts(campaign: CampaignRecord, trials: Sequence[Trial]) -> str:
    """Say how many trials ended in which way."""
    states = Counter(trial.state for trial in trials)
    parts = [f"{states[TrialState.FINISHED]} finished", f"{states[TrialState.FAILED]} failed"]
    causes = Counter(
        str(trial.failure.cause) for trial in trials if trial.state is TrialState.FAILED and trial.failure is not None
    )
    if causes:
        parts[1] += " (" + ", ".join(f"{number} {cause}" for cause, number in sorted(causes.items())) + ")"
    if states[TrialState.PRUNED]:
        parts.append(f"{states[TrialState.PRUNED]} pruned")
    if states[TrialState.CANCELLED]:
        parts.append(f"{states[TrialState.CANCELLED]} cancelled (not ranked)")
    active = sum(states[state] for state in ACTIVE_STATES)
    if active:
        parts.append(f"{active} not ended (not ranked)")
    return f"Trials: {', '.join(parts)}; budget {campaign.max_trials}."


def _pruned(trials: Sequence[Trial]) -> str:
    if not any(trial.state is TrialState.PRUNED for trial in trials):
        return ""
    return "Pruned trials stand after the finished ones: they were not trained to their end."


def _idle(trials: Sequence[Trial]) -> str:
    """Say how much of the wall time was a pause."""
    idle = idle_time(trials)
    return f"Wall time includes {idle} in which no trial ran." if idle else ""


def _data(campaign: CampaignRecord) -> str:
    """Say which data it was."""
    data = campaign.facts.get("data") or {}
    parts = [str(name)] if (name := dataset(campaign)) else []
    parts += [f"{data[key]} {unit}" for key, unit in (("n_cells", "cells"), ("n_genes", "genes")) if data.get(key)]
    if data.get("sha256"):
        parts.append(f"sha256 {str(data['sha256'])[:12]}")
    return f"Data: {', '.join(parts)}." if parts else ""


def _warnings(campaign: CampaignRecord) -> list[str]:
    """Return what was found in the data at launch that a reader of the scores must know."""
    found = (campaign.facts.get("data") or {}).get("warnings") or []
    return [f"Note: {text}." for text in (str(item).strip().rstrip(".") for item in found) if text]
