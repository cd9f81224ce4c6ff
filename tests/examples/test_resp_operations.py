"""The calls that one command of a shard is made of, in memory and on disk: each alone, many together, and watched."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.kv import operations
from examples.kv.change import EVENTS_KEPT, Change
from examples.kv.layout import KEY_LIMIT_BYTES, VALUE_LIMIT_BYTES
from examples.kv.machine import KV, Life, hash_tag
from examples.kv.operations import (
    AT,
    FOR,
    IF_ABSENT,
    IF_EARLIER,
    IF_ENDS,
    IF_LATER,
    IF_PRESENT,
    KEEP,
    NEVER,
    RESULT_BYTES,
    TELL_OLD,
    UNLESS_ENDS,
)
from tests.examples.kv_bench import KINDS, Bench, contents


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Bench:
    kind: type[KV] = request.param
    return Bench(kind())


def run(bench: Bench, *calls: list[Any]) -> list[Any]:
    """Make calls in one command."""
    results: list[Any] = msgpack.unpackb(bench.do.run("k", msgpack.packb(list(calls))))
    return results


def look(bench: Bench, *calls: list[Any]) -> list[Any]:
    results: list[Any] = msgpack.unpackb(bench.kv.look(msgpack.packb(list(calls))))
    return results


def test_calls_of_one_command_see_each_other_in_order(bench: Bench) -> None:
    assert run(
        bench,
        ["get", b"k"],
        ["set", b"k", b"1"],
        ["get", b"k"],
        ["add", b"k", 41],
        ["append", b"k", b"!"],
        ["add", b"k", 1],
        ["strlen", b"k"],
        ["take", b"k"],
        ["exists", b"k"],
        ["delete", b"k"],
    ) == [None, True, b"1", 42, 3, operations.NOT_A_NUMBER, 3, b"42!", 0, 0]
    assert bench.kv.count() == 0


def test_many_writes_of_one_key_are_all_told_and_stored_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    kind = type(bench.kv.data)
    put = kind.put

    def noted(self: Any, key: bytes, value: bytes) -> None:
        written.append(key)
        put(self, key, value)

    monkeypatch.setattr(kind, "put", noted)
    run(bench, *[["add", b"n", 1]] * 100)
    assert bench.kv.get("n") == b"100"
    assert written.count(b"kn") == 1
    assert [event.value for event in bench.kv.news(after=0).events] == [b"%d" % number for number in range(1, 101)]


def test_a_call_that_makes_no_sense_is_its_own_error_and_changes_nothing(bench: Bench) -> None:
    bad: list[Any] = [
        [],
        "get",
        ["nosuch", b"k"],
        ["set"],
        ["set", "text", b"v"],
        ["set", b"", b"v"],
        ["set", b"k" * (KEY_LIMIT_BYTES + 1), b"v"],
        ["set", b"\xff", b"v"],
        ["set", b"k", "text"],
        ["set", b"k", b"v" * (VALUE_LIMIT_BYTES + 1)],
        ["set", b"k", b"v", 0, 9, 1],
        ["set", b"k", b"v", 0, FOR, b"x"],
        ["add", b"k", b"1"],
        ["append", b"k", 1],
        ["list", None, 1],  # of queries alone
        ["all", [], [["all", [], []]]],
    ]
    results = run(bench, *bad, ["set", b"good", b"v"])
    assert results[-1] is True
    assert results[-2][0].startswith("ERR ")
    assert all(result.startswith("ERR ") for result in results[:-2]), results
    assert bench.scan() == [("good", b"v")]
    with pytest.raises(ValueError, match="not a list"):
        bench.do.run("k", msgpack.packb({}))


def test_a_command_that_raises_has_changed_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that no call may end with: of the calls before it nothing is kept, in memory neither."""
    before = contents(bench.kv)

    def explode(*arguments: object) -> None:
        raise RuntimeError("not a result")

    monkeypatch.setattr(operations, "WRITES", {**operations.WRITES, "explode": explode})
    monkeypatch.setattr("examples.kv.machine.WRITES", operations.WRITES)
    with pytest.raises(RuntimeError):
        run(bench, ["set", b"k", b"v"], ["explode"])
    assert contents(bench.kv) == before


