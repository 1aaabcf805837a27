"""The one-liner: from an AnnData to the best scvi-tools model of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune.errors import CampaignExistsError, StateError
from autotune.local.follow import Progress
from autotune.local.resolve import as_campaign
from autotune.local.session import CampaignResult, launch
from autotune.store.mongo import MongoStore, open_store
from autotune.trial import CampaignState, Trial, TrialState

_PARTS = "workers.tuning"
"""Where the parts are that know AnnData and scvi-tools."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `tune_scvi` returns; ``model, campaign = tune_scvi(...)`` works as well.

    Attributes:
        model: The best trial's model, of scvi-tools: ``model.get_latent_representation()``, ``model.save(folder)``.
        campaign: The campaign with all its trials.
        adata: The cells that the model has: the AnnData that was passed, or a copy with the genes that were chosen.
        trial: The best trial.
        score: Its score, measured on `model`.
    """

    model: Any
    campaign: CampaignResult
    adata: Any
    trial: Trial
    score: float

    def __iter__(self) -> Iterator[Any]:
        """Give the model and the campaign."""
        return iter((self.model, self.campaign))


def tune_scvi(
    adata: Any,
    name: str,
    max_trials: int = 100,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    n_top_genes: int | None = None,
    space: Any = "default",
    metric: Any = None,
    split: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    seed: int = 0,
    store: str | MongoStore | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    allow_mismatch: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Tune scVI on these cells and return the best model, trained again with its seed.

    Calling it again with the same cells and settings goes on where it stopped, or returns the best of the finished
    campaign. Ctrl-C gives running trials back and pauses the campaign.

    Args:
        adata: Cells with raw counts, in memory. Counts and the columns named here are written to the service's folder
            (``AUTOTUNE_HOME``), where workers read them.
        name: Name of the campaign, unique in its store: letters, digits, ``-`` and ``_``.
        max_trials: Number of configurations to try.
        layer: The layer with raw counts; None for ``X``.
        batch_key: Column of ``obs`` with batches.
        labels_key: Column of ``obs`` with cell types; ``fixed={"model": "SCANVI"}`` trains with them.
        n_top_genes: Train on so many genes, those whose counts vary most; None: on all.
        space: As in a campaign file, or of hyperopt or Ray Tune expressions; ``"default"``: the workload's own.
        metric: Name of the metric to optimise, or a mapping or a list as in a campaign file; None: ``marginal_ll``.
        split: As in a campaign file; default: a quarter of the cells held out, drawn with `seed`.
        fixed: Parameters and settings with one value for all trials, for example ``{"max_epochs": 200}``.
        search: As in a campaign file; default: TPE with `seed`.
        schedule: As in a campaign file; default: every trial trains to its end.
        seed: Seed of the search and of the split, where they name none.
        store: URI of the store, or an open one; default: ``AUTOTUNE_STORE``, else the embedded store.
        workers: Number of local workers; they divide this machine's devices. 0: workers elsewhere do the work.
        devices: ``auto``, ``cpu`` or GPU numbers.
        slots_per_device: Number of trials at a time on each device.
        allow_mismatch: Whether packages or source may differ from those at the first call; the model's score may too.
        on_progress: Called a few times a second; default: progress is shown on standard error.

    Raises:
        InputError: What is wrong with the cells or the settings, one line; nothing has been written to the store.
        CampaignExistsError: If there is a campaign of that name with other cells or settings.
        StateError: If the campaign did not get to its end, or none of its trials finished.
        WorkerError: If the best trial cannot be trained again here; says why.
        StoreUnreachableError: If the store does not answer within 5 seconds.
        KeyboardInterrupt: On Ctrl-C.
    """
    parts = import_module(_PARTS)
    split = {"seed": seed, **(split or {})}
    keys = {"batch_key": batch_key, "labels_key": labels_key, "split['by']": split.get("by")}
    table = parts.table_of(adata, layer=layer, keys=keys)
    if n_top_genes is not None:
        parts.check_unique(table.genes)
    data = {
        "path": str(table.path), "name": name, "layer": layer, "batch": batch_key, "labels": labels_key,
        "genes": None if n_top_genes is None else {"top_variance": n_top_genes},
    }  # fmt: skip
    content = {
        "name": name,
        "objective": "scvi",
        "data": {key: value for key, value in data.items() if value is not None},
        "split": split,
        "metric": metric,
        "space": space,
        "search": {"algorithm": "tpe", "seed": seed, **(search or {})},
        "schedule": schedule,
        "fixed": fixed,
        "budget": {"max_trials": max_trials},
    }
    campaign = as_campaign({key: value for key, value in content.items() if value is not None})
    table.write()
    del table  # the search takes hours; its copy of the counts is not needed meanwhile
    with nullcontext(store) if isinstance(store, MongoStore) else open_store(store) as opened:
        if workers == 0 and not opened.is_local:
            opened.datasets.push(Path(str(data["path"])))
        with parts.display(name, on_progress) as show, _known(name):
            result = launch(
                campaign, store=opened, workers=workers, devices=devices, slots_per_device=slots_per_device,
                allow_mismatch=allow_mismatch, on_progress=show,
            )  # fmt: skip
        best = _best_of(result)
        again = parts.best_model(
            opened, result.campaign, best, adata, on_cpu=devices == "cpu", allow_mismatch=allow_mismatch
        )
    return Tuned(model=again.model, campaign=result, adata=again.adata, trial=best, score=again.score)


@contextmanager
def _known(name: str) -> Iterator[None]:
    """Say of a name that is taken what its campaign differs in here, and how it gets more trials."""
    try:
        yield
    except CampaignExistsError:
        raise CampaignExistsError(
            f"campaign '{name}' is already in this store with other cells or settings; choose another name, or pass "
            f"what it was launched with; it gets more trials by: autotune extend {name} --trials N"
        ) from None


def _best_of(result: CampaignResult) -> Trial:
    """Return the best trial of a campaign that got to its end.

    Raises:
        StateError: If it did not, or no trial finished.
    """
    record, best = result.campaign, result.best
    why = f" ({record.message})" if record.message else ""
    failed = [trial.failure for trial in result.trials if trial.state is TrialState.FAILED]
    if failed and failed[-1] is not None:
        why += f"; the last trial failed with {failed[-1].cause}: {failed[-1].message}"
    if record.state is not CampaignState.FINISHED:
        so_far = f"; the best so far: autotune best {record.name} --save DIR" if best is not None else ""
        raise StateError(f"campaign '{record.name}' is {record.state}{why}{so_far}")
    if best is None:
        raise StateError(f"none of the {len(result.trials)} trials of '{record.name}' finished{why}")
    return best
