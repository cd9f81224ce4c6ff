"""One node's counters as Prometheus text (exposition format 0.0.4).

Rules of this file: a pure function of `Node.status()`; names start with `multiraft_` and end in their unit, or in
`_total` when they only ever grow; a number that the node does not give is left out, never shown as 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from multiraft.admin.view import Facts

_Samples = Iterable[tuple[str, Any]]
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_]")


def metrics_text(status: Facts) -> str:
    """Return the metrics page for what `Node.status()` returned, and, as "clients", `ClientServer.counts`."""
    lines: list[str] = []

    def add(name: str, kind: str, about: str, samples: _Samples) -> None:
        known = [(labels, float(value)) for labels, value in samples if value is not None]
        if known:
            lines.append(f"# HELP multiraft_{name} {about}")
            lines.append(f"# TYPE multiraft_{name} {kind}")
            lines.extend(f"multiraft_{name}{labels} {value:.12g}" for labels, value in known)

    loop, writer, proposals = status.get("loop", {}), status.get("writer", {}), status.get("proposals", {})
    lag_ms = loop.get("lag_ms")
    groups, peers = status.get("groups", {}), status.get("peers", {})
    by_state = [(_labels(state=name), groups[name]) for name in sorted(groups)]
    heard = [(_labels(peer=name), peer.get("heard_age_s")) for name, peer in sorted(peers.items())]
    connected = [(_labels(peer=name), peer.get("connected")) for name, peer in sorted(peers.items())]
    info = _labels(
        node=status["node_id"],
        version=status.get("version", ""),
        build="compiled" if status.get("compiled") else "pure",
    )
    add("info", "gauge", "This node, always 1.", [(info, 1)])
    add("uptime_seconds", "gauge", "Time since the node started.", [("", status.get("uptime_s"))])
    add("incarnation", "gauge", "Starts of this node so far.", [("", status.get("incarnation"))])
    add("groups", "gauge", "Groups with a replica here, by state.", by_state)
    add("peer_connected", "gauge", "Whether the peer is connected.", connected)
    add("peer_heard_age_seconds", "gauge", "Time since the peer was last heard.", heard)
    add("loop_lag_seconds", "gauge", "Worst lateness of the loop within a second.", [("", _seconds(lag_ms))])
    add("loop_busy_ratio", "gauge", "Share of time spent in turns.", [("", loop.get("busy"))])
    add("turns_total", "counter", "Turns of the engine.", [("", loop.get("turns"))])
    add("writer_busy_ratio", "gauge", "Share of time spent writing.", [("", writer.get("busy"))])
    add("writes_in_flight", "gauge", "Write batches not yet synced.", [("", writer.get("in_flight"))])
    add("syncs_total", "counter", "Synced writes.", [("", writer.get("syncs"))])
    add("proposals_pending", "gauge", "Proposals not yet answered.", [("", proposals.get("pending"))])
    add("proposals_pending_bytes", "gauge", "Their size.", [("", proposals.get("pending_bytes"))])
    clients = status.get("clients", {})
    ended = [(_labels(outcome=name), clients[name]) for name in sorted(clients) if name != "open"]
    add("clients_open", "gauge", "Connections of remote clients.", [("", clients.get("open"))])
    add("clients_total", "counter", "Connections of remote clients so far, by what became of them.", ended)
    for name, value in sorted(status.get("counters", {}).items()):
        if isinstance(value, (int, float)):
            safe = _NOT_IN_NAMES.sub("_", name)
            add(
                f"node_{safe.removesuffix('_total')}_total", "counter", "Counted by engine or transport.", [("", value)]
            )
    return "\n".join(lines) + "\n"


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _labels(**labels: object) -> str:
    quoted = (f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
