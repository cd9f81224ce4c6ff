"""Whole nodes whose snapshots are files: they cross beside the messages, and what goes wrong on the way is mended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from multiraft import Limits, NotReady
from multiraft.engine import snapshotting
from multiraft.membership import pack_membership
from multiraft.messages import InstallSnapshot
from multiraft.ports import FILE_PIECE_BYTES
from multiraft.snapshot_file import MANIFEST_FORMAT
from multiraft.testing import run_virtual
from tests.node.shipping import BLOB_BYTES, GROUP, Albums

KIB = 1024
LIMITS = Limits(
    request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=0, snapshot_bytes_per_s=256 * KIB,
    entry_bytes=8 * KIB * KIB,
)  # fmt: skip
FILE_S = BLOB_BYTES / LIMITS.snapshot_bytes_per_s
"""How long a file takes at that pace."""

Show = Callable[..., None]


@pytest.fixture
def show(pure_build: None, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run a scenario on a started and ready cluster of albums; newer snapshots come while older ones are sent."""
    monkeypatch.setattr(snapshotting, "HELD_TIMES", 0)

    def run(scenario: Callable[[Albums], Coroutine[Any, Any, None]], limits: Limits = LIMITS, **options: Any) -> None:
        async def main() -> None:
            albums = Albums(limits, **options)
            async with albums.cluster as cluster:
                await cluster.ready()
                await scenario(albums)

        run_virtual(main())

    return run


def now(albums: Albums) -> float:
    loop: Any = albums.engine("a").loop
    found: float = loop.virtual.now_s
    return found


