"""What a user's type checker sees: the design's example passes mypy --strict and pyright, and mistakes are found.

The program below is checked, not run. Each line that carries a `# reveals:` comment must reveal that type, and each
that carries `# wrong` must be reported; no other line may be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
CHECK_S: Final = 100

PROGRAM: Final = """
from dataclasses import dataclass

from multiraft.node import Node
from multiraft.statemachine import StateMachine, command, query


@dataclass(frozen=True)
class Item:
    price: float
    tags: list[str]


class Counters(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str, amount: int = 1) -> int:
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @query(key="name")
    def get(self, name: str) -> int:
        return self.values.get(name, 0)

    @query(key="name")
    def item(self, name: str, *, deep: bool = False) -> Item | None:
        return None

    @query(key=None)
    def total(self) -> int:
        return sum(self.values.values())

    def twice(self) -> int:
        return self.add("x") + self.add("x", self.context.index)


assert Counters().add("x") == 1


async def main(node: Node) -> None:
    counters = node.service("counters", Counters, initial_shards=16, replicas=3)
    reveal_type(counters)  # reveals: type[Counters]
    reveal_type(Counters().add("x"))  # reveals: int
    reveal_type(await counters.add("hits"))  # reveals: int
    reveal_type(await counters.add("hits", amount=2))  # reveals: int
    reveal_type(await counters.get.with_options(stale_ms=500)("hits"))  # reveals: int
    reveal_type(await counters.get.with_options(stale_ms=500).aged("hits"))  # reveals: tuple[int, float]
    reveal_type(await counters.add.with_options(timeout_ms=500)("hits"))  # reveals: int
    reveal_type(await counters.item("hits", deep=True))  # reveals: Item | None
    reveal_type(await counters.total())  # reveals: int
    reveal_type(sum([n async for _, n in counters.total.on_each_shard()]))  # reveals: int
    reveal_type([shard async for shard, _ in counters.total.on_each_shard()])  # reveals: list[int]
    await counters.add(3)  # wrong
    await counters.add("hits", "2")  # wrong
    await counters.add("hits", amonut=2)  # wrong
    await counters.get()  # wrong
    counters.add("hits") + 1  # wrong
    Counters().add(3)  # wrong
    await counters.missing("hits")  # wrong
    counters.get.on_each_shard("hits")  # wrong
    counters.add.with_options(stale_ms=500)  # wrong


@command(key="name")  # wrong
class NoMethod:
    pass


class Bad(StateMachine):
    @query(key=5)  # wrong
    def get(self, name: str) -> int:
        return 1
"""

REVEALS: Final = {
    number: line.partition("# reveals: ")[2]
    for number, line in enumerate(PROGRAM.splitlines(), start=1)
    if "# reveals: " in line
}
WRONG: Final = {number for number, line in enumerate(PROGRAM.splitlines(), start=1) if line.endswith("# wrong")}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def run(arguments: list[str]) -> str:
    """Run a checker and return what it printed; how it exits is judged by that."""
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # no word about newer versions of itself
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CHECK_S, check=False
    )
    assert done.stdout, done.stderr
    return done.stdout


def judge(revealed: dict[int, str], wrong: set[int]) -> None:
    assert revealed == REVEALS
    assert wrong == WRONG


def test_the_program_has_lines_of_both_kinds() -> None:
    assert len(REVEALS) == 11
    assert len(WRONG) == 11


def test_mypy_sees_the_remote_calls(program: Path) -> None:
    options = ["--strict", "--no-error-summary", "--config-file=", "--follow-imports=silent"]
    printed = run([sys.executable, "-m", "mypy", *options, f"--cache-dir={program.parent}/cache", str(program)])
    revealed, wrong = {}, set()
    for line in printed.splitlines():
        found = re.match(r"(?P<path>.*):(?P<line>\d+): (?P<kind>note|error): (?P<text>.*)", line)
        assert found, line
        assert Path(found["path"]).name == program.name, line
        number = int(found["line"])
        if found["kind"] == "error":
            wrong.add(number)
        elif found["text"].startswith("Revealed type is "):
            revealed[number] = found["text"].removeprefix("Revealed type is ").strip('"').replace("program.", "")
    judge({number: text.replace("builtins.", "") for number, text in revealed.items()}, wrong)


def test_pyright_sees_the_remote_calls(program: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("pyright needs node, which is not installed here")
    configuration = {
        "include": [program.name],
        "typeCheckingMode": "strict",
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "reportUnusedExpression": "none",
        "reportUnknownMemberType": "none",
    }
    (program.parent / "pyrightconfig.json").write_text(json.dumps(configuration), encoding="utf-8")
    options = ["--pythonpath", sys.executable, "--outputjson", "-p", str(program.parent)]
    printed = run([sys.executable, "-m", "pyright", *options])
    revealed, wrong = {}, set()
    for each in json.loads(printed)["generalDiagnostics"]:
        assert Path(each["file"]).name == program.name, each
        number = each["range"]["start"]["line"] + 1
        if each["severity"] == "error":
            wrong.add(number)
        elif each["message"].startswith("Type of "):
            revealed[number] = each["message"].rpartition(' is "')[2].rstrip('"')
    judge(revealed, wrong)
