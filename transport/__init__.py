"""Transport: ordered, bounded, multiplexed delivery between nodes.

peers.py          the rules: whom a node talks to, and what passes on a connection
hello.py          who speaks, and for which cluster
frames.py         messages as bytes
outbox.py         what waits for one connection, in two lanes
calls.py          requests and their answers
files.py          files beside the messages: who gets which
aiohttp_peers.py  WebSockets
aiohttp_files.py  files over HTTP
memory.py         the memory twin, for tests and the simulator
network.py        what connects memory transports, and obeys its owner
wires.py          its connections
file_wires.py     its connections for files
"""

from __future__ import annotations

if __name__ != "multiraft.transport":
    raise ImportError("this folder is multiraft.transport; import it under that name")

from multiraft.transport.aiohttp_peers import AiohttpTransport
from multiraft.transport.frames import max_message_bytes
from multiraft.transport.memory import MemoryTransport
from multiraft.transport.network import MemoryNetwork

__all__ = ["AiohttpTransport", "MemoryNetwork", "MemoryTransport", "max_message_bytes"]
