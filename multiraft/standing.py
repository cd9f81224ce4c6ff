"""Where this node's store stands with its peers, and theirs with it: what is written down of it, and what ends a node.

Of each peer's store the latest run that was met is stored, ahead of everything that comes of that run's messages, so
that a store which was rolled back is refused after this node has started anew, too. In the other direction, a peer that
has met a later run of this node's own store, or knows that another one was admitted in its place, ends this node: one
peer that knows is enough, for those that do not know would count it. A store that was rolled back is marked, so that it
cannot start until nobody remembers.

Rules of this file: nothing is decided here about peers, that is the transport's; a refusal that may pass is kept for
those who ask, and forgotten when that peer can be reached.
"""

from __future__ import annotations

import logging
from typing import Final

from multiraft.engine.writer import LogWriter
from multiraft.errors import StorageError
from multiraft.ports import Store, Transport
from multiraft.types import NodeId, SeenRun

log: Final = logging.getLogger("multiraft.node")


class Standing:
    """One node's standing. `refusals`: why peers refuse this node now, by peer."""

    def __init__(self, store: Store, transport: Transport, writer: LogWriter) -> None:
        self._store = store
        self._transport = transport
        self._writer = writer
        self._written: dict[NodeId, SeenRun] = store.load_seen()
        self.refusals: dict[NodeId, str] = {}
        transport.remember(store.runs, self._written)

    def met(self, node_id: NodeId) -> bool:
        """A peer's hello was accepted: write down a run that was not met before. Returns whether one was."""
        self.refusals.pop(node_id, None)
        seen = self._transport.seen()
        if seen.get(node_id) == self._written.get(node_id):
            return False
        self._written = seen
        self._writer.write(lambda batch: batch.put_seen(seen), lambda: None)
        return True

    def refused_by(self, node_id: NodeId, kind: str, why: str) -> None:
        """A peer refuses this node. Raises StorageError where that ends it."""
        identity = self._store.identity
        if kind == "incarnation":
            reason = (
                f"the store of node {identity.node_id!r} was rolled back, or a copy of it has run elsewhere: node "
                f"{node_id!r} has met a later run of it than this one knows. What it has forgotten may be a vote. "
                f"Remove the directory, start the node, and await node.readmit({identity.node_id!r}) on another one"
            )
            self._store.condemn(reason)
            raise StorageError(reason)
        if kind == "store" and identity.formed:
            raise StorageError(
                f"the store of node {identity.node_id!r} was given up: another one was admitted in its place, as node "
                f"{node_id!r} says. Start the node with that one's directory, or remove this one, start the node, and "
                f"await node.readmit({identity.node_id!r}) on another one"
            )
        if kind == "generation" and identity.formed:
            reason = (
                f"the cluster was recovered without node {identity.node_id!r}, as node {node_id!r} says, when a "
                "quorum was lost: what this store has promised was given up. "
                f"Remove the directory, start the node, and await node.readmit({identity.node_id!r}) on another one"
            )
            self._store.condemn(reason)
            raise StorageError(reason)
        if node_id not in self.refusals:
            log.error("node %s refuses this node: %s", node_id, why)
        self.refusals[node_id] = why
