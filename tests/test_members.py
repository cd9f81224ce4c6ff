"""The procedures that change a group's members, against a leader that does what the test says.

The leader keeps a membership and answers as an engine does; it changes memberships by the core's own arithmetic. What
it was asked for is written down, so that a test can see the order, and what was not asked for twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack
import pytest

from multiraft.errors import (
    ChangePending,
    ChangeRefused,
    InvalidRequest,
    MembershipChanged,
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Unreachable,
)
from multiraft.members import Members
from multiraft.membership import pack_membership
from multiraft.raft import AddLearner, Demote, Promote, Remove
from multiraft.raft.changes import changed, left
from multiraft.testing import run_virtual
from multiraft.types import Membership, founding_membership

KINDS: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in (AddLearner, Promote, Demote, Remove)}


class Leader:
    """A group's leader. `before` runs before each change is made, `hold` keeps what is made from taking effect."""

    def __init__(self, *nodes: str) -> None:
        self.members = founding_membership(nodes)
        self.latest = self.members
        self.asked: list[list[Any]] = []
        self.looks = 0
        self.unknown_until = 0  # so many looks find that too few know of the membership yet
        self.behind: dict[int, int | None] = {}
        self.hold = False
        self.errors: dict[str, list[MultiRaftError]] = {"change": [], "membership": [], "transfer": []}
        self.leader = 1
        self.heir = 0
        self.takes_over = True  # whoever is asked to
        self.before: list[Callable[[], None]] = []

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        assert 0 < timeout_s <= 1.0
        await asyncio.sleep(0.001)
        if self.errors[kind]:
            raise self.errors[kind].pop(0)
        if kind == "membership":
            return await self.look(*msgpack.unpackb(body))
        if kind == "transfer":
            self.asked.append([("transfer", body.decode())])
            self.heir = self.members.replica_on(body.decode())
            self.later(0.2, self.handed_over)
            return b""
        expected, joint, auto_leave, rows = msgpack.unpackb(body)
        assert (joint, auto_leave) == (None, True)
        if self.before:
            self.before.pop(0)()
        self.asked.append([tuple(row[:2]) for row in rows])
        if self.latest is not self.members:
            raise ChangePending("one at a time")
        if expected != self.members.index:
            raise MembershipChanged("look again")
        changes = [KINDS[row[0]](*row[1:]) for row in rows]
        for change in changes:
            if isinstance(change, Promote) and self.behind.get(change.replica_id, 0) != 0:
                raise NotReady("it has not caught up")
        self.make(changed(self.members, self.members.index + 1, changes))
        if self.hold:
            await asyncio.sleep(timeout_s)
            raise OutcomeUnknown("no answer in time")
        return pack_membership(self.members)

    async def look(self, known: int | None, wait_s: float) -> bytes:
        self.looks += 1
        if known is not None and self.members.index <= known:
            await asyncio.sleep(wait_s)
        behind = sorted(self.behind.items())
        known = self.looks > self.unknown_until
        view = [pack_membership(self.members), pack_membership(self.latest), behind, self.leader, self.heir, known]
        return bytes(msgpack.packb(view))

    def make(self, membership: Membership) -> None:
        self.latest = membership
        if not self.hold:
            self.members = membership
            if membership.joint:
                self.latest = self.members = left(membership, membership.index + 1)

    def handed_over(self) -> None:
        """The one who was asked leads now, or the leader has given up."""
        self.leader, self.heir = (self.heir if self.takes_over else self.leader), 0

    def promoted(self) -> None:
        """What a leader does by itself with learners that were to join."""
        self.make(changed(self.members, self.members.index + 1, [Promote(one) for one in self.members.joining]))

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(delay_s, act)

    def voters(self) -> list[str]:
        return [self.members.nodes[one] for one in self.members.voters]


def play(
    scenario: Callable[[Leader, Members], Coroutine[Any, Any, None]], *nodes: str, timeout_s: float | None = 10.0
) -> Leader:
    leader = Leader(*(nodes or ("a", "b", "c")))

    async def main() -> None:
        await scenario(leader, Members(leader.ask, asyncio.get_running_loop().time, timeout_s))

    run_virtual(main())
    return leader


def refused(
    scenario: Callable[[Leader, Members], Coroutine[Any, Any, Any]], kind: type[MultiRaftError], **options: Any
) -> str:
    """Run what must fail; return what it said."""
    said = ""

    async def checked(leader: Leader, members: Members) -> None:
        nonlocal said
        with pytest.raises(kind) as raised:
            await scenario(leader, members)
        assert type(raised.value) is kind
        said = str(raised.value)

    play(checked, **options)
    return said


# ------------------------------------------------------------------------------------------------------- add


def test_a_voter_is_added_as_a_learner_that_joins_and_is_waited_for() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.behind = {4: 7}
        leader.later(3.0, leader.promoted)
        found = await members.add("d", voter=True)
        assert found == leader.members
        assert leader.voters() == ["a", "b", "c", "d"]

    assert play(scenario).asked == [[("AddLearner", "d")]]


