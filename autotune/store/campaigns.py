"""Campaigns, and the audit of what people and coordinators did to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
            insert_only(campaign_document(record), {"created_at": NOW}),
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
        document = self._campaigns.find_one({"_id": name})
        if document is None:
            names = [d["_id"] for d in self._campaigns.find({}, {"_id": 1}).limit(1000)]
            hint = nearest(name, names) if names else "; the store has no campaigns"
            raise NotFoundError(f"there is no campaign '{name}' in the store at {self.connection.address}{hint}")
        return campaign_record(document)

    @mapped
    def find(self, states: Iterable[CampaignState] | None = None) -> list[CampaignRecord]:
        """Return campaigns, newest first; all of them or those in `states`."""
        query: dict[str, Any] = {} if states is None else {"state": {"$in": sorted(states)}}
        found = self._campaigns.find(query).sort([("created_at", DESCENDING), ("_id", ASCENDING)])
        return [campaign_record(d) for d in found]

    @mapped
    def relocate(self, record: CampaignRecord) -> None:
        """Take over where data and objective lie from a launch of the same definition from another place."""
        changes: dict[str, Any] = {"paths": list(record.paths)}
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
        update = [{"$set": {"state": str(state), "message": literal(message), "ended_at": ended}}]
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
