"""The consensus core of one group: sans-I/O and deterministic. See raft.py."""

from multiraft.raft.raft import Raft
from multiraft.raft.ready import LEADER, Contacts, CoreSettings, Ready, Role

__all__ = ["LEADER", "Contacts", "CoreSettings", "Raft", "Ready", "Role"]
