"""The rules of the code that no linter knows, and the promises that the files of the checkout make to each other.

Every limit here is a ratchet: a file or function that stands in an exception below may shrink, and then its figure
must; nothing may be added. A rule that is in the way is argued about, not raised.

Rules of this file: reads the sources as text and syntax; imports and runs none of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
FRAMEWORK: Final = ("multiraft", "shard", "storage", "transport")
PRODUCT: Final = (*FRAMEWORK, "examples", "benchmarks")
ALL: Final = (*PRODUCT, "tests")

FILE_LINES: Final = 500
FUNCTION_LINES: Final = 70
LONGER_FILES: Final[dict[str, int]] = {}
"""Files longer than the limit, and how long each may be: its present length, never more."""
LONGER_FUNCTIONS: Final[dict[str, int]] = {}
"""The same for functions, as "path:name"."""

NOT_IN_THE_CORE: Final = {"aiohttp", "asyncio", "os", "plyvel", "random", "socket", "threading", "time"}
UNFINISHED: Final = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def offences(tops: tuple[str, ...], find: Callable[[ast.Module], Iterator[tuple[int, str]]]) -> list[str]:
    """Return "path:line: what" for everything that `find` yields in the files below `tops`."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources(*tops)
        for line, what in find(ast.parse(path.read_text(encoding="utf-8")))
    ]


def refuse(found: list[str]) -> None:
    if found:
        pytest.fail("\n".join(found), pytrace=False)


# -------------------------------------------------------------------------------------------- what a file may hold


def undocumented(tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(tree):
        yield 1, "does not open with a docstring"


def asserting(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert is stripped by python -O: use invariant()"


def swallowing(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A handler that catches everything, or suppresses every Exception without a word."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(each, ast.Pass) or is_ellipsis(each) for each in node.body)
            if node.type is None or (silent and is_catch_all(node.type)):
                yield node.lineno, "swallows every exception"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress"):
            yield from ((node.lineno, "suppresses everything") for argument in node.args if is_catch_all(argument))


def is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def is_catch_all(node: ast.expr) -> bool:
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)


def impure(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports that the core must not make; those for type checkers alone do not count."""
    for node in importing(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] in NOT_IN_THE_CORE:
                yield node.lineno, f"the core imports {name}"


def relative(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import: the folder's own name is not the one it is imported under"


def sleeping(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Waiting for real time to pass; asyncio's sleep is not judged, for many tests run on a virtual clock.

    A loop that sleeps is taken for one that waits for a condition.
    """
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.While | ast.For)]
    polling = {id(inner) for loop in loops for inner in ast.walk(loop)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep" and id(node) not in polling:
            yield node.lineno, "sleeps instead of waiting for what it needs"


def importing(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import that runs, at any depth."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from importing(ast.Module([other], []))
        else:
            yield from importing(child)


def test_every_file_opens_with_a_docstring() -> None:
    refuse(offences(ALL, undocumented))


def test_no_assert_outside_tests() -> None:
    refuse(offences(PRODUCT, asserting))


def test_no_exception_is_swallowed() -> None:
    refuse(offences(PRODUCT, swallowing))


def test_tests_wait_for_events() -> None:
    refuse(offences(("tests",), sleeping))


def test_imports_are_absolute() -> None:
    refuse(offences(ALL, relative))


def test_the_core_stays_pure() -> None:
    assert sources("multiraft/raft")
    refuse(offences(("multiraft/raft",), impure))


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources(*ALL)
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    refuse(found)


BROKEN: Final = """
import os.path
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import random
else:
    from time import monotonic
from . import other
def late():
    import asyncio
try:
    assert late
except:
    raise
try:
    late()
except (ValueError, Exception):
    pass
with contextlib.suppress(BaseException):
    late()
time.sleep(0.1)
while not late():
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("find", "lines"),
    [
        (undocumented, [1]),
        (asserting, [12]),
        (swallowing, [13, 17, 19]),
        (impure, [2, 7, 10]),
        (relative, [8]),
        (sleeping, [21]),
    ],
)
def test_the_rules_find_what_they_are_for(
    find: Callable[[ast.Module], Iterator[tuple[int, str]]], lines: list[int]
) -> None:
    assert sorted(line for line, _ in find(ast.parse(BROKEN))) == lines


# --------------------------------------------------------------------------------------------------------- lengths


def file_lengths() -> dict[str, int]:
    return {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*ALL)}


def function_lengths() -> dict[str, int]:
    """Return the length of every function, from its `def`, by "path:name"; of equal names, the longest."""
    found: dict[str, int] = {}
    for path in sources(*ALL):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT)}:{node.name}"
                found[name] = max(found.get(name, 0), (node.end_lineno or node.lineno) - node.lineno + 1)
    return found


@pytest.mark.parametrize(
    ("lengths", "limit", "longer"),
    [
        pytest.param(file_lengths, FILE_LINES, LONGER_FILES, id="files"),
        pytest.param(function_lengths, FUNCTION_LINES, LONGER_FUNCTIONS, id="functions"),
    ],
)
def test_lengths_only_shrink(lengths: Callable[[], dict[str, int]], limit: int, longer: dict[str, int]) -> None:
    found = lengths()
    assert found
    too_long = {name: length for name, length in found.items() if length > limit}
    refuse([f"{name}: {length} lines" for name, length in too_long.items() if length > longer.get(name, limit)])
    refuse([f"{name}: lower its exception" for name in longer if too_long.get(name) != longer[name]])


# ------------------------------------------------------------------------------ what the files promise each other


def commands_in(path: Path) -> list[str]:
    """Return the lines of a Markdown file's code blocks, fenced or indented, without the remarks after them."""
    fenced, found = False, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found.append(line.split(" #")[0].strip().removeprefix("$ "))
    return found


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def ci_commands() -> list[str]:
    """Return the commands of the script that CI runs, after it has gone to the top of the checkout."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    commands = [line for line in lines[1:] if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert commands[1].startswith("cd ")
    return commands[2:]


def test_ci_checks_and_then_runs_the_test_command_of_the_readme() -> None:
    needs_redis, first, compiled, last = ci_commands()[-4:]
    assert (needs_redis, first, last) == ("export MULTIRAFT_TESTS_NEED_REDIS=1", "make check", "make test")
    assert compiled.split()[1] == "test-compiled"
    assert "make test" in commands_in(ROOT / "README.md")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_targets_that_exist(document: str) -> None:
    named = {line.split()[1] for line in commands_in(ROOT / document) if line.startswith("make ")}
    assert named
    assert named <= make_targets()


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    described = set(re.findall(r"@echo \"make ([a-z-]+) ", text))
    assert described == make_targets() - {"help"}
