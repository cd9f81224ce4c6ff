"""The build backend: setuptools' own, which asks for mypy as well when the compiled build is wanted.

    pip install .                        pure Python, everywhere; no compiler is needed
    MULTIRAFT_COMPILE=1 pip install .    the modules of the hot path as machine code; see compiling.py

Rules of this file: without MULTIRAFT_COMPILE it does what setuptools does, and nothing else.
"""

from __future__ import annotations

from typing import Any, Final

from compiling import REQUIRES, wanted
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable as _build_editable,
)
from setuptools.build_meta import (
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None
_NOT_EDITABLE: Final = """\
error: MULTIRAFT_COMPILE=1 does not go with an editable install: machine code beside its source would run in its place
       when the source has long changed. Leave away one of the two; `make test-compiled` tests a checkout compiled.
"""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what must be installed before a wheel can be built, beside what pyproject.toml names."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *(REQUIRES if wanted() else [])]


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build an editable wheel, of pure Python. Exits with a message where the compiled build is asked for."""
    if wanted():
        raise SystemExit(_NOT_EDITABLE)
    return _build_editable(wheel_directory, config_settings, metadata_directory)