def test_a_learner_is_added_and_not_waited_for() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        found = await members.add("d", voter=False)
        assert (found.learners, found.joining) == ((4,), ())

    assert play(scenario).asked == [[("AddLearner", "d")]]


@pytest.mark.parametrize("voter", [True, False])
def test_who_votes_already_is_not_added(voter: bool) -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        assert await members.add("b", voter) == leader.members

    assert play(scenario).asked == []


def test_adding_a_voter_where_a_learner_is_promotes_it_when_it_has_caught_up() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        await members.add("d", voter=False)
        leader.behind = {4: 1}
        leader.later(0.5, lambda: leader.behind.clear())
        await members.add("d", voter=True)
        assert leader.voters() == ["a", "b", "c", "d"]

    asked = play(scenario).asked
    assert asked[0] == [("AddLearner", "d")]
    assert len(asked) > 2  # refused until it had caught up
    assert all(change == [("Promote", 4)] for change in asked[1:])


def test_a_replica_that_is_on_its_way_out_is_not_taken_for_an_added_one() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        others = changed(leader.members, 2, [AddLearner("d")])
        leader.members = leader.latest = changed(others, 3, [Promote(4), Remove(3)])
        assert leader.members.joint
        leader.later(2.0, lambda: leader.make(left(leader.members, 4)))
        found = await members.add("c", voter=False)
        assert found.replica_on("c") == 5  # a new one: replica 3 is gone for good

    assert play(scenario).asked == [[("AddLearner", "c")]]


# ---------------------------------------------------------------------------------------- remove, promote, demote


def test_a_replica_is_removed_by_one_change() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        assert "b" not in (await members.remove("b")).nodes.values()
        await members.remove("b")  # it is so already

    assert play(scenario).asked == [[("Remove", 2)]]


def test_a_removal_is_done_though_another_replica_was_added_there_at_once() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        def added() -> None:
            leader.make(changed(leader.members, leader.members.index + 1, [AddLearner("b")]))

        leader.later(0.0025, added)  # when it was removed, and before the next look
        assert (await members.remove("b")).replica_on("b") == 4

    assert play(scenario).asked == [[("Remove", 2)]]


def test_a_change_is_done_when_a_majority_knows_of_it() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.unknown_until = 5
        await members.remove("b")
        assert leader.looks == 6

    assert play(scenario).asked == [[("Remove", 2)]]


def test_promoting_and_demoting_are_one_change_each() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        assert (await members.demote("b")).learners == (2,)
        await members.demote("b")
        assert (await members.promote("b")).learners == ()
        await members.promote("b")

    assert play(scenario).asked == [[("Demote", 2)], [("Promote", 2)]]


@pytest.mark.parametrize("name", ["promote", "demote"])
def test_who_takes_no_part_is_neither_promoted_nor_demoted(name: str) -> None:
    said = refused(lambda _, members: getattr(members, name)("x"), ChangeRefused)
    assert "'x' has no replica" in said
    assert "a, b, c" in said


def test_what_the_leader_refuses_for_good_is_raised_at_once() -> None:
    leader = Leader("a")

    async def main() -> None:
        members = Members(leader.ask, asyncio.get_running_loop().time, 10.0)
        with pytest.raises(ChangeRefused, match="no voter left"):
            await members.remove("a")

    run_virtual(main())
    assert len(leader.asked) == 1


# --------------------------------------------------------------------------------------------------- replace


def test_a_replica_is_replaced_in_one_joint_change_when_the_new_one_has_caught_up() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        await members.replace("c", "d")
        assert leader.voters() == ["a", "b", "d"]
        assert not leader.members.joint

    assert play(scenario).asked == [[("AddLearner", "d")], [("Promote", 4), ("Remove", 3)]]


def test_a_move_that_was_interrupted_is_taken_up_where_it_was() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.members = leader.latest = changed(leader.members, 2, [AddLearner("d")])
        await members.replace("c", "d")
        await members.replace("c", "d")  # done already

    assert play(scenario).asked == [[("Promote", 4), ("Remove", 3)]]


def test_a_voter_takes_over_by_a_plain_removal() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        await members.replace("c", "b")
        assert leader.voters() == ["a", "b"]

    assert play(scenario).asked == [[("Remove", 3)]]


def test_on_one_node_the_old_replica_goes_first() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.later(2.0, leader.promoted)
        found = await members.replace("c", "c")
        assert found.replica_on("c") == 4
        assert 4 in found.voters

    assert play(scenario).asked == [[("Remove", 3), ("AddLearner", "c")]]  # one change: never without either


