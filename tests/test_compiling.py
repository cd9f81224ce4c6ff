"""What an installation that asks for the compiled build says where it cannot have one.

Rules of this file: no network, and nothing is compiled; setup.py runs on a copy, so that the checkout stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
SETUP: Final = (
    "import runpy, sys; sys.argv = ['setup.py', 'build_ext']; runpy.run_path('setup.py', run_name='__main__')"
)
WITHOUT_MYPYC: Final = "import sys; sys.modules['mypyc'] = None; "
EDITABLE: Final = "import sys; sys.path.insert(0, 'building'); import backend; backend.build_editable('wheels')"
REQUIREMENTS: Final = (
    "import sys; sys.path.insert(0, 'building'); import backend; print(backend.get_requires_for_build_wheel())"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of everything that a build needs."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("building", "multiraft", "shard", "storage", "transport"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(source: Path, code: str, **environment: str) -> tuple[int, str]:
    """Run Python code in a copy of the source; return its exit code, and the last lines of what it says."""
    whole = {**{name: value for name, value in os.environ.items() if name != "CC"}, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=whole, capture_output=True, text=True, timeout=100
    )
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-6:])


@pytest.mark.parametrize(
    ("code", "compiler", "expected"),
    [
        (SETUP, "no-such-compiler", "needs a C compiler, and there is no 'no-such-compiler' here"),
        (WITHOUT_MYPYC + SETUP, "cc", "needs mypy, with mypyc"),
    ],
)
def test_what_is_missing_is_said_with_the_way_out(source: Path, code: str, compiler: str, expected: str) -> None:
    status, said = run(source, code, MULTIRAFT_COMPILE="1", CC=compiler)
    assert status == 1
    assert f"error: MULTIRAFT_COMPILE=1 {expected}" in said
    assert "Without MULTIRAFT_COMPILE the same program is installed as pure Python" in said


def test_a_compiler_that_fails_is_named(source: Path) -> None:
    assert shutil.which("false")
    (source / "building" / "mypyc").mkdir()
    (source / "building" / "mypyc" / "__init__.py").write_text("")
    (source / "building" / "mypyc" / "build.py").write_text(
        "from setuptools import Extension\n"
        "def mypycify(*_, **__):\n    return [Extension('multiraft.one', ['one.c'], extra_compile_args=[])]\n"
    )
    (source / "one.c").write_text("")
    status, said = run(source, SETUP, MULTIRAFT_COMPILE="1", CC="false")
    assert status == 1
    assert "error: MULTIRAFT_COMPILE=1: the C compiler failed" in said
    assert "Without MULTIRAFT_COMPILE" in said


def test_an_editable_installation_is_refused_and_another_one_asks_for_mypy(source: Path) -> None:
    status, said = run(source, EDITABLE, MULTIRAFT_COMPILE="1")
    assert status == 1
    assert "MULTIRAFT_COMPILE=1 does not go with an editable install" in said
    assert "mypy" in run(source, REQUIREMENTS, MULTIRAFT_COMPILE="1")[1]


@pytest.mark.parametrize("value", ["", "0"])
def test_without_being_asked_for_nothing_is_compiled(source: Path, value: str) -> None:
    status, said = run(source, SETUP, MULTIRAFT_COMPILE=value, CC="no-such-compiler")
    assert status == 0, said
    assert "mypy" not in run(source, REQUIREMENTS, MULTIRAFT_COMPILE=value)[1]
    assert not list(source.rglob("*.so"))
