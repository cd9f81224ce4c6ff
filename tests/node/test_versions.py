"""A cluster that is upgraded node by node: no replica ever applies a command that it does not know."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from multiraft import ConfigError, InvalidRequest, Limits, Node, NotReady, StateMachine, command, query
from multiraft.testing import MemoryCluster, run_virtual

GROUP = 16


class Counters(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str, amount: int) -> int:
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @query(key="name")
    def get(self, name: str) -> int:
        return self.values.get(name, 0)


class LaterCounters(Counters):
    @command(key="name", since=2)
    def double(self, name: str) -> int:
        return self.add(name, self.values.get(name, 0))


class LatestCounters(LaterCounters):
    @command(key="name", since=3)
    def clear(self, name: str) -> None:
        self.values.pop(name, None)


class Upgrading:
    """A cluster of which each node runs a release of its own."""

    def __init__(self) -> None:
        self.releases: dict[str, type[Counters]] = dict.fromkeys("abc", Counters)
        self.handles: dict[str, Any] = {}
        self.cluster = MemoryCluster(self._declare, limits=Limits(request_timeout_ms=3_000, check_entries=20))

    def _declare(self, node: Node) -> None:
        name = node.node_id
        self.handles[name] = node.service("counters", self.releases[name], initial_shards=1)

    async def start(self, name: str, release: type[Counters]) -> None:
        """Start a node again, with that release of the program."""
        await self.cluster.stop(name)
        self.releases[name] = release
        await self.cluster.start(name)

    async def ready(self, *names: str) -> None:
        for name in names or self.cluster.names:
            await self.cluster.nodes[name].ready("counters")

    def replica(self, name: str) -> Any:
        return self.cluster.nodes[name]._here().engine.replicas[GROUP]

    def sees_behind(self, name: str, behind: list[str]) -> bool:
        """Whether a node knows that those, and no others, lack version 2."""
        return self.cluster.nodes[name].shard_map.services["counters"].behind(2) == behind

    def version(self, name: str) -> int:
        return self.cluster.nodes[name].shard_map.services["counters"].version


def test_a_rolling_upgrade_and_on() -> None:
    async def main() -> None:
        upgrading = Upgrading()
        async with upgrading.cluster as cluster:
            await upgrading.ready()
            assert await cluster.insist(lambda: upgrading.handles["a"].add("x", 3)) == 3
            for number, name in enumerate("abc", 1):
                await upgrading.start(name, LatestCounters)
                await upgrading.ready()
                behind = list("abc"[number:])
                for each in "abc"[:number]:
                    handle = upgrading.handles[each]
                    await cluster.until(partial(upgrading.sees_behind, each, behind))
                    if behind:
                        with pytest.raises(NotReady, match=f"came with version 2: .* on {', '.join(behind)}$"):
                            await handle.double("x")
                    assert await cluster.insist(partial(handle.add, "x", 0)) == 3
            await cluster.until(lambda: {upgrading.version(name) for name in "abc"} == {3})
            assert await cluster.insist(lambda: upgrading.handles["a"].double("x")) == 6
            await cluster.insist(lambda: upgrading.handles["b"].clear("x"))
            assert await cluster.insist(lambda: upgrading.handles["c"].get("x")) == 0
            assert [upgrading.replica(name).halted for name in "abc"] == [None] * 3

    run_virtual(main())


def test_a_program_that_is_too_old_is_refused_and_its_replica_halts_at_what_it_does_not_know() -> None:
    async def main() -> None:
        upgrading = Upgrading()
        upgrading.releases = dict.fromkeys("abc", LaterCounters)
        async with upgrading.cluster as cluster:
            await upgrading.ready()
            await cluster.until(lambda: upgrading.version("a") == 2)
            await cluster.insist(lambda: upgrading.handles["a"].add("x", 3))
            await upgrading.start("c", Counters)
            with pytest.raises(
                ConfigError, match=r"version 2 .* are in use, .* up to version 1: start a later release"
            ):
                await upgrading.ready("c")
            with pytest.raises(ConfigError, match="start a later release"):
                await upgrading.handles["c"].add("x", 1)
            assert await cluster.insist(lambda: upgrading.handles["a"].double("x")) == 6
            await cluster.insist(lambda: upgrading.handles["b"].add("x", 1))
            replica = upgrading.replica("c")
            await cluster.until(lambda: replica.halted is not None)
            assert replica.halted.kind == "unknown command"
            assert replica.halted.command == "command double('x')"
            assert upgrading.replica("a").halted is upgrading.replica("b").halted is None
            # Restarted with the same program it halts again; with a later one it goes on by itself.
            await upgrading.start("c", Counters)
            await cluster.until(lambda: upgrading.replica("c").halted is not None)
            await upgrading.start("c", LaterCounters)
            await upgrading.ready()
            await cluster.until(lambda: upgrading.replica("c").applied == upgrading.replica("a").applied)
            assert upgrading.cluster.nodes["c"].local_machine(GROUP).values == {"x": 7}  # type: ignore[attr-defined]

    run_virtual(main())


def test_a_leader_proposes_nothing_that_it_does_not_know() -> None:
    """By whatever way it comes: bytes are not checked against what the nodes have declared."""

    async def main() -> None:
        upgrading = Upgrading()
        async with upgrading.cluster as cluster:
            await upgrading.ready()
            await cluster.until(lambda: len(cluster.leaders(GROUP)) == 1)
            group = cluster.nodes[cluster.leaders(GROUP)[0]].group(GROUP)
            for body in (b"\x92\xa6double\xa1x", b"\x94\xa3add\xa1x\x01\x02"):
                for session in (False, True):
                    with pytest.raises(InvalidRequest, match="group 16: Counters"):
                        await group.propose(body, session=session)
            assert await cluster.insist(lambda: upgrading.handles["a"].add("x", 1)) == 1

    run_virtual(main())