def test_a_newcomer_that_was_removed_meanwhile_ends_the_move() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.behind = {4: 9}
        leader.later(1.0, lambda: leader.make(changed(leader.members, leader.members.index + 1, [Remove(4)])))
        await members.replace("c", "d")

    assert "'d' that was to take over was removed meanwhile" in refused(scenario, ChangeRefused)


# ---------------------------------------------------------------------------------------------- races and failures


def test_a_change_that_came_first_is_looked_at_before_the_next_is_asked_for() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.before = [lambda: leader.make(changed(leader.members, leader.members.index + 1, [Demote(2)]))]
        await members.remove("b")
        assert 2 not in leader.members.nodes

    assert play(scenario).asked == [[("Remove", 2)], [("Remove", 2)]]  # the first was for a membership that had passed


def test_a_change_whose_answer_was_lost_is_not_made_twice() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.hold = True

        def takes_effect() -> None:
            leader.hold = False
            leader.make(leader.latest)

        leader.later(2.5, takes_effect)
        await members.remove("b")

    assert play(scenario).asked == [[("Remove", 2)]]


@pytest.mark.parametrize(
    "problem", [NotLeader(16, "b"), Unreachable("b"), NotReady("a new leader"), OutcomeUnknown("lost")]
)
def test_what_passes_is_asked_again(problem: MultiRaftError) -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.errors = {"change": [problem], "membership": [problem]}
        await members.remove("b")

    assert play(scenario).asked == [[("Remove", 2)]]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("change", InvalidRequest("the directory stays")),
        ("change", NotRunning("the node is stopping")),
        ("membership", NotRunning("the node is stopping")),
    ],
)
def test_what_no_repetition_helps_is_raised(kind: str, problem: MultiRaftError) -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.errors[kind] = [problem]
        await members.remove("b")

    assert refused(scenario, type(problem)) == str(problem)


def test_an_answer_that_makes_no_sense_is_unknown() -> None:
    async def nonsense(kind: str, body: bytes, timeout_s: float) -> bytes:
        return b"\xc1"

    async def main() -> None:
        with pytest.raises(OutcomeUnknown, match="not understood"):
            await Members(nonsense, asyncio.get_running_loop().time, 1.0).remove("b")

    run_virtual(main())


# --------------------------------------------------------------------------------------------- what time-outs say


def test_nobody_to_ask_is_said_with_the_last_cause() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.errors["membership"] = [Unreachable("node b is not connected")] * 10_000
        await members.remove("b")

    said = refused(scenario, NotReady, timeout_s=2.0)
    assert said.startswith("not done within 2 s: the group's leader was not reached")
    assert "node b is not connected" in said


def test_a_change_that_is_put_off_says_why() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.errors["change"] = [NotReady("its new leader has committed nothing yet")] * 10_000
        await members.remove("b")

    assert "its new leader has committed nothing yet" in refused(scenario, NotReady, timeout_s=2.0)


def test_a_change_that_is_not_committed_is_named_by_its_index() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.hold = True
        await members.remove("b")

    assert "a membership change of index 2 is under way" in refused(scenario, NotReady, timeout_s=3.0)


@pytest.mark.parametrize(
    ("behind", "words"),
    [({4: 7}, "catches up: 7 entries are missing"), ({4: None}, "does not answer"), ({}, "does not answer")],
)
def test_a_newcomer_that_is_waited_for_is_described(behind: dict[int, int | None], words: str) -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.behind = behind
        await members.add("d", voter=True)

    said = refused(scenario, NotReady, timeout_s=4.0)
    assert "replica 4 on node 'd'" in said
    assert words in said
    assert "It may still be done later" in said


def test_without_a_time_of_its_own_a_call_has_a_minute() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.hold = True
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(NotReady, match="not done within 60 s"):
            await members.remove("b")
        assert 60 <= asyncio.get_running_loop().time() - began_s < 62

    looks = play(scenario, timeout_s=None).looks
    assert looks < 300  # it waits at the leader, rather than asking all the time


# -------------------------------------------------------------------------------------------------------- transfer


def test_a_transfer_is_asked_for_once_and_waited_for() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        assert await members.transfer("b") == "a"
        assert await members.transfer("b") == "b"  # done already

    assert play(scenario).asked == [[("transfer", "b")]]


def test_a_transfer_that_the_leader_gives_up_is_told_and_not_asked_for_again() -> None:
    async def scenario(leader: Leader, members: Members) -> None:
        leader.takes_over = False
        leader.behind = {2: None}
        await members.transfer("b")

    assert "given up" in refused(scenario, NotReady)


def test_a_learner_or_a_stranger_cannot_take_over() -> None:
    async def to_a_learner(leader: Leader, members: Members) -> None:
        leader.make(changed(leader.members, 2, [AddLearner("d")]))
        await members.transfer("d")

    async def to_a_stranger(leader: Leader, members: Members) -> None:
        await members.transfer("x")

    assert "promote it first" in refused(to_a_learner, ChangeRefused)
    assert "add one first" in refused(to_a_stranger, ChangeRefused)
