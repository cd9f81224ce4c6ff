"""One simulated run: a cluster of real nodes, clients, faults, and the judgement over all of it.

Everything is drawn from one seed: the configuration, what goes wrong and when, what clients do. The run has four parts:
the nodes start; clients call while faults come and go; all faults end, and the cluster must come together within
bounded virtual time; what was answered is judged.

    async def test(cluster: Simulation) -> None:
        counters = cluster.service("counters", Counters)

        async def step(rng: Random) -> None:
            await counters.add(rng.choice("abc"))

        await cluster.run(step)

Rules of this file: nothing random but what the seed says; a violation ends the run at once; whatever ends it, the
nodes are stopped and the failpoints are disarmed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, TypeVar

from multiraft.config import Limits
from multiraft.errors import MultiRaftError
from multiraft.node import Node
from multiraft.statemachine import StateMachine
from multiraft.testing.converging import Converging
from multiraft.testing.invariants import Violation
from multiraft.testing.linearizability import DEFAULT_STEPS, Model, Verdict, check
from multiraft.testing.observing import ObservedCluster, Observer
from multiraft.testing.schedule import Schedule
from multiraft.testing.simulated_service import NeedsContext, SimulatedService
from multiraft.testing.trace import Trace
from multiraft.testing.virtual import NodeKilled, VirtualLoop, run_virtual
from multiraft.types import DIRECTORY_GROUP, GroupId

M = TypeVar("M", bound=StateMachine)
Step = Callable[[Random], Awaitable[Any]]
NAMES: Final = "abcdefg"


@dataclass(frozen=True, slots=True)
class Options:
    """What is not left to the seed.

    nodes     how many; None: drawn, 1 to 7
    faults    the kinds of faults there are (schedule.py); None: drawn
    details   keep the whole trace
    max_steps of the linearizability checker, for each key
    """

    nodes: int | None = None
    faults: Sequence[str] | None = None
    details: bool = False
    max_steps: int = DEFAULT_STEPS


@dataclass(slots=True)
class Report:
    """What one run came to.

    failure      why it failed; empty if it did not
    error        what was raised, unless it came from another process
    story        the newest lines of its timeline; all, with details, if they were asked for
    virtual_s    how long it was on the loop's own time
    faults       what took effect, by kind
    passed       how often each failpoint was passed
    operations   that were judged; undecided: the keys whose history the budget did not suffice for
    """

    seed: int
    failure: str = ""
    error: BaseException | None = None
    story: list[str] = field(default_factory=list)
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    undecided: list[str] = field(default_factory=list)


class Simulation:
    """The cluster that a test or a client is given. Declare services, then `await run(step)`.

    seed     of this run
    cluster  the nodes, disks, clocks and network, to look at and to hurt by hand
    rng      for the test's own use
    leases   some queries are answered by leases; all clocks keep within what those allow for
    """

    def __init__(self, seed: int, options: Options | None = None) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise RuntimeError("a simulation runs on virtual time: use @simulate, or run_simulation")
        self.seed = seed
        self.options = options = options or Options()
        self.rng = Random(f"test {seed}")
        self.loop = loop
        self.trace = Trace(lambda: loop.now_s, options.details)
        config = Random(f"configuration {seed}")
        count = options.nodes or config.choice([1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7])
        self.limits = draw_limits(config)
        self.leases = config.random() < 0.4
        self.services: list[SimulatedService] = []
        revives = Random(f"revivals {seed}").random() < 0.5
        self.cluster = ObservedCluster(self._declare, NAMES[:count], limits=self.limits, seed=seed, revives=revives)
        batches = Random(f"batches {seed}").random() < 0.5
        self.observer = self.cluster.observer = Observer(self.cluster, self.trace, self._violated, batches)
        self._config = config
        self._task = asyncio.current_task()
        self._violation: Violation | None = None
        self._client_failure: BaseException | None = None
        self._ran = False
        self._calling = True
        self._make_slow(config)

    def _make_slow(self, config: Random) -> None:
        """Give disks and wires their ordinary slowness."""
        disk_s, wire_s = config.choice([0.0, 0.004, 0.004, 0.1]), config.choice([0.0, 0.003, 0.003, 0.05])
        chance = Random(f"delays {self.seed}")
        for name in self.cluster.names:
            if disk_s:
                self.cluster.disks[name].delay_s = lambda: chance.uniform(0.0, disk_s)
            for other in self.cluster.names:
                if other != name and wire_s:
                    self.cluster.network.set_delay(name, other, lambda: chance.uniform(0.0, wire_s))

    # ---------------------------------------------------------------------------------------------------- declaring

    def service(
        self,
        name: str,
        machine: type[M],
        *,
        model: Model[Any] | None = None,
        per_key: bool = True,
        judged: bool = True,
        initial_shards: int | None = None,
        replicas: int | None = None,
    ) -> type[M]:
        """Declare a service; return its handle. Each call on it goes to a node drawn for it, and is recorded.

        machine         the class of its replicas. It is the model, too, by which answers are judged
        model           another model, faster or looser; its operations are (method, arguments)
        per_key         keys are independent of each other, and judged apart. False: results depend on other keys of
                        the shard; the histories of all keys are judged together
        judged          False: answers are not judged at all, only what replicas do with them
        initial_shards  None: drawn, 1 to 4
        replicas        None: drawn, 1 to 5, at most as many as there are nodes
        """
        if self._ran:
            raise RuntimeError(f"service {name!r}: declare services before `run`")
        if initial_shards is None:
            initial_shards = self._config.choice([1, 2, 4]) if per_key else 1
        if replicas is None:
            replicas = self._config.choice([1, 2, 3, 3, 3, 3, 4, 5, 5])
        service = SimulatedService(self, name, machine, model if judged else None, per_key, initial_shards, replicas)
        service.judged = judged
        self.services.append(service)
        return service.handle  # type: ignore[no-any-return]

    def _declare(self, node: Node) -> None:
        for service in self.services:
            service.declare(node)

    # ------------------------------------------------------------------------------------------------------ running

    async def run(self, step: Step, *, clients: int = 4) -> None:
        """Start the nodes, let clients repeat `step` while faults come and go, heal, and judge.

        step     one thing that a client does; given a source of chance of its own. A MultiRaftError that it raises
                 (the call failed, or may have happened) ends this step only
        clients  how many call at once, each after the other's fashion

        Raises Violation with what does not hold, and whatever else `step` raises.
        """
        if self._ran:
            raise RuntimeError("a simulation runs once")
        self._ran = True
        cluster, loop = self.cluster, self.loop
        cluster.watch_places()
        chance = Random(f"faults {self.seed}")
        schedule = Schedule(cluster, chance, self.trace, self.groups, self.options.faults, careful_clocks=self.leases)
        schedule.arm_first()
        for name in cluster.names:
            await schedule.start_one(name)
        if self.rng.random() < 0.7 and not cluster.places.armed:
            try:
                await cluster.ready()
            except MultiRaftError as problem:
                raise Violation(f"liveness: before anything went wrong: {problem}") from problem
        calling = [loop.create_task(self._client(number, step), name=f"client {number}") for number in range(clients)]
        for task in calling:
            task.add_done_callback(self._client_ended)
        await schedule.run()
        await schedule.end()
        converging = Converging(self)
        await converging.serve()
        await cluster.run_for(2.0)
        self._calling = False
        await self._answered(calling)
        await converging.agree()
        await converging.rest()
        self.judge()

    async def _client(self, number: int, step: Step) -> None:
        rng = Random(f"client {number} of {self.seed}")
        pause_s = rng.choice([0.02, 0.1, 0.4])
        while self._calling:
            await asyncio.sleep(rng.uniform(0.0, pause_s))
            try:
                await step(rng)
            except MultiRaftError as problem:
                self.trace.detail(f"client{number}", f"{type(problem).__name__}: {problem}")

    def _client_ended(self, client: asyncio.Task[None]) -> None:
        """What a client raises ends the run at once, not only when everybody is waited for."""
        if not client.cancelled() and client.exception() is not None and self._task is not None:
            self._client_failure = self._client_failure or client.exception()
            self._task.cancel()

    async def _answered(self, calling: Sequence[asyncio.Task[None]]) -> None:
        """Nothing is wrong any more, so no call may take longer than its time."""
        done, late = await asyncio.wait(calling, timeout=self.limits.request_timeout_ms / 1e3 + 5.0)
        for task in done:
            task.result()
        if late:
            raise Violation(f"liveness: calls of {len(late)} clients were never answered")

    def groups(self) -> list[GroupId]:
        """Return the directory and the groups of all services, as far as they are known."""
        for node in self.cluster.nodes.values():
            if node.runs and node.shard_map.groups:
                return [DIRECTORY_GROUP, *sorted(node.shard_map.groups)]
        return [DIRECTORY_GROUP]

    # ------------------------------------------------------------------------------------------------------- judging

    def _violated(self, what: str) -> None:
        """Called from wherever something was found: the run ends, and raises it."""
        if self._violation is None:
            self.trace.say("!", what)
            self._violation = Violation(what)
            if self._task is not None:
                self._task.cancel()

    def raise_violation(self) -> None:
        """Raise what was found, or what a client raised; nothing where there is neither."""
        if self._violation is not None:
            raise self._violation from None
        if self._client_failure is not None:
            raise self._client_failure from None

    def judge(self) -> None:
        """Judge the answers of every service. Raises Violation; what is undecided is in the report."""
        for service in [service for service in self.services if service.judged]:
            for key, operations in sorted(service.history.operations.items(), key=lambda item: repr(item[0])):
                try:
                    found = check(service.model, operations, self.options.max_steps)
                except NeedsContext:
                    raise TypeError(
                        f"service {service.name!r}: its commands look at self.context, which a model does not have: "
                        "give `model=...`, or declare it with judged=False"
                    ) from None
                if found.verdict is Verdict.BROKEN:
                    what = f"service {service.name!r}, key {key!r}: {found.explain()}{service.hint()}"
                    self._violated(f"linearizability: {what}")
                    self.raise_violation()
                if found.verdict is Verdict.UNDECIDED:
                    service.undecided.append(f"{service.name}:{key!r}")

    def report(self) -> Report:
        """Say what has happened so far."""
        services = self.services
        return Report(
            self.seed,
            str(self._violation or ""),
            None,
            self.trace.story(),
            self.loop.now_s,
            +self.cluster.faults,
            +self.cluster.places.passed,
            +self.observer.counts,
            sum(service.history.count for service in services),
            [key for service in services for key in service.undecided],
        )


def draw_limits(rng: Random) -> Limits:
    """Draw the settings of all nodes of a run."""
    snapshot_entries = rng.choice([0, 10, 10, 40, 200])
    return Limits(
        request_timeout_ms=rng.choice([1_500, 3_000, 10_000]),
        batch_bytes=rng.choice([4096, 1024 * 1024]),
        inflight_messages=rng.choice([1, 4, 256]),
        writes_in_flight=rng.choice([1, 4]),
        log_cache_bytes=rng.choice([0, 64 * 1024 * 1024]),
        commit_delay_ms=rng.choice([0, 5, 50]),
        snapshot_entries=snapshot_entries,
        trailing_entries=rng.choice([0, snapshot_entries // 4, snapshot_entries // 2]) if snapshot_entries else 1_000,
        snapshot_inline_bytes=rng.choice([0, 0, 300, 64 * 1024]),
        snapshot_bytes=rng.choice([8 * 1024, 64 * 1024 * 1024]),
        check_entries=rng.choice([0, 5, 50, 4_096]),
        session_expiry_ms=rng.choice([1_000, 20_000, 3_600_000]),
        session_reply_bytes=rng.choice([1_024, 1024 * 1024]),
        sessions=rng.choice([2, 10_000, 10_000, 10_000]),
        apply_slice_ms=1_000,  # of real time: never over, or one seed would not be one run
    )


Body = Callable[[Simulation], Coroutine[Any, Any, None]]


def run_simulation(seed: int, body: Body, options: Options | None = None) -> Report:
    """Run `body` on a simulated cluster of this seed, to its end; what fails is in the report, not raised.

    KeyboardInterrupt and the like are raised.
    """
    reports: list[Report] = []
    logger = logging.getLogger("multiraft")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        run_virtual(_whole(seed, body, options, reports))
    except (Exception, asyncio.CancelledError) as problem:
        if not reports:
            reports.append(Report(seed))
        reports[0].failure = reports[0].failure or describe_failure(problem)
        reports[0].error = problem if not isinstance(problem, Violation | asyncio.CancelledError) else None
    finally:
        logger.setLevel(level)
    return reports[0]


def describe_failure(problem: BaseException) -> str:
    return str(problem) if isinstance(problem, Violation) else f"{type(problem).__name__}: {problem}"


async def _whole(seed: int, body: Body, options: Options | None, reports: list[Report]) -> None:
    simulation = Simulation(seed, options)
    loop = asyncio.get_running_loop()

    def escaped(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), NodeKilled):
            return  # the end of what a killed node was doing
        simulation._violated(f"an exception escaped: {context.get('exception') or context.get('message')!r}")

    loop.set_exception_handler(escaped)
    try:
        await body(simulation)
        if not simulation._ran:
            raise RuntimeError("the test never ran the cluster: await cluster.run(step)")
        simulation.raise_violation()
        await simulation.cluster.stop()
        simulation.raise_violation()
    except asyncio.CancelledError:
        simulation.raise_violation()
        raise
    except Exception as problem:
        if not isinstance(problem, Violation):
            simulation.trace.say("!", f"{type(problem).__name__}: {problem}")
        raise
    finally:
        simulation.cluster.places.remove()
        for name in list(simulation.cluster.nodes):
            simulation.cluster.crash(name)
        reports.append(simulation.report())
