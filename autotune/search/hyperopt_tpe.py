"""The tree-structured Parzen estimator of hyperopt, asked without hyperopt's own bookkeeping.

The algorithm is ``hyperopt.tpe.suggest`` (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
NIPS 2011): each parameter is modelled on its own by two densities, of the best ``ceil(gamma * sqrt(n))``
(at most 25) of n trials and of the rest, and takes the best of some candidates by their ratio. hyperopt
is imported on the first proposal that needs its model, not before.

Whole-number and stepped parameters are given to hyperopt as indices with their order (``quniform``), log
kinds on their log scale, choices as categories.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.search.base import PENDING, Memory, Observation, draw_unseen, exhausted, generator
from autotune.space import Choice, Float, Leaf, LogFloat, LogInt, LogNormal, Normal, Numeric, Space

_ATTEMPTS = 4  # asks of the model, each with an own seed, before a duplicate is replaced by a random draw


def warm_up() -> None:
    """Import hyperopt now, so that the first proposal does not wait for it (a second or two)."""
    for module in ("hyperopt", "hyperopt.tpe"):
        importlib.import_module(module)


@dataclass(frozen=True, kw_only=True)
class HyperoptTpe:
    """TPE by hyperopt, as a pure function of the history: the reference for `tpe`.

    How a trial enters the model: finished ones with their loss; failed ones as the worst, so that they repel;
    pending ones (queued, running, paused) with the mean of the finished losses; pruned and cancelled ones not
    at all. All of them count as seen. Until ``startup`` trials are in the model, and as long as none has a
    finite loss, proposals are those of random search with the same seed.

    Attributes:
        seed: Seed of all draws; 0 or more.
        startup: Number of trials in the model before it is used; 1 or more.
        gamma: Factor in the number of trials that count as good, ``ceil(gamma * sqrt(n))``.
        candidates: Number of candidates drawn per parameter; 1 or more.
        prior_weight: Weight of the prior relative to one trial.
    """

    seed: int = 0
    startup: int = 20
    gamma: float = 0.25
    candidates: int = 24
    prior_weight: float = 1.0
    _memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    _models: dict[Space, _Model] = field(default_factory=dict, repr=False, compare=False)

    def check(self, space: Space) -> None:
        """Accept every space."""

    def propose(self, space: Space, history: Sequence[Observation], number: int) -> dict[str, Any] | None:
        """Return a configuration that is not in the history; see `Search.propose`."""
        seen = self._memory.seen(space, history)
        if exhausted(space, seen):
            return None
        losses = _losses(history)
        if len(losses) >= self.startup:
            raws = {o.number: self._memory.look_up(space, o.params)[1] for o in history if o.number in losses}
            for attempt in range(1, _ATTEMPTS + 1):
                params = self._ask(space, raws, losses, number, attempt)
                if space.hash(params) not in seen:
                    return params
        return draw_unseen(space, seen, generator(self.seed, number))

    def _ask(
        self,
        space: Space,
        raws: Mapping[int, Mapping[str, int | float]],
        losses: Mapping[int, float | None],
        number: int,
        attempt: int,
    ) -> dict[str, Any]:
        model = self._models.get(space)
        if model is None:
            self._models.clear()
            model = self._models[space] = _Model(space)
        seed = int(np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)[0])
        options = {
            "n_startup_jobs": 0,
            "gamma": self.gamma,
            "n_EI_candidates": self.candidates,
            "prior_weight": self.prior_weight,
        }
        return model.suggest(raws, losses, number, seed, options)


def _losses(history: Sequence[Observation]) -> dict[int, float | None]:
    """Return what the model is told, by trial number; None is worse than every number.

    hyperopt reads a missing loss as +inf, which puts the trial into the bad group; NaN would make it vanish.
    The result is empty while no trial has a finite loss, because then there is no good group.
    """
    finite = [o.loss for o in history if o.loss is not None and math.isfinite(o.loss)]
    if not finite:
        return {}
    mean = float(np.mean(np.asarray(finite)))
    losses: dict[int, float | None] = {}
    for o in history:
        if o.state in PENDING:
            losses[o.number] = mean
        elif o.state == "failed" or (o.loss is not None and o.loss == math.inf):
            losses[o.number] = None
        elif o.loss is not None:
            losses[o.number] = o.loss
    return losses


class _Model:
    """A space in hyperopt's form."""

    def __init__(self, space: Space) -> None:
        hyperopt = importlib.import_module("hyperopt")
        self._space = space
        # A parameter with one value is no decision: hyperopt would refuse its empty range.
        self._leaves = {label: leaf for label, leaf in space.leaves().items() if not _fixed(leaf)}
        self._fixed = {
            label: leaf.parameter.at(leaf.parameter.limits[0])
            for label, leaf in space.leaves().items()
            if _fixed(leaf) and isinstance(leaf.parameter, Numeric) and leaf.parameter.limits is not None
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expression = self._expression(hyperopt.hp, None)
            self._domain = hyperopt.base.Domain(_no_objective, expression)

    def _expression(self, hp: Any, condition: tuple[str, int] | None) -> dict[str, Any]:
        """Return the expressions of all parameters under one condition, by label."""
        expressions: dict[str, Any] = {}
        for label, leaf in self._leaves.items():
            if leaf.condition != condition:
                continue
            if isinstance(leaf.parameter, Choice):
                options = [self._expression(hp, (label, i)) for i in range(len(leaf.parameter.options))]
                weights = leaf.parameter.weights
                expressions[label] = (
                    hp.choice(label, options)
                    if weights is None
                    else hp.pchoice(label, list(zip(weights, options, strict=True)))
                )
            elif isinstance(leaf.parameter, Numeric):
                expressions[label] = _numeric_expression(hp, label, leaf.parameter)
        return expressions

    def suggest(
        self,
        raws: Mapping[int, Mapping[str, int | float]],
        losses: Mapping[int, float | None],
        number: int,
        seed: int,
        options: Mapping[str, int | float],
    ) -> dict[str, Any]:
        """Ask hyperopt once.

        Args:
            raws: Decisions by trial number.
            losses: Losses by trial number.
            number: Number of the trial that the proposal is for.
            seed: Seed of this ask.
            options: Passed on to ``hyperopt.tpe.suggest``.
        """
        base, tpe = importlib.import_module("hyperopt.base"), importlib.import_module("hyperopt.tpe")
        docs = [self._doc(base, k, raws[k], losses[k]) for k in sorted(losses)]
        # hyperopt takes logs of densities that underflow to 0; that is harmless, and not the user's business.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            trials = base.trials_from_docs(docs, validate=False)
            (doc,) = tpe.suggest([number], self._domain, trials, seed, verbose=False, **options)
        decided = {label: float(values[0]) for label, values in doc["misc"]["vals"].items() if len(values)}
        return self._space.decode(self._fixed | {k: self._outer(k, v) for k, v in decided.items()})

    def _doc(self, base: Any, number: int, raw: Mapping[str, Any], loss: float | None) -> dict[str, Any]:
        """Return the document of one trial, as hyperopt's own loop would have made it."""
        active = {label: [self._inner(label, raw[label])] if label in raw else [] for label in self._leaves}
        status = base.STATUS_FAIL if loss is None else base.STATUS_OK
        return {
            "tid": number,
            "state": base.JOB_STATE_DONE,
            "spec": None,
            "result": {"status": status} if loss is None else {"status": status, "loss": loss},
            "misc": {
                "tid": number,
                "cmd": None,
                "workdir": None,
                "idxs": {label: [number] if values else [] for label, values in active.items()},
                "vals": active,
            },
            "exp_key": None,
            "owner": None,
            "version": 0,
            "book_time": None,
            "refresh_time": None,
        }

    def _inner(self, label: str, value: int | float) -> int | float:
        """Return a decision on hyperopt's scale."""
        parameter = self._leaves[label].parameter
        return parameter.index(value) if isinstance(parameter, Numeric) and parameter.quantised else value

    def _outer(self, label: str, value: float) -> int | float:
        """Return a value on hyperopt's scale as a decision, within bounds and on the grid."""
        parameter = self._leaves[label].parameter
        return parameter.nearest(value) if isinstance(parameter, Numeric) else int(value)


def _no_objective(_: Any) -> float:
    """Stand in for the objective that hyperopt's Domain asks for; nothing calls it."""
    return 0.0


def _fixed(leaf: Leaf) -> bool:
    return isinstance(leaf.parameter, Numeric) and leaf.parameter.size == 1


def _numeric_expression(hp: Any, label: str, parameter: Numeric) -> Any:
    """Return the prior of a numeric parameter, on the index scale if it is quantised."""
    if isinstance(parameter, LogNormal):
        if parameter.step is None:
            return hp.lognormal(label, parameter.mu, parameter.sigma)
        return hp.qlognormal(label, parameter.mu - math.log(parameter.step), parameter.sigma, 1)
    if isinstance(parameter, Normal):
        if parameter.step is None:
            return hp.normal(label, parameter.mu, parameter.sigma)
        return hp.qnormal(label, parameter.mu / parameter.step, parameter.sigma / parameter.step, 1)
    if parameter.limits is not None:
        low, high = parameter.limits[0] - 0.5, parameter.limits[1] + 0.5
        if isinstance(parameter, LogInt | LogFloat):
            return hp.qloguniform(label, math.log(low), math.log(high), 1)
        return hp.quniform(label, low, high, 1)
    if isinstance(parameter, LogFloat):
        return hp.loguniform(label, math.log(parameter.low), math.log(parameter.high))
    if isinstance(parameter, Float):
        return hp.uniform(label, parameter.low, parameter.high)
    raise TypeError(f"no prior for {parameter!r}")