def test_results_are_bounded_and_what_was_not_made_is_left(bench: Bench) -> None:
    large = b"v" * (RESULT_BYTES // 2 + 1)
    run(bench, ["set", b"k", large])
    assert look(bench, *[["get", b"k"]] * 5) == [large, large]
    assert run(bench, ["get", b"k"], ["get", b"k"], ["delete", b"k"]) == [large, large]
    assert bench.kv.get("k") == large
    [answers] = run(bench, ["all", [], [["get", b"k"], ["get", b"k"], ["delete", b"k"]]])
    assert answers[:2] == [large, large]
    assert answers[2].startswith("ERR not done")
    assert bench.kv.get("k") == large


# ------------------------------------------------------------------------------------------------------- the calls


def test_set_under_conditions(bench: Bench) -> None:
    assert run(bench, ["set", b"k", b"1", IF_PRESENT]) == [None]
    assert run(bench, ["set", b"k", b"1", IF_ABSENT]) == [True]
    assert run(bench, ["set", b"k", b"2", IF_ABSENT]) == [None]
    assert run(bench, ["set", b"k", b"3", IF_PRESENT | TELL_OLD]) == [b"1"]
    assert run(bench, ["set", b"k", b"4", IF_ABSENT | TELL_OLD]) == [b"3"]
    assert bench.kv.get("k") == b"3"


def test_times_to_live(bench: Bench) -> None:
    run(bench, ["set", b"k", b"1", 0, FOR, 100])
    assert bench.kv.ttl("k") == Life(True, 100)
    run(bench, ["set", b"k", b"2", 0, KEEP, 0])
    assert bench.kv.ttl("k") == Life(True, 100)
    assert look(bench, ["end", b"k"]) == [[bench.now_ms + 100, bench.now_ms]]
    run(bench, ["add", b"k", 1], ["append", b"k", b"0"])
    assert (bench.kv.get("k"), bench.kv.ttl("k")) == (b"30", Life(True, 100))
    run(bench, ["set", b"k", b"2"])
    assert bench.kv.ttl("k") == Life(True, None)
    assert run(bench, ["renew", b"k", AT, bench.now_ms + 7]) == [b"2"]
    assert bench.kv.ttl("k") == Life(True, 7)
    assert run(bench, ["persist", b"k"], ["persist", b"k"]) == [1, 0]
    assert run(bench, ["renew", b"k", NEVER, 0]) == [b"2"]
    bench.now_ms += 10_000
    assert run(bench, ["get", b"k"], ["end", b"none"], ["expire", b"none", FOR, 5]) == [b"2", None, 0]


@pytest.mark.parametrize(
    "call",
    [
        ["set", b"k", b"v", 0, AT, 1],
        ["set", b"k", b"v", 0, FOR, -5],
        ["expire", b"k", FOR, 0],
        ["expire", b"k", AT, -(1 << 62)],
        ["renew", b"k", AT, 1],
    ],
)
def test_a_time_that_has_passed_removes(bench: Bench, call: list[Any]) -> None:
    run(bench, ["set", b"k", b"v", 0, FOR, 1_000])
    run(bench, call)
    assert bench.kv.get("k") is None
    assert bench.kv.meta().keys == 0


@pytest.mark.parametrize(
    ("before_ms", "when", "after_ms", "moved"),
    [
        (None, UNLESS_ENDS, 50, True),
        (10, UNLESS_ENDS, 50, False),
        (None, IF_ENDS, 50, False),
        (10, IF_ENDS, 50, True),
        (None, IF_LATER, 50, False),  # one that stays ends later than any other
        (10, IF_LATER, 50, True),
        (50, IF_LATER, 50, False),
        (None, IF_EARLIER, 50, True),
        (10, IF_EARLIER, 50, False),
        (50, IF_EARLIER, 50, False),
        (10, IF_ENDS | IF_EARLIER, 5, True),
    ],
)
def test_an_end_moves_under_conditions(
    bench: Bench, before_ms: int | None, when: int, after_ms: int, moved: bool
) -> None:
    run(bench, ["set", b"k", b"v", 0, NEVER if before_ms is None else FOR, before_ms or 0])
    assert run(bench, ["expire", b"k", FOR, after_ms, when]) == [1 if moved else 0]
    assert bench.kv.ttl("k") == Life(True, after_ms if moved else before_ms)


def test_a_number_stays_within_64_bits_and_is_written_strictly(bench: Bench) -> None:
    run(bench, ["set", b"k", b"9223372036854775807"])
    assert run(bench, ["add", b"k", 1], ["add", b"k", -1]) == [operations.WOULD_OVERFLOW, (1 << 63) - 2]
    for held in (b"", b"01", b"+1", b" 1", b"-0", b"1.0", b"9223372036854775808"):
        assert run(bench, ["set", b"k", held], ["add", b"k", 1]) == [True, operations.NOT_A_NUMBER]


def test_a_float_is_text_and_a_bad_one_changes_nothing(bench: Bench) -> None:
    assert run(bench, ["addfloat", b"f", b"10.5"], ["addfloat", b"f", b"-0.5"]) == [b"10.5", b"10"]
    assert run(bench, ["addfloat", b"f", b"x"], ["addfloat", b"f", b"inf"]) == [
        operations.NOT_A_FLOAT,
        operations.NOT_FINITE,
    ]
    assert bench.kv.get("f") == b"10"
    assert run(bench, ["set", b"t", b"text"], ["addfloat", b"t", b"1"]) == [True, operations.NOT_A_FLOAT]


def test_appending_stays_within_the_limit(bench: Bench) -> None:
    run(bench, ["set", b"k", b"v" * (VALUE_LIMIT_BYTES - 1)])
    assert run(bench, ["append", b"k", b"ab"]) == [operations.TOO_LONG]
    assert run(bench, ["append", b"k", b"a"]) == [VALUE_LIMIT_BYTES]


def test_listing_goes_on_behind_a_key_and_leaves_out_what_has_ended(bench: Bench) -> None:
    run(bench, *[["set", b"k%d" % number, b""] for number in range(5)], ["set", b"k2", b"", 0, FOR, 5])
    assert look(bench, ["list", None, 2], ["count"]) == [[1, [b"k0", b"k1"]], 5]
    bench.now_ms += 10
    bench.do.put("k9", b"")
    assert look(bench, ["list", b"k1", 2], ["list", b"k3", 10], ["count"]) == [
        [1, [b"k3", b"k4"]],
        [0, [b"k4", b"k9"]],
        5,
    ]


# ------------------------------------------------------------------------------------------------------- watching


def watched(bench: Bench, *keys: bytes) -> list[list[Any]]:
    [[index, part, present]] = look(bench, ["mark", *keys])
    return [[index, part, key, there] for key, there in zip(keys, present, strict=True)]


def test_a_transaction_is_made_unless_what_it_watched_has_changed(bench: Bench) -> None:
    marks = watched(bench, b"k")
    assert run(bench, ["all", marks, [["add", b"k", 1], ["get", b"k"]]]) == [[1, b"1"]]
    assert run(bench, ["all", marks, [["add", b"k", 1]]]) == [False]
    marks = watched(bench, b"k", b"gone")
    run(bench, ["set", b"other", b""])
    assert run(bench, ["all", marks, []]) == [[]]


@pytest.mark.parametrize(
    "change",
    [
        lambda bench: bench.do.put("k", b"v"),  # the same value, by another way
        lambda bench: bench.do.delete("k"),
        lambda bench: bench.do.expire("k", 1_000),
        lambda bench: bench.do.batch("k", {"k": None}),
        lambda bench: run(bench, ["set", b"k", b"v"]),
        lambda bench: run(bench, ["persist", b"k"]),
    ],
)
def test_every_way_of_changing_a_key_is_noticed(bench: Bench, change: Any) -> None:
    run(bench, ["set", b"k", b"v", 0, FOR, 10_000])
    marks = watched(bench, b"k")
    change(bench)
    assert run(bench, ["all", marks, [["set", b"k", b"w"]]]) == [False]


def test_a_key_that_was_set_to_end_in_the_past_has_changed(bench: Bench) -> None:
    marks = watched(bench, b"k")
    assert run(bench, ["set", b"k", b"v", 0, AT, 1]) == [True]
    assert (bench.kv.get("k"), bench.kv.meta().keys) == (None, 0)
    assert run(bench, ["all", marks, []]) == [False]


def test_a_mark_within_a_command_stands_between_its_calls(bench: Bench) -> None:
    _, mark, _ = run(bench, ["set", b"k", b"1"], ["mark", b"k"], ["set", b"other", b""])
    marks = [[mark[0], mark[1], b"k", True]]
    assert run(bench, ["all", marks, []]) == [[]]
    _, mark, _ = run(bench, ["set", b"k", b"1"], ["mark", b"k"], ["set", b"k", b"2"])
    assert run(bench, ["all", [[mark[0], mark[1], b"k", True]], []]) == [False]
    mark, _, made = run(bench, ["mark", b"k"], ["set", b"k", b"3"], ["all", [[bench.index, 0, b"k", True]], []])
    assert made is False


def test_a_watched_key_that_ends_has_changed_and_one_that_had_ended_has_not(bench: Bench) -> None:
    run(bench, ["set", b"k", b"v", 0, FOR, 100], ["set", b"old", b"v", 0, FOR, 10])
    bench.now_ms += 50
    run(bench, *[["set", b"x%d" % number, b"", 0, FOR, 1] for number in range(3)])
    marks = watched(bench, b"k", b"old")
    assert [mark[3] for mark in marks] == [True, False]
    bench.do.sweep("k")
    assert run(bench, ["all", marks, []]) == [[]]
    bench.now_ms += 100
    assert run(bench, ["all", marks[:1], []]) == [False]
    assert run(bench, ["all", marks[1:], []]) == [[]]


def test_where_the_changes_are_kept_no_more_the_worst_is_assumed(bench: Bench) -> None:
    marks = watched(bench, b"k")
    for _ in range(EVENTS_KEPT // 500 + 2):
        run(bench, *[["add", b"n", 1]] * 500)
    assert run(bench, ["all", marks, []]) == [False]


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"plain", b"plain"),
        (b"{user}:a", b"user"),
        (b"a{b}c{d}", b"b"),
        (b"{}a", b"{}a"),
        (b"a{b", b"a{b"),
        (b"a{{b}}", b"{b"),
        (b"}{x}", b"x"),
    ],
)
def test_hash_tags(key: bytes, tag: bytes) -> None:
    assert hash_tag(key) == tag


