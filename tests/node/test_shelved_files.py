"""Whole nodes whose states are files: what may happen while one is taken or given, and which files stay on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, Final

import pytest

from multiraft import BytesService, BytesStateMachine, Limits, Node
from multiraft.engine.loading import Loading
from multiraft.engine.replica import Replica
from multiraft.raft import Ready
from multiraft.snapshot_file import decode_manifest, file_name
from multiraft.testing import MemoryCluster, run_virtual

GROUP: Final = 16
BLOB_BYTES: Final = 3 * 1024 * 1024
LIMITS: Final = Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=0, entry_bytes=8 * 1024 * 1024)


class Roll(BytesStateMachine):
    """Keeps every command in order; its state is yielded piece by piece, behind a large and useless picture."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)

    def snapshot(self) -> Iterator[bytes]:
        rng = Random(len(self.kept))
        for _ in range(0, BLOB_BYTES, 64 * 1024):
            yield rng.randbytes(64 * 1024)
        for command in self.kept:
            yield command + b" "

    def restore(self, state: bytes) -> None:
        self.kept = state[BLOB_BYTES:].split()


class Rolls:
    """Nodes a, b and c serve "roll" on group 16."""

    def __init__(self) -> None:
        self.services: dict[str, BytesService] = {}
        self.cluster = MemoryCluster(self._declare, limits=LIMITS)

    def _declare(self, node: Node) -> None:
        self.services[node.node_id] = node.bytes_service("roll", Roll, initial_shards=1)

    def engine(self, name: str) -> Any:
        return self.cluster.nodes[name]._here().engine

    def replica(self, name: str) -> Any:
        return self.engine(name).replicas[GROUP]

    def kept(self, name: str) -> list[bytes]:
        machine: Any = self.cluster.nodes[name].local_machine(GROUP)
        return list(machine.kept)

    def whole(self, name: str) -> list[str]:
        return list(self.cluster.disks[name].shelf.whole)

    async def write(self, first: int, last: int) -> list[bytes]:
        """Write these numbers one by one, each once; return them all from 0 on."""
        for number in range(first, last):
            await self.services["a"].propose(b"k", b"%d" % number)
        return [b"%d" % number for number in range(last)]

    async def all_have(self, kept: list[bytes]) -> None:
        await self.cluster.until(lambda: all(self.kept(name) == kept for name in self.cluster.nodes))

    async def saved(self, name: str, least: int) -> None:
        """Wait until a node's stored snapshot covers at least that index, and nothing is being saved."""
        replica = self.replica(name)
        await self.cluster.until(lambda: replica.core.snapshot_index >= least and replica.saving is None)


Show = Callable[[Callable[[Rolls], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def show() -> Show:
    """Run a scenario on a started and ready cluster of rolls."""

    def run(scenario: Callable[[Rolls], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            rolls = Rolls()
            async with rolls.cluster as cluster:
                await cluster.ready()
                await scenario(rolls)

        run_virtual(main())

    return run


def test_nothing_is_applied_to_a_machine_while_its_state_is_taken(show: Show) -> None:
    async def scenario(rolls: Rolls) -> None:
        cluster = rolls.cluster
        cluster.disks["c"].delay_s = lambda: 0.02
        writing = asyncio.ensure_future(rolls.write(0, 40))
        replica = rolls.replica("c")
        await cluster.until(lambda: replica.being_taken)
        applied = replica.applied
        await cluster.until(lambda: replica.committed > applied or not replica.being_taken)
        assert replica.being_taken  # more is to be applied, and waits
        assert replica.applied == applied
        await rolls.all_have(await writing)
        await rolls.saved("c", applied)
        cluster.crash("c")
        await cluster.start("c")
        await rolls.all_have([b"%d" % number for number in range(40)])

    show(scenario)


def test_nobody_is_answered_and_nothing_applied_before_the_machine_has_its_state(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(rolls: Rolls) -> None:
        cluster = rolls.cluster
        kept = await rolls.write(0, 30)
        await rolls.all_have(kept)
        await rolls.saved("c", 20)
        cluster.crash("c")
        held: list[Loading] = []
        begin = Loading.begin
        monkeypatch.setattr(Loading, "begin", lambda loading: held.append(loading))
        await cluster.start("c")
        await cluster.until(lambda: rolls.replica("c").core.leader != 0)
        asked = asyncio.ensure_future(rolls.services["c"].read_stale(b"k", b"", 60_000))
        await cluster.run_for(1.0)
        assert not asked.done()
        assert (rolls.kept("c"), rolls.replica("c").applied) == ([], 0)
        (loading,) = held
        begin(loading)
        assert (await asked)[0].split() == kept

    show(scenario)


def test_a_sweep_takes_what_nobody_wants_and_nothing_else(show: Show) -> None:
    async def scenario(rolls: Rolls) -> None:
        cluster = rolls.cluster
        kept = await rolls.write(0, 30)
        await rolls.all_have(kept)
        await rolls.saved("c", 20)
        (wanted,) = rolls.whole("c")
        left = file_name(GROUP, 3, 7)
        cluster.disks["c"].shelf.whole[left] = b"left over"
        rolls.engine("c").shelving.sweep_soon()
        await cluster.until(lambda: left not in rolls.whole("c"))
        assert rolls.whole("c") == [wanted]
        cluster.crash("c")
        await cluster.start("c")
        await rolls.all_have(kept)

    show(scenario)


def test_what_a_removed_replica_was_about_to_store_is_wanted_no_longer(show: Show) -> None:
    async def scenario(rolls: Rolls) -> None:
        await rolls.all_have(await rolls.write(0, 30))
        await rolls.saved("c", 20)
        engine = rolls.engine("c")
        snapshot = engine.store.read_snapshot(GROUP)
        engine.shelving.coming(rolls.replica("c"), snapshot.data)
        engine.shelving.left(GROUP)
        await rolls.cluster.until(lambda: rolls.whole("c") == [])

    show(scenario)


@pytest.mark.pure_only  # what is to be written is caught in the writer's own method
def test_a_file_stays_from_when_it_is_whole_to_when_its_snapshot_is_stored(show: Show) -> None:
    async def scenario(rolls: Rolls) -> None:
        engine = rolls.engine("c")
        add, swept = engine.writer.add, []

        def sweep_and_add(replica: Replica, ready: Ready) -> Any:
            if ready.snapshot is not None and replica.group_id == GROUP:
                engine.shelving.sweep_soon()
                engine.shelving.sweep(0.0)
                swept.append(decode_manifest(ready.snapshot.snapshot.data).name)
            return add(replica, ready)

        engine.writer.add = sweep_and_add
        kept = await rolls.write(0, 30)
        await rolls.all_have(kept)
        await rolls.saved("c", 20)
        await rolls.cluster.run_for(0.1)
        assert rolls.whole("c") == swept
        rolls.cluster.crash("c")
        await rolls.cluster.start("c")
        await rolls.all_have(kept)

    show(scenario)


def test_a_file_goes_when_a_later_snapshot_is_stored(show: Show) -> None:
    async def scenario(rolls: Rolls) -> None:
        engine = rolls.engine("c")
        engine.shelving.sweep = lambda now: None
        await rolls.all_have(await rolls.write(0, 30))
        await rolls.saved("c", 20)
        (first,) = rolls.whole("c")
        await rolls.all_have(await rolls.write(30, 150))  # a state so large is saved again after four times as many
        await rolls.saved("c", 45)
        await rolls.cluster.until(lambda: len(rolls.whole("c")) == 1)
        assert rolls.whole("c") != [first]

    show(scenario)
