"""A client of our nodes in a process of its own: `multiraft.client`, by callbacks, in a closed loop.

It speaks the line protocol of the peers' programs. Writes carry the client's session, so that each is applied once
whatever is sent again; reads are linearizable. A call that fails ends the run.

Rules of this file: what is called is what users call, `Client.send` and `Client.ask`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

import uvloop

from benchmarks.figures import latency_figures
from multiraft.client import Client
from multiraft.errors import MultiRaftError
from multiraft.tuning import tune_process

SERVICE: Final = "bytes"
KEYS: Final = 4096


async def load(client: Client, level: str, in_flight: int, seconds: float, payload: int) -> dict[str, float]:
    """Keep `in_flight` calls under way for so many seconds; return their count and latencies."""
    clock = time.perf_counter
    latencies: list[float] = []
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    call = client.ask if level == "reads" else client.send
    pad = b"" if level == "reads" else b"x" * (payload - 8)
    under_way = in_flight
    used_s = time.process_time()
    began_s = clock()
    end_s = began_s + seconds

    def start(key: bytes, body: bytes) -> None:
        asked_s = clock()

        def answered(outcome: bytes | MultiRaftError) -> None:
            nonlocal under_way
            now_s = clock()
            latencies.append(now_s - asked_s)
            if isinstance(outcome, MultiRaftError) and not ended.done():
                ended.set_exception(outcome)
            if now_s < end_s and not ended.done():
                start(key, body)
                return
            under_way -= 1
            if not under_way and not ended.done():
                ended.set_result(None)

        call(SERVICE, key, body, answered)

    for number in range(in_flight):
        key = b"%08d" % (number % KEYS)
        start(key, key + pad)
    await ended
    took_s = clock() - began_s
    used_s = time.process_time() - used_s
    return {"cpu_s": used_s, **latency_figures(latencies, took_s)}


async def serve(options: dict[str, Any]) -> None:
    """Connect, and obey stdin until it ends."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def say(answer: object) -> None:
        print(json.dumps(answer), flush=True)

    async with Client(options["urls"]) as client:
        client.bytes_service(SERVICE)
        await client.shards(SERVICE)
        tune_process()
        say({"event": "ready"})
        loop.add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
        while line := await lines.get():
            asked = json.loads(line)
            say(await load(client, asked["level"], asked["in_flight"], asked["seconds"], asked["payload"]))
        loop.remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1])))
