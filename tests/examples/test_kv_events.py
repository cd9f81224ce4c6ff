"""What a shard tells of its changes: in order, each once, as long as it is kept."""

from __future__ import annotations

import pytest

from examples.kv import change
from examples.kv.layout import EVENTS, Event
from examples.kv.machine import KV, PAGE_BYTES
from examples.kv.memory import MemoryKV
from examples.kv.token import TOKEN_LIMIT, Position, read_token, write_token
from multiraft.attributes import pack_attributes, unpack_attributes
from tests.examples.kv_bench import KINDS, Bench, contents


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Bench:
    kind: type[KV] = request.param
    return Bench(kind())


def told(bench: Bench, prefix: str = "", after: int = 0) -> list[tuple[int, str, str, bytes | None]]:
    news = bench.kv.news(prefix, after)
    assert not news.more
    return [(event.index, event.kind, event.key, event.value) for event in news.events]


def test_every_change_is_told_in_order(bench: Bench) -> None:
    do = bench.do
    do.put("a", b"1")
    do.increment("a")
    do.delete("a")
    do.delete("a")  # changes nothing, tells nothing
    do.compare_and_set("b", b"other", b"2")
    do.compare_and_set("b", None, b"2")
    do.batch("c", {"c": b"3", "b": None, "never": None})
    do.expire("c", 1_000)
    assert told(bench) == [
        (1, "put", "a", b"1"),
        (2, "put", "a", b"2"),
        (3, "delete", "a", None),
        (6, "put", "b", b"2"),
        (7, "put", "c", b"3"),
        (7, "delete", "b", None),
        (8, "put", "c", b"3"),
    ]
    assert told(bench, "b") == [(6, "put", "b", b"2"), (7, "delete", "b", None)]
    assert told(bench, after=6) == told(bench)[4:]
    last = bench.kv.news("", 7).events[0]
    assert last == Event(8, 0, "put", "c", bench.now_ms, 1, b"3", bench.now_ms + 1_000)
    assert [event.part for event in bench.kv.news("b", 6).events] == [1]  # its place in the whole command


def test_how_far_a_shard_is_counts_commands_that_told_nothing(bench: Bench) -> None:
    assert bench.kv.news().reached == 0
    bench.do.put("a", b"")
    bench.do.delete("none")
    news = bench.kv.news()
    assert (news.events, news.reached, news.dropped) == ([], 2, 0)
    assert bench.kv.news("other", 0).reached == 2
    assert bench.kv.news("", 5).reached == 5  # a replica that lags behind the one that was asked before


def test_the_end_of_a_key_is_told_once_and_before_what_comes_after_it(bench: Bench) -> None:
    for number in range(20):
        bench.do.put(f"k{number:02}", b"", ttl_ms=10 + number)
    bench.now_ms += 1_000
    bench.do.put("k19", b"new")
    bench.do.delete("k18")
    bench.do.sweep("k00")
    found = told(bench, after=20)
    assert found[0] == (21, "expire", "k19", None)
    assert found[1] == (21, "put", "k19", b"new")
    assert sorted(key for _, kind, key, _ in found if kind == "expire") == [f"k{number:02}" for number in range(20)]
    assert [kind for _, kind, key, _ in found if key == "k18"] == ["expire"]


def test_large_values_are_left_out_and_their_size_is_told(bench: Bench) -> None:
    bench.do.put("small", b"x" * change.EVENT_VALUE_BYTES)
    bench.do.put("large", b"x" * (change.EVENT_VALUE_BYTES + 1))
    small, large = bench.kv.news("", 0).events
    assert (small.value, small.size_bytes) == (b"x" * change.EVENT_VALUE_BYTES, change.EVENT_VALUE_BYTES)
    assert (large.value, large.size_bytes) == (None, change.EVENT_VALUE_BYTES + 1)
    bench.do.batch("0", {str(number): b"y" * change.EVENT_VALUE_BYTES for number in range(1_000)})
    assert bench.kv.meta().event_bytes < change.EVENT_BYTES_KEPT // 8
    shown = [event.value is not None for event in bench.kv.news("", 2).events]
    assert shown[0]
    assert not shown[-1]


