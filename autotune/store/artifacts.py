"""Checkpoints of trials, kept for other hosts: the data first, then the reference to it in the trial's document.

`Artifacts.put` returns a `Reference` only when the data are there to stay; the caller then writes it into the trial.
Whatever dies in between leaves data that nothing refers to; `Artifacts.collect` removes them when nobody has touched
them for a time of grace. A reference whose writing was held up longer than that is renewed by `Artifacts.touch`
before it is written: so the store never refers to what is not there.

What to keep and when there is too much are pure functions of the campaign's trials: `references_to_keep`, `pressure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from autotune.errors import DataError, InputError, StoreError
from autotune.store.archives import packed, unpack
from autotune.store.base import CampaignRecord
from autotune.store.connection import Connection, mapped
from autotune.store.shelf import Shelf
from autotune.store.shelf_folder import FolderShelf
from autotune.store.shelf_grid import GridShelf
from autotune.store.shelf_url import UrlShelf

GRACE_S = 3600.0
"""So long data that nothing refers to are left alone, on the clock of whatever keeps them."""
TIGHT = 0.8
"""Above this share of the quota, what nothing refers to is removed more often."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a trial's document says of its checkpoint.

    Attributes:
        sha256: Of the archive, 64 hexadecimal digits.
        size: Bytes of the archive.
        step: Steps trained when it was written.
        url: Where it is: None for the store's GridFS, else the campaign's ``checkpoints.url``.
    """

    sha256: str
    size: int
    step: int
    url: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it as a trial's document holds it."""
        return {"sha256": self.sha256, "size": self.size, "step": self.step, "url": self.url}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Reference:
        """Return what a document says.

        Raises:
            DataError: If it is none.
        """
        sha256 = document.get("sha256")
        if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise DataError(f"a trial refers to a checkpoint by {sha256!r}, which is no SHA-256")
        return cls(
            sha256=sha256,
            size=int(document["size"]),
            step=int(document["step"]),
            url=document.get("url"),
        )


class Artifacts:
    """The checkpoints of one campaign.

    Args:
        connection: To the store.
        campaign: `place_of` the campaign: a name that no other one has had, in this store or another.
        url: The campaign's ``checkpoints.url``; None for GridFS in the store.

    Raises:
        InputError: If the URL is not usable.
        StoreSetupError: If a package for it is missing.
    """

    def __init__(self, connection: Connection, *, campaign: str, url: str | None = None) -> None:
        self.connection = connection
        self.url = url
        self._shelf = shelf_at(url, connection, campaign)

    @mapped
    def put(self, folder: Path, *, step: int) -> Reference:
        """Keep a folder; return how to refer to it, once it is whole and there to stay.

        Putting the same files again, for example after the store was away, sends nothing.

        Raises:
            DataError: If it is no folder, or holds links or other special files.
            OSError: If the folder cannot be read: a newer checkpoint has replaced it; look for that one.
            StoreError: If the data cannot be kept; `StoreUnreachableError` if trying again may help.
        """
        with packed(folder) as archive:
            reference = Reference(sha256=archive.sha256, size=archive.size, step=step, url=self.url)
            if not self._shelf.touch(archive.sha256, archive.size):
                self._shelf.write(archive)
        return reference

    @mapped
    def touch(self, reference: Reference) -> bool:
        """Return whether the data are there; if so, nobody collects them for another time of grace.

        To be called right before a reference is written that was got more than a few minutes ago; where it returns
        False the folder must be put again.
        """
        return self._shelf.touch(reference.sha256, reference.size)

    @mapped
    def fetch(self, reference: Reference, folder: Path) -> None:
        """Bring a checkpoint into a folder that does not exist yet; it appears whole or not at all.

        Raises:
            NotFoundError: If it is not there.
            DataError: If it is damaged, or holds anything but plain files and folders.
            OSError: If this host's disk does not take it.
            StoreError: If it cannot be read; `StoreUnreachableError` if trying again may help.
        """
        unpack(self._shelf.read(reference.sha256), reference.sha256, reference.size, folder)

    @mapped
    def collect(self, keep: Iterable[str], *, grace_s: float = GRACE_S) -> list[str]:
        """Remove what nothing refers to and nobody has touched for `grace_s`; return the hashes of what was removed.

        Args:
            keep: Hashes of the references to keep, read after the trials' last change that the caller knows of.
            grace_s: In seconds; 0 only when no worker serves the campaign.
        """
        return self._shelf.collect(frozenset(keep), grace_s)

    @mapped
    def usage(self) -> int:
        """Return the bytes of this campaign's checkpoints, those that nothing refers to included."""
        return sum(self._shelf.sizes().values())

    @mapped
    def missing(self, references: Iterable[Reference]) -> list[Reference]:
        """Return the references whose data are not there whole: for `autotune store check`."""
        there = self._shelf.sizes()
        return [reference for reference in references if there.get(reference.sha256) != reference.size]


