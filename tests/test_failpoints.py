"""Failpoints: what their settings mean, that every place stands in the code, and what they cost while off."""

from __future__ import annotations

import ast
import dis
import errno
import subprocess
import sys
import time
import timeit
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from multiraft import failpoints
from multiraft.errors import ConfigError
from multiraft.failpoints import FAILPOINTS, Deed, ProcessDeeds, parse

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_stays_armed() -> Iterator[None]:
    yield
    failpoints.disarm()


# --------------------------------------------------------------------------------------------------------- settings


def test_settings_are_read() -> None:
    read = parse("write.after-sync:kill@3, disk.before-write:eio,apply.before:delay=0.5@2+,write.after-sync:enospc")
    assert read == {
        failpoints.WRITE_AFTER_SYNC: [Deed("kill", times=3), Deed("enospc")],
        failpoints.DISK_BEFORE_WRITE: [Deed("eio")],
        failpoints.APPLY_BEFORE: [Deed("delay", 0.5, 2, True)],
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("write.after-sync", "is not name:"),
        ("write.after-sync:explode", "is not name:"),
        ("write.after-sync:kill@0", "is not name:"),
        ("write.after-sync:delay", "is not name:"),
        ("write.after-sync:kill@2,nowhere:kill", "no failpoint 'nowhere'; there are apply.after"),
    ],
)
def test_what_is_wrong_in_settings_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse(text)


def test_a_deed_is_done_the_named_time_or_from_then_on() -> None:
    assert [passed for passed in range(1, 6) if Deed("eio", times=3).is_due(passed)] == [3]
    assert [passed for passed in range(1, 6) if Deed("eio", times=3, onward=True).is_due(passed)] == [3, 4, 5]


@pytest.mark.parametrize(("action", "number"), [("eio", errno.EIO), ("enospc", errno.ENOSPC)])
def test_an_armed_place_raises_what_it_is_told(action: str, number: int) -> None:
    failpoints.arm(ProcessDeeds(parse(f"apply.before:{action}@2")))
    assert failpoints.armed is not None
    failpoints.armed(failpoints.APPLY_BEFORE)
    failpoints.armed(failpoints.APPLY_AFTER)
    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        failpoints.armed(failpoints.APPLY_BEFORE)
    failpoints.armed(failpoints.APPLY_BEFORE)


def test_a_delay_takes_its_time() -> None:
    deeds, began_s = ProcessDeeds(parse("apply.before:delay=0.05")), time.monotonic()
    deeds(failpoints.APPLY_BEFORE)
    assert time.monotonic() - began_s >= 0.05


def test_a_kill_ends_the_process_there() -> None:
    program = (
        "from multiraft import failpoints\n"
        "failpoints.arm_from_environment()\n"
        "print('before', flush=True)\n"
        "failpoints.armed(failpoints.APPLY_BEFORE)\n"
        "print('after', flush=True)\n"
    )
    environment = {failpoints.ENVIRONMENT: "apply.before:kill", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-9, b"before\n")


def test_without_the_variable_nothing_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.ENVIRONMENT, raising=False)
    failpoints.arm_from_environment()
    assert failpoints.armed is None
    monkeypatch.setenv(failpoints.ENVIRONMENT, "apply.before:eio")
    failpoints.arm_from_environment()
    assert failpoints.armed is not None


# ----------------------------------------------------------------------------------------------------------- places


def constants() -> dict[str, int]:
    found = {name: value for name, value in vars(failpoints).items() if name.isupper() and type(value) is int}
    assert sorted(found.values()) == sorted(FAILPOINTS)
    return found


def places_in_the_code() -> Counter[str]:
    """Return how often each constant stands in a place of the two lines that a failpoint is; refuse other uses."""
    found: Counter[str] = Counter()
    for path in sorted(
        path for top in ("multiraft", "shard", "storage", "transport") for path in (ROOT / top).rglob("*.py")
    ):
        if path.resolve() == Path(failpoints.__file__).resolve() or path.parent.is_symlink():
            continue
        used = 0
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "failpoints.armed is not None":
                call = ast.unparse(node.body[0]) if len(node.body) == 1 and not node.orelse else ""
                assert call.startswith("failpoints.armed(failpoints."), f"{path}:{node.lineno}: {call}"
                found[call.removeprefix("failpoints.armed(failpoints.").removesuffix(")")] += 1
                used += 1
        calls = sum(
            1 for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.armed"
        )
        assert calls == used, f"{path}: a failpoint is passed without a look at whether anything is armed"
    return found


def test_every_registered_place_stands_in_the_code_and_no_other() -> None:
    assert set(places_in_the_code()) == set(constants())


def test_numbers_and_names_are_unique_and_in_order() -> None:
    points = list(FAILPOINTS.values())
    assert [point.number for point in points] == sorted({point.number for point in points})
    assert len({point.name for point in points}) == len(points)
    assert all(point.where for point in points)


# ------------------------------------------------------------------------------------------------------------- cost


def place() -> None:
    if failpoints.armed is not None:
        failpoints.armed(failpoints.APPLY_BEFORE)


def test_a_place_costs_one_look_at_an_attribute_while_it_is_off() -> None:
    """Four instructions and no call until the jump; measured: about 20 ns, of which most is the call of `place`."""
    instructions = [instruction.opname for instruction in dis.get_instructions(place)]
    jump = next(number for number, name in enumerate(instructions) if "JUMP" in name)
    before = [name for name in instructions[: jump + 1] if name not in ("RESUME", "CACHE", "NOP")]
    assert len(before) <= 4, before
    assert not any("CALL" in name for name in before)
    assert failpoints.armed is None
    assert min(timeit.repeat(place, number=100_000, repeat=5)) / 100_000 < 1e-6
