"""multiraft: many Raft groups in one asyncio process, and sharded, replicated services on top of them.

    from multiraft import Node, NodeConfig, StateMachine, command, query

A service is an ordinary class; its commands are replicated, its queries are linearizable, its keys are spread over
shards, each of them a Raft group. See README.md for a program, ARCHITECTURE.md for how it works.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiraft.compiled import COMPILED
    from multiraft.config import Limits, NodeConfig
    from multiraft.diskmachine import BytesDiskStateMachine, DiskStateMachine
    from multiraft.errors import (
        ChangePending,
        ChangeRefused,
        CommandFailed,
        ConfigError,
        DeadlineExceeded,
        DiskFull,
        Halted,
        InvalidRequest,
        MembershipChanged,
        MultiRaftError,
        NotCommitted,
        NotLeader,
        NotReady,
        NotRunning,
        OutcomeUnknown,
        Overloaded,
        ReadFailed,
        ReplyForgotten,
        SessionExpired,
        StartError,
        StorageError,
        Unreachable,
        WrongShard,
    )
    from multiraft.group import Group
    from multiraft.node import Node
    from multiraft.services import BytesService
    from multiraft.sessions import Numbered
    from multiraft.statemachine import BytesStateMachine, StateMachine, command, query

__all__ = [
    "COMPILED",
    "BytesDiskStateMachine",
    "BytesService",
    "BytesStateMachine",
    "ChangePending",
    "ChangeRefused",
    "CommandFailed",
    "ConfigError",
    "DeadlineExceeded",
    "DiskFull",
    "DiskStateMachine",
    "Group",
    "Halted",
    "InvalidRequest",
    "Limits",
    "MembershipChanged",
    "MultiRaftError",
    "Node",
    "NodeConfig",
    "NotCommitted",
    "NotLeader",
    "NotReady",
    "NotRunning",
    "Numbered",
    "OutcomeUnknown",
    "Overloaded",
    "ReadFailed",
    "ReplyForgotten",
    "SessionExpired",
    "StartError",
    "StateMachine",
    "StorageError",
    "Unreachable",
    "WrongShard",
    "command",
    "query",
]

_HOMES: Final = {
    "COMPILED": "multiraft.compiled",
    "BytesDiskStateMachine": "multiraft.diskmachine",
    "BytesService": "multiraft.services",
    "BytesStateMachine": "multiraft.statemachine",
    "ChangePending": "multiraft.errors",
    "ChangeRefused": "multiraft.errors",
    "CommandFailed": "multiraft.errors",
    "ConfigError": "multiraft.errors",
    "DeadlineExceeded": "multiraft.errors",
    "DiskFull": "multiraft.errors",
    "DiskStateMachine": "multiraft.diskmachine",
    "Group": "multiraft.group",
    "Halted": "multiraft.errors",
    "InvalidRequest": "multiraft.errors",
    "MembershipChanged": "multiraft.errors",
    "Limits": "multiraft.config",
    "MultiRaftError": "multiraft.errors",
    "Node": "multiraft.node",
    "NodeConfig": "multiraft.config",
    "NotCommitted": "multiraft.errors",
    "NotLeader": "multiraft.errors",
    "NotReady": "multiraft.errors",
    "NotRunning": "multiraft.errors",
    "Numbered": "multiraft.sessions",
    "OutcomeUnknown": "multiraft.errors",
    "Overloaded": "multiraft.errors",
    "ReadFailed": "multiraft.errors",
    "ReplyForgotten": "multiraft.errors",
    "SessionExpired": "multiraft.errors",
    "StartError": "multiraft.errors",
    "StateMachine": "multiraft.statemachine",
    "StorageError": "multiraft.errors",
    "Unreachable": "multiraft.errors",
    "WrongShard": "multiraft.errors",
    "command": "multiraft.statemachine",
    "query": "multiraft.statemachine",
}
"""Where each name is defined. Imported when first asked for: a tool for operators needs no database to start."""


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'multiraft' has no attribute {name!r}")
    return getattr(import_module(home), name)
