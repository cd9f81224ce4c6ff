"""The ceiling: what this machine allows a replicated log on these libraries, as a measure for the real thing.

Three processes in a steady state replicate, sync on all three nodes, commit by quorum, apply, and answer the clients.
Left out is whatever makes it a system: elections, terms, losses and repairs, membership, checksums, sessions, limits,
reads. So a real engine stays below it, and the distance is what those things cost. How a node works stands in
`ceiling_node`; here is what starts three of them and collects their figures.

    python -m benchmarks.ceiling --groups 64 --concurrency 1000 --payload-bytes 128 --seconds 5

Rules of this file: imports nothing of multiraft. Parent and nodes talk in lines of JSON over the nodes' standard
streams: the leader says its port, and the followers are started with it; everyone says that it is connected; the
parent says go; the leader reports, having told its followers of every commit; the parent tells them how much that
was; they report when they have applied it. A node ends when its input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

NODES: Final = 3
LEADER: Final = 0
KEY_BYTES: Final = 8
"""The first bytes of a payload: the key under which the state machine keeps it."""
GRACE_S: Final = 60.0
"""How long starting, draining and stopping may take beside the measured time."""

_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class CeilingOptions:
    """What to measure.

    groups         how many logs share the three processes
    concurrency    writes in flight, spread evenly over the groups
    payload_bytes  size of a write, at least 8
    seconds        how long to measure
    loop           asyncio's own event loop, or uvloop
    gc             "freeze": what is alive after the start is left out of collections, and those are rare
    directory      where the three databases go, on the disk that is to be measured; None: the temporary folder
    """

    groups: int = 1
    concurrency: int = 64
    payload_bytes: int = 128
    seconds: float = 5.0
    loop: Literal["asyncio", "uvloop"] = "uvloop"
    gc: Literal["on", "freeze"] = "freeze"
    directory: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("concurrency", 1), ("payload_bytes", KEY_BYTES), ("seconds", 0.01)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True, slots=True)
class CeilingResult:
    """What was measured; sequences are by process, the leader first.

    writes          acknowledged to the clients, and applied on all three nodes
    writes_per_s    over the measured time
    p50_ms, p99_ms, p999_ms  from a client's call to its answer
    cpu_s           user and system time of each process while it was measured
    syncs           synced batches of each process
    """

    writes: int
    writes_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_s: tuple[float, ...]
    syncs: tuple[int, ...]


async def run_ceiling(options: CeilingOptions) -> CeilingResult:
    """Start the three processes, measure, stop them, and return the figures.

    Raises RuntimeError when one of them fails or they do not end up alike, and TimeoutError when they take a minute
    longer than they should.
    """
    nodes: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="ceiling-", dir=options.directory) as directory:
        try:
            async with asyncio.timeout(options.seconds + GRACE_S):
                reports = await _converse(nodes, directory, options)
        finally:
            for node in nodes:
                with suppress(ProcessLookupError):
                    node.kill()
                await node.wait()
    led = reports[LEADER]
    if any(report["applied"] != led["applied"] for report in reports):
        raise RuntimeError(f"the three nodes did not apply the same: {reports}")
    return CeilingResult(
        writes=led["applied"],
        writes_per_s=led["applied"] / led["elapsed_s"],
        p50_ms=led["p50_s"] * 1e3,
        p99_ms=led["p99_s"] * 1e3,
        p999_ms=led["p999_s"] * 1e3,
        cpu_s=tuple(report["cpu_s"] for report in reports),
        syncs=tuple(report["syncs"] for report in reports),
    )


async def _converse(nodes: list[Process], directory: str, options: CeilingOptions) -> list[Any]:
    """Start the nodes, which are added to `nodes` as they come, lead them through a run, and return their reports."""
    nodes.append(await _spawn(LEADER, 0, directory, options))
    port = (await _hear(nodes[LEADER]))["port"]
    for number in range(1, NODES):
        nodes.append(await _spawn(number, port, directory, options))
    for node in nodes:
        await _hear(node)
    for node in nodes:
        _say(node)
    reports = [await _hear(nodes[LEADER])]
    for node in nodes[1:]:
        _say(node, applied=reports[LEADER]["applied"])
        reports.append(await _hear(node))
    for node in nodes:
        _input_of(node).close()
    for node in nodes:
        if await node.wait():
            raise RuntimeError(f"a node ended with status {node.returncode}; it says why above")
    return reports


async def _spawn(number: int, port: int, directory: str, options: CeilingOptions) -> Process:
    command = _command(number, port, directory, options)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=_ROOT)


def _command(number: int, port: int, directory: str, options: CeilingOptions) -> list[str]:
    start = {"number": number, "port": port, "directory": str(Path(directory).resolve()), "options": asdict(options)}
    return [sys.executable, "-m", "benchmarks.ceiling_node", json.dumps(start)]


async def _hear(node: Process) -> Any:
    if node.stdout is None:
        raise RuntimeError("the node was started without a pipe to its output")
    line = await node.stdout.readline()
    if not line:
        raise RuntimeError(f"a node ended early, with status {await node.wait()}; it says why above")
    return json.loads(line)


def _say(node: Process, **values: Any) -> None:
    _input_of(node).write(json.dumps(values).encode() + b"\n")


def _input_of(node: Process) -> asyncio.StreamWriter:
    if node.stdin is None:
        raise RuntimeError("the node was started without a pipe to its input")
    return node.stdin


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print one line."""
    defaults = CeilingOptions()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ceiling",
        description="Measure what this machine allows a replicated log on asyncio, aiohttp and LevelDB.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=defaults.groups, help="logs that share the processes")
    parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="writes in flight")
    parser.add_argument("--payload-bytes", type=int, default=defaults.payload_bytes, help="size of a write")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="how long to measure")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default=defaults.loop, help="event loop")
    parser.add_argument("--gc", choices=["on", "freeze"], default=defaults.gc, help="garbage collector")
    parser.add_argument("--directory", help="where the databases go, if not in the temporary folder")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    try:
        options = CeilingOptions(**given)
    except ValueError as problem:
        parser.error(str(problem))
    result = asyncio.run(run_ceiling(options))
    print(json.dumps(asdict(options) | asdict(result)) if as_json else describe(options, result))


def describe(options: CeilingOptions, result: CeilingResult) -> str:
    """Return the figures as one line to read."""
    cpu_us = " / ".join(f"{each / result.writes * 1e6:.1f}" for each in result.cpu_s)
    return (
        f"{options.groups} groups, {options.concurrency} in flight, {options.payload_bytes} bytes, {options.loop}, "
        f"gc {options.gc}: {result.writes_per_s:,.0f} writes/s, p50 {result.p50_ms:.2f} ms, "
        f"p99 {result.p99_ms:.2f} ms, {result.writes / result.syncs[LEADER]:.1f} writes/sync, "
        f"CPU us/write {cpu_us} (leader first)"
    )


if __name__ == "__main__":
    main()
