"""The HTTP API, by a real aiohttp client, on three real nodes in this process; shards on disk, and in memory.

One cluster serves all tests of this file; each test uses keys of its own.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from examples.kv.client import Client, key_path
from examples.kv.cluster import free_ports
from examples.kv.http import BATCH_LIMIT_BYTES, kv_app
from examples.kv.inputs import explain
from examples.kv.machine import KEY_LIMIT_BYTES, KV, VALUE_LIMIT_BYTES, DiskKV
from examples.kv.memory import MemoryKV
from multiraft import errors
from multiraft.config import NodeConfig
from multiraft.node import Node
from tests.examples.kv_nodes import Stored, served, three_nodes

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARDS = 4
Urls = list[str]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module", params=[DiskKV, MemoryKV])
def kind(request: pytest.FixtureRequest) -> type[KV]:
    chosen: type[KV] = request.param
    return chosen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(directory: Path, kind: type[KV]) -> AsyncIterator[list[Stored]]:
    """Three nodes that are ready, and the store's handle on each."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    await asyncio.to_thread(int)  # the thread is this fixture's, not of the first test that needs one
    async with three_nodes(directory / kind.__name__, kind, shards=SHARDS) as nodes:
        yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def urls(nodes: list[Stored]) -> AsyncIterator[Urls]:
    """The HTTP APIs of the three nodes, the last of which lets losses be planted."""
    async with AsyncExitStack() as stack:
        apps = [kv_app(node, handle, allow_planted_loss=node.node_id == "c") for node, handle in nodes]
        yield [await stack.enter_async_context(served(app)) for app in apps]


@pytest_asyncio.fixture(loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, method: str, url: str, data: bytes | None = None
) -> tuple[int, bytes, aiohttp.ClientResponse]:
    content = None if data is None else io.BytesIO(data)
    async with http.request(method, URL(url, encoded=True), data=content) as response:
        return response.status, await response.read(), response


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def test_put_get_delete_through_different_nodes(http: aiohttp.ClientSession, urls: Urls) -> None:
    value = bytes(range(256))
    assert (await ask(http, "PUT", urls[0] + "/kv/basic", value))[0] == 204
    for url in urls:
        status, body, response = await ask(http, "GET", url + "/kv/basic")
        assert (status, body, response.content_type) == (200, value, "application/octet-stream")
    status, body, _ = await ask(http, "DELETE", urls[1] + "/kv/basic")
    assert (status, json.loads(body)) == (200, {"deleted": True})
    assert json.loads((await ask(http, "DELETE", urls[2] + "/kv/basic"))[1]) == {"deleted": False}
    assert (await ask(http, "GET", urls[2] + "/kv/basic"))[0] == 404


async def test_a_value_is_read_in_the_way_chosen_and_says_how_old_it_may_be(
    http: aiohttp.ClientSession, urls: Urls
) -> None:
    assert (await ask(http, "PUT", urls[0] + "/kv/ways", b"1"))[0] == 204
    for url in urls:
        for way in ("lease=1", "local=1", "stale_ms=0", "stale_ms=60000", "lease=0"):
            status, body, response = await ask(http, "GET", f"{url}/kv/ways?{way}")
            assert (status, body) == (200, b"1")
            assert 0 <= int(response.headers["Age-Ms"]) < 30_000
        assert "Age-Ms" not in (await ask(http, "GET", url + "/kv/ways"))[2].headers


@pytest.mark.parametrize("key", ["a b", "dir/sub/leaf", "/", "..", "./x", "ä☃", "%2F", "a?b#c", "\x00\n", "a+b", "~"])
async def test_any_text_is_a_key(http: aiohttp.ClientSession, urls: Urls, key: str) -> None:
    assert (await ask(http, "PUT", urls[0] + key_path(key), b"odd"))[0] == 204
    status, body, _ = await ask(http, "GET", urls[1] + key_path(key))
    assert (status, body) == (200, b"odd")
    async with Client(urls) as client:
        assert [item async for item in client.scan(key)] == [(key, b"odd")]
        assert await client.delete(key)


async def test_slashes_may_stand_as_they_are(http: aiohttp.ClientSession, urls: Urls) -> None:
    assert (await ask(http, "PUT", urls[0] + "/kv/plain/a/b", b"1"))[0] == 204
    assert (await ask(http, "GET", urls[1] + key_path("plain/a/b")))[1] == b"1"


