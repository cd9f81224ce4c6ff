"""What this node's own replicas hold, read behind the store's back: for inspection, and to prove that a check notices.

    GET    /replica/{group}        JSON lines: a head, {"group_id", "node_id", "applied"}; each record as
                                   [key, base64]; at last {"records": how many}. ?applied= waits for that index
    DELETE /replica/{group}/{key}  drops a record from this replica alone; only where that was allowed, and of shards
                                   in memory: one on disk lets nothing but commands write

Rules of this file: a replica is read in pieces, since it may be larger than memory; what is applied meanwhile may or
may not be seen.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Final

from aiohttp import web

from examples.kv.inputs import ApiError, group_of, key_of, parameters_of, to_base64, whole_number
from examples.kv.layout import key_name
from examples.kv.machine import KV
from examples.kv.memory import MemoryKV
from multiraft.errors import NotReady
from multiraft.node import Node
from multiraft.types import GroupId

_APPLY_POLL_S: Final = 0.01
_APPLY_WAIT_S: Final = 10.0
_DUMP_BYTES: Final = 256 * 1024


class Replicas:
    """The two routes of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def dump(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /replica/{group}."""
        asked = parameters_of(request, "applied")
        group_id = group_of(request)
        wanted = whole_number("applied", asked.get("applied", "0"), 0, (1 << 64) - 1)
        machine = await self._at(group_id, wanted)
        applied = self._node.group_status(group_id)["applied"]
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(_line({"group_id": group_id, "node_id": self._node.node_id, "applied": applied}))
        count, after = 0, None
        while records := machine.records(after, _DUMP_BYTES):
            await response.write(b"".join(_line([key, to_base64(value)]) for key, value in records))
            count, after = count + len(records), records[-1][0]
        await response.write(_line({"records": count}))
        await response.write_eof()
        return response

    async def plant_loss(self, request: web.Request) -> web.Response:
        """Serve DELETE /replica/{group}/{key}."""
        parameters_of(request)
        group_id = group_of(request)
        name = key_name(key_of(request, f"/replica/{request.match_info['group']}/"))
        machine = await self._at(group_id, 0)
        if not isinstance(machine, MemoryKV):
            hint = "start the nodes with --in-memory to try this"
            raise ApiError(400, "a replica on disk lets nothing but commands write", hint)
        dropped = machine.data.get(name) is not None
        machine.data.delete(name)
        return web.json_response({"dropped": dropped})

    async def _at(self, group_id: GroupId, applied: int) -> KV:
        """Return this node's replica once it has applied everything up to `applied`."""
        give_up = time.monotonic() + _APPLY_WAIT_S
        while True:
            try:
                machine = self._node.local_machine(group_id)
                reached = self._node.group_status(group_id)["applied"]
            except (KeyError, NotReady):
                machine, reached = None, 0
            if not isinstance(machine, KV):
                hint = "GET /admin/groups says which nodes have one"
                raise ApiError(404, f"this node has no replica of group {group_id} of the store", hint)
            if reached >= applied:
                return machine
            if time.monotonic() >= give_up:
                raise ApiError(503, f"group {group_id} has applied {reached} here, not yet {applied}", "try again")
            await asyncio.sleep(_APPLY_POLL_S)


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
