"""What the engine asks of a state machine: bytes in, bytes out, and which exceptions are whose fault.

A command must have the same effect on every replica. An ordinary exception that a command raises is therefore part
of its effect: every replica raises it at the same entry, and its caller gets CommandFailed. A failure of the
environment (memory, stack, disk, cancellation) strikes one replica alone; that replica must stop at the entry, or it
would go on with another state than its peers. `environmental` is the one place that draws this line.
So must one whose program does not know a command that is in the log (`UnknownCommand`), or whose results are not those
of the others (`Diverged`): what it would go on with is not the group's state.

Rules of this file: no I/O, no time; nothing here knows of services, keys or types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from multiraft.errors import CommandFailed, MultiRaftError, StorageError
from multiraft.keyspace import Keyspace
from multiraft.types import GroupId, Index, Term

_DETAIL_CHARACTERS: Final = 1_000
_PIECE_BYTES: Final = 64 * 1024


ApplyBatch: TypeAlias = "Callable[[list[bytes], Context], list[bytes | Exception]]"


class Halting(Exception):
    """The replica must stop at the entry, and it alone. Raised by whoever finds out; halts it."""

    kind: ClassVar[str] = "environment"


class UnknownCommand(Halting):
    """This node's program does not know the command: it is older than the one that proposed it."""

    kind: ClassVar[str] = "unknown command"


class Diverged(Halting):
    """What this replica's commands have come to is not what those of the others have.

    index  the entry at which they were compared
    value  what the others have there; see rolling.py
    """

    kind: ClassVar[str] = "diverged"

    def __init__(self, index: Index, value: int, own: int) -> None:
        super().__init__(f"up to index {index} its commands have come to {own:08x}, those of the group to {value:08x}")
        self.index = index
        self.value = value


class BatchFailed(Halting):
    """A batch of commands has failed as a whole; which commands were in it is this replica's own affair."""


class Context:
    """The entry that is being applied; the same on every replica. Valid during the one `apply` that it is given to.

    index     the entry's index in its group's log
    term      the term of the leader that appended it
    group_id  the group
    time_ms   the leader's clock when it appended the entry, milliseconds since 1970, never going back within a group
    batch     many commands are applied at once; `index` is that of the first one, and its place another on each replica
    """

    __slots__ = ("_random", "_random_of", "batch", "group_id", "index", "term", "time_ms")

    def __init__(self, index: Index, term: Term, group_id: GroupId, time_ms: int) -> None:
        self.index = index
        self.term = term
        self.group_id = group_id
        self.time_ms = time_ms
        self.batch = False
        self._random: Random | None = None
        self._random_of: Index = 0

    @property
    def group(self) -> GroupId:
        """The group; another name of `group_id`."""
        return self.group_id

    @property
    def time(self) -> float:
        """The replicated clock in seconds since 1970: `time_ms`."""
        return self.time_ms / 1e3

    @property
    def random(self) -> Random:
        """Chance that is the same on every replica: seeded by the group and the entry, for this one command.

        Raises RuntimeError in a batch of commands, of which every replica has its own.
        """
        if self.batch:
            raise RuntimeError("context.random is there for one command at a time, and not in apply_batch")
        if self._random is None or self._random_of != self.index:
            self._random = Random((self.group_id << 64) | self.index)
            self._random_of = self.index
        return self._random

    def __repr__(self) -> str:
        return f"Context(index={self.index}, term={self.term}, group_id={self.group_id}, time_ms={self.time_ms})"


Heads: TypeAlias = "Mapping[bytes, int] | None"
"""A machine's attribute `heads`: by the name of each command that it knows, as msgpack packs it, the highest first byte
of a call of it, which holds the number of arguments; None: it refuses nothing. What is not there is asked of `refuses`.
"""


