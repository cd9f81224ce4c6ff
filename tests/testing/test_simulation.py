"""The simulator: one seed is one run, many seeds hold, what a user writes works, and what is broken is caught."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from multiraft import StateMachine, command, query
from multiraft.testing import FAULT_KINDS, Options, Report, Simulation, Summary, run_many, run_simulation, simulate
from multiraft.testing.many import JUDGED_FROM, SEEDS_PER_FAULT
from multiraft.testing.workload import registers

ROOT: Final = Path(__file__).resolve().parents[2]
SEEDS: Final = range(1, int(os.environ.get("MULTIRAFT_SIMULATED_SEEDS", "120")) + 1)


@pytest.mark.timeout(600)
def test_many_seeds_hold(capsys: pytest.CaptureFixture[str]) -> None:
    done = sim("--seeds", str(len(SEEDS)), "--jobs", "2", "--json", timeout_s=550)
    plain = json.loads(done.stdout)
    with capsys.disabled():
        said = {name: plain[name] for name in ("seeds", "virtual_hours", "seeds_per_s", "operations", "elections")}
        print(f"\nsimulated: {said}")
    assert [f"multiraft sim --seed {seed} --trace: {why}" for seed, why in plain["failed"].items()] == []
    assert plain["undecided"] == []
    assert plain["seeds"] == len(SEEDS)
    assert plain["operations"] > 50 * len(SEEDS)
    assert plain["elections"] > len(SEEDS)
    assert plain["membership_changes"] > 0


# ------------------------------------------------------------------------------------------------- one seed, one run


def traced(seed: int, folder: Path, hash_seed: str) -> bytes:
    file = folder / f"{seed}-{hash_seed}.txt"
    done = subprocess.run(
        [sys.executable, "-m", "multiraft.admin.cli", "sim", "--seed", str(seed), "--trace", str(file), "--json"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["seeds"] == 1
    return file.read_bytes()


@pytest.mark.parametrize("seed", [4, 9, 16])
def test_one_seed_is_one_run_whatever_the_hash_seed(seed: int, tmp_path: Path) -> None:
    one, other = traced(seed, tmp_path, "1"), traced(seed, tmp_path, "2")
    assert len(one.splitlines()) > 100
    assert b"frames were sent; the checksum" in one.splitlines()[-1]
    assert one == other


def test_one_seed_is_one_run_in_one_process() -> None:
    one, other = (run_simulation(5, registers, Options(details=True)) for _ in range(2))
    assert one.story == other.story
    assert one == other


def test_different_seeds_are_different_runs() -> None:
    assert run_simulation(5, registers).story != run_simulation(6, registers).story


# -------------------------------------------------------------------------------------------------- many at a time


def short(seed: int, **counts: Any) -> Report:
    return Report(seed, faults=Counter(counts))


def test_a_kind_of_fault_that_is_rare_shows_from_some_seeds_on() -> None:
    often = dict.fromkeys(FAULT_KINDS, 1)
    summary = Summary()
    for seed in range(JUDGED_FROM - 1):
        summary.add(short(seed, **often))
    assert summary.too_rare() == []
    rare = {**often, "torn_tail": 0}
    summary = Summary()
    for seed in range(JUDGED_FROM):
        summary.add(short(seed, **(rare if seed else often)))
    said = "\n".join(summary.too_rare())
    assert f"torn_tail: 1 times in {JUDGED_FROM} seeds, at least {JUDGED_FROM // SEEDS_PER_FAULT} are wanted" in said
    assert "failpoint apply.before, passed: 0 times" in said
    assert "loss: " not in said
    assert not summary.ok


def test_failures_and_undecided_histories_are_no_success() -> None:
    good, failed, undecided = Summary(), Summary(), Summary()
    good.add(Report(1))
    failed.add(Report(1, failure="it broke"))
    undecided.add(Report(1, undecided=["registers:k0"]))
    assert (good.ok, failed.ok, undecided.ok) == (True, False, False)
    assert failed.to_plain()["failed"] == {"1": "it broke"}
    assert undecided.to_plain()["undecided"] == ["seed 1: registers:k0"]


def sim(*arguments: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multiraft.admin.cli", "sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


def test_the_command_runs_many_seeds_in_processes() -> None:
    done = sim("--seeds", "4", "--first-seed", "3", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    assert (plain["seeds"], plain["ok"], plain["failed"]) == (4, True, {})
    expected = run_many(registers, range(3, 7), 1).to_plain()
    for name in ("operations", "faults", "elections", "virtual_hours", "failpoints_passed"):
        assert plain[name] == expected[name], name


def test_the_command_refuses_what_makes_no_sense() -> None:
    assert sim("--faults", "flood").returncode == 2
    assert "there are " in sim("--faults", "flood").stderr
    assert sim("--trace").returncode == 2


def living(group: int) -> list[str]:
    """Return the processes of a process group that have not ended; one that only waits to be reaped has."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(")")
        except OSError:
            continue  # it ended while we looked
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state != "Z":
            found.append(name)
    return found


