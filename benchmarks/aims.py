"""The rows of the table: what is compared with what, and how far ahead it should be.

A row compares the fastest of some systems of ours with the fastest of some settings of a peer, in the same case, by
their median rates in one run; or it holds a single value (CPU of idle groups, say) against a limit. Whether the aim is
met is worked out here, and nowhere else.

Rules of this file: pure data and functions. A row whose figures are missing is neither met nor unmet: it says what is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from benchmarks.figures import Case, Figure, Op, fastest, figures_of, median_of, ratio

IN_PROCESS: Final = ("bytes", "many")
EITHER_BUILD: Final = (*IN_PROCESS, "compiled-bytes", "compiled-many")
REMOTE: Final = ("remote", "compiled-remote")
COMMANDS: Final = ("command", "command-many", "compiled-command", "compiled-command-many")
REDIS_OPS: Final[tuple[Op, ...]] = ("set", "get", "incr")
PYSYNCOBJ: Final = ("pysyncobj-default", "pysyncobj-unbatched", "pysyncobj-ticking")


@dataclass(frozen=True, slots=True)
class Row:
    """Ours against a peer: the ratio of rates is to be at least `aim`; None: it is shown, without an aim.

    `note` says what differs between the two besides the code.
    """

    name: str
    work: str
    ours: tuple[str, ...]
    case: Case
    peers: tuple[str, ...]
    aim: float | None
    note: str = ""
    peer_case: Case | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """A value by itself, which is to be at least or at most `aim`, in `unit`."""

    name: str
    work: str
    value: str
    aim: float
    unit: str
    direction: Literal["at least", "at most"]
    note: str = ""


_SAME: Final = "both sync on every node"
_NO_SYNC: Final = "it does not sync, we do"

ROWS: Final[tuple[Row, ...]] = (
    Row("ceiling-bytes", "64 groups, 1000 in flight", EITHER_BUILD, Case(64, 1000), ("ceiling",), 0.80, _SAME),
    Row("ceiling-command", "64 groups, 1000 in flight, @command", COMMANDS, Case(64, 1000), ("ceiling",), 0.55, _SAME),
    Row("hashicorp-64-groups", "64 groups, 1000 in flight", EITHER_BUILD, Case(64, 1000), ("hashicorp",), 30.0, _SAME),
    Row("dragonboat-64-groups", "64 groups, 1000 in flight", EITHER_BUILD, Case(64, 1000), ("dragonboat",), 1.0, _SAME),
    Row("hashicorp-1000", "1 group, 1000 in flight", EITHER_BUILD, Case(1, 1000), ("hashicorp",), 4.0, _SAME),
    Row("hashicorp-64", "1 group, 64 in flight", EITHER_BUILD, Case(1, 64), ("hashicorp",), 3.0, _SAME),
    Row("etcd-64", "1 group, 64 in flight, client outside", REMOTE, Case(1, 64), ("etcd",), 3.5, _SAME),
    Row("etcd-1000", "1 group, 1000 in flight, client outside", REMOTE, Case(1, 1000), ("etcd",), 8.0, _SAME),
    Row("hashicorp-1", "1 group, 1 in flight", EITHER_BUILD, Case(1, 1), ("hashicorp",), 1.4, _SAME),
    Row("etcd-1", "1 group, 1 in flight, client outside", REMOTE, Case(1, 1), ("etcd",), 1.0, _SAME),
    Row(
        "reads-hashicorp", "linearizable reads, 1 group, 1000 in flight", EITHER_BUILD,
        Case(1, 1000, "reads"), ("hashicorp",), 1.5, "ReadIndex, VerifyLeader",
    ),
    Row(
        "reads-etcd", "linearizable reads, 1000 in flight, client outside", REMOTE,
        Case(1, 1000, "reads"), ("etcd",), 8.0, "ReadIndex on both sides",
    ),
    Row("pysyncobj-64", "1 group, 64 in flight", EITHER_BUILD, Case(1, 64), PYSYNCOBJ, 5.0, _NO_SYNC),
    Row("pysyncobj-1000", "1 group, 1000 in flight", EITHER_BUILD, Case(1, 1000), PYSYNCOBJ, 25.0, _NO_SYNC),
    *(
        Row(
            f"redis-{op}-{pipeline}", f"redis-benchmark {op.upper()}, 50 connections, pipelines of {pipeline}",
            ("kv-resp",), Case(1, 50 * pipeline, op), ("redis",), None, "redis: one process; we: three nodes",
        )
        for pipeline in (16, 1)
        for op in REDIS_OPS
    ),
)  # fmt: skip

LIMITS: Final[tuple[Limit, ...]] = (
    Limit("sustained-rate", "64 groups, 1000 in flight, sustained: last minute / first", "sustained_ratio",
          0.85, "x", "at least", "compaction and snapshots on"),
    Limit("sustained-p99", "the same: p99 over all of it", "sustained_p99_ms", 25.0, "ms", "at most"),
    Limit("idle-10000", "10,000 idle groups, CPU per node", "idle_10000_cpu_percent", 1.0, "%", "at most"),
    Limit("idle-10000-one-down", "the same, one node down", "idle_10000_down_cpu_percent", 1.0, "%", "at most"),
    Limit("idle-100000-memory", "100,000 idle groups: memory per group, node", "idle_100000_kb", 6.0, "KB", "at most"),
    Limit("idle-100000-start", "the same: start to all leaders", "idle_100000_start_s", 60.0, "s", "at most"),
    Limit("node-loss", "kill of the node leading 1,000 of 3,000 groups: until the last accepts writes",
          "node_loss_timeouts", 3.0, "election timeouts", "at most", "from the kill, under load"),
    Limit("node-loss-lag", "the same: worst lag of an event loop", "node_loss_lag_ms", 250.0, "ms", "at most"),
    Limit("active-10000", "10,000 active groups, one write each in flight: of the ceiling", "active_10000_ratio",
          0.7, "x", "at least", "the ceiling with the same groups"),
)  # fmt: skip

REFERENCE: Final[Mapping[tuple[str, Case], float]] = {
    ("ceiling", Case(1, 1)): 1_820,
    ("ceiling", Case(1, 64)): 77_000,
    ("ceiling", Case(1, 1000)): 353_000,
    ("ceiling", Case(64, 1000)): 291_000,
    ("hashicorp", Case(1, 1)): 909,
    ("hashicorp", Case(1, 64)): 14_700,
    ("hashicorp", Case(1, 1000)): 55_900,
    ("hashicorp", Case(64, 1000)): 3_900,
    ("hashicorp", Case(1, 1000, "reads")): 343_000,
    ("etcd", Case(1, 1)): 1_128,
    ("etcd", Case(1, 64)): 9_800,
    ("etcd", Case(1, 1000)): 20_000,
    ("etcd", Case(1, 1000, "reads")): 8_400,
    ("pysyncobj-default", Case(1, 64)): 630,
    ("pysyncobj-default", Case(1, 1000)): 8_500,
    ("pysyncobj-unbatched", Case(1, 64)): 9_000,
    ("pysyncobj-unbatched", Case(1, 1000)): 8_800,
}
"""Rates that were measured on a machine of this kind while nothing else ran, to notice a peer that is wronged."""
WRONGED_BELOW: Final = 0.75


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row, worked out. `met` is None where there is no aim, or `missing` says what there was not to measure.

    cpu_ratio  the CPU time that all processes of the peer spend on a call, over ours: on a machine that is busy with
               other things it says more than the ratio of rates
    """

    name: str
    work: str
    ours: str
    our_value: float | None
    peer: str
    peer_value: float | None
    value: float | None
    aim: str
    met: bool | None
    note: str = ""
    missing: str = ""
    unit: str = "x"
    cpu_ratio: float | None = None


