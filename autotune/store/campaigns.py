"""Campaigns, and the audit of what people and coordinators did to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING, DESCENDING, ReturnDocument

from autotune.errors import CampaignExistsError, NotFoundError, StateError, StoreError, nearest
from autotune.store.base import CampaignRecord
from autotune.store.connection import Connection, mapped
from autotune.store.documents import campaign_document, campaign_record
from autotune.store.expressions import NOW, Expression, insert_only, literal
from autotune.store.schema import SCHEMA_VERSION
from autotune.trial import CampaignState

_log = logging.getLogger(__name__)

ENDED = frozenset({CampaignState.FINISHED, CampaignState.FAILED, CampaignState.CANCELLED})
"""States in which a campaign needs nothing more."""


_RAN_S = {"$ifNull": ["$ran_s", 0.0]}
_SINCE = {"$ifNull": ["$running_since", "$created_at"]}
_USED_S = {
    "$cond": [
        {"$eq": ["$state", str(CampaignState.RUNNING)]},
        {"$add": [_RAN_S, {"$divide": [{"$max": [0, {"$subtract": [NOW, _SINCE]}]}, 1000]}]},
        _RAN_S,
    ]
}
"""Seconds that a campaign has been in state running, on the database's clock."""


def opened(name: str) -> StateError:
    """Return the error of whoever would let a campaign go on whose test part is open."""
    return StateError(
        f"campaign '{name}' is over for good: its test part has been opened by a benchmark; launch another campaign, "
        "with another split.seed"
    )


def _extending(fields: Mapping[str, Any], goes_on: Expression) -> list[Expression]:
    """Return the update that sets a budget and lets a campaign go on where `goes_on` holds."""
    reopened = {"state": str(CampaignState.RUNNING), "message": "", "ended_at": None, "running_since": NOW}
    return [
        {
            "$set": {
                **fields,
                "revision": {"$add": [{"$ifNull": ["$revision", 0]}, 1]},
                **{key: {"$cond": [goes_on, value, f"${key}"]} for key, value in reopened.items()},
            }
        }
    ]


def _can_go_on(fields: Mapping[str, Any], count: int) -> Expression:
    """Return whether a campaign with `count` trials is finished and a larger budget gives it room to go on."""
    grows = [
        {"$and": [{"$ne": [{"$ifNull": [f"${key}", None]}, None]}, {"$gt": [value, f"${key}"]}]}
        for key, value in fields.items()
    ]
    hours = fields.get("max_hours", {"$ifNull": ["$max_hours", None]})
    in_time = {"$or": [{"$eq": [hours, None]}, {"$lt": [_RAN_S, {"$multiply": [hours, 3600]}]}]}
    is_finished = {"$eq": ["$state", str(CampaignState.FINISHED)]}
    room = {"$gt": [fields.get("max_trials", "$max_trials"), count]}
    return {"$and": [is_finished, {"$or": grows}, room, in_time]}


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A larger budget; what is None stays as it is.

    Attributes:
        max_trials: The new total number of trials.
        max_hours: The new total of hours in which the campaign runs.
        max_device_hours: The new total of hours of devices.
    """

    max_trials: int | None = None
    max_hours: float | None = None
    max_device_hours: float | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that change."""
        return {key: value for key, value in vars(self).items() if value is not None}


