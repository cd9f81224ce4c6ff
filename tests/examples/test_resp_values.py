"""Replies as bytes, patterns of SCAN, and sums of decimal texts: each against a simple twin."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.kv.longdouble import BadNumber, add_texts, read, write
from examples.kv.resp.glob import compile_glob, matches
from examples.kv.resp.replies import RESP2, RESP3, Answer, Simple, Verbatim


@pytest.mark.parametrize(
    ("answer", "two", "three"),
    [
        (True, b"+OK\r\n", None),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n", None),
        (-7, b":-7\r\n", None),
        (None, b"$-1\r\n", b"_\r\n"),
        (False, b"*-1\r\n", b"_\r\n"),
        ("ERR two\r\nlines", b"-ERR two  lines\r\n", None),
        ("ERR \udcff", b"-ERR \xff\r\n", None),
        (Simple("PONG"), b"+PONG\r\n", None),
        (Verbatim("hi"), b"$2\r\nhi\r\n", b"=6\r\ntxt:hi\r\n"),
        ([1, [None]], b"*2\r\n:1\r\n*1\r\n$-1\r\n", b"*2\r\n:1\r\n*1\r\n_\r\n"),
        ({b"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
    ],
)
def test_answers_as_bytes(answer: Answer, two: bytes, three: bytes | None) -> None:
    assert RESP2.encode(answer) == two
    assert RESP3.encode(answer) == (two if three is None else three)


def test_what_is_no_answer_is_an_error() -> None:
    with pytest.raises(TypeError, match="no answer"):
        RESP2.encode(1.5)


# -------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"h?llo", b"hello", True),
        (b"h[ae]llo", b"hillo", False),
        (b"h[^e]llo", b"hallo", True),
        (b"h[a-b]llo", b"hbllo", True),
        (b"h[b-a]llo", b"hallo", True),  # a range may be written either way
        (b"\\*", b"*", True),
        (b"\\*", b"a", False),
        (b"[\\]]", b"]", True),
        (b"[abc", b"c", True),  # without an end it ends with the pattern
        (b"a*b*c", b"aXXbYYc", True),
        (b"a*b*c", b"aXXcYYb", False),
        (b"*a", b"aaab", False),
    ],
)
def test_patterns(pattern: bytes, text: bytes, fits: bool) -> None:
    assert matches(compile_glob(pattern), text) is fits


@given(st.lists(st.sampled_from([b"*", b"?", b"a", b"b", b"."]), max_size=8), st.text("ab.\n", max_size=10))
def test_patterns_agree_with_regular_expressions(parts: list[bytes], text: str) -> None:
    wild = {b"*": b".*", b"?": b"."}
    expression = b"".join(wild.get(part) or re.escape(part) for part in parts)
    raw = text.encode()
    expected = re.fullmatch(expression, raw, re.DOTALL) is not None
    assert matches(compile_glob(b"".join(parts)), raw) is expected


def test_no_pattern_takes_long() -> None:
    began_s = time.process_time()
    assert not matches(compile_glob(b"*a" * 500 + b"b"), b"a" * 4_000)
    assert time.process_time() - began_s < 5


# ------------------------------------------------------------------------------------------------------------ sums


@given(st.decimals(-(10**12), 10**12, places=6), st.decimals(-(10**12), 10**12, places=6))
def test_small_sums_are_exact(one: Decimal, other: Decimal) -> None:
    """Six places of thirteen digits fit into 64 bits of mantissa with room for no visible error."""
    total = add_texts(str(one).encode(), str(other).encode())
    assert total is not None
    assert abs(Decimal(total.decode()) - (one + other)) <= Decimal("1e-6") / 2


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        (b"10.50", b"0.1", b"10.6"),
        (b"5.0e3", b"2.0e2", b"5200"),
        (b"0.1", b"0.2", b"0.3"),
        (b"-0.0", b"0", b"0"),
        (b"1e17", b"1", b"100000000000000001"),
        (b"1e-20", b"0", b"0"),  # below the 17 places that are written
        (b"3", b"-3", b"0"),
        (b"+1.5", b".5", b"2"),
        (b"0x10", b"-0x.8p1", b"15"),
        (b"0X1.8p-2", b"0", b"0.375"),
    ],
)
def test_sums(one: bytes, other: bytes, total: bytes) -> None:
    assert add_texts(one, other) == total


def test_sums_beyond_the_largest_number_are_infinite() -> None:
    largest = write((Fraction(2) - Fraction(1, 1 << 63)) * Fraction(2) ** 16_383)
    assert len(largest) == 4_933
    with pytest.raises(BadNumber):  # longer than any text that is read
        read(largest)
    assert add_texts(b"1.1e4932", b"1.1e4932") is None
    assert add_texts(b"inf", b"1") is None
    with pytest.raises(BadNumber):
        add_texts(b"1e5000", b"1")


@pytest.mark.parametrize(
    "text", [b"", b"a", b"1.1.1", b"1e", b" 1", b"1 ", b"nan", b"0x", b"0x1p", b"1" * 256, b"e5", b"."]
)
def test_what_is_no_number(text: bytes) -> None:
    with pytest.raises(BadNumber):
        read(text)


def test_a_huge_exponent_costs_nothing() -> None:
    began_s = time.process_time()
    for text in (b"1e999999999", b"0x1p-999999999", b"1e-999999999", b"9" * 250 + b"e5400"):
        with pytest.raises(BadNumber):
            read(text)
    assert time.process_time() - began_s < 2
