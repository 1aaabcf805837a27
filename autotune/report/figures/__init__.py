"""Figures of a campaign; needs matplotlib, and scikit-learn for the importance of parameters.

Drawn with matplotlib's objects alone: no window, no ``pyplot``, no settings of the user. The same input gives the same
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autotune.errors import InputError, nearest
from autotune.report.curves import Curve
from autotune.report.figures.best_so_far import best_so_far
from autotune.report.figures.coordinates import parallel_coordinates
from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.histories import history
from autotune.report.figures.importances import importances
from autotune.report.figures.marks import score_by
from autotune.report.figures.slices import slices
from autotune.store.base import CampaignRecord
from autotune.trial import Trial

__all__ = ["Drawing", "figures"]

FIRST_CHOICE = "n_layers"
MOST_PARAMETERS = 24
"""Of more parameters than so many, so many have a figure of their own."""


def figures(
    campaign: CampaignRecord,
    trials: Sequence[Trial],
    curves: Mapping[int, Curve] | None = None,
    default: Curve | None = None,
    parameter: str | None = None,
) -> list[Drawing]:
    """Return all figures, in the order in which they are shown; those of single parameters last but the first one.

    Args:
        campaign: The campaign.
        trials: Its trials.
        curves: Number of a trial -> its reports; None: not known, and their figure is left out.
        default: Reports of the default configuration.
        parameter: Whose figure is shown first; default: ``n_layers`` where it is searched, else the first.

    Raises:
        InputError: If `parameter` is not searched.
    """
    scene = Scene(campaign=campaign, trials=trials)
    singles = _by_parameter(scene, parameter)
    others = [best_so_far(scene), parallel_coordinates(scene), importances(scene), slices(scene)]
    if curves is not None:
        others.insert(0, history(scene, curves, default))
    return [*singles[:1], *others, *singles[1:]]


def _by_parameter(scene: Scene, parameter: str | None) -> list[Drawing]:
    names = [scale.name for scale in scene.scales]
    if parameter is not None and parameter not in names and scene.entries:
        raise InputError(f"'{parameter}' is no parameter of '{scene.campaign.name}'{nearest(parameter, names)}")
    if not names:
        why = "No trial has ended yet." if not scene.entries else "No parameter is searched."
        return [scene.empty("score_by", "Score against a parameter", why, ["number", "value", "score"])]
    first = parameter if parameter in names else FIRST_CHOICE if FIRST_CHOICE in names else names[0]
    ordered = sorted(scene.scales, key=lambda scale: scale.name != first)[:MOST_PARAMETERS]
    files = _file_names([scale.name for scale in ordered])
    return [score_by(scene, scale, name) for scale, name in zip(ordered, files, strict=True)]


def _file_names(names: Sequence[str]) -> list[str]:
    """Return a name of a file for each parameter, all different also where capitals do not count."""
    made: list[str] = []
    for name in names:
        base = "score_by_" + (re.sub(r"[^A-Za-z0-9_.-]+|\.\.+", "_", name).strip("._-")[:60] or "parameter")
        text, number = base, 2
        while text.lower() in {other.lower() for other in made}:
            text, number = f"{base}_{number}", number + 1
        made.append(text)
    return made
