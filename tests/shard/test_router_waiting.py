"""Calls that wait for a group without a leader, on a node that would be told of a new one."""

from __future__ import annotations

from math import inf

from multiraft.errors import NotLeader, Unreachable
from multiraft.types import GroupId, NodeId
from tests.shard.test_router import GROUP, Cluster, router_of


class Hearing(Cluster):
    """A node with a replica, which hears at `until_s` that `heard` leads."""

    until_s = inf
    heard: NodeId = ""

    def has_replica(self, group_id: GroupId) -> bool:
        return True

    async def sleep(self, delay_s: float) -> None:
        await super().sleep(delay_s)
        if self.now >= self.until_s:
            self.leader = self.heard


async def test_who_would_hear_of_a_new_leader_asks_the_others_only_now_and_then() -> None:
    """Where nobody leads, thousands of calls may wait: each asks all nodes once, then waits for news of a leader."""
    cluster = Hearing({"a": [NotLeader(GROUP)], "b": [NotLeader(GROUP)], "c": [Unreachable("it is gone")]})
    router = router_of(cluster)
    cluster.until_s, cluster.heard = cluster.now + 1.0, "b"
    cluster.answers["b"] = [lambda: b"done" if cluster.leader == "b" else NotLeader(GROUP)]
    assert await router.call(GROUP, "propose", b"x") == b"done"
    assert cluster.order in ("abc" * 2 + "b", "abc" * 3 + "b")
    assert max(cluster.slept) <= 0.2
    assert cluster.now < cluster.until_s + 0.2


async def test_who_hears_nothing_asks_on() -> None:
    """The replica here may have been left out: that it knows of no leader does not mean that there is none."""
    cluster = Hearing({"a": [NotLeader(GROUP)], "b": [NotLeader(GROUP), b"done"], "c": [NotLeader(GROUP)]})
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "abcab"
