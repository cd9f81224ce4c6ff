"""Whole nodes whose data directories were emptied, rolled back, swapped or given up: what they may not do, and how they
come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import InvalidRequest, NotReady, NotRunning, StartError
from multiraft.errors import MultiRaftError, StorageError

Play = Callable[..., None]
DIRECTORY = 1
GROUP = 16


def here(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here()


def replicas(ledgers: Any, name: str) -> list[int]:
    return sorted(here(ledgers, name).engine.replicas)


def voters(ledgers: Any, name: str, group_id: int) -> dict[str, int]:
    members = here(ledgers, name).engine.replicas[group_id].core.membership
    return {members.nodes[voter]: voter for voter in members.voters}


async def write(ledgers: Any, name: str, *values: bytes) -> None:
    for value in values:
        await ledgers.cluster.insist(lambda value=value: ledgers.services[name].propose(b"k", value))


async def empty(ledgers: Any, name: str) -> None:
    """Empty the directory of a node and start it again."""
    ledgers.cluster.wipe(name)
    await ledgers.cluster.start(name)


async def ended(node: Any) -> None:
    """Wait until a node has ended by itself; raises what ended it."""
    async with asyncio.timeout(30.0):
        await node.failed()


async def serves(ledgers: Any, name: str, kept: list[bytes]) -> None:
    """Wait until a readmitted node votes in both groups and has applied everything."""
    cluster = ledgers.cluster
    await cluster.nodes[name].ready(timeout_s=30.0)
    await cluster.until(lambda: replicas(ledgers, name) == [DIRECTORY, GROUP])
    await cluster.until(lambda: ledgers.kept(name) == kept)
    for group_id in (DIRECTORY, GROUP):
        await cluster.until(lambda group_id=group_id: name in voters(ledgers, name, group_id))


def test_an_emptied_node_takes_no_part_until_it_is_readmitted_and_then_serves(play: Play, caplog: Any) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1", b"2")
        old = {group_id: voters(ledgers, "a", group_id)["c"] for group_id in (DIRECTORY, GROUP)}
        await empty(ledgers, "c")
        await cluster.run_for(10.0)
        assert replicas(ledgers, "c") == []
        with pytest.raises(NotReady, match=r"knows another store of node 'c'.*readmit"):
            await cluster.nodes["c"].ready(timeout_s=1.0)
        assert "its directory was emptied or replaced" in caplog.text
        cluster.crash("b")  # if c were counted, a and c would be enough
        with pytest.raises(MultiRaftError):
            await ledgers.services["a"].propose(b"k", b"lost?")
        await cluster.start("b")
        await write(ledgers, "a", b"3")
        await cluster.nodes["a"].readmit("c")
        for group_id in (DIRECTORY, GROUP):
            assert voters(ledgers, "a", group_id)["c"] > old[group_id], "an id is never used again"
        await write(ledgers, "c", b"4")
        await cluster.until(lambda: ledgers.kept("a")[-1:] == [b"4"])
        await serves(ledgers, "c", ledgers.kept("a"))
        cluster.crash("b")
        await write(ledgers, "c", b"5")  # now it is counted

    play(scenario)


def test_a_node_is_readmitted_from_every_other_one_and_more_than_once(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        for asker, name in (("b", "c"), ("c", "a"), ("a", "c"), ("c", "b")):
            await empty(ledgers, name)
            await cluster.nodes[asker].readmit(name)
            await serves(ledgers, name, [b"1"])
        identity = here(ledgers, "a").store.identity
        assert (identity.readmissions, identity.admitted) == (4, ("a", "b", "c"))
        assert {name: here(ledgers, name).store.identity.stores for name in "bc"} == dict.fromkeys(
            "bc", identity.stores
        )

    play(scenario)


def test_a_readmitted_node_stays_one_when_everything_starts_anew(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await empty(ledgers, "c")
        await cluster.nodes["a"].readmit("c")
        ids = voters(ledgers, "a", GROUP)
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        await write(ledgers, "c", b"1")
        await serves(ledgers, "c", [b"1"])
        assert voters(ledgers, "c", GROUP) == ids

    play(scenario)


def test_readmitting_is_taken_up_where_it_was_interrupted(play: Play) -> None:
    """Whatever step a call was in when it ended, another one, on another node, finishes it."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        ids: dict[int, int] = {}
        readmissions = 0
        steps: dict[str, Callable[[], bool]] = {
            "admitted": lambda: here(ledgers, "a").store.identity.readmissions == readmissions + 1,
            "joined": lambda: here(ledgers, "c").store.identity.formed,
            "directory changed": lambda: voters(ledgers, "a", DIRECTORY).get("c") != ids[DIRECTORY],
            "directory back": lambda: DIRECTORY in replicas(ledgers, "c"),
            "group changed": lambda: voters(ledgers, "a", GROUP).get("c") != ids[GROUP],
            "group back": lambda: GROUP in replicas(ledgers, "c"),
        }
        for step, reached in steps.items():
            readmissions = here(ledgers, "a").store.identity.readmissions
            ids = {group_id: voters(ledgers, "a", group_id)["c"] for group_id in (DIRECTORY, GROUP)}
            await empty(ledgers, "c")
            call = asyncio.ensure_future(cluster.nodes["a"].readmit("c"))
            await cluster.until(reached)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            cluster.crash("c")
            await cluster.start("c")
            await cluster.nodes["b"].readmit("c")
            await serves(ledgers, "c", [b"1"])
            assert here(ledgers, "a").store.identity.readmissions == readmissions + 1, step

    play(scenario)


