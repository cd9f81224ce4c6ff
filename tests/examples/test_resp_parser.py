"""Requests out of bytes: however they are cut, whatever they hold, and whatever lengths they claim."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.kv.resp import parser as parser_module
from examples.kv.resp.parser import ARGUMENTS, INLINE_BYTES, REQUEST_BYTES, Parser, ProtocolError, Request, split_line
from tests.examples.resp_client import encode

_arguments = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\r\n", b"\r", b"\n", b"$3\r\nabc\r\n", b"*1\r\n", b"v" * 5_000, b"w" * 70_000]),
)
_requests = st.lists(st.lists(_arguments, min_size=1, max_size=5), max_size=8)


def taken(parser: Parser, most: int = 1_000) -> list[Request]:
    """Take as long as anything is whole."""
    found: list[Request] = []
    while part := parser.take(most):
        assert len(part) <= most
        found += part
    return found


@given(_requests, st.lists(st.integers(1, 200), max_size=30), st.integers(1, 5))
def test_requests_come_out_as_they_went_in_however_they_are_cut(
    requests: list[Request], cuts: list[int], most: int
) -> None:
    data = b"".join(encode(request) for request in requests)
    parser = Parser()
    found: list[Request] = []
    at = 0
    for cut in cuts:
        parser.feed(data[at : at + cut])
        at += cut
        found += taken(parser, most)
    parser.feed(data[at:])
    found += taken(parser, most)
    assert found == requests
    assert parser.held_bytes == 0
    assert not parser.in_part


@given(_requests)
def test_both_ways_of_parsing_agree(requests: list[Request]) -> None:
    data = b"".join(encode(request) for request in requests)
    slowly = Parser()
    slowly._slow = 1 << 30
    slowly.feed(data)
    quickly = Parser()
    quickly.feed(data)
    assert taken(slowly) == taken(quickly) == requests


@given(st.binary(max_size=300))
def test_any_bytes_give_requests_or_one_clear_error(data: bytes) -> None:
    parser = Parser()
    parser.feed(data)
    error = ""
    try:
        for request in taken(parser):
            assert request
            assert all(type(word) is bytes for word in request)
    except ProtocolError as problem:
        error = str(problem)
    assert not error or error.startswith("ERR Protocol error: ")


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_what_any_bytes_mean_does_not_depend_on_how_they_are_cut(data: bytes, cuts: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[Request], str]:
        parser, found = Parser(), []
        try:
            for piece in pieces:
                parser.feed(piece)
                found += taken(parser, 3)
        except ProtocolError as problem:
            return found, str(problem)
        return found, ""

    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    assert outcome([*pieces, data[at:]]) == outcome([data])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*1\r\nGET\r\n", "expected '$', got 'G'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$999999999999\r\n", "invalid bulk length"),
        (b"*2\r\n$%d\r\n" % (REQUEST_BYTES + 1), "invalid bulk length"),
        (b"*" + b"1" * (INLINE_BYTES + 1), "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * (INLINE_BYTES + 1), "too big bulk count string"),
        (b"x" * (INLINE_BYTES + 1), "too big inline request"),
        (b'SET a "b\r\n', "unbalanced quotes in request"),
    ],
)
def test_what_is_no_request_is_refused_behind_what_is(data: bytes, error: str) -> None:
    parser = Parser()
    parser.feed(encode([b"PING"]) + data)
    assert parser.take(10) == [[b"PING"]]
    for _ in range(2):  # it stays so
        with pytest.raises(ProtocolError, match=f"^ERR Protocol error: {error.replace('$', '[$]')}"):
            parser.take(10)


def test_a_claimed_length_makes_nothing() -> None:
    parser = Parser()
    tracemalloc.start()
    try:
        parser.feed(b"*%d\r\n$%d\r\n" % (ARGUMENTS, REQUEST_BYTES - 100))
        assert parser.take(10) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024


def test_a_request_is_bounded_as_a_whole() -> None:
    parser = Parser()
    half = REQUEST_BYTES // 2
    parser.feed(b"*3\r\n$%d\r\n" % half + b"v" * half + b"\r\n$%d\r\n" % half)
    with pytest.raises(ProtocolError, match="a request is at most"):
        parser.take(1)


def test_strangers_have_lower_limits() -> None:
    parser = Parser()
    parser.limits = (16 * 1024, 10)
    parser.feed(encode([b"x"] * 11))
    with pytest.raises(ProtocolError, match="unauthenticated multibulk length"):
        parser.take(1)


def test_bytes_are_not_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that trickles in is split once at most, not once for each of its bytes."""
    splits = 0
    original = Parser._take_fast

    def counted(self: Parser, found: list[Request], most: int) -> bool:
        nonlocal splits
        splits += 1
        return original(self, found, most)

    monkeypatch.setattr(Parser, "_take_fast", counted)
    parser = Parser()
    request = [b"SET", b"k", b"v" * 20_000]
    data = encode(request)
    for at in range(len(data) - 1):
        parser.feed(data[at : at + 1])
        assert parser.take(1) == []
    parser.feed(data[-1:])
    assert parser.take(1) == [request]
    assert splits <= 2
    # Nor are values with ends of lines in them a way to have much split for little.
    splits = 0
    many = encode([b"SET", b"k", b"\r\n"]) * 1_000
    parser = Parser()
    parser.feed(many)
    assert len(taken(parser)) == 1_000
    assert splits <= 1_000 // parser_module._SLOW_AFTER + 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  PING  ", [b"PING"]),
        (b'SET k "a b"', [b"SET", b"k", b"a b"]),
        (b"SET k 'it\\'s \\n'", [b"SET", b"k", b"it's \\n"]),
        (b'SET k "\\x41\\n\\t\\"\\q"', [b"SET", b"k", b'A\n\t"q']),
        (b'"a"b', None),
        (b"'a", None),
        (b'a"b c"', [b"ab c"]),
    ],
)
def test_lines_typed_by_hand(line: bytes, words: Request | None) -> None:
    assert split_line(line) == words


def test_lines_and_arrays_may_alternate() -> None:
    parser = Parser()
    parser.feed(b"PING\r\n" + encode([b"GET", b"a"]) + b"\r\n" + b"ECHO hi\n" + encode([b"INCR", b"n"]))
    assert taken(parser) == [[b"PING"], [b"GET", b"a"], [b"ECHO", b"hi"], [b"INCR", b"n"]]
