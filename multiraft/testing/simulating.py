"""`@simulate`: a test that runs on a simulated cluster, once for each of many seeds.

    @simulate(seeds=200)
    async def test_counters(cluster: Simulation) -> None:
        counters = cluster.service("counters", Counters)

        async def step(rng: Random) -> None:
            await counters.add(rng.choice("abc"), 1)

        await cluster.run(step)

To pytest it is an ordinary test function; other fixtures and marks work as usual. A failure prints the seed, what did
not hold, the end of the timeline, and the one command that runs that seed again.

Rules of this file: seeds run in order, in this process; the first that fails ends the test.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from multiraft.testing.simulation import Options, Report, Simulation, run_simulation

Test = Callable[..., Coroutine[Any, Any, None]]
DEFAULT_SEEDS: Final = 50
_STORY_LINES: Final = 40


class SimulationFailed(AssertionError):
    """A seed failed. The text says which, what did not hold, what happened before, and how to run it again."""


def simulate(
    *,
    seeds: int = DEFAULT_SEEDS,
    first_seed: int = 1,
    nodes: int | None = None,
    faults: Sequence[str] | None = None,
) -> Callable[[Test], Callable[..., None]]:
    """Run an async test that takes `cluster`, a Simulation, once with each seed.

    seeds       how many
    first_seed  the first of them
    nodes       how many there are; None: each seed draws 1 to 7
    faults      the kinds of faults (multiraft.testing.FAULTS); None: each seed draws some of all

    Raises TypeError where the test is not an `async def` with a parameter `cluster`.
    """

    def decorate(test: Test) -> Callable[..., None]:
        signature = inspect.signature(test)
        if not inspect.iscoroutinefunction(test) or "cluster" not in signature.parameters:
            raise TypeError(f"@simulate goes on an `async def` test with a parameter `cluster`; got {test!r:.80}")

        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            request = kwargs["request"] if asks else kwargs.pop("request", None)
            option = request.config.getoption if request is not None else _no_option
            name = request.node.nodeid if request is not None else test.__qualname__
            chosen = option("--simulate-seed", None)
            trace = option("--simulate-trace", None)
            count = option("--simulate-seeds", None) or seeds

            def body(cluster: Simulation) -> Coroutine[Any, Any, None]:
                return test(*args, **kwargs, cluster=cluster)

            options = Options(nodes, faults, details=trace is not None)
            for seed in range(first_seed, first_seed + count) if chosen is None else [chosen]:
                report = run_simulation(seed, body, options)
                if trace is not None:
                    Path(trace).write_text("\n".join(report.story) + "\n", encoding="utf-8")
                if report.failure or report.undecided:
                    raise SimulationFailed(explain(report, name)) from report.error

        asks = "request" in signature.parameters
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "cluster"]
        if not asks:
            parameters.append(inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        return run

    return decorate


def _no_option(name: str, default: None) -> None:
    return default


def explain(report: Report, name: str) -> str:
    """Return what a failed seed says to whoever wrote the test.

    name  of the test, as pytest takes it
    """
    what = report.failure or (
        f"undecided: {', '.join(report.undecided)}: the checker's steps did not suffice; let clients do less, let them "
        "use more keys, or give a `model` with fewer states"
    )
    lines = [f"seed {report.seed}: {what}", "", "the end of its timeline (virtual seconds, node, what):"]
    lines += report.story[-_STORY_LINES:]
    lines += ["", f"run it again:  pytest '{name}' --simulate-seed={report.seed}"]
    return "\n".join(lines)
