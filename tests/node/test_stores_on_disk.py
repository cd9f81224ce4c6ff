"""An emptied and a rolled back directory on real disks and sockets: the same rules as in test_stores.py."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from multiraft import Node, NodeConfig, StateMachine, command
from multiraft.errors import NotReady, StorageError


class Counters(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str) -> int:
        self.values[name] = self.values.get(name, 0) + 1
        return self.values[name]


def addresses(names: str) -> dict[str, str]:
    found = {}
    held = [socket.socket() for _ in names]
    for name, one in zip(names, held, strict=True):
        one.bind(("127.0.0.1", 0))
        found[name] = f"127.0.0.1:{one.getsockname()[1]}"
    for one in held:
        one.close()
    return found


async def test_a_rolled_back_directory_is_refused_for_good_and_an_emptied_one_is_readmitted(tmp_path: Path) -> None:
    members = addresses("abc")
    nodes: dict[str, Node] = {}
    handles: dict[str, type[Counters]] = {}

    async def start(name: str) -> Node:
        node = Node(NodeConfig(name, str(tmp_path / name), members[name], members))
        handles[name] = node.service("counters", Counters, initial_shards=2, replicas=3)
        await node.start()
        nodes[name] = node
        return node

    try:
        async with asyncio.timeout(60.0):
            for name in members:
                await start(name)
            for node in nodes.values():
                await node.ready()
            assert await handles["a"].add("x") == 1
            await nodes["c"].stop()
            shutil.copytree(tmp_path / "c", tmp_path / "copy")
            await (await start("c")).ready()
            await nodes["c"].stop()
            shutil.rmtree(tmp_path / "c")
            shutil.copytree(tmp_path / "copy", tmp_path / "c")
            with pytest.raises(StorageError, match="was rolled back"):
                await (await start("c")).failed()
            with pytest.raises(StorageError, match="may take part no longer"):
                await start("c")
            shutil.rmtree(tmp_path / "c")
            await start("c")
            with pytest.raises(NotReady, match="knows another store of node 'c'"):
                await nodes["c"].ready(timeout_s=2.0)
            await nodes["a"].readmit("c")
            await nodes["c"].ready()
            await nodes["b"].stop()
            assert await handles["c"].add("x") == 2
    finally:
        for node in nodes.values():
            await node.stop()
