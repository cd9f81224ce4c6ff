"""One bit of a stopped node's files is turned, the node is started, and judged by what had been acknowledged.

    python -m soak.bitflips --offsets 500

Two clusters of three are loaded: one is stopped orderly, of the other the directories are copied as a kill -9 would
leave them. For each offset all three directories are copied, one bit of node c's is turned, and c is started: first
alone, where every replica that it opens must know its term, its vote and its whole log, and must not lead; then with
its peers, where it must come to hold exactly what was acknowledged, in order, be a voter of every group again, and
serve.

    refused         the start was refused, with a text that says what to do
    healed          a replica, or more, was left out, and its group has replaced it
    without effect  nothing was noticed, and nothing was wrong
    WRONG           a promise or an acknowledged command was missing where it should have been, or came back changed

Rules of this file: the judge knows the promises from the directory as it was before the bit was turned; what is not one
of the first three classes is WRONG; the same seed turns the same bits of the same files.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from multiraft.errors import MultiRaftError, StartError
from multiraft.storage import inspect_directory
from multiraft.types import GroupId, HardState, ReplicaId
from tests.soak.herd import NAMES, Herd

VICTIM: Final = "c"
CLASSES: Final = ("refused", "healed", "without effect", "WRONG")
_COMMANDS: Final = 130
_LIVE: Final = (".log", ".ldb", ".sst", ".snap")
_LIVE_NAMES: Final = ("CURRENT", "IDENTITY")


@dataclass(frozen=True, slots=True)
class Promise:
    """What one replica must know after its start."""

    replica_id: ReplicaId
    hard_state: HardState
    last_index: int


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded cluster's directories, and the oracle: what was acknowledged and promised."""

    name: str
    folder: Path
    acknowledged: Mapping[GroupId, list[bytes]]
    promises: Mapping[GroupId, Promise]

    def files(self) -> list[tuple[Path, int]]:
        """Return the victim's files, relative to its directory, with their sizes."""
        root = self.folder / VICTIM
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return [(path.relative_to(root), path.stat().st_size) for path in found]


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit: `bit` counts from the file's first."""

    base: Base
    file: Path
    bit: int

    @property
    def live(self) -> bool:
        return is_live(self.file)


@dataclass(frozen=True, slots=True)
class Verdict:
    flip: Flip
    kind: str
    why: str


def is_live(file: Path) -> bool:
    """Whether a file holds what the node needs, and not LevelDB's own diary, a lock or ballast."""
    return file.suffix in _LIVE or file.name in _LIVE_NAMES or file.name.startswith("MANIFEST-")


# --------------------------------------------------------------------------------------------------------- loading


async def load(folder: Path, rng: Random) -> list[Base]:
    """Load a cluster, and return its directories as a kill -9 leaves them and as an orderly stop does."""
    running = folder / "running"
    herd = Herd(running)
    for name in NAMES:
        await herd.start(name)
    await asyncio.gather(*[node.ready() for node in herd.nodes.values()])
    groups = herd.groups()
    acknowledged: dict[GroupId, list[bytes]] = {group_id: [] for group_id in groups}

    async def fill(group_id: GroupId) -> None:
        for number in range(_COMMANDS):
            command = b"%d-%d-" % (group_id, number) + rng.randbytes(rng.randrange(20, 200)).hex().encode()
            await herd.propose(rng.choice(NAMES), group_id, command)
            acknowledged[group_id].append(command)

    await asyncio.gather(*[fill(group_id) for group_id in groups])
    await herd.until(lambda: all(herd.kept(name, one) == acknowledged[one] for name in NAMES for one in groups))
    killed, stopped = folder / "killed", folder / "stopped"
    await _quiet(herd)
    shutil.copytree(running, killed)
    await herd.stop()
    shutil.copytree(running, stopped)
    shutil.rmtree(running)
    return [Base(one.name, one, acknowledged, _promises(one / VICTIM)) for one in (killed, stopped)]


