"""How nodes with empty directories become one cluster, once.

A node that belongs to no cluster only waits, unless it has the lowest id of its member list: that one, when ALL other
listed members have answered and none of them knows a cluster, draws the cluster id, binds every member's store to it,
syncs that in its own store FIRST, and then offers it. A member takes an offer that names its own store and exactly
its own member list, and syncs it before it answers. If the proposer dies half-way, its own synced record makes it
offer the same cluster again; whoever has joined already offers it, too.

A store that the cluster does not know is told so, and stays out, until the directory has admitted it in place of the
one that its node had (`Node.readmit`); then the same offer lets it in, as one that came later: it makes no replica that
its node had before.

Rules of this file: no I/O but `Store.bind_cluster` and `Store.bind_stores`, which sync; a store that the cluster's
list does not bind to its node is never let in: it was emptied or replaced, and may have forgotten a vote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Final

from multiraft.errors import StartError
from multiraft.messages import Form, Formed, FormingMessage
from multiraft.ports import Store
from multiraft.types import Identity, NodeId

_TOLD_MAX: Final = 1_024
log: Final = logging.getLogger("multiraft.forming")


class Forming:
    """One node's part in the forming of its cluster.

    formed     called once, when this node's store has become part of a cluster (or already was, at `begin`)
    strangers  the stores of connected peers that the cluster does not know, by node: emptied or replaced ones
    refusal    why this node's own store is not let in; None while nobody has said so
    """

    def __init__(
        self,
        store: Store,
        members: Iterable[NodeId],
        rng: Random,
        send: Callable[[NodeId, FormingMessage], bool],
        formed: Callable[[Identity], None],
    ) -> None:
        self._store = store
        self._members = tuple(sorted(members))
        self._rng = rng
        self._send = send
        self._formed = formed
        self._fresh: dict[NodeId, bytes] = {}
        self._told: set[tuple[NodeId, bytes]] = set()
        self.strangers: dict[NodeId, bytes] = {}
        self.refusal: str | None = None

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """The members that have not answered yet, as far as this node can tell."""
        me = self._store.identity.node_id
        return tuple(name for name in self._members if name != me and name not in self._fresh)

    def check(self) -> None:
        """Check what is stored against the member list. Raises StartError when they differ."""
        identity = self._store.identity
        stored = tuple(sorted(identity.stores))
        if identity.formed and stored != self._members:
            raise StartError(
                f"the configuration lists the members {', '.join(self._members)}, but this cluster was founded by "
                f"{', '.join(stored)} (added: {_names(self._members, stored)}; "
                f"missing: {_names(stored, self._members)}). The list is for the first start only: give the founding "
                f"one again, members={{{', '.join(f'{name!r}: ...' for name in stored)}}}. Who takes part in a "
                "group is changed while the cluster runs: group.add(node), group.remove(node), group.replace(old, new)"
            )

    def begin(self) -> None:
        """Say whether this store is part of a cluster already; a lone member founds its own."""
        identity = self._store.identity
        if identity.formed:
            self._formed(identity)
        elif self._members == (identity.node_id,):
            self._propose()

    def unformed_peer(self, node_id: NodeId, store_id: bytes) -> None:
        """A connected peer belongs to no cluster: offer it ours, or count it toward a new one."""
        identity = self._store.identity
        if identity.formed:
            if identity.stores.get(node_id) != store_id:
                self._stranger(node_id, store_id)
            self._offer(node_id)  # a store that is not in it learns from it that it is unknown
            return
        self._fresh[node_id] = store_id
        if identity.node_id == self._members[0] and not self.missing:
            self._propose()

    def peer_formed(self, node_id: NodeId) -> None:
        """A connected peer belongs to this node's cluster, with a store that is known."""
        self.strangers.pop(node_id, None)

    def bind_stores(self, stores: Mapping[NodeId, bytes], readmissions: int) -> bool:
        """Take over from the directory which nodes were readmitted, with which store; return whether that was new.

        Raises StorageError: this node's own store is not the one that was admitted last, or cannot be written.
        """
        identity = self._store.identity
        if not identity.formed or readmissions <= identity.readmissions:
            return False
        self._store.bind_stores({**identity.stores, **stores}, tuple(sorted(stores)), readmissions)
        for node_id, store_id in list(self.strangers.items()):
            if self._store.identity.stores.get(node_id) == store_id:
                del self.strangers[node_id]
                self._offer(node_id)
        return True

    def _offer(self, node_id: NodeId) -> None:
        identity = self._store.identity
        stores = tuple(sorted(identity.stores.items()))
        about = (identity.admitted, identity.readmissions, identity.generation)
        self._send(node_id, Form(identity.cluster_id, stores, *about))

    def _stranger(self, node_id: NodeId, store_id: bytes) -> None:
        self.strangers[node_id] = store_id
        if (node_id, store_id) not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add((node_id, store_id))
            log.error(
                "node %s comes with another store than the one that the cluster knows it by: its directory was emptied "
                "or replaced. It is not let in: it may have forgotten a vote. Bring back its old directory, or give up "
                "what that one held: await node.readmit(%r) on a node that runs",
                node_id,
                node_id,
            )

    def received(self, node_id: NodeId, message: FormingMessage) -> None:
        """Take an offer, or the answer to one."""
        if isinstance(message, Formed):
            return
        identity = self._store.identity
        stores = dict(message.stores)
        if identity.formed:
            return
        if tuple(sorted(stores)) != self._members:
            log.error(
                "node %s offers a cluster founded by %s, but the configuration here lists %s; correct the list",
                node_id,
                ", ".join(sorted(stores)),
                ", ".join(self._members),
            )
            return
        if stores.get(identity.node_id) != identity.store_id or not message.cluster_id:
            if self.refusal is None:
                self.refusal = (
                    f"cluster {message.cluster_id.hex()[:8]} knows another store of node {identity.node_id!r}: this "
                    "directory was emptied or replaced. It takes no part: start the node with its old directory, or "
                    f"give up what that one held: await node.readmit({identity.node_id!r}) on another node"
                )
                log.error("%s", self.refusal)
            return
        self.refusal = None
        about = (message.stores_admitted, message.stores_readmissions, message.stores_recovery)
        self._store.bind_cluster(message.cluster_id, stores, *about)
        self._send(node_id, Formed(message.cluster_id))
        self._formed(self._store.identity)

    def _propose(self) -> None:
        identity = self._store.identity
        stores = {**self._fresh, identity.node_id: identity.store_id}
        cluster_id = self._rng.getrandbits(128).to_bytes(16, "big")
        self._store.bind_cluster(cluster_id, stores)
        self._formed(self._store.identity)


def _names(some: tuple[NodeId, ...], without: tuple[NodeId, ...]) -> str:
    return ", ".join(name for name in some if name not in without) or "none"
