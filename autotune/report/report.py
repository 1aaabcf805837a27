"""A report: a campaign and its trials, with everything that is shown of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd
from rich.console import Console

from autotune.errors import InputError
from autotune.history import frame
from autotune.report import export, markup, page, screen, tables
from autotune.report.caption import caption
from autotune.report.curves import Curve
from autotune.report.run_time import run_time
from autotune.store.base import CampaignRecord
from autotune.trial import Trial

if TYPE_CHECKING:
    from autotune.report.figures import Drawing

NO_FIGURES = "no figures: they need matplotlib and scikit-learn: pip install 'autotune[report]'"
_LARGE = 6  # so many figures are large on the page, the others small and side by side


class BenchmarkTable(Protocol):
    """What a report needs of a benchmark; `autotune.report.benchmark` has it."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per run."""
        ...

    @property
    def caption(self) -> list[str]:
        """Sentences under the table."""
        ...

    def to_markdown(self) -> str:
        """Return table and caption."""
        ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a campaign found.

    Attributes:
        campaign: The campaign.
        trials: Its trials.
        n_best: Number of best configurations that are shown.
        n_worst: Number of worst configurations that are shown.
        curves: Number of a trial -> what it reported while it trained; None: not known, and not drawn.
        benchmark: The default configuration against the tuned one, or None.
        default_curve: What the default configuration reported while it trained, or None.
        parameter: Parameter whose figure is shown first; None: ``n_layers`` where it is searched, else the first.
    """

    campaign: CampaignRecord
    trials: Sequence[Trial]
    n_best: int = 10
    n_worst: int = 10
    curves: Mapping[int, Curve] | None = None
    benchmark: BenchmarkTable | None = None
    default_curve: Curve | None = None
    parameter: str | None = None

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
        """One row about data, time and devices; see `autotune.report.run_time`."""
        return run_time(self.campaign, self.trials)

    @cached_property
    def caption(self) -> list[str]:
        """Sentences that say what the scores are."""
        return caption(self.campaign, self.trials)

    @cached_property
    def figures(self) -> list[Drawing]:
        """All figures; see `autotune.report.figures`.

        Raises:
            ImportError: If matplotlib is not installed.
            InputError: If `parameter` is not searched.
        """
        from autotune.report.figures import figures

        return figures(self.campaign, self.trials, self.curves, self.default_curve, self.parameter)

    @property
    def can_draw(self) -> bool:
        """Whether matplotlib is installed."""
        try:
            import matplotlib as _  # noqa: F401
        except ImportError:
            return False
        return True

    def show(self, console: Console) -> None:
        """Print the tables and the caption.

        Args:
            console: Where to.
        """
        parts: list[tuple[str, pd.DataFrame | None, str | None]] = []
        for title, table in self._ranked():
            parts.append((title, None if table.empty else table, "rank"))
        screen.render(console, [*parts, ("Run time", self.run_time, None)], self.caption, self._scores)
        if self.benchmark is not None:
            console.print()
            screen.render(console, self._benchmark_tables(), self.benchmark.caption)

    def to_markdown(self, drawings: Sequence[Drawing] = ()) -> str:
        """Return the tables and the caption as Markdown.

        Args:
            drawings: Figures that lie in the folder ``figures`` beside it.
        """
        parts = [f"# {markup.markdown_text(self.campaign.name)}"]
        for title, table in self._ranked():
            parts.append(f"## {markup.markdown_text(title)}" if not table.empty else markup.markdown_text(title))
            if not table.empty:
                parts.append(markup.markdown_table(table, self._scores, "rank").rstrip())
        parts += ["## Run time", markup.markdown_table(self.run_time).rstrip(), self._markdown_caption()]
        if self.benchmark is not None:
            text = self.benchmark.to_markdown().strip()
            parts += [text] if text.startswith("#") else ["## Benchmark", text]
        if drawings:
            parts.append("## Figures")
        for drawing in drawings:
            said = f"**{markup.markdown_text(drawing.title)}.** {markup.markdown_text(drawing.caption)}"
            parts += [f"![{markup.markdown_text(drawing.title)}](figures/{drawing.name}.png)", said]
        return "\n\n".join(parts) + "\n"

    def to_html(self, drawings: Sequence[Drawing] = ()) -> str:
        """Return one page with tables, captions and figures in it, that needs nothing else.

        Args:
            drawings: The figures.
        """
        sections: list[page.Section] = []
        for title, table in self._ranked():
            sections.append((title.rstrip("."), "" if table.empty else page.table(table, self._scores, "rank")))
        sections.append(("Run time", page.table(self.run_time)))
        sections.append(("What the scores are", page.notes(self.caption)))
        if self.benchmark is not None:
            body = [f"<h3>{page.text(title)}</h3>{page.table(t)}" for title, t, _ in self._benchmark_tables()]
            sections.append(("Benchmark", "\n".join(body) + page.notes(self.benchmark.caption)))
        if drawings:
            sections.append(("Figures", page.figures(drawings, _LARGE)))
        simulated = tables.is_simulated(self.campaign)
        banner = "The data are simulated: these scores say nothing about real cells." if simulated else ""
        return page.page(self.campaign.name, sections, banner)

    def write(self, folder: Path, *, figures: bool = True) -> list[Path]:
        """Write the report and return the paths of the files.

        ``report.html`` and ``report.md``; ``best``, ``worst`` and ``run_time`` as ``.csv``, ``.md`` and ``.tex``;
        ``ranking.csv``; ``trials.csv`` with all trials; ``figures/*`` as ``.png``, ``.svg`` and ``.csv`` where
        matplotlib is installed; ``benchmark`` as ``.csv``, ``.md`` and ``.tex`` where there is one. Tables have the
        same names each time, so that none of an earlier report stays.

        Args:
            folder: Made where it does not exist.
            figures: Whether figures are made; where not, those of an earlier report are left as they are.

        Raises:
            InputError: If the folder cannot be written, or `parameter` is not searched.
        """
        drawings = self.figures if figures and self.can_draw else []
        files: dict[str, str | bytes] = {"report.html": self.to_html(drawings), "report.md": self.to_markdown(drawings)}
        files |= self._tables() | self._benchmark_files()
        mark = self._mark
        for drawing in drawings:
            files[f"figures/{drawing.name}.png"] = drawing.png
            files[f"figures/{drawing.name}.svg"] = drawing.svg
            files[f"figures/{drawing.name}.csv"] = export.csv_text(drawing.data, None, mark)
        return export.write(Path(folder), files)

    def _tables(self) -> dict[str, str]:
        """Return the files of the tables."""
        files: dict[str, str] = {}
        for name, title, table in (
            ("best", self._best_title(), self.best),
            ("worst", self._worst_title(), self.worst),
        ):
            files[f"{name}.csv"] = export.csv_text(table, "rank", self._mark)
            files[f"{name}.md"] = self._markdown(title, table, "rank")
            files[f"{name}.tex"] = markup.latex_table(table, [title, *self.caption], self._scores, "rank")
        files["ranking.csv"] = export.csv_text(self.ranking, "rank", self._mark)
        files["run_time.csv"] = export.csv_text(self.run_time)
        files["run_time.md"] = self._markdown("Run time", self.run_time, None)
        files["run_time.tex"] = markup.latex_table(self.run_time, ["Run time.", *self.caption])
        files["trials.csv"] = export.csv_text(frame(self.trials, self._metric), None, self._mark)
        return files

    def _benchmark_tables(self) -> list[tuple[str, pd.DataFrame, None]]:
        """Return the tables of the benchmark with their titles: those for people where it has such."""
        tables = [
            ("Benchmark on the test part", getattr(self.benchmark, "readable", None)),
            ("Against the default configuration, seed by seed", getattr(self.benchmark, "readable_comparisons", None)),
            ("Configurations", getattr(self.benchmark, "configurations", None)),
        ]
        shown = [(title, table, None) for title, table in tables if table is not None and not table.empty]
        return shown or [("Benchmark", self.benchmark.table, None)] if self.benchmark is not None else []

    def _benchmark_files(self) -> dict[str, str]:
        """Return the files of the benchmark."""
        if self.benchmark is None:
            return {}
        if hasattr(self.benchmark, "files"):
            made: dict[str, str] = self.benchmark.files()
            return made
        table, said = self.benchmark.table, self.benchmark.caption
        return {
            "benchmark.csv": export.csv_text(table, None, self._mark),
            "benchmark.md": self.benchmark.to_markdown(),
            "benchmark.tex": markup.latex_table(table, ["Benchmark.", *said]),
        }

    @property
    def _mark(self) -> str | None:
        return "simulated" if tables.is_simulated(self.campaign) else None

    @property
    def _metric(self) -> str:
        return self.campaign.metric["name"]

    @property
    def _scores(self) -> list[str]:
        return tables.scores_of(self.campaign)

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
            parts.append(markup.markdown_table(table, self._scores if label else None, label).rstrip())
        return "\n\n".join([*parts, self._markdown_caption()]) + "\n"

    def _markdown_caption(self) -> str:
        return "\n".join(f"- {markup.markdown_text(line)}" for line in self.caption)
