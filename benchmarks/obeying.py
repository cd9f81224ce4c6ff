"""The process of a node that is measured: it obeys JSON lines on stdin, answers on stdout, and ends with its stdin.

Rules of this file: knows no operation; one is done after the other.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any


def say(answer: object) -> None:
    """Print a line for whoever started this process."""
    print(json.dumps(answer), flush=True)


async def orders() -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Yield each operation that is asked for, by name, with what it is given, until stdin ends. To be closed."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
    try:
        while line := await lines.get():
            wanted = json.loads(line)
            yield wanted.pop("op"), wanted
    finally:
        loop.remove_reader(sys.stdin.fileno())


def run_process(serve: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]) -> None:
    """Run `serve` with the options of the command line, on the event loop that they name."""
    options = json.loads(sys.argv[1])
    if options.get("loop", "uvloop") == "uvloop":
        import uvloop

        uvloop.run(serve(options))
    else:
        asyncio.run(serve(options))
