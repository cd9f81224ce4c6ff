"""The class that a user writes: an ordinary Python class whose commands are replicated and whose queries are routed.

`@command` and `@query` are descriptors: on an instance they are the plain method, so that a machine is tested
without any cluster; on the handle that `node.service` returns they are the remote call, with the same parameters.

Rules of this file: whatever is wrong with a declaration is a TypeError when the class is defined, and says what to
write instead; nothing of a replica's object ever leaves it except as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from multiraft.attributes import pack_attributes, unpack_attributes
from multiraft.engine.machine import Context
from multiraft.methods import Kind, Method, check_declaration, compile_method
from multiraft.remote import RemoteCommand, RemoteQuery, RemoteShardQuery, ServiceBinding

VERSION_MAX: Final = (1 << 31) - 1
P = ParamSpec("P")
R = TypeVar("R")


class _HasContext:
    """Gives a machine its `context`, kept in a slot so that `vars(machine)` is the user's state and nothing else."""

    __slots__ = ("_context",)
    _context: Context | None

    @property
    def context(self) -> Context:
        """The entry being applied: its index, term, group and time. Set it yourself to test a command that uses it.

        Raises RuntimeError outside a command: queries and __init__ belong to no entry.
        """
        context: Context | None = getattr(self, "_context", None)
        if context is None:
            raise RuntimeError("self.context is there only while a command is applied; in a test, set it first")
        return context

    @context.setter
    def context(self, context: Context | None) -> None:
        self._context = context


