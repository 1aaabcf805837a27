"""A report: a campaign and its trials, with everything that is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Console

from autotune.errors import InputError
from autotune.history import frame
from autotune.report import export, markup, screen, tables
from autotune.report.caption import caption
from autotune.store.base import CampaignRecord
from autotune.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a campaign found.

    Attributes:
        campaign: The campaign.
        trials: Its trials.
        n_best: Number of best configurations that are shown.
        n_worst: Number of worst configurations that are shown.
    """

    campaign: CampaignRecord
    trials: Sequence[Trial]
    n_best: int = 10
    n_worst: int = 10

    def __post_init__(self) -> None:
        """Refuse negative numbers of rows."""
        if self.n_best < 0 or self.n_worst < 0:
            raise InputError("the numbers of best and worst configurations are 0 or more")

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """All configurations that count, best first; see `autotune.report.tables.ranking`."""
        return tables.ranking(self.campaign, self.trials)

    @property
    def best(self) -> pd.DataFrame:
        """The best configurations; all where there are at most ``n_best + n_worst``."""
        return tables.cut(self.ranking, self.n_best, self.n_worst)[0]

    @property
    def worst(self) -> pd.DataFrame:
        """The worst configurations, the worst last; empty where `best` has all."""
        return tables.cut(self.ranking, self.n_best, self.n_worst)[1]

    @cached_property
    def run_time(self) -> pd.DataFrame:
        """One row about data, time and devices; see `autotune.report.tables.run_time`."""
        return tables.run_time(self.campaign, self.trials)

    @cached_property
    def caption(self) -> list[str]:
        """Sentences that say what the scores are."""
        return caption(self.campaign, self.trials)

    def show(self, console: Console) -> None:
        """Print the tables and the caption.

        Args:
            console: Where to.
        """
        parts: list[tuple[str, pd.DataFrame | None, str | None]] = []
        for title, table in self._ranked():
            parts.append((title, None if table.empty else table, "rank"))
        screen.render(console, [*parts, ("Run time", self.run_time, None)], self.caption)

    def to_markdown(self) -> str:
        """Return the tables and the caption as Markdown."""
        parts = [f"# {markup.markdown_text(self.campaign.name)}"]
        for title, table in self._ranked():
            parts.append(f"## {markup.markdown_text(title)}" if not table.empty else markup.markdown_text(title))
            if not table.empty:
                parts.append(markup.markdown_table(table, self._metric, "rank").rstrip())
        parts += ["## Run time", markup.markdown_table(self.run_time).rstrip(), self._markdown_caption()]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write the report and return the paths of the files.

        ``report.md``; ``best``, ``worst`` and ``run_time`` as ``.csv``, ``.md`` and ``.tex``; ``ranking.csv``;
        ``trials.csv`` with all trials. Always the same names, so that no file of an earlier report stays.

        Args:
            folder: Made where it does not exist.

        Raises:
            InputError: If the folder cannot be written.
        """
        simulated = tables.is_simulated(self.campaign)
        mark = "simulated" if simulated else None
        files = {"report.md": self.to_markdown()}
        for name, title, table in (
            ("best", self._best_title(), self.best),
            ("worst", self._worst_title(), self.worst),
        ):
            files[f"{name}.csv"] = export.csv_text(table, "rank", mark)
            files[f"{name}.md"] = self._markdown(title, table, "rank")
            files[f"{name}.tex"] = markup.latex_table(table, [title, *self.caption], self._metric, "rank")
        files["ranking.csv"] = export.csv_text(self.ranking, "rank", mark)
        files["run_time.csv"] = export.csv_text(self.run_time)
        files["run_time.md"] = self._markdown("Run time", self.run_time, None)
        files["run_time.tex"] = markup.latex_table(self.run_time, ["Run time.", *self.caption])
        files["trials.csv"] = export.csv_text(frame(self.trials, self._metric), None, mark)
        return export.write(Path(folder), files)

    @property
    def _metric(self) -> str:
        return self.campaign.metric["name"]

    def _ranked(self) -> list[tuple[str, pd.DataFrame]]:
        """Return the ranked tables with their titles; one where they are not divided, or where there is nothing."""
        if self.ranking.empty:
            return [(tables.NOTHING, self.ranking)]
        both = [(self._best_title(), self.best), (self._worst_title(), self.worst)]
        return [(title, table) for title, table in both if not table.empty]

    def _best_title(self) -> str:
        if self.ranking.empty:
            return tables.NOTHING
        total = len(self.ranking)
        if len(self.best) == total:
            return f"All {total} configurations, best first." if total > 1 else "The only configuration."
        return f"Best {len(self.best)} of {total} configurations."

    def _worst_title(self) -> str:
        if self.ranking.empty:
            return tables.NOTHING
        if self.worst.empty:
            return "No separate table of the worst configurations: the table of the best shows what there is."
        return f"Worst {len(self.worst)} of {len(self.ranking)} configurations, the worst last."

    def _markdown(self, title: str, table: pd.DataFrame, label: str | None) -> str:
        """Return one table with title and caption."""
        parts = [markup.markdown_text(title)]
        if not table.empty:
            parts.append(markup.markdown_table(table, self._metric if label else None, label).rstrip())
        return "\n\n".join([*parts, self._markdown_caption()]) + "\n"

    def _markdown_caption(self) -> str:
        return "\n".join(f"- {markup.markdown_text(line)}" for line in self.caption)