def test_calling_again_replaces_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await empty(ledgers, "c")
        await cluster.nodes["a"].readmit("c")
        before = {group_id: voters(ledgers, "a", group_id) for group_id in (DIRECTORY, GROUP)}
        await cluster.nodes["b"].readmit("c")
        assert {group_id: voters(ledgers, "a", group_id) for group_id in (DIRECTORY, GROUP)} == before

    play(scenario)


def test_a_node_that_is_emptied_again_while_it_is_readmitted_comes_back_with_its_last_store(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        await empty(ledgers, "c")
        call = asyncio.ensure_future(cluster.nodes["a"].readmit("c"))
        await cluster.until(lambda: here(ledgers, "c").store.identity.formed)
        await empty(ledgers, "c")
        with contextlib.suppress(NotReady):
            await call
        await cluster.nodes["a"].readmit("c")
        await serves(ledgers, "c", [b"1"])

    play(scenario)


def test_founding_replicas_are_not_made_again(play: Play) -> None:
    """The readmitted node follows the directory, which names it among a group's first nodes: it waits to be asked."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        await empty(ledgers, "c")
        call = asyncio.ensure_future(cluster.nodes["a"].readmit("c"))
        await cluster.until(lambda: DIRECTORY in replicas(ledgers, "c"))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await cluster.until(lambda: GROUP in here(ledgers, "c").directory.groups)
        founded = here(ledgers, "c").directory.groups[GROUP]
        if "c" in voters(ledgers, "a", GROUP) and voters(ledgers, "a", GROUP)["c"] <= 3:
            assert "c" in founded.nodes
            await cluster.run_for(10.0)
            assert replicas(ledgers, "c") == [DIRECTORY]
        else:
            pytest.fail("the call had gone on to the group; interrupt it earlier")

    play(scenario)


def test_a_rolled_back_store_is_refused_and_its_node_ends_saying_why(play: Play, caplog: Any) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.stop("c")
        image = cluster.disks["c"].image()
        await cluster.start("c")
        await cluster.ready()
        await write(ledgers, "a", b"1")
        await cluster.until(lambda: ledgers.kept("c") == [b"1"])
        cluster.crash("c")
        cluster.disks["c"].roll_back(image)
        await cluster.start("c")  # the same incarnation as the run that was met, but not that run
        node = cluster.nodes["c"]
        with pytest.raises(StorageError, match=r"rolled back.*node '[ab]' has met a later run.*readmit\('c'\)"):
            await ended(node)
        with pytest.raises(NotRunning, match=r"rolled back"):
            await node.ready()
        assert "without having been" in caplog.text
        cluster.forget_ended()
        await cluster.until(lambda: not cluster.disks["c"].in_use)
        with pytest.raises(StorageError, match=r"may take part no longer: .*rolled back"):
            await cluster.start("c")
        await write(ledgers, "a", b"2")
        await empty(ledgers, "c")
        await cluster.nodes["b"].readmit("c")
        await serves(ledgers, "c", [b"1", b"2"])

    play(scenario)


@pytest.mark.parametrize("starts", [1, 2, 5])
def test_a_rolled_back_store_is_refused_after_all_peers_and_itself_have_started_anew(play: Play, starts: int) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.stop("c")
        image = cluster.disks["c"].image()
        await cluster.start("c")
        await cluster.ready()
        await write(ledgers, "a", b"1")
        cluster.crash()
        cluster.disks["c"].roll_back(image)
        for _ in range(starts - 1):  # meeting nobody, it does not learn of it; its incarnation rises all the same
            await cluster.start("c")
            await cluster.run_for(1.0)
            cluster.crash("c")
        await cluster.start("a")
        await cluster.start("b")
        await cluster.ready()
        await cluster.start("c")
        with pytest.raises(StorageError, match=r"rolled back"):
            await ended(cluster.nodes["c"])
        cluster.forget_ended()
        await write(ledgers, "a", b"2")

    play(scenario)


def test_a_store_rolled_back_to_before_the_cluster_was_formed_is_refused(play: Play) -> None:
    """It has the store id that the cluster knows, and knows nothing: offered the cluster, it would vote again."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.start("c")
        await cluster.run_for(0.5)
        assert not here(ledgers, "c").store.identity.formed
        cluster.crash("c")
        image = cluster.disks["c"].image()
        await cluster.start()
        await cluster.ready()
        cluster.crash("c")
        cluster.disks["c"].roll_back(image)
        await cluster.start("c")
        with pytest.raises(StorageError, match=r"rolled back"):
            await ended(cluster.nodes["c"])
        cluster.forget_ended()

    async def main(ledgers: Any) -> None:
        await ledgers.cluster.stop()
        for disk in ledgers.cluster.disks.values():
            disk.wipe()
        await scenario(ledgers)

    play(main)


def test_the_old_store_is_refused_after_the_readmission_and_its_node_ends_saying_why(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        cluster.crash("c")
        old = cluster.disks["c"].image()
        await empty(ledgers, "c")
        await cluster.nodes["a"].readmit("c")
        await serves(ledgers, "c", [b"1"])
        cluster.crash()
        new = cluster.disks["c"].image()
        cluster.disks["c"].roll_back(old)
        await cluster.start("a")
        await cluster.start("b")
        await cluster.start("c")
        with pytest.raises(
            StorageError, match=r"was given up: another one was admitted in its place, as node '[ab]' says"
        ):
            await ended(cluster.nodes["c"])
        cluster.forget_ended()
        await write(ledgers, "a", b"2")
        await cluster.until(lambda: not cluster.disks["c"].in_use)
        cluster.disks["c"].roll_back(new)
        await cluster.start("c")
        await serves(ledgers, "c", [b"1", b"2"])

    play(scenario)


def test_swapped_directories_of_two_nodes_are_refused_at_the_start(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.crash("b", "c")
        b, c = cluster.disks["b"].image(), cluster.disks["c"].image()
        cluster.disks["b"].roll_back(c)
        cluster.disks["c"].roll_back(b)
        for name, other in (("b", "c"), ("c", "b")):
            with pytest.raises(StartError, match=f"belongs to node '{other}'.*the configuration says node '{name}'"):
                await cluster.start(name)
        cluster.disks["b"].roll_back(b)
        cluster.disks["c"].roll_back(c)
        await cluster.start("b")
        await cluster.start("c")
        await cluster.ready()

    play(scenario)


def test_two_of_three_emptied_at_once_is_said_to_be_too_many(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        cluster.crash("b")
        b = cluster.disks["b"].image()
        await empty(ledgers, "b")
        await empty(ledgers, "c")
        strangers = here(ledgers, "a").forming.strangers
        await cluster.until(lambda: set(strangers) == {"b", "c"})
        with pytest.raises(
            NotReady, match=r"lost its quorum: 2 of its voters a, b, c .* directories of b, c were emptied"
        ):
            await cluster.nodes["a"].readmit("c")
        cluster.crash("b")
        cluster.disks["b"].roll_back(b)
        await cluster.start("b")
        await cluster.nodes["a"].readmit("c")
        await serves(ledgers, "c", [b"1"])

    play(scenario)


def test_readmitting_without_a_quorum_ends_and_says_what_is_missing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await empty(ledgers, "c")
        cluster.crash("b")
        with pytest.raises(NotReady, match=r"within 5 s: the directory does not serve .*not connected to this node: b"):
            await cluster.nodes["a"].readmit("c", timeout_s=5.0)

    play(scenario)


def test_what_lived_on_the_emptied_node_alone_is_named(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        (name,) = here(ledgers, "a").router.map.groups[GROUP]
        other = next(one for one in "abc" if one != name)
        await empty(ledgers, name)
        with pytest.raises(NotReady, match=f"1 of 1 groups .* group 16: it lived on '{name}' alone"):
            await cluster.nodes[other].readmit(name)
        await cluster.until(lambda: DIRECTORY in replicas(ledgers, name))

    play(scenario, replicas=1)


def test_what_cannot_be_readmitted_is_refused(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        node = ledgers.cluster.nodes["a"]
        with pytest.raises(InvalidRequest, match=r"cannot readmit itself"):
            await node.readmit("a")
        with pytest.raises(InvalidRequest, match=r"no member 'x' \(there are: a, b, c\)"):
            await node.readmit("x")
        with pytest.raises(InvalidRequest, match=r"nothing to readmit"):
            await node.readmit("c")
        ledgers.cluster.crash("c")
        with pytest.raises(NotReady, match=r"node 'c' is not connected to this one: start it"):
            await node.readmit("c", timeout_s=3.0)

    play(scenario)


def test_the_directory_keeps_its_replica_on_every_node(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        group = ledgers.cluster.nodes["a"].group(DIRECTORY)
        with pytest.raises(InvalidRequest, match=r"keeps a replica on every founding node"):
            await group.remove("c")

    play(scenario)


def test_a_replica_of_the_directory_can_be_replaced_on_its_own_node(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for name in "abc":
            before = voters(ledgers, name, DIRECTORY)
            asker = next(one for one in "abc" if one != name)
            membership = await cluster.nodes[asker].group(DIRECTORY).replace(name, name)
            assert membership.replica_on(name) > max(before.values())
            await cluster.until(lambda name=name: DIRECTORY in replicas(ledgers, name))
            await cluster.until(lambda name=name: GROUP in here(ledgers, name).directory.groups)
            await write(ledgers, name, name.encode())
        assert here(ledgers, "a").directory.snapshot() == here(ledgers, "b").directory.snapshot()

    play(scenario)


def test_a_member_that_was_away_at_the_readmission_takes_it_over_on_return(play: Play) -> None:
    """It knows the readmitted node by its old store; even where that node leads the directory, it catches up."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.crash("e")
        await empty(ledgers, "c")
        await cluster.nodes["a"].readmit("c")
        await cluster.until(lambda: cluster.leaders(DIRECTORY) != [])
        (leader,) = cluster.leaders(DIRECTORY)
        if leader != "c":
            await cluster.insist(lambda: transfer(cluster, leader, "c"))
            await cluster.until(lambda: cluster.leaders(DIRECTORY) == ["c"])
        await cluster.start("e")
        await cluster.until(lambda: here(ledgers, "e").store.identity.readmissions == 1)
        assert cluster.leaders(DIRECTORY) == ["c"]
        await cluster.nodes["e"].ready()

    async def transfer(cluster: Any, leader: str, to: str) -> None:
        cluster.nodes[leader].transfer_leadership(DIRECTORY, to)

    play(scenario, names="abcde")


def test_an_admitted_store_founds_no_directory(play: Play) -> None:
    """It waits to be asked: while the directory's leader cannot reach it, it has no replica of anything."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await empty(ledgers, "c")
        call = asyncio.ensure_future(cluster.nodes["a"].readmit("c"))
        await cluster.until(lambda: here(ledgers, "c").store.identity.formed)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        if voters(ledgers, "a", DIRECTORY)["c"] > 3:
            pytest.fail("the call had gone on to the directory; interrupt it earlier")
        await cluster.run_for(10.0)
        assert replicas(ledgers, "c") == []
        await cluster.nodes["a"].readmit("c")
        await serves(ledgers, "c", ledgers.kept("a"))

    play(scenario)
