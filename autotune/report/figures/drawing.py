"""One figure, ready to be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from autotune.report.figures.scales import Scale, scales
from autotune.report.figures.scores import ScoreAxis
from autotune.report.figures.style import DPI, canvas, note, plain, render
from autotune.report.ranking import Entry, rank
from autotune.report.tables import dataset, is_simulated
from autotune.store.base import CampaignRecord
from autotune.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure.

    Attributes:
        name: Name of its files, without the ending.
        title: A few words.
        caption: Sentences under it.
        alt: What it shows, for who cannot see it.
        data: Exactly what is drawn, one row per mark.
        draw: Makes the figure; called when a picture is asked for.
    """

    name: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    draw: Callable[[], Figure]

    @cached_property
    def _pictures(self) -> tuple[bytes, bytes]:
        return render(self.draw)

    @property
    def png(self) -> bytes:
        """The picture, 200 dpi."""
        return self._pictures[0]

    @property
    def svg(self) -> bytes:
        """The picture."""
        return self._pictures[1]

    @property
    def width_px(self) -> int:
        """Width on a page, in CSS pixels: 1.3 times the width in print."""
        return round(int.from_bytes(self.png[16:20], "big") / DPI * 96 * 1.3)  # the header of PNG says its width


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What figures are drawn from.

    Attributes:
        campaign: The campaign.
        trials: Its trials.
    """

    campaign: CampaignRecord
    trials: Sequence[Trial]

    @cached_property
    def entries(self) -> list[Entry]:
        """Ranked configurations, in order of number."""
        return sorted(rank(self.trials, self.campaign.metric["mode"]), key=lambda entry: entry.number)

    @cached_property
    def best(self) -> Entry | None:
        """The best finished configuration, or None."""
        first = next(iter(rank(self.trials, self.campaign.metric["mode"])), None)
        return first if first is not None and first.is_scored else None

    @cached_property
    def scales(self) -> list[Scale]:
        """Axes of the parameters that are searched."""
        return scales(self.campaign, self.entries)

    @cached_property
    def scores(self) -> ScoreAxis:
        """The axis of scores."""
        return ScoreAxis.of(self.campaign, self.entries)

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised."""
        return self.campaign.metric["name"]

    @cached_property
    def has_epochs(self) -> bool:
        """Whether trials say how many epochs they trained."""
        return any(entry.facts.get("n_epochs") is not None for entry in self.entries)

    def head(self, count: int | None = None, thing: str = "configuration", of: int | None = None) -> str:
        """Return the line above a figure: campaign, data, how many (of how many), and if the data are simulated."""
        of = len(self.entries) if of is None else of
        count = of if count is None else count
        shown = str(count) if count == of else f"{count} of {of}"
        parts = [plain(self.campaign.name, 40)]
        data = dataset(self.campaign)
        if is_simulated(self.campaign):
            parts.append("SIMULATED DATA")
        elif data:
            parts.append(plain(data, 34))
        return "  ·  ".join([*parts, f"{shown} {thing}{'' if of == 1 else 's'}"])

    @property
    def simulated(self) -> str:
        """A sentence where the data are simulated, or nothing."""
        return "The data are simulated. " if is_simulated(self.campaign) else ""

    def counted(self) -> str:
        """Return how many configurations are shown, as the begin of a caption."""
        count = len(self.entries)
        return f"{self.simulated}{count} configuration{'' if count == 1 else 's'}."

    def empty(self, name: str, title: str, why: str, columns: Sequence[str]) -> Drawing:
        """Return a figure that says why there is nothing to draw."""

        def draw() -> Figure:
            figure = canvas(89, 40, self.head())
            note(figure.add_subplot(), why)
            return figure

        data = pd.DataFrame({column: pd.Series(dtype="object") for column in columns})
        return Drawing(draw=draw, name=name, title=title, caption=why, alt=why, data=data)
