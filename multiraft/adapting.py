"""Between the engine and what a user has written: a state machine as the engine's Machine.

Rules of this file: nothing but bytes passes, in either direction; what the user's code raises passes as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from multiraft.attributes import AttributesLoader
from multiraft.engine.machine import Context, Heads, Joined, Machine, Restoring, UnknownCommand
from multiraft.errors import CommandFailed, InvariantViolation
from multiraft.keyspace import KeepsData, Keyspace
from multiraft.methods import Kind, Method, called, decode_call, describe_call, heads_of
from multiraft.statemachine import BytesStateMachine, StateMachine, methods_of


class _Adapter:
    """What both kinds of adapter share.

    machine  the user's object, of whose class nothing is known when this is compiled
    """

    __slots__ = ("machine",)

    def __init__(self, machine: Any) -> None:
        self.machine = machine

    @property
    def data(self) -> Keyspace | None:
        """Where the machine keeps its state; None: in memory."""
        machine: object = self.machine
        return machine.data if isinstance(machine, KeepsData) else None

    @data.setter
    def data(self, keyspace: Keyspace | None) -> None:
        machine: object = self.machine
        if not isinstance(machine, KeepsData) or keyspace is None:
            raise InvariantViolation("a machine on disk has a keyspace, and no other has")
        machine.attach(keyspace)

    def snapshot(self) -> bytes | Iterator[bytes]:
        state: bytes | Iterator[bytes] = self.machine.snapshot()
        return state

    def restore(self, state: bytes) -> None:
        self.machine.restore(state)


class MachineAdapter(_Adapter):
    """A StateMachine as the engine's Machine: finds the method, decodes the arguments, encodes the result.

    Bytes that are no call at all raise CommandFailed: the same on every replica. A command that this class does not
    know halts the replica, for another release of the class may.
    """

    __slots__ = ("_commands", "_queries", "heads")

    def __init__(self, machine: StateMachine) -> None:
        super().__init__(machine)
        methods = methods_of(type(machine))
        self._commands = {name: method for name, method in methods.items() if method.kind == "command"}
        self._queries = {name: method for name, method in methods.items() if method.kind == "query"}
        self.heads: Heads = heads_of(self._commands.values())

    def apply(self, command: bytes, context: Context) -> bytes:
        wire = decode_call(command)
        method = self._commands.get(wire[0])
        if method is None:
            raise UnknownCommand(self._unknown("command", wire[0]))
        if len(wire) > method.most:
            raise UnknownCommand(self._too_many(method, len(wire) - 1))
        machine = self.machine
        machine._context = context
        try:
            return method.run(machine, wire)
        finally:
            machine._context = None

    def query(self, query: bytes) -> bytes:
        wire = decode_call(query)
        method = self._queries.get(wire[0])
        if method is None:
            raise CommandFailed("UnknownQuery", self._unknown("query", wire[0]))
        return method.run(self.machine, wire)

    def restoring(self) -> Restoring:
        if type(self.machine).restore is StateMachine.restore:
            return AttributesLoader(self.machine)
        return Joined(self)

    def refuses(self, command: bytes) -> str | None:
        call = called(command)
        if call is None:
            return None
        method = self._commands.get(call[0])
        if method is None:
            return self._unknown("command", call[0])
        return None if call[1] <= len(method.parameters) else self._too_many(method, call[1])

    def _too_many(self, method: Method, count: int) -> str:
        return f"{method.label} takes {len(method.parameters)} arguments, not {count}: another release of it may"

    def describe(self, command: bytes) -> str:
        return describe_call(command)

    def _unknown(self, kind: Kind, name: str) -> str:
        return f"{type(self.machine).__name__} has no {kind} {name!r:.80}"


class BytesMachineAdapter(_Adapter):
    """A BytesStateMachine as the engine's Machine. Results that are not bytes raise CommandFailed."""

    __slots__ = ()
    heads: ClassVar[Heads] = None

    def apply(self, command: bytes, context: Context) -> bytes:
        machine = self.machine
        machine._context = context
        try:
            result: object = machine.apply(command)
        finally:
            machine._context = None
        return result if type(result) is bytes else self._checked("apply", result)

    def query(self, query: bytes) -> bytes:
        answer: object = self.machine.query(query)
        return answer if type(answer) is bytes else self._checked("query", answer)

    def refuses(self, command: bytes) -> str | None:
        return None

    def describe(self, command: bytes) -> str:
        return f"command {command[:40]!r}" + (f" and {len(command) - 40} more bytes" if len(command) > 40 else "")

    def _checked(self, method: str, result: object) -> bytes:
        if type(result) is not bytes:
            name = f"{type(self.machine).__name__}.{method}"
            raise CommandFailed("InvalidResult", f"{name}: expected bytes, got {type(result).__name__}")
        return result


class BatchesAdapter(BytesMachineAdapter):
    """A BytesStateMachine that defines `apply_batch` as the engine's Machine."""

    __slots__ = ()

    def apply(self, command: bytes, context: Context) -> Any:
        [result] = self.apply_batch([command], context)
        if isinstance(result, Exception):
            raise result
        return result

    def apply_batch(self, commands: list[bytes], context: Context) -> Any:
        """Apply commands of one record, together; return what the machine returns, unseen."""
        machine = self.machine
        machine._context = context
        context.batch = True
        try:
            return machine.apply_batch(commands)
        finally:
            context.batch = False
            machine._context = None


def adapt(machine: StateMachine | BytesStateMachine) -> Machine:
    """Return `machine` as the engine's Machine. Raises TypeError for an object of another kind."""
    if isinstance(machine, StateMachine):
        return MachineAdapter(machine)
    if isinstance(machine, BytesStateMachine):
        return BatchesAdapter(machine) if hasattr(machine, "apply_batch") else BytesMachineAdapter(machine)
    raise TypeError(f"{type(machine).__name__} must derive from StateMachine or BytesStateMachine")
