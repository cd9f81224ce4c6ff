"""Every setting of a node in one place, with its unit in its name, its range, and the rules between settings.

A configuration is a frozen value that is either right or was never made: `NodeConfig(...)` and
`NodeConfig.from_toml(path)` raise ConfigError, which names the setting, what it may be, and, for an unknown one,
the nearest known name.

Rules of this file: standard library only; no setting is read from anywhere else.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from multiraft.errors import ConfigError
from multiraft.types import NodeId

_NODE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
STORES: Final = ("leveldb", "sqlite")
_KIB: Final = 1024
_MIB: Final = 1024 * 1024


def _setting(default: int | float, low: int | float, high: int | float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and intervals. Every queue, frame, batch and wait in a node has one of these over it.

    beat_ms                      interval of the beat between two nodes
    election_timeout_ms          a peer silent this long has lost its followers; deadlines are drawn from 1-2 times it
    entry_bytes                  largest single command
    key_bytes                    largest routing key
    inflight_messages            appends on the way to one follower of one group
    inflight_bytes               the same, in bytes
    uncommitted_bytes            a group's log beyond its commit: past it nothing is proposed; one entry always fits
    outbox_bytes                 queued for one peer
    pending_bytes                proposals accepted and not yet answered, per node; as many again of queries
    frame_bytes                  largest frame between nodes; longer messages travel in pieces
    batch_bytes                  a write batch is closed at this size (it holds at least one entry)
    writes_in_flight             write batches submitted and not yet synced
    apply_slice_ms               longest stretch of applying before the node looks at its peers again
    slow_command_ms              a single command or query that takes longer is named in the log
    commit_delay_ms              a follower is told of a commit after this long if no append told it before
    clock_drift_ppm              no node's clock gains or loses more than this, in millionths; leases rely on it
    handshake_timeout_ms         a connection that has not said hello by then is closed
    request_timeout_ms           default time for a command or query
    sweep_ms                     one pass of the audit that every replica has someone responsible for it; longer where
                                 there are more than 40 replicas for each beat of it
    log_cache_bytes              recent log kept in memory for followers that lag a little, over all groups
    snapshot_entries             a group's applied log is replaced by a snapshot when it is longer; 0: never
    snapshot_bytes               the same, by the log's size
    trailing_entries             of that log stay, for followers that lag a little
    snapshot_inline_bytes        a snapshot up to this size stands in the database; a larger one is a file
    snapshot_transfers           snapshot files that a node sends at once, and that it fetches at once
    snapshot_bytes_per_s         what a node makes, sends, fetches and takes in of them in a second, at most of each
    session_expiry_ms            a client's session that was not used for so long, by the replicated clock, is forgotten
    session_reply_bytes          results kept for one session of one group
    sessions                     sessions kept in one group; past it the ones unused for longest are forgotten
    check_entries                after so many commands a group's replicas compare what they have come to; 0: never
    free_space_bytes             with less left on the disk nothing is proposed; 0: no matter
    ballast_bytes                kept in reserve in the data directory, so that a full disk can be opened again; 0: none
    store_memory_bytes           what LevelDB may take: its write buffers, its cache and how many files it keeps open
                                 follow from it (storage/level_memory.py)
    leveldb_write_buffer_bytes   each of LevelDB's two write buffers; 0: a third of store_memory_bytes
    """

    beat_ms: int = _setting(100, 5, 10_000)
    election_timeout_ms: int = _setting(1_000, 50, 600_000)
    entry_bytes: int = _setting(8 * _MIB, 1, 256 * _MIB)
    key_bytes: int = _setting(4 * _KIB, 1, _MIB)
    inflight_messages: int = _setting(256, 1, 65_536)
    inflight_bytes: int = _setting(8 * _MIB, 64 * _KIB, 1024 * _MIB)
    uncommitted_bytes: int = _setting(64 * _MIB, 64 * _KIB, 4096 * _MIB)
    outbox_bytes: int = _setting(64 * _MIB, 256 * _KIB, 4096 * _MIB)
    pending_bytes: int = _setting(64 * _MIB, 64 * _KIB, 4096 * _MIB)
    frame_bytes: int = _setting(256 * _KIB, 4 * _KIB, 4 * _MIB)
    batch_bytes: int = _setting(_MIB, 4 * _KIB, 64 * _MIB)
    writes_in_flight: int = _setting(4, 1, 64)
    apply_slice_ms: int = _setting(5, 1, 1_000)
    slow_command_ms: int = _setting(100, 1, 600_000)
    commit_delay_ms: int = _setting(5, 0, 1_000)
    clock_drift_ppm: int = _setting(10_000, 100, 500_000)
    handshake_timeout_ms: int = _setting(5_000, 50, 600_000)
    request_timeout_ms: int = _setting(5_000, 1, 3_600_000)
    sweep_ms: int = _setting(10_000, 100, 600_000)
    log_cache_bytes: int = _setting(64 * _MIB, 0, 1024 * _MIB)
    snapshot_entries: int = _setting(10_000, 0, 1 << 40)
    snapshot_bytes: int = _setting(64 * _MIB, 4 * _KIB, 1 << 40)
    trailing_entries: int = _setting(1_000, 0, 1 << 40)
    snapshot_inline_bytes: int = _setting(64 * _KIB, 0, 8 * _MIB)
    snapshot_transfers: int = _setting(2, 1, 1_000)
    snapshot_bytes_per_s: int = _setting(16 * _MIB, 4 * _KIB, 1 << 40)
    session_expiry_ms: int = _setting(3_600_000, 1_000, 1 << 40)
    session_reply_bytes: int = _setting(_MIB, 1_024, 1024 * _MIB)
    sessions: int = _setting(10_000, 1, 10_000_000)
    check_entries: int = _setting(4_096, 0, 1 << 40)
    free_space_bytes: int = _setting(64 * _MIB, 0, 1 << 50)
    ballast_bytes: int = _setting(8 * _MIB, 0, 1 << 40)
    store_memory_bytes: int = _setting(192 * _MIB, _MIB, 1 << 40)
    leveldb_write_buffer_bytes: int = _setting(0, 0, 4096 * _MIB)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (low, high) = getattr(self, item.name), item.metadata["range"]
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{item.name} = {value!r}: must be a whole number from {low} to {high}")
        self._require(self.election_timeout_ms >= 3 * self.beat_ms, "election_timeout_ms", "at least 3 x beat_ms")
        drift = self.clock_drift_ppm / 1e6
        lease_ms = self.election_timeout_ms * (1 - drift) / (1 + drift)
        self._require(lease_ms > 2 * self.beat_ms, "clock_drift_ppm", "so small that a lease outlives two beats")
        self._require(self.key_bytes <= self.entry_bytes, "key_bytes", "at most entry_bytes")
        self._require(self.entry_bytes <= self.pending_bytes, "pending_bytes", "at least entry_bytes")
        self._require(2 * self.entry_bytes <= self.outbox_bytes, "outbox_bytes", "at least 2 x entry_bytes")
        buffer_bytes = self.leveldb_write_buffer_bytes
        self._require(not 0 < buffer_bytes < 64 * _KIB, "leveldb_write_buffer_bytes", "0, or at least 64 KiB")
        short = self.snapshot_entries == 0 or 2 * self.trailing_entries <= self.snapshot_entries
        self._require(short, "trailing_entries", "at most half of snapshot_entries, unless that is 0")
        self._require(2 * self.frame_bytes <= self.outbox_bytes, "outbox_bytes", "at least 2 x frame_bytes")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)}: must be {rule}")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node.

    node_id   this node's name: letters, digits, `.`, `_`, `-`; at most 63
    data_dir  where its database lives; made when missing
    listen    "host:port" for its peers
    members   the founding nodes and their addresses, this one included; used on the first start only, and
              compared with what was stored then at every later one
    store     what keeps its database: "leveldb", or "sqlite" where LevelDB is not to be had; stays what it was at first
    insecure  allow listening beyond loopback although peers are not authenticated
    limits    everything else
    tune_gc   set the process up for a node once it has started: what is alive by then is left out of garbage
              collections, which become rare, and threads hand over to each other quickly (`tuning.tune_process`). More
              writes a second, and about half the p99. It is the whole process's, and stays when the node has ended,
              so it must be asked for: None is no, except in this project's own servers
    """

    node_id: NodeId
    data_dir: str
    listen: str
    members: Mapping[NodeId, str]
    insecure: bool = False
    limits: Limits = field(default_factory=Limits)
    store: str = "leveldb"
    tune_gc: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not _NODE_ID.fullmatch(self.node_id):
            raise ConfigError(f"node_id = {self.node_id!r}: must be 1-63 letters, digits, '.', '_' or '-'")
        if not isinstance(self.data_dir, str) or not self.data_dir:
            raise ConfigError(f"data_dir = {self.data_dir!r}: must be the path of a directory")
        if self.store not in STORES:
            raise ConfigError(f"store = {self.store!r}: must be one of {', '.join(map(repr, STORES))}")
        if self.tune_gc is not None and type(self.tune_gc) is not bool:
            raise ConfigError(f"tune_gc = {self.tune_gc!r}: must be true or false")
        host, _ = parse_address("listen", self.listen)
        if not self.insecure and not _is_loopback(host):
            raise ConfigError(
                f"listen = {self.listen!r}: peers are not authenticated, so only loopback addresses are allowed; "
                "use 127.0.0.1, or say insecure = true on a network that you trust"
            )
        if not isinstance(self.members, Mapping) or not self.members:
            raise ConfigError("members: must map every founding node's id to its address")
        for name, address in self.members.items():
            if not isinstance(name, str) or not _NODE_ID.fullmatch(name):
                raise ConfigError(f"members: {name!r} is not a node id (1-63 letters, digits, '.', '_' or '-')")
            parse_address(f"members.{name}", address)
        if self.node_id not in self.members:
            known = ", ".join(sorted(self.members))
            raise ConfigError(f"node_id = {self.node_id!r} is not among members ({known}); add it or correct the id")
        if len(set(self.members.values())) != len(self.members):
            raise ConfigError("members: two nodes have the same address")
        if not isinstance(self.limits, Limits):
            raise ConfigError("limits: must be a Limits value")

    @classmethod
    def from_toml(cls, path: str | Path) -> NodeConfig:
        """Read a configuration file. Keys are the fields of NodeConfig; `[members]` and `[limits]` are tables.

        Raises ConfigError, naming the file and the key.
        """
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
        except OSError as problem:
            raise ConfigError(f"{path}: cannot be read: {problem.strerror}") from problem
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise ConfigError(f"{path}: is not TOML: {problem}") from problem
        try:
            _refuse_unknown(found, cls, "")
            limits = found.pop("limits", {})
            if not isinstance(limits, dict):
                raise ConfigError("limits: must be a table")
            _refuse_unknown(limits, Limits, "limits.")
            missing = [name for name in ("node_id", "data_dir", "listen", "members") if name not in found]
            if missing:
                raise ConfigError(f"{missing[0]}: is missing")
            return cls(**found, limits=Limits(**limits))
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None


def parse_address(name: str, address: object) -> tuple[str, int]:
    """Return (host, port) of "host:port"; `name` is the setting, for the error. Raises ConfigError."""
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{name} = {address!r}: must be 'host:port' with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_unknown(found: Mapping[str, object], kind: type, prefix: str) -> None:
    known = [item.name for item in fields(kind)]
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{prefix}{key}: is not a setting{hint}")
