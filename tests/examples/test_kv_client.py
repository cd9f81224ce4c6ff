"""The client's retries, against a server that answers as each test scripts it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from examples.kv.client import Client, key_path
from examples.kv.cluster import free_ports
from examples.kv.numbering import HEADER, Numbers, read_number, write_number
from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    InvalidRequest,
    OutcomeUnknown,
    Overloaded,
    ReplyForgotten,
)
from multiraft.sessions import WINDOW, Numbered

Answer = tuple[int, object]
Serve = Callable[[list[Answer]], Awaitable[str]]


def refusal(status: int, outcome: str) -> Answer:
    return status, {"error": "scripted", "hint": "none", "outcome": outcome}


@pytest.fixture
async def requests() -> list[tuple[str, str, bytes]]:
    """What the scripted server was asked."""
    return []


@pytest.fixture
async def numbers() -> list[str | None]:
    """Under which number each request came."""
    return []


@pytest.fixture
async def serve(requests: list[tuple[str, str, bytes]], numbers: list[str | None]) -> AsyncIterator[Serve]:
    """Start a server that gives these answers in turn, the last one again and again; returns its URL.

    Sessions are opened besides: the first is 16 bytes of 0, the next 16 bytes of 1, and so on.
    """
    opened: list[bytes] = []
    runners: list[web.AppRunner] = []

    async def start(answers: list[Answer]) -> str:
        async def answer(request: web.Request) -> web.Response:
            if request.path == "/session":
                opened.append(bytes([len(opened)]) * 16)
                return web.json_response({"session": opened[-1].hex()})
            numbers.append(request.headers.get(HEADER))
            requests.append((request.method, request.rel_url.raw_path, await request.read()))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(body, bytes):
                return web.Response(status=status, body=body)
            return web.json_response(body, status=status)

        app = web.Application()
        app.router.add_route("*", "/{tail:(?s:.*)}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        (port,) = free_ports(1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_what_was_not_committed_is_tried_again(serve: Serve) -> None:
    url = await serve([refusal(503, "not_committed"), refusal(503, "not_committed"), (200, {"value": 7})])
    async with Client([url], exactly_once=False) as client:
        assert await client.increment("n") == 7
        assert (client.counts.attempts, client.counts.retries, client.counts.unknown) == (3, 2, 0)


async def test_an_unknown_put_is_tried_again_and_counted(serve: Serve) -> None:
    url = await serve([refusal(504, "unknown"), (204, b"")])
    async with Client([url], exactly_once=False) as client:
        await client.put("k", b"v")
        assert (client.counts.attempts, client.counts.retries, client.counts.unknown) == (2, 1, 1)


@pytest.mark.parametrize("call", ["increment", "compare_and_set"])
async def test_what_may_not_happen_twice_is_not_tried_again(
    serve: Serve, requests: list[tuple[str, str, bytes]], call: str
) -> None:
    url = await serve([refusal(504, "unknown")])
    async with Client([url], exactly_once=False) as client:
        with pytest.raises(OutcomeUnknown):
            await (client.increment("n") if call == "increment" else client.compare_and_set("n", None, b"v"))
        assert len(requests) == 1
        assert client.counts.unknown == 1


async def test_an_unreachable_node_is_passed_over(serve: Serve) -> None:
    url = await serve([(200, b"v")])
    (port,) = free_ports(1)
    async with Client([f"http://127.0.0.1:{port}", url], exactly_once=False) as client:
        assert [await client.get("k") for _ in range(10)] == [b"v"] * 10
        assert client.counts.attempts <= 12  # not every second one goes to the node that is down
    async with Client([f"http://127.0.0.1:{port}"], exactly_once=False, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded, match="cannot be reached"):
            await client.increment("n")  # certainly not done: nothing left this process
        assert client.counts.unknown == 0


async def test_a_connection_that_breaks_leaves_the_outcome_open() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        async with Client([f"http://{host}:{port}"], exactly_once=False, timeout_s=0.3) as client:
            with pytest.raises(OutcomeUnknown):
                await client.increment("n")
            with pytest.raises(OutcomeUnknown):
                await client.put("k", b"v")
            assert client.counts.unknown > 2


async def test_time_that_runs_out_says_what_is_certain(serve: Serve) -> None:
    url = await serve([refusal(503, "not_committed")])
    async with Client([url], exactly_once=False, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded, match="scripted"):
            await client.put("k", b"v")


async def test_a_refusal_is_not_tried_again(serve: Serve, requests: list[tuple[str, str, bytes]]) -> None:
    url = await serve([refusal(413, "not_committed"), refusal(409, "failed"), (500, b"no JSON at all")])
    async with Client([url], exactly_once=False, timeout_s=0.2) as client:
        with pytest.raises(InvalidRequest, match="scripted"):
            await client.put("k", b"v")
        with pytest.raises(CommandFailed, match="scripted"):
            await client.increment("n")
        assert len(requests) == 2
        with pytest.raises(OutcomeUnknown, match="HTTP 500"):
            await client.increment("n")


async def test_absent_is_what_the_store_says_not_any_404(serve: Serve) -> None:
    url = await serve([refusal(404, "not_committed"), (404, b"<html>some other server</html>")])
    async with Client([url], exactly_once=False) as client:
        assert await client.get("k") is None
        with pytest.raises(InvalidRequest, match="HTTP 404"):
            await client.get("k")


async def test_only_the_undone_part_of_a_batch_is_sent_again(
    serve: Serve, requests: list[tuple[str, str, bytes]]
) -> None:
    done = {"shard_id": 1, "outcome": "committed", "writes": 1}
    late = {"shard_id": 2, "outcome": "unknown", "writes": 1, "keys": ["b"], "error": "scripted", "status": 504}
    none = {"shard_id": 3, "outcome": "not_committed", "writes": 1, "keys": ["c"], "error": "scripted", "status": 503}
    url = await serve([(207, {"committed": 1, "shards": [done, late, none]}), (200, {"committed": 2, "shards": []})])
    async with Client([url], exactly_once=False) as client:
        await client.batch({"a": b"1", "b": b"2", "c": None})
        assert (client.counts.attempts, client.counts.retries, client.counts.unknown) == (2, 1, 1)
    assert json.loads(requests[1][2]) == {"put": {"b": "Mg=="}, "delete": ["c"]}


@pytest.mark.parametrize("key", ["a b", "a/b", "..", "./x", "ä☃", "%2F", "a?b#c", "\x00\n", "+"])
async def test_any_key_reaches_the_server_as_it_is(
    serve: Serve, requests: list[tuple[str, str, bytes]], key: str
) -> None:
    url = await serve([(204, b"")])
    async with Client([url], exactly_once=False) as client:
        await client.put(key, b"v")
    assert requests[0][1] == key_path(key)


# ---------------------------------------------------------------------------------------------------- exactly once

FIRST, SECOND = "00" * 16, "01" * 16


async def test_what_is_unknown_is_asked_again_under_its_number(serve: Serve, numbers: list[str | None]) -> None:
    answers = [
        refusal(503, "not_committed"),
        refusal(504, "unknown"),
        refusal(503, "not_committed"),
        (200, {"value": 7}),
    ]
    url = await serve([*answers, (204, b"")])
    async with Client([url]) as client:
        assert await client.increment("n") == 7
        assert (client.counts.retries, client.counts.unknown) == (3, 1)
        await client.put("k", b"v")
    assert numbers == [
        f"{FIRST}:1:1:first",
        f"{FIRST}:1:1:first",  # nothing has happened so far
        f"{FIRST}:1:1",
        f"{FIRST}:1:1",
        f"{FIRST}:2:2:first",
    ]


async def test_the_lowest_number_waits_for_who_still_asks(serve: Serve, numbers: list[str | None]) -> None:
    url = await serve([refusal(503, "not_committed")])
    async with Client([url], timeout_s=0.3) as client:
        late = await asyncio.gather(client.increment("n"), client.increment("n"), return_exceptions=True)
        assert [type(problem) for problem in late] == [DeadlineExceeded] * 2
        with pytest.raises(DeadlineExceeded):
            await client.increment("n")
    assert {f"{FIRST}:1:1:first", f"{FIRST}:2:1:first"} <= set(numbers)
    assert numbers[-1] == f"{FIRST}:3:3:first"  # the first two have given up


async def test_a_session_that_has_ended_is_followed_by_another(serve: Serve, numbers: list[str | None]) -> None:
    url = await serve([refusal(410, "not_committed"), (200, {"value": 1})])
    async with Client([url]) as client:
        assert await client.increment("n") == 1
    assert numbers == [f"{FIRST}:1:1:first", f"{SECOND}:1:1:first"]


async def test_what_may_have_happened_stays_unknown_when_the_time_runs_out(serve: Serve) -> None:
    url = await serve([refusal(504, "unknown"), refusal(503, "not_committed")])
    for exactly_once in (True, False):
        async with Client([url], exactly_once=exactly_once, timeout_s=0.3) as client:
            if exactly_once:
                with pytest.raises(OutcomeUnknown):
                    await client.increment("n")
            else:
                with pytest.raises(DeadlineExceeded):
                    await client.put("k", b"v")


async def test_an_answer_that_is_kept_no_more_says_that_it_was_done(serve: Serve) -> None:
    url = await serve([refusal(504, "forgotten")])
    async with Client([url]) as client:
        await client.put("k", b"v")
        with pytest.raises(ReplyForgotten):
            await client.increment("n")
        await client.batch({"k": b"v"})


async def test_the_parts_of_a_batch_are_asked_again_each_under_its_number(
    serve: Serve, requests: list[tuple[str, str, bytes]], numbers: list[str | None]
) -> None:
    def part(outcome: str, status: int, key: str) -> dict[str, object]:
        return {"outcome": outcome, "status": status, "writes": 1, "keys": [key], "error": "x", "shard_id": 1}

    parts = [part("unknown", 504, "a"), part("not_committed", 410, "b"), part("forgotten", 504, "c")]
    done: Answer = (200, {"committed": 1, "shards": []})
    url = await serve([(207, {"committed": 0, "shards": parts}), done, done])
    async with Client([url]) as client:
        await client.batch({"a": b"1", "b": b"2", "c": None})
    assert [json.loads(body) for _, _, body in requests[1:]] == [
        {"put": {"a": "MQ=="}, "delete": []},
        {"put": {"b": "Mg=="}, "delete": []},
    ]
    assert numbers == [f"{FIRST}:1:1:first", f"{FIRST}:1:1", f"{SECOND}:1:1:first"]


def test_numbers_are_written_and_read() -> None:
    for first in (True, False):
        number = Numbered(bytes(range(16)), 12, 7, first)
        assert read_number(write_number(number)) == number
    for text in (
        "",
        "00:1:1",
        f"{FIRST}:1",
        f"{FIRST}:1:2",
        f"{FIRST}:x:1",
        f"{FIRST}:1:1:last",
        f"{FIRST}:1:1:first:",
    ):
        with pytest.raises(InvalidRequest):
            read_number(text)


def test_no_more_numbers_are_given_than_the_store_takes() -> None:
    session = Numbers(bytes(16))
    first = session.begin()
    for _ in range(WINDOW - 1):
        session.end(session.begin())
    with pytest.raises(Overloaded):
        session.begin()
    session.end(first)
    assert session.lowest == WINDOW + 1
    session.begin()