async def test_compare_and_set(http: aiohttp.ClientSession, urls: Urls) -> None:
    async with Client(urls) as client:
        created = await client.compare_and_set("cas", None, b"1")
        assert (created.swapped, created.current) == (True, b"1")
        refused = await client.compare_and_set("cas", b"0", b"2")
        assert (refused.swapped, refused.current) == (False, b"1")
        assert (await client.compare_and_set("cas", b"1", b"")).current == b""
        assert await client.get("cas") == b""
    # The largest values fit in one request, two of them.
    large = b64(b"\xff" * VALUE_LIMIT_BYTES)
    body = json.dumps({"expected": large, "value": large}).encode()
    status, answer, _ = await ask(http, "POST", urls[0] + "/cas/cas", body)
    assert (status, json.loads(answer)) == (200, {"swapped": False, "current": ""})


async def test_increment_counts_every_call_once(urls: Urls) -> None:
    async with Client(urls) as client:
        results = await asyncio.gather(*[client.increment("hits") for _ in range(50)])
        assert sorted(results) == list(range(1, 51))
        assert await client.increment("hits", -60) == -10
        assert await client.get("hits") == b"-10"


async def test_increment_of_text_fails_and_changes_nothing(http: aiohttp.ClientSession, urls: Urls) -> None:
    await ask(http, "PUT", urls[0] + "/kv/text", b"no number")
    status, body, _ = await ask(http, "POST", urls[1] + "/increment/text")
    assert status == 409
    assert json.loads(body)["outcome"] == "failed"
    assert "whole number" in json.loads(body)["error"]
    assert (await ask(http, "GET", urls[0] + "/kv/text"))[1] == b"no number"


@pytest.mark.parametrize("page", [1, 7, 100, 5_000])
async def test_scan_gives_every_key_once_in_order(urls: Urls, page: int) -> None:
    prefix = f"scan{page}/"
    expected = {f"{prefix}{number:03}": b"%d" % number for number in range(150)}
    async with Client(urls) as client:
        await client.batch({**expected, "scan": b"before", "scan~": b"after"})
        found = [item async for item in client.scan(prefix, page)]
    assert found == sorted(expected.items())


async def test_batch_is_answered_for_each_shard(http: aiohttp.ClientSession, urls: Urls) -> None:
    await ask(http, "PUT", urls[0] + "/kv/batch/gone", b"1")
    body = {"put": {f"batch/{number}": b64(b"%d" % number) for number in range(40)}, "delete": ["batch/gone"]}
    status, answer, _ = await ask(http, "POST", urls[1] + "/batch", json.dumps(body).encode())
    told = json.loads(answer)
    assert (status, told["committed"]) == (200, 41)
    assert sorted(shard["shard_id"] for shard in told["shards"]) == list(range(1, SHARDS + 1))
    assert {shard["outcome"] for shard in told["shards"]} == {"committed"}
    assert sum(shard["writes"] for shard in told["shards"]) == 41
    async with Client(urls) as client:
        assert {key: value async for key, value in client.scan("batch/")} == {
            f"batch/{number}": b"%d" % number for number in range(40)
        }


async def test_every_write_is_on_every_replica(http: aiohttp.ClientSession, urls: Urls) -> None:
    async with Client(urls) as client:
        await client.batch({f"replica/{number}": b"%d" % number for number in range(40)})
    _, body, _ = await ask(http, "GET", urls[0] + "/admin/groups?service=kv")
    groups = json.loads(body)["groups"]
    assert len(groups) == SHARDS
    for url in urls:
        found: dict[str, str] = {}
        for group in groups:
            _, body, _ = await ask(http, "GET", f"{url}/replica/{group['group_id']}?applied={group['commit']}")
            head, *lines, last = [json.loads(line) for line in body.splitlines()]
            assert head["applied"] >= group["commit"]
            assert last == {"records": len(lines)}
            found |= dict(lines)
        assert {key: value for key, value in found.items() if key.startswith("replica/")} == {
            f"replica/{number}": b64(b"%d" % number) for number in range(40)
        }


