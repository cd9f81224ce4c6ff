"""Single values as text."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.admin.formats import cut, entry_text, moment, printable, seconds, size
from multiraft.admin.tables import Column, Page, render_plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0, "0.00s"),
        (0.994, "0.99s"),
        (1.0, "1.0s"),
        (59.4, "59.4s"),
        (60, "1m00s"),
        (3725, "1h02m"),
        (86_400 * 2 + 3 * 3600, "2d03h"),
    ],
)
def test_seconds(value: float | None, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (5 << 20, "5.0MiB"), (3 << 40, "3.0TiB")],
)
def test_size(value: int | None, expected: str) -> None:
    assert size(value) == expected


@pytest.mark.parametrize(
    ("stamp_ms", "expected"),
    [(0, "-"), (None, "-"), (1_700_000_000_007, "2023-11-14 22:13:20.007Z"), (1 << 63, "-")],
)
def test_moment(stamp_ms: int | None, expected: str) -> None:
    assert moment(stamp_ms) == expected


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("command", msgpack.packb(["put", "a", b"x", None]), "put('a', b'x', None)"),
        ("command", msgpack.packb(["touch"]), "touch()"),
        ("command", msgpack.packb(["put", {"k": [1, 2.5]}]), "put({'k': [1, 2.5]})"),
        ("command", msgpack.packb([1, 2]), "[1, 2]"),
        ("command", b"abc", "0x616263"),  # decodes as the number 97 with bytes left over
        ("command", b"a", "0x61"),  # a whole msgpack number, but hardly meant as one
        ("no-op", b"", "-"),
        ("membership", msgpack.packb({"voters": [1]}), "{'voters': [1]}"),
        ("command", b"\x93\x01", "0x9301"),
    ],
)
def test_entries_in_words(kind: str, entry: bytes, expected: str) -> None:
    assert entry_text(kind, entry) == expected


def test_the_beginning_of_an_entry_is_never_taken_for_the_whole() -> None:
    whole = msgpack.packb(["put", "a", bytes(100)])
    assert entry_text("command", whole[:20], cut_off=True) == "put('a', …"
    assert entry_text("command", whole, cut_off=True).endswith(", …")
    assert entry_text("command", whole[:5], cut_off=True) == "put(…"
    assert entry_text("command", whole[:3], cut_off=True) == "0x93a370…"
    assert entry_text("command", msgpack.packb([1, 2]), cut_off=True) == "0x920102…"
    assert entry_text("membership", whole[:5], cut_off=True) == "0x93a3707574…"
    assert entry_text("command", b"", cut_off=True) == "…"


@given(st.binary(), st.sampled_from(["command", "membership", "no-op"]), st.booleans())
def test_any_entry_is_one_printable_line(entry: bytes, kind: str, cut_off: bool) -> None:
    assert entry_text(kind, entry, cut_off).isprintable()


@given(st.text())
def test_printable_is_printable_and_leaves_clean_text_alone(text: str) -> None:
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


@pytest.mark.parametrize(("width", "expected"), [(0, "abcdef"), (6, "abcdef"), (5, "abcd…"), (1, "…")])
def test_cut(width: int, expected: str) -> None:
    assert cut("abcdef", width) == expected


def test_plain_tables_are_aligned_and_have_no_empty_cell() -> None:
    page = Page()
    table = page.table([Column("NAME"), Column("N", right=True), Column("LAST")])
    table.rows += [["a", "1", ""], ["日本", "200", ("x", "red")]]
    assert render_plain(page).splitlines() == [
        "NAME    N  LAST",
        "a       1  -",
        "日本  200  x",
    ]