class StateMachine(_HasContext):
    """Base of replicated state machines with typed commands and queries.

    Commands must be deterministic: no clock, no randomness, no I/O; `self.context` has what is the same everywhere.
    A command that raises an Exception is a result, CommandFailed, for its caller, and what it had already changed
    stays changed. Queries must change nothing.

    Where the node's `snapshot_entries` is set, a long log is replaced by a snapshot of the state: of all attributes,
    which then must be None, bool, int (64 bits), float, str, bytes, or lists and dicts of these. Otherwise define
    `snapshot` and `restore`; the log of a machine whose state cannot be had grows on, and a warning says why.

    `class Store(StateMachine, routes_by=part)` has keys that are to share a shard do so: it is found not by the key but
    by what `part`, given the key as bytes, returns for it. All nodes must have the same one, for all time.
    """

    __slots__ = ()
    _multiraft_methods: ClassVar[dict[str, Method]] = {}
    _routes_by: ClassVar[Callable[[bytes], bytes] | None] = None

    def snapshot(self) -> bytes | Iterator[bytes]:
        """Return the whole state, or yield it piece by piece. Raises TypeError, naming what cannot be carried.

        Pieces are taken while other groups go on; nothing is applied to this machine before the last one was.
        """
        return pack_attributes(self)

    def restore(self, state: bytes) -> None:
        """Replace the whole state by what `snapshot` gave, all of it, perhaps on another node. Raises CorruptRecord."""
        unpack_attributes(self, state)

    def __init_subclass__(cls, routes_by: Callable[[bytes], bytes] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if routes_by is not None:
            cls._routes_by = staticmethod(routes_by)
        methods_of(cls)


class BytesStateMachine(_HasContext):
    """Base of replicated state machines that read and write bytes, and encode them as they like.

    The rules of StateMachine hold: `apply` is deterministic, and `query` changes nothing. Define `snapshot` and
    `restore` to have long logs replaced by snapshots of the state.

    A class that can apply many commands at a lower price together defines, in place of `apply`,

        def apply_batch(self, commands: list[bytes]) -> list[bytes | Exception]

    which returns a result for each command, in order; an Exception among them is the CommandFailed of its own caller.
    How commands are put together differs from replica to replica, so nothing may depend on it: each must have the
    effect and the result that it would have alone. `self.context.time_ms` and `.term` are those of all of them,
    `.index` is the first one's, `.random` is not there. What `apply_batch` itself raises halts the replica. Of a
    machine on disk what a batch wrote is kept, also for commands whose result is an Exception: write nothing for those.
    """

    __slots__ = ()

    def apply(self, command: bytes) -> bytes:
        """Apply one committed command; return its result. `self.context` is the entry that it came in."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(self, command: bytes) -> bytes")

    def query(self, query: bytes) -> bytes:
        """Answer a question from the state as it is."""
        raise NotImplementedError(f"{type(self).__name__} must define query(self, query: bytes) -> bytes")

    def snapshot(self) -> bytes | Iterator[bytes]:
        """Return the whole state, for `restore`, or yield it piece by piece; nothing is applied meanwhile."""
        raise NotImplementedError(f"{type(self).__name__} does not define snapshot(self) -> bytes")

    def restore(self, state: bytes) -> None:
        """Replace the whole state by what `snapshot` returned, perhaps on another node."""
        raise NotImplementedError(f"{type(self).__name__} does not define restore(self, state: bytes) -> None")


# ---------------------------------------------------------------------------------------------------- declaring


class _Declared(Generic[P, R]):
    """A method that was marked as a command or query. Which of the two, and its key, are all it adds."""

    kind: ClassVar[Kind]

    def __init__(self, function: Callable[Concatenate[Any, P], R], key: str | None, since: int = 1) -> None:
        check_declaration(function, self.kind, key)
        if type(since) is not int or not 1 <= since <= VERSION_MAX:
            raise TypeError(f"{function.__qualname__}: since={since!r:.40} must be a whole number, at least 1")
        self.since = since
        self.function = function
        self.key = key
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def remote(self, method: Method, binding: ServiceBinding | None) -> Any:
        """Return the remote call for `method`, this declaration as compiled for one class."""
        raise NotImplementedError

    def _remote_of(self, owner: type) -> Any:
        if not issubclass(owner, StateMachine):
            raise TypeError(f"{owner.__name__} must derive from StateMachine to have commands and queries")
        return self.remote(methods_of(owner)[self.__name__], None)


class Command(_Declared[P, R]):
    """A method marked with `@command`."""

    kind = "command"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> RemoteCommand[P, R]: ...
    @overload
    def __get__(self, instance: StateMachine, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, instance: StateMachine | None, owner: type[Any]) -> RemoteCommand[P, R] | Callable[P, R]:
        if instance is None:
            remote: RemoteCommand[P, R] = self._remote_of(owner)
            return remote
        method: Callable[P, R] = self.function.__get__(instance)
        return method

    def remote(self, method: Method, binding: ServiceBinding | None) -> RemoteCommand[P, R]:
        return RemoteCommand(method, binding)


class Query(_Declared[P, R]):
    """A method marked with `@query(key="...")`."""

    kind = "query"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> RemoteQuery[P, R]: ...
    @overload
    def __get__(self, instance: StateMachine, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, instance: StateMachine | None, owner: type[Any]) -> RemoteQuery[P, R] | Callable[P, R]:
        if instance is None:
            remote: RemoteQuery[P, R] = self._remote_of(owner)
            return remote
        method: Callable[P, R] = self.function.__get__(instance)
        return method

    def remote(self, method: Method, binding: ServiceBinding | None) -> RemoteQuery[P, R]:
        return RemoteQuery(method, binding)


class ShardQuery(_Declared[P, R]):
    """A method marked with `@query(key=None)`."""

    kind = "query"

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> RemoteShardQuery[P, R]: ...
    @overload
    def __get__(self, instance: StateMachine, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, instance: StateMachine | None, owner: type[Any]) -> RemoteShardQuery[P, R] | Callable[P, R]:
        if instance is None:
            remote: RemoteShardQuery[P, R] = self._remote_of(owner)
            return remote
        method: Callable[P, R] = self.function.__get__(instance)
        return method

    def remote(self, method: Method, binding: ServiceBinding | None) -> RemoteShardQuery[P, R]:
        return RemoteShardQuery(method, binding)


class _MakesCommand(Protocol):
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Command[P, R]: ...


class _MakesQuery(Protocol):
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Query[P, R]: ...


class _MakesShardQuery(Protocol):
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> ShardQuery[P, R]: ...


def command(*, key: str, since: int = 1) -> _MakesCommand:
    """Mark a method as a command: it may change the state, and runs once on every replica of its key's shard.

    key    the parameter that decides which shard; of type str, bytes or int
    since  the version of the class that this command came with, or got its latest parameter in. A cluster is upgraded
           node by node: until all nodes run a program whose class has reached that version, calling the command
           raises NotReady, which names those that are behind; after that no older program is taken back

    Raises TypeError, at class definition, for a key that is no parameter, for parameters or results without an
    annotation or with one that cannot be carried, for *args, **kwargs, async def, and for reserved names.
    """

    def mark(function: Callable[Concatenate[Any, P], R], /) -> Command[P, R]:
        return Command(function, key, since)

    return mark


@overload
def query(*, key: str) -> _MakesQuery: ...
@overload
def query(*, key: None) -> _MakesShardQuery: ...
def query(*, key: str | None) -> _MakesQuery | _MakesShardQuery:
    """Mark a method as a query: it answers from the state and changes nothing.

    key  the parameter that decides which shard is asked; None: any one shard, or each (`on_each_shard`)

    Raises TypeError as `command` does.
    """

    def mark(function: Callable[Concatenate[Any, P], R], /) -> Query[P, R]:
        return Query(function, key)

    def mark_shard_query(function: Callable[Concatenate[Any, P], R], /) -> ShardQuery[P, R]:
        return ShardQuery(function, None)

    return mark_shard_query if key is None else mark


def declarations_of(machine: type[StateMachine]) -> dict[str, _Declared[Any, Any]]:
    """Return the commands and queries of a class, inherited ones included, by name.

    Raises TypeError when a subclass replaces one by something that is neither.
    """
    found: dict[str, _Declared[Any, Any]] = {}
    for base in reversed(machine.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, _Declared):
                if name != value.__name__:
                    raise TypeError(
                        f"{machine.__name__}.{name}: is the {value.kind} {value.__name__!r} under another name"
                    )
                found[name] = value
            elif name in found:
                raise TypeError(
                    f"{base.__name__}.{name} replaces a {found[name].kind} by something else; mark it with "
                    f"@{found[name].kind}, or name it differently"
                )
    return found


def methods_of(machine: type[StateMachine]) -> dict[str, Method]:
    """Return the compiled commands and queries of a class; compiled once. Raises TypeError as `command` says."""
    if "_multiraft_methods" not in vars(machine):
        declared = declarations_of(machine)
        methods = {
            name: compile_method(machine, value.function, value.kind, value.key) for name, value in declared.items()
        }
        for name, value in declared.items():
            methods[name].since = value.since
            if machine._routes_by is not None:
                methods[name].route_by(machine._routes_by)
        machine._multiraft_methods = methods
    return machine._multiraft_methods


def version_of(machine: type[StateMachine | BytesStateMachine]) -> int:
    """Return the version of a class: the highest `since` of its commands; 1 where nothing is said."""
    if not issubclass(machine, StateMachine):
        return 1
    return max((method.since for method in methods_of(machine).values()), default=1)


def schema_of(machine: type[StateMachine | BytesStateMachine]) -> dict[str, list[Any]]:
    """Return the shape of each command and query, plain enough for msgpack; empty for a machine of bytes."""
    if not issubclass(machine, StateMachine):
        return {}
    return {name: method.describe() for name, method in sorted(methods_of(machine).items())}
