"""How good the best of 25, 50 and 100 trials is: ours, hyperopt, Optuna, SMAC3 and random search.

Each search proposes 100 trials of each task, one at a time and with 16 slots. Slots are simulated: a trial takes a
random time (lognormal, 1 in the mean; the same for all searches), results are told in the order in which they come,
and a search is asked as soon as a slot is free. "After n" means when n trials have ended.

Ranks are within a task and a seed, ties shared; the mean rank is over all tasks and seeds, with a 95% interval from
bootstrap over tasks and seeds. Regret is normalised per task: 0 is the best value anybody found, 1 the median of
random search after 25 trials. Searches are compared with ``--against`` by a paired bootstrap of the difference of ranks
over tasks, and by Wilcoxon's signed-rank test of these differences. With ``--runs FILE`` each run is written to a file
as it ends, and runs that are there are not made again: a comparison can be made in pieces. (Delete the runs of a search
that has changed.)

    python benchmarks/search_quality.py [--seeds 30] [--processes 2] [--only SEARCH ...] [--families ...]
"""

from __future__ import annotations

import heapq
import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click
import common
import numpy as np
from optuna_space import suggest
from scipy.stats import wilcoxon
from search_tasks import Task, all_tasks

TRIALS = 100
AFTER = (25, 50, 100)
SLOTS = (1, 16)


class Asker(Protocol):
    """A search, asked and told."""

    def ask(self, number: int) -> Mapping[str, Any]:
        """Return the configuration of trial ``number``."""
        ...

    def tell(self, number: int, loss: float) -> None:
        """Take the loss of a trial."""
        ...


class Ours:
    """One of our searches."""

    def __init__(self, task: Task, seed: int, **settings: Any) -> None:
        from autotune.search import History, make_search
        from autotune.space import parse_space

        self._space = parse_space(task.space)
        self._search = make_search({**settings, "seed": seed})
        self._history = History()
        self._params: dict[int, Mapping[str, Any]] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        """See `Asker`."""
        from autotune.search import Observation

        params = self._search.propose(self._space, self._history, number)
        if params is None:
            raise SystemExit("the space is exhausted")
        self._params[number] = params
        self._history.put(Observation(number=number, params=params, state="running"))
        return params

    def tell(self, number: int, loss: float) -> None:
        """See `Asker`."""
        from autotune.search import Observation

        params = self._params[number]
        self._history.put(Observation(number=number, params=params, state="finished", loss=loss))


class Hyperopt:
    """``hyperopt.tpe.suggest`` with its defaults; what runs counts as infinitely bad, as in its own loop."""

    def __init__(self, task: Task, seed: int) -> None:
        from autotune.search.hyperopt_tpe import _Model
        from autotune.space import parse_space

        self._space = parse_space(task.space)
        self._model = _Model(self._space)
        self._seed = seed
        self._raws: dict[int, Mapping[str, int | float]] = {}
        self._losses: dict[int, float | None] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        """See `Asker`."""
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        params = self._model.suggest(self._raws, self._losses, number, seed, {})
        self._raws[number], self._losses[number] = self._space.encode(params), None
        return params

    def tell(self, number: int, loss: float) -> None:
        """See `Asker`."""
        self._losses[number] = loss


class Optuna:
    """Optuna's TPE sampler."""

    def __init__(self, task: Task, seed: int, **settings: Any) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(seed=seed, **settings)
        self._study = optuna.create_study(sampler=sampler)
        self._space = task.space
        self._trials: dict[int, Any] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        """See `Asker`."""
        trial = self._trials[number] = self._study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: suggest(trial, name, d) for name, d in self._space.items()}

    def tell(self, number: int, loss: float) -> None:
        """See `Asker`."""
        self._study.tell(self._trials[number], loss)


