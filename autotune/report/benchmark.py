"""A benchmark: default and tuned configurations on the test part, over seeds, with a verdict (Table 5 of the study)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from autotune.history import flatten, frame
from autotune.report import export, markup, screen
from autotune.report.benchmark_caption import benchmark_caption
from autotune.report.formatting import number_text, score_text
from autotune.report.ranking import rank
from autotune.report.statistics import Comparison, Gap, Scored, mean_and_se, optimism, paired
from autotune.report.tables import dataset, is_simulated
from autotune.space.canonical import digest
from autotune.store.base import CampaignRecord
from autotune.trial import Trial, TrialState

DEFAULT = "default"
LABELS = {
    "marginal_ll_test": "marginal ll",
    "elbo_train": "ELBO train",
    "elbo_test": "ELBO test",
    "imputation_median": "imputation median",
    "imputation_mean": "imputation mean",
}
"""Metrics of scVI's benchmark -> columns of the study's Table 5, in its order."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A finished campaign and the scores of its finalists on its test part.

    Attributes:
        parent: The campaign.
        trials_of_parent: Its trials.
        companion: The campaign that scores its finalists.
        trials_of_companion: The trials of that one; those that have not finished are left out of the tables.
        opened_by: Other campaigns that have opened the same test part.
    """

    parent: CampaignRecord
    trials_of_parent: Sequence[Trial]
    companion: CampaignRecord
    trials_of_companion: Sequence[Trial]
    opened_by: Sequence[str] = ()

    @property
    def runs(self) -> list[str]:
        """The names of the configurations: ``default``, ``tuned``, ``tuned-2``, ..."""
        return list((self.companion.evaluation or {}).get("runs", {}))

    @property
    def metric(self) -> str:
        """Name of the metric by which the runs are judged."""
        return self.companion.metric["name"]

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that are shown: those of Table 5 where there are such, else all that the evaluation returns."""
        found = {name for trial in self.trials_of_companion for name in trial.metrics}
        if not found:
            return [self.metric]
        named = [name for name in self.companion.spec.get("metrics") or () if name in found]
        study = [name for name in LABELS if name in found]
        if "marginal_ll_test" in study:
            return study if self.metric in study else [self.metric, *study]
        return list(dict.fromkeys([self.metric, *named, *(sorted(found) if len(named) < 2 else ())]))

    def finished(self, run: str) -> dict[int, Trial]:
        """Return the finished trials of a run by replicate."""
        wanted = digest((self.companion.evaluation or {})["runs"][run])
        return {
            trial.replicate: trial
            for trial in sorted(self.trials_of_companion, key=lambda trial: trial.number)
            if trial.config_hash == wanted and trial.state is TrialState.FINISHED
        }

    @property
    def default_trial(self) -> Trial | None:
        """The first finished trial of the default configuration: its curve is drawn over those of the search."""
        done = self.finished(DEFAULT) if DEFAULT in self.runs else {}
        return done[min(done)] if done else None

    def values(self, run: str, metric: str) -> dict[int, float]:
        """Return the finite values of a metric of a run by replicate."""
        found = {r: t.metrics.get(metric, {}).get("value") for r, t in self.finished(run).items()}
        return {r: float(v) for r, v in found.items() if v is not None and math.isfinite(v)}

    def compared(self, run: str, metric: str) -> Comparison | None:
        """Return a run against the default one in a metric, over the seeds that both finished; None: no test."""
        if DEFAULT not in self.runs or run == DEFAULT:
            return None
        mine, theirs = self.values(run, metric), self.values(DEFAULT, metric)
        both = sorted(set(mine) & set(theirs))
        return paired([mine[r] for r in both], [theirs[r] for r in both], self._mode(metric) or "min")

    def gap(self, run: str) -> Gap | None:
        """Return the optimism gap of a run that the search chose: its score there minus its test score."""
        number = (self.companion.evaluation or {}).get("chosen", {}).get(run)
        values = self.values(run, self.metric)
        entry = next((e for e in rank(self.trials_of_parent, self.parent.metric["mode"]) if e.number == number), None)
        if entry is None or not values:
            return None
        winner = next(t for t in self.trials_of_parent if t.number == number)
        if self.same_cells:  # what their cells add is in both scores, and cancels
            return optimism(Scored(values=[entry.score]), Scored(values=list(values.values())))
        se = _se(winner, self.parent.metric["name"])
        return optimism(Scored(values=[entry.score], se=se), self._scored(run, values))

    @property
    def same_cells(self) -> bool:
        """Whether the benchmark scores the cells that the search chose by: protocol published."""
        return (self.parent.facts.get("split") or {}).get("protocol") == "published"

    def _scored(self, run: str, values: dict[int, float]) -> Scored:
        trials = [t for r, t in self.finished(run).items() if r in values]
        errors = [e for t in trials if (e := _se(t, self.metric)) is not None]
        groups = [_groups(t, self.metric) for t in trials]
        known = [g for g in groups if g is not None]
        return Scored(
            values=list(values.values()),
            se=sum(errors) / len(errors) if errors else None,
            groups=known if len(known) == len(trials) else None,
        )

    @property
    def resamples_groups(self) -> bool:
        """Whether the interval of the optimism gap resamples whole groups of the test part."""
        tuned = [run for run in self.runs if run != DEFAULT]
        found = self._scored(tuned[0], self.values(tuned[0], self.metric)).groups if tuned else None
        return found is not None and bool(found) and len(found[0]) > 1

    def _mode(self, metric: str) -> str | None:
        modes = (self.companion.evaluation or {}).get("modes") or {}
        mode = self.companion.metric["mode"] if metric == self.metric else modes.get(metric)
        return None if mode is None else str(mode)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per run, in full precision: Table 5, its standard errors, the verdict and the optimism gap."""
        return pd.DataFrame([self._row(run) for run in self.runs])

    def _row(self, run: str) -> dict[str, Any]:
        row: dict[str, Any] = {"dataset": dataset(self.parent), "run": run}
        for metric in self.metrics:
            label = LABELS.get(metric, metric)
            row[label], row[f"{label} se"] = mean_and_se(list(self.values(run, metric).values()))
        row["seeds"] = len(self.values(run, self.metric))
        row |= _comparison(self.compared(run, self.metric))
        gap = self.gap(run)
        for name, part in (("optimism gap", "value"), ("gap low", "low"), ("gap high", "high")):
            row[name] = math.nan if gap is None else getattr(gap, part)
        return row

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """One row per run and metric against the default: difference, 95% interval, p, pairs, verdict."""
        rows = []
        for run in self.runs:
            for metric in self.metrics:
                found = self.compared(run, metric)
                if found is not None:
                    verdict = found.verdict if self._mode(metric) else None
                    rows.append({"run": run, "metric": metric, **_comparison(found), "pairs": found.n})
                    rows[-1]["verdict"] = verdict
        columns = ["run", "metric", "difference", "low", "high", "p", "pairs", "verdict"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """One row per run: the trial of the search that it comes from, and its parameters."""
        evaluation = self.companion.evaluation or {}
        chosen, rows = evaluation.get("chosen", {}), []
        for run, params in (evaluation.get("runs") or {}).items():
            rows.append({"run": run, "run index": chosen.get(run), **flatten(params)})
        return pd.DataFrame(rows).astype({"run index": "object"})

    @cached_property
    def readable(self) -> pd.DataFrame:
        """The table for people: mean ± standard error, verdict, optimism gap with its interval."""
        rows = []
        for run, row in zip(self.runs, self.table.to_dict("records"), strict=True):
            texts: dict[str, Any] = {"dataset": row["dataset"] or "-", "run": run}
            for metric in self.metrics:
                label = LABELS.get(metric, metric)
                texts[label] = _with_error(row[label], row[f"{label} se"])
            texts["verdict"] = "-" if run == DEFAULT else row["verdict"] or "not tested"
            texts["optimism gap"] = _with_interval(row["optimism gap"], row["gap low"], row["gap high"])
            rows.append(texts)
        return pd.DataFrame(rows)

    @cached_property
    def readable_comparisons(self) -> pd.DataFrame:
        """The comparisons for people."""
        rows = [
            {
                "run": row["run"], "metric": LABELS.get(row["metric"], row["metric"]),
                "difference from default": _with_interval(row["difference"], row["low"], row["high"]),
                "p": f"{row['p']:.2g}", "pairs": row["pairs"], "verdict": row["verdict"] or "-",
            }
            for row in self.comparisons.to_dict("records")
        ]  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def caption(self) -> list[str]:
        """Sentences that say what the scores are."""
        return benchmark_caption(self)

    @property
    def title(self) -> str:
        """The heading of the table."""
        return f"Benchmark of {self.parent.name}."

    def show(self, console: Console) -> None:
        """Print the tables and the caption.

        Args:
            console: Where to.
        """
        parts: list[tuple[str, pd.DataFrame | None, str | None]] = [(self.title, self.readable, None)]
        if not self.readable_comparisons.empty:
            parts.append(("Against the default, seed by seed.", self.readable_comparisons, None))
        screen.render(console, [*parts, ("Configurations.", self.configurations, None)], self.caption)

    def to_markdown(self) -> str:
        """Return the tables and the caption as Markdown."""
        parts = [f"## {markup.markdown_text(self.title.rstrip('.'))}", markup.markdown_table(self.readable).rstrip()]
        if not self.readable_comparisons.empty:
            parts += [
                "### Against the default, seed by seed",
                markup.markdown_table(self.readable_comparisons).rstrip(),
            ]
        parts += ["### Configurations", markup.markdown_table(self.configurations).rstrip()]
        parts.append("\n".join(f"- {markup.markdown_text(line)}" for line in self.caption))
        return "\n\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """Return the table with its caption as LaTeX."""
        return markup.latex_table(self.readable, [self.title, *self.caption])

    def files(self) -> dict[str, str]:
        """Return the files of the benchmark: name -> content."""
        mark = "simulated" if is_simulated(self.parent) else None
        return {
            "benchmark.md": self.to_markdown(),
            "benchmark.csv": export.csv_text(self.table, None, mark),
            "benchmark.tex": self.to_latex(),
            "benchmark_comparisons.csv": export.csv_text(self.comparisons, None, mark),
            "benchmark_trials.csv": export.csv_text(frame(self.trials_of_companion, self.metric), None, mark),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the files and return their paths.

        Args:
            folder: Made where it does not exist.

        Raises:
            InputError: If the folder cannot be written.
        """
        return export.write(Path(folder), self.files())


