"""The rolling hash: replicas that did the same agree, those that did not never agree again, and the entry is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.engine.rolling import VALUES_KEPT, RollingHash, first_difference
from multiraft.errors import CommandFailed, MultiRaftError, SessionExpired

RESULTS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(["KeyError", "ValueError"]).map(lambda name: CommandFailed(name, "")),
    st.just(SessionExpired("")),
)


def after(results: list[bytes | MultiRaftError], first: int = 2) -> RollingHash:
    rolling = RollingHash(first - 1)
    rolling.begin(first)
    for index, result in enumerate(results, first):
        rolling.chain(index, result)
    return rolling


@given(st.lists(RESULTS, max_size=20), st.data())
def test_one_other_result_makes_another_value_from_there_on(results: list[bytes], data: st.DataObject) -> None:
    if not results:
        return
    place = data.draw(st.integers(0, len(results) - 1))
    other = data.draw(RESULTS.filter(lambda result: repr(result) != repr(results[place])))
    one, another = after(list(results)), after([*results[:place], other, *results[place + 1 :]])
    first, mine = one.values_after(0, one.last)
    if one.at(place + 2) != another.at(place + 2):  # two results may have the same CRC; one in four thousand million
        assert one.value != another.value
        assert first_difference(first, mine, another.values_after(0, one.last)[1]) == place + 2


def test_what_a_command_raised_counts_by_its_name_alone() -> None:
    assert after([CommandFailed("KeyError", "0x7f01")]).value == after([CommandFailed("KeyError", "0x7f02")]).value
    assert after([CommandFailed("KeyError", "")]).value != after([CommandFailed("ValueError", "")]).value
    assert after([CommandFailed("KeyError", "")]).value != after([b"KeyError"]).value
    assert after([SessionExpired("")]).value != after([b""]).value


def test_it_is_the_same_however_records_are_cut_and_a_slice_ends() -> None:
    whole = after([b"a", b"b", b"c"])
    cut = after([b"a"])
    cut.begin(3)
    cut.chain(3, b"b")
    cut.begin(4)
    cut.chain(4, b"c")
    assert (whole.value, whole.values_after(0, 9)) == (cut.value, cut.values_after(0, 9))


def test_entries_of_which_nothing_came_have_the_value_before_them() -> None:
    rolling = after([b"a"])
    value = rolling.value
    rolling.begin(6)
    rolling.chain(6, b"b")
    assert [rolling.at(index) for index in (2, 3, 5)] == [value] * 3
    assert rolling.at(6) == rolling.at(100) == rolling.value != value
    assert rolling.at(1) == 0
    assert rolling.at(0) is None


def test_what_was_compared_is_kept_until_the_next_comparison() -> None:
    rolling = after([b"%d" % number for number in range(10)])  # entries 2 to 11
    assert rolling.unchecked == 10
    rolling.compared(8)
    rolling.begin(12)
    rolling.chain(12, b"")
    assert rolling.unchecked == 3
    assert rolling.values_after(0, 8)[0] == 2  # so that who differs can be told since when
    rolling.compared(12)
    assert rolling.since == 8
    rolling.begin(13)
    rolling.chain(13, b"")
    assert rolling.unchecked == 0
    value = rolling.at(12)
    rolling.settle()
    assert (rolling.since, rolling.at(12), rolling.at(11)) == (12, value, None)


def test_what_is_kept_is_bounded() -> None:
    rolling = RollingHash()
    for index in range(1, 3 * VALUES_KEPT):
        rolling.begin(index)
        rolling.chain(index, b"x")
    assert VALUES_KEPT <= rolling.last - rolling.since <= 2 * VALUES_KEPT
    value = rolling.value
    rolling.begin(100 * VALUES_KEPT)
    assert (rolling.since, rolling.since_value) == (100 * VALUES_KEPT - 1, value)


@pytest.mark.parametrize(
    ("own", "other", "found"), [([], [], None), ([1], [1, 2], None), ([1, 2], [1, 3], 8), ([1], [2], 7)]
)
def test_the_first_difference(own: list[int], other: list[int], found: int | None) -> None:
    assert first_difference(7, own, other) == found
