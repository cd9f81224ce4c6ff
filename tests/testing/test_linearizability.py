"""The linearizability checker: histories whose answer is known, and a naive twin that tries every order."""

from __future__ import annotations

from itertools import permutations
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiraft.testing import UNKNOWN, History, Operation, Verdict, check, check_history


class Register:
    """A cell: ("put", value) gives None, ("get",) the value, ("cas", old, new) whether it was."""

    def init(self) -> int:
        return 0

    def step(self, state: int, what: Any) -> tuple[Any, int]:
        if what[0] == "put":
            return None, what[1]
        if what[0] == "get":
            return state, state
        return (True, what[2]) if state == what[1] else (False, state)


def op(what: Any, called_s: float, ended_s: float, result: Any = None) -> Operation:
    return Operation(what, called_s, ended_s, result)


def lost(what: Any, called_s: float) -> Operation:
    return Operation(what, called_s, inf, UNKNOWN)


OK = [
    ("nothing", []),
    ("one after the other", [op(("put", 1), 0, 1), op(("get",), 2, 3, 1)]),
    ("a read beside a write may miss it", [op(("put", 1), 0, 9), op(("get",), 1, 2, 0)]),
    ("a read beside a write may see it", [op(("put", 1), 0, 9), op(("get",), 1, 2, 1)]),
    ("two writes in either order", [op(("put", 1), 0, 9), op(("put", 2), 0, 9), op(("get",), 10, 11, 1)]),
    ("touching ends are beside each other", [op(("put", 1), 0, 1), op(("get",), 1, 2, 0)]),
    ("a lost write shows late", [lost(("put", 1), 0), op(("get",), 5, 6, 0), op(("get",), 7, 8, 1)]),
    ("a lost write never shows", [lost(("put", 1), 0), op(("get",), 5, 6, 0)]),
    ("a lost swap that could not be", [lost(("cas", 5, 6), 0), op(("get",), 1, 2, 0)]),
    ("a lost swap in the middle", [op(("put", 5), 0, 1), lost(("cas", 5, 6), 0), op(("get",), 4, 5, 6)]),
    ("lost writes only", [lost(("put", number), 0) for number in range(30)]),
]
BROKEN = [
    ("a read of what nobody wrote", [op(("get",), 0, 1, 7)]),
    ("a stale read", [op(("put", 1), 0, 1), op(("get",), 2, 3, 0)]),
    ("two reads that go back", [op(("put", 1), 0, 9), op(("get",), 1, 2, 1), op(("get",), 3, 4, 0)]),
    ("a read before the write began", [op(("get",), 0, 1, 1), op(("put", 1), 2, 3)]),
    ("a lost write that shows before its call", [op(("get",), 0, 1, 1), lost(("put", 1), 2)]),
    ("a lost write that shows twice", [
        lost(("put", 1), 0), op(("get",), 1, 2, 1), op(("put", 2), 3, 4), op(("get",), 5, 6, 2), op(("get",), 7, 8, 1),
    ]),
    ("two swaps that both won", [op(("cas", 0, 1), 0, 9, True), op(("cas", 0, 2), 0, 9, True)]),
    ("a swap that lost without a reason", [op(("cas", 0, 1), 0, 1, False)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operations"), OK, ids=[name for name, _ in OK])
def test_linearizable(name: str, operations: list[Operation]) -> None:
    assert check(Register(), operations).verdict is Verdict.OK


@pytest.mark.parametrize(("name", "operations"), BROKEN, ids=[name for name, _ in BROKEN])
def test_not_linearizable(name: str, operations: list[Operation]) -> None:
    found = check(Register(), operations)
    assert found.verdict is Verdict.BROKEN
    assert found.unexplained
    assert str(found.unexplained[0]) in found.explain()


def test_the_budget_runs_out_undecided() -> None:
    """Thirty lost writes of different values and a read of none of them: too many orders to try in a hundred steps."""
    operations = [lost(("put", number), 0) for number in range(1, 31)] + [op(("get",), 1, 2, 99)]
    found = check(Register(), operations, max_steps=100)
    assert (found.verdict, found.steps) == (Verdict.UNDECIDED, 100)


def test_what_was_met_is_not_searched_again() -> None:
    """Writes of one value lead to one state in whatever order; without memory this would take 12! steps."""
    operations = [op(("put", 1), 0, 9) for _ in range(12)] + [op(("get",), 10, 11, 2)]
    found = check(Register(), operations)
    assert found.verdict is Verdict.BROKEN
    assert found.steps <= 12 * 2**12


def test_a_long_history_takes_few_steps() -> None:
    operations = []
    for number in range(2_000):
        operations += [op(("put", number), number, number + 1.5), op(("get",), number + 0.1, number + 1.6, number)]
    found = check(Register(), operations)
    assert found.verdict is Verdict.OK
    assert found.steps < 20_000


def test_keys_are_judged_apart() -> None:
    good, bad = [op(("put", 1), 0, 1)], [op(("get",), 0, 1, 5)]
    found = check_history(Register(), {"good": good, "bad": bad})
    assert {key: one.verdict for key, one in found.items()} == {"good": Verdict.OK, "bad": Verdict.BROKEN}


def test_a_history_keeps_what_may_have_happened() -> None:
    history = History()
    done, gone, open_ = (history.call("k", ("put", number), 1.0) for number in range(3))
    history.end(done, None, 2.0)
    history.withdraw("k", gone)
    assert history.operations["k"] == [done, open_]
    assert (done.known, open_.known, history.count) == (True, False, 2)


# ------------------------------------------------------------------------------------------------------ naive twin


def linearizable_by_trying(operations: list[Operation]) -> bool:
    """Whether some order of all known and some unknown operations keeps to the times and gives the results."""
    known = [item for item in operations if item.known]
    unknown = [item for item in operations if not item.known]
    for chosen in range(1 << len(unknown)):
        taken = known + [item for number, item in enumerate(unknown) if chosen >> number & 1]
        if any(keeps_to_times(order) and gives_results(order) for order in permutations(taken)):
            return True
    return False


def keeps_to_times(order: tuple[Operation, ...]) -> bool:
    return not any(
        later.ended_s < earlier.called_s for place, earlier in enumerate(order) for later in order[place + 1 :]
    )


def gives_results(order: tuple[Operation, ...]) -> bool:
    model = Register()
    state = model.init()
    for item in order:
        result, state = model.step(state, item.what)
        if item.known and result != item.result:
            return False
    return True


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    called, lasts = draw(st.integers(0, 8)), draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["put", "get", "cas"]))
    value, other = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    what: tuple[Any, ...]
    result: Any
    if kind == "put":
        what, result = (kind, value), None
    elif kind == "get":
        what, result = (kind,), value
    else:
        what, result = (kind, value, other), draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        return lost(what, float(called))
    return op(what, float(called), float(called + lasts), result)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations(), max_size=5))
def test_agrees_with_trying_every_order(history: list[Operation]) -> None:
    expected = Verdict.OK if linearizable_by_trying(history) else Verdict.BROKEN
    assert check(Register(), history).verdict is expected
