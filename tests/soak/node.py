"""One node of the soak programs as a process: it answers their questions on the port that is called `--http`.

    session                        -> a new session's id
    add    [[client, sequence, lowest, first, name]...] -> [[outcome, value]...], in the same order
    leaders [name...]              -> the node that leads each name's shard, as far as is known here
    groups                         -> by group id: term, commit, applied, leads, has_replica
    counters                       -> by group id: every counter of this node's replica
    fill   {prefix, blob_bytes, group_id, size_bytes} -> writes blobs until so many bytes are there
    get, count  name               -> a blob; 1 added to a counter
    groups_of [name...]            -> the group of each name's shard
    blobs  group id                -> how many this node's replica has
    probe  [name...], then None    -> begins a probe of the loop and of writes to these; ends it: what it found
    grow   [group id, node id]     -> gives a group another replica; the seconds that it took

Rules of this file: it decides nothing; each increment is a command of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

from multiraft import Limits, Node, NodeConfig, NotCommitted, OutcomeUnknown, ReplyForgotten, SessionExpired
from multiraft.errors import MultiRaftError
from multiraft.sessions import Numbered
from multiraft.tuning import event_loop, tune_process
from tests.soak import wire
from tests.soak.machine import KINDS, SERVICE, Soak
from tests.soak.probe import Probe

_ADD_MS: Final = 3_000
_FILL_AT_ONCE: Final = 16
_FILL_MS: Final = 60_000


class Answering:
    """What a node answers."""

    def __init__(self, node: Node, store: type[Soak]) -> None:
        self._node = node
        self._store = store
        self._probing: Probe | None = None

    async def answer(self, what: str, about: Any) -> Any:
        """Answer one question. Raises what the framework raises."""
        asked: Coroutine[Any, Any, Any] = getattr(self, f"_{what}")(about)
        return await asked

    async def _session(self, about: Any) -> bytes:
        return await self._node.open_session(SERVICE)

    async def _add(self, items: list[list[Any]]) -> list[list[Any]]:
        return await asyncio.gather(*[self._add_one(*item) for item in items])

    async def _add_one(self, client: bytes, sequence: int, lowest: int, first: bool, name: str) -> list[Any]:
        number = Numbered(client, sequence, lowest, first)
        try:
            return ["done", await self._store.add.with_options(timeout_ms=_ADD_MS, session=number)(name)]
        except SessionExpired:
            return ["expired", None]
        except ReplyForgotten:
            return ["forgotten", None]
        except NotCommitted as problem:
            return ["not", f"{type(problem).__name__}: {problem}"]
        except OutcomeUnknown as problem:
            return ["unknown", str(problem)]

    async def _leaders(self, names: list[str]) -> list[str | None]:
        shards = await self._node.router.shards(SERVICE)
        groups = {name: shards.find(name.encode()).group_id for name in names}
        leaders = {group_id: self._node.leader(group_id) for group_id in set(groups.values())}
        return [leaders[groups[name]] for name in names]

    async def _groups(self, about: Any) -> dict[int, dict[str, Any]]:
        wanted = ("term", "commit", "applied", "leader_node", "role")
        return {
            status["group_id"]: {name: status.get(name) for name in wanted} for status in self._node.groups_status()
        }

    async def _counters(self, about: Any) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = {}
        for shard in (await self._node.router.shards(SERVICE)).shards:
            if self._node.router.has_replica(shard.group_id):
                machine = self._node.local_machine(shard.group_id)
                found[shard.group_id] = machine.counters() if isinstance(machine, Soak) else {}
        return found

    async def _fill(self, about: dict[str, Any]) -> dict[str, Any]:
        """Write blobs of chance, `blob_bytes` each, until `size_bytes` are there; names are `prefix` and a number.

        group_id  only names of that group's shard; 0: of all
        """
        prefix, blob_bytes, group_id = about["prefix"], about["blob_bytes"], about["group_id"]
        shards = await self._node.router.shards(SERVICE)
        numbers = iter(range(1 << 40))
        left = max(1, about["size_bytes"] // blob_bytes)
        began = time.monotonic()
        chance = random.Random(prefix)

        def names() -> Any:
            for number in numbers:
                name = f"{prefix}{number}"
                if group_id in (0, shards.find(name.encode()).group_id):
                    yield name

        source = names()
        written, longest_s = 0, 0.0

        async def work() -> None:
            nonlocal left, written, longest_s
            while left > 0:
                left -= 1
                blob, sent = chance.randbytes(blob_bytes), time.monotonic()
                await self._insist(next(source), blob)
                longest_s = max(longest_s, time.monotonic() - sent)
                written += 1

        await asyncio.gather(*[work() for _ in range(_FILL_AT_ONCE)])
        return {"written": written, "elapsed_s": time.monotonic() - began, "longest_s": longest_s}

    async def _insist(self, name: str, blob: bytes) -> None:
        while True:
            try:
                await self._store.put.with_options(timeout_ms=_FILL_MS)(name, blob)
                return
            except (NotCommitted, OutcomeUnknown):  # the same blob may be put twice
                await asyncio.sleep(0.05)

    async def _get(self, name: str) -> bytes | None:
        return await self._store.get(name)

    async def _count(self, name: str) -> int:
        return await self._store.add(name)

    async def _blobs(self, group_id: int) -> dict[str, int]:
        machine = self._node.local_machine(group_id)
        return {"blobs": machine.blobs() if isinstance(machine, Soak) else 0}

    async def _groups_of(self, names: list[str]) -> list[int]:
        shards = await self._node.router.shards(SERVICE)
        return [shards.find(name.encode()).group_id for name in names]

    async def _probe(self, about: Any) -> Any:
        """Begin with the names to write to, end with None."""
        if self._probing is None:
            self._probing = Probe(self._store, about)
            self._probing.begin()
            return None
        probing, self._probing = self._probing, None
        return await probing.end()

    async def _grow(self, about: list[Any]) -> float:
        group_id, node_id = about
        began = time.monotonic()
        await self._node.group(group_id).add(node_id, timeout_s=600)
        return time.monotonic() - began

    async def _status(self, about: Any) -> Any:
        status = self._node.status()
        return {name: status[name] for name in ("loop", "writer", "counters", "process")}


async def run(arguments: argparse.Namespace) -> None:
    members = dict(member.split("=", 1) for member in arguments.member)
    limits = Limits(**{name: int(value) for name, _, value in (limit.partition("=") for limit in arguments.limit)})
    node = Node(NodeConfig(arguments.id, arguments.data, arguments.listen, members, limits=limits))
    kind = KINDS["memory" if arguments.in_memory else "disk"]
    store: type[Soak] = node.service(
        SERVICE, kind, initial_shards=arguments.shards, replicas=min(arguments.replicas, len(members))
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def look_at_stdin() -> None:
        if not os.read(0, 4096):  # its parent has gone
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, look_at_stdin)
    answering = Answering(node, store)
    async with node, await wire.serve(int(arguments.http.rpartition(":")[2]), answering.answer):
        ended = asyncio.ensure_future(node.failed())
        stopped = asyncio.ensure_future(stop.wait())
        ready = asyncio.ensure_future(_announce(node))
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, stopped, ready):
            task.cancel()
        await asyncio.gather(ended, stopped, ready, return_exceptions=True)


async def _announce(node: Node) -> None:
    while True:
        try:
            await node.ready(SERVICE)
        except MultiRaftError as problem:
            logging.warning("waiting: %s", problem)
        else:
            break
    tune_process()
    print(f"node {node.node_id} is ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--id", "--listen", "--http", "--data"):
        parser.add_argument(name, required=True)
    for name in ("--member", "--limit"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--until-stdin-closes", action="store_true")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
