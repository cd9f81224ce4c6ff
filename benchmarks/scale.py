"""`python -m benchmarks.scale`: what many groups cost, and how fast they come back.

Three nodes as processes on this machine. In order, each part on request:

    start    groups are declared, and the seconds until every one has a leader; the same after all nodes were stopped
    idle     CPU of each node, as /proc counts it, while nothing happens
    down     the same with one node killed, when the others lead its groups
    memory   what each node's memory has grown by for a group
    kill     kill -9 of the node that leads most, under load, until each of its groups has taken a write
    active   one write under way in every group, all led by one node

Rules of this file: nothing but the nodes runs while idle ones are measured; every process is ended; the directories go
with the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.cluster import NODES, free_ports

_READY_S: Final = 240.0
_SETTLE_S: Final = 3.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class ScaleCluster:
    """Three nodes with so many groups; a context manager. Nodes can be killed, stopped, and started again."""

    def __init__(self, groups: int, directory: str | None = None, **options: Any) -> None:
        self._directory = tempfile.mkdtemp(prefix="multiraft-scale-", dir=directory)
        members = {name: f"127.0.0.1:{port}" for name, port in zip(NODES, free_ports(3), strict=True)}
        self._options = {
            name: {
                "node_id": name,
                "data_dir": f"{self._directory}/{name}",
                "listen": members[name],
                "members": members,
                "groups": groups,
                **options,
            }
            for name in NODES
        }
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self.bare: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.nodes):
            self.kill(name)
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, *names: str) -> None:
        """Start these nodes, all at once; return when each runs."""
        for name in names:
            self.nodes[name] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scale_node", json.dumps(self._options[name])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        for name in names:
            self.bare[name] = self.hear(name)["bare"]

    def kill(self, name: str) -> None:
        """End a node as a loss of power would."""
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        """End a node in good order."""
        pipe = self.nodes[name].stdin
        if pipe is not None:
            pipe.close()
        self._end(name, None)

    def _end(self, name: str, how: signal.Signals | None) -> None:
        node = self.nodes.pop(name)
        if how is not None:
            node.send_signal(how)
        try:
            node.wait(60)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
        for pipe in (node.stdin, node.stdout):
            if pipe is not None:
                pipe.close()

    def say(self, name: str, **wanted: Any) -> None:
        pipe = self.nodes[name].stdin
        if pipe is None:
            raise RuntimeError("the node has no stdin")
        pipe.write(json.dumps(wanted) + "\n")
        pipe.flush()

    def hear(self, name: str) -> dict[str, Any]:
        pipe = self.nodes[name].stdout
        line = pipe.readline() if pipe is not None else ""
        if not line:
            raise RuntimeError(f"node {name} ended with exit code {self.nodes[name].wait()}; it says why above")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Tell one node what to do and return its answer."""
        self.say(name, **wanted)
        return self.hear(name)

    def ask_all(self, **wanted: Any) -> dict[str, dict[str, Any]]:
        """Tell all nodes that run what to do, and return their answers when each has answered."""
        for name in self.nodes:
            self.say(name, **wanted)
        return {name: self.hear(name) for name in self.nodes}

    def cpu_s(self) -> dict[str, float]:
        """User and system CPU of each node so far, as /proc has it."""
        return {name: _cpu_s(node.pid) for name, node in self.nodes.items()}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _until_ready(cluster: ScaleCluster, began_s: float) -> dict[str, Any]:
    """Seconds until every group has a leader on every node, and the latest lag of each loop until then."""
    used = cluster.cpu_s()
    ready = cluster.ask_all(op="ready", timeout_s=_READY_S)
    figures = cluster.ask_all(op="figures")
    return {
        "seconds": max(found["at_s"] for found in ready.values()) - began_s,
        "lag_ms": {name: found["lag_ms"] for name, found in figures.items()},
        "cpu_s": {name: found["cpu_s"] - used[name] for name, found in figures.items()},
        "led": {name: found["groups"]["led"] for name, found in figures.items()},
        "rss_bytes": {name: found["rss_bytes"] for name, found in figures.items()},
        "pss_bytes": {name: found["pss_bytes"] for name, found in figures.items()},
    }


def measure_idle(cluster: ScaleCluster, seconds: float) -> dict[str, Any]:
    """CPU of each node in percent of one core, while nobody asks anything."""
    cluster.ask_all(op="tune")
    cluster.ask_all(op="lag", on=False)
    time.sleep(_SETTLE_S)
    before, began_s = cluster.cpu_s(), time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    after = cluster.cpu_s()
    return {"seconds": took_s, "cpu_percent": {name: (after[name] - before[name]) / took_s * 100 for name in after}}


def measure_kill(cluster: ScaleCluster, in_flight: int, payload: int) -> dict[str, Any]:
    """Kill the node that leads most groups, under load; when has each of its groups taken a write again?"""
    led = {name: found["groups"] for name, found in cluster.ask_all(op="led_groups").items()}
    victim = max(led, key=lambda name: len(led[name]))
    lost, others = led[victim], [name for name in NODES if name != victim]
    cluster.ask_all(op="begin_load", in_flight=in_flight, payload=payload)
    time.sleep(_SETTLE_S)
    before = {name: found for name, found in cluster.ask_all(op="figures").items() if name != victim}
    cluster.ask_all(op="lag", on=True)
    began_s = time.monotonic()
    cluster.kill(victim)
    for place, name in enumerate(others):
        part = lost[place :: len(others)]
        cluster.say(name, op="reach", group_ids=part, at_once=len(part), victim=victim)
    reached = [cluster.hear(name) for name in others]
    seconds = max(found["last_s"] for found in reached) - began_s
    after = cluster.ask_all(op="figures")
    cluster.ask_all(op="end_load")
    span_s = {name: after[name]["at_s"] - before[name]["at_s"] for name in others}
    return {
        "victim": victim,
        "lost": len(lost),
        "seconds": seconds,
        "median_s": statistics.median(found["median_s"] for found in reached) - began_s,
        "led_s": max(found["led_s"] for found in reached) - began_s,
        "lag_ms": {name: after[name]["lag_ms"] for name in others},
        "load_writes_per_s": {name: (after[name]["writes"] - before[name]["writes"]) / span_s[name] for name in others},
    }


