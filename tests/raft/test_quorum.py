"""Quorum arithmetic: tables, and a naive twin that counts (thesis, sections 3.3 and 4.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from multiraft.raft.quorum import elected, hopeless, majority_index, majority_of, most_agree
from multiraft.types import INDEX_MAX

INDEXES = some.lists(some.integers(0, 12), max_size=9)
IDS = some.sets(some.integers(1, 9), max_size=9)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([], INDEX_MAX),  # an empty half agrees to everything
        ([7], 7),
        ([7, 0], 0),  # one of two is no majority
        ([5, 0, 0], 0),
        ([5, 3, 0], 3),
        ([5, 3, 9], 5),
        ([5, 3, 9, 9], 5),  # three of four
        ([5, 3, 9, 9, 9], 9),
    ],
)
def test_commit_is_what_a_majority_holds(held: list[int], expected: int) -> None:
    assert majority_index(held) == expected


@given(INDEXES)
def test_majority_index_agrees_with_counting_every_index(held: list[int]) -> None:
    if held:
        holds = [index for index in range(13) if 2 * sum(1 for one in held if one >= index) > len(held)]
        assert majority_index(held) == max(holds)


@given(IDS, IDS)
def test_most_agree_agrees_with_counting_and_asks_no_more_than_that_takes(voters: set[int], chosen: set[int]) -> None:
    asked: list[int] = []

    def agrees(voter: int) -> bool:
        asked.append(voter)
        return voter in chosen

    assert most_agree(voters, agrees) == majority_of(voters, chosen)
    assert len(set(asked)) == len(asked)
    if len(voters & chosen) == len(voters):
        assert len(asked) == (len(voters) // 2 + 1 if voters else 0)


@given(IDS, IDS)
def test_majority_of_agrees_with_counting(voters: set[int], chosen: set[int]) -> None:
    assert majority_of(voters, chosen) == (not voters or len(voters & chosen) > len(voters) / 2)


@given(IDS, IDS, IDS)
def test_hopeless_is_when_nobody_left_can_turn_it(voters: set[int], outgoing: set[int], refused: set[int]) -> None:
    best_case = (voters | outgoing) - refused
    assert hopeless(voters, outgoing, refused) == (not elected(voters, outgoing, best_case))


@given(IDS, IDS, IDS)
def test_a_joint_election_is_won_in_both_halves(voters: set[int], outgoing: set[int], granted: set[int]) -> None:
    assert elected(voters, outgoing, granted) == (majority_of(voters, granted) and majority_of(outgoing, granted))
    assert elected(voters, set(), granted) == majority_of(voters, granted)


def test_the_list_handed_in_is_left_alone() -> None:
    held = [9, 1, 5]
    assert majority_index(held) == 5
    assert held == [9, 1, 5]