def test_a_learner_fetches_the_file_at_the_pace_allowed_and_the_group_goes_on(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        began_s = now(albums)
        fetch = await albums.half("d")
        (incoming,) = albums.fetching("d").status()
        assert (incoming["group_id"], incoming["from"], incoming["of"]) == (GROUP, "a", fetch.manifest.size_bytes)
        assert (incoming["stage"], incoming["bytes"]) == ("fetching", fetch.received)
        (outgoing,) = albums.serving("a").status()
        assert (outgoing["group_id"], outgoing["to"], outgoing["name"]) == (GROUP, "d", fetch.name)
        assert outgoing["of"] >= outgoing["bytes"] >= fetch.received
        kept = await albums.write("b", 25, 30)
        assert albums.kept("d") == []
        await albums.caught_up("d", kept)
        assert FILE_S - 0.5 < now(albums) - began_s < FILE_S + 1.5
        assert albums.count("d", "file_bytes_received") == fetch.manifest.size_bytes
        assert albums.fetching("d").status() == albums.serving("a").status() == []
        assert albums.fetching("d").counters["snapshots_fetched"] == 1
        assert list(albums.whole("d")) == [fetch.name]
        assert albums.leader_of() == ["a"]

    show(scenario)


def test_a_transfer_that_was_cut_goes_on_from_where_it_was(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        cluster = albums.cluster
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        for part in (0.2, 0.5, 0.8):
            async with asyncio.timeout(3 * FILE_S):
                fetch = await albums.half("d", part)
            cluster.network.cut("a", "d")
            await cluster.run_for(0.3)
            cluster.network.heal()
        async with asyncio.timeout(3 * FILE_S):
            await albums.caught_up("d", kept)
        assert albums.count("d", "file_bytes_received") <= fetch.manifest.size_bytes + 3 * FILE_PIECE_BYTES
        assert albums.count("a", "files_served") >= 4
        assert albums.count("d", "dropped_file_transfer") == 3

    show(scenario)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_receiver_that_crashes_goes_on_from_where_it_was_in_its_next_run(show: Show, part: float) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d", part)
        before = albums.count("d", "file_bytes_received")
        albums.cluster.crash("d")
        there = len(albums.parts("d")[fetch.name][0])
        assert there > 0
        await albums.cluster.start("d")
        await albums.caught_up("d", kept)
        assert albums.count("d", "file_bytes_received") == fetch.manifest.size_bytes - there
        assert before <= there

    show(scenario)


def test_what_an_earlier_run_had_fetched_makes_room_for_a_newer_file(show: Show) -> None:
    """A node that dies again and again on a small disk must not gather a file from every run."""

    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        first = await albums.half("d")
        albums.cluster.crash("d")
        assert first.name in albums.parts("d")
        kept = await albums.write("b", 25, 130)
        await albums.cluster.start("d")
        second = await albums.half("d")
        assert second.name != first.name
        assert set(albums.parts("d")) == {second.name}
        await albums.caught_up("d", kept)

    show(scenario)


def test_a_file_that_was_here_whole_is_not_fetched_again(show: Show) -> None:
    """A crash between the file's sync and the snapshot's."""

    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d")
        albums.cluster.crash("d")
        albums.parts("d").clear()
        albums.whole("d")[fetch.name] = albums.whole("a")[fetch.name]
        await albums.cluster.start("d")
        await albums.caught_up("d", kept)
        assert albums.count("d", "file_bytes_received") == 0

    show(scenario)


@pytest.mark.parametrize(
    ("what", "said"),
    [("part", "its digest is another one"), ("whole", "its digest is another one"), ("end", "ends at 1049104, not at")],
)
def test_a_file_that_is_not_what_was_told_of_is_fetched_anew(
    show: Show, caplog: pytest.LogCaptureFixture, what: str, said: str
) -> None:
    """A flipped bit in what has come so far; one in a file of an earlier run, and such a file that lost its end."""

    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d")
        if what == "part":
            albums.parts("d")[fetch.name][0][1000] ^= 1
        else:
            albums.cluster.crash("d")
            content = albums.whole("a")[fetch.name]
            flipped = content[:-1] + bytes([content[-1] ^ 1])
            albums.whole("d")[fetch.name] = flipped if what == "whole" else content[:-1]
            await albums.cluster.start("d")
        await albums.cluster.until(lambda: albums.fetching("d").counters["fetch_failures"] == 1)
        assert albums.fetching("d").counters["fetch_wrong_digest"] == (what != "end")
        assert albums.kept("d") == []
        await albums.caught_up("d", kept)
        assert albums.whole("d")[fetch.name] == albums.whole("a")[fetch.name]

    with caplog.at_level(logging.WARNING, "multiraft.engine"):
        show(scenario)
    assert said in caplog.text


def test_a_file_that_loses_its_end_while_it_is_sent_is_given_up(show: Show, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d")
        content = albums.whole("a")[fetch.name]
        albums.whole("a")[fetch.name] = content[:-1]
        await albums.cluster.until(lambda: albums.count("a", "dropped_file_sending") == 1)
        albums.whole("a")[fetch.name] = content
        await albums.cluster.until(lambda: len(albums.kept("d")) == 25)

    with caplog.at_level(logging.WARNING, "multiraft"):
        show(scenario)
    assert "ends at 1049104, not at 1049105" in caplog.text


def test_a_leader_change_midway_ends_in_the_next_leaders_snapshot(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        first = await albums.half("d")
        await albums.lead("b")
        await albums.cluster.until(lambda: albums.fetching("d").status()[0]["from"] == "b")
        assert first.name not in albums.parts("d")
        await albums.caught_up("d", kept)
        assert albums.leader_of() == ["b"]
        assert len(albums.whole("d")) == 1
        assert not albums.parts("d")

    show(scenario)


def test_a_leader_that_dies_midway_is_followed_by_another_that_sends_its_own(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        await albums.half("d")
        albums.cluster.crash("a")
        await albums.caught_up("d", kept)
        assert albums.fetching("d").counters["snapshots_fetched"] == 1

    show(scenario)


def test_a_newer_snapshot_takes_the_place_of_one_whose_file_is_gone(show: Show) -> None:
    """The leader is told at once: it need not wait for its patience, which is ten election timeouts, to end."""

    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        first = await albums.half("d")
        albums.cluster.network.cut("a", "d")
        kept = await albums.write("b", 25, 130)
        del albums.whole("a")[first.name]
        began_s = now(albums)
        albums.cluster.network.heal()
        await albums.cluster.until(lambda: albums.fetching("d").status()[0]["name"] != first.name)
        assert now(albums) - began_s < 2.5
        await albums.caught_up("d", kept)

    show(scenario)


def test_a_leader_whose_file_vanishes_midway_is_told_and_sends_its_newest(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        first = await albums.half("d")
        kept = await albums.write("b", 25, 130)
        del albums.whole("a")[first.name]
        began_s = now(albums)
        await albums.cluster.until(lambda: albums.fetching("d").counters["fetch_gone"] == 1)
        await albums.cluster.until(lambda: albums.fetching("d").status()[0]["name"] != first.name)
        assert now(albums) - began_s < 2.5
        await albums.caught_up("d", kept)

    show(scenario)


def test_a_file_that_is_being_sent_is_kept_though_there_is_a_newer_one(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        first = await albums.half("d", 0.3)
        kept = await albums.write("b", 25, 130)
        assert albums.core("a").snapshot_index > first.message.index
        assert albums.serving("a").pinned(first.name)
        released: list[bool] = []
        albums.serving("a").released = lambda: released.append(albums.serving("a").pinned(first.name))
        await albums.caught_up("d", kept)
        assert albums.count("d", "file_bytes_received") >= first.manifest.size_bytes
        assert albums.fetching("d").counters["fetch_gone"] == 0
        await albums.cluster.until(lambda: bool(released))
        assert released == [False]

    show(scenario)


def test_a_leader_is_patient_while_a_voter_it_needs_fetches_for_long(show: Show) -> None:
    """L23 does not count that time, and the snapshot is not sent again, though it takes 16 election timeouts."""

    async def scenario(albums: Albums) -> None:
        cluster = albums.cluster
        await albums.lead("a")
        cluster.crash("c")
        await albums.write("a", 0, 25)
        term = albums.core("a").term
        cluster.crash("b")
        await cluster.start("c")
        sent: list[int] = []
        albums.engine("a").snapshotting.passed = sent.append
        stuck = cluster.on("a", albums.services["a"].propose(b"k", b"25"))
        await albums.half("c", 0.01)
        began_s, asked = now(albums), albums.count("c", "files_asked")
        await albums.caught_up("c", [b"%d" % number for number in range(26)])
        assert now(albums) - began_s > 15
        assert await stuck == b"26"
        assert (albums.core("a").term, albums.leader_of()) == (term, ["a"])
        assert albums.count("a", "files_served") == asked == 1
        assert len(sent) <= 2, "once, or again on another connection"

    show(scenario, names="abc", limits=Limits(
        request_timeout_ms=60_000, snapshot_entries=20, trailing_entries=0, snapshot_bytes_per_s=64 * KIB,
    ))  # fmt: skip


def test_an_owner_that_sends_nothing_is_tried_again_and_again_until_it_does(
    show: Show, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        files = albums.engine("a").store.files
        files.read = lambda name, offset, size_bytes, done: None
        await albums.add_learner("a", "d")
        await albums.cluster.until(lambda: albums.fetching("d").counters["fetch_failures"] >= 2, 300.0)
        (incoming,) = albums.fetching("d").status()
        assert incoming["failures"] >= 2
        assert "silent" in incoming["problem"]
        del files.read
        await albums.caught_up("d", kept)

    with caplog.at_level(logging.WARNING, "multiraft.engine"):
        show(scenario)
    assert "fell silent" in caplog.text


def test_a_file_of_an_earlier_term_waits_until_its_leader_sends_it_again(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d")
        fetch.message.term -= 1
        await albums.cluster.until(lambda: albums.fetching("d").status()[0]["stage"] == "whole")
        assert albums.kept("d") == []
        assert albums.engine("d").transfers.protects(fetch.name)
        await albums.caught_up("d", kept)
        assert albums.count("d", "files_asked") == 1

    show(scenario)


def test_a_file_is_protected_until_its_snapshot_is_on_disk(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        kept = await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        fetch = await albums.half("d")
        protects = albums.engine("d").transfers.protects
        assert protects(fetch.name)
        albums.cluster.disks["d"].delay_s = lambda: 0.5
        await albums.cluster.until(lambda: not albums.fetching("d").status())
        await albums.cluster.run_for(0.3)
        assert albums.core("d").snapshot_index < fetch.message.index <= albums.core("d").commit
        assert protects(fetch.name)
        await albums.caught_up("d", kept)
        await albums.cluster.until(lambda: not protects(fetch.name))
        assert fetch.name in albums.whole("d")

    show(scenario)


@pytest.mark.parametrize("data", [bytes([MANIFEST_FORMAT]), bytes([MANIFEST_FORMAT]) + b"nonsense"])
def test_a_manifest_that_makes_no_sense_is_passed_over(show: Show, data: bytes) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        leader, follower = albums.core("a"), albums.core("b")
        message = InstallSnapshot(
            data, GROUP, 1_000, leader.term, pack_membership(leader.membership),
            leader.replica_id, leader.term, follower.replica_id,
        )  # fmt: skip
        albums.engine("b").messages_received("a", 1, [message])
        await albums.cluster.until(lambda: albums.fetching("b").counters["fetch_failures"] == 1)
        assert albums.engine("b").replicas[GROUP].broken is None
        assert follower.last_index < 1_000
        assert albums.fetching("b").status() == []
        await albums.write("b", 0, 3)

    show(scenario)


def test_a_replica_that_is_removed_midway_leaves_nothing_of_the_file(show: Show) -> None:
    async def scenario(albums: Albums) -> None:
        await albums.lead("a")
        await albums.write("b", 0, 25)
        await albums.add_learner("a", "d")
        await albums.half("d")
        await albums.cluster.nodes["a"].group(GROUP).remove("d")
        await albums.cluster.until(lambda: GROUP not in albums.engine("d").replicas)
        gone_s = now(albums)
        await albums.cluster.until(lambda: not albums.fetching("d").status() and not albums.parts("d"))
        await albums.cluster.until(lambda: albums.serving("a").status() == [])
        assert now(albums) - gone_s < FILE_S / 8

    show(scenario)


# ------------------------------------------------------------------------------------------------------ many at once

MANY = range(16, 22)
TIGHT = Limits(
    request_timeout_ms=3_000, snapshot_entries=4, trailing_entries=0, snapshot_bytes_per_s=512 * KIB,
    snapshot_transfers=2,
)  # fmt: skip


async def write_to_all(albums: Albums, count: int) -> None:
    async def attempt(group_id: int) -> bytes:
        for name in albums.cluster.leaders(group_id):
            answer: bytes = await albums.engine(name).propose(group_id, b"x")
            return answer
        raise NotReady(f"group {group_id} has no leader")

    for group_id in MANY:
        for _ in range(count):
            await albums.cluster.insist(partial(attempt, group_id))


def test_few_files_are_fetched_at_once_and_together_no_faster_than_allowed(show: Show) -> None:
    """Requirement 19: a node that was away needs the state of all its groups, and gets a few at a time."""

    async def scenario(albums: Albums) -> None:
        cluster = albums.cluster
        cluster.crash("c")
        await write_to_all(albums, 8)
        await cluster.start("c")
        seen, waited = 0, 0
        engine = albums.engine("c")
        began_s = now(albums)
        while not all(engine.replicas[group_id].applied > 8 for group_id in MANY):
            await asyncio.sleep(0.005)
            incoming = albums.fetching("c").status()
            at_work = [one for one in incoming if one["stage"] != "waiting"]
            assert len(at_work) <= 2
            assert max(len(albums.serving(name).status()) for name in "ab") <= 2
            seen, waited = max(seen, len(at_work)), max(waited, len(incoming) - len(at_work))
            burst_bytes = (0.1 + 0.01) * TIGHT.snapshot_bytes_per_s + 2 * FILE_PIECE_BYTES
            allowed = (now(albums) - began_s) * TIGHT.snapshot_bytes_per_s + burst_bytes
            assert albums.count("c", "file_bytes_received") <= allowed
        assert (seen, waited) == (2, len(MANY) - 2)
        took_s = now(albums) - began_s
        assert took_s < 1.3 * len(MANY) * BLOB_BYTES / TIGHT.snapshot_bytes_per_s
        assert albums.fetching("c").counters == {
            "snapshots_fetched": len(MANY), "fetch_failures": 0, "fetch_wrong_digest": 0, "fetch_gone": 0
        }  # fmt: skip

    show(scenario, names="abc", limits=TIGHT, shards=len(MANY))


def test_an_owner_sends_few_files_at_once_and_the_others_come_again(show: Show) -> None:
    """Two nodes need the state of the same groups of one node: it refuses politely, and its pace holds for both."""

    async def scenario(albums: Albums) -> None:
        cluster = albums.cluster
        cluster.crash("d", "e")
        await write_to_all(albums, 8)
        for group_id in MANY:
            await cluster.insist(partial(hand_over, albums, group_id))
        await asyncio.gather(cluster.start("d"), cluster.start("e"))
        began_s = now(albums)
        engines = [albums.engine(name) for name in "de"]
        while not all(engine.replicas[group_id].applied > 8 for engine in engines for group_id in MANY):
            await asyncio.sleep(0.005)
            assert len(albums.serving("a").status()) <= 2
            burst_bytes = (0.1 + 0.01) * TIGHT.snapshot_bytes_per_s + 3 * FILE_PIECE_BYTES
            allowed = (now(albums) - began_s) * TIGHT.snapshot_bytes_per_s + burst_bytes
            assert albums.count("a", "file_bytes_sent") <= allowed
        assert albums.count("a", "refused_file_busy") > 0
        assert sum(albums.fetching(name).counters["fetch_failures"] for name in "de") == 0
        assert sum(albums.fetching(name).counters["snapshots_fetched"] for name in "de") == 2 * len(MANY)

    show(scenario, names="abcde", limits=TIGHT, shards=len(MANY), replicas=5)


async def hand_over(albums: Albums, group_id: int) -> None:
    """Let node a lead the group, or raise."""
    leaders = albums.cluster.leaders(group_id)
    if leaders != ["a"]:
        if leaders:
            albums.cluster.nodes[leaders[0]].transfer_leadership(group_id, "a")
        raise NotReady("not yet")