def test_the_oldest_are_dropped_past_their_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "EVENTS_KEPT", 32)
    for number in range(100):
        bench.do.put(f"k{number}", b"")
        assert bench.kv.meta().events <= 32
    news = bench.kv.news("", bench.kv.meta().dropped)
    assert len(news.events) == bench.kv.meta().events > 24
    assert [event.index for event in news.events] == list(range(news.dropped + 1, 101))
    too_old = bench.kv.news("", news.dropped - 1)
    assert (too_old.events, too_old.dropped) == ([], news.dropped)
    assert len([name for name, _ in contents(bench.kv) if name.startswith(EVENTS)]) == len(news.events)


def test_the_oldest_are_dropped_past_their_size(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "EVENT_BYTES_KEPT", 20_000)
    for number in range(100):
        bench.do.put(f"k{number}", b"x" * 1_000)
        assert bench.kv.meta().event_bytes <= 20_000
    kept = [packed for name, packed in contents(bench.kv) if name.startswith(EVENTS)]
    assert bench.kv.meta().event_bytes == sum(map(len, kept)) > 15_000
    # One command that tells more than is kept at all is dropped with what came before it.
    bench.do.batch("0", {f"{number:0500}": b"" for number in range(100)})
    assert bench.kv.meta().dropped == 101
    assert bench.kv.meta().events == 0
    bench.do.put("k", b"")
    assert told(bench, after=101) == [(102, "put", "k", b"")]


def test_pages_end_between_commands(bench: Bench) -> None:
    for number in range(10):
        bench.do.batch("0", {f"{number}/{part}": b"" for part in range(5)})
    news = bench.kv.news("", 0, 12)
    assert (len(news.events), news.reached, news.more) == (15, 3, True)
    found, after = 0, 0
    while (news := bench.kv.news("", after, 12)).events:
        found, after = found + len(news.events), news.reached
    assert (found, news.more) == (50, False)


def test_a_page_of_a_rare_prefix_looks_at_a_bounded_number(bench: Bench) -> None:
    for number in range(3):
        bench.do.batch("0", {f"{number}/{part}": b"" for part in range(1_500)})
    bench.do.put("rare", b"")
    news = bench.kv.news("rare", 0)
    assert (news.events, news.reached, news.more) == ([], 2, True)
    assert [event.key for event in bench.kv.news("rare", 2).events] == ["rare"]
    assert bench.kv.meta().event_bytes < PAGE_BYTES


def test_a_shard_in_memory_comes_back_from_its_snapshot_whole() -> None:
    bench, copy = Bench(MemoryKV()), Bench(MemoryKV())
    for number in range(200):
        bench.do.put(f"k{number}", b"%d" % number, ttl_ms=1 + number)
    copy.do.put("other", b"")
    assert copy.kv.scan().entries
    unpack_attributes(copy.kv, b"".join(pack_attributes(bench.kv)))
    assert contents(copy.kv) == contents(bench.kv)
    copy.index, copy.now_ms = bench.index, bench.now_ms
    for one in (bench, copy):
        one.now_ms += 100
        one.do.sweep("k0")
    assert contents(copy.kv) == contents(bench.kv)
    assert list(copy.kv.scan("k", 3).entries) == ["k100", "k101", "k102"]


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ({}, ""),
        ({1: Position(57), 2: Position(88, 3)}, "1:57,2:88.3"),
        ({12: Position((1 << 63) - 1), 3: Position(1)}, "3:1,12:9223372036854775807"),
        ({1: Position(), 2: Position(5)}, "2:5"),
    ],
)
def test_a_token_says_where_a_watch_is(positions: dict[int, Position], text: str) -> None:
    assert write_token(positions) == text
    assert read_token(text) == {shard_id: position for shard_id, position in positions.items() if position.index}


@pytest.mark.parametrize(
    "text",
    [",", "1", "1:", ":1", "1:2,", "1:2;2:3", "1:0", "1:-1", "1:2.", "1:2,1:3", "1:2 ", "١:2", "9" * 40 + ":1"],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not the place of a shard|indexes begin with 1"):
        read_token(text)


def test_a_token_is_not_read_without_end() -> None:
    with pytest.raises(ValueError, match="at most"):
        read_token("1:1," * TOKEN_LIMIT)