async def test_a_loss_is_planted_only_where_that_is_allowed(
    http: aiohttp.ClientSession, urls: Urls, kind: type[KV]
) -> None:
    await ask(http, "PUT", urls[0] + "/kv/planted", b"1")
    _, body, _ = await ask(http, "GET", urls[0] + "/admin/route?key=planted&service=kv")
    path = f"/replica/{json.loads(body)['group_id']}"
    assert (await ask(http, "DELETE", f"{urls[0]}{path}/planted"))[0] == 404
    _, body, _ = await ask(http, "GET", urls[0] + "/admin/groups?service=kv")
    commit = next(row["commit"] for row in json.loads(body)["groups"] if path.endswith(f"/{row['group_id']}"))
    await ask(http, "GET", f"{urls[2]}{path}?applied={commit}")
    status, body, _ = await ask(http, "DELETE", f"{urls[2]}{path}/planted")
    if kind is DiskKV:
        assert (status, json.loads(body)["outcome"]) == (400, "not_committed")
        assert "on disk lets nothing but commands write" in json.loads(body)["error"]
        return
    assert (status, json.loads(body)) == (200, {"dropped": True})
    held = [b'["planted"' in (await ask(http, "GET", f"{url}{path}?applied={commit}"))[1] for url in urls]
    assert held == [True, True, False]


async def test_the_largest_value_goes_through_every_node(http: aiohttp.ClientSession, urls: Urls) -> None:
    """Whoever leads the shard, two of the three have to pass it on."""
    for number, url in enumerate(urls):
        value = bytes([number]) * VALUE_LIMIT_BYTES
        assert (await ask(http, "PUT", f"{url}/kv/large", value))[0] == 204
        for reader in urls:
            status, body, _ = await ask(http, "GET", f"{reader}/kv/large")
            assert (status, body == value) == (200, True)
        status, body, _ = await ask(http, "PUT", f"{url}/kv/large", value + b"x")
        assert (status, json.loads(body)["outcome"]) == (413, "not_committed")
        assert f"more than {VALUE_LIMIT_BYTES} bytes" in json.loads(body)["error"]
    async with Client(urls) as client:
        await client.batch({"large": b"b" * VALUE_LIMIT_BYTES, "large/small": b""})
        assert [(key, len(value)) async for key, value in client.scan("large")] == [
            ("large", VALUE_LIMIT_BYTES),
            ("large/small", 0),
        ]
        await client.batch({"large": None, "large/small": None})


async def test_keys_live_for_so_long(http: aiohttp.ClientSession, urls: Urls) -> None:
    assert (await ask(http, "PUT", urls[0] + "/kv/short?ttl_ms=60000", b"1"))[0] == 204
    async with Client(urls) as client:
        life = await client.ttl("short")
        assert life.present
        assert 0 < (life.ttl_ms or 0) <= 60_000
        assert await client.persist("short")
        assert (await client.ttl("short")).ttl_ms is None
        assert await client.expire("short", 1)
        while (await client.ttl("short")).present:  # nobody else writes to its shard: it is swept
            pass
        assert await client.get("short") is None
        assert not await client.expire("short", 1)
        assert not await client.persist("short")
        await client.put("short", b"2", ttl_ms=60_000)
        swap = await client.compare_and_set("short", b"2", b"3", ttl_ms=30_000)
        assert swap.swapped
        assert 0 < ((await client.ttl("short")).ttl_ms or 0) <= 30_000
        assert await client.delete("short")


async def test_keys_are_counted(urls: Urls) -> None:
    async with Client(urls) as client:
        before = await client.count()
        await client.batch({f"count/{number}": b"" for number in range(40)})
        assert await client.count() == before + 40


