"""The key-value machine as an ordinary class: what its commands do, and what they refuse; in memory and on disk."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.kv.layout import end_name
from examples.kv.machine import (
    KEY_LIMIT_BYTES,
    KV,
    PAGE_BYTES,
    SWEEP_KEYS,
    TTL_LIMIT_MS,
    VALUE_LIMIT_BYTES,
    Life,
    Page,
    Swap,
    TooLarge,
    check_key,
)
from tests.examples.kv_bench import KINDS, Bench, contents


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Bench:
    kind: type[KV] = request.param
    return Bench(kind())


def test_put_get_delete(bench: Bench) -> None:
    kv = bench.kv
    assert kv.get("k") is None
    bench.do.put("k", b"1")
    bench.do.put("k", b"2")
    assert kv.get("k") == b"2"
    assert bench.do.delete("k") is True
    assert bench.do.delete("k") is False
    assert kv.get("k") is None
    assert kv.count() == 0


@pytest.mark.parametrize(
    ("held", "expected", "answer"),
    [
        (None, None, Swap(True, b"new")),
        (None, b"old", Swap(False, None)),
        (b"old", b"old", Swap(True, b"new")),
        (b"old", b"other", Swap(False, b"old")),
        (b"old", None, Swap(False, b"old")),
        (b"", None, Swap(False, b"")),  # empty is not absent
        (b"", b"", Swap(True, b"new")),
    ],
)
def test_compare_and_set(bench: Bench, held: bytes | None, expected: bytes | None, answer: Swap) -> None:
    if held is not None:
        bench.do.put("k", held)
    assert bench.do.compare_and_set("k", expected, b"new") == answer
    assert bench.kv.get("k") == (b"new" if answer.swapped else held)


def test_increment_counts_from_nothing_and_keeps_decimal_text(bench: Bench) -> None:
    assert bench.do.increment("n") == 1
    assert bench.do.increment("n", -5) == -4
    assert bench.kv.get("n") == b"-4"
    bench.do.put("n", b"007")
    assert bench.do.increment("n", 1) == 8


@pytest.mark.parametrize("held", [b"", b"one", b"1.5", b" 1", b"1_0", b"+1", b"--1", b"\xd9\xa3", b"9" * 20])
def test_increment_of_what_is_no_number_raises_and_changes_nothing(bench: Bench, held: bytes) -> None:
    bench.do.put("n", held)
    bench.do.put("soon", b"", ttl_ms=1)
    bench.now_ms += 10  # there is something to remove by the way, and the command that raises does not
    before = contents(bench.kv)
    with pytest.raises(ValueError, match="whole number"):
        bench.do.increment("n")
    assert contents(bench.kv) == before


@pytest.mark.parametrize(("held", "amount"), [(b"9223372036854775807", 1), (b"-9223372036854775808", -1)])
def test_increment_stays_within_64_bits(bench: Bench, held: bytes, amount: int) -> None:
    bench.do.put("n", held)
    with pytest.raises(ValueError, match="64 bits"):
        bench.do.increment("n", amount)
    assert bench.kv.get("n") == held
    assert bench.do.increment("n", 0) == int(held)


def test_batch_writes_and_removes(bench: Bench) -> None:
    bench.do.put("gone", b"x")
    assert bench.do.batch("a", {"a": b"1", "b": b"", "gone": None, "never": None}) == 4
    assert bench.kv.scan() == Page({"a": b"1", "b": b""}, False)
    assert bench.kv.count() == 2


@pytest.mark.parametrize(
    "bad", [{"": b"1"}, {"k" * (KEY_LIMIT_BYTES + 1): b"1"}, {"k": b"v" * (VALUE_LIMIT_BYTES + 1)}]
)
def test_batch_with_one_bad_write_writes_nothing(bench: Bench, bad: dict[str, bytes | None]) -> None:
    with pytest.raises(ValueError, match=r"the (key|value) "):
        bench.do.batch("a", {"a": b"1", **bad})
    assert contents(bench.kv) == []
    assert bench.kv.scan() == Page({}, False)


def test_limits_are_the_last_sizes_allowed(bench: Bench) -> None:
    bench.do.put("k" * KEY_LIMIT_BYTES, b"v" * VALUE_LIMIT_BYTES)
    with pytest.raises(TooLarge):
        bench.do.put("k" * (KEY_LIMIT_BYTES + 1), b"")
    with pytest.raises(TooLarge):
        bench.do.put("ä" * (KEY_LIMIT_BYTES // 2) + "x", b"")  # counted in bytes of UTF-8, not in characters
    with pytest.raises(TooLarge):
        bench.do.put("k", b"v" * (VALUE_LIMIT_BYTES + 1))
    with pytest.raises(TooLarge):
        bench.do.compare_and_set("k", None, b"v" * (VALUE_LIMIT_BYTES + 1))
    assert bench.kv.count() == 1
    with pytest.raises(ValueError, match="Unicode"):
        check_key("\ud800")
    assert bench.kv.get("\ud800") is None
    assert bench.kv.scan("\ud800") == Page({}, False)


def test_scan_pages_in_order(bench: Bench) -> None:
    kv = bench.kv
    for key in ("b/2", "a", "b/1", "b/3", "c", "b"):
        bench.do.put(key, key.encode())
    assert list(kv.scan("b/").entries) == ["b/1", "b/2", "b/3"]
    first = kv.scan("b/", 2)
    assert (list(first.entries), first.more) == (["b/1", "b/2"], True)
    last = kv.scan("b/", 2, "b/2")
    assert (list(last.entries), last.more) == (["b/3"], False)
    assert list(kv.scan("", 10, "b/15").entries) == ["b/2", "b/3", "c"]  # the key to start after need not be there
    assert kv.scan("b/", 10, "c") == Page({}, False)


def test_scan_ends_a_page_by_size_but_always_gives_one_entry(bench: Bench) -> None:
    for number in range(4):
        bench.do.put(f"k{number}", b"v" * (PAGE_BYTES // 2))
    page = bench.kv.scan()
    assert (list(page.entries), page.more) == (["k0", "k1"], True)
    bench.do.put("k0", b"v" * VALUE_LIMIT_BYTES)
    assert list(bench.kv.scan().entries) == ["k0"]


# ----------------------------------------------------------------------------------------------------- time to live


def test_a_key_ends_for_all_readers_with_the_command_that_passes_its_moment(bench: Bench) -> None:
    kv = bench.kv
    bench.do.put("k", b"v", ttl_ms=100)
    bench.do.put("other", b"")
    assert (kv.get("k"), kv.ttl("k")) == (b"v", Life(True, 100))
    bench.now_ms += 99
    bench.do.put("other", b"")
    assert (kv.get("k"), kv.ttl("k")) == (b"v", Life(True, 1))
    bench.now_ms += 1
    assert kv.get("k") == b"v"  # no command has moved the clock
    bench.do.put("other", b"")
    assert (kv.get("k"), kv.ttl("k"), kv.count()) == (None, Life(False, None), 1)
    assert kv.scan() == Page({"other": b""}, False)


def test_what_has_ended_is_invisible_to_commands_before_it_is_removed(bench: Bench) -> None:
    for number in range(40):  # more than one command removes by the way
        bench.do.put(f"k{number:02}", b"7", ttl_ms=1_000 + number)
    bench.do.put("keep", b"")
    bench.now_ms += 5_000
    assert bench.do.delete("k39") is False
    assert bench.do.compare_and_set("k38", b"7", b"8") == Swap(False, None)
    assert bench.do.increment("k37") == 1
    assert bench.do.expire("k36", 1_000) is False
    assert bench.do.persist("k35") is False
    assert bench.kv.count() == 2
    assert bench.kv.scan() == Page({"k37": b"1", "keep": b""}, False)


@pytest.mark.parametrize("kind", KINDS)
def test_commands_remove_a_few_by_the_way_and_a_sweep_many(kind: type[KV]) -> None:
    bench = Bench(kind())
    for number in range(300):
        bench.do.put(f"k{number:03}", b"", ttl_ms=10_000)
    bench.now_ms += 20_000
    bench.do.put("keep", b"")
    assert (bench.kv.count(), bench.kv.meta().keys) == (1, 285)
    assert bench.do.sweep("k000") == SWEEP_KEYS
    assert (bench.kv.count(), bench.kv.meta().keys) == (1, 29)
    assert bench.kv.due(bench.now_ms) is not None
    assert bench.do.sweep("k000") == 28
    assert bench.do.sweep("k000") == 0
    assert (bench.kv.count(), bench.kv.meta().keys) == (1, 1)
    assert bench.kv.due(1 << 60) is None
    assert list(bench.kv.data.keys(end_name(0), end_name(1 << 63))) == []


def test_a_shard_names_a_key_that_is_due(bench: Bench) -> None:
    assert bench.kv.due(1 << 60) is None
    bench.do.put("later", b"", ttl_ms=2_000)
    bench.do.put("soon", b"", ttl_ms=1_000)
    began_ms = bench.now_ms
    assert bench.kv.due(began_ms + 999) is None
    assert bench.kv.due(began_ms + 1_000) == "soon"
    bench.do.delete("soon")
    assert bench.kv.due(began_ms + 1_000) is None
    assert bench.kv.due(began_ms + 2_000) == "later"


def test_the_end_of_a_key_can_be_moved_and_taken_away(bench: Bench) -> None:
    do, kv = bench.do, bench.kv
    assert do.expire("k", 5) is False
    do.put("k", b"v")
    assert kv.ttl("k") == Life(True, None)
    assert do.expire("k", 50) is True
    assert do.expire("k", 500) is True
    bench.now_ms += 100
    assert do.persist("k") is True
    bench.now_ms += 1_000
    do.sweep("k")
    assert (kv.get("k"), kv.ttl("k")) == (b"v", Life(True, None))
    do.put("k", b"w", ttl_ms=10)
    do.put("k", b"x")  # a plain put stays
    bench.now_ms += 100
    do.sweep("k")
    assert kv.get("k") == b"x"
    assert do.persist("none") is False


def test_an_increment_keeps_the_time_to_live_and_a_swap_sets_its_own(bench: Bench) -> None:
    bench.do.put("n", b"1", ttl_ms=100)
    assert bench.do.increment("n") == 2
    assert bench.kv.ttl("n") == Life(True, 100)
    bench.do.compare_and_set("n", b"2", b"3", ttl_ms=40)
    assert bench.kv.ttl("n") == Life(True, 40)
    bench.do.compare_and_set("n", b"3", b"4")
    assert bench.kv.ttl("n") == Life(True, None)


@pytest.mark.parametrize("ttl_ms", [0, -1, TTL_LIMIT_MS + 1])
def test_a_time_to_live_out_of_range_is_refused(bench: Bench, ttl_ms: int) -> None:
    bench.do.put("k", b"v")
    before = contents(bench.kv)
    for name, arguments in (
        ("put", ("k", b"w", ttl_ms)),
        ("compare_and_set", ("k", b"v", b"w", ttl_ms)),
        ("expire", ("k", ttl_ms)),
    ):
        with pytest.raises(ValueError, match="a time to live of"):
            getattr(bench.do, name)(*arguments)
    assert contents(bench.kv) == before


# -------------------------------------------------------------------------------------- against a twin that is simple

_KEYS = st.text("abc/", min_size=1, max_size=3)
_TTL = st.one_of(st.none(), st.integers(1, 60))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _KEYS, _TTL),
        st.tuples(st.just("expire"), _KEYS, st.integers(1, 60)),
        st.tuples(st.just("delete"), _KEYS, st.none()),
        st.tuples(st.just("wait"), st.just("a"), st.integers(0, 30)),
        st.tuples(st.just("scan"), st.text("abc/", max_size=2), st.none()),
    ),
    max_size=40,
)


@given(_STEPS)
@settings(max_examples=200, deadline=None)
def test_both_kinds_agree_with_a_dict_and_with_each_other(steps: list[tuple[str, str, int | None]]) -> None:
    benches = [Bench(kind()) for kind in KINDS]
    twin: dict[str, tuple[bytes, int]] = {}
    now_ms = benches[0].now_ms
    for number, (step, key, amount) in enumerate(steps):
        live = {name: value for name, (value, end_ms) in twin.items() if end_ms > now_ms}
        if step == "put":
            for bench in benches:
                bench.do.put(key, b"%d" % number, ttl_ms=amount)
            twin[key] = (b"%d" % number, 1 << 62 if amount is None else now_ms + amount)
        elif step == "expire":
            assert [bench.do.expire(key, amount or 1) for bench in benches] == [key in live] * len(benches)
            if key in live:
                twin[key] = (live[key], now_ms + (amount or 1))
        elif step == "delete":
            assert [bench.do.delete(key) for bench in benches] == [key in live] * len(benches)
            twin.pop(key, None)
        elif step == "wait":
            now_ms += amount or 0
            for bench in benches:
                bench.now_ms = now_ms
                bench.do.sweep(key)
        else:
            expected = [(name, live[name]) for name in sorted(live) if name.startswith(key)]
            for bench in benches:
                assert bench.scan(key, page=2) == expected
                assert bench.kv.count() == len(live)
    assert contents(benches[0].kv) == contents(benches[1].kv)