class Campaigns:
    """The collections ``campaigns`` and ``events``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._campaigns = connection.database["campaigns"]
        self._events = connection.database["events"]

    @mapped
    def create(self, record: CampaignRecord, who: str = "") -> bool:
        """Write a new campaign; return whether it was new.

        Returns:
            False when the same definition is there under that name: the campaign was left as it is.

        Raises:
            CampaignExistsError: If another definition is there under that name.
        """
        since = NOW if record.state is CampaignState.RUNNING else None
        before = self._campaigns.find_one_and_update(
            {"_id": record.name},
            insert_only(campaign_document(record), {"created_at": NOW, "running_since": since}),
            upsert=True,
            return_document=ReturnDocument.BEFORE,
            projection={"spec_hash": 1, "schema_version": 1},
        )
        if before is None:
            self.audit(record.name, "create", who)
            return True
        if before["spec_hash"] != record.spec_hash:
            raise CampaignExistsError(
                f"campaign '{record.name}' is already in this store with another definition; "
                "choose another name, or run the file it was launched with"
            )
        return False

    @mapped
    def get(self, name: str) -> CampaignRecord:
        """Return a campaign.

        Raises:
            NotFoundError: If there is none of that name; names the nearest.
        """
        document = next(self._read({"_id": name}), None)
        if document is None:
            names = [d["_id"] for d in self._campaigns.find({}, {"_id": 1}).limit(1000)]
            hint = nearest(name, names) if names else "; the store has no campaigns"
            raise NotFoundError(f"there is no campaign '{name}' in the store at {self.connection.address}{hint}")
        return campaign_record(document)

    @mapped
    def find(self, states: Iterable[CampaignState] | None = None) -> list[CampaignRecord]:
        """Return campaigns, newest first; all of them or those in `states`; damaged ones are left out."""
        query: dict[str, Any] = {} if states is None else {"state": {"$in": sorted(states)}}
        found = []
        for document in self._read(query, {"$sort": {"created_at": DESCENDING, "_id": ASCENDING}}):
            try:
                found.append(campaign_record(document))
            except StoreError as error:  # one damaged campaign must not keep workers from the others
                _log.warning("%s", error, extra={"action": "campaign-damaged"})
        return found

    @mapped
    def any(self, states: Iterable[CampaignState]) -> bool:
        """Return whether a campaign is in one of the states; the cheapest of all questions about campaigns."""
        return self._campaigns.find_one({"state": {"$in": sorted(states)}}, {"_id": 1}) is not None

    def _read(self, query: Mapping[str, Any], *stages: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        times = {"$addFields": {"used_s": _USED_S, "read_at": NOW}}
        return iter(self._campaigns.aggregate([{"$match": query}, times, *stages]))

    @mapped
    def relocate(self, record: CampaignRecord) -> None:
        """Take over from a launch of the same definition where data and objective lie, and what versions they have."""
        changes: dict[str, Any] = {"paths": list(record.paths), "environment": dict(record.environment)}
        path = (record.spec.get("data") or {}).get("path")
        if path is not None:
            changes["spec.data.path"] = path
        self._campaigns.update_one({"_id": record.name, "spec_hash": record.spec_hash}, {"$set": changes})

    @mapped
    def set_state(
        self,
        name: str,
        state: CampaignState,
        *,
        expected: Iterable[CampaignState],
        message: str = "",
        who: str = "",
        revision: int | None = None,
    ) -> bool:
        """Move a campaign to `state`; return whether this call moved it.

        Args:
            name: The campaign.
            state: Where to.
            expected: The states it may be in; in another one nothing is written.
            message: Why, one line.
            who: Who did it, for the audit.
            revision: Only if its trials were last changed from outside at this revision; None: in any case. So a
                coordinator does not end a campaign to which somebody gives more to do at that moment.

        Returns:
            False when it is in `state` already (the call is idempotent).

        Raises:
            NotFoundError: If there is no such campaign.
            StateError: If it is in a state, or at a revision, that was not expected.
        """
        ended: Any = NOW if state in ENDED else None
        since: Any = NOW if state is CampaignState.RUNNING else None
        update = [
            {"$set": {"ran_s": _USED_S}},
            {"$set": {"state": str(state), "message": literal(message), "ended_at": ended, "running_since": since}},
        ]
        wanted = [str(s) for s in expected if s != state]
        query: dict[str, Any] = {"_id": name, "state": {"$in": wanted}}
        if revision is not None:
            query["revision"] = revision
        if state not in ENDED:
            query["unsealed_at"] = None
        done = self._campaigns.update_one(query, update)
        if done.modified_count:
            self.audit(name, str(state), who, {"message": message} if message else {})
            return True
        found = self.get(name)
        if found.state == state:
            return False
        if found.unsealed_at is not None and state not in ENDED:
            raise opened(name)
        raise StateError(f"campaign '{name}' is {found.state}{': ' + found.message if found.message else ''}")

    @mapped
    def extend(self, name: str, extension: Extension, who: str = "") -> bool:
        """Give a campaign another budget; return whether that changed anything. Idempotent: totals, not additions.

        A finished campaign that has room in its new budget goes on: it is in state running afterwards. One in another
        state stays in it.

        Raises:
            NotFoundError: If there is no such campaign.
            StateError: If it is cancelled, its test part is open, or it has more trials already than the new budget
                allows.
        """
        found, fields = self._extendable(name), extension.fields()
        count = self.connection.database["trials"].count_documents({"campaign": name})
        if count > fields.get("max_trials", count):
            raise StateError(f"campaign '{name}' has {count} trials already; give it a budget of at least that")
        differs = [{key: {"$ne": value}} for key, value in fields.items()]
        if not differs:
            return False
        after = self._campaigns.find_one_and_update(
            {"_id": name, "state": {"$ne": str(CampaignState.CANCELLED)}, "unsealed_at": None, "$or": differs},
            _extending(fields, _can_go_on(fields, count)),
            return_document=ReturnDocument.AFTER,
            projection={"state": 1},
        )
        if after is None:
            self._extendable(name)
            return False
        reopened = found.state is CampaignState.FINISHED and after["state"] == str(CampaignState.RUNNING)
        self.audit(name, "extend", who, {**fields, **({"reopened": True} if reopened else {})})
        return True

    def _extendable(self, name: str) -> CampaignRecord:
        found = self.get(name)
        if found.state is CampaignState.CANCELLED:
            raise StateError(f"campaign '{name}' is cancelled; launch it under another name")
        if found.unsealed_at is not None:
            raise opened(name)
        return found

    @mapped
    def unseal(self, name: str, who: str = "") -> bool:
        """Open the test part of a finished campaign; return whether this call did. It never runs again.

        Raises:
            NotFoundError: If there is no such campaign.
            StateError: If it is not finished.
        """
        sealed = {"_id": name, "state": str(CampaignState.FINISHED), "unsealed_at": None}
        done = self._campaigns.update_one(sealed, [{"$set": {"unsealed_at": NOW}}])
        if done.modified_count:
            self.audit(name, "unseal", who)
            return True
        found = self.get(name)
        if found.unsealed_at is None:
            raise StateError(
                f"campaign '{name}' is {found.state}{': ' + found.message if found.message else ''}; its test part is "
                "opened when it is finished"
            )
        return False

    @mapped
    def touch(self, name: str) -> None:
        """Tell the coordinator of a campaign that trials were changed from outside: it reads all of them again."""
        self._campaigns.update_one({"_id": name}, {"$inc": {"revision": 1}})

    @mapped
    def audit(self, name: str, action: str, who: str = "", detail: Mapping[str, Any] | None = None) -> None:
        """Write down that something was done to a campaign."""
        self._events.insert_one(
            {
                "schema_version": SCHEMA_VERSION,
                "campaign": name,
                "action": action,
                "who": who,
                "detail": dict(detail or {}),
                "at": self._now(),
            }
        )

    @mapped
    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the audit of a campaign, oldest first."""
        return list(self._events.find({"campaign": name}, {"_id": 0}).sort([("at", ASCENDING), ("_id", ASCENDING)]))

    def _now(self) -> Any:
        return self.connection.client.admin.command("hello")["localTime"]