async def test_a_numbered_change_is_done_once_by_whichever_nodes(http: aiohttp.ClientSession, urls: Urls) -> None:
    _, body, _ = await ask(http, "POST", urls[0] + "/session")
    session = json.loads(body)["session"]
    for number, how in enumerate(("increment/once", "increment/once", "kv/once/put", "cas/once/cas"), 1):
        method = "PUT" if how.startswith("kv") else "POST"
        data = b'{"value": "MQ=="}' if how.startswith("cas") else b""
        answers = []
        for at, url in enumerate((*urls, urls[0])):
            header = f"{session}:{number}:{number}" + (":first" if at == 0 else "")
            async with http.request(method, f"{url}/{how}", data=data, headers={"Session": header}) as response:
                answers.append((response.status, await response.read()))
        assert answers == [answers[0]] * 4
        assert answers[0][0] in (200, 204)
    assert (await ask(http, "GET", urls[1] + "/kv/once"))[1] == b"2"
    batch = json.dumps({"put": {f"once/{number}": "MQ==" for number in range(20)}}).encode()
    for header in (f"{session}:9:9:first", f"{session}:9:9"):
        async with http.post(urls[0] + "/batch", data=batch, headers={"Session": header}) as response:
            assert (response.status, (await response.json())["committed"]) == (200, 20)
        async with Client(urls) as client:
            await client.batch({f"once/{number}": b"2" for number in range(20)})
    assert (await ask(http, "GET", urls[1] + "/kv/once/7"))[1] == b"2"  # the late copy has changed nothing
    async with http.put(urls[0] + "/kv/bad", data=b"", headers={"Session": "none"}) as response:
        assert (response.status, (await response.json())["outcome"]) == (400, "not_committed")
    unknown = {"Session": f"{'ff' * 16}:1:1:first"}
    async with http.put(urls[0] + "/kv/bad", data=b"", headers=unknown) as response:
        assert (response.status, (await response.json())["outcome"]) == (410, "not_committed")


async def test_the_admin_api_is_there(http: aiohttp.ClientSession, urls: Urls) -> None:
    for url in urls:
        status, body, _ = await ask(http, "GET", url + "/admin/status")
        assert status == 200
        assert [node["state"] for node in json.loads(body)["nodes"]] == ["up"] * 3
    status, body, _ = await ask(http, "GET", urls[0] + "/")
    assert status == 200
    assert "PUT /kv/{key}" in json.loads(body)["routes"]


