"""A client's end of one connection: how it is opened, and what is said of its end.

Rules of this file: no state of the client; no compression.
"""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp import WSMsgType

PATHS: Final = ("/client", "/admin/client")
"""Where below a node's URL what serves clients is looked for."""
FRAME_BYTES_MAX: Final = 1 << 28
"""A longer frame of a node is not taken."""
DIAL_S: Final = 3.0
"""Connecting, and greeting, may take so long each."""
CLOSE_S: Final = 1.0
_PING_S: Final = 3.0
"""A node that is silent for so long is pinged; if it does not answer within half of that, the connection is cut."""


async def open_websocket(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    """Connect, where below the URL the node serves clients. Raises ClientError, OSError."""
    for path in PATHS:
        try:
            return await session.ws_connect(
                url + path,
                compress=0,
                max_msg_size=FRAME_BYTES_MAX,
                heartbeat=_PING_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as problem:
            if problem.status != 404:
                raise ConnectionError(f"it answers, and takes no clients: HTTP status {problem.status}") from problem
    raise ConnectionError("it answers, but serves no clients here; is it the admin URL of a node?")


def closing(ws: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> str:
    """Return why a connection has ended, as its last message says."""
    if message.type is WSMsgType.ERROR:
        return f"{type(message.data).__name__}: {message.data}"
    said = message.extra if isinstance(message.extra, str) and message.extra else "without a word"
    return f"closed by the node with code {ws.close_code}: {said}"
