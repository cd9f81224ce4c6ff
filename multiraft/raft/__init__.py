"""The consensus core of one group: sans-I/O and deterministic. See raft.py."""

from multiraft.raft.raft import Raft
from multiraft.raft.ready import Contacts, CoreSettings, Ready, Role

__all__ = ["Contacts", "CoreSettings", "Raft", "Ready", "Role"]