def test_an_interrupt_ends_all_processes() -> None:
    command = [sys.executable, "-m", "multiraft.admin.cli", "sim", "--seeds", "100000", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        while len(living(process.pid)) < 4:  # itself, two workers, and the tracker of their resources
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 130, out + error
        assert b"Traceback" not in error
        while living(process.pid):  # the tracker ends when it notices that nobody is left
            pass
    finally:
        if living(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------- what users write


class Counters(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str, amount: int) -> int:
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @query(key="name")
    def get(self, name: str) -> int:
        return self.values.get(name, 0)


@simulate(seeds=5)
async def test_the_fixture(cluster: Simulation, tmp_path: Path) -> None:
    """Beside another fixture, and by the machine's own class as the model."""
    assert tmp_path.exists()
    counters = cluster.service("counters", Counters)
    counted = 0

    async def step(rng: Random) -> None:
        nonlocal counted
        name = rng.choice("ab")
        counted += await (counters.add(name, 1) if rng.random() < 0.5 else counters.get(name)) >= 0

    await cluster.run(step, clients=3)
    assert counted > 0


def test_simulate_wants_a_test_that_takes_the_cluster() -> None:
    with pytest.raises(TypeError, match="parameter `cluster`"):

        @simulate(seeds=1)
        async def no_cluster() -> None: ...


def documented() -> str:
    """Return the program of docs/testing.md."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    (program,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    return program


def pytest_on(program: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder / "test_stock.py"
    file.write_text(program, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file.name],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_documented_program_runs(tmp_path: Path) -> None:
    done = pytest_on(documented(), tmp_path, "--simulate-seeds=8")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("self.count.get(item, 0) + random.randrange(9)", "returned"),
        ("self.count.get(item, 0) + next(CALLS)", "returned"),  # what all objects of a process share
        ("self.count.get(item, 0) + amount; self.last = time.monotonic_ns()", "left another state"),
    ],
)
def test_a_command_that_is_not_deterministic_is_named(broken: str, said: str, tmp_path: Path) -> None:
    program = documented().replace("self.count.get(item, 0) + amount", broken)
    assert program != documented()
    program = "import itertools\nimport random\nimport time\n\nCALLS = itertools.count()\n" + program
    done = pytest_on(program, tmp_path, "--simulate-seeds=30")
    assert done.returncode == 1, done.stdout
    line = next(line for line in done.stdout.splitlines() if "non-deterministic apply: group 1" in line)
    assert "index " in line
    assert "command add('" in line
    assert said in line
    seed = line.split("seed ")[1].split(":")[0]
    assert f"run it again:  pytest 'test_stock.py::test_stock_survives' --simulate-seed={seed}" in done.stdout
    again = pytest_on(program, tmp_path, f"--simulate-seed={seed}")
    assert "non-deterministic apply" in again.stdout


def test_a_query_that_lies_is_not_linearizable(tmp_path: Path) -> None:
    """Only the replica's machine lies; the model is told the truth by another class."""
    lying = documented().replace("return self.count.get(item, 0)\n", "return self.count.get(item, 0) // 20 * 20\n")
    program = "\n".join(
        [
            lying,
            "class Truth:",
            "    def init(self): return 0",
            "    def step(self, state, call):",
            "        after = state + call.arguments[1] if call.method == 'add' else state",
            "        return after, after",
        ]
    ).replace('cluster.service("stock", Stock)', 'cluster.service("stock", Stock, model=Truth())')
    done = pytest_on(program, tmp_path, "--simulate-seeds=10")
    assert done.returncode == 1, done.stdout
    assert "linearizability: service 'stock', key b'" in done.stdout
    assert "none of these can come next" in done.stdout