def judge_row(row: Row, figures: Sequence[Figure], missing: Mapping[str, str]) -> Outcome:
    """Work a row out of what was measured; `missing` says why systems could not be."""
    peer_case = row.peer_case or row.case
    ours, peer = fastest(figures, row.ours, row.case), fastest(figures, row.peers, peer_case)
    our_rate = None if ours is None else median_of(figures_of(figures, ours, row.case), "per_s")
    peer_rate = None if peer is None else median_of(figures_of(figures, peer, peer_case), "per_s")
    value = ratio(our_rate, peer_rate)
    reasons = []
    if ours is None:
        reasons.append(_why_missing(row.ours, missing))
    if peer is None:
        reasons.append(_why_missing(row.peers, missing))
    return Outcome(
        row.name,
        row.work,
        ours or row.ours[0],
        our_rate,
        peer or row.peers[0],
        peer_rate,
        value,
        "-" if row.aim is None else f">= {row.aim:g}x",
        None if value is None or row.aim is None else value >= row.aim,
        row.note,
        "; ".join(reasons),
        cpu_ratio=ratio(*(_cpu_us(figures, each, case) for each, case in ((peer, peer_case), (ours, row.case)))),
    )


def _cpu_us(figures: Sequence[Figure], system: str | None, case: Case) -> float | None:
    return None if system is None else median_of(figures_of(figures, system, case), "all_cpu_us")


def _why_missing(systems: Iterable[str], missing: Mapping[str, str]) -> str:
    known = [f"{system}: {missing[system]}" for system in systems if system in missing]
    return "; ".join(known) or f"{' / '.join(systems)}: not measured in this run"


def judge_limit(limit: Limit, values: Mapping[str, float], missing: Mapping[str, str]) -> Outcome:
    """Hold a single value against its limit."""
    value = values.get(limit.value)
    met = None if value is None else value >= limit.aim if limit.direction == "at least" else value <= limit.aim
    return Outcome(
        limit.name,
        limit.work,
        "multiraft",
        value,
        "-",
        None,
        value,
        f"{'>=' if limit.direction == 'at least' else '<='} {limit.aim:g} {limit.unit}",
        met,
        limit.note,
        "" if value is not None else missing.get(limit.value, "not measured in this run"),
        limit.unit,
    )


@dataclass(frozen=True, slots=True)
class Wronged:
    """A peer that is slower here than it is known to be; `machine` is how fast the ceiling is here beside its own."""

    system: str
    case: Case
    share: float
    machine: float | None = field(default=None)


def wronged(figures: Sequence[Figure]) -> list[Wronged]:
    """Return the systems that stay a quarter or more below what they are known for, with the machine's own share.

    The machine's share is that of the ceiling in the same case, or of the most alike that was measured.
    """
    shares: dict[tuple[str, Case], float] = {}
    for (system, case), known in REFERENCE.items():
        rate = median_of(figures_of(figures, system, case), "per_s")
        if rate is not None:
            shares[system, case] = rate / known
    found = []
    for (system, case), share in shares.items():
        if system != "ceiling" and share < WRONGED_BELOW:
            alike = [(abs(other.in_flight - case.in_flight), shares[name, other])
                     for name, other in shares if name == "ceiling"]  # fmt: skip
            found.append(Wronged(system, case, share, min(alike)[1] if alike else None))
    return found
