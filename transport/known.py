"""What a node knows of its peers' stores, and which of them it refuses to meet.

    another store   this node knows that peer by another store, and that peer knows of no readmission that this node
                    might not have heard of: it is one that was replaced
    an older state  of the store whose run n was met, one says hello that is below n, or that does not know the id which
                    run n drew: it was rolled back to before that run (or a copy of it has run elsewhere)

A store that is new, because its directory was emptied, belongs to no cluster: forming judges it.

What this cannot notice: a roll-back within one run, or one whose later runs nobody met; one that then ran more often
than a hello names runs (RUNS_KEPT), before anybody met it.

Rules of this file: no I/O; judging changes nothing, only noting does.
"""

from __future__ import annotations

from multiraft.transport.hello import Hello, Refusal
from multiraft.types import Identity, NodeId, SeenRun


class Known:
    """One node's knowledge.

    identity  what this node's store says of the cluster, the stores of its members among that
    seen      the latest run met of each peer's store, within the cluster
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.seen: dict[NodeId, SeenRun] = {}

    def judge(self, hello: Hello) -> None:
        """Raise Refusal unless a peer may come with the store that says `hello`."""
        self._judge_run(hello)
        if self.identity.formed and hello.formed and self.replaced(hello):
            text = f"node {hello.node_id!r} comes with a store that was replaced: the cluster knows it by another one"
            raise Refusal(
                "store", text + "; start it with that one's directory, or empty it and readmit it", hello.node_id
            )

    def replaced(self, hello: Hello) -> bool:
        """Whether this node knows the peer by another store, and knows no less of readmissions than the peer does."""
        mine = self.identity.stores.get(hello.node_id, hello.store_id)
        return mine != hello.store_id and hello.readmissions <= self.identity.readmissions

    def note(self, hello: Hello) -> None:
        """A hello was accepted. What is outside of a cluster has promised nothing yet, and is not remembered."""
        if self.identity.formed and hello.formed:
            run_id = hello.runs[-1] if hello.runs else b""
            self.seen[hello.node_id] = SeenRun(hello.store_id, hello.incarnation, run_id)

    def _judge_run(self, hello: Hello) -> None:
        seen = self.seen.get(hello.node_id)
        if seen is None or seen.store_id != hello.store_id:
            return
        text = f"node {hello.node_id!r} says hello as incarnation {hello.incarnation}, "
        why = "; its store was rolled back or copied, or an older process of it still runs"
        if hello.incarnation < seen.incarnation:
            raise Refusal("incarnation", f"{text}after {seen.incarnation} was seen{why}", hello.node_id)
        told = hello.run(seen.incarnation)
        if told and seen.run_id and told != seen.run_id:
            raise Refusal("incarnation", f"{text}without having been {seen.incarnation} as seen{why}", hello.node_id)
