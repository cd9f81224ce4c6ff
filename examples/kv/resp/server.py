"""The RESP server of one node: its listener, its clients, and its end.

Rules of this file: clients are bounded in number; the end waits for answers that are under way, but not for clients.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final

from examples.kv.machine import KV, SERVICE, hash_tag
from examples.kv.resp.client import Client
from examples.kv.resp.command import Command, Refused
from examples.kv.resp.connecting import VERSION
from examples.kv.resp.connection import Connection
from examples.kv.resp.gateway import Gateway, Piece
from examples.kv.resp.scanning import Cursors
from examples.kv.resp.table import TABLE
from multiraft.node import Node
from multiraft.shard.shard_map import ServiceShards, Shard

CLIENTS: Final = 10_000
_CLOSE_S: Final = 1.0
_SHARDS_KNOWN: Final = 65_536
_KNOWN_KEY_BYTES: Final = 128
"""Of so many keys, up to this length, it is remembered which shard is theirs."""


class RespServer:
    """Serves the store of `node` to clients of Redis (client.Place).

    password  what they must say first; None: nothing
    clients   so many are served at once
    requests  how many have come
    """

    def __init__(self, node: Node, store: type[KV], password: str | None = None, clients: int = CLIENTS) -> None:
        self._node = node
        self._most = clients
        self.password = password
        self.cursors = Cursors()
        self.table: dict[str, Command] = TABLE
        self.requests = 0
        self.gateway = Gateway(store)
        self._connections: dict[Connection, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._number = 0
        self._began_s = time.monotonic()
        self._listening: asyncio.Server | None = None
        self._port = 0
        self._known: ServiceShards | None = None
        self._shard_of: dict[bytes, Shard] = {}

    async def start(self, listener: socket.socket) -> None:
        """Serve on `listener`, which is bound and listens."""
        self._port = listener.getsockname()[1]
        self._listening = await asyncio.get_running_loop().create_server(lambda: Connection(self), sock=listener)

    async def close(self) -> None:
        """Take no new clients, answer what has come, and end."""
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.end()
        await _within(_CLOSE_S, self._empty.wait)
        for connection in list(self._connections):
            connection.abort()
        await self._empty.wait()
        await self.gateway.close()

    # ------------------------------------------------------------------------------------------ for connections

    def next_number(self) -> int:
        """Return the number of another client."""
        self._number += 1
        return self._number

    def came(self, connection: Connection) -> bool:
        """A client has come; return whether it is served."""
        served = len(self._connections) < self._most
        self._connections[connection] = None
        self._empty.clear()
        return served

    def went(self, connection: Connection) -> None:
        """A client has gone."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def submit(self, piece: Piece) -> None:
        """Have calls made."""
        self.gateway.submit(piece)

    # ------------------------------------------------------------------------------------------------ for commands

    def look_at_map(self) -> None:
        """See whether there is another shard map than before; called before requests are taken in."""
        shards = self._node.router.map.services.get(SERVICE)
        if shards is not self._known:
            self._known = shards
            self._shard_of = {}

    def shard_of(self, key: bytes) -> Shard:
        """Return the shard of `key`. Raises Refused while the store is not there."""
        shard = self._shard_of.get(key)
        if shard is None:
            if self._known is None:
                raise _not_there()
            shard = self._known.find(hash_tag(key))
            if len(key) <= _KNOWN_KEY_BYTES:
                if len(self._shard_of) >= _SHARDS_KNOWN:
                    self._shard_of = {}
                self._shard_of[key] = shard
        return shard

    def shards(self) -> tuple[Shard, ...]:
        """Return all shards. Raises Refused while the store is not there."""
        if self._known is None:
            raise _not_there()
        return self._known.shards

    def clients(self) -> list[Client]:
        """Return who is connected, in the order of coming."""
        return [connection.client for connection in self._connections]

    def facts(self) -> dict[str, dict[str, object]]:
        """Return what INFO tells, by section."""
        return {
            "server": {
                "redis_version": VERSION,
                "redis_mode": "standalone",
                "multiraft_node": self._node.node_id,
                "process_id": os.getpid(),
                "tcp_port": self._port,
                "uptime_in_seconds": int(time.monotonic() - self._began_s),
            },
            "clients": {"connected_clients": len(self._connections), "maxclients": self._most},
            "stats": {"total_connections_received": self._number, "total_commands_processed": self.requests},
            "replication": {"role": "master", "connected_slaves": 0},
            "cluster": {"cluster_enabled": 0},
        }


def _not_there() -> Refused:
    return Refused("TRYAGAIN the store is not there yet: this node has not heard of its shards")


async def _within(seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await wait()
    except TimeoutError:
        return