class Machine(Protocol):
    """One replica's state, as the engine sees it. Called on the loop's thread only, one call at a time.

    data  where a machine on disk keeps its state; the engine puts the replica's own keyspace in its place before it
          applies anything. None: the machine's state is in memory
    """

    data: Keyspace | None

    def apply(self, command: bytes, context: Context) -> Any:
        """Apply one committed command and return its encoded result: bytes; anything else is a failure of the command.

        Called once per entry, in order of index. What it raises is judged by `environmental`.
        """

    # A machine that takes commands many at a time has `apply_batch(commands, context)`, too: see `batch_of`.

    def refuses(self, command: bytes) -> str | None:
        """Why this class does not know the command, which must not be proposed then; None: it does, or may."""

    def describe(self, command: bytes) -> str:
        """Return the command as an operator reads it, on one line. Never raises."""

    def query(self, query: bytes) -> bytes:
        """Answer a question from the state as it is; must not change it."""

    def snapshot(self) -> bytes | Iterator[bytes]:
        """Return the whole state, or yield it piece by piece; nothing is applied before the last piece was taken.

        Raises any Exception where it cannot, at once or at some piece: then no snapshot is taken.
        """

    def restore(self, state: bytes) -> None:
        """Replace the whole state by what `snapshot` returned or yielded, here or on another replica.

        Whatever it raises halts the replica. A machine with a method `restoring` is given it piece by piece instead.
        """


class Restoring(Protocol):
    """A state on its way into a machine."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece, of whatever size."""

    def finish(self) -> None:
        """All has come: replace the whole state by it."""


class Joined:
    """Gathers all pieces for a machine that takes its state in one."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pieces: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def finish(self) -> None:
        self._machine.restore(b"".join(self._pieces))


def restoring(machine: Machine) -> Restoring:
    """Return what takes the pieces of a state for `machine`."""
    begin: Callable[[], Restoring] | None = getattr(machine, "restoring", None)
    return begin() if begin is not None else Joined(machine)


def pieces_of(state: bytes | Iterator[bytes]) -> Iterator[bytes]:
    """Yield what `Machine.snapshot` returned, in small pieces. Raises TypeError for a piece that is no bytes."""
    pieces: Iterable[object] = (state,) if isinstance(state, bytes) else state
    for piece in pieces:
        if type(piece) is not bytes:
            raise TypeError(f"snapshot() yielded {type(piece).__name__}, not bytes")
        for at in range(0, len(piece), _PIECE_BYTES):
            yield piece if len(piece) <= _PIECE_BYTES else piece[at : at + _PIECE_BYTES]


def environmental(failure: BaseException) -> bool:
    """Return whether `failure`, raised by `Machine.apply`, is this replica's alone, so that the replica must halt.

    OSError, MemoryError, RecursionError, StorageError, what says so itself (`Halting`) and whatever is not an Exception
    (cancellation, interrupts) are; so is an exception group that holds one of them. Every other Exception is a
    deterministic result of the command.
    """
    if isinstance(failure, BaseExceptionGroup):
        return any(environmental(part) for part in failure.exceptions)
    return not isinstance(failure, Exception) or isinstance(
        failure, OSError | MemoryError | RecursionError | StorageError | Halting
    )


def command_failed(failure: Exception) -> CommandFailed:
    """Return what the caller of a command gets when the command raised `failure` (one that is not `environmental`).

    Never raises: text that cannot be had is left out, and long text is cut.
    """
    if isinstance(failure, CommandFailed):
        return failure
    try:
        detail = str(failure)
    except Exception as problem:
        detail = f"(its text cannot be had: {type(problem).__name__})"
    return CommandFailed(type(failure).__name__, detail[:_DETAIL_CHARACTERS])


def said(failure: BaseException) -> str:
    """Return what `failure` says, as text that can be stored and sent. Never raises."""
    try:
        detail = str(failure)
    except Exception as problem:
        detail = f"(its text cannot be had: {type(problem).__name__})"
    text = detail[:_DETAIL_CHARACTERS].encode(errors="backslashreplace").decode()
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def halt_kind(failure: BaseException) -> str:
    """Return the kind of `types.Halt` for a failure that is `environmental`."""
    return failure.kind if isinstance(failure, Halting) else Halting.kind


def query_failed(failure: Exception) -> MultiRaftError:
    """Return what the caller of a query gets when the query raised `failure`: a refusal of its own kind, or that."""
    return failure if isinstance(failure, MultiRaftError) else command_failed(failure)


def batch_of(machine: Machine) -> ApplyBatch | None:
    """Return what takes many commands at once; None: the machine takes them one by one.

    It returns a result for each, bytes or an Exception, and is only called with commands of one record. The context's
    index is that of the first one.
    """
    apply_batch: ApplyBatch | None = getattr(machine, "apply_batch", None)
    return apply_batch