def _se(trial: Trial, metric: str) -> Any:
    """Return the standard error of a score: over whole groups where the trial says it, else over cells."""
    grouped = trial.facts.get(f"{metric}_se_groups")
    return trial.metrics.get(metric, {}).get("se") if grouped is None else grouped


def _groups(trial: Trial, metric: str) -> dict[str, tuple[float, float]] | None:
    """Return a trial's test groups, group -> (cells, mean), if they are of this metric: their mean is its value."""
    found = trial.facts.get("test_groups")
    if not isinstance(found, dict) or not found:
        return None
    groups = {str(name): (float(pair[0]), float(pair[1])) for name, pair in found.items()}
    cells = sum(n for n, _ in groups.values())
    value = float(trial.metrics[metric]["value"])
    mean = sum(n * mean for n, mean in groups.values()) / cells if cells else math.nan
    return groups if math.isclose(mean, value, rel_tol=1e-4, abs_tol=1e-9) else None


def _comparison(found: Comparison | None) -> dict[str, Any]:
    if found is None:
        return {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "verdict": None}
    return {
        "difference": found.difference, "low": found.low, "high": found.high, "p": found.p, "verdict": found.verdict,
    }  # fmt: skip


def _with_error(mean: float, se: float) -> str:
    """Return ``1218.52 ± 0.31``: the mean to the second significant digit of its error."""
    if not math.isfinite(mean):
        return "-"
    if not (math.isfinite(se) and se > 0):
        return score_text("", mean)
    decimals = min(10, max(0, 1 - math.floor(math.log10(se))))
    return f"{mean:.{decimals}f} ± {se:.{decimals}f}"


def _with_interval(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "-"
    if not (math.isfinite(low) and math.isfinite(high)):
        return number_text(value, 3)
    width = high - low
    decimals = min(10, max(0, 2 - math.floor(math.log10(width)))) if width > 0 else 4
    return f"{value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