LONG_KEY = "/kv/" + "k" * (KEY_LIMIT_BYTES + 1)
BAD_INPUT: list[tuple[str, str, bytes | None, int, str]] = [
    ("GET", "/nowhere", None, 404, "nothing is at /nowhere"),
    ("GET", "/kv", None, 404, "nothing is at /kv"),
    ("GET", "/kv/never-written", None, 404, "there is no key 'never-written'"),
    ("GET", "/replica/999", None, 404, "no replica of group 999"),
    ("GET", "/replica/1", None, 404, "no replica of group 1 of the store"),
    ("GET", "/replica/x", None, 400, "group = 'x'"),
    ("POST", "/kv/bad", b"x", 405, "has no POST"),
    ("PUT", "/scan", b"x", 405, "has no PUT"),
    ("PUT", "/kv/", b"x", 400, "the key is empty"),
    ("PUT", "/kv/%FF%FE", b"x", 400, "the key is not UTF-8"),
    ("GET", "/kv/bad?stale_ms=-1", None, 400, "stale_ms = '-1'"),
    ("GET", "/kv/bad?stale_ms=soon", None, 400, "stale_ms = 'soon'"),
    ("GET", "/kv/bad?local=yes", None, 400, "local = 'yes'"),
    ("GET", "/kv/bad?lease=1&local=1", None, 400, "lease: only the leader has one"),
    ("PUT", "/kv/bad?local=1", b"x", 400, "'local' is not a parameter"),
    ("PUT", "/kv/bad?ttl=3", b"x", 400, "'ttl' is not a parameter"),
    ("PUT", "/kv/bad?ttl_ms=0", b"x", 400, "ttl_ms = '0'"),
    ("PUT", "/kv/bad?ttl_ms=1h", b"x", 400, "ttl_ms = '1h'"),
    ("GET", "/ttl/never-written", None, 404, "there is no key 'never-written'"),
    ("POST", "/expire/bad", b"", 400, "ttl_ms is missing"),
    ("POST", "/persist/bad?ttl_ms=1", b"", 400, "'ttl_ms' is not a parameter"),
    ("GET", "/watch?prefx=a", None, 400, "'prefx' is not a parameter"),
    ("GET", "/watch?after=here", None, 400, "here: is not the place of a shard"),
    ("GET", "/watch?after=1:1,1:2", None, 400, "1:2: is not the place of a shard in a token, or is there twice"),
    ("GET", "/watch?after=77:1", None, 400, "the store has no shard 77"),
    ("GET", "/watch?after=1:999999999", None, 400, "not yet at 999999999"),
    ("GET", "/watch?heartbeat_ms=1", None, 400, "heartbeat_ms = '1'"),
    ("PUT", LONG_KEY, b"x", 413, f"the key has {KEY_LIMIT_BYTES + 1} bytes"),
    ("PUT", "/kv/bad", b"v" * (VALUE_LIMIT_BYTES + 1), 413, "the value has more than"),
    ("POST", "/cas/bad", b"{oops", 400, "the body is not JSON"),
    ("POST", "/cas/bad", b"\xff\xfe\x00", 400, "the body is not JSON"),
    ("POST", "/cas/bad", b"[" * 100_000, 400, "the body is not JSON"),
    ("POST", "/cas/bad", b"[]", 400, "not a JSON object"),
    ("POST", "/cas/bad", b"{}", 400, "value must be base64"),
    ("POST", "/cas/bad", b'{"value": 7}', 400, "value must be base64"),
    ("POST", "/cas/bad", b'{"value": "MQ=", "expected": null}', 400, "value is not base64"),
    ("POST", "/cas/bad", b'{"value": "MQ==", "expected": "\xc3\xa4"}', 400, "expected is not base64"),
    ("POST", "/cas/bad", b'{"value": "MQ==", "expect": null}', 400, "'expect' is not a field"),
    ("POST", "/increment/bad?by=many", None, 400, "by = 'many'"),
    ("POST", "/increment/bad?by=9223372036854775808", None, 400, "by = '9223372036854775808'"),
    ("POST", "/increment/bad?by=" + "9" * 5_000, None, 400, "by = '99999"),
    ("POST", "/increment/bad?by=1&by=2", None, 400, "given twice"),
    ("GET", "/scan?limit=0", None, 400, "limit = '0'"),
    ("GET", "/scan?limit=1e9", None, 400, "limit = '1e9'"),
    ("GET", "/scan?perfix=x", None, 400, "'perfix' is not a parameter"),
    ("POST", "/batch", b"", 400, "the body is not JSON"),
    ("POST", "/batch", b"{}", 400, "the batch is empty"),
    ("POST", "/batch", b'{"put": ["a"]}', 400, "put must be an object"),
    ("POST", "/batch", b'{"put": {"bad": "MQ=="}, "delete": ["bad"]}', 400, "written twice"),
    ("POST", "/batch", b'{"put": {"bad": "MQ=="}, "delete": [7]}', 400, "is no text"),
    ("POST", "/batch", b'{"put": {"bad": "MQ==", "": "MQ=="}}', 400, "the key is empty"),
    ("POST", "/batch", b'{"put": {"bad": "MQ==", "\\ud800": "MQ=="}}', 400, "not valid Unicode"),
    ("POST", "/batch", b'{"put": {"bad": "MQ==", "bad2": null}}', 400, "must be base64"),
    ("POST", "/batch", b'{"put": {"bad": "' + b"A" * BATCH_LIMIT_BYTES + b'"}}', 413, "the body has more than"),
    (
        "POST",
        "/batch",
        json.dumps({"put": {"bad": "MQ==", "bad2": b64(b"v" * (VALUE_LIMIT_BYTES + 1))}}).encode(),
        413,
        "the value has",
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "error"),
    BAD_INPUT,
    ids=[f"{row[0]} {row[1]:.30} {row[4]}" for row in BAD_INPUT],
)
async def test_bad_input_is_refused_in_json_and_changes_nothing(
    http: aiohttp.ClientSession, urls: Urls, method: str, path: str, data: bytes | None, status: int, error: str
) -> None:
    found, body, response = await ask(http, method, urls[0] + path, data)
    assert found == status, body
    assert response.content_type == "application/json"
    answer = json.loads(body)
    assert set(answer) == {"error", "hint", "outcome"}
    assert error in answer["error"]
    assert "\n" not in answer["error"]
    assert answer["hint"]
    assert answer["outcome"] == "not_committed"
    async with Client(urls) as client:
        assert [item async for item in client.scan("bad")] == []


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(http: aiohttp.ClientSession, urls: Urls) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * VALUE_LIMIT_BYTES // 65_536):
            yield b"v" * 65_536

    async with http.put(urls[0] + "/kv/bad", data=endless()) as response:
        assert response.status == 413
        assert (await response.json())["outcome"] == "not_committed"