class Smac:
    """SMAC3's facade for hyperparameters (random forest), asked and told."""

    def __init__(self, task: Task, seed: int) -> None:
        import logging
        import tempfile

        import ConfigSpace as cs
        from smac import HyperparameterOptimizationFacade, Scenario

        logging.disable(logging.WARNING)
        space = cs.ConfigurationSpace(seed=seed)
        self._options: dict[str, list[Any]] = {}
        self._add(space, "", task.space, None, cs)
        self._folder = tempfile.TemporaryDirectory()
        scenario = Scenario(space, n_trials=TRIALS, seed=seed, deterministic=True, output_directory=self._folder.name)
        design = HyperparameterOptimizationFacade.get_initial_design(scenario)
        self._smac = HyperparameterOptimizationFacade(scenario, lambda config, seed: 0.0, initial_design=design,
                                                      logging_level=False, overwrite=True)  # fmt: skip
        self._space = task.space
        self._asked: dict[int, Any] = {}

    def _add(self, space: Any, prefix: str, definitions: Mapping[str, Any], condition: Any, cs: Any) -> None:
        for key, definition in definitions.items():
            if not isinstance(definition, dict):
                continue
            name = f"{prefix}{key}"
            if "choice" in definition:
                self._options[name] = definition["choice"]
                made: Any = cs.CategoricalHyperparameter(name, [str(i) for i in range(len(definition["choice"]))])
            else:
                ((kind, (low, high)),) = definition.items()
                of = cs.UniformIntegerHyperparameter if kind.endswith("int") else cs.UniformFloatHyperparameter
                made = of(name, low, high, log=kind.startswith("log"))
            space.add(made)
            if condition is not None:
                space.add(cs.EqualsCondition(made, *condition))
            for i, option in enumerate(self._options.get(name, [])):
                if isinstance(option, dict):
                    self._add(space, f"{name}.{i}.", option, (made, str(i)), cs)

    def _read(self, config: Any, prefix: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, definition in definitions.items():
            name = f"{prefix}{key}"
            if not isinstance(definition, dict):
                found[key] = definition
            elif "choice" in definition:
                i = int(config[name])
                option = self._options[name][i]
                found[key] = self._read(config, f"{name}.{i}.", option) if isinstance(option, dict) else option
            else:
                found[key] = config[name]
        return found

    def ask(self, number: int) -> Mapping[str, Any]:
        """See `Asker`."""
        info = self._asked[number] = self._smac.ask()
        return self._read(info.config, "", self._space)

    def tell(self, number: int, loss: float) -> None:
        """See `Asker`."""
        from smac.runhistory.dataclasses import TrialValue

        self._smac.tell(self._asked[number], TrialValue(cost=loss))


SEARCHES: dict[str, Any] = {
    "tpe": lambda task, seed: Ours(task, seed, algorithm="tpe"),
    "tpe, hyperopt's algorithm": lambda task, seed: Ours(
        task, seed, algorithm="tpe", multivariate=False, split="sqrt", startup=20
    ),
    "random": lambda task, seed: Ours(task, seed, algorithm="random"),
    "hyperopt": Hyperopt,
    "Optuna, univariate": lambda task, seed: Optuna(task, seed, multivariate=False, constant_liar=True),
    "Optuna, multivariate": lambda task, seed: Optuna(task, seed, multivariate=True, group=True, constant_liar=True),
    "Optuna, default": lambda task, seed: Optuna(task, seed),
    "SMAC3": Smac,
}
# Further settings of ours, for experiments only; not in the default run.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    f"tpe {text}": {"algorithm": "tpe", **json.loads(text)} for text in os.environ.get("TPE", "").split(";") if text
}
for _name, _settings in EXPERIMENTS.items():
    SEARCHES[_name] = lambda task, seed, settings=_settings: Ours(task, seed, **settings)


