"""A copy of the checkout for mutants to live in, and pytest run there.

Rules of this file: the checkout itself is never written to; no bytecode is taken for that of another source, and none
is left behind.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_SECONDS: Final = itertools.count(1_000_000_000)


def copy_checkout(target: Path) -> Path:
    """Copy what the tests need, links as links."""
    shutil.copytree(
        ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    )
    return target


def rewrite(path: Path, text: str) -> None:
    """Write a version of a file that was never there before.

    Bytecode is told from that of another version by the file's size and the second of its writing alone: so each
    version gets a second of its own.
    """
    path.write_text(text, encoding="utf-8")
    second = next(_SECONDS)
    os.utime(path, (second, second))


def run_pytest(copy: Path, arguments: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Run pytest in `copy`. Return its exit status and what it printed; None if it was not finished in time."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(copy.parent / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=copy,
            env=environment,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return run.returncode, run.stdout
