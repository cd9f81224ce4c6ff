"""A small cluster for tests of the environment itself: a service that keeps what it was told."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from multiraft import BytesService, BytesStateMachine, Limits, MultiRaftError, Node
from multiraft.testing import MemoryCluster, run_virtual
from tests.keeping import Kept, KeptOnDisk


class Fleet:
    """A cluster whose nodes serve "kept" on groups from 16; `services` are the handles by node name."""

    GROUP = 16

    def __init__(self, names: str = "abc", shards: int = 1, on_disk: bool = False, **options: Any) -> None:
        self.services: dict[str, BytesService] = {}
        self.shards = shards
        self.machine: type[BytesStateMachine] = KeptOnDisk if on_disk else Kept
        self.acknowledged: list[bytes] = []
        limits = Limits(
            request_timeout_ms=2_000,
            apply_slice_ms=1_000,
            snapshot_entries=30,
            trailing_entries=5,
            snapshot_inline_bytes=options.pop("inline_bytes", 64 * 1024),
        )
        options.setdefault("limits", limits)
        self.cluster = MemoryCluster(self._declare, tuple(names), **options)

    def _declare(self, node: Node) -> None:
        self.services[node.node_id] = node.bytes_service("kept", self.machine, initial_shards=self.shards, replicas=3)

    async def leader(self) -> str:
        """Wait until exactly one node leads group 16, and return it."""
        await self.cluster.until(lambda: len(self.cluster.leaders(self.GROUP)) == 1)
        return self.cluster.leaders(self.GROUP)[0]

    async def write(self, count: int, at: str | None = None) -> int:
        """Write `count` commands, at one node or at all in turn; return how many were acknowledged."""
        before = len(self.acknowledged)
        for number in range(count):
            name = at if at is not None else self.cluster.names[number % len(self.cluster.names)]
            word = b"%s%d" % (name.encode(), len(self.acknowledged) * 1_000 + number)
            try:
                await self.services[name].propose(b"key", word)
            except MultiRaftError:
                continue
            self.acknowledged.append(word)
        return len(self.acknowledged) - before

    async def start_all(self) -> None:
        """Start what does not run, once its disk is free."""
        self.cluster.forget_ended()
        for name in self.cluster.names:
            if name not in self.cluster.nodes:
                await self.cluster.restart(name)

    async def assert_kept(self, names: Sequence[str] = ()) -> None:
        """What was acknowledged is there, once, in its order, as these nodes say; all, unless some are named."""
        for name in names or self.cluster.names:
            await self.cluster.nodes[name].ready(timeout_s=60.0)
            service = self.services[name]
            words = (await self.cluster.insist(lambda service=service: service.read(b"key", b""))).split()  # type: ignore[misc]
            assert len(set(words)) == len(words)
            assert [word for word in words if word in set(self.acknowledged)] == self.acknowledged


@pytest.fixture
def play() -> Callable[..., None]:
    """Run a scenario on a started fleet, ready unless told otherwise; options go to Fleet."""

    def run(scenario: Callable[[Fleet], Coroutine[Any, Any, None]], *, ready: bool = True, **options: Any) -> None:
        async def main() -> None:
            fleet = Fleet(**options)
            async with fleet.cluster as cluster:
                if ready:
                    await cluster.ready()
                await scenario(fleet)

        run_virtual(main())

    return run


@pytest.fixture
def make_fleet() -> type[Fleet]:
    """The fleet itself, for a test that brings its own loop."""
    return Fleet
