"""What `multiraft sim` runs: registers that clients write, add to, swap and read, by a model of its own.

The commands are chosen so that a wrong answer shows: every write carries a value of its own, an addition or a swap
depends on all before it, and one command in thirty raises, after it has changed the state.

Rules of this file: states of the model are plain tuples, because it is asked some hundred times in each run.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, Final

from multiraft.diskmachine import DiskStateMachine
from multiraft.statemachine import StateMachine, command, query
from multiraft.testing.simulated_service import Call, Failed
from multiraft.testing.simulation import Simulation

KEYS: Final = ("k0", "k1", "k2", "k3", "k4")
PADDING: Final = ("", "", "", "", "." * 3_000, "." * 20_000)


class Registers(StateMachine):
    """Numbers by name; absent ones are 0."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def put(self, name: str, value: int, padding: str) -> int:
        """Set; return what was there before."""
        before = self.values.get(name, 0)
        self.values[name] = value
        return before

    @command(key="name")
    def add(self, name: str, amount: int, padding: str) -> int:
        """Add; return the sum."""
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @command(key="name")
    def swap(self, name: str, expected: int, value: int) -> bool:
        """Set, if it is as expected; return whether it was."""
        if self.values.get(name, 0) != expected:
            return False
        self.values[name] = value
        return True

    @command(key="name")
    def fail(self, name: str, value: int) -> int:
        """Set, then raise: what a failed command has changed stays changed."""
        self.values[name] = value
        raise ValueError(f"set to {value}, and failed")

    @query(key="name")
    def get(self, name: str) -> int:
        return self.values.get(name, 0)


class RegistersOnDisk(DiskStateMachine):
    """The same on disk, each under its name; a failed command leaves nothing of what it did."""

    def _value(self, name: str) -> int:
        return int(self.data.get(name.encode()) or b"0")

    def _set(self, name: str, value: int) -> None:
        if value:
            self.data.put(name.encode(), b"%d" % value)
        else:
            self.data.delete(name.encode())

    @command(key="name")
    def put(self, name: str, value: int, padding: str) -> int:
        """Set; return what was there before."""
        before = self._value(name)
        self._set(name, value)
        self.data.put(b"padding " + name.encode(), padding.encode())
        return before

    @command(key="name")
    def add(self, name: str, amount: int, padding: str) -> int:
        """Add; return the sum."""
        self._set(name, self._value(name) + amount)
        return self._value(name)

    @command(key="name")
    def swap(self, name: str, expected: int, value: int) -> bool:
        """Set, if it is as expected; return whether it was."""
        if self._value(name) != expected:
            return False
        self._set(name, value)
        return True

    @command(key="name")
    def fail(self, name: str, value: int) -> int:
        """Delete all that there is, set, then raise."""
        for key in list(self.data.keys()):
            self.data.delete(key)
        self._set(name, value)
        raise ValueError(f"set to {value}, and failed")

    @query(key="name")
    def get(self, name: str) -> int:
        stop = name.encode() + b"\0"
        return sum(int(value) for _, value in self.data.range(name.encode(), stop))


class RegisterModel:
    """One register. Its state is its number.

    keeps_failed  what a failed command has changed stays changed
    """

    def __init__(self, keeps_failed: bool = True) -> None:
        self._keeps_failed = keeps_failed

    def init(self) -> int:
        return 0

    def step(self, state: int, call: Call) -> tuple[Any, int]:
        method, arguments = call.method, call.arguments
        if method == "get":
            return state, state
        if method == "put":
            return state, arguments[1]
        if method == "add":
            return state + arguments[1], state + arguments[1]
        if method == "fail":
            failed = Failed("ValueError", f"set to {arguments[1]}, and failed")
            return failed, arguments[1] if self._keeps_failed else state
        return (True, arguments[2]) if state == arguments[1] else (False, state)


async def registers(simulation: Simulation) -> None:
    """The body of `multiraft sim`."""
    handle: Any
    if Random(f"machines of {simulation.seed}").random() < 0.5:
        handle = simulation.service("registers", Registers, model=RegisterModel())
    else:
        handle = simulation.service("registers", RegistersOnDisk, model=RegisterModel(keeps_failed=False))
    seen: dict[str, int] = {}
    written = 0

    async def step(rng: Random) -> None:
        nonlocal written
        name = rng.choice(KEYS)
        written += 1
        value, chance, padding = written * 1_000, rng.random(), rng.choice(PADDING)
        if chance < 0.02:  # some at once, so that several come into one record
            together = [handle.add(one, rng.randrange(1, 10), padding) for one in KEYS]
            for outcome in await asyncio.gather(*together, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        elif chance < 0.35:
            seen[name] = await handle.get(name)
        elif chance < 0.60:
            await handle.put(name, value, padding)
        elif chance < 0.80:
            seen[name] = await handle.add(name, rng.randrange(1, 10), padding)
        elif chance < 0.97:
            await handle.swap(name, seen.get(name, 0), value)
        else:
            await handle.fail(name, value)

    await simulation.run(step, clients=simulation.rng.choice([1, 3, 5, 8]))
