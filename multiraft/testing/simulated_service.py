"""A service as a simulated client sees it: calls go to a node drawn for each, and are recorded with their answers.

The user's own class is the model by which the answers are judged: a state machine says what a sequential object does.
Where copying it for every step is too slow, or its results depend on what only a replica has, another model is given.

Rules of this file: what certainly did not happen is not recorded; a read without an answer neither; everything else
stays, its outcome unknown.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from multiraft.engine.machine import Context, command_failed
from multiraft.errors import CommandFailed, MultiRaftError, NotCommitted, OutcomeUnknown
from multiraft.keyspace import KeepsData
from multiraft.methods import Method, decode_call
from multiraft.node import Node
from multiraft.statemachine import StateMachine, methods_of
from multiraft.testing.digest import digest
from multiraft.testing.history import History
from multiraft.testing.linearizability import Model
from multiraft.testing.virtual import NodeKilled

if TYPE_CHECKING:
    from multiraft.testing.simulation import Simulation

TOGETHER: Final = "all keys"


class Failed:
    """The result of a command or query that raised: the same exception counts as the same result."""

    def __init__(self, exception: str, detail: str) -> None:
        self.exception = exception
        self.detail = detail

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Failed) and (self.exception, self.detail) == (other.exception, other.detail)

    def __hash__(self) -> int:
        return hash((self.exception, self.detail))

    def __repr__(self) -> str:
        return f"raises {self.exception}({self.detail!r:.80})"


class Call(NamedTuple):
    """One operation on a service, as models and messages see it.

    body  the call as a replica gets it
    """

    method: str
    arguments: tuple[Any, ...]
    body: bytes

    def __repr__(self) -> str:
        return f"{self.method}({', '.join([f'{item!r:.40}' for item in self.arguments])})"


class NeedsContext(Exception):
    """A command asked for its context, which only a replica's log gives it."""


class _NoContext:
    """Stands where a replica's context would: whoever looks is told that a model has none."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        raise NeedsContext


class MachineState:
    """A state machine as a value: equal to one that holds the same. Never changed."""

    __slots__ = ("key", "machine")

    def __init__(self, machine: StateMachine) -> None:
        self.machine = machine
        self.key = digest(list(machine.data.range()) if isinstance(machine, KeepsData) else machine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MachineState) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class MachineModel:
    """The model that a state machine's own class is: runs each call as a replica would, on a copy."""

    def __init__(self, machine: type[StateMachine]) -> None:
        self._machine = machine
        self._methods = methods_of(machine)

    def init(self) -> MachineState:
        return MachineState(self._machine())

    def step(self, state: MachineState, call: Call) -> tuple[Any, MachineState]:
        """Raises NeedsContext for a machine that looks at its context."""
        machine = copy.deepcopy(state.machine)
        method = self._methods[call.method]
        machine._context = cast(Context, _NoContext())
        result: Any
        try:
            result = method.decode_result(method.run(machine, decode_call(call.body)))
        except NeedsContext:
            raise
        except Exception as problem:
            failed = command_failed(problem)
            result = Failed(failed.exception, failed.detail)
            if isinstance(machine, KeepsData):
                return result, state  # what it wrote is dropped
        machine._context = None
        return result, state if method.kind == "query" else MachineState(machine)


class SimulatedService:
    """One service of a simulation: what its clients call, and what they were told.

    handle     has the service's commands and keyed queries, as a real handle does
    history    by key, or all together
    judged     whether the answers are judged in the end
    undecided  the keys for which the checker's steps did not suffice
    """

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        machine: type[StateMachine],
        model: Model[Any] | None,
        per_key: bool,
        initial_shards: int,
        replicas: int,
    ) -> None:
        self.name = name
        self.model: Model[Any] = model if model is not None else MachineModel(machine)
        self.judged = True
        self.history = History()
        self.undecided: list[str] = []
        self._simulation = simulation
        self._machine = machine
        self._per_key = per_key
        self._initial_shards = initial_shards
        self._replicas = replicas
        self._rng = Random(f"routes of {name} {simulation.seed}")
        self._handles: dict[str, Any] = {}
        self._calls = 0
        self.handle: Any = _Handle(self, methods_of(machine))

    def declare(self, node: Node) -> None:
        """Declare it on a node that is about to start."""
        self._handles[node.node_id] = node.service(
            self.name, self._machine, initial_shards=self._initial_shards, replicas=self._replicas
        )

    def hint(self) -> str:
        if not self._per_key:
            return ""
        return "\n(each key was judged apart; if results depend on other keys of the shard, say per_key=False)"

    async def call(self, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call through a node drawn for it, as a program on that node would, and record how it ends."""
        simulation, loop = self._simulation, self._simulation.loop
        key, body = method.encode_call(args, kwargs)
        kept = key if self._per_key and method.key is not None else TOGETHER
        call = Call(method.name, tuple(decode_call(body)[1:]), body)
        node_id = self._rng.choice(simulation.cluster.names)
        timeout_ms = self._rng.choice([None, None, None, 200, 1_000])
        remote = getattr(self._handles[node_id], method.name).with_options(timeout_ms=timeout_ms, **self._way(method))
        self._simulation.observer.counts["commands"] += method.kind == "command"
        self._calls += 1
        who = f"call {self._calls}"
        simulation.trace.detail(node_id, f"{who}: {call}")
        operation = self.history.call(kept, call, loop.now_s, who)
        try:
            task = simulation.cluster.on(node_id, remote(*args, **kwargs))
            result = await task
        except CommandFailed as problem:
            self.history.end(operation, Failed(problem.exception, problem.detail), loop.now_s)
            raise
        except MultiRaftError as problem:
            if isinstance(problem, NotCommitted) or method.kind == "query":
                self.history.withdraw(kept, operation)
            else:
                simulation.observer.counts["unknown"] += 1
            simulation.trace.detail(node_id, f"{who}: {type(problem).__name__}")
            raise
        except (asyncio.CancelledError, NodeKilled):
            mine = asyncio.current_task()
            if mine is not None and mine.cancelling():
                raise  # it is this client that ends
            raise OutcomeUnknown(f"node {node_id} was killed in the midst of the call") from None
        self.history.end(operation, copy.deepcopy(result), loop.now_s)
        simulation.trace.detail(node_id, f"{who}: -> {result!r:.80}")
        return result

    def _way(self, method: Method) -> dict[str, bool]:
        """Draw by which of the linearizable ways a query is answered, and whether a command is numbered: most are."""
        if method.kind == "command":
            return {"session": self._rng.random() < 0.9}
        way = self._rng.choice(["", "", "local", "lease"])
        return {way: True} if way == "local" or (way == "lease" and self._simulation.leases) else {}


class _Handle:
    """What a test is given: calls by name, recorded."""

    def __init__(self, service: SimulatedService, methods: dict[str, Method]) -> None:
        for name, method in methods.items():
            if method.key is not None:
                setattr(self, name, _Call(service, method))


class _Call:
    def __init__(self, service: SimulatedService, method: Method) -> None:
        self._service = service
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return self._service.call(self._method, args, kwargs)
