"""Remote clients: programs that use a cluster's services without being a node.

    client.py ── routes.py        what a program holds: connections, calls, typed handles      (asyncio, aiohttp)
      core.py ── lanes.py, links.py, atlas.py        which call goes where, retries, sessions   (pure)
        frames.py                                    what is said on the wire                   (pure)
      served.py                                      one client as its node sees it
    serving.py                    the route in a node's HTTP application                        (asyncio, aiohttp)

Rules of this package: the pure parts know no socket and no task, and are tested by themselves.
"""

from __future__ import annotations

from multiraft.client.client import Client

__all__ = ["Client"]
