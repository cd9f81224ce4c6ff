"""Sequences of commands, made by hypothesis, asked of this store and of a real redis-server: the replies must be equal.

    python -m tests.examples.resp_differential [--sequences 2000] [--seed 1] [--in-memory]

A sequence uses two connections to each server, single commands and pipelines, transactions and watches, in either
version of the protocol. What is left out is what docs/kv.md lists as different, and nothing else: keys beyond text of
1 to 4,096 bytes, transactions over several shards, the order and the cursors of SCAN, commands that are not there, what
is told of the server itself. Times to live are compared with some tolerance.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from examples.kv.cluster import Cluster
from tests.examples.resp_client import Reply, Wire, redis_server

Words: TypeAlias = list[bytes]

TAGGED: Final = (b"{t}a", b"{t}b", b"c{t}", b"{t}\xc3\xa4")
"""Keys of one shard, for transactions."""
KEYS: Final = (*TAGGED, b"x", b"y", b"z{}", b"{", b"w:1")
_LATER_S: Final = 1 << 33
_TTL_SLACK_S: Final = 3


@dataclass(frozen=True)
class Step:
    """Requests that one of the two connections sends in one piece."""

    connection: int
    requests: tuple[Words, ...]


# ------------------------------------------------------------------------------------------------------ sequences

_integers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([(1 << 63) - 1, -(1 << 63), 1 << 63, -(1 << 63) - 1, (1 << 62), 10**15]),
).map(lambda number: b"%d" % number)
_odd_numbers = st.sampled_from(
    [b"", b"a", b"+1", b"01", b"-0", b" 1", b"1 ", b"1.0", b"1e3", b"0x10", b"--1", b"9" * 30, b"\x00", b"1\x00"]
)
_numbers = st.one_of(_integers, _integers, _odd_numbers)
_floats = st.one_of(
    st.sampled_from(
        b"0.1 -0.1 1.5 3.0e3 -2.5E-4 .5 5. 1e17 12345678901234567.891 1e-20 0.30000000000000004 1e300 1e4000 -1e4932 "
        b"1e5000 inf -inf nan 1.1.1 e5 0x1.8p3 -0x.1 3.141592653589793238462643383279 -0.0 1e-4990 Infinity - 1e "
        b"0.00000000000000001".split()
    ),
    st.decimals(-1000, 1000, places=5).map(lambda number: b"%s" % str(number).encode()),
    _numbers,
)
_values = st.one_of(
    _numbers,
    _floats,
    st.binary(max_size=12),
    st.sampled_from([b"", b"\r\n", b"$3\r\nabc\r\n", b"\xff\x00", b"text", b"v" * 5_000]),
)
_seconds = st.sampled_from([b"1000", b"20000", b"300000"])
_bad_times = st.sampled_from(
    [b"0", b"-1", b"-100", b"abc", b"", b"1.5", b"9223372036854775807", b"-9223372036854775808"]
)
_some_time = st.one_of(
    st.tuples(st.just(b"EX"), st.one_of(_seconds, _seconds, _bad_times)),
    st.tuples(st.just(b"PX"), st.one_of(_seconds.map(lambda s: s + b"000"), _bad_times)),
    st.tuples(st.just(b"EXAT"), st.sampled_from([b"%d" % _LATER_S, b"0", b"-5", b"x"])),
    st.tuples(st.just(b"PXAT"), st.sampled_from([b"%d" % (_LATER_S * 1_000), b"0", b"-5", b"x"])),
).map(list)
_past = st.sampled_from([[b"EXAT", b"1"], [b"PXAT", b"1"]])
_flag = st.sampled_from([b"NX", b"XX", b"GET", b"KEEPTTL", b"PERSIST", b"nx", b"gEt", b"junk", b"EX"]).map(
    lambda word: [word]
)


def _words(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Words]:
    """Return a strategy of requests: each part gives a word, or a list of words."""

    def join(found: tuple[Any, ...]) -> Words:
        words: Words = []
        for part in found:
            words += part if isinstance(part, list) else [part]
        return words

    return st.tuples(*parts).map(join)


def _named(*names: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(names)


def commands(keys: Sequence[bytes]) -> st.SearchStrategy[Words]:
    """Return a strategy of requests about `keys`."""
    key = st.sampled_from(keys)
    options = st.lists(st.one_of(_flag, _some_time), max_size=3).map(lambda found: [w for part in found for w in part])
    when = st.lists(st.sampled_from([b"NX", b"XX", b"GT", b"lt", b"??"]), max_size=2)
    return st.one_of(
        _words(_named(b"SET"), key, _values),
        _words(_named(b"SET", b"set"), key, _values, options),
        _words(_named(b"SET"), key, _values, st.one_of(_some_time, _past)),
        _words(_named(b"GET", b"GETDEL", b"STRLEN", b"TYPE", b"Get"), key),
        _words(_named(b"INCR", b"DECR", b"PERSIST", b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME"), key),
        _words(_named(b"INCRBY", b"DECRBY"), key, _numbers),
        _words(_named(b"INCRBYFLOAT"), key, _floats),
        _words(_named(b"APPEND", b"SETNX", b"GETSET"), key, _values),
        _words(_named(b"SETEX"), key, st.one_of(_seconds, _bad_times), _values),
        _words(_named(b"PSETEX"), key, st.one_of(_seconds.map(lambda s: s + b"000"), _bad_times), _values),
        _words(_named(b"GETEX"), key, st.one_of(st.just([]), _some_time, _past, _flag, options)),
        _words(_named(b"EXPIRE"), key, st.one_of(_seconds, _bad_times)),
        _words(_named(b"PEXPIRE"), key, st.one_of(_seconds.map(lambda s: s + b"000"), _bad_times)),
        _words(_named(b"EXPIREAT"), key, st.sampled_from([b"1", b"%d" % _LATER_S, b"%d" % (2 * _LATER_S)]), when),
        _words(_named(b"PEXPIREAT"), key, st.sampled_from([b"1", b"%d" % (_LATER_S * 1_500), b"zz"]), when),
        _words(_named(b"MGET", b"EXISTS", b"DEL", b"UNLINK", b"TOUCH"), st.lists(key, max_size=4)),
        _words(
            _named(b"MSET"), st.lists(st.tuples(key, _values), max_size=3).map(lambda p: [w for kv in p for w in kv])
        ),
        _words(_named(b"PING"), st.lists(_values, max_size=2)),
        _words(_named(b"ECHO"), st.lists(_values, max_size=2)),
        _words(_named(b"SELECT"), st.sampled_from([b"0", b"0", b"x", b"99", b"-1"])),
        # Wrong in number, or in name.
        _words(_named(b"GET", b"SET", b"INCR", b"TTL", b"EXPIRE", b"APPEND"), st.lists(key, max_size=1)),
        _words(
            _named(b"NOSUCH", b"gett", b"we ird", b"\xffx"), st.lists(_values.filter(lambda v: len(v) < 20), max_size=3)
        ),
    )


_anywhere = st.one_of(
    commands(KEYS),
    _words(
        _named(b"SCAN"),
        st.sampled_from([b"0", b"x", b""]),
        _named(b"COUNT", b"junk"),
        _named(b"0", b"x"),
    ),
    st.just([b"DBSIZE"]),
    st.just([b"CLIENT", b"GETNAME"]),
    _words(st.just([b"CLIENT", b"SETNAME"]), _named(b"me", b"a b", b"")),
)
_in_transaction = st.one_of(
    commands(TAGGED), commands(TAGGED), st.sampled_from([[b"MULTI"], [b"WATCH", b"{t}a"], [b"UNWATCH"], [b"DISCARD"]])
)
_transaction = st.lists(_in_transaction, max_size=4).map(lambda inner: ([b"MULTI"], *inner, [b"EXEC"]))
_control = st.one_of(
    st.sampled_from([([b"EXEC"],), ([b"DISCARD"],), ([b"UNWATCH"],), ([b"MULTI"], [b"DISCARD"])]),
    st.lists(st.sampled_from(TAGGED), min_size=1, max_size=3).map(lambda keys: ([b"WATCH", *keys],)),
)
_which = st.integers(0, 1)
_steps = st.one_of(
    st.builds(Step, _which, commands(KEYS).map(lambda words: (words,))),
    st.builds(Step, _which, _anywhere.map(lambda words: (words,))),
    st.builds(Step, _which, st.lists(commands(KEYS), min_size=2, max_size=8).map(tuple)),
    st.builds(Step, _which, _transaction),
    st.builds(Step, _which, _control),
    st.builds(Step, _which, commands(TAGGED).map(lambda words: (words,))),
)


@st.composite
def watching(draw: st.DrawFn) -> list[Step]:
    """A watch, what may come in between, and the transaction that depends on it."""
    keys = draw(st.lists(st.sampled_from(TAGGED), min_size=1, max_size=2))
    between = draw(st.lists(st.builds(Step, _which, commands(TAGGED).map(lambda words: (words,))), max_size=2))
    return [Step(0, ([b"WATCH", *keys],)), *between, Step(0, draw(_transaction))]


sequences = st.tuples(
    st.sampled_from([2, 3]),
    st.lists(st.one_of(_steps.map(lambda step: [step]), watching()), min_size=1, max_size=10).map(
        lambda parts: [step for part in parts for step in part]
    ),
)

# ------------------------------------------------------------------------------------------------------ comparing

_ENDS: Final = {b"TTL": 1, b"PTTL": 1_000, b"EXPIRETIME": 1, b"PEXPIRETIME": 1_000}


def same(words: Words, ours: Reply, theirs: Reply) -> bool:
    """Return whether two replies to `words` are equal, times to live with some tolerance."""
    unit = _ENDS.get(words[0].upper())
    if unit is not None and ours[0] == theirs[0] == ":" and ours[1] > 0 and theirs[1] > 0:
        return bool(abs(ours[1] - theirs[1]) <= _TTL_SLACK_S * unit)
    return ours == theirs


def compare(step: Step, open_: list[Words] | None, ours: list[Reply], theirs: list[Reply]) -> list[Words] | None:
    """Compare the replies to a step; `open_`: what waits for EXEC. Return what waits for it then."""
    for words, our, their in zip(step.requests, ours, theirs, strict=True):
        name = words[0].upper() if words else b""
        problem = f"{words}\n  here:  {our}\n  redis: {their}"
        if name == b"EXEC" and open_ is not None and our[0] == their[0] == "*" and our[1] and their[1]:
            assert len(our[1]) == len(their[1]) == len(open_), problem
            for inner, one, other in zip(open_, our[1], their[1], strict=True):
                assert same(inner, one, other), f"in a transaction: {inner}\n  here:  {one}\n  redis: {other}"
        else:
            assert same(words, our, their), problem
        if their == ("+", "QUEUED") and open_ is not None:
            open_.append(words)
        elif name == b"MULTI" and their == ("+", "OK"):
            open_ = []
        elif name in (b"EXEC", b"DISCARD"):
            open_ = None
    return open_


class Pair:
    """Both servers.

    ours, theirs  addresses; a sequence uses two connections to each server
    """

    def __init__(self, ours: Sequence[str], theirs: str) -> None:
        self._addresses = [[ours[at % len(ours)] for at in range(2)], [theirs] * 2]
        self.sequences = 0
        self.requests = 0

    def run(self, version: int, steps: Sequence[Step]) -> None:
        """Run one sequence. Raises AssertionError at the first difference."""
        with ExitStack() as stack:
            ours, theirs = (
                [stack.enter_context(Wire(address)) for address in addresses] for addresses in self._addresses
            )
            for wire in (*ours, *theirs):
                wire.ask(b"HELLO", b"%d" % version)
            for wire in (ours[0], theirs[0]):
                wire.ask(b"DEL", *KEYS)
            open_: list[list[Words] | None] = [None, None]
            for step in steps:
                requests = [words for words in step.requests if words]
                asked = [wires[step.connection].ask_all(requests) for wires in (ours, theirs)]
                at = step.connection
                open_[at] = compare(Step(at, tuple(requests)), open_[at], *asked)
                self.requests += len(requests)
            for wire in (*ours, *theirs):
                wire.ask(b"DISCARD")
            compare_all(ours[0], theirs[0])
        self.sequences += 1


def compare_all(ours: Wire, theirs: Wire) -> None:
    """What both hold in the end, by GET and by SCAN."""
    for key in KEYS:
        one, other = (wire.ask(b"GET", key) for wire in (ours, theirs))
        assert one == other, f"in the end {key!r}:\n  here:  {one}\n  redis: {other}"
    for options in ([], [b"MATCH", b"*{[^x]*", b"COUNT", b"3"], [b"TYPE", b"list"]):
        one_set, other_set = (scan(wire, *options) for wire in (ours, theirs))
        assert one_set == other_set, f"SCAN {options}: {one_set} here, {other_set} at redis"


def scan(wire: Wire, *options: bytes) -> list[bytes]:
    """Return all keys that a scan gives, in order, each once."""
    cursor, found = b"0", set()
    while True:
        kind, (place, keys) = wire.ask(b"SCAN", cursor, *options)
        assert kind == "*"
        found |= {key for _, key in keys[1]}
        cursor = place[1]
        if cursor == b"0":
            return sorted(found)


def differ(pair: Pair, count: int, number: int | None = None, reached: Callable[[], None] | None = None) -> None:
    """Run `count` sequences; raise at the first difference, which hypothesis makes as small as it can."""

    def one(sequence: tuple[int, list[Step]]) -> None:
        pair.run(*sequence)
        if reached is not None:
            reached()

    run = settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        derandomize=number is None,
    )(given(sequences)(one))
    (run if number is None else seed(number)(run))()


@asynccontextmanager
async def both(directory: Path, *options: str) -> AsyncIterator[Pair]:
    """Run three nodes of the store, and a redis-server."""
    async with Cluster(directory / "kv", ["--shards=8", *options]) as cluster:
        with redis_server(directory) as theirs:
            yield Pair([node.resp for node in cluster.nodes.values()], theirs)


@click.command()
@click.option("--sequences", "count", default=2_000, show_default=True)
@click.option("--seed", "number", default=1, show_default=True)
@click.option("--in-memory", is_flag=True, help="The shards in memory instead of on disk.")
def main(count: int, number: int, in_memory: bool) -> None:
    """Compare this store with a real redis-server."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with both(Path(directory), *(["--in-memory"] if in_memory else [])) as pair:
                began_s = time.monotonic()

                def tell() -> None:
                    if pair.sequences % 200 == 0:
                        print(f"{pair.sequences} sequences, {pair.requests} commands", flush=True)

                await asyncio.get_running_loop().run_in_executor(None, differ, pair, count, number, tell)
                took_s = time.monotonic() - began_s
                print(f"no difference: {pair.sequences} sequences, {pair.requests} commands, {took_s:.0f} s")

    asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
