"""`python -m benchmarks.resp`: redis-benchmark against three nodes of the key-value store, beside one redis-server.

    python -m benchmarks.resp                        # -t set,get,incr -c 50, with -P 16 and -P 1, two rounds
    python -m benchmarks.resp --rounds 1 --seconds 2
    python -m benchmarks.resp --keys 100000          # random keys, so that all shards take part

Both sides sync before they answer: redis-server runs with `appendonly yes` and `appendfsync always`, so that it loses
nothing of what it acknowledged as long as its one disk lives; here every write is on the disks of two nodes of three.
Reads are linearizable on both. They take turns, round by round, and what is printed is the median, and the ratio.

    measure(rounds, seconds)  the same for other programs: a list of rows, plain enough for JSON

Rules of this file: nothing else runs beside it; both get the same options of redis-benchmark, which is told a number of
requests that takes about as long as was asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from examples.kv.cluster import Cluster, free_ports

PIPELINES: Final = (16, 1)
TESTS: Final = ("SET", "GET", "INCR")
CLIENTS: Final = 50
SHARDS: Final = 16
PROGRAMS: Final = ("redis-server", "redis-benchmark")
_PILOT: Final = 4_000
_LEAST: Final = 2_000
_START_S: Final = 10.0


class MissingProgram(Exception):
    """A program of Redis is not installed; the message says how to get it."""


def check_programs() -> None:
    """Raise MissingProgram unless both programs are there."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise MissingProgram(f"{program} is not installed: apt-get install redis-server redis-tools")


@asynccontextmanager
async def _redis(directory: Path) -> AsyncIterator[int]:
    """Run a redis-server that syncs before it answers; yield its port."""
    (port,) = free_ports(1)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"]
    process = await asyncio.create_subprocess_exec("redis-server", *options, stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + _START_S
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                if time.monotonic() > give_up or process.returncode is not None:
                    raise
                await asyncio.sleep(0.02)
        writer.close()
        yield port
    finally:
        process.terminate()
        await process.wait()


async def _benchmark(port: int, test: str, pipeline: int, count: int, keys: int) -> dict[str, float]:
    """Run redis-benchmark; return requests per second and latencies in ms."""
    command = ["redis-benchmark", "-p", str(port), "-t", test.lower(), "-c", str(CLIENTS), "-P", str(pipeline)]
    command += ["-n", str(count), "--csv", *(["-r", str(keys)] if keys else [])]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {out.decode()[-300:]}")
    head, row = (line.replace('"', "").split(",") for line in out.decode().splitlines()[-2:])
    found = dict(zip(head[1:], map(float, row[1:]), strict=True))
    return {"rps": found["rps"], "p50_ms": found["p50_latency_ms"], "p99_ms": found["p99_latency_ms"]}


async def _measure(rounds: int, seconds: float, keys: int, options: Sequence[str]) -> list[dict[str, Any]]:
    check_programs()
    samples: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with Cluster(directory / "kv", [f"--shards={SHARDS}", *options]) as cluster, _redis(directory) as port:
            ports = {"redis": port, "multiraft": int(cluster.nodes["a"].resp.rpartition(":")[2])}
            counts = {
                (test, pipeline, system): max(
                    _LEAST, int(seconds * (await _benchmark(ports[system], test, pipeline, _PILOT, keys))["rps"])
                )
                for pipeline in PIPELINES
                for test in TESTS
                for system in ports
            }
            for _ in range(rounds):
                for case, count in counts.items():
                    test, pipeline, system = case
                    figure = await _benchmark(ports[system], test, pipeline, count, keys)
                    samples.setdefault(case, []).append(figure)
    rows = []
    for pipeline in PIPELINES:
        for test in TESTS:
            ours, theirs = (
                {
                    name: statistics.median(sample[name] for sample in samples[test, pipeline, system])
                    for name in ("rps", "p50_ms", "p99_ms")
                }
                for system in ("multiraft", "redis")
            )
            row = {"test": test, "pipeline": pipeline, "clients": CLIENTS, "keys": keys or 1}
            rows.append({**row, "multiraft": ours, "redis": theirs, "ratio": ours["rps"] / theirs["rps"]})
    return rows


def measure(rounds: int = 2, seconds: float = 3.0, keys: int = 0, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return a row for each test and pipeline: requests per second and latencies of both, and their ratio.

    keys     random keys out of so many; 0: the one key that redis-benchmark uses by itself
    options  further options of every node

    Raises MissingProgram.
    """
    return asyncio.run(_measure(rounds, seconds, keys, options))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table for people."""
    lines = [f"{'':14}{'multiraft':>36}{'redis-server, appendfsync always':>40}", ""]
    head = f"{'rps':>12}{'p50 ms':>12}{'p99 ms':>12}"
    lines[1] = f"{'':14}{head}{'':4}{head}{'ratio':>10}"
    for row in rows:
        cells = [
            f"{side['rps']:>12,.0f}{side['p50_ms']:>12.2f}{side['p99_ms']:>12.2f}"
            for side in (row["multiraft"], row["redis"])
        ]
        lines.append(f"{row['test']:<6}-P {row['pipeline']:<5}{cells[0]}{'':4}{cells[1]}{row['ratio']:>10.2f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resp", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long one run takes")
    parser.add_argument("--keys", type=int, default=0, help="random keys out of so many; 0: one key")
    parser.add_argument("--in-memory", action="store_true", help="the shards in memory instead of on disk")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    asked = parser.parse_args()
    try:
        rows = measure(asked.rounds, asked.seconds, asked.keys, ["--in-memory"] if asked.in_memory else [])
    except MissingProgram as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(table(rows))
    if asked.json:
        Path(asked.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