# -------------------------------------------------------------------------------- both kinds, and batches against one

_keys = st.sampled_from([b"a", b"b", b"c"])
_calls = st.one_of(
    st.tuples(
        st.just("set"),
        _keys,
        st.sampled_from([b"1", b"x", b""]),
        st.integers(0, 7),
        st.integers(0, 3),
        st.integers(-5, 60),
    ),
    st.tuples(st.sampled_from(["get", "delete", "take", "persist", "exists", "strlen", "end"]), _keys),
    st.tuples(st.just("add"), _keys, st.integers(-2, 2)),
    st.tuples(st.just("append"), _keys, st.sampled_from([b"", b"7"])),
    st.tuples(st.just("expire"), _keys, st.integers(1, 2), st.integers(-5, 60), st.integers(0, 15)),
    st.tuples(st.just("renew"), _keys, st.integers(0, 3), st.integers(-5, 60)),
).map(list)


@given(st.lists(st.tuples(st.lists(_calls, max_size=6), st.integers(0, 30)), max_size=8))
@settings(max_examples=150, deadline=None)
def test_both_kinds_agree_and_a_batch_does_what_its_calls_do_alone(
    batches: list[tuple[list[list[Any]], int]],
) -> None:
    memory, disk, single = (Bench(kind()) for kind in (*KINDS, KINDS[0]))
    for calls, passes_ms in batches:
        results = run(memory, *calls)
        assert run(disk, *calls) == results
        assert [run(single, call)[0] for call in calls] == results
        for bench in (memory, disk, single):
            bench.now_ms += passes_ms
            bench.do.sweep("a")
    assert contents(memory.kv) == contents(disk.kv)
    assert memory.scan() == single.scan()
    assert memory.kv.count() == single.kv.count() == len(memory.scan())


def test_a_change_is_made_of_the_keyspace_alone(bench: Bench) -> None:
    """What stays in memory from one command to the next would differ between replicas."""
    one = Change(bench.kv.data, 1, 5)
    one.put(b"k", b"v")
    assert bench.kv.data.get(b"kk") is None
    one.finish()
    assert Change(bench.kv.data, 2, 6).live(b"k") is not None