async def _quiet(herd: Herd) -> None:
    """Wait until no node has a write under way, twice in a row."""
    calm = 0
    while calm < 20:
        calm = calm + 1 if all(node._here().engine.writer.in_flight == 0 for node in herd.nodes.values()) else 0
        await asyncio.sleep(0.01)


def _promises(directory: Path) -> dict[GroupId, Promise]:
    report = inspect_directory(str(directory))
    if not report.sound:
        raise RuntimeError(f"the directory is damaged before any bit was turned: {report.problems}")
    return {
        group.group_id: Promise(group.descriptor.replica_id, group.hard_state, group.last_index)
        for group in report.groups
        if group.descriptor is not None and group.hard_state is not None
    }


# --------------------------------------------------------------------------------------------------------- judging


async def judge(flip: Flip, folder: Path) -> Verdict:
    """Turn the bit in a copy, start everything, and say what came of it. Uses `folder`, and leaves nothing there."""
    shutil.copytree(flip.base.folder, folder)
    turn(folder / VICTIM / flip.file, flip.bit)
    herd = Herd(folder)
    try:
        try:
            node = await herd.start(VICTIM)
        except StartError as problem:
            said = str(problem)
            helpful = any(word in said for word in ("Put back", "remove", "readmit", "Use that", "start"))
            return Verdict(flip, "refused" if helpful else "WRONG", said)
        damaged = node._here().damaged_groups()
        wrong = _forgotten(herd, flip.base)
        if wrong:
            return Verdict(flip, "WRONG", wrong)
        for name in NAMES:
            if name != VICTIM:
                await herd.start(name)
        try:
            wrong = await _wrong_together(herd, flip.base)
        except (TimeoutError, MultiRaftError) as problem:
            wrong = f"it does not come back: {type(problem).__name__}: {problem}; {_states(herd)}"
        if wrong:
            return Verdict(flip, "WRONG", wrong)
        again = f", restarted: {node.status()['came_back']['reason']}" if node.status()["came_back"]["count"] else ""
        return Verdict(flip, "healed" if damaged or again else "without effect", f"groups {damaged}{again}")
    finally:
        await herd.stop()
        shutil.rmtree(folder)


