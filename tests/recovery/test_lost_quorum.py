"""Two of three nodes are lost, for 50 groups at once: what the plan says is what is found when the survivor runs again.

Rules of this file: the plan is held against what callers were told, group by group, entry by entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from multiraft import Limits
from multiraft.errors import RecoveryRefused, StorageError
from multiraft.recovery import Plan
from multiraft.recovery.plans import KEPT, RECOVERED
from multiraft.testing import run_virtual
from tests.keeping import Kept, KeptOnDisk
from tests.recovery.conftest import Journals

if TYPE_CHECKING:
    from multiraft.recovery import GroupPlan


def play(scenario: Callable[[Journals], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        journals = Journals(**options)
        async with journals.cluster as cluster:
            await cluster.ready()
            await scenario(journals)

    run_virtual(main())


def planned(plan: Plan) -> dict[int, GroupPlan]:
    return {group.group_id: group for group in plan.groups}


def judge(journals: Journals, plan: Plan, source: str) -> tuple[int, int]:
    """Hold the plan against the account: return how many entries were lost, and how many newly committed."""
    lost = newly = 0
    for group_id, group in planned(plan).items():
        if group_id not in journals.acknowledged:
            continue
        kept = journals.kept(source, group_id)
        acknowledged = journals.acknowledged[group_id]
        missing = {number: said for number, said in acknowledged.items() if kept[number - 1 : number] != [said]}
        assert all(number > len(kept) for number in missing), "what survives is a prefix"
        assert group.may_lose or not missing, f"group {group_id}: lost {missing}, but {group.words}"
        assert any("MAY BE LOST" in line for line in group.words) == group.may_lose
        untold = [command for command in kept if command not in acknowledged.values()]
        assert set(untold) <= journals.unknown[group_id]
        assert len(untold) <= group.newly, f"group {group_id}: {untold} happened, but {group.words}"
        assert any("NEWLY COMMITTED" in line for line in group.words) == (group.newly > 0)
        lost += len(missing)
        newly += len(untold)
    return lost, newly


def test_a_survivor_that_had_everything_loses_nothing_and_serves_again() -> None:
    async def scenario(journals: Journals) -> None:
        await journals.write("a", count=2)
        await asyncio.sleep(1.0)
        journals.cluster.crash()
        plan = journals.plan("c")
        assert {group.verdict for group in plan.groups} == {RECOVERED}
        assert len(plan.groups) == 51
        assert plan.lost == ("a", "b")
        applied = journals.apply(plan, "c")
        assert (applied.done, applied.written, len(applied.actions)) == (False, True, 51)
        await journals.cluster.start("c")
        await journals.led("c")
        await journals.write("c")
        assert judge(journals, plan, "c")[0] == 0
        assert not any(journals.unknown.values())
        for group_id in (1, *journals.groups):
            members = journals.cluster.nodes["c"].membership(group_id)
            assert [members.nodes[voter] for voter in members.voters] == ["c"]

    play(scenario)


@pytest.mark.parametrize("machine", [Kept, KeptOnDisk])
def test_a_survivor_that_lagged_loses_what_the_plan_says_and_no_more(machine: type[Kept]) -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        await asyncio.sleep(1.0)
        cluster.network.partition(("a", "b"), ("c",))
        await journals.led("a", "b")
        await journals.write("a", list(journals.groups)[::2], count=3)
        cluster.crash()
        cluster.network.heal()
        plan = journals.plan("c")
        journals.apply(plan, "c")
        await cluster.start("c")
        await journals.led("c")
        lost, _ = judge(journals, plan, "c")
        assert lost == 3 * 25, "every entry that only the lost ones had, and nothing else"
        for group_id, group in planned(plan).items():
            if group_id in journals.acknowledged:
                assert group.may_lose

    play(scenario, machine=machine)


def test_what_nobody_was_told_of_is_newly_committed_and_said_so() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        await asyncio.sleep(1.0)
        led = [group_id for group_id in journals.groups if "c" in cluster.leaders(group_id)]
        assert led
        cluster.network.partition(("a", "b"), ("c",))
        await journals.write("c", led, count=2)
        assert all(len(journals.unknown[group_id]) == 2 for group_id in led)
        cluster.crash()
        cluster.network.heal()
        plan = journals.plan("c")
        for group_id in led:
            assert planned(plan)[group_id].newly >= 2
        journals.apply(plan, "c")
        await cluster.start("c")
        await journals.led("c")
        _, newly = judge(journals, plan, "c")
        assert newly == 2 * len(led)

    play(scenario)


def test_two_survivors_of_five_go_on_from_the_longer_log_and_the_other_one_follows() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        await asyncio.sleep(1.0)
        cluster.crash("e")
        await journals.led("a", "b", "c", "d")
        await journals.write("a", count=2)
        cluster.crash()
        plan = journals.plan("d", "e")
        verdicts = {group.verdict for group in plan.groups}
        assert RECOVERED in verdicts
        for name in ("d", "e"):
            journals.apply(plan, name)
        for name in ("d", "e"):
            await cluster.start(name)
        alive = [group for group in plan.groups if group.verdict != "gone"]
        await cluster.until(lambda: all(set(cluster.leaders(one.group_id)) & {"d", "e"} for one in alive))
        both = [group for group in alive if group.verdict == RECOVERED and group.follows]
        assert both
        for group in both:
            wanted = {group.source, *group.follows}
            await cluster.until(lambda group=group, wanted=wanted: voters(journals, group) == wanted)  # type: ignore[misc]
        mine = [group.group_id for group in alive if group.group_id in journals.acknowledged]
        await journals.write("d", mine)

    play(scenario, groups=10, names=("a", "b", "c", "d", "e"))


def voters(journals: Journals, group: GroupPlan) -> set[str]:
    members = journals.cluster.nodes[group.source].membership(group.group_id)
    return {members.nodes[voter] for voter in members.voters}


@pytest.mark.parametrize("limits", [{}, {"snapshot_entries": 4, "trailing_entries": 1}])
def test_groups_that_have_their_quorum_are_left_alone_and_those_of_which_nothing_survives_are_named(
    limits: dict[str, int],
) -> None:
    async def scenario(journals: Journals) -> None:
        await journals.write("a")
        await asyncio.sleep(1.0)
        placed = journals.cluster.nodes["a"].shard_map.groups
        journals.cluster.crash()
        plan = journals.plan("a", "b", "c")
        for group_id, group in planned(plan).items():
            nodes = set(placed.get(group_id, ("a", "b", "c", "d", "e", "f")))
            left = nodes & {"a", "b", "c"}
            expected = RECOVERED if left and 2 * len(left) <= len(nodes) else KEPT if left else "gone"
            assert group.verdict == expected
            if expected == "gone":
                assert ", ".join(placed[group_id]) in group.words[-1]
                assert "LOST" in group.words[-1]
        assert {group.verdict for group in plan.groups} == {RECOVERED, KEPT, "gone"}
        for name in ("a", "b", "c"):
            journals.apply(plan, name)
        for name in ("a", "b", "c"):
            await journals.cluster.start(name)
        alive = [group for group in plan.groups if group.verdict != "gone" and group.group_id in journals.acknowledged]
        cluster = journals.cluster
        await cluster.until(lambda: all(cluster.leaders(one.group_id) for one in alive))
        await journals.write("a", [one.group_id for one in alive])
        for one in alive:
            assert not journals.unknown[one.group_id]

    names = ("a", "b", "c", "d", "e", "f")
    play(scenario, groups=20, names=names, limits=Limits(request_timeout_ms=2_000, **limits))


# ------------------------------------------------------------------------------------------------ a lost one is back


def test_a_lost_node_that_comes_back_is_refused_ends_and_never_starts_again() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        await asyncio.sleep(1.0)
        cluster.crash()
        journals.apply(journals.plan("c"), "c")
        await cluster.start("c")
        await journals.led("c")
        await cluster.start("a")
        with pytest.raises(StorageError, match="the cluster was recovered without node 'a'"):
            async with asyncio.timeout(30.0):
                await cluster.nodes["a"].failed()
        cluster.forget_ended()
        with pytest.raises(StorageError, match="may take part no longer: the cluster was recovered"):
            await cluster.start("a")
        await journals.write("c")
        assert not any(journals.unknown.values())

    play(scenario, groups=5)


def test_a_lost_node_that_was_emptied_is_readmitted_and_learns_of_the_recovery() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        await asyncio.sleep(1.0)
        cluster.crash()
        plan = journals.plan("c")
        journals.apply(plan, "c")
        await cluster.start("c")
        await journals.led("c")
        cluster.wipe("a")
        await cluster.start("a")
        await cluster.nodes["c"].readmit("a")
        generation = cluster.nodes["c"].status()["generation"]
        await cluster.until(lambda: cluster.nodes["a"].status()["generation"] == generation)
        group_id = journals.groups[0]
        await cluster.nodes["c"].group(group_id).add("a")
        members = cluster.nodes["c"].membership(group_id)
        assert sorted(members.nodes[voter] for voter in members.voters) == ["a", "c"]
        cluster.crash("a", "c")
        assert journals.collect("a").identity.generation == plan.generation

    play(scenario, groups=5)


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_plan_is_applied_once_and_again_without_a_change() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        cluster.crash()
        plan = journals.plan("c")
        for count in range(1, 3):
            # A crash before the write, then one between the database and the identity file.
            cluster.disks["c"].crash_after(count, lambda: cluster.disks["c"].crash())
            with pytest.raises(StorageError, match="closed"):
                journals.apply(plan, "c")
        before = cluster.disks["c"].image()
        assert journals.apply(plan, "c").done
        assert cluster.disks["c"].image().values == before.values
        await cluster.start("c")
        await journals.led("c")

    play(scenario, groups=5)


def test_a_node_that_has_run_since_is_refused() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        cluster.crash()
        plan = journals.plan("c")
        await cluster.start("c")
        cluster.crash("c")
        with pytest.raises(RecoveryRefused, match="is not as it was collected: its node has run since"):
            journals.apply(plan, "c")
        with pytest.raises(RecoveryRefused, match="is not among the nodes that the plan counts on"):
            journals.apply(plan, "b")

    play(scenario, groups=2)


def test_two_plans_from_the_same_state_do_not_mix() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        cluster.crash()
        one, other = journals.plan("b"), journals.plan("c")
        assert one.generation != other.generation
        journals.apply(one, "b")
        with pytest.raises(RecoveryRefused, match="is not among the nodes"):
            journals.apply(other, "b")
        journals.apply(other, "c")
        await cluster.start("b")
        await cluster.start("c")
        ended = min(("b", "c"), key=lambda name: {"b": one, "c": other}[name].generation)
        with pytest.raises(StorageError, match="was recovered without"):
            async with asyncio.timeout(30.0):
                await cluster.nodes[ended].failed()
        cluster.forget_ended()

    play(scenario, groups=2)


def test_what_does_not_fit_together_is_refused() -> None:
    async def scenario(journals: Journals) -> None:
        cluster = journals.cluster
        await journals.write("a")
        cluster.crash()
        with pytest.raises(RecoveryRefused, match="is given twice"):
            journals.plan("c", "c")
        with pytest.raises(RecoveryRefused, match="nothing was collected"):
            journals.plan()
        cluster.wipe("b")
        with pytest.raises(RecoveryRefused, match="b is empty: its node never was part of a cluster"):
            journals.plan("b", "c")
        plan = journals.plan("c")
        journals.apply(plan, "c")
        with pytest.raises(RecoveryRefused, match=r"'a' .* is of recovery generation 0, others are of 1-"):
            journals.plan("a", "c")
        other = Journals(groups=2, seed=77)
        async with other.cluster:
            await other.cluster.ready()
            other.cluster.crash()
            with pytest.raises(RecoveryRefused, match="plan for one cluster at a time"):
                journals.plan_of([journals.collect("a"), other.collect("b")])

    play(scenario, groups=2)