def measure_active(cluster: ScaleCluster, seconds: float, payload: int) -> dict[str, Any]:
    """One write under way in every group, with all groups led by one node."""
    leader = NODES[0]
    for _ in range(600):
        handed = [cluster.ask(name, op="gather", to=leader)["handed"] for name in cluster.nodes if name != leader]
        if not any(handed):
            break
        time.sleep(0.2)
    cluster.ask_all(op="tune")
    cluster.ask(leader, op="each_once", seconds=1.0, payload=payload)
    return cluster.ask(leader, op="each_once", seconds=seconds, payload=payload)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts asked for, in order, on one cluster, and return their figures."""
    found: dict[str, Any] = {"groups": options.groups, "parts": options.parts}
    limits = json.loads(options.limits)
    with ScaleCluster(options.groups, options.directory, limits=limits, loop=options.loop) as cluster:
        began_s = time.monotonic()
        cluster.start(*NODES)
        found["create"] = _until_ready(cluster, began_s)
        if "start" in options.parts:
            for name in NODES:
                cluster.say(name, op="lag", on=False)
                cluster.hear(name)
            for name in NODES:
                cluster.stop(name)
            began_s = time.monotonic()
            cluster.start(*NODES)
            found["start"] = _until_ready(cluster, began_s)
        if "idle" in options.parts:
            found["idle"] = measure_idle(cluster, options.idle_s)
        if "memory" in options.parts:
            grown = cluster.ask_all(op="figures")
            found["memory"] = {
                name: {
                    "rss_bytes": grown[name]["rss_bytes"],
                    "pss_bytes": grown[name]["pss_bytes"],
                    "bytes_per_group": (grown[name]["pss_bytes"] - cluster.bare[name]["pss_bytes"]) / options.groups,
                }
                for name in NODES
            }
        if "active" in options.parts:
            found["active"] = measure_active(cluster, options.active_s, options.payload)
        if "kill" in options.parts:
            found["kill"] = measure_kill(cluster, options.in_flight, options.payload)
        if "down" in options.parts:
            if "kill" not in options.parts:
                victim = NODES[-1]
                cluster.kill(victim)
                time.sleep(_SETTLE_S)
            cluster.ask_all(op="ready", timeout_s=_READY_S)
            found["one_down"] = measure_idle(cluster, options.idle_s)
    return found


def _of_nodes(values: dict[str, float], form: str) -> str:
    return " / ".join(format(value, form) for value in values.values())


def describe(found: dict[str, Any]) -> str:
    """Return the figures as lines to read."""
    lines = []
    for part, word in (("create", "declared"), ("start", "started again")):
        if part in found:
            row = found[part]
            rss_mib = {name: rss_bytes / 2**20 for name, rss_bytes in row["rss_bytes"].items()}
            lines.append(
                f"{found['groups']} groups {word}: all led after {row['seconds']:.1f} s; "
                f"led {_of_nodes(row['led'], 'd')}; CPU {_of_nodes(row['cpu_s'], '.1f')} s; "
                f"longest lag {_of_nodes(row['lag_ms'], '.0f')} ms; RSS {_of_nodes(rss_mib, '.0f')} MiB"
            )
    for part, word in (("idle", "all up"), ("one_down", "one down")):
        if part in found:
            lines.append(f"idle, {word}: CPU {_of_nodes(found[part]['cpu_percent'], '.2f')} % of a core")
    if "memory" in found:
        per_group = {name: row["bytes_per_group"] / 1024 for name, row in found["memory"].items()}
        lines.append(f"memory: {_of_nodes(per_group, '.2f')} KiB for each group (PSS, less that of the bare process)")
    if "active" in found:
        row = found["active"]
        lines.append(
            f"one write under way in each of {row['groups']} groups: {row['writes_per_s']:,.0f} writes/s, "
            f"p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, CPU {row['cpu_us']:.1f} us a write"
        )
    if "kill" in found:
        row = found["kill"]
        lines.append(
            f"kill -9 of the node leading {row['lost']} groups: the last took a write after {row['seconds']:.2f} s, "
            f"half of them after {row['median_s']:.2f} s; all were led after {row['led_s']:.2f} s; "
            f"longest lag {_of_nodes(row['lag_ms'], '.0f')} ms; "
            f"load meanwhile {_of_nodes(row['load_writes_per_s'], ',.0f')} writes/s"
        )
    return "\n".join(lines)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("there must be at least one")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n\n")[0])
    parser.add_argument("--groups", type=_count, default=10_000)
    parser.add_argument(
        "--parts",
        nargs="*",
        default=["start", "idle", "memory", "down"],
        choices=["start", "idle", "memory", "active", "kill", "down"],
    )
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long to measure idle nodes")
    parser.add_argument("--active-s", type=float, default=5.0, help="how long to measure active groups")
    parser.add_argument("--in-flight", type=int, default=64, help="writes under way on each node under load")
    parser.add_argument("--payload", type=int, default=128, help="bytes of a write")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--limits", default="{}", help="settings of Limits, as JSON")
    parser.add_argument("--directory", help="where the databases go, if not in the temporary folder")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found) if options.json else describe(found))


if __name__ == "__main__":
    main()
