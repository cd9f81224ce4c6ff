"""Fixtures for tests of whole nodes: a small service, and clusters of real nodes on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from multiraft import BytesService, BytesStateMachine, Limits, Node
from multiraft.raft.progress import Progress
from multiraft.testing import MemoryCluster, run_virtual


class Ledger(BytesStateMachine):
    """Keeps every command in order. `!name` raises that exception; a query returns all commands, joined by spaces."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        if command == b"!ValueError":
            raise ValueError("not this one")
        if command == b"!OSError":
            raise OSError("the environment failed")
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        if query == b"!":
            raise ValueError("no such question")
        return b" ".join(self.kept)

    def snapshot(self) -> bytes:
        return b" ".join(self.kept)

    def restore(self, state: bytes) -> None:
        self.kept = state.split()


class DriftingClock:
    """A node's real clock that drifts from its timers, and jumps as if its machine had slept for no time at all."""

    def __init__(self, base: Callable[[], float], rate: float = 1.0) -> None:
        self._base = base
        self._rate = rate
        self._read_s = self._at_s = base()

    def __call__(self) -> float:
        now_s = self._base()
        self._read_s += (now_s - self._at_s) * self._rate
        self._at_s = now_s
        return self._read_s

    def run_at(self, rate: float) -> None:
        """From now on, run at `rate` times the base's."""
        self()
        self._rate = rate

    def suspend(self, seconds: float) -> None:
        self._read_s += seconds


class Ledgers:
    """A cluster whose nodes serve "ledger" on one group, 16, or more; `services` are the handles by node name.

    rates  how fast each node's real clock runs; 1 where nothing is said
    """

    GROUP = 16

    def __init__(self, rates: dict[str, float] | None = None, shards: int = 1, **options: Any) -> None:
        self.services: dict[str, BytesService] = {}
        self.clocks: dict[str, DriftingClock] = {}
        self._rates = rates or {}
        self._shards = shards
        options.setdefault("limits", Limits(request_timeout_ms=3_000))
        self.replicas: int = options.pop("replicas", 3)
        self.machine: type[BytesStateMachine] = options.pop("machine", Ledger)
        self.cluster = MemoryCluster(self._declare, **options)

    def _declare(self, node: Node) -> None:
        name = node.node_id
        self.services[name] = node.bytes_service(
            "ledger", self.machine, initial_shards=self._shards, replicas=self.replicas
        )
        self.clocks.setdefault(name, DriftingClock(node._setup.clocks.real, self._rates.get(name, 1.0)))
        node._setup.clocks = node._setup.clocks._replace(real=self.clocks[name])

    async def leader(self) -> str:
        """Wait until exactly one node leads the group, and return it."""
        await self.cluster.until(lambda: len(self.cluster.leaders(self.GROUP)) == 1)
        return self.cluster.leaders(self.GROUP)[0]

    def kept(self, name: str) -> list[bytes]:
        """What the replica on a node has applied."""
        machine = self.cluster.nodes[name].local_machine(self.GROUP)
        if not isinstance(machine, Ledger):
            raise TypeError("group 16 is not the ledger's")
        return machine.kept


@pytest.fixture
def nobody_asks_after(pure_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders do not ask after followers that acknowledge nothing: that would repair, late, what the test looks at."""
    monkeypatch.setattr(Progress, "stalled", lambda *_: False)


Scenario = Callable[[Ledgers], Coroutine[Any, Any, None]]


@pytest.fixture
def play() -> Callable[..., None]:
    """Run a scenario on a started cluster of ledgers, ready unless told otherwise; options go to MemoryCluster."""

    def run(scenario: Scenario, *, ready: bool = True, **options: Any) -> None:
        async def main() -> None:
            ledgers = Ledgers(**options)
            async with ledgers.cluster as cluster:
                if ready:
                    await cluster.ready()
                await scenario(ledgers)

        run_virtual(main())

    return run
