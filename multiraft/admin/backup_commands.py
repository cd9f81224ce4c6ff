"""`multiraft backup`, `export`, `restore` and `import`: the states of groups, out of a running cluster and into stopped
nodes.

Rules of this file: what is made is whole and verified, or is said not to be; progress is drawn on a terminal only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from multiraft.admin.client import AdminClient, NodeFailed, offline_failure
from multiraft.admin.formats import moment, printable, size
from multiraft.admin.invoking import present, remote
from multiraft.admin.tables import Column, Page
from multiraft.admin.view import Facts
from multiraft.config import STORES, Limits, parse_address
from multiraft.errors import BackupRefused, ConfigError, RecoveryRefused, StorageError

if TYPE_CHECKING:
    from multiraft.backup import Backup

T = TypeVar("T")


@click.command(short_help="Save the state of the whole cluster into a directory.")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@remote
def backup(client: AdminClient, directory: str, as_json: bool) -> None:
    """Save the state of every group of a running cluster into DIR, with a manifest.

    Each group is cut at one index of its own log; different groups are cut at different moments, and the manifest says
    so. An interrupted backup goes on when it is run again with the same DIR. `multiraft restore` makes a new cluster
    of it.

    \b
    Example:
      multiraft backup backups/monday
    """
    from multiraft.admin.fetching import Fetcher

    def step() -> Facts:
        with _progress("groups") as told:
            return Fetcher(client, directory, told).fetch().to_plain()

    present(lambda: _doing(step), _backup_page, as_json)


@click.command(short_help="Save the state of one group, or of all, into a file.")
@click.argument("arguments", metavar="GROUP|--all FILE", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Every group; what `backup` makes, as one file.")
@remote
def export(client: AdminClient, arguments: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Save the state of one group of a running cluster, or with --all of all groups, into one FILE.

    What was fetched so far is kept in FILE.parts; an interrupted export goes on when it is run again.

    \b
    Examples:
      multiraft export 17 shard17.export
      multiraft export --all monday.export
    """
    from multiraft.admin.fetching import Fetcher
    from multiraft.backup import load_backup, pack
    from multiraft.backup.archive import MANIFEST

    if len(arguments) != (1 if everything else 2):
        raise click.UsageError("name one group, or --all, and one file")
    file, group = arguments[-1], None if everything else click.IntRange(1)(arguments[0])
    parts = file + ".parts"

    def step() -> Facts:
        with _progress("groups") as told:
            done = os.path.exists(os.path.join(parts, MANIFEST))
            found = load_backup(parts) if done else Fetcher(client, parts, told).fetch(group)
        pack(found, file)
        shutil.rmtree(parts, ignore_errors=True)
        return found.to_plain()

    present(lambda: _doing(step), _backup_page, as_json)


def _places(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, str, str]]:
    places = []
    for text in given:
        name, _, rest = text.partition("=")
        directory, _, address = rest.rpartition("@")
        try:
            parse_address(f"the address of {name}", address)
        except ConfigError as problem:
            raise click.BadParameter(f"{text!r}: {problem}", context, parameter) from problem
        if not name or not directory:
            raise click.BadParameter(f"{text!r} is not NAME=DIR@HOST:PORT", context, parameter)
        places.append((name, directory, address))
    return places


