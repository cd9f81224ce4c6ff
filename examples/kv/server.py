"""One node of the key-value store as a process: from its options to its last word.

It prints one line once it listens and one once every shard has a leader. SIGTERM or SIGINT stops it in order.
What goes wrong is one line on stderr, `error: ...`, and an exit code:

    0   stopped as asked
    2   the options or the configuration are wrong
    3   it cannot start from what it found: an address in use, a store that is damaged, locked or of another node
    4   it ended by itself: the store could not be written any more

Rules of this file: the HTTP address is taken before the store is touched, so that a node that cannot serve changes
nothing; every way out stops the node.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from aiohttp import web

from examples.kv.http import kv_app, kv_runner
from examples.kv.machine import KV, SERVICE, DiskKV
from examples.kv.memory import MemoryKV
from examples.kv.resp.server import CLIENTS, RespServer
from examples.kv.sweeping import Sweeper
from multiraft.config import NodeConfig, parse_address
from multiraft.errors import ConfigError, MultiRaftError, NotReady, StartError
from multiraft.node import Node
from multiraft.tuning import event_loop, loop_kind

INITIAL_SHARDS: Final = 16
REPLICAS: Final = 3
ENTRY_BYTES: Final = 18 * 1024 * 1024
"""A command may carry two of the largest values: what is expected, and what takes its place."""
EXIT_USAGE: Final = 2
EXIT_START: Final = 3
EXIT_FAILED: Final = 4

_READY_NOTE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a node serves the store.

    http                "host:port" of its HTTP API
    resp                "host:port" where it serves clients of Redis; None: nowhere
    resp_password       what these must say first; None: nothing
    resp_clients        so many of them are served at once
    shards, replicas    how many there are, and of each, on the first start
    in_memory           keep the shards in memory; otherwise they lie in the node's database
    until_stdin_closes  also stop when stdin ends: a child that must not outlive its parent
    allow_planted_loss  let records be dropped behind everyone's back; of shards in memory only
    """

    http: str
    shards: int = INITIAL_SHARDS
    replicas: int = REPLICAS
    in_memory: bool = False
    until_stdin_closes: bool = False
    allow_planted_loss: bool = False
    resp: str | None = None
    resp_password: str | None = None
    resp_clients: int = CLIENTS


def run(config: NodeConfig, options: Options) -> int:
    """Run a node until it is told to stop; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    work = _serve(config, options)
    try:
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            return runner.run(work)
    except ConfigError as problem:
        return report(problem, EXIT_USAGE)
    except StartError as problem:
        return report(problem, EXIT_START)


def report(problem: Exception, code: int) -> int:
    """Print an error for people; return `code`."""
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return code


def kv_config(config: NodeConfig) -> NodeConfig:
    """Return `config` with room for the store's largest command, and for a process that does nothing else.

    Raises ConfigError where other limits forbid that.
    """
    limits = replace(config.limits, entry_bytes=max(config.limits.entry_bytes, ENTRY_BYTES))
    return replace(config, limits=limits, tune_gc=config.tune_gc is not False)


async def _serve(config: NodeConfig, options: Options) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    http = options.http
    listener = _listen("--http", http, config.insecure)
    resp_listener: socket.socket | None = None
    try:
        if options.resp is not None:
            resp_listener = _listen("--resp", options.resp, config.insecure)
        node = Node(kv_config(config))
        kind: type[KV] = MemoryKV if options.in_memory else DiskKV
        store = node.service(SERVICE, kind, initial_shards=options.shards, replicas=options.replicas)
        app = kv_app(node, store, allow_planted_loss=options.allow_planted_loss, url=f"http://{http}")
        runner = kv_runner(app)
        resp = RespServer(node, store, options.resp_password, options.resp_clients)
        await node.start()
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            if resp_listener is not None:
                await resp.start(resp_listener)
            also = (f", redis://{options.resp}" if options.resp else "") + f" ({loop_kind(loop)})"
            _say(f"node {config.node_id} listens: http://{http}{also}, peers {config.listen}, data {config.data_dir}")
            await _first(
                node.failed(),
                stop.wait(),
                _announce_ready(node),
                Sweeper(node, store).run(),
                _stdin_closed() if options.until_stdin_closes else None,
            )
        except ConfigError:
            raise
        except MultiRaftError as problem:
            return report(problem, EXIT_FAILED)
        finally:
            await resp.close()
            await runner.cleanup()
            await node.stop()
    finally:
        listener.close()
        if resp_listener is not None:
            resp_listener.close()
    _say(f"node {config.node_id} stopped")
    return 0


def _listen(option: str, address: str, insecure: bool) -> socket.socket:
    host, port = parse_address(option, address)
    if not insecure and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(
            f"{option} = {address!r}: nobody is asked who they are there, and nothing is encrypted, so only loopback "
            "addresses are allowed; use 127.0.0.1, or say --insecure on a network that you trust"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as problem:
        raise StartError(
            f"{option} {address} cannot be had: {os.strerror(problem.errno) if problem.errno else problem}; "
            "stop what uses it, or choose another port"
        ) from problem
    listener.setblocking(False)
    return listener


async def _first(*works: Coroutine[Any, Any, Any] | None) -> None:
    """Run all until one ends; raise what it raised, of several the first one named."""
    tasks = [asyncio.ensure_future(work) for work in works if work is not None]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _announce_ready(node: Node) -> None:
    """Say once that all shards have leaders, and until then, now and again, what is missing. Does not end."""
    while True:
        try:
            await node.ready(SERVICE, timeout_s=_READY_NOTE_S)
            break
        except NotReady as problem:
            print(f"waiting: {problem}", file=sys.stderr, flush=True)
    _say(f"node {node.node_id} is ready")
    await asyncio.Event().wait()


async def _stdin_closed() -> None:
    """Return once stdin ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, look)
    try:
        await ended.wait()
    finally:
        with suppress(OSError, ValueError):
            loop.remove_reader(0)


def _say(line: str) -> None:
    print(line, flush=True)
