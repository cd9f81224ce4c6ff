"""What a store says of itself: format, identity, incarnation, and whether its last run ended orderly.

Identity, incarnation and closing stand in the database and, apart from it, in a file of their own. The database is
always written first. So a crash in between leaves the file behind its database, which the next opening mends; a file
ahead of its database means that the database has lost something that it had synced, and is refused. Without the file
a LevelDB whose log is cut short, or gone, opens without a word, as of some moment before.

Rules of this file: reads only; the node's start and the offline inspection judge by the same functions; every
refusal says what was found and the ways out.
"""

from __future__ import annotations

from dataclasses import dataclass

from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage import layout
from multiraft.storage.backend import Reader
from multiraft.types import Identity


@dataclass(frozen=True, slots=True)
class Opening:
    """What was found before anything is written.

    identity        None: the place is empty, nothing was ever stored in it
    file_is_behind  the file tells less than the database: a crash came between the two
    incarnation     that of the latest run; 0 before the first
    closed_orderly  whether that run wrote its closing record
    runs            the ids of the latest runs, oldest first
    condemned       why this store may take part no longer; empty: it may
    """

    identity: Identity | None
    file_is_behind: bool
    incarnation: int
    closed_orderly: bool
    runs: tuple[bytes, ...] = ()
    condemned: str = ""


def read_opening(reader: Reader) -> Opening:
    """Read and judge what a store says of itself.

    Raises StorageError: of a later format, not multiraft's, emptied, incomplete, or damaged.
    """
    name = reader.name
    try:
        _check_format(reader)
        raw_file, raw_database = reader.load_identity(), reader.get(layout.IDENTITY_KEY)
        in_file, latest_run, closed = (None, 0, False) if raw_file is None else layout.decode_identity_file(raw_file)
        in_database = None if raw_database is None else layout.decode_identity(raw_database)
        incarnation = _number(reader, layout.INCARNATION_KEY, "incarnation")
        closing = _number(reader, layout.CLOSING_KEY, "closing record")
        raw_runs, raw_condemned = reader.get(layout.RUNS_KEY), reader.get(layout.CONDEMNED_KEY)
        runs = () if raw_runs is None else layout.decode_runs(raw_runs)
        condemned = "" if raw_condemned is None else layout.decode_condemned(raw_condemned)
    except CorruptRecord as problem:
        raise CorruptRecord(f"{name} is damaged: {problem}. {ways_out(name)}") from problem
    if in_database is None:
        if in_file is not None:
            raise StorageError(
                f"{name} belongs to node {in_file.node_id!r}{of_cluster(in_file)}, but its database came back empty. "
                + ways_out(name)
            )
        if any(True for _ in reader.keys(b"", None)):
            raise StorageError(f"{name} holds a database that is not multiraft's; name another directory")
        return Opening(None, False, 0, False)
    if in_file is None:
        if incarnation is not None:
            raise StorageError(
                f"{name} has lost its IDENTITY file, though its database is that of node {in_database.node_id!r}"
                f"{of_cluster(in_database)}. {ways_out(name)}"
            )
        return Opening(in_database, True, 0, False)
    if in_file != in_database and not _is_behind(in_file, in_database):
        raise StorageError(
            f"{name} is put together from two stores: its IDENTITY file is of node {in_file.node_id!r}"
            f"{of_cluster(in_file)}, its database of node {in_database.node_id!r}{of_cluster(in_database)} or of an "
            f"older copy. {ways_out(name)}"
        )
    run = incarnation or 0
    orderly = closing is not None and closing == run
    if run < latest_run or (run == latest_run and closed and not orderly):
        end = "ended" if closed else "was begun"
        raise StorageError(
            f"{name} has lost what node {in_file.node_id!r}{of_cluster(in_file)} last wrote: the database stands "
            f"within run {run}, but run {latest_run} {end}. {ways_out(name)}"
        )
    return Opening(in_database, in_file != in_database or latest_run < run, run, orderly, runs, condemned)


def of_cluster(identity: Identity) -> str:
    """Return " of cluster 5f1c0a7e..." for a message; empty before the cluster is formed."""
    return f" of cluster {identity.cluster_id.hex()[:8]}..." if identity.formed else ""


def _is_behind(in_file: Identity, in_database: Identity) -> bool:
    """Whether a crash explains the difference: while the cluster or a peer's new store was bound, or in a recovery."""
    same = in_file.node_id == in_database.node_id and in_file.store_id == in_database.store_id
    if not in_file.formed:
        return same and in_database.formed
    if not same or in_file.cluster_id != in_database.cluster_id:
        return False
    return in_file.readmissions < in_database.readmissions or in_file.generation < in_database.generation


def _check_format(reader: Reader) -> None:
    found = _number(reader, layout.FORMAT_KEY, "store format")
    if found is not None and found != layout.STORE_FORMAT:
        raise StorageError(
            f"{reader.name} has store format {found}, this version reads {layout.STORE_FORMAT}; "
            "use the version of multiraft that wrote it"
        )


def _number(reader: Reader, key: bytes, what: str) -> int | None:
    raw = reader.get(key)
    return None if raw is None else layout.decode_number(key, raw, what)


def ways_out(name: str) -> str:
    """Return what to do about a damaged store. An older copy would forget promises that the node has made since."""
    return (
        f"Put back a copy made since its node last ran; or give up its contents: remove {name}, start the node, and "
        "readmit it on another one (`multiraft member readmit NODE`)"
    )
