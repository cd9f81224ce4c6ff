"""Stores that are lost in a simulated run: one node's disk is emptied, or put back to an earlier moment.

What the node had promised is forgotten then, so it must take no part until it is readmitted (`Node.readmit`). One node
of a run, at most, and only while every group can spare it: two such losses at once are more than a cluster of three
survives. Until it is back no membership is changed by others; all other kinds of faults go on.

Rules of this file: nothing random but what the run's `rng` says; who comes back is the readmission's work alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from multiraft.errors import MultiRaftError
from multiraft.storage import DiskImage, layout
from multiraft.testing.churn import Churn
from multiraft.testing.invariants import Violation
from multiraft.testing.virtual import NodeKilled
from multiraft.types import NodeId

_SETTLE_S: Final = 20.0
_REGAIN_S: Final = 120.0
_SPARE_VOTERS: Final = 3
_ASK_S: Final = 30.0


class Losing(Churn):
    """The loss of one store, and its way back. A part of `Schedule`."""

    _image: tuple[NodeId, DiskImage] | None = None
    _recovering: asyncio.Task[None] | None = None

    async def start_one(self, name: NodeId) -> bool:
        """Start a node; False where it does not."""
        raise NotImplementedError

    async def _lose(self) -> bool:
        cluster = self.cluster
        if self._recovering is not None or len(cluster.names) < _SPARE_VOTERS or not await self._settled():
            return False
        back = self._image is not None and self._rng.random() < 0.5
        name = self._image[0] if back and self._image is not None else self._rng.choice(cluster.names)
        if not self._can_be_spared(name):
            return False
        cluster.crash(name)
        if back and self._image is not None:
            self._say(f"the disk of {name} is put back to what it was once")
            cluster.disks[name].roll_back(self._image[1])
        else:
            self._say(f"the disk of {name} is lost")
            cluster.disks[name].wipe()
        self.lost = name
        self._recovering = asyncio.get_running_loop().create_task(self._recover(name))
        return True

    def remember_disk(self, name: NodeId) -> None:
        """A node starts: this is what its disk may be put back to later."""
        if self._image is None and self.cluster.disks[name].read_identity() is not None:
            self._image = name, self.cluster.disks[name].image()

    async def _settled(self) -> bool:
        """End all faults, and wait until every node is up, every group led, and nothing is being changed."""
        cluster = self.cluster
        self._say("all faults end for a while")
        cluster.end_faults()
        cluster.forget_ended()
        for name in cluster.names:
            if name not in cluster.nodes and not await self.start_one(name):
                return False
        if self._changing:
            await asyncio.wait(self._changing)
        try:
            await cluster.ready(_SETTLE_S)
        except (MultiRaftError, TimeoutError):
            return False
        cluster.forget_ended()
        return len(cluster.nodes) == len(cluster.names)

    def _can_be_spared(self, name: NodeId) -> bool:
        """Whether every group that has a replica there keeps its quorum without it."""
        for group_id in self._groups():
            leader = self._any(self.cluster.leaders(group_id))
            if leader is None:
                return False
            core = self.cluster.nodes[leader]._here().engine.replicas[group_id].core
            members = core.latest_membership()
            here = members.replica_on(name)
            uncertain = members.joint or core.change_pending or not core.membership_known
            if uncertain or (here and len(members.voters) < _SPARE_VOTERS):
                return False
        return True

    async def _recover(self, name: NodeId) -> None:
        """Have the node readmitted by another one, however often it takes."""
        cluster = self.cluster
        while True:
            await cluster.run_for(0.5)
            cluster.forget_ended()
            if name not in cluster.nodes:
                if self._has_no_future(name):
                    self._say(f"the disk of {name} is emptied: it may take part no longer")
                    cluster.disks[name].wipe()
                if not await self.start_one(name):
                    continue
            asker = self._any(other for other in cluster.nodes if other != name)
            if asker is None:
                continue
            self._say(f"readmit {name}, asked of {asker}")
            try:
                async with asyncio.timeout(_ASK_S):  # a node that has ended by itself may leave its programs waiting
                    await cluster.on(asker, cluster.nodes[asker].readmit(name, timeout_s=20.0))
            except (asyncio.CancelledError, MultiRaftError, NodeKilled, TimeoutError) as problem:
                mine = asyncio.current_task()
                if mine is not None and mine.cancelling():
                    raise
                self._say(f"  {name} is not readmitted yet: {type(problem).__name__}: {problem}")
            else:
                self._say(f"{name} is readmitted")
                self.lost = None
                return

    def _has_no_future(self, name: NodeId) -> bool:
        """Whether what is on its disk says that it may never be used again."""
        disk = self.cluster.disks[name]
        return not disk.in_use and disk.read(layout.CONDEMNED_KEY) is not None

    async def _regained(self) -> None:
        """Wait until who was lost is back."""
        if self._recovering is not None:
            try:
                async with asyncio.timeout(_REGAIN_S):
                    await self._recovering
            except TimeoutError:
                raise Violation(
                    f"liveness: {_REGAIN_S:g} s after all faults ended {self.lost} is not readmitted"
                ) from None
