"""Whole clusters in one process, on a clock that is a number: for tests of multiraft and of what is built on it.

virtual.py  an event loop without real time: a minute of a cluster's life takes milliseconds
clocks.py   a clock for each node: fast or slow, paused or asleep
cluster.py  real nodes on memory disks and a memory network, which can be crashed, parted, disturbed and restarted
faults.py   what can be done to a cluster, as it is counted
"""

from multiraft.testing.clocks import NodeClock
from multiraft.testing.cluster import MemoryCluster
from multiraft.testing.faults import FAULT_KINDS
from multiraft.testing.virtual import Deadlock, NodeKilled, NotSimulated, VirtualLoop, run_virtual

__all__ = [
    "FAULT_KINDS",
    "Deadlock",
    "MemoryCluster",
    "NodeClock",
    "NodeKilled",
    "NotSimulated",
    "VirtualLoop",
    "run_virtual",
]
