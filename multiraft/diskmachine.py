"""State machines whose data lie in the node's database, beside the log, and not in memory.

`self.data` is an ordered map of bytes. On a replica everything that a command writes there reaches the disk together
with the note that the command was applied, so that nothing is applied again after a restart, however long the log; and
what a command that raised has written is dropped. In a unit test, where there is no replica, it is a map in memory
that can be written at any time, and nothing is dropped.

    class Counters(DiskStateMachine):
        @command(key="name")
        def add(self, name: str, amount: int = 1) -> int:
            key = name.encode()
            value = int.from_bytes(self.data.get(key) or b"", "big") + amount
            self.data.put(key, value.to_bytes(8, "big"))
            return value

Rules of this file: the data are all the state there is. Attributes are gone after a restart, so they may hold nothing
that a command's outcome depends on; what declares a snapshot of its own is refused when the class is defined.
"""

from __future__ import annotations

from multiraft.keyspace import KeepsData
from multiraft.statemachine import BytesStateMachine, StateMachine


class DiskStateMachine(KeepsData, StateMachine):
    """Base of replicated state machines with typed commands and queries, whose state is in `self.data`.

    The rules of StateMachine hold, but for one: what a command that raises has written to `self.data` is dropped.
    Snapshots are the framework's affair. A command reads and writes while the node's other groups wait, so it should
    look at few keys; a range is used within the command or query that asked for it.
    """

    __slots__ = ("_data",)


class BytesDiskStateMachine(KeepsData, BytesStateMachine):
    """Base of replicated state machines that read and write bytes, and whose state is in `self.data`.

    The rules of DiskStateMachine and of BytesStateMachine hold.
    """

    __slots__ = ("_data",)
