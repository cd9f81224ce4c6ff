"""The hello: the first frame in each direction of every connection. It says who speaks, and for which cluster.

    offset size
    0      8    magic: "MRAFT" 0x00 0x0d 0x0a
    8      2    lowest protocol version understood
    10     2    highest protocol version understood
    12     8    recovery generation of the cluster
    20     8    incarnation of the node's store
    28     4    largest frame taken, in bytes
    32     4    largest message taken, in bytes
    36     1+n  cluster id: length, then bytes; empty while the node belongs to none
    -      1+n  store id, likewise; never empty
    -      1+n  node id, likewise, in UTF-8; never empty
    -      8    how many readmissions of nodes the sender knows of
    -      1+8n ids of the latest runs of the sender's store: how many, then each; oldest first, the last is this run's
    -      -    whatever a later version adds; ignored

All numbers are unsigned and big-endian. The dialling side speaks first; the other judges, and answers with its own
hello or with a close message that says why not; then the dialling side judges.

Rules of this file: pure functions; whatever is not a hello raises WireError; every refusal has a kind (for counters)
and a sentence that says what to do.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from multiraft.errors import WireError
from multiraft.transport.wire import ID_BYTES_MAX
from multiraft.types import RUN_ID_BYTES, RUNS_KEPT, NodeId, generation_name

MAGIC: Final = b"MRAFT\x00\r\n"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 2
"""2: messages of many groups at once (multiraft.gathered)."""
GATHERED_VERSION: Final = 2
HELLO_BYTES_MAX: Final = 1024
_HEAD: Final = struct.Struct(">8sHHQQII")
_FRAME_BYTES_MIN: Final = 4 * 1024
_NODE_ID_BYTES_MAX: Final = 63
_READMISSIONS: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a node is.

    cluster_id                 empty while it belongs to no cluster
    generation                 raised when a cluster is recovered from a lost quorum; lower ones are refused
    incarnation                raised at every start of that store
    frame_bytes, message_bytes the largest it takes
    readmissions               how many readmissions of nodes it knows of
    runs                       what the latest runs of its store drew as their ids, oldest first, this one's last
    """

    node_id: NodeId
    store_id: bytes
    cluster_id: bytes
    incarnation: int
    generation: int
    frame_bytes: int
    message_bytes: int
    version_min: int = VERSION_MIN
    version_max: int = VERSION_MAX
    readmissions: int = 0
    runs: tuple[bytes, ...] = ()

    def run(self, incarnation: int) -> bytes:
        """Return the id of an earlier run, or of this one; empty where it is not told."""
        back = self.incarnation - incarnation
        return self.runs[-1 - back] if 0 <= back < len(self.runs) else b""

    @property
    def formed(self) -> bool:
        return bool(self.cluster_id)


class Refusal(Exception):
    """A hello is not accepted. `kind` is short and stable, for counters; the text says what to do.

    peer  the node that was refused, when it is one of this node's members; otherwise empty
    """

    def __init__(self, kind: str, text: str, peer: NodeId = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.peer = peer


def encode_hello(hello: Hello) -> bytes:
    """Return the layout above."""
    head = _HEAD.pack(
        MAGIC,
        hello.version_min,
        hello.version_max,
        hello.generation,
        hello.incarnation,
        hello.frame_bytes,
        hello.message_bytes,
    )
    texts = (hello.cluster_id, hello.store_id, hello.node_id.encode())
    named = b"".join(bytes((len(text),)) + text for text in texts)
    return head + named + _READMISSIONS.pack(hello.readmissions) + bytes((len(hello.runs),)) + b"".join(hello.runs)


def decode_hello(content: bytes | memoryview) -> Hello:
    """Check and return the hello in `content`. Raises WireError: not a hello, or a field outside its range."""
    if len(content) > HELLO_BYTES_MAX:
        raise WireError(f"a hello of {len(content)} bytes; at most {HELLO_BYTES_MAX} are taken")
    raw = bytes(content)
    if not raw.startswith(MAGIC):
        raise WireError("not a hello of a multiraft node (wrong magic)")
    if len(raw) < _HEAD.size:
        raise WireError("hello: cut short")
    _, low, high, generation, incarnation, frame_bytes, message_bytes = _HEAD.unpack_from(raw)
    texts = []
    at = _HEAD.size
    for most in (ID_BYTES_MAX, ID_BYTES_MAX, _NODE_ID_BYTES_MAX):
        end = at + 1 + raw[at] if at < len(raw) else len(raw) + 1
        if end > len(raw) or end - at - 1 > most:
            raise WireError("hello: cut short, or a field is too long")
        texts.append(raw[at + 1 : end])
        at = end
    cluster_id, store_id, name = texts
    readmissions, runs = _decode_tail(raw, at)
    try:
        node_id = name.decode()
    except UnicodeDecodeError as problem:
        raise WireError("hello: the node id is not UTF-8") from problem
    if not store_id or not node_id or not 0 < low <= high or incarnation < 1:
        raise WireError("hello: a field is outside its range")
    if frame_bytes < _FRAME_BYTES_MIN or message_bytes < frame_bytes:
        raise WireError("hello: its limits are too small to talk to")
    limits = (frame_bytes, message_bytes, low, high)
    return Hello(node_id, store_id, cluster_id, incarnation, generation, *limits, readmissions, runs)


def _decode_tail(raw: bytes, at: int) -> tuple[int, tuple[bytes, ...]]:
    first = at + _READMISSIONS.size + 1
    end = first + RUN_ID_BYTES * raw[first - 1] if first <= len(raw) else first
    if end > len(raw):
        raise WireError("hello: cut short, or a field is too long")
    runs = tuple(raw[start : start + RUN_ID_BYTES] for start in range(first, end, RUN_ID_BYTES))
    if len(runs) > RUNS_KEPT:
        raise WireError("hello: it names too many runs")
    return _READMISSIONS.unpack_from(raw, at)[0], runs


def judge(own: Hello, other: Hello, members: Collection[NodeId], dialled: NodeId | None) -> None:
    """Raise Refusal unless `other` may talk to this node.

    members  the nodes this node knows
    dialled  the node whose address was dialled; None when `other` did the dialling
    """
    peer = other.node_id if other.node_id in members else ""
    if other.node_id == own.node_id:
        same = other.store_id == own.store_id
        why = "its address leads back to itself" if same else "another node uses the same node id"
        raise Refusal("self", f"node {own.node_id!r} was reached under its own name: {why}; check members", "")
    if not peer:
        raise Refusal("unknown_node", f"node {other.node_id!r} is not among the members of {own.node_id!r}; add it")
    if dialled is not None and other.node_id != dialled:
        text = f"the address of node {dialled!r} is answered by node {other.node_id!r}; correct it in members"
        raise Refusal("impostor", text, dialled)
    if other.version_min > own.version_max or own.version_min > other.version_max:
        text = f"node {peer!r} speaks protocol {other.version_min}-{other.version_max}, node {own.node_id!r} "
        raise Refusal("version", text + f"{own.version_min}-{own.version_max}; upgrade the older one", peer)
    if not own.formed or not other.formed:
        return
    if other.cluster_id != own.cluster_id:
        text = f"node {peer!r} is of cluster {other.cluster_id.hex()}, node {own.node_id!r} of {own.cluster_id.hex()}"
        raise Refusal("cluster", text + "; check members and data directories", peer)
    if other.generation < own.generation:
        text = f"node {peer!r} is of recovery generation {generation_name(other.generation)}, the cluster is at "
        text += f"{generation_name(own.generation)}; remove its data directory and readmit it"
        raise Refusal("generation", text, peer)