@click.command(short_help="Make the data directories of a new cluster from a backup.")
@click.argument("source", metavar="DIR|FILE", type=click.Path(exists=True))
@click.option(
    "--node", "places", multiple=True, required=True, callback=_places, metavar="NAME=DIR@HOST:PORT",
    help="A node of the new cluster; repeat it for each.",
)  # fmt: skip
@click.option("--store", type=click.Choice(STORES), default="leveldb", show_default=True, help="What keeps the data.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def restore(source: str, places: list[tuple[str, str, str]], store: str, as_json: bool) -> None:
    """Make the data directories of the nodes of a NEW cluster from what `backup` or `export --all` has saved.

    The cluster id is a new one: nodes of the old cluster and of the new one never take part in each other. Everything
    is verified first; only empty directories are written into. Move each to its machine, and start the nodes with these
    names and addresses as members.

    \b
    Example:
      multiraft restore backups/monday --node a=data/a@10.0.0.1:7001 --node b=data/b@10.0.0.2:7001 \\
          --node c=data/c@10.0.0.3:7001
    """
    from multiraft.backup import NodePlace
    from multiraft.backup import restore as restored

    def step() -> Facts:
        with _opened(source) as found, _progress("steps") as told:
            count = 0

            def one(group_id: int) -> None:
                nonlocal count
                count += 1
                told(count, 2 * len(found.cuts), 0)

            nodes = [NodePlace(*place) for place in places]
            cluster_id = restored(found, nodes, store, Limits(), one)
            return {
                "cluster_id": cluster_id,
                "of_cluster": found.cluster_id,
                "groups": len(found.cuts),
                "nodes": {name: {"directory": directory, "address": address} for name, directory, address in places},
            }

    present(lambda: _doing(step), _restored_page, as_json)


@click.command("import", short_help="Give one group of a stopped cluster the state in an export.")
@click.argument("source", metavar="FILE", type=click.Path(exists=True))
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@click.option("--group", type=click.IntRange(1), help="Which group of the export; needed where it holds several.")
@click.option("--yes", is_flag=True, help="Do it. Without, it is only said what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def import_(source: str, directories: tuple[str, ...], group: int | None, yes: bool, as_json: bool) -> None:
    """Replace the state of one group by what an export of it holds, in the directories of ALL nodes that have a replica
    of it, while they are stopped. What the group holds now is lost. (A whole cluster is made by `restore`.)

    \b
    Example:
      multiraft import shard17.export data/a data/b data/c
      multiraft import shard17.export data/a data/b data/c --yes
    """
    from multiraft.backup import plan_replacement, replace_group

    def step() -> Facts:
        with _opened(source) as found:
            if group is None and len(found.cuts) != 1:
                raise BackupRefused(f"{source} holds {len(found.cuts)} groups; say which with --group")
            which = group if group is not None else next(iter(found.cuts))
            plan = plan_replacement(found, which, directories)
            if yes:
                replace_group(found, plan, Limits())
            return {
                "group_id": which,
                "of_index": found.cuts[which].index,
                "index": plan.index,
                "term": plan.term,
                "nodes": dict(plan.nodes),
                "written": yes,
            }

    present(lambda: _doing(step), _imported_page, as_json)


# ----------------------------------------------------------------------------------------------------- what is shown


def _backup_page(found: Facts) -> Page:
    page = Page()
    total = sum(group["size_bytes"] for group in found["groups"])
    page.line(f"cluster {found['cluster_id']}: {len(found['groups'])} groups, {size(total)}")
    page.line(found["note"])
    page.gap()
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            *[Column(title, right=True) for title in ("INDEX", "TERM", "SIZE", "STATE")],
            Column("CUT AFTER"),
        ]
    )
    for group in found["groups"]:
        table.rows.append(
            [
                str(group["group_id"]),
                printable(group["service"]),
                str(group["index"]),
                str(group["term"]),
                size(group["size_bytes"]),
                size(group["raw_bytes"]),
                moment(group["wall_ms"]),
            ]
        )
    return page


def _restored_page(found: Facts) -> Page:
    page = Page()
    page.line(f"cluster {found['cluster_id']}, new, from a backup of {found['of_cluster']}: {found['groups']} groups")
    for name, place in found["nodes"].items():
        page.line(f"  {name}: {place['directory']}, to be reached at {place['address']}")
    members = ", ".join(f'{name} = "{place["address"]}"' for name, place in found["nodes"].items())
    page.line(f"start each node with its directory, and members {{{members}}}")
    return page


def _imported_page(found: Facts) -> Page:
    page = Page()
    where = ", ".join(found["nodes"])
    page.line(
        f"group {found['group_id']} on {where}: the state of the export, which was cut at {found['of_index']}, as of "
        f"index {found['index']} in term {found['term']}"
    )
    page.line("done; start the nodes" if found["written"] else "nothing was written; do it with --yes")
    return page


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Draw a bar on a terminal; be quiet elsewhere."""
    console = Console(stderr=True)
    fetched = TextColumn("{task.fields[fetched]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), fetched, TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(what, total=None, fetched="")

        def told(done: int, total: int, fetched_bytes: int) -> None:
            progress.update(bar, completed=done, total=total, fetched=size(fetched_bytes) if fetched_bytes else "")

        yield told


@contextlib.contextmanager
def _opened(source: str) -> Iterator[Backup]:
    """The backup in a directory, or in the one file of an export, which is taken apart beside it for as long."""
    from multiraft.backup import load_backup, unpack

    if Path(source).is_dir():
        yield load_backup(source)
        return
    with tempfile.TemporaryDirectory(prefix="multiraft-import-", dir=Path(source).absolute().parent) as scratch:
        yield unpack(source, scratch)


def _doing(step: Callable[[], T]) -> T:
    """Run a step; what it refuses becomes the command line's kind of error."""
    try:
        return step()
    except (BackupRefused, RecoveryRefused, StorageError) as problem:
        raise offline_failure(str(problem)) from problem
    except OSError as problem:
        raise NodeFailed(f"{problem.filename}: {problem.strerror}") from problem
