"""Whether the compiled build runs, and what differs in it.

`MULTIRAFT_COMPILE=1 pip install .` compiles the modules that pyproject.toml names under `[tool.multiraft]`, this one
among them, by mypyc, from the same source. Nothing else of a program depends on which build runs.

Rules of this file: standard library only.
"""

from __future__ import annotations

from typing import Any, Final

COMPILED: Final = not __file__.endswith(".py")
"""Whether the modules of the hot path were loaded as machine code."""


def field_names(kind: type) -> tuple[str, ...]:
    """Return the names in `__slots__` of a class and its bases, ascending. A compiled class has them elsewhere."""
    found: set[str] = set()
    for base in kind.__mro__:
        declared: Any = base.__dict__.get("__mypyc_attrs__", base.__dict__.get("__slots__", ()))
        found.update((declared,) if isinstance(declared, str) else declared)
    return tuple(sorted(found))
