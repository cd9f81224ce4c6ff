"""Membership changes of a simulated run: replicas are added, removed, replaced, promoted, demoted, beside all faults.

Each is asked of a node that is up, goes on while other things happen, and ends in its own time, one way or the other.
A change that makes no sense as the group is then is asked for, too: it must be refused.

Rules of this file: nothing random but what the run's `rng` says; the directory keeps its members.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from random import Random
from typing import Any, TypeVar

from multiraft.errors import MultiRaftError
from multiraft.group import Group
from multiraft.testing.cluster import MemoryCluster
from multiraft.testing.trace import Trace
from multiraft.testing.virtual import NodeKilled
from multiraft.types import DIRECTORY_GROUP, GroupId, Membership, NodeId

T = TypeVar("T")


class Churn:
    """What a schedule does to memberships, and what its parts have in common.

    cluster  what it is done to
    lost     the node whose store was lost, and that is not readmitted yet
    """

    def __init__(self, cluster: MemoryCluster, rng: Random, trace: Trace, groups: Callable[[], list[GroupId]]) -> None:
        self.cluster = cluster
        self._rng = rng
        self._trace = trace
        self._groups = groups
        self._changing: set[asyncio.Task[None]] = set()
        self.lost: NodeId | None = None

    def _say(self, what: str) -> None:
        self._trace.say("*", what)

    def _any(self, names: Iterable[T]) -> T | None:
        found = list(names)
        return self._rng.choice(found) if found else None

    def _up(self) -> list[NodeId]:
        self.cluster.forget_ended()
        return [name for name, node in self.cluster.nodes.items() if node.runs]

    def _group(self) -> GroupId | None:
        """Choose a group whose members may change: any but the directory."""
        return self._any([group_id for group_id in self._groups() if group_id != DIRECTORY_GROUP])

    def _begin(self, what: str, group_id: GroupId, change: Callable[[Group], Coroutine[Any, Any, Membership]]) -> bool:
        """Have a membership change made by a node that is up, beside everything else that goes on."""
        name = self._any(self._up())
        if name is None or self.lost is not None:
            return False
        self._say(f"group {group_id}: {what}, asked of {name}")
        call = change(self.cluster.nodes[name].group(group_id))
        task = asyncio.get_running_loop().create_task(self._change(f"group {group_id}: {what}", name, call))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return True

    async def _change(self, what: str, name: NodeId, call: Coroutine[Any, Any, Membership]) -> None:
        try:
            membership = await self.cluster.on(name, call)
            self._say(f"{what}: done, membership {membership.index}")
        except (MultiRaftError, NodeKilled) as problem:
            self._say(f"{what}: {type(problem).__name__}: {problem}")

    def _patience_s(self) -> float:
        return self._rng.choice([1.0, 5.0, 20.0])

    async def _add(self) -> bool:
        group_id, node_id, voter = self._group(), self._rng.choice(self.cluster.names), self._rng.random() < 0.7
        patience_s = self._patience_s()
        if group_id is None:
            return False
        what = f"add {node_id}{'' if voter else ' as a learner'}"
        return self._begin(what, group_id, lambda group: group.add(node_id, voter=voter, timeout_s=patience_s))

    async def _remove(self) -> bool:
        group_id, node_id, patience_s = self._group(), self._rng.choice(self.cluster.names), self._patience_s()
        if group_id is None:
            return False
        return self._begin(f"remove {node_id}", group_id, lambda group: group.remove(node_id, timeout_s=patience_s))

    async def _replace(self) -> bool:
        group_id, patience_s = self._group(), self._patience_s()
        old, new = self._rng.choice(self.cluster.names), self._rng.choice(self.cluster.names)
        if group_id is None:
            return False
        what = f"replace {old} by {new}"
        return self._begin(what, group_id, lambda group: group.replace(old, new, timeout_s=patience_s))

    async def _promote(self) -> bool:
        group_id, node_id, patience_s = self._group(), self._rng.choice(self.cluster.names), self._patience_s()
        if group_id is None:
            return False
        return self._begin(f"promote {node_id}", group_id, lambda group: group.promote(node_id, timeout_s=patience_s))

    async def _demote(self) -> bool:
        group_id, node_id, patience_s = self._group(), self._rng.choice(self.cluster.names), self._patience_s()
        if group_id is None:
            return False
        return self._begin(f"demote {node_id}", group_id, lambda group: group.demote(node_id, timeout_s=patience_s))
