"""One of the three processes of the ceiling: a leader or a follower of all groups, with nothing that could fail.

The leader's own clients each keep one write in flight. What they write in one turn of the loop becomes one synced
LevelDB batch and one WebSocket frame per follower, sent before the sync. A follower syncs what it got, all frames that
came while its disk was busy as one batch, and acknowledges. What two of three nodes have on disk is committed: applied
by the leader, whose clients get their answers, and by the followers once a later frame tells them.

Rules of this file: imports nothing of multiraft; whatever a real engine could not do (skip a sync, share an object
between replicas, answer before a quorum has it) is not done here either.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import struct
import sys
import threading
from array import array
from asyncio import Future
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final, TypeAlias

import aiohttp
import msgpack
import plyvel
from aiohttp import web

from benchmarks.ceiling import KEY_BYTES, LEADER, NODES, CeilingOptions
from benchmarks.figures import percentile

KEYS: Final = 4096
"""How many different keys the clients write."""
WRITE_BUFFER_BYTES: Final = 64 << 20

_RECORD_KEY: Final = struct.Struct(">QQ")
_unpack: Final = msgpack.unpackb

Marks: TypeAlias = list[int]
"""What has reached a disk: group, its last index there, group, last index, ..."""
Append: TypeAlias = tuple[int, int, int, int, bytes]
"""Group, first index, count of entries, the leader's commit, and the entries as msgpack. Count 0 only tells commit."""


# ------------------------------------------------------------------------------------------------ disk and network


