"""Take the rules out of the code one by one, and see that a named test fails each time.

    python -m tests.mutants               all of them
    python -m tests.mutants L07 sync      those whose name contains one of these
    python -m tests.mutants --list        what there is
    python -m tests.mutants random ...    random changes of the core instead: see random_run.py

The checkout is copied; nothing in it is changed. First all named tests must pass as the code is. Then each mutant is
put into a copy, its tests are run, and the file is put back. Ends with 1 when a mutant survives, when its change does
not fit the code any more, or when it breaks so much that its tests prove nothing.

Rules of this file: a test that does not run is no test that fails; no bytecode is taken for that of another source,
and none is left behind.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.checkout import copy_checkout, rewrite, run_pytest
from tests.mutants.mutant import Mutant
from tests.mutants.mutants import MUTANTS
from tests.mutants.random_run import main as run_random

WORKS: Final = "tests/node/test_outcomes.py::test_a_command_returns_its_result_from_every_node"
"""Three nodes form a cluster, elect, write and read; nothing goes wrong meanwhile."""
TEST_TIMEOUT_S: Final = 60
RUN_TIMEOUT_S: Final = 180
SUMMARY: Final = re.compile(r"^(FAILED|ERROR) (\S+::\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant: the tests that noticed it, or what is wrong with it."""

    mutant: Mutant
    seconds: float
    problem: str | None


def main(arguments: Sequence[str]) -> int:
    """Run the mutants that the arguments name; return the exit status."""
    if arguments and arguments[0] == "random":
        return run_random(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="run only those whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many at the same time")
    parser.add_argument("--list", action="store_true", help="show what there is, and run nothing")
    options = parser.parse_args(arguments)
    chosen = [one for one in MUTANTS if not options.names or any(name in one.name for name in options.names)]
    if options.list:
        for one in chosen:
            print(f"{one.name:34} {one.rule}")
        return 0
    if not chosen:
        print("error: no mutant has such a name; see --list", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="multiraft-mutants-") as scratch:
        copies = [copy_checkout(Path(scratch) / str(number)) for number in range(options.jobs)]
        problems = [f"{one.name}: {problem}" for one in chosen if (problem := misfit(copies[0], one)) is not None]
        sound = [one for one in chosen if misfit(copies[0], one) is None]
        failing, output = unpatched_failures(copies, sound)
        problems += [f"fails on the code as it is: {test}" for test in sorted(failing)]
        if output:
            print(f"error: the tests cannot be run on the code as it is:\n{output}", file=sys.stderr)
            return 1
        sound = [one for one in sound if WORKS not in failing and not failing & {bare(test) for test in one.tests}]
        bad = report(sound, copies)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(sound) - bad} of {len(chosen)} caught by every test named for them")
    return 1 if bad or len(sound) < len(chosen) else 0


def misfit(copy: Path, mutant: Mutant) -> str | None:
    """Return what keeps the change from being made; None when it fits."""
    try:
        text = (copy / mutant.file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"there is no {mutant.file}"
    problem = mutant.fits(text)
    if problem is not None:
        return problem
    try:
        ast.parse(mutant.changed(text))
    except SyntaxError as error:
        return f"its new text does not compile: {error}"
    for test in mutant.tests:
        path, function = copy / test.split("::")[0], bare(test).rpartition("::")[2]
        if not path.is_file() or f"def {function}(" not in path.read_text(encoding="utf-8"):
            return f"there is no test {test}"
    return None


def bare(test: str) -> str:
    """Return a node id without its brackets."""
    return test.partition("[")[0]


def unpatched_failures(copies: Sequence[Path], chosen: Iterable[Mutant]) -> tuple[set[str], str]:
    """Run every named test on the code as it is. Return what fails there; and what was said if they could not run."""
    tests = sorted({WORKS, *(test for one in chosen for test in one.tests)})
    shares = [tests[number :: len(copies)] for number in range(len(copies))]
    began_s = time.monotonic()
    with ThreadPoolExecutor(len(copies)) as pool:
        runs = list(pool.map(run_tests, copies, shares))
    failing = {test for failed, _ in runs for test in failed}
    took_s = time.monotonic() - began_s
    print(
        f"on the code as it is, {len(tests) - len(failing)} of {len(tests)} named tests pass ({took_s:.0f} s)",
        flush=True,
    )
    return failing, "\n".join(output for _, output in runs if output)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[set[str], str]:
    """Run `tests` in `copy`. Return those that failed, without brackets, and what was said if they could not be run."""
    if not tests:
        return set(), ""
    code, said = run_pytest(copy, ["--tb=no", f"--timeout={TEST_TIMEOUT_S}", *tests], RUN_TIMEOUT_S)
    if code is None:
        return set(), f"not finished within {RUN_TIMEOUT_S} s"
    found = SUMMARY.findall(said)
    if code not in (0, 1) or any(word == "ERROR" for word, _ in found) or (code == 1 and not found):
        return set(), said[-2_000:] or f"pytest ended with {code} and said nothing"
    return {test for _, test in found}, ""


def judge(copies: SimpleQueue[Path], mutant: Mutant) -> Outcome:
    """Put the change into a free copy, run its tests, and put the file back."""
    copy = copies.get()
    began_s = time.monotonic()
    path = copy / mutant.file
    original = path.read_text(encoding="utf-8")
    try:
        rewrite(path, mutant.changed(original))
        failed, output = run_tests(copy, [*mutant.tests, *([WORKS] if mutant.works else [])])
    finally:
        rewrite(path, original)
        copies.put(copy)
    problem = None
    passed = [test for test in mutant.tests if bare(test) not in failed]
    if output:
        problem = f"its tests could not be run:\n{output}"
    elif passed:
        problem = f"SURVIVED {', '.join(passed)}"
    elif mutant.works and WORKS not in mutant.tests and WORKS in failed:
        problem = "breaks more than its rule: not even a cluster without faults serves its callers"
    return Outcome(mutant, time.monotonic() - began_s, problem)


def report(chosen: Sequence[Mutant], copies: Sequence[Path]) -> int:
    """Judge all, print the table, and return how many were not caught."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)
    names = max((len(one.name) for one in chosen), default=0)
    rules = max((len(one.rule) for one in chosen), default=0)
    print(f"{'mutant':{names}}  {'rule that it breaks':{rules}}  {'s':>5}  caught by")
    bad = 0
    with ThreadPoolExecutor(len(copies)) as pool:
        for outcome in pool.map(lambda one: judge(free, one), chosen):
            one = outcome.mutant
            bad += outcome.problem is not None
            caught = outcome.problem or ", ".join(test.rpartition("::")[2] for test in one.tests)
            print(f"{one.name:{names}}  {one.rule:{rules}}  {outcome.seconds:5.1f}  {caught}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