def play(search: Asker, task: Task, slots: int, seed: int) -> list[float]:
    """Run 100 trials on simulated slots; return the losses in the order in which trials end."""
    running: list[tuple[float, int, float]] = []
    ended: list[float] = []
    now, number = 0.0, 0
    while len(ended) < TRIALS:
        while number < TRIALS and len(running) < slots:
            loss = task.loss(search.ask(number))
            takes = float(np.random.default_rng([seed, number]).lognormal(-0.125, 0.5))
            heapq.heappush(running, (now + takes, number, loss))
            number += 1
        now, which, loss = heapq.heappop(running)
        search.tell(which, loss)
        ended.append(loss)
    return ended


Job = tuple[str, str, int, int]
"""Task, search, slots and seed of a run."""


def run(job: Job) -> tuple[Job, list[float], float]:
    """Run one search on one task once; return the best values after so many trials, and CPU seconds."""
    name, search, slots, seed = job
    task = all_tasks()[name]
    began_s = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = play(SEARCHES[search](task, seed), task, slots, seed)
    best = np.minimum.accumulate(losses)
    return job, [float(best[n - 1]) for n in AFTER], time.process_time() - began_s


def runs(jobs: list[Job], processes: int, path: Path | None) -> Iterator[tuple[Job, list[float], float]]:
    """Yield the runs of jobs, those of the file first; append the others to it."""
    known: dict[Job, tuple[list[float], float]] = {}
    if path is not None and path.exists():
        whole = [line for line in path.read_text().splitlines() if line.endswith("]")]  # the last may be torn
        known = {tuple(job): (best, cpu_s) for job, best, cpu_s in map(json.loads, whole)}
    for job in jobs:
        if job in known:
            yield job, *known[job]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for made in pool.imap_unordered(run, [job for job in jobs if job not in known], chunksize=4):
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(made) + "\n")
            yield made


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1 on along the first axis, ties shared."""
    less = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(less + (same + 1) / 2)


def intervals(rank: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return 95% intervals of mean ranks by bootstrap over tasks, then seeds; rank: (n_searches, n_tasks, n_seeds)."""
    tasks, seeds = rank.shape[1:]
    means = []
    for _ in range(1000):
        chosen = rank[:, rng.integers(0, tasks, tasks)]
        means.append(chosen[:, :, rng.integers(0, seeds, seeds)].mean(axis=(1, 2)))
    low, high = np.percentile(np.array(means), [2.5, 97.5], axis=0)
    return low, high


def summary(found: dict[tuple[str, int], np.ndarray], searches: list[str], slots: int, against: str) -> list[Any]:
    """Return the figures of one number of slots; found: (task, slots) -> (n_searches, n_seeds, len(AFTER))."""
    tasks = [t for t, s in found if s == slots]
    rng = np.random.default_rng(0)
    figures = []
    for i, after in enumerate(AFTER):
        values = np.stack([found[t, slots][:, :, i] for t in tasks], axis=1)
        rank = ranks(values)
        low, high = intervals(rank, rng)
        scale = []
        for t in tasks:
            best = min(float(found[t, s].min()) for s in SLOTS if (t, s) in found)
            base = found[t, slots][searches.index("random"), :, 0] if "random" in searches else found[t, slots][:, :, 0]
            scale.append((best, max(float(np.median(base)) - best, 1e-12)))
        regret = np.stack([(values[:, j] - best) / width for j, (best, width) in enumerate(scale)], axis=1)
        mine = rank[searches.index(against)].mean(axis=1) if against in searches else None
        for k, search in enumerate(searches):
            row = {"slots": slots, "after": after, "search": search, "mean_rank": round(float(rank[k].mean()), 3),
                   "interval": [round(float(low[k]), 3), round(float(high[k]), 3)],
                   "regret": round(float(np.mean(np.clip(regret[k], 0, 10))), 4),
                   "regret_median": round(float(np.median(regret[k])), 4)}  # fmt: skip
            if mine is not None and search != against:
                difference = rank[k].mean(axis=1) - mine
                draws = rng.choice(difference, (4000, len(difference))).mean(axis=1)
                row["rank_less_ours"] = round(float(difference.mean()), 3)
                row["rank_less_ours_interval"] = [round(float(v), 3) for v in np.percentile(draws, [2.5, 97.5])]
                row["p"] = float(f"{wilcoxon(difference).pvalue:.2g}") if difference.any() else 1.0
            figures.append(row)
    return figures