async def test_the_largest_key_and_value_are_taken(http: aiohttp.ClientSession, urls: Urls) -> None:
    path = key_path("☃" * (KEY_LIMIT_BYTES // 3) + "m")  # all of it percent-encoded
    assert (await ask(http, "PUT", urls[0] + path, b"\xff" * VALUE_LIMIT_BYTES))[0] == 204
    assert (await ask(http, "GET", urls[1] + path))[1] == b"\xff" * VALUE_LIMIT_BYTES
    assert (await ask(http, "DELETE", urls[1] + path))[0] == 200


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (errors.NotLeader(7), 503, "not_committed"),
        (errors.NotReady("x"), 503, "not_committed"),
        (errors.Overloaded("x"), 503, "not_committed"),
        (errors.Halted("x"), 503, "not_committed"),
        (errors.DeadlineExceeded("x"), 503, "not_committed"),
        (errors.NotRunning("x"), 503, "not_committed"),
        (errors.InvalidRequest("x"), 400, "not_committed"),
        (errors.CommandFailed("ValueError", "x"), 409, "failed"),
        (errors.OutcomeUnknown("x"), 504, "unknown"),
        (ZeroDivisionError("x"), 500, "unknown"),
    ],
)
async def test_every_error_says_what_became_of_the_write(error: Exception, status: int, outcome: str) -> None:
    problem = explain(error)
    assert (problem.status, problem.outcome) == (status, outcome)
    assert problem.hint


class Failing:
    """A service handle whose calls end as scripted; a batch does so only where it writes the key `spoilt`."""

    def __init__(self, error: Exception, spoilt: str | None = None, handle: type[KV] | None = None) -> None:
        self.error = error
        self.spoilt = spoilt
        self.handle = handle

    def __getattr__(self, name: str) -> Any:
        async def call(*args: object) -> None:
            raise self.error

        return call

    async def batch(self, route: str, writes: dict[str, bytes | None]) -> int:
        if self.handle is None or self.spoilt in writes:
            raise self.error
        return await self.handle.batch(route, writes)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [(errors.Overloaded("full"), 503, "1"), (errors.OutcomeUnknown("lost"), 504, None), (KeyError("bug"), 500, None)],
)
async def test_failures_of_the_framework_reach_the_client(
    http: aiohttp.ClientSession, directory: Path, error: Exception, status: int, retry_after: str | None
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    node = Node(NodeConfig("a", str(directory / "unused"), address, {"a": address}))
    handle: Any = Failing(error)
    async with served(kv_app(node, handle)) as url:
        found, body, response = await ask(http, "PUT", f"{url}/kv/k", b"v")
    assert found == status
    assert json.loads(body)["outcome"] == explain(error).outcome
    assert response.headers.get("Retry-After") == retry_after


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.NotReady("no leader"), "not_committed"),
        (errors.OutcomeUnknown("lost"), "unknown"),
        (errors.CommandFailed("ValueError", "no"), "failed"),
    ],
)
async def test_a_batch_that_fails_on_one_shard_says_which_and_what_of_the_others(
    http: aiohttp.ClientSession, nodes: list[Stored], error: Exception, outcome: str
) -> None:
    node, handle = nodes[0]
    keys = [f"part/{outcome}/{number}" for number in range(40)]
    failing: Any = Failing(error, keys[0], handle)
    async with served(kv_app(Node(node.config), failing)) as stopped:  # of a node that does not run
        status, body, _ = await ask(http, "POST", stopped + "/batch", json.dumps({"delete": ["k"]}).encode())
        assert (status, json.loads(body)["outcome"]) == (503, "not_committed")
    async with served(kv_app(node, failing)) as url:
        body = json.dumps({"put": {key: b64(b"1") for key in keys}}).encode()
        status, body, _ = await ask(http, "POST", url + "/batch", body)
    told = json.loads(body)
    assert status == 207
    (bad,) = [shard for shard in told["shards"] if shard["outcome"] != "committed"]
    assert (bad["outcome"], bad["error"], bad["writes"]) == (outcome, str(error), len(bad["keys"]))
    assert bad["hint"]
    assert keys[0] in bad["keys"]
    assert told["committed"] == len(keys) - len(bad["keys"]) > 0
    written = [key for key in keys if await handle.get(key) is not None]
    assert sorted([*written, *bad["keys"]]) == sorted(keys)
