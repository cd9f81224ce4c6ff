"""The commands about one group: `group ID` shows it; `group why`, `group retry` and `group rebuild` mend it.

Rules of this file: what changes something can be shown first, with --dry-run; a number in the place of a command means
that the group of that number is to be shown.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Final

import click

from multiraft.admin import mending_pages, pages
from multiraft.admin.client import AdminClient
from multiraft.admin.invoking import console, present, remote
from multiraft.admin.tables import show
from multiraft.admin.view import Facts

_GRACE_S: Final = 15.0
_ID = click.argument("group_id", metavar="ID", type=click.IntRange(1))


class _GroupCommands(click.Group):
    """`multiraft group 17` means `multiraft group show 17`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_GroupCommands, short_help="Show one group, say what is wrong with it, mend it.")
def group() -> None:
    """Show one group: its leader, its log, and each of its replicas. Or say why it does not do what it should,
    and mend it. Each of these knows --json.

    \b
    Examples:
      multiraft group 17                      the group and its replicas
      multiraft group why 17                  halted, without leader, slow: why, and what to do
      multiraft group retry 17 --node n2      a halted replica applies on
      multiraft group rebuild 17 --node n2    it takes the state of a healthy one
    """


@group.command("show", short_help="Show one group; `group ID` does the same.")
@_ID
@remote
def show_one(client: AdminClient, group_id: int, as_json: bool) -> None:
    """Show one group: its leader, its log, and each of its replicas.

    \b
    Example:
      multiraft group 17
    """
    present(lambda: client.get("groups", str(group_id)), pages.group_page, as_json)


@group.command(short_help="Say why a group is halted, has no leader, or is slow.")
@_ID
@remote
def why(client: AdminClient, group_id: int, as_json: bool) -> None:
    """Say why a group is halted, has no leader, or is slow, and what to do next.

    A replica that is halted has stopped at an entry of its log, and applies nothing more, until it is retried or
    rebuilt; it still stores and votes. Slow commands are named.

    Exits with 1 when a replica is halted, or nobody leads.

    \b
    Examples:
      multiraft group why 17
      multiraft group why 17 --json | jq '.replicas[].halted'
    """
    answer = functools.partial(client.get, "groups", str(group_id), "why")
    present(answer, mending_pages.why_page, as_json)


@group.command(short_help="Have halted replicas apply on.")
@_ID
@click.option("--node", metavar="NODE", help="Only the replica on this node.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@remote
def retry(client: AdminClient, group_id: int, node: str | None, dry_run: bool, as_json: bool) -> None:
    """Have the halted replicas of a group apply on, from the entry that each stopped at.

    Mend what halted them first: `multiraft group why ID` says what it was. The machine is made anew, from its own
    snapshot and log.

    \b
    Examples:
      multiraft group retry 17
      multiraft group retry 17 --node n2 --dry-run
    """
    _post(client, group_id, "retry", {"node": node} if node else {}, dry_run, as_json)


@group.command(short_help="Give a halted replica the state of a healthy one.")
@_ID
@click.option("--node", metavar="NODE", required=True, help="Where the halted replica is.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@remote
def rebuild(client: AdminClient, group_id: int, node: str, dry_run: bool, as_json: bool) -> None:
    """Give the halted replica of a group on NODE the state of a healthy one.

    The group's leader takes a snapshot and sends it there. The replica keeps its log, its vote and its place, so that
    there is no moment with fewer voters. One that leads hands over first. Refused where no replica is healthy.

    \b
    Examples:
      multiraft group rebuild 17 --node n2 --dry-run
      multiraft --timeout 600 group rebuild 17 --node n2
    """
    timeout_s = client.timeout_s
    _post(
        AdminClient(client.url, timeout_s + _GRACE_S),
        group_id,
        "rebuild",
        {"node": node, "timeout_s": timeout_s},
        dry_run,
        as_json,
    )


def _post(client: AdminClient, group_id: int, step: str, body: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    answer: Facts = client.post("groups", str(group_id), step, body={**body, "dry_run": dry_run})
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        show(mending_pages.mended_page(answer), console())
