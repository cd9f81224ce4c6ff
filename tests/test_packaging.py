"""What is shipped is what is here, under the names that users import, and nothing lands outside `multiraft`.

Three packages live in top-level folders and are mapped into `multiraft`; the checkout reaches them through links.
Everything that could drift apart is compared: the tree, the links, pyproject.toml, and the built wheel.

Rules of this file: no network; the wheel is built from a copy, so that no leftover of an earlier build gets in and
none stays behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
LINKED: Final = ("shard", "storage", "transport")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what belongs to it, and return its path."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("building", "multiraft", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)], out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, without what it depends on, and return the folder it was put in."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run([*pip, "--target", str(target), str(wheel)], target)
    return target


def run(command: Sequence[str], folder: Path) -> str:
    """Run `command` in `folder` and return what it prints; its complaints are in the failure otherwise."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def packages_of_the_tree() -> set[str]:
    """Return the dotted names of all folders of the framework that hold Python files."""
    found = {"multiraft": ROOT / "multiraft"} | {f"multiraft.{name}": ROOT / name for name in LINKED}
    names: set[str] = set()
    for prefix, top in found.items():
        for file in top.rglob("*.py"):
            names.add(".".join((prefix, *file.parent.relative_to(top).parts)))
    return names


def files_of_the_tree() -> set[str]:
    """Return the paths, as they stand in a wheel, of all files of the framework."""
    tops = {ROOT / "multiraft": ""} | {ROOT / name: "multiraft/" for name in LINKED}
    return {
        prefix + path.relative_to(ROOT).as_posix()
        for top, prefix in tops.items()
        for path in top.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_every_package_is_declared(project: dict[str, Any]) -> None:
    declared = project["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(packages_of_the_tree())
    assert declared == sorted(declared)


def test_every_package_opens_with_an_init_file() -> None:
    files = files_of_the_tree()
    assert not [name for name in packages_of_the_tree() if f"{name.replace('.', '/')}/__init__.py" not in files]


def test_the_three_folders_are_mapped_and_linked(project: dict[str, Any]) -> None:
    mapped = project["tool"]["setuptools"]["package-dir"]
    assert mapped == {"multiraft": "multiraft"} | {f"multiraft.{name}": name for name in LINKED}
    links = {path.name: os.readlink(path) for path in (ROOT / "multiraft").iterdir() if path.is_symlink()}
    assert links == {name: f"../{name}" for name in LINKED}


def test_the_wheel_holds_every_file_once_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert {name for name in names if ".dist-info/" not in name} == files_of_the_tree()
    assert "multiraft/py.typed" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_wheel_says_what_it_needs(wheel: Path, project: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(path).decode()
    assert f"Requires-Python: {project['project']['requires-python']}" in metadata
    for dependency in project["project"]["dependencies"]:
        assert f"Requires-Dist: {dependency}\n" in metadata


IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
target = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(target))
import multiraft
names = [module.name for module in pkgutil.walk_packages(multiraft.__path__, "multiraft.")]
for name in names:
    if not name.endswith("__main__"):
        module = importlib.import_module(name)
        assert pathlib.Path(module.__file__).is_relative_to(target), module.__file__
assert not {"shard", "storage", "transport"} & set(sys.modules)
print(*names)
"""


@pytest.mark.pure_only  # the compiled build's environment finds its own machine code first
def test_every_installed_module_imports(installed: Path, tmp_path: Path) -> None:
    names = run([sys.executable, "-W", "error", "-c", IMPORT_ALL, str(installed)], tmp_path).split()
    modules = {file.removesuffix(".py") for file in files_of_the_tree() if file.endswith(".py")}
    assert set(names) == {module.removesuffix("/__init__").replace("/", ".") for module in modules} - {"multiraft"}


def test_the_command_is_installed(installed: Path, project: dict[str, Any], tmp_path: Path) -> None:
    assert (installed / "bin" / "multiraft").is_file()
    module, _, function = project["project"]["scripts"]["multiraft"].partition(":")
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {module}; print(callable({module}.{function}))"
    assert run([sys.executable, "-c", code, str(installed)], tmp_path) == "True\n"


@pytest.mark.parametrize("name", LINKED)
def test_a_mapped_folder_refuses_its_bare_name(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"ImportError: this folder is multiraft.{name}; import it under that name\n")


@pytest.mark.pure_only  # the compiled build's environment never imports from the checkout
@pytest.mark.parametrize("name", LINKED)
def test_a_checkout_imports_a_mapped_folder_through_its_link(name: str) -> None:
    code = f"import multiraft.{name} as it, os; print(os.path.realpath(it.__file__))"
    assert run([sys.executable, "-c", code], ROOT) == f"{ROOT / name / '__init__.py'}\n"
