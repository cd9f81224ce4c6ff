"""Transport: ordered, bounded, multiplexed delivery between nodes.

peers.py          the rules: whom a node talks to, and what passes on a connection
hello.py          who speaks, and for which cluster
frames.py         messages as bytes
outbox.py         what waits for one connection, in two lanes
calls.py          requests and their answers
aiohttp_peers.py  WebSockets
memory.py         the memory twin, for tests and the simulator
network.py        what connects memory transports, and obeys its owner
wires.py          its connections
"""

from __future__ import annotations

if __name__ != "multiraft.transport":
    raise ImportError("this folder is multiraft.transport; import it under that name")

from multiraft.transport.aiohttp_peers import AiohttpTransport
from multiraft.transport.frames import max_message_bytes
from multiraft.transport.memory import MemoryTransport
from multiraft.transport.network import MemoryNetwork

__all__ = ["AiohttpTransport", "MemoryNetwork", "MemoryTransport", "max_message_bytes"]
