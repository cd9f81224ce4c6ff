"""After a lost quorum: what the surviving nodes still have becomes the cluster, for all groups at once.

    collect_directory(path)      what one stopped survivor has; its directory is not changed
    make_plan(collected)         per group: what survives, what may be lost, what may be newly committed
    apply_plan(plan, path, ...)  makes it so, on one survivor
    verify_directories(paths)    whether the survivors agree
    differences(plan, ...)       what is not as the plan has promised, in the cluster that runs again

All are plain calls that block while they read or write. Raise RecoveryRefused and StorageError.
"""

from __future__ import annotations

from multiraft.recovery.applying import Applied, apply_plan
from multiraft.recovery.collecting import collect_directory, collect_store
from multiraft.recovery.comparing import RunningGroup, differences, gone_by_plan
from multiraft.recovery.documents import load_document, save_document
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.recovery.planning import make_plan
from multiraft.recovery.plans import GroupPlan, Plan
from multiraft.recovery.verifying import verify_directories

__all__ = [
    "Applied",
    "GroupPlan",
    "NodeFacts",
    "Plan",
    "ReplicaFacts",
    "RunningGroup",
    "apply_plan",
    "collect_directory",
    "collect_store",
    "differences",
    "gone_by_plan",
    "load_document",
    "make_plan",
    "save_document",
    "verify_directories",
]
