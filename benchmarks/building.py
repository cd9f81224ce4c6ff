"""The peers' programs: built when they are to be measured, and named as missing, with the reason, when they cannot be.

Rules of this file: nothing is installed and nothing is downloaded, except the Go modules that a program's go.sum names;
what is built goes to benchmarks/results, which is not kept in the repository.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PEERS: Final = Path(__file__).resolve().parent / "peers"
RESULTS: Final = Path(__file__).resolve().parent / "results"
_BUILD_TIMEOUT_S: Final = 600
_GO_PLACES: Final = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")


class Missing(Exception):
    """This system cannot be measured here; the text says what is missing."""


def find_go() -> str:
    """Return the path of the Go tool, from GO, PATH, or the usual places. Raises Missing."""
    for place in (os.environ.get("GO", ""), "go", *_GO_PLACES):
        if place and (found := shutil.which(place)):
            return found
    raise Missing("Go is not installed (no `go` on PATH; or set GO=/path/to/go)")


@cache
def go_program(name: str) -> str:
    """Build benchmarks/peers/`name` and return the program's path.

    Raises Missing when Go is not there, or a module cannot be had.
    """
    target = RESULTS / "bin" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [find_go(), "build", "-o", str(target), "."],
            cwd=PEERS / name,
            env={**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false"},
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"`go build` of {name} took more than {_BUILD_TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Missing(f"`go build` of {name} failed: {lines[-1] if lines else 'it did not say why'}")
    return str(target)


def compiled_worker() -> list[str]:
    """Return the command that runs benchmarks/worker.py on the compiled build. Raises Missing as `compiled` does."""
    return compiled("benchmarks.worker")


def compiled(module: str) -> list[str]:
    """Return the command that runs a module of ours on the compiled build.

    The checkout comes last on that interpreter's path: its pure modules must not be found before the installed ones.
    Raises Missing when the build is not there, is older than the sources, or is not compiled after all.
    """
    python = ROOT / ".venv-compiled" / "bin" / "python"
    way = "make .venv-compiled/.built"
    if not python.exists():
        raise Missing(f"the compiled build is not there ({way})")
    if subprocess.run(["make", "-q", ".venv-compiled/.built"], cwd=ROOT, capture_output=True).returncode:
        raise Missing(f"the compiled build is older than the sources ({way})")
    check = "import sys, multiraft.compiled; sys.exit(not multiraft.compiled.COMPILED)"
    if subprocess.run([python, "-P", "-c", check], cwd=ROOT, capture_output=True).returncode:
        raise Missing(f"what is installed in .venv-compiled is not compiled ({way})")
    run = f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [str(python), "-P", "-c", run]


def installed_program(name: str, package: str) -> str:
    """Return the path of a program of the system. Raises Missing, naming Debian's package."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed (Debian: apt-get install {package})")
    return found


def python_module(name: str, distribution: str) -> str:
    """Return `name` when that module can be imported. Raises Missing, naming what to install."""
    if importlib.util.find_spec(name) is None:
        raise Missing(f"{distribution} is not installed (pip install {distribution}, or multiraft's extra `bench`)")
    return name
