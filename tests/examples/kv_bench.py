"""A key-value machine on the bench: its commands called one after the other, each as the next entry of a log."""

from __future__ import annotations

from typing import Any, Final

from examples.kv.machine import KV, DiskKV
from examples.kv.memory import MemoryKV
from multiraft.engine.machine import Context

KINDS: Final[tuple[type[KV], ...]] = (MemoryKV, DiskKV)


class Bench:
    """One machine, the index that comes next, and the clock.

    do  the machine's commands
    """

    def __init__(self, kv: KV) -> None:
        self.kv = kv
        self.index = 1
        self.now_ms = 1_000_000
        self.do = _Commands(self)

    def scan(self, prefix: str = "", page: int = 1_000) -> list[tuple[str, bytes]]:
        """Return all that a scan gives, page by page."""
        found: list[tuple[str, bytes]] = []
        while True:
            part = self.kv.scan(prefix, page, found[-1][0] if found else None)
            found += part.entries.items()
            if not part.more:
                return found


class _Commands:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __getattr__(self, name: str) -> Any:
        bench = self._bench

        def run(*args: Any, **kwargs: Any) -> Any:
            bench.kv.context = Context(bench.index, 1, 16, bench.now_ms)
            bench.index += 1
            return getattr(bench.kv, name)(*args, **kwargs)

        return run


def contents(kv: KV) -> list[tuple[bytes, bytes]]:
    """Return everything in the machine's keyspace, in order."""
    return list(kv.data.range())
