"""A machine that has lost the group's state gets a snapshot that its log does not need; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.messages import Append, AppendAnswer, InstallSnapshot
from multiraft.records import COMMANDS, encode_record
from tests.raft.test_snapshots import GROUP, accepted, installing, lead, lead_with_short_log, of_kind

Make: TypeAlias = Callable[..., Any]


def follower(replica: Make, entries: int = 6, commit: int = 5) -> Any:
    """Replica 1 with so many entries of term 9 above the founding, on its disk, and committed up to `commit`."""
    one = replica()
    record = encode_record(GROUP, 2, 9, 1, COMMANDS, 0, [b"x"] * entries)
    one.core.step(Append(commit, GROUP, 1, 1, (record,), 2, 9, 1), 0.0)
    one.persist()
    return one


def snapshot_of(one: Any) -> Any:
    ready = one.core.ready()
    return None if ready is None else ready.snapshot


def test_it_takes_the_place_of_the_state_and_the_log_stays(replica: Make) -> None:
    one = follower(replica, commit=2)
    core = one.core
    start, last, membership = core.log.start, core.last_index, core.membership
    core.want_state(3)
    core.step(installing(4, 9), 0.0)
    write = snapshot_of(one)
    assert (write.installs, write.adopts, write.log_start, write.snapshot.index) == (True, True, start, 4)
    assert (core.log.start, core.last_index, core.membership, core.commit) == (start, last, membership, 4)
    core.snapshot_stored(4, adopted=True)
    assert core.applied == core.snapshot_index == 4
    core.applied_to(4)


@pytest.mark.parametrize(
    ("least", "index"),
    [
        (0, 4),  # it was not asked for
        (5, 4),  # it is too old to help
    ],
)
def test_what_does_not_help_is_only_acknowledged(replica: Make, least: int, index: int) -> None:
    one = follower(replica)
    if least:
        one.core.want_state(least)
    one.core.step(installing(index, 9), 0.0)
    ready = one.core.ready()
    assert ready.snapshot is None
    assert [(one.accepted, one.index) for one in of_kind(ready.after_persist, AppendAnswer)] == [(True, 5)]


def test_one_that_is_not_on_the_disk_yet_is_not_taken(replica: Make) -> None:
    one = replica()
    record = encode_record(GROUP, 2, 9, 1, COMMANDS, 0, [b"x"] * 4)
    one.core.want_state(2)
    one.core.step(Append(5, GROUP, 1, 1, (record,), 2, 9, 1), 0.0)
    one.core.step(installing(4, 9), 0.0)
    assert snapshot_of(one) is None


def test_it_is_taken_once(replica: Make) -> None:
    one = follower(replica, commit=1)
    one.core.want_state(2)
    one.core.step(installing(3, 9), 0.0)
    assert snapshot_of(one).adopts
    one.core.step(installing(4, 9), 0.0)
    assert snapshot_of(one) is None


def test_one_beyond_the_log_replaces_it_as_ever_and_ends_the_wish(replica: Make) -> None:
    one = follower(replica)
    one.core.want_state(2)
    one.core.step(installing(20, 9), 0.0)
    write = snapshot_of(one)
    assert (write.installs, write.adopts, write.log_start.index) == (True, False, 20)
    one.core.snapshot_stored(20)
    assert one.core.applied == 20
    record = encode_record(GROUP, 21, 9, 9, COMMANDS, 0, [b"x"] * 3)
    one.core.step(Append(23, GROUP, 20, 9, (record,), 2, 9, 1), 0.0)
    one.persist()
    one.core.step(installing(22, 9), 0.0)
    assert snapshot_of(one) is None


def test_a_leader_offers_its_newest_to_whoever_asks_and_goes_on_with_entries(replica: Make) -> None:
    one = lead_with_short_log(replica, trailing=4)
    core = one.core
    core.step(accepted(core.last_index, 2), 0.0)
    one.take()
    index = core.snapshot_index
    assert core.offer_snapshot(2, index)
    assert not core.offer_snapshot(2, index + 1)
    assert not core.offer_snapshot(1, index)
    assert not core.offer_snapshot(7, index)
    core.propose([b"y"], COMMANDS, 0)
    messages = one.take()
    assert [(message.to, message.index) for message in of_kind(messages, InstallSnapshot)] == [(2, index)]
    assert {message.to for message in of_kind(messages, Append)} == {2, 3}


def test_nobody_else_offers(replica: Make) -> None:
    assert not follower(replica).core.offer_snapshot(2, 1)


def test_a_closed_gate_puts_it_off(replica: Make) -> None:
    class Gate:
        def opens(self, group_id: int) -> bool:
            return False

        def passed(self, size_bytes: int) -> None:
            raise AssertionError("nothing passes")

    one = replica()
    core = lead(one)
    core._settings.snapshot_gate = Gate()
    assert not core.offer_snapshot(2, 1)