def turn(file: Path, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(bit // 8)
        (byte,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


def _forgotten(herd: Herd, base: Base) -> str:
    """Say which replica is taken up although it has forgotten something; empty where none is."""
    running = herd.nodes[VICTIM]._here()
    for group_id, promise in base.promises.items():
        replica = running.engine.replicas.get(group_id)
        if replica is None:
            if running.engine.residents.quarantine.of(group_id) is None:
                return f"group {group_id} has vanished"
            continue
        core, stood = replica.core, promise.hard_state
        if core.replica_id != promise.replica_id:
            return f"group {group_id} is replica {core.replica_id}, and was {promise.replica_id}"
        if core.term < stood.term or (core.term == stood.term and core.vote != stood.vote):
            return f"group {group_id} has forgotten its vote: term {core.term}, vote {core.vote}; it was {stood}"
        if core.last_index < promise.last_index or core.commit < stood.commit:
            return f"group {group_id} has forgotten entries: {core.last_index}, it was {promise.last_index}"
        if replica.leads:
            return f"group {group_id} is led by a node that is alone"
    return ""


async def _wrong_together(herd: Herd, base: Base) -> str:
    """Say what is wrong once its peers are there; empty where nothing is. Raises TimeoutError."""
    await herd.until(lambda: _is_whole(herd, base))
    for group_id, commands in base.acknowledged.items():
        for name in NAMES:
            found = await herd.read(name, group_id)
            if found != commands:
                return f"group {group_id}, asked of {name}: {_difference(found, commands)}"
        last = b"%d-last" % group_id
        await herd.propose(NAMES[0], group_id, last)
        expected = [*commands, last]
        try:
            await herd.until(partial(_holds, herd, base, group_id, expected))
        except TimeoutError:
            return f"group {group_id}, held by {VICTIM}: {_difference(herd.kept(VICTIM, group_id), expected)}"
    return ""


def _is_whole(herd: Herd, base: Base) -> bool:
    """Whether the victim runs, has a replica of every group, and nothing of it is damaged."""
    node = herd.nodes[VICTIM]
    if not node.runs:
        return False
    running = node._here()
    return not running.damaged_groups() and set(base.promises) <= set(running.engine.replicas)


def _holds(herd: Herd, base: Base, group_id: GroupId, expected: list[bytes]) -> bool:
    """Whether the victim's replica votes, and holds just that."""
    if not _is_whole(herd, base):
        return False
    core = herd.nodes[VICTIM]._here().engine.replicas[group_id].core
    return core.membership.is_voter(core.replica_id) and herd.kept(VICTIM, group_id) == expected


def _difference(found: list[bytes], expected: list[bytes]) -> str:
    at = next((place for place, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    where = f"the first other one is number {at}" if at is not None else "one is the beginning of the other"
    return f"{len(found)} commands where {len(expected)} were acknowledged; {where}"


def _states(herd: Herd) -> str:
    said = []
    for name, node in herd.nodes.items():
        if node.runs:
            halted = [f"{row['group_id']}: {row['halted']}" for row in node.groups_status() if row["halted"]]
            said.append(f"{name}: {halted or 'nothing is halted'}")
        else:
            said.append(f"{name} has ended: {node.failure}")
    return "; ".join(said)


# --------------------------------------------------------------------------------------------------------- running


def draw(bases: list[Base], offsets: int, rng: Random) -> list[Flip]:
    """Draw bits: four of five in live files, the rest in others; each byte of them as likely as any other."""
    flips = []
    for number in range(offsets):
        base = bases[number % len(bases)]
        files = [(file, size) for file, size in base.files() if size and is_live(file) != (number % 5 == 4)]
        (file, size) = rng.choices(files, [size for _, size in files])[0]
        flips.append(Flip(base, file, rng.randrange(8 * size)))
    return flips


async def run(offsets: int, seed: int, *, quiet: bool = False) -> list[Verdict]:
    """Load, turn `offsets` bits one after the other, and return what came of each."""
    rng = Random(seed)
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="multiraft-bitflips-") as place:
        folder = Path(place)
        bases = await load(folder / "bases", rng)
        for number, flip in enumerate(draw(bases, offsets, rng), 1):
            verdict = await judge(flip, folder / "work")
            verdicts.append(verdict)
            if verdict.kind == "WRONG" or not quiet:
                say = f"{number:4} {flip.base.name:8} {flip.file!s:24} bit {flip.bit:8}  {verdict.kind}: {verdict.why}"
                print(say[:400], flush=True)
    return verdicts


def summary(verdicts: list[Verdict]) -> str:
    """Return a table: by kind of file, how many bits came to what."""
    rows: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        name = verdict.flip.file.name
        kind = "MANIFEST" if name.startswith("MANIFEST") else verdict.flip.file.suffix or name
        rows.setdefault(f"{kind} ({verdict.flip.base.name})", Counter())[verdict.kind] += 1
    rows = dict(sorted(rows.items()))
    rows["all"] = Counter(verdict.kind for verdict in verdicts)
    rows["in live data"] = Counter(verdict.kind for verdict in verdicts if verdict.flip.live)
    lines = [f"{'':24}" + "".join(f"{kind:>16}" for kind in CLASSES) + f"{'bits':>8}"]
    lines += [
        f"{name:24}" + "".join(f"{row[kind]:16}" for kind in CLASSES) + f"{sum(row.values()):8}"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn bits of a stopped node's files, and judge what it does.")
    parser.add_argument("--offsets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="print the table only, and what is WRONG")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    began_s = time.monotonic()
    verdicts = asyncio.run(run(asked.offsets, asked.seed, quiet=asked.quiet))
    print(summary(verdicts))
    print(f"seed {asked.seed}, {time.monotonic() - began_s:.0f} s")
    return int(any(verdict.kind == "WRONG" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
