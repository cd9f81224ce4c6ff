"""The key-value machine as an ordinary class: what its commands do, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.kv.machine import KEY_LIMIT_BYTES, KV, PAGE_BYTES, VALUE_LIMIT_BYTES, Page, Swap, TooLarge, check_key


def test_put_get_delete() -> None:
    kv = KV()
    assert kv.get("k") is None
    kv.put("k", b"1")
    kv.put("k", b"2")
    assert kv.get("k") == b"2"
    assert kv.delete("k") is True
    assert kv.delete("k") is False
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
def test_compare_and_set(held: bytes | None, expected: bytes | None, answer: Swap) -> None:
    kv = KV()
    if held is not None:
        kv.put("k", held)
    assert kv.compare_and_set("k", expected, b"new") == answer
    assert kv.get("k") == (b"new" if answer.swapped else held)


def test_increment_counts_from_nothing_and_keeps_decimal_text() -> None:
    kv = KV()
    assert kv.increment("n") == 1
    assert kv.increment("n", -5) == -4
    assert kv.get("n") == b"-4"
    kv.put("n", b"007")
    assert kv.increment("n", 1) == 8


@pytest.mark.parametrize("held", [b"", b"one", b"1.5", b" 1", b"1_0", b"+1", b"--1", b"\xd9\xa3", b"9" * 20])
def test_increment_of_what_is_no_number_raises_and_changes_nothing(held: bytes) -> None:
    kv = KV()
    kv.put("n", held)
    with pytest.raises(ValueError, match="whole number"):
        kv.increment("n")
    assert kv.get("n") == held


@pytest.mark.parametrize(("held", "amount"), [(b"9223372036854775807", 1), (b"-9223372036854775808", -1)])
def test_increment_stays_within_64_bits(held: bytes, amount: int) -> None:
    kv = KV()
    kv.put("n", held)
    with pytest.raises(ValueError, match="64 bits"):
        kv.increment("n", amount)
    assert kv.get("n") == held
    assert kv.increment("n", 0) == int(held)


def test_batch_writes_and_removes() -> None:
    kv = KV()
    kv.put("gone", b"x")
    assert kv.batch("a", {"a": b"1", "b": b"", "gone": None, "never": None}) == 4
    assert kv.values == {"a": b"1", "b": b""}


@pytest.mark.parametrize(
    "bad", [{"": b"1"}, {"k" * (KEY_LIMIT_BYTES + 1): b"1"}, {"k": b"v" * (VALUE_LIMIT_BYTES + 1)}]
)
def test_batch_with_one_bad_write_writes_nothing(bad: dict[str, bytes | None]) -> None:
    kv = KV()
    with pytest.raises(ValueError, match=r"the (key|value) "):
        kv.batch("a", {"a": b"1", **bad})
    assert kv.values == {}
    assert kv.scan() == Page({}, False)


def test_limits_are_the_last_sizes_allowed() -> None:
    kv = KV()
    kv.put("k" * KEY_LIMIT_BYTES, b"v" * VALUE_LIMIT_BYTES)
    with pytest.raises(TooLarge):
        kv.put("k" * (KEY_LIMIT_BYTES + 1), b"")
    with pytest.raises(TooLarge):
        kv.put("ä" * (KEY_LIMIT_BYTES // 2) + "x", b"")  # counted in bytes of UTF-8, not in characters
    with pytest.raises(TooLarge):
        kv.put("k", b"v" * (VALUE_LIMIT_BYTES + 1))
    with pytest.raises(TooLarge):
        kv.compare_and_set("k", None, b"v" * (VALUE_LIMIT_BYTES + 1))
    assert kv.count() == 1
    with pytest.raises(ValueError, match="Unicode"):
        check_key("\ud800")


def test_scan_pages_in_order() -> None:
    kv = KV()
    for key in ("b/2", "a", "b/1", "b/3", "c", "b"):
        kv.put(key, key.encode())
    assert list(kv.scan("b/").entries) == ["b/1", "b/2", "b/3"]
    first = kv.scan("b/", 2)
    assert (list(first.entries), first.more) == (["b/1", "b/2"], True)
    last = kv.scan("b/", 2, "b/2")
    assert (list(last.entries), last.more) == (["b/3"], False)
    assert list(kv.scan("", 10, "b/15").entries) == ["b/2", "b/3", "c"]  # the key to start after need not be there
    assert kv.scan("b/", 10, "c") == Page({}, False)


def test_scan_ends_a_page_by_size_but_always_gives_one_entry() -> None:
    kv = KV()
    for number in range(4):
        kv.put(f"k{number}", b"v" * (PAGE_BYTES // 2))
    page = kv.scan()
    assert (list(page.entries), page.more) == (["k0", "k1"], True)
    kv.put("k0", b"v" * VALUE_LIMIT_BYTES)
    assert list(kv.scan().entries) == ["k0"]


_KEYS = st.text("abc/", min_size=1, max_size=3)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _KEYS),
        st.tuples(st.just("delete"), _KEYS),
        st.tuples(st.just("scan"), st.text("abc/", max_size=2)),
    ),
    max_size=40,
)


@given(_STEPS)
@settings(max_examples=200, deadline=None)
def test_scan_agrees_with_sorting_everything(steps: list[tuple[str, str]]) -> None:
    kv, twin = KV(), dict[str, bytes]()
    for number, (step, text) in enumerate(steps):
        if step == "put":
            kv.put(text, b"%d" % number)
            twin[text] = b"%d" % number
        elif step == "delete":
            assert kv.delete(text) == (twin.pop(text, None) is not None)
        else:
            expected = {key: twin[key] for key in sorted(twin) if key.startswith(text)}
            found: dict[str, bytes] = {}
            after: str | None = None
            while True:
                page = kv.scan(text, 2, after)
                found.update(page.entries)
                if not page.more:
                    break
                after = list(page.entries)[-1]
            assert list(found.items()) == list(expected.items())
