"""The compiled build: modules of the hot path as machine code, by mypyc, from the source that also runs as it is.

pyproject.toml names the modules, under `[tool.multiraft]`. They are compiled as one unit, so that calls among them
are calls of C functions. Their source is installed beside them, and runs wherever the machine code was not built.

mypyc wants to find the modules where they will be imported from; so the packages are first copied to where
`[tool.setuptools.package-dir]` puts them.

Rules of this file: nothing happens before setuptools comes to the extensions; what is missing is said, and the way out.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, Final

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, PlatformError

REQUIRES: Final = ["mypy>=1.18"]
ROOT: Final = Path(__file__).resolve().parent.parent
_UNIT: Final = "multiraft"
_WAY_OUT: Final = (
    "       Without MULTIRAFT_COMPILE the same program is installed as pure Python, which needs no compiler."
)


def wanted() -> bool:
    """Whether the environment asks for the compiled build."""
    return os.environ.get("MULTIRAFT_COMPILE", "") not in ("", "0")


def module_paths() -> list[str]:
    """Return the files of the modules to compile, as they stand in a wheel, ascending."""
    project = _project()
    found: set[str] = set()
    for name in project["tool"]["multiraft"]["compiled"]:
        path = name.replace(".", "/")
        folder = ROOT / _folder(project, name)
        found |= {f"{path}/{file.name}" for file in folder.glob("*.py")} if folder.is_dir() else {f"{path}.py"}
    kept = {f"{name.replace('.', '/')}.py" for name in project["tool"]["multiraft"]["interpreted"]}
    return sorted(path for path in found - kept if not path.endswith("/__init__.py"))


class CompiledDistribution(Distribution):
    """multiraft with extensions, which are made when they are built."""

    def has_ext_modules(self) -> bool:
        return True


class BuildCompiled(build_ext):
    """Has mypyc write C, and the C compiler compile it."""

    def run(self) -> None:
        self.distribution.ext_modules = _extensions(Path(self.build_temp).resolve())
        self.initialize_options()  # which look at the extensions, and there were none
        self.finalized = False
        self.ensure_finalized()
        try:
            super().run()
        except (CCompilerError, CompileError, ExecError, PlatformError, OSError) as problem:
            raise SystemExit(
                f"error: MULTIRAFT_COMPILE=1: the C compiler failed: {str(problem)[:300]}\n"
                f"       It says why above. Needed are a C compiler and the headers of this Python\n"
                f"       (Debian and Ubuntu: apt-get install gcc python3-dev).\n{_WAY_OUT}"
            ) from problem

    def get_source_files(self) -> list[str]:
        return []  # of an sdist: what is compiled is Python, and in it already


def _extensions(build_dir: Path) -> list[Extension]:
    try:
        from mypyc.build import mypycify
    except ImportError as problem:
        raise SystemExit(
            f"error: MULTIRAFT_COMPILE=1 needs mypy, with mypyc: {problem}\n"
            f"       pip install '{REQUIRES[0]}', or leave away --no-build-isolation, and pip does it.\n{_WAY_OUT}"
        ) from problem
    _look_for_compiler()
    source, here = build_dir / "source", Path.cwd()
    _gather(source)
    os.chdir(source)
    try:
        made: list[Extension] = mypycify(
            ["--config-file=", "--no-incremental", "--ignore-missing-imports", *module_paths()],
            group_name=_UNIT,
            opt_level=os.environ.get("MULTIRAFT_COMPILE_LEVEL", "3"),
            debug_level="0",
            target_dir=str(build_dir / "c"),
        )
    finally:
        os.chdir(here)
    for extension in made:
        extension.extra_compile_args.append("-Wno-error")  # what a newer compiler warns of stops no installation
    return made


def _look_for_compiler() -> None:
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or ""
    if compiler and shutil.which(compiler.split()[0]) is None:
        raise SystemExit(
            f"error: MULTIRAFT_COMPILE=1 needs a C compiler, and there is no {compiler.split()[0]!r} here.\n"
            f"       Debian and Ubuntu: apt-get install gcc; or name another one: CC=clang.\n{_WAY_OUT}"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise SystemExit(
            f"error: MULTIRAFT_COMPILE=1 needs the headers of this Python, and there is no {header}.\n"
            f"       Debian and Ubuntu: apt-get install python3-dev.\n{_WAY_OUT}"
        )


def _gather(target: Path) -> None:
    """Copy the packages to where they will be imported from."""
    shutil.rmtree(target, ignore_errors=True)
    project = _project()
    for package in project["tool"]["setuptools"]["packages"]:
        to = target / package.replace(".", "/")
        to.mkdir(parents=True)
        for file in (ROOT / _folder(project, package)).glob("*.py"):
            shutil.copy(file, to / file.name)


def _folder(project: dict[str, Any], package: str) -> str:
    """Return where in the checkout a package lies."""
    mapped: str | None = project["tool"]["setuptools"]["package-dir"].get(package)
    return mapped or package.replace(".", "/")


def _project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)
