"""Validators, indexes and the version of the store's documents."""

from __future__ import annotations

import sys
from typing import Any

from pymongo import ASCENDING, IndexModel

from autotune.trial import CampaignState, Origin, TrialState

SCHEMA_VERSION = 3

MAX_ATTEMPTS = 64
"""So many of a trial's last attempts are kept."""

_TEXT = {"bsonType": "string"}
_MAPPING = {"bsonType": "object"}
_COUNT = {"bsonType": ["int", "long"], "minimum": 0}
_SECONDS = {"bsonType": ["int", "long", "double"], "minimum": 0}
_HOURS_OR_NULL = {"bsonType": ["int", "long", "double", "null"], "minimum": 0}
_TIME = {"bsonType": "date"}
_TIME_OR_NULL = {"bsonType": ["date", "null"]}
_TEXT_OR_NULL = {"bsonType": ["string", "null"]}
_FINITE_OR_NULL = {"bsonType": ["double", "null"], "minimum": -sys.float_info.max, "maximum": sys.float_info.max}


def _document(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "$jsonSchema": {
            "bsonType": "object",
            "required": ["schema_version", *required],
            "properties": {"schema_version": _COUNT, **properties},
        }
    }


_ATTEMPT = {
    "bsonType": "object",
    "required": ["token", "owner", "started_at"],
    "properties": {
        "token": _TEXT,
        "owner": _TEXT,
        "host": _TEXT,
        "device": _TEXT,
        "share": {"bsonType": ["int", "long", "double"], "minimum": 0, "maximum": 1},
        "threads": _COUNT,
        "versions": _MAPPING,
        "mismatch": {"bsonType": "array", "items": _TEXT},
        "started_at": _TIME,
        "ended_at": _TIME_OR_NULL,
        "cause": _TEXT_OR_NULL,
    },
}

_LEASE = {
    "bsonType": ["object", "null"],
    "required": ["owner", "token", "duration_s", "expires_at"],
    "properties": {"owner": _TEXT, "token": _TEXT, "duration_s": _SECONDS, "expires_at": _TIME},
}

VALIDATORS: dict[str, dict[str, Any]] = {
    "campaigns": _document(
        ["state", "spec", "spec_hash", "space", "metric", "max_trials", "created_at"],
        {
            "_id": _TEXT,
            "state": {"enum": [str(s) for s in CampaignState]},
            "message": _TEXT,
            "spec": _MAPPING,
            "spec_hash": _TEXT,
            "space": _MAPPING,
            "metric": _MAPPING,
            "facts": _MAPPING,
            "environment": _MAPPING,
            "max_trials": {"bsonType": ["int", "long"], "minimum": 1},
            "max_hours": _HOURS_OR_NULL,
            "max_device_hours": _HOURS_OR_NULL,
            "revision": _COUNT,
            "ran_s": _SECONDS,
            "running_since": _TIME_OR_NULL,
            "created_at": _TIME,
            "ended_at": _TIME_OR_NULL,
            "unsealed_at": _TIME_OR_NULL,
        },
    ),
    "trials": _document(
        ["campaign", "number", "fold", "replicate", "params", "config_hash", "state", "seed", "attempts"],
        {
            "campaign": _TEXT,
            "number": _COUNT,
            "fold": _COUNT,
            "replicate": _COUNT,
            "params": _MAPPING,
            "config_hash": _TEXT,
            "state": {"enum": [str(s) for s in TrialState]},
            "seed": _COUNT,
            "lease": _LEASE,
            "attempts": {"bsonType": "array", "items": _ATTEMPT, "maxItems": MAX_ATTEMPTS},
            "claims": _COUNT,
            "ends": {"bsonType": "object", "additionalProperties": _COUNT},
            "alone": {"bsonType": "bool"},
            "bracket": _COUNT,
            "rung": _COUNT,
            "target": {"bsonType": ["int", "long", "null"], "minimum": 1},
            "rung_scores": {"bsonType": "array", "items": _FINITE_OR_NULL},
            "checkpoint": {"bsonType": ["object", "null"]},
            "origin": {"enum": [str(o) for o in Origin]},
            "score": _FINITE_OR_NULL,
            "metrics": _MAPPING,
            "facts": _MAPPING,
            "proposed_at": _TIME,
            "started_at": _TIME_OR_NULL,
            "ended_at": _TIME_OR_NULL,
        },
    ),
    "reports": _document(
        ["campaign", "number", "step", "attempt", "metrics"],
        {"campaign": _TEXT, "number": _COUNT, "step": _COUNT, "attempt": _COUNT, "metrics": _MAPPING, "at": _TIME},
    ),
    "workers": _document(
        ["host", "pid", "slots", "state", "seen_at"],
        {
            "_id": _TEXT,
            "host": _TEXT,
            "pid": _COUNT,
            "slots": _COUNT,
            "refusals": {"bsonType": "object", "additionalProperties": _TEXT},
            "state": _TEXT,
            "seen_at": _TIME,
        },
    ),
    "leaders": _document(["owner", "expires_at"], {"_id": _TEXT, "owner": _TEXT, "expires_at": _TIME}),
    "events": _document(["campaign", "action", "at"], {"campaign": _TEXT, "action": _TEXT, "who": _TEXT, "at": _TIME}),
}
"""Collection -> validator."""


BY_STATE = "campaign_state_number"
"""The index that a coordinator's queries name: where trials are few, the server would now and then take another one,
and keep to it while they become many."""
BY_SCORE = "campaign_score"
"""The index that finds the best trial."""


def _index(name: str, *keys: str, unique: bool = False) -> IndexModel:
    return IndexModel([(key, ASCENDING) for key in keys], name=name, unique=unique)


INDEXES: dict[str, list[IndexModel]] = {
    "campaigns": [_index("state", "state")],
    "trials": [
        _index("campaign_number", "campaign", "number", unique=True),
        _index("campaign_configuration", "campaign", "config_hash", "fold", "replicate", unique=True),
        _index(BY_STATE, "campaign", "state", "number"),
        _index(BY_SCORE, "campaign", "score"),
        _index("state_owner", "state", "lease.owner"),
        IndexModel(
            [("lease.token", ASCENDING)],
            name="lease_token",
            unique=True,
            partialFilterExpression={"lease.token": {"$exists": True}},
        ),
    ],
    "reports": [_index("trial_step", "campaign", "number", "step", unique=True)],
    "workers": [_index("state_seen", "state", "seen_at")],
    "leaders": [],
    "events": [_index("campaign_at", "campaign", "at")],
}
"""Collection -> the indexes that its queries need."""
