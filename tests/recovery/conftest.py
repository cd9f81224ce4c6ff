"""A cluster of many groups on virtual time, an account of what was acknowledged in each, and recoveries on its disks.

Rules of this file: what was acknowledged is known by index from the callers alone, never from a replica.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from multiraft import BytesDiskStateMachine, BytesService, BytesStateMachine, Limits, Node
from multiraft.errors import MultiRaftError
from multiraft.recovery import NodeFacts, Plan, collect_store, make_plan
from multiraft.recovery.applying import Applied, apply_to_backend
from multiraft.storage.identity import read_opening
from multiraft.storage.memory import MemoryBackend
from multiraft.testing import MemoryCluster
from multiraft.types import FIRST_USER_GROUP, GroupId

GROUPS = 50


class Journal(BytesStateMachine):
    """Keeps every command under its number in the order of applying; the answer is that number."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)

    def snapshot(self) -> bytes:
        return b" ".join(self.kept)

    def restore(self, state: bytes) -> None:
        self.kept = state.split()


class DiskJournal(BytesDiskStateMachine):
    """The same, kept on disk."""

    @property
    def kept(self) -> list[bytes]:
        return [value for _, value in self.data.range(b"0")]

    def apply(self, command: bytes) -> bytes:
        number = int(self.data.get(b"") or b"0") + 1
        self.data.put(b"", b"%d" % number)
        self.data.put(b"%08d" % number, command)
        return b"%d" % number

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)


class Journals:
    """A cluster whose nodes serve one service on `groups` groups.

    acknowledged  by group, the commands whose success a caller was told, by their number
    unknown       by group, those whose outcome no caller knows
    """

    def __init__(
        self, groups: int = GROUPS, machine: type[Journal] | type[DiskJournal] = Journal, **options: Any
    ) -> None:
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
        if not isinstance(machine, Journal | DiskJournal):
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
