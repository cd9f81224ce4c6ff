"""Whole clusters in one process, on a clock that is a number: for tests of multiraft and of what is built on it.

virtual.py  an event loop without real time: a minute of a cluster's life takes milliseconds
cluster.py  real nodes on memory disks and a memory network, which can be crashed, cut, stalled and restarted
"""

from multiraft.testing.cluster import MemoryCluster
from multiraft.testing.virtual import VirtualLoop, run_virtual

__all__ = ["MemoryCluster", "VirtualLoop", "run_virtual"]
