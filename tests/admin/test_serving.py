"""The admin API as a server of its own: where it listens, what it refuses, and what peers' calls of it are named."""

from __future__ import annotations

import json
import socket
from typing import Any, TypeAlias

import pytest
from aiohttp import ClientSession

from multiraft.admin.api import admin_app, serve_admin
from multiraft.errors import ConfigError, StartError
from multiraft.messages import Request

Cluster: TypeAlias = Any  # the fakes of conftest.py


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def test_served_alone_while_the_context_lasts(cluster: Cluster) -> None:
    listen = f"127.0.0.1:{free_port()}"
    async with ClientSession() as session:
        async with serve_admin(cluster.nodes["n1"], listen) as url:
            assert url == f"http://{listen}"
            async with session.get(f"{url}/livez") as response:
                assert json.loads(await response.text()) == {"live": True, "node_id": "n1"}
        with pytest.raises(OSError, match="connect"):
            await session.get(f"{url}/livez")


async def test_an_address_in_use_is_one_line_and_a_way_out(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match="another port"):
            async with serve_admin(cluster.nodes["n1"], listen):
                pytest.fail("it cannot have started")


@pytest.mark.parametrize("listen", ["0.0.0.0:7101", "192.0.2.1:7101", "example.org:7101"])
async def test_beyond_loopback_is_refused_unless_asked_for(cluster: Cluster, listen: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        async with serve_admin(cluster.nodes["n1"], listen):
            pytest.fail("it cannot have started")


async def test_beyond_loopback_when_asked_for(cluster: Cluster) -> None:
    async with serve_admin(cluster.nodes["n1"], f"0.0.0.0:{free_port()}", insecure=True) as url:
        assert url.startswith("http://0.0.0.0:")


def test_the_calls_have_names_that_fit_the_wire(cluster: Cluster) -> None:
    admin_app(cluster.nodes["n1"])
    assert sorted(cluster.nodes["n1"].handlers) == [
        "admin.export",
        "admin.export_drop",
        "admin.export_read",
        "admin.export_state",
        "admin.group",
        "admin.groups",
        "admin.log",
        "admin.rebuild",
        "admin.retry",
        "admin.status",
        "admin.transfer",
        "admin.why",
        "client.url",
    ]
    assert all(Request(b"", name, 1, 1).method == name for name in cluster.nodes["n1"].handlers)
