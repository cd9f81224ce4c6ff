"""Whole clusters in one process, on a clock that is a number: for tests of multiraft and of what is built on it.

For a test of your own (docs/testing.md):

    simulating.py       `@simulate(seeds=200)`, with the fixture `cluster`
    simulation.py       one run: nodes, clients, faults, and the judgement
    history.py          what clients asked and were told
    linearizability.py  whether a history could have come from one sequential object

The simulated world:

    virtual.py  an event loop without real time: a minute of a cluster's life takes milliseconds
    clocks.py   a clock for each node: fast or slow, paused or asleep
    cluster.py  real nodes on memory disks and a memory network, which can be crashed, parted, disturbed and restarted
    faults.py   what can be done to a cluster, as it is counted

How a run is made and judged: schedule.py (what goes wrong when), observing.py (looks into nodes), invariants.py and
promises.py (the rules of consensus), converging.py (what must come true in the end), many.py (many seeds).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiraft.testing.clocks import NodeClock
    from multiraft.testing.cluster import MemoryCluster
    from multiraft.testing.faults import FAULT_KINDS
    from multiraft.testing.history import UNKNOWN, History, Operation
    from multiraft.testing.invariants import Violation
    from multiraft.testing.linearizability import Judgement, Model, Verdict, check, check_history
    from multiraft.testing.many import Summary, run_many
    from multiraft.testing.schedule import FAULTS
    from multiraft.testing.simulated_service import Call, Failed
    from multiraft.testing.simulating import SimulationFailed, simulate
    from multiraft.testing.simulation import Options, Report, Simulation, run_simulation
    from multiraft.testing.virtual import Deadlock, NodeKilled, NotSimulated, VirtualLoop, run_virtual

__all__ = [
    "FAULTS",
    "FAULT_KINDS",
    "UNKNOWN",
    "Call",
    "Deadlock",
    "Failed",
    "History",
    "Judgement",
    "MemoryCluster",
    "Model",
    "NodeClock",
    "NodeKilled",
    "NotSimulated",
    "Operation",
    "Options",
    "Report",
    "Simulation",
    "SimulationFailed",
    "Summary",
    "Verdict",
    "Violation",
    "VirtualLoop",
    "check",
    "check_history",
    "run_many",
    "run_simulation",
    "run_virtual",
    "simulate",
]

_HOMES: Final = {
    "FAULTS": "schedule",
    "FAULT_KINDS": "faults",
    "UNKNOWN": "history",
    "Call": "simulated_service",
    "Deadlock": "virtual",
    "Failed": "simulated_service",
    "History": "history",
    "Judgement": "linearizability",
    "MemoryCluster": "cluster",
    "Model": "linearizability",
    "NodeClock": "clocks",
    "NodeKilled": "virtual",
    "NotSimulated": "virtual",
    "Operation": "history",
    "Options": "simulation",
    "Report": "simulation",
    "Simulation": "simulation",
    "SimulationFailed": "simulating",
    "Summary": "many",
    "Verdict": "linearizability",
    "Violation": "invariants",
    "VirtualLoop": "virtual",
    "check": "linearizability",
    "check_history": "linearizability",
    "run_many": "many",
    "run_simulation": "simulation",
    "run_virtual": "virtual",
    "simulate": "simulating",
}
"""Where each name is defined. Imported when first asked for: pytest loads this package to find its plugin."""


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'multiraft.testing' has no attribute {name!r}")
    return getattr(import_module(f"multiraft.testing.{home}"), name)