class Disk:
    """One LevelDB, written by a thread of its own; each batch is synced before it is reported."""

    __slots__ = ("_database", "_loop", "_queue", "_thread", "syncs")

    def __init__(self, path: Path) -> None:
        self.syncs = 0
        self._loop = asyncio.get_running_loop()
        self._database = plyvel.DB(
            str(path), create_if_missing=True, write_buffer_size=WRITE_BUFFER_BYTES, compression=None
        )
        self._queue: SimpleQueue[tuple[Any, Callable[[], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="disk")
        self._thread.start()

    def batch(self) -> Any:
        return self._database.write_batch(sync=True)

    def submit(self, batch: Any, done: Callable[[], None]) -> None:
        """Write and sync `batch`, then call `done` on the loop; in the order of submission."""
        self.syncs += 1
        self._queue.put((batch, done))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _write(self) -> None:
        while (work := self._queue.get()) is not None:
            batch, done = work
            batch.write()
            self._loop.call_soon_threadsafe(done)


class Peer:
    """One connection. Frames to send are queued, and leave in order."""

    __slots__ = ("_frames", "_ready", "_socket")

    def __init__(self, socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._frames: list[bytes] = []
        self._ready = asyncio.Event()

    def send(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._ready.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            frames, self._frames = self._frames, []
            for frame in frames:
                await self._socket.send_bytes(frame)

    async def receive(self, handle: Callable[[bytes], None]) -> None:
        """Hand over each frame that comes, until the connection ends."""
        async for message in self._socket:
            handle(message.data)


# -------------------------------------------------------------------------------------------------- replicated log


class Group:
    """One replica of one log, and its state machine: a dict.

    entries  after `applied`, up to `last`; on the leader `waiting` holds their clients, one each
    match    the last index that each node has on its disk (leader only)
    fresh    proposed in this turn, not yet part of the log (leader only); `callers` wait for them
    """

    __slots__ = ("applied", "callers", "commit", "entries", "fresh", "group_id", "last", "match", "state", "waiting")

    def __init__(self, group_id: int) -> None:
        self.group_id = group_id
        self.applied = 0
        self.commit = 0
        self.last = 0
        self.entries: list[bytes] = []
        self.waiting: list[Future[int]] = []
        self.match = [0] * NODES
        self.fresh: list[bytes] = []
        self.callers: list[Future[int]] = []
        self.state: dict[bytes, bytes] = {}

    def apply(self) -> int:
        """Apply what is committed, answer whoever waits for it, and return how many entries that was."""
        count = self.commit - self.applied
        entries, self.entries = self.entries, self.entries[count:]
        waiting, self.waiting = self.waiting, self.waiting[count:]
        del entries[count:], waiting[count:]
        state = self.state
        for entry in entries:
            state[entry[:KEY_BYTES]] = entry
        for index, waiter in enumerate(waiting, self.applied + 1):
            waiter.set_result(index)
        self.applied = self.commit
        return count


class Leader:
    """Turns proposals into batches and frames, and acknowledgements into answers."""

    __slots__ = ("_dirty", "_disk", "_groups", "_loop", "_pack", "_peers", "applied")

    def __init__(self, groups: Sequence[Group], disk: Disk, peers: Sequence[Peer]) -> None:
        self.applied = 0
        self._groups = groups
        self._disk = disk
        self._peers = peers
        self._dirty: list[Group] = []
        self._loop = asyncio.get_running_loop()
        self._pack: Callable[[object], bytes] = msgpack.Packer().pack

    def propose(self, group: Group, entry: bytes) -> Future[int]:
        """Return the future index of `entry`. Everything proposed in one turn of the loop leaves together."""
        future: Future[int] = self._loop.create_future()
        if not group.fresh:
            if not self._dirty:
                self._loop.call_soon(self._flush)
            self._dirty.append(group)
        group.fresh.append(entry)
        group.callers.append(future)
        return future

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        batch = self._disk.batch()
        appends: list[Append] = []
        marks: Marks = []
        for group in dirty:
            entries, first = group.fresh, group.last + 1
            blob = self._pack(entries)
            batch.put(_RECORD_KEY.pack(group.group_id, first), blob)
            appends.append((group.group_id, first, len(entries), group.commit, blob))
            group.last += len(entries)
            group.entries += entries
            group.waiting += group.callers
            group.fresh, group.callers = [], []
            marks += (group.group_id, group.last)
        self._send(appends)
        self._disk.submit(batch, partial(self.stored, LEADER, marks))

    def tell_commits(self) -> None:
        """Tell the followers what no later append would tell them."""
        self._send([(group.group_id, group.last + 1, 0, group.commit, b"") for group in self._groups])

    def _send(self, appends: list[Append]) -> None:
        frame = self._pack(appends)
        for peer in self._peers:
            peer.send(frame)

    def stored(self, node: int, marks: Marks) -> None:
        """`node` has these on its disk: commit what two of three have, and apply it."""
        groups = self._groups
        for position in range(0, len(marks), 2):
            group = groups[marks[position]]
            group.match[node] = marks[position + 1]
            low, median, high = group.match
            if low > median:
                low, median = median, low
            if median > high:
                median = high if high > low else low
            if median > group.commit:
                group.commit = median
                self.applied += group.apply()

    def acknowledged(self, node: int, frame: bytes) -> None:
        self.stored(node, _unpack(frame))


class Follower:
    """Stores what it is sent, acknowledges it, and applies what it is told is committed."""

    __slots__ = ("_disk", "_groups", "_leader", "_pack", "_progress", "_queued", "_writing", "applied")

    def __init__(self, groups: Sequence[Group], disk: Disk, leader: Peer) -> None:
        self.applied = 0
        self._groups = groups
        self._disk = disk
        self._leader = leader
        self._queued: list[bytes] = []
        self._writing = False
        self._progress = asyncio.Event()
        self._pack: Callable[[object], bytes] = msgpack.Packer().pack

    def received(self, frame: bytes) -> None:
        """Handle a frame: at once, or with all others that come while the disk is busy."""
        self._queued.append(frame)
        if not self._writing:
            self._store()

    def _store(self) -> None:
        frames, self._queued = self._queued, []
        batch = self._disk.batch()
        marks: Marks = []
        for frame in frames:
            for group_id, first, count, commit, blob in _unpack(frame):
                group = self._groups[group_id]
                if first != group.last + 1:
                    raise RuntimeError(f"group {group_id}: a gap, from {group.last} to {first}")
                if count:
                    batch.put(_RECORD_KEY.pack(group_id, first), blob)
                    group.entries += _unpack(blob)
                    group.last += count
                    marks += (group_id, group.last)
                if commit > group.commit:
                    group.commit = commit
                    self.applied += group.apply()
        self._progress.set()
        if marks:
            self._writing = True
            self._disk.submit(batch, partial(self._stored, marks))

    def _stored(self, marks: Marks) -> None:
        self._writing = False
        self._leader.send(self._pack(marks))
        if self._queued:
            self._store()

    async def has_applied(self, count: int) -> None:
        """Return when `count` entries are applied."""
        while self.applied < count:
            self._progress.clear()
            await self._progress.wait()


async def load(leader: Leader, groups: Sequence[Group], options: CeilingOptions) -> tuple[float, array[float]]:
    """Run the clients; return how long they took, in seconds, and each write's latency, in seconds."""
    latencies = array("d")
    started = perf_counter()
    end = started + options.seconds

    async def client(number: int) -> None:
        group = groups[number % len(groups)]
        entry = b"%08d" % (number % KEYS) + bytes(options.payload_bytes - KEY_BYTES)
        propose, note = leader.propose, latencies.append
        while (asked := perf_counter()) < end:
            await propose(group, entry)
            note(perf_counter() - asked)

    await asyncio.gather(*(client(number) for number in range(options.concurrency)))
    return perf_counter() - started, latencies


# ------------------------------------------------------------------------------------------------------- processes


class Console:
    """The node's line to the process that started it."""

    def __init__(self) -> None:
        self._lines = asyncio.StreamReader()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._lines), sys.stdin)

    def say(self, **values: Any) -> None:
        print(json.dumps(values), flush=True)

    async def hear(self) -> Any:
        """Return the parent's next line; None when there will be no more."""
        line = await self._lines.readline()
        return json.loads(line) if line else None


async def lead(options: CeilingOptions, disk: Disk, console: Console) -> None:
    sockets: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
    ended = asyncio.Event()

    async def accept(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, max_msg_size=0)
        await socket.prepare(request)
        sockets.put_nowait(socket)
        await ended.wait()
        return socket

    app = web.Application()
    app.router.add_get("/", accept)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    console.say(port=runner.addresses[0][1])
    peers = [Peer(await sockets.get()) for _ in range(1, NODES)]
    groups = [Group(group_id) for group_id in range(options.groups)]
    leader = Leader(groups, disk, peers)
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(peer.run()) for peer in peers]
        for node, peer in enumerate(peers, 1):
            background.append(tasks.create_task(peer.receive(partial(leader.acknowledged, node))))
        console.say()
        await console.hear()
        settle(options)
        before_s = cpu_time_s()
        elapsed_s, latencies = await load(leader, groups, options)
        cpu_s = cpu_time_s() - before_s
        leader.tell_commits()
        ordered = sorted(latencies)
        p50_s, p99_s, p999_s = (percentile(ordered, share) for share in (0.5, 0.99, 0.999))
        console.say(
            applied=leader.applied,
            elapsed_s=elapsed_s,
            p50_s=p50_s,
            p99_s=p99_s,
            p999_s=p999_s,
            cpu_s=cpu_s,
            syncs=disk.syncs,
        )
        await console.hear()
        ended.set()
        for task in background:
            task.cancel()
    await runner.cleanup()


async def follow(port: int, options: CeilingOptions, disk: Disk, console: Console) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/", compress=0, max_msg_size=0) as socket,
        asyncio.TaskGroup() as tasks,
    ):
        peer = Peer(socket)
        follower = Follower([Group(group_id) for group_id in range(options.groups)], disk, peer)
        background = [tasks.create_task(peer.run()), tasks.create_task(peer.receive(follower.received))]
        console.say()
        await console.hear()
        settle(options)
        before_s = cpu_time_s()
        done = await console.hear()
        if done is not None:
            await follower.has_applied(done["applied"])
            console.say(applied=follower.applied, cpu_s=cpu_time_s() - before_s, syncs=disk.syncs)
            await console.hear()
        for task in background:
            task.cancel()


def settle(options: CeilingOptions) -> None:
    """Set the collector up as asked, now that everything lasting is there."""
    if options.gc == "freeze":
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)


def cpu_time_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run_node(number: int, port: int, directory: Path, options: CeilingOptions) -> None:
    console, disk = Console(), Disk(directory / f"node-{number}")
    try:
        await console.open()
        await (lead(options, disk, console) if number == LEADER else follow(port, options, disk, console))
    finally:
        disk.close()


def main() -> None:
    start = json.loads(sys.argv[1])
    options = CeilingOptions(**start["options"])
    node = run_node(start["number"], start["port"], Path(start["directory"]), options)
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(node)
    else:
        asyncio.run(node)


if __name__ == "__main__":
    main()
