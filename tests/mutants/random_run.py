"""Change the consensus core at random, and see that the tests notice.

    python -m tests.mutants random                            200 mutants, drawn by seed 1
    python -m tests.mutants random --count 50 --seed 7        fewer, and others
    python -m tests.mutants random --only Log.truncate        all of those whose name contains this, drawn or not
    python -m tests.mutants random --list                     what would be run

Mutants come from `edits.py`. Whether one is drawn depends on its own name and the seed alone, so that a change of the
core leaves most of a draw as it was. Each is put into a copy of the checkout and meets the tests of the core; one that
they do not notice meets some of the engine and of whole nodes. What survives must be explained in
`explained_mutants.py`: otherwise, and when an explanation fits nothing any more, the run ends with 1.

Rules of this file: a mutant that hangs, or fills memory, was noticed; tests that fail without it prove nothing.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.checkout import ROOT, copy_checkout, rewrite, run_pytest
from tests.mutants.edits import Edit, edits_of
from tests.mutants.explained_mutants import EXPLAINED

CORE: Final = "multiraft/raft"
STAGES: Final[tuple[tuple[str, ...], ...]] = (
    ("tests/raft",),
    ("tests/engine", "tests/node/test_outcomes.py", "tests/node/test_failover.py", "tests/node/test_promises_kept.py"),
)
QUICK: Final = ("-x", "--tb=no", "-p", "tests.mutants.quick", "--hypothesis-profile=mutants", "--timeout=20")
STAGE_TIMEOUT_S: Final = 180
NOTICED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RandomMutant:
    """One edit of one file of the core, named from the top of the checkout."""

    file: str
    edit: Edit

    @property
    def name(self) -> str:
        return self.edit.name


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant. `caught_by` is empty when it survived."""

    mutant: RandomMutant
    seconds: float
    caught_by: str

    @property
    def word(self) -> str:
        if self.caught_by:
            return "caught"
        return "explained" if self.mutant.name in EXPLAINED else "SURVIVED"


def main(arguments: Sequence[str]) -> int:
    """Draw and judge as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants random", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many to draw")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--only", metavar="TEXT", help="instead: all whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=2, help="how many at the same time")
    parser.add_argument("--list", action="store_true", help="show their names, and run nothing")
    options = parser.parse_args(arguments)
    known = all_mutants(ROOT)
    chosen = (
        [one for one in known if options.only in one.name] if options.only else draw(known, options.count, options.seed)
    )
    if options.list:
        for one in chosen:
            print(one.name)
        return 0
    print(f"{len(chosen)} of {len(known)} possible mutants of {CORE}", flush=True)
    with tempfile.TemporaryDirectory(prefix="multiraft-mutants-") as scratch:
        copies = [copy_checkout(Path(scratch) / str(number)) for number in range(options.jobs)]
        for stage in STAGES:
            caught_by = judged_by(copies[0], stage)
            if caught_by:
                print(f"error: on the code as it is, {caught_by} fails", file=sys.stderr)
                return 1
        verdicts = report(chosen, copies)
    return summarise(verdicts, {one.name for one in known})


def all_mutants(top: Path) -> list[RandomMutant]:
    """Return every mutant of the core below `top`, in the order of the text."""
    return [
        RandomMutant(f"{CORE}/{path.name}", edit)
        for path in sorted((top / CORE).glob("*.py"))
        for edit in edits_of(path.stem, path.read_text(encoding="utf-8"))
    ]


def draw(known: Sequence[RandomMutant], count: int, seed: int) -> list[RandomMutant]:
    """Return `count` of them, in the order of the text; the luck of each is its own."""

    def luck(one: RandomMutant) -> bytes:
        return hashlib.blake2b(f"{seed} {one.name}".encode(), digest_size=16).digest()

    drawn = {one.name for one in sorted(known, key=luck)[:count]}
    return [one for one in known if one.name in drawn]


def judged_by(copy: Path, stage: Sequence[str]) -> str:
    """Run one stage in `copy`. Return the test that failed first, or how else it ended; empty when all passed."""
    code, said = run_pytest(copy, [*QUICK, *stage], STAGE_TIMEOUT_S)
    if code is None:
        return f"{stage[0]}: not finished within {STAGE_TIMEOUT_S} s"
    failed: list[str] = NOTICED.findall(said)
    if failed:
        return failed[0]
    return "" if code == 0 else f"{stage[0]}: pytest ended with {code}"


def judge(copies: SimpleQueue[Path], mutant: RandomMutant) -> Verdict:
    """Put the change into a free copy, run the stages until one notices, and put the file back."""
    copy = copies.get()
    began_s = time.monotonic()
    path = copy / mutant.file
    original = path.read_text(encoding="utf-8")
    caught_by = ""
    try:
        changed = mutant.edit.changed(original)
        ast.parse(changed)
        rewrite(path, changed)
        for stage in STAGES:
            caught_by = caught_by or judged_by(copy, stage)
    finally:
        rewrite(path, original)
        copies.put(copy)
    return Verdict(mutant, time.monotonic() - began_s, caught_by)


def report(chosen: Sequence[RandomMutant], copies: Sequence[Path]) -> list[Verdict]:
    """Judge all, printing each as it is known, in order."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)
    print(f"{'verdict':9}  {'s':>5}  mutant, and what noticed it")
    verdicts = []
    with ThreadPoolExecutor(len(copies)) as pool:
        for one in pool.map(lambda mutant: judge(free, mutant), chosen):
            verdicts.append(one)
            why = one.caught_by or EXPLAINED.get(one.mutant.name, "nothing")
            place = f"{one.mutant.file}:{one.mutant.edit.line}"
            print(f"{one.word:9}  {one.seconds:5.1f}  {one.mutant.name}\n{'':18}{place}: {why}", flush=True)
    return verdicts


def summarise(verdicts: Sequence[Verdict], known: set[str]) -> int:
    """Print what survived and what is wrong with the explanations; return the exit status."""
    survivors = [one for one in verdicts if not one.caught_by]
    print(f"\n{len(verdicts) - len(survivors)} of {len(verdicts)} caught; {len(survivors)} survivors:")
    for one in survivors:
        print(f"  {one.mutant.name}\n      {EXPLAINED.get(one.mutant.name, 'NOT EXPLAINED')}")
    problems = [f"survived, and is not explained: {one.mutant.name}" for one in survivors if one.word == "SURVIVED"]
    problems += [f"explained, but fits the code no more: {name}" for name in EXPLAINED if name not in known]
    problems += [
        f"explained, but caught by {one.caught_by}: {one.mutant.name}"
        for one in verdicts
        if one.caught_by and one.mutant.name in EXPLAINED
    ]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0
