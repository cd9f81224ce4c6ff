"""A cluster of many groups on virtual time, an account of what was acknowledged in each, and recoveries on its disks.

Rules of this file: what was acknowledged is known by index from the callers alone, never from a replica.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from multiraft import BytesService, Limits, Node
from multiraft.errors import MultiRaftError
from multiraft.recovery import NodeFacts, Plan, collect_store, make_plan
from multiraft.recovery.applying import Applied, apply_to_backend
from multiraft.storage.identity import read_opening
from multiraft.storage.memory import MemoryBackend
from multiraft.testing import MemoryCluster
from multiraft.types import FIRST_USER_GROUP, GroupId
from tests.keeping import Kept, KeptOnDisk

GROUPS = 50


class Journals:
    """A cluster whose nodes serve one service on `groups` groups.

    acknowledged  by group, the commands whose success a caller was told, by their number
    unknown       by group, those whose outcome no caller knows
    """

    def __init__(self, groups: int = GROUPS, machine: type[Kept] | type[KeptOnDisk] = Kept, **options: Any) -> None:
        options.setdefault("limits", Limits(request_timeout_ms=2_000))
        self.groups = range(FIRST_USER_GROUP, FIRST_USER_GROUP + groups)
        self.machine = machine
        self.services: dict[str, BytesService] = {}
        self.acknowledged: dict[GroupId, dict[int, bytes]] = {group_id: {} for group_id in self.groups}
        self.unknown: dict[GroupId, set[bytes]] = {group_id: set() for group_id in self.groups}
        self.cluster = MemoryCluster(self._declare, **options)
        self._drawn = 0

    def _declare(self, node: Node) -> None:
        shards = len(self.groups)
        self.services[node.node_id] = node.bytes_service("journal", self.machine, initial_shards=shards, replicas=3)

    async def write(self, name: str, groups: Iterable[GroupId] | None = None, count: int = 1) -> None:
        """Write `count` commands to each of the groups, through node `name`, and account for their outcomes."""
        await asyncio.gather(*(self._write(name, group_id) for group_id in groups or self.groups for _ in range(count)))

    async def _write(self, name: str, group_id: GroupId) -> None:
        self._drawn += 1
        command = b"command-%d" % self._drawn
        try:
            answer = await self.cluster.nodes[name].group(group_id).propose(command)
        except MultiRaftError:
            self.unknown[group_id].add(command)
        else:
            self.acknowledged[group_id][int(answer)] = command

    async def led(self, *names: str) -> None:
        """Wait until each group is led by one of these nodes."""
        await self.cluster.until(
            lambda: all(set(self.cluster.leaders(group_id)) & set(names) for group_id in (1, *self.groups))
        )

    def kept(self, name: str, group_id: GroupId) -> list[bytes]:
        machine = self.cluster.nodes[name].local_machine(group_id)
        if not isinstance(machine, Kept | KeptOnDisk):
            raise TypeError(f"group {group_id} is not a journal")
        return machine.kept

    # -------------------------------------------------------------------------------------------------- recovering

    @contextmanager
    def disk(self, name: str) -> Iterator[MemoryBackend]:
        """The disk of a node that does not run."""
        backend = MemoryBackend(self.cluster.disks[name], asyncio.get_running_loop())
        try:
            yield backend
        finally:
            backend.abandon()

    def collect(self, name: str) -> NodeFacts:
        with self.disk(name) as backend:
            return collect_store(name, backend, read_opening(backend))

    def plan(self, *names: str) -> Plan:
        """Make a plan with these nodes as the survivors."""
        return self.plan_of([self.collect(name) for name in names])

    def plan_of(self, facts: Sequence[NodeFacts]) -> Plan:
        """Make a plan of what was collected, by way of the files."""
        collected = [NodeFacts.from_plain(json.loads(json.dumps(one.to_plain()))) for one in facts]
        return Plan.from_plain(make_plan(collected).to_plain())

    def apply(self, plan: Plan, name: str) -> Applied:
        with self.disk(name) as backend:
            return apply_to_backend(plan, backend)