def shelf_at(url: str | None, connection: Connection, campaign: str) -> Shelf:
    """Return the shelf of a campaign.

    Args:
        url: None for the store itself, ``file:///folder``, or any URL of fsspec.
        connection: To the store.
        campaign: A name that no other campaign has, ever.

    Raises:
        InputError: If the URL is not usable.
        StoreSetupError: If a package for it is missing.
    """
    if url is None:
        return GridShelf(connection, campaign)
    parts = urlsplit(url)
    if parts.scheme != "file":
        return UrlShelf(url, campaign)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InputError(f"checkpoints.url {url} is not usable: write file:///folder with three slashes")
    return FolderShelf(Path(unquote(parts.path)), campaign)


def place_of(campaign: CampaignRecord) -> str:
    """Return the name under which a campaign's checkpoints lie: its own, and the moment of its creation.

    So two stores, or two campaigns of one name one after the other, share a folder without harm.

    Raises:
        StoreError: If the record did not come from a store.
    """
    if campaign.created_at is None:
        raise StoreError(f"campaign '{campaign.name}' is not in a store: it has no place for checkpoints")
    return f"{campaign.name}-{campaign.created_at:%Y%m%dT%H%M%S%f}"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A trial as retention sees it.

    Attributes:
        number: Number of the trial.
        resumable: Whether it may go on from its checkpoint: it is queued, running or paused, or a person may retry it.
        loss: Its score, smaller is better (mode ``max`` is negated); None for none, or one that is no finite number.
        sha256: The hash that its document refers to.
    """

    number: int
    resumable: bool
    loss: float | None
    sha256: str


def references_to_keep(holders: Iterable[Holder], *, top: int = 0) -> Set[str]:
    """Return the hashes to keep: those of trials that may go on, and of the `top` best that have ended.

    Of equal losses the lower number is kept.
    """
    holders = list(holders)
    ended = [h for h in holders if not h.resumable and h.loss is not None]
    best = sorted(ended, key=lambda h: (h.loss, h.number))[:top]
    return frozenset(h.sha256 for h in [*(h for h in holders if h.resumable), *best])


class Pressure(StrEnum):
    """What a quota asks for.

    NONE: nothing. COLLECT: remove what nothing refers to now, not at the next turn. HOLD: as COLLECT; begin no new
    trials, keep no checkpoints that are only due by ``checkpoints.every``. Trials that are paused may still go on and
    end, which is what frees space; pauses and hand-overs are still kept, since refusing them would throw work away.
    """

    NONE = "none"
    COLLECT = "collect"
    HOLD = "hold"


def pressure(used: int, quota: int | None) -> Pressure:
    """Return what to do with so many bytes in use.

    Args:
        used: `Artifacts.usage`.
        quota: The campaign's ``checkpoints.max_gb`` in bytes, or None for no bound.
    """
    if quota is None or used < TIGHT * quota:
        return Pressure.NONE
    return Pressure.COLLECT if used < quota else Pressure.HOLD
