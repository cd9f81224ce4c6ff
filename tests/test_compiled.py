"""Which build runs: the one that was asked for, whole, and neither by mistake.

MULTIRAFT_TEST_BUILD says which one is to be tested; `make test-compiled` sets it. Without it, that is the pure one.

Rules of this file: the same tests hold on both builds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

import multiraft
from multiraft.compiled import COMPILED, field_names
from multiraft.messages import AppendAnswer, LeadAsk

ROOT: Final = Path(__file__).resolve().parent.parent
MACHINE_CODE: Final = (".so", ".pyd")


def settings() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["tool"]["multiraft"]
    return found


def modules_to_compile() -> list[str]:
    """Return the names of the modules that the compiled build has as machine code, by what pyproject.toml says."""
    found = set()
    for name in settings()["compiled"]:
        folder = ROOT / name.removeprefix("multiraft.").replace(".", "/")
        folder = folder if folder.is_dir() else ROOT / name.replace(".", "/")
        found |= {f"{name}.{file.stem}" for file in folder.glob("*.py")} if folder.is_dir() else {name}
    return sorted(name for name in found - set(settings()["interpreted"]) if not name.endswith(".__init__"))


def test_the_build_is_the_one_that_was_asked_for() -> None:
    assert os.environ.get("MULTIRAFT_TEST_BUILD", "pure") == ("compiled" if COMPILED else "pure")
    assert multiraft.COMPILED is COMPILED


def test_it_is_whole() -> None:
    modules = modules_to_compile()
    assert {"multiraft.raft.raft", "multiraft.engine.engine", "multiraft.records"} < set(modules)
    compiled = [name for name in modules if str(import_module(name).__file__).endswith(MACHINE_CODE)]
    assert compiled == (modules if COMPILED else [])


def test_what_is_named_as_interpreted_is_there() -> None:
    for name in settings()["interpreted"]:
        assert not str(import_module(name).__file__).endswith(MACHINE_CODE)


def test_processes_started_from_here_run_the_same_build() -> None:
    code = "import multiraft; print(multiraft.COMPILED, multiraft.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(COMPILED), str(multiraft.__file__)]


def test_a_class_has_the_same_fields_on_both_builds() -> None:
    expected = ("accepted", "group_id", "hint_index", "hint_term", "index", "sender", "term", "to")
    assert field_names(AppendAnswer) == expected
    assert field_names(LeadAsk) == ()


@pytest.mark.parametrize("name", ["UNKNOWN", "compiled_"])
def test_unknown_names_of_the_package_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(multiraft, name)
