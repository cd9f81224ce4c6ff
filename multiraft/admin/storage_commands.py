"""The commands about a stopped node's data directory: `storage DIR` shows it; `storage verify`, `repair` and `compact`.

Rules of this file: a running node's directory is refused; nothing is changed without being asked for by an option or by
the command's own name; a directory in the place of a command is to be shown.
"""

from __future__ import annotations

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from multiraft.admin import pages, storage_pages
from multiraft.admin.invoking import console, present
from multiraft.admin.view import Facts

_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path())
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


class _StorageCommands(click.Group):
    """`multiraft storage data/n1` means `multiraft storage show data/n1`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_StorageCommands, short_help="Look at the data directory of a stopped node, check it, mend it.")
def storage() -> None:
    """Show the data directory of a stopped node, check all of it, leave out what is damaged, or compact it.

    A directory that a running node uses is refused. Each of these knows --json.

    \b
    Examples:
      multiraft storage data/n1               what it holds, group by group
      multiraft storage verify data/n1        every checksum and digest of all that is stored
      multiraft storage repair data/n1        what would be left out of a damaged one
      multiraft storage compact data/n1       give back the room of what was deleted
    """


@storage.command("show", short_help="Show what it holds; `storage DIR` does the same.")
@_DIRECTORY
@_JSON
def show_store(directory: str, as_json: bool) -> None:
    """Check the groups in the data directory of a stopped node, and show what it holds.

    Reads and checks what is stored of every group; changes nothing. Exits with 1 when something does not hold.

    \b
    Examples:
      multiraft storage data/n1
      multiraft storage data/n1 --json | jq '.groups[] | select(.problems != [])'
    """
    from multiraft.admin.stores import inspect_store  # loads the database, which the other commands do without

    present(lambda: inspect_store(directory), pages.storage_page, as_json)


@storage.command(short_help="Read all of it, and check every checksum.")
@_DIRECTORY
@_JSON
def verify(directory: str, as_json: bool) -> None:
    """Read everything in the data directory of a stopped node, and check every checksum and digest: logs, votes,
    snapshots and their files, and the data of state machines. Changes nothing.

    Exits with 1 when something does not hold: `storage repair` says what can be done.

    \b
    Examples:
      multiraft storage verify data/n1
      multiraft storage verify data/n1 --json | jq .problems
    """
    from multiraft.admin.stores import verify_store

    screen = console()
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=screen,
        disable=as_json or not screen.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("opening")
        answer = verify_store(directory, lambda what, count: bar.update(task, description=f"{count} {what}"))
    present(lambda: answer, storage_pages.verify_page, as_json)


@storage.command(short_help="Leave out what is damaged, so that its groups replace it.")
@_DIRECTORY
@click.option("--apply", is_flag=True, help="Do it. Without this, only what would be done is shown.")
@_JSON
def repair(directory: str, apply: bool, as_json: bool) -> None:
    """Leave the damaged replicas out of a stopped node's data directory, and keep all that is whole.

    A replica that has lost anything may have forgotten a vote, so it is never brought back as it was: it is left out as
    a whole, and once the node runs its group replaces it, under a new id, from the others. LevelDB's own repair is not
    used: it keeps whatever it can read, and would let a replica vote twice. The damaged database is kept beside the new
    one, as db.damaged, until you remove it.

    A node does the same by itself when it starts; this shows beforehand what it would leave out. Where the damage
    concerns the whole store, nothing here may be trusted: then remove the directory, start the node, and have it
    readmitted (`multiraft member readmit NODE`).

    Exits with 1 when something is left out, or would be.

    \b
    Examples:
      multiraft storage repair data/n1            what would be left out
      multiraft storage repair data/n1 --apply    leave it out
    """
    from multiraft.admin.stores import repair_store

    present(lambda: repair_store(directory, apply), storage_pages.repair_page, as_json)


@storage.command(short_help="Give back the room of what was deleted.")
@_DIRECTORY
@_JSON
def compact(directory: str, as_json: bool) -> None:
    """Have the database of a stopped node drop what was deleted or overwritten. Nothing that is stored changes.

    A running node does this by itself, a little at a time. It needs as much free room as the database has.

    \b
    Example:
      multiraft storage compact data/n1
    """
    from multiraft.admin.stores import compact_store

    def work() -> Facts:
        return compact_store(directory)

    present(work, storage_pages.compact_page, as_json)
