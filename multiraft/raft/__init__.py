"""The consensus core of one group: sans-I/O and deterministic. See raft.py."""

from multiraft.raft.changes import AddLearner, Bind, Change, Demote, Promote, Remove
from multiraft.raft.ordinary import ASK_READY, NOT_ORDINARY, UNTOLD
from multiraft.raft.raft import Raft
from multiraft.raft.ready import CANDIDATE, LEADER, PRE_CANDIDATE, Contacts, CoreSettings, Ready, Role

__all__ = [
    "ASK_READY",
    "CANDIDATE",
    "LEADER",
    "NOT_ORDINARY",
    "PRE_CANDIDATE",
    "UNTOLD",
    "AddLearner",
    "Bind",
    "Change",
    "Contacts",
    "CoreSettings",
    "Demote",
    "Promote",
    "Raft",
    "Ready",
    "Remove",
    "Role",
]
