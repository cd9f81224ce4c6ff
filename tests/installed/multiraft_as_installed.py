"""Put into the site-packages of .venv-compiled: there `import multiraft` means what was installed, never the checkout.

Tests, examples and benchmarks run from the checkout, where Python would find the source first. With this finder, in
this process and in every one that it starts with the same Python, they meet the compiled build.

Rules of this file: it knows one name, and where it lies itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

_HERE: Final = [str(Path(__file__).resolve().parent)]


class AsInstalled:
    """Finds `multiraft` beside this file."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, _HERE, target) if name == "multiraft" else None


sys.meta_path.insert(0, AsInstalled)
