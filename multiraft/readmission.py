"""Readmitting a node whose directory was emptied, from a node that runs.

    1  the directory admits the node's new store in the place of the old one; every node takes that over on applying it
    2  the node is offered the cluster again and joins it, as one that came later: it makes no founding replica that its
       old store may have voted with
    3  each replica that the old store had is replaced by a new one, the directory's first: removed, added as a learner
       in one change, promoted by the leader once it has caught up

The old replicas are gone for good, with all that they had promised, so each group needs a quorum without them. Nothing
is kept between two calls: each step looks at what is so, and a call takes up where an earlier one was interrupted, on
whichever node.

Rules of this file: from the first step on, the old store is refused; a step that can never succeed says so at once.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from multiraft.engine.engine import Engine
from multiraft.errors import (
    CommandFailed,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    NotReady,
    NotRunning,
    OutcomeUnknown,
)
from multiraft.forming import Forming
from multiraft.forwarding import Forwarding
from multiraft.members import Members
from multiraft.ports import Store
from multiraft.shard import Directory, Router, admit_command
from multiraft.types import DIRECTORY_GROUP, NOBODY, GroupId, NodeId, ReplicaId

STORE_CALL: Final = "node.store"
"""What a node is asked by its peers: its replica of the group in the body (8 bytes), then the id of its store."""
READMIT_TIMEOUT_S: Final = 120.0
_GROUP_S: Final = 30.0
"""No group that cannot change its membership holds up the others for longer."""
_ALONE_S: Final = 3.0
_ASK_S: Final = 2.0
_AGAIN_S: Final = 0.05
_AT_ONCE: Final = 16
_NAMED: Final = 5
log: Final = logging.getLogger("multiraft.readmission")


class Readmission:
    """One call's attempt. The parts are those of the node that it is made on."""

    def __init__(
        self,
        node_id: NodeId,
        store: Store,
        engine: Engine,
        forming: Forming,
        forwarding: Forwarding,
        directory: Directory,
        router: Router,
        timeout_s: float,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._engine = engine
        self._forming = forming
        self._forwarding = forwarding
        self._directory = directory
        self._router = router
        self._now = asyncio.get_running_loop().time
        self._timeout_s = timeout_s
        self._began_s = self._now()
        self._deadline_s = self._began_s + timeout_s
        self._waiting_for = "nothing was done yet"
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Do all of it. Raises as `Node.readmit`."""
        store_id = await self._joined()
        failed = await self._renew(DIRECTORY_GROUP, store_id)
        if failed:
            raise NotReady(f"node {self._node_id!r} was readmitted, but is not back in the directory: {failed}")
        tried = 0
        problems: dict[GroupId, str] = {}
        done: set[GroupId] = set()
        while groups := self._groups(store_id, done):
            tried += len(groups)
            found = await asyncio.gather(*[self._renew(group_id, store_id) for group_id in groups])
            problems.update({group_id: text for group_id, text in zip(groups, found, strict=True) if text})
            done.update(groups)
        if problems:
            named = "; ".join(f"group {group_id}: {text}" for group_id, text in list(problems.items())[:_NAMED])
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise NotReady(
                f"node {self._node_id!r} was readmitted, but {len(problems)} of {tried} groups have not got their "
                f"replica there back: {named}{more}. Call again when that is mended"
            )
        log.info("node %s was readmitted: %d groups have their replica there", self._node_id, tried + 1)

    # ------------------------------------------------------------------------------------------- admitted and joined

    async def _joined(self) -> bytes:
        """Have the node's new store admitted, wait until the node has joined, and return that store's id."""
        node_id = self._node_id
        while True:
            identity, stranger = self._store.identity, self._forming.strangers.get(node_id)
            if not identity.formed:
                raise NotReady("this node belongs to no cluster yet, so that it cannot readmit another one")
            if stranger is not None:
                lost = self._lost_quorum()
                if not lost:
                    await self._admit(stranger, identity.readmissions)
                elif self._now() - self._began_s > _ASK_S:
                    raise NotReady(lost)
            elif (await self._there(DIRECTORY_GROUP))[0] != identity.stores[node_id]:
                self._waiting_for = (
                    f"node {node_id!r} is not connected to this one: start it, with an empty directory if its old one "
                    "is lost"
                )
            elif node_id in identity.admitted:
                return identity.stores[node_id]
            else:
                raise InvalidRequest(
                    f"node {node_id!r} has the store that it had when the cluster was founded: there is nothing to "
                    "readmit. To replace one of its replicas: group.replace(node, node)"
                )
            self._left_s()
            await asyncio.sleep(_AGAIN_S)

    async def _admit(self, store_id: bytes, readmissions: int) -> None:
        """Ask once; whatever comes of it is seen when this node applies it."""
        command = admit_command(self._node_id, store_id, readmissions)
        try:
            await self._router.call(DIRECTORY_GROUP, "propose", command, min(self._left_s(), _ASK_S))
        except NotRunning:
            raise
        except CommandFailed as problem:
            self._waiting_for = f"the directory refuses: {problem.detail}"
        except (NotCommitted, OutcomeUnknown) as problem:
            self._waiting_for = f"the directory does not serve ({self._away()}): {problem}"

    async def _there(self, group_id: GroupId) -> tuple[bytes, ReplicaId]:
        """Ask the node for its store, and for its replica of a group. Empty, and NOBODY, where it does not answer."""
        body = group_id.to_bytes(8, "big")
        try:
            answer = await self._forwarding.peer_call(self._node_id, STORE_CALL, body, min(self._left_s(), _ASK_S))
        except NotRunning:
            raise
        except (NotCommitted, OutcomeUnknown):
            return b"", NOBODY
        return answer[8:], int.from_bytes(answer[:8], "big")

    def _connected(self, node_id: NodeId) -> bool:
        peer = self._engine.liveness.status(self._engine.pacing.now()).get(node_id)
        return peer is not None and peer.connected

    def _voters(self) -> list[NodeId]:
        """Return the nodes of the directory's voters, as this node knows them."""
        replica = self._engine.replicas.get(DIRECTORY_GROUP)
        members = replica.core.membership if replica is not None else None
        return [] if members is None else sorted(members.nodes[voter] for voter in members.voters)

    def _lost_quorum(self) -> str:
        """Say so if too many of the directory's voters were emptied, as far as this node has seen; else empty."""
        voters = self._voters()
        emptied = [name for name in voters if name in self._forming.strangers]
        needed = len(voters) // 2 + 1
        if len(voters) - len(emptied) >= needed:
            return ""
        return (
            f"the directory has lost its quorum: {needed} of its voters {', '.join(voters)} are needed, but the "
            f"directories of {', '.join(emptied)} were emptied. Bring back the old directory of one of them, then "
            "readmit the others; nothing can be committed without it"
        )

    def _away(self) -> str:
        own = self._store.identity.node_id
        away = [name for name in self._voters() if name != own and not self._connected(name)]
        return f"of its voters, not connected to this node: {', '.join(away) or 'none'}"

    # ------------------------------------------------------------------------------------------------ group by group

    def _groups(self, store_id: bytes, done: set[GroupId]) -> list[GroupId]:
        """Return the groups that have, or had, a replica on the node, but those that its new store was founded with."""
        found = []
        for group_id, nodes in sorted(self._router.map.groups.items()):
            group = self._directory.groups.get(group_id)
            founded_with_it = group is not None and group.stores.get(self._node_id) == store_id
            if self._node_id in nodes and group_id not in done and not founded_with_it:
                found.append(group_id)
        return found

    async def _renew(self, group_id: GroupId, store_id: bytes) -> str:
        """Give one group its replica on the node back; return what is missing, empty when nothing is."""
        async with self._room:
            alone = self._router.map.groups.get(group_id) == (self._node_id,)
            try:
                left_s = min(self._left_s(), _ALONE_S if alone else _GROUP_S)
                ask = partial(self._router.call, group_id)
                _, lives = await self._there(group_id)
                await Members(ask, self._now, left_s).renew(self._node_id, store_id, lives)
            except NotRunning:
                raise
            except MultiRaftError as problem:
                if alone:
                    return f"it lived on {self._node_id!r} alone: what it held is lost with that directory"
                nodes = self._router.map.groups.get(group_id) or self._voters()
                return f"{problem} (it lives on {', '.join(nodes)})"
        return ""

    def _left_s(self) -> float:
        """Return the time that is left. Raises NotReady, which says what was waited for, when there is none."""
        left_s = self._deadline_s - self._now()
        if left_s <= 0:
            raise NotReady(
                f"node {self._node_id!r} is not readmitted within {self._timeout_s:g} s: {self._waiting_for}. Call "
                "again to go on"
            )
        return left_s
