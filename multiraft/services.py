"""The services that a program declares: their local half before the node starts, their replicated half after.

Locally a declaration says which class a service's replicas are made of. Its replicated half is one idempotent
command in the directory, sent by every node at every start; the first one that is committed decides, and a later one
that differs is a clear error on the node that made it.

Rules of this file: nothing is declared after the start; a declaration that was refused is remembered, and `ready`
raises it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from multiraft.adapting import adapt
from multiraft.consistency import Consistency
from multiraft.engine.machine import Machine
from multiraft.errors import CommandFailed, ConfigError, InvalidRequest, MultiRaftError, NotCommitted, OutcomeUnknown
from multiraft.outcome import Outcome
from multiraft.remote import ServiceBinding, ServiceCaller
from multiraft.service import bind_service
from multiraft.sessions import Numbered
from multiraft.shard import Declaration, Directory, Router, ServiceRoute, create_service_command
from multiraft.shard.partition import Mode
from multiraft.statemachine import BytesStateMachine, StateMachine, schema_of, version_of
from multiraft.types import DIRECTORY_GROUP, NodeId

M = TypeVar("M", bound=StateMachine)
log: Final = logging.getLogger("multiraft.services")


class BytesService:
    """The handle of a service whose machine takes bytes: routed like any other, encoded by its user."""

    def __init__(self, binding: ServiceBinding) -> None:
        self._binding = binding

    async def propose(
        self, key: bytes, command: bytes, timeout_s: float | None = None, *, session: bool | Numbered = True
    ) -> bytes:
        """Have the shard of `key` apply `command`; return its result. Raises as `Group.propose`.

        session  True: numbered by this node, and applied once however often it must be sent; a Numbered: by the
                 program; False: sent once, and nothing is kept of it
        """
        _only_bytes(key=key, command=command)
        return await self._caller().propose(key, command, timeout_s, session)

    async def propose_many(
        self, commands: Iterable[tuple[bytes, bytes]], timeout_s: float | None = None, *, session: bool = True
    ) -> list[Outcome]:
        """Have the shards of many keys apply a command each, given as (key, command); return an outcome for each.

        Those of one shard are queued together; otherwise as `Group.propose_many`, whose rules hold in each shard.
        """
        pairs = list(commands)
        for key, command in pairs:
            if type(key) is not bytes or type(command) is not bytes:
                _only_bytes(key=key, command=command)
        keys = [key for key, _ in pairs]
        return await self._caller().propose_many(keys, [command for _, command in pairs], timeout_s, session)

    async def read(
        self, key: bytes, query: bytes, timeout_s: float | None = None, *, lease: bool = False, local: bool = False
    ) -> bytes:
        """Ask the shard of `key`, linearizably. Options and errors are those of `Group.read`."""
        _only_bytes(key=key, query=query)
        if lease or local:
            return (await self._caller().read_as(key, query, Consistency(lease, local), timeout_s))[0]
        return await self._caller().read(key, query, timeout_s)

    async def read_stale(
        self, key: bytes, query: bytes, stale_ms: int, timeout_s: float | None = None
    ) -> tuple[bytes, float]:
        """Ask the shard of `key`; return the answer and its age in milliseconds. Otherwise as `Group.read_stale`."""
        _only_bytes(key=key, query=query)
        return await self._caller().read_as(key, query, Consistency(stale_ms=stale_ms), timeout_s)

    def _caller(self) -> ServiceCaller:
        caller = self._binding.caller
        if caller is None:
            raise self._binding.unavailable()
        return caller


def _only_bytes(**given: object) -> None:
    for what, value in given.items():
        if type(value) is not bytes:
            raise InvalidRequest(f"the {what} must be bytes, not {type(value).__name__}")


class Services:
    """All services that one node declares.

    machines  how to make each one's state machine: (what the engine applies to, the user's object)
    accepted  the services whose declaration the directory has confirmed since the start
    refused   why the directory refused a declaration
    """

    def __init__(self, members: Sequence[NodeId]) -> None:
        self._members = tuple(sorted(members))
        self._declarations: dict[str, Declaration] = {}
        self._bindings: dict[str, ServiceBinding] = {}
        self.machines: dict[str, Callable[[], tuple[Machine, object]]] = {}
        self.accepted: set[str] = set()
        self.refused: dict[str, ConfigError] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._declarations

    def names(self) -> list[str]:
        return sorted(self._declarations)

    def declare(
        self,
        name: str,
        machine: type[M],
        initial_shards: int,
        replicas: int,
        mode: Mode,
        boundaries: Sequence[bytes],
    ) -> type[M]:
        """Declare a typed service and return its handle. Raises ConfigError, TypeError."""
        binding = self._declare(name, machine, initial_shards, replicas, mode, boundaries)
        return bind_service(machine, name, binding)

    def declare_bytes(
        self,
        name: str,
        machine: type[BytesStateMachine],
        initial_shards: int,
        replicas: int,
        mode: Mode,
        boundaries: Sequence[bytes],
    ) -> BytesService:
        """Declare a service of bytes and return its handle. Raises ConfigError, TypeError."""
        return BytesService(self._declare(name, machine, initial_shards, replicas, mode, boundaries))

    def _declare(
        self,
        name: str,
        machine: type[StateMachine | BytesStateMachine],
        initial_shards: int,
        replicas: int,
        mode: Mode,
        boundaries: Sequence[bytes],
    ) -> ServiceBinding:
        if name in self._declarations:
            raise ConfigError(f"service {name!r} is declared twice on this node")
        schema: dict[str, list[Any]] = schema_of(machine)
        version = version_of(machine)
        if mode == "range":
            initial_shards = len(boundaries) + 1
        try:
            declaration = Declaration(
                name, mode, initial_shards, tuple(boundaries), min(replicas, len(self._members)), schema, version
            )
        except NotCommitted as problem:
            raise ConfigError(str(problem)) from None
        self._declarations[name] = declaration
        self._bindings[name] = ServiceBinding(name)

        def make() -> tuple[Machine, object]:
            instance = machine()
            return adapt(instance), instance

        self.machines[name] = make
        return self._bindings[name]

    def bind(self, router: Router | None, away: Callable[[], MultiRaftError] | None = None) -> None:
        """Let the handles call through `router`; None: the node does not run, and `away` says why."""
        self.accepted.clear()
        for name, binding in self._bindings.items():
            binding.caller = ServiceRoute(router, name) if router is not None and name not in self.refused else None
            binding.away = away

    async def declare_in_directory(
        self, node_id: NodeId, router: Router, directory: Directory, changed: Callable[[], None]
    ) -> None:
        """Have the directory know every service declared here, on `node_id`; try until it does, or refuses."""
        for name, declaration in sorted(self._declarations.items()):
            command = create_service_command(declaration, self._members, node_id)
            while name not in self.refused:
                try:
                    await router.call(DIRECTORY_GROUP, "propose", command)
                except CommandFailed as problem:
                    self.refused[name] = ConfigError(
                        f"service {name!r} was refused by the directory: {problem.detail}. "
                        "Declare it as it is there, or under another name"
                    )
                    log.info("%s", self.refused[name])
                    binding = self._bindings[name]
                    binding.caller, binding.refused = None, self.refused[name]
                    changed()
                except (NotCommitted, OutcomeUnknown) as problem:
                    log.info("service %r is not declared yet: %s", name, problem)
                    await asyncio.sleep(0.1)
                else:
                    self.accepted.add(name)
                    changed()
                    break
