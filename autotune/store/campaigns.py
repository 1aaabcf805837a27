"""Campaigns, and the audit of what people and coordinators did to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING, DESCENDING, ReturnDocument

from autotune.errors import CampaignExistsError, NotFoundError, StateError, nearest
from autotune.store.base import CampaignRecord
from autotune.store.connection import Connection, mapped
from autotune.store.documents import campaign_document, campaign_record
from autotune.store.expressions import NOW, insert_only, literal
from autotune.store.schema import SCHEMA_VERSION
from autotune.trial import CampaignState

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
        before = self._campaigns.find_one_and_update(
            {"_id": record.name},
            insert_only(campaign_document(record), {"created_at": NOW, "running_since": NOW}),
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
        """Return campaigns, newest first; all of them or those in `states`."""
        query: dict[str, Any] = {} if states is None else {"state": {"$in": sorted(states)}}
        return [campaign_record(d) for d in self._read(query, {"$sort": {"created_at": DESCENDING, "_id": ASCENDING}})]

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
    ) -> bool:
        """Move a campaign to `state`; return whether this call moved it.

        Args:
            name: The campaign.
            state: Where to.
            expected: The states it may be in; in another one nothing is written.
            message: Why, one line.
            who: Who did it, for the audit.

        Returns:
            False when it is in `state` already (the call is idempotent).

        Raises:
            NotFoundError: If there is no such campaign.
            StateError: If it is in a state that was not expected.
        """
        ended: Any = NOW if state in ENDED else None
        since: Any = NOW if state is CampaignState.RUNNING else None
        update = [
            {"$set": {"ran_s": _USED_S}},
            {"$set": {"state": str(state), "message": literal(message), "ended_at": ended, "running_since": since}},
        ]
        wanted = [str(s) for s in expected if s != state]
        done = self._campaigns.update_one({"_id": name, "state": {"$in": wanted}}, update)
        if done.modified_count:
            self.audit(name, str(state), who, {"message": message} if message else {})
            return True
        found = self.get(name)
        if found.state == state:
            return False
        raise StateError(f"campaign '{name}' is {found.state}{': ' + found.message if found.message else ''}")

    @mapped
    def extend(self, name: str, extension: Extension, who: str = "") -> bool:
        """Give a campaign another budget; return whether that changed anything. Idempotent: totals, not additions.

        Raises:
            NotFoundError: If there is no such campaign.
            StateError: If it has more trials already than the new budget allows.
        """
        found, fields = self.get(name), extension.fields()
        if all(getattr(found, key) == value for key, value in fields.items()):
            return False
        if "max_trials" in fields:
            count = self.connection.database["trials"].count_documents({"campaign": name})
            if count > fields["max_trials"]:
                raise StateError(f"campaign '{name}' has {count} trials already; give it a budget of at least that")
        self._campaigns.update_one({"_id": name}, {"$set": fields, "$inc": {"revision": 1}})
        self.audit(name, "extend", who, fields)
        return True

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