def available(names: list[str]) -> list[str]:
    """Return the searches whose packages are installed."""
    found = []
    for name in names:
        try:
            if name.startswith("Optuna"):
                __import__("optuna")
            if name == "SMAC3":
                __import__("smac")
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        found.append(name)
    return found


@click.command()
@click.option("--seeds", default=30, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.option("--only", multiple=True, help="Searches; all if not given.")
@click.option(
    "--families", default="function,table,bbob-mixint", show_default=True, help="NAME:2: each second task of it."
)
@click.option("--slots", "counts", multiple=True, type=int, default=SLOTS, show_default=True)
@click.option("--against", default="tpe", show_default=True)
@click.option("--runs", "runs_path", type=click.Path(dir_okay=False, path_type=Path), help="Keeps the runs.")
@click.option("--name", default="search_quality", show_default=True, help="Of the file in results/; empty: none.")
def main(
    seeds: int, first_seed: int, processes: int, only: tuple[str, ...], families: str, counts: tuple[int, ...],
    against: str, runs_path: Path | None, name: str,
) -> None:  # fmt: skip
    """Run, print tables, write results/NAME.json."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    searches = available(list(only) or list(SEARCHES))
    tasks = []
    for family, _, every in (part.partition(":") for part in families.split(",")):
        tasks += [t for t in all_tasks().values() if t.family == family][:: int(every or 1)]
    jobs = [
        (t.name, search, slots, seed)
        for t in tasks for slots in counts for search in searches for seed in range(first_seed, first_seed + seeds)
    ]  # fmt: skip
    found = {(t.name, s): np.full((len(searches), seeds, len(AFTER)), math.nan) for t in tasks for s in counts}
    taken_s = dict.fromkeys(searches, 0.0)
    for (task, search, slots, seed), best, cpu_s in runs(jobs, processes, runs_path):
        found[task, slots][searches.index(search), seed - first_seed] = best
        taken_s[search] += cpu_s
    figures = [row for slots in counts for row in summary(found, searches, slots, against)]
    for slots in counts:
        rows = [
            [search, *(f"{r['mean_rank']:.2f} ({r['interval'][0]:.2f} .. {r['interval'][1]:.2f}); {r['regret']:.3f}"
                       for r in figures if r["slots"] == slots and r["search"] == search)]
            for search in searches
        ]  # fmt: skip
        print(f"\n{slots} slots: mean rank (95% interval); normalised regret")
        print(common.table(["search", *(f"after {n}" for n in AFTER)], rows), flush=True)
        rows = [
            [r["search"], r["rank_less_ours"], *r["rank_less_ours_interval"], r["p"]]
            for r in figures if r["slots"] == slots and r["after"] == TRIALS and "p" in r
        ]  # fmt: skip
        print(common.table(["search", f"rank less that of {against}", "from", "to", "p"], rows), flush=True)
    if not name:
        return
    content = {
        "seeds": [first_seed, first_seed + seeds - 1],
        "trials": TRIALS,
        "tasks": {t.name: t.family for t in tasks},
        "cpu_s_per_run": {k: round(v / max(1, len(jobs) / len(searches)), 2) for k, v in taken_s.items()},
        "summary": figures,
        "medians": {
            f"{t} {s}": {search: np.median(v[k], axis=0).round(6).tolist() for k, search in enumerate(searches)}
            for (t, s), v in found.items()
        },
    }
    packages = common.versions("autotune", "hyperopt", "numpy", "optuna", "smac", "coco-experiment", "scikit-learn")
    command = f"python benchmarks/search_quality.py --seeds {seeds} --first-seed {first_seed} --families {families}"
    command += "".join(f" --only {search!r}" for search in only)
    print(common.write(name, command, content, packages))


if __name__ == "__main__":
    main()
