"""What nodes ask each other for their operators: the questions (`admin.*`, bodies in msgpack) and their answers.

Rules of this file: no question waits longer than PEER_TIMEOUT_S; a node that does not answer is a Silence that says
why, never an error; what is answered here changes nothing, but for `admin.transfer`, `admin.retry` and `admin.rebuild`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import msgpack

from multiraft.admin.answers import ApiError
from multiraft.admin.view import Facts, Silence
from multiraft.client.served import ClientNode
from multiraft.errors import InvalidRequest, MultiRaftError, NotRunning, OutcomeUnknown, Unreachable
from multiraft.types import DIRECTORY_GROUP, GroupId, Membership, NodeId

PEER_TIMEOUT_S: Final = 2.0
"""How long another node may take to answer before it is shown as down."""
LOG_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""What one answer carries of all entries together; the oldest are cut first."""

_CHANGING: Final = frozenset(("admin.transfer", "admin.retry", "admin.rebuild"))

Answers: TypeAlias = dict[NodeId, Any]

_log = logging.getLogger(__name__)


class MemberGroup(Protocol):
    """What the admin API needs of a group's handle. `multiraft.Group` is one; what is raised stands there."""

    async def add(self, node_id: NodeId, *, voter: bool = True, timeout_s: float | None = None) -> Membership: ...

    async def remove(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership: ...

    async def replace(self, old: NodeId, new: NodeId, *, timeout_s: float | None = None) -> Membership: ...

    async def promote(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership: ...

    async def demote(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership: ...


class AdminNode(ClientNode, Protocol):
    """What the admin API needs of a node. `multiraft.Node` is one; the shapes of the dicts stand there."""

    def status(self) -> dict[str, Any]: ...

    def groups_status(self) -> list[dict[str, Any]]: ...

    def group_status(self, group_id: GroupId) -> dict[str, Any]:
        """Raises KeyError when this node hosts no replica of the group."""

    def tombstones(self) -> list[dict[str, int]]: ...

    def group(self, group_id: GroupId) -> MemberGroup: ...

    def transfer_leadership(self, group_id: GroupId, to: NodeId) -> None: ...

    async def readmit(self, node_id: NodeId, timeout_s: float | None = None) -> None: ...

    def why(self, group_id: GroupId) -> dict[str, Any]: ...

    def retry(self, group_id: GroupId) -> None: ...

    def begin_rebuild(self, group_id: GroupId, timeout_s: float) -> None: ...

    def begin_export(self, group_id: GroupId) -> dict[str, Any]: ...

    def export_state(self, name: str) -> dict[str, Any]: ...

    def read_export(self, name: str, offset: int) -> bytes: ...

    def drop_export(self, name: str) -> None: ...

    def read_log(self, group_id: GroupId, last_n: int) -> list[dict[str, Any]]: ...


class NotHosted(Exception):
    """This node has no replica of that group; `tombstone` describes the one that was removed, if there was one."""

    def __init__(self, tombstone: Facts | None = None) -> None:
        super().__init__("no replica")
        self.tombstone = tombstone


class Asking:
    """The questions that nodes ask each other, and the answers of this one."""

    def __init__(self, node: AdminNode) -> None:
        self.node = node
        self._local: dict[str, Callable[[Facts], Any]] = {
            "admin.status": lambda request: node.status(),
            "admin.groups": lambda request: node.groups_status(),
            "admin.group": lambda request: self._local_group(request["group_id"]),
            "admin.log": self._local_log,
            "admin.transfer": self._local_transfer,
            "admin.why": self._local_why,
            "admin.retry": self._local_retry,
            "admin.rebuild": self._local_rebuild,
            "admin.export": self._local_export,
            "admin.export_state": lambda request: node.export_state(request["name"]),
            "admin.export_read": lambda request: node.read_export(request["name"], request["offset"]),
            "admin.export_drop": lambda request: node.drop_export(request["name"]),
        }

    # ------------------------------------------------------------------------------------ between nodes

    def register_calls(self) -> None:
        for method in self._local:
            self.node.on_call(method, self._answerer(method))

    def _answerer(self, method: str) -> Callable[[bytes], bytes]:
        def answer(body: bytes) -> bytes:
            try:
                reply = {"ok": self._local[method](msgpack.unpackb(body))}
            except NotHosted as nothing:
                reply = {"not_hosted": True, "tombstone": nothing.tombstone}
            except MultiRaftError as problem:
                reply = {"error": str(problem)}
            except Exception as problem:
                _log.exception("the question %s of another node failed here", method)
                reply = {"error": f"{type(problem).__name__}: {problem}"}
            packed: bytes = msgpack.packb(reply)
            return packed

        return answer

    def _local_export(self, request: Facts) -> Facts:
        try:
            return self.node.begin_export(request["group_id"])
        except KeyError:
            raise NotHosted from None

    def _local_group(self, group_id: GroupId) -> Facts:
        try:
            return self.node.group_status(group_id)
        except KeyError:
            left = (row for row in self.node.tombstones() if row["group_id"] == group_id)
            raise NotHosted(next(left, None)) from None

    def _local_transfer(self, request: Facts) -> None:
        self.node.transfer_leadership(request["group_id"], request["node"])

    def _local_why(self, request: Facts) -> Facts:
        self._local_group(request["group_id"])
        return self.node.why(request["group_id"])

    def _local_retry(self, request: Facts) -> None:
        self._local_group(request["group_id"])
        self.node.retry(request["group_id"])

    def _local_rebuild(self, request: Facts) -> None:
        self._local_group(request["group_id"])
        self.node.begin_rebuild(request["group_id"], request["timeout_s"])

    def _local_log(self, request: Facts) -> Facts:
        view = self._local_group(request["group_id"])
        room = LOG_ANSWER_BYTES
        entries: list[Facts] = []
        for row in reversed(self.node.read_log(request["group_id"], request["last"])):
            shown = row["entry"][: min(room, request["entry_bytes"])]
            room -= len(shown)
            entries.append({**row, "entry": shown, "cut": len(shown) < len(row["entry"])})
        entries.reverse()
        return {"view": view, "entries": entries}

    def _own(self, method: str, request: Facts) -> Any:
        """Answer this node's own question; only what changes something may be refused, and is then no error either."""
        if method not in _CHANGING:
            return self._local[method](request)
        try:
            return self._local[method](request)
        except NotRunning:
            raise
        except MultiRaftError as problem:
            return Silence(str(problem), reached=True)

    async def one(self, node_id: NodeId, method: str, request: Facts) -> Any:
        """Return what `node_id` answers, a Silence when it does not. Raises NotHosted when it says so."""
        if node_id == self.node.node_id:
            return self._own(method, request)
        try:
            body = await self.node.peer_call(node_id, method, msgpack.packb(request), PEER_TIMEOUT_S)
            reply = await asyncio.to_thread(msgpack.unpackb, body, strict_map_key=False)
            if "not_hosted" in reply:
                raise NotHosted(reply.get("tombstone"))
            return reply["ok"] if "ok" in reply else Silence(f"answered with an error: {reply['error']}", reached=True)
        except InvalidRequest as problem:
            return Silence(f"{problem} (does it serve the admin API?)", reached=True)
        except Unreachable:
            return Silence("not connected")
        except (OutcomeUnknown, TimeoutError):
            return Silence(f"no answer within {PEER_TIMEOUT_S:g} s")
        except MultiRaftError as problem:
            return Silence(str(problem))
        except (ValueError, KeyError, TypeError) as problem:
            return Silence(f"its answer makes no sense here: {type(problem).__name__}", reached=True)

    async def each(self, node_ids: list[NodeId], method: str, request: Facts) -> Answers:
        """Ask all at once. Nodes that do not host what is asked for are not in the result."""
        answers = await self._asked(node_ids, method, request)
        return {name: answer for name, answer in answers.items() if not isinstance(answer, NotHosted)}

    async def _asked(self, node_ids: list[NodeId], method: str, request: Facts) -> Answers:
        found = await asyncio.gather(*[self.one(name, method, request) for name in node_ids], return_exceptions=True)
        for answer in found:
            if isinstance(answer, BaseException) and not isinstance(answer, NotHosted):
                raise answer
        return dict(zip(node_ids, found, strict=True))

    def all_nodes(self) -> list[NodeId]:
        return sorted({self.node.node_id, *self.node.status()["peers"]})

    async def group(self, group_id: GroupId) -> tuple[list[Facts], dict[NodeId, str], list[Facts]]:
        """Return the views of all replicas of a group, who did not answer, and where replicas of it were removed.

        Raises ApiError when nobody shows a replica.
        """
        answers = await self._asked(self.all_nodes(), "admin.group", {"group_id": group_id})
        silent = {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
        views = [answer for answer in answers.values() if not isinstance(answer, (Silence, NotHosted))]
        tombstones = [
            {"node_id": name, **answer.tombstone}
            for name, answer in answers.items()
            if isinstance(answer, NotHosted) and isinstance(answer.tombstone, dict)
        ]
        if views:
            return views, silent, tombstones
        if silent and (group_id == DIRECTORY_GROUP or group_id in self.node.shard_map.groups):
            names = ", ".join(sorted(silent))
            raise ApiError(503, f"no node that answers hosts group {group_id}", f"not answering: {names}; start them")
        hint = "`multiraft groups` or GET /groups lists them all"
        if silent:
            hint += f"; {', '.join(sorted(silent))} did not answer and may know more"
        raise ApiError(404, f"there is no group {group_id}", hint)
