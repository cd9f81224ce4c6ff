"""Which nodes get the replicas of new groups, and which of them should lead first.

Each new group's first node is the one that is first in the fewest groups, so that leaders spread evenly; its other
nodes are those with the fewest replicas. Ties go to the node that follows next in the order given, so that equals take
turns and the same nodes do not always share their groups.

Rules of this file: pure and deterministic: it runs inside a replicated command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from multiraft.errors import invariant
from multiraft.types import NodeId


def place(
    count: int, replicas: int, nodes: Sequence[NodeId], existing: Iterable[tuple[NodeId, ...]]
) -> list[tuple[NodeId, ...]]:
    """Return the nodes of each of `count` new groups, preferred leader first.

    replicas  how many nodes each group gets; at most len(nodes)
    nodes     those to choose from, all different
    existing  the nodes of every group there is already
    """
    invariant(0 < replicas <= len(nodes) == len(set(nodes)), "replicas fit on the nodes")
    held: Counter[NodeId] = Counter()
    firsts: Counter[NodeId] = Counter()
    for group in existing:
        held.update(group)
        firsts.update(group[:1])
    number = len(nodes)
    placed = []
    known: dict[tuple[NodeId, ...], tuple[NodeId, ...]] = {}  # groups on the same nodes share one value
    for turn in range(count):
        first = min(range(number), key=lambda at: (firsts[nodes[at]], held[nodes[at]], (at - turn) % number))
        others = sorted(
            (at for at in range(number) if at != first), key=lambda at: (held[nodes[at]], (at - first) % number)
        )
        group = tuple(nodes[at] for at in (first, *others[: replicas - 1]))
        firsts[group[0]] += 1
        held.update(group)
        placed.append(known.setdefault(group, group))
    return placed
