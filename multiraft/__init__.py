"""multiraft: many Raft groups in one asyncio process, and sharded, replicated services on top of them.

    from multiraft import Node, NodeConfig, StateMachine, command, query

A service is an ordinary class; its commands are replicated, its queries are linearizable, its keys are spread over
shards, each of them a Raft group. See README.md for a program, ARCHITECTURE.md for how it works.
"""

from multiraft.config import Limits, NodeConfig
from multiraft.errors import (
    CommandFailed,
    ConfigError,
    DeadlineExceeded,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    StartError,
    StorageError,
    Unreachable,
    WrongShard,
)
from multiraft.group import Group
from multiraft.node import Node
from multiraft.services import BytesService
from multiraft.statemachine import BytesStateMachine, StateMachine, command, query

__all__ = [
    "BytesService",
    "BytesStateMachine",
    "CommandFailed",
    "ConfigError",
    "DeadlineExceeded",
    "Group",
    "Halted",
    "InvalidRequest",
    "Limits",
    "MultiRaftError",
    "Node",
    "NodeConfig",
    "NotCommitted",
    "NotLeader",
    "NotReady",
    "NotRunning",
    "OutcomeUnknown",
    "Overloaded",
    "ReadFailed",
    "StartError",
    "StateMachine",
    "StorageError",
    "Unreachable",
    "WrongShard",
    "command",
    "query",
]
