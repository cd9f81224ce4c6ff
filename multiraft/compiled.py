"""Whether the compiled build runs, and what differs in it.

`MULTIRAFT_COMPILE=1 pip install .` compiles the modules that pyproject.toml names under `[tool.multiraft]`, this one
among them, by mypyc, from the same source. Nothing else of a program depends on which build runs.

Rules of this file: standard library only.
"""

from __future__ import annotations

from typing import Any, Final

COMPILED: Final = not __file__.endswith(".py")
"""Whether the modules of the hot path were loaded as machine code."""


def field_names(kind: Any) -> tuple[str, ...]:
    """Return the names in `__slots__` of a class, ascending. A compiled class has them under another name."""
    compiled: tuple[str, ...] | None = getattr(kind, "__mypyc_attrs__", None)
    return tuple(sorted(kind.__slots__ if compiled is None else compiled))
