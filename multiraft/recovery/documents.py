"""The files of a recovery: what was collected, and the plan. JSON, so that people can read them, under a digest.

    {"multiraft": kind, "format": 1, "digest": hex of blake2b over the body, "body": {...}}

Rules of this file: a file that was changed, cut short, or is of another kind is refused, never half understood.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from typing import Any, Final

from multiraft.errors import RecoveryRefused
from multiraft.membership import checked_u64
from multiraft.types import Membership

DOCUMENT_FORMAT: Final = 1
COLLECTED: Final = "collected"
PLAN: Final = "plan"
BACKUP: Final = "backup"
_NEXT: Final = {COLLECTED: "recover plan", PLAN: "recover apply", BACKUP: "restore"}
"""The command that takes each."""


def digest_of(body: dict[str, Any]) -> bytes:
    """Return the digest of a body; equal bodies have equal ones."""
    return blake2b(json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).digest()


def save_document(path: str, kind: str, body: dict[str, Any]) -> None:
    """Write the file, in place of one that is there. Raises RecoveryRefused when it cannot be written."""
    document = {"multiraft": kind, "format": DOCUMENT_FORMAT, "digest": digest_of(body).hex(), "body": body}
    try:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    except OSError as problem:
        raise RecoveryRefused(f"{path} cannot be written: {problem.strerror}; name another file") from problem


def load_document(path: str, kind: str) -> dict[str, Any]:
    """Return the body of the file. Raises RecoveryRefused: it cannot be read, is of another kind, or was changed."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as problem:
        raise RecoveryRefused(f"{path} cannot be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise RecoveryRefused(f"{path} is not a file of `multiraft`; name one that it has written") from problem
    body = document.get("body") if isinstance(document, dict) else None
    told = document.get("multiraft") if isinstance(document, dict) else None
    if told not in _NEXT or not isinstance(body, dict):
        raise RecoveryRefused(f"{path} is not a file of `multiraft`; name one that it has written")
    if told != kind:
        raise RecoveryRefused(f"{path} is for `multiraft {_NEXT[told]}`; name a file for this step")
    if document.get("format") != DOCUMENT_FORMAT:
        raise RecoveryRefused(f"{path} is of another version of multiraft; use the same one for all steps")
    if document.get("digest") != digest_of(body).hex():
        raise RecoveryRefused(f"{path} was changed since it was written, or cut short; write it anew")
    return body


def membership_to_plain(membership: Membership) -> dict[str, Any]:
    return {
        "index": membership.index,
        "voters": list(membership.voters),
        "outgoing": list(membership.outgoing),
        "learners": list(membership.learners),
        "joining": list(membership.joining),
        "auto_leave": membership.auto_leave,
        "nodes": {str(replica_id): node_id for replica_id, node_id in sorted(membership.nodes.items())},
        "stores": {str(replica_id): store.hex() for replica_id, store in sorted(membership.stores.items())},
        "next_replica_id": membership.next_replica_id,
    }


def membership_from_plain(plain: dict[str, Any]) -> Membership:
    return Membership(
        checked_u64(plain["index"], "membership"),
        tuple(plain["voters"]),
        {int(replica_id): node_id for replica_id, node_id in plain["nodes"].items()},
        plain["next_replica_id"],
        tuple(plain["outgoing"]),
        tuple(plain["learners"]),
        tuple(plain["joining"]),
        plain["auto_leave"],
        {int(replica_id): bytes.fromhex(store) for replica_id, store in plain["stores"].items()},
    )
