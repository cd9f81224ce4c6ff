"""The commands that change who takes part in a group, or who leads it: `members`, `member ...`, `transfer`.

A change is asked for in two steps: first what it would do, which is shown and, where a replica would be removed, has to
be confirmed; then the change itself. While that waits, a terminal shows what it waits for.

Rules of this file: nobody is asked anything without a terminal; whoever stops waiting is told that the change may go
on.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Console

from multiraft.admin import member_pages
from multiraft.admin.client import DEFAULT_URL, AdminClient, AdminClientError
from multiraft.admin.formats import printable
from multiraft.admin.invoking import INTERRUPTED, REFUSED, USAGE, CliError, Number, Options, console, present, remote
from multiraft.admin.tables import show
from multiraft.admin.view import Facts

_GRACE_S: Final = 15.0
"""How much longer than the change itself its answer may take: the node asks others before and after."""
_READMIT_S: Final = 120.0
_LOOK_S: Final = 0.5
_LOOK_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Wanted:
    """How a change is to be made."""

    url: str
    timeout_s: float | None
    as_json: bool
    dry_run: bool
    force: bool
    yes: bool = True


def _changing(removes: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a change; it gets a Wanted as its first argument."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--url", metavar="URL", help="Admin URL of any node (also before the command).")
        @click.option("--timeout", type=Number(0.1, 3600), metavar="SECONDS", help="How long to wait until it is done.")
        @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
        @click.option("--dry-run", is_flag=True, help="Say what would be done, and whether it is safe; do nothing.")
        @click.option("--force", is_flag=True, help="Do it although it is unsafe (the dry run says why).")
        @click.pass_context
        @functools.wraps(command)
        def with_options(
            context: click.Context, /, *args: Any, url: str | None, timeout: float | None, **options: Any
        ) -> None:
            given: Options = context.obj
            how = {name: options.pop(name) for name in ("as_json", "dry_run", "force")}
            wanted = Wanted(url or given.url or DEFAULT_URL, timeout or given.timeout_s, **how)
            if removes:
                wanted.yes = options.pop("yes")
            command(wanted, *args, **options)

        if removes:
            return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(with_options)
        return with_options

    return decorate


_GROUP = click.argument("group_id", metavar="GROUP", type=click.IntRange(1))
_NODE = click.argument("node", metavar="NODE")


@click.command()
@_GROUP
@remote
def members(client: AdminClient, group_id: int, as_json: bool) -> None:
    """Show who takes part in a group, and what a change of it waits for.

    \b
    MEMBER   voter      elects, and counts for every commit
             learner    receives the log, decides nothing
             joining    a learner that becomes a voter once it has caught up
             outgoing   votes until the joint change under way ends
             removed    lives there no longer
    BEHIND   entries of the log that it lacks

    Exits with 1 when the group or one of its nodes is not well.

    \b
    Examples:
      multiraft members 17
      multiraft members 17 --json | jq '.replicas[] | select(.answers | not) | .node_id'
    """
    answer = functools.partial(client.get, "groups", str(group_id), "membership")
    present(answer, member_pages.members_page, as_json)


@click.group(no_args_is_help=True)
def member() -> None:
    """Change who takes part in a group.

    Each of these is one call: it goes on until the change is done, and asking again is safe. With --dry-run it says
    what it would do, the quorum before and after, and who is down. What would leave the group without a quorum is
    refused unless --force is said.

    \b
    Examples:
      multiraft member add 17 n4 --dry-run
      multiraft member replace 17 n2 n4      move a replica, with never fewer voters
      multiraft member remove 17 n2 --yes
    """


@member.command(short_help="Give a group a replica on another node.")
@_GROUP
@_NODE
@click.option("--learner", is_flag=True, help="It stays a learner: receives everything, decides nothing.")
@_changing()
def add(wanted: Wanted, group_id: int, node: str, learner: bool) -> None:
    """Give GROUP a replica on NODE.

    It starts empty, receives the log as a learner, and becomes a voter once it has caught up: a node that is slow or
    down costs the group nothing. The leader goes on with it when this command stops waiting.

    \b
    Examples:
      multiraft member add 17 n4
      multiraft member add 17 n4 --learner    a copy without a vote
      multiraft member add 17 n4 --timeout 600
    """
    _run(wanted, group_id, {"action": "add", "node": node, "voter": not learner})


@member.command(short_help="Take a replica out of its group for good.")
@_GROUP
@_NODE
@_changing(removes=True)
def remove(wanted: Wanted, group_id: int, node: str) -> None:
    """Take the replica on NODE out of GROUP, and delete it.

    The node need not be up: it learns of it when it is back. A leader that is removed hands over first.

    \b
    Examples:
      multiraft member remove 17 n2 --dry-run    is it safe?
      multiraft member remove 17 n2              asks first
      multiraft member remove 17 n2 --yes        for scripts
    """
    _run(wanted, group_id, {"action": "remove", "node": node})


@member.command(short_help="Put a replica on another node in the place of one.")
@_GROUP
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@_changing(removes=True)
def replace(wanted: Wanted, group_id: int, old: str, new: str) -> None:
    """Move the replica of GROUP on node OLD to node NEW.

    NEW catches up as a learner; then one joint change makes it a voter and takes OLD out, so that there is no moment
    with fewer voters. OLD and NEW may be the same node, if its store was lost: the old replica goes first then.

    \b
    Examples:
      multiraft member replace 17 n2 n4
      multiraft member replace 17 n2 n2 --yes    n2's disk was emptied
    """
    _run(wanted, group_id, {"action": "replace", "old": old, "node": new})


@member.command(short_help="Make a learner a voter.")
@_GROUP
@_NODE
@_changing()
def promote(wanted: Wanted, group_id: int, node: str) -> None:
    """Make the learner of GROUP on NODE a voter, as soon as it has caught up.

    \b
    Example:
      multiraft member promote 17 n4
    """
    _run(wanted, group_id, {"action": "promote", "node": node})


@member.command(short_help="Make a voter a learner.")
@_GROUP
@_NODE
@_changing()
def demote(wanted: Wanted, group_id: int, node: str) -> None:
    """Make the voter of GROUP on NODE a learner: it keeps its data, and decides nothing.

    \b
    Example:
      multiraft member demote 17 n4
    """
    _run(wanted, group_id, {"action": "demote", "node": node})


@member.command(short_help="Take back a node whose directory was emptied.")
@_NODE
@remote
def readmit(client: AdminClient, node: str, as_json: bool) -> None:
    """Take back NODE, whose data directory was lost or damaged and then emptied, with every replica that it had.

    Start it first, with an empty directory: until it is readmitted it takes no part, for it may have forgotten a vote.
    Then say this to any other node. What the old directory held is given up for good; each group that had a replica
    there makes a new one from its others. Calling again goes on where it was left.

    \b
    Examples:
      multiraft member readmit n2
      multiraft --timeout 600 member readmit n2
    """
    timeout_s = client.timeout_s if client.timeout_s > _READMIT_S else _READMIT_S
    asking = AdminClient(client.url, timeout_s + _GRACE_S)
    answer = asking.post("readmit", body={"node": node, "timeout_s": timeout_s})
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(f"node {printable(node)} takes part again, with every replica that it had")


@click.command()
@_GROUP
@_NODE
@_changing()
def transfer(wanted: Wanted, group_id: int, node: str) -> None:
    """Have the replica on NODE lead GROUP.

    The leader brings it up to date and has it campaign at once. Proposals wait meanwhile; if it does not take over
    within two election timeouts, the old leader goes on.

    \b
    Examples:
      multiraft transfer 17 n2
      multiraft transfer 17 n2 --dry-run
    """
    _run(wanted, group_id, {"node": node}, "transfer", 10.0)


# ---------------------------------------------------------------------------------------------------- running one


def _run(wanted: Wanted, group_id: int, body: Facts, step: str = "members", default_s: float = 60.0) -> None:
    """Plan the change, have it confirmed where it removes something, make it, show what came of it."""
    timeout_s = wanted.timeout_s or default_s
    path = ("groups", str(group_id), step)
    asking = AdminClient(wanted.url, timeout_s=max(_LOOK_TIMEOUT_S, min(timeout_s, _GRACE_S)))
    planned = asking.post(*path, body={**body, "dry_run": True})
    plan = planned["plan"]
    if wanted.dry_run:
        present(lambda: {**planned, "healthy": plan["safe"]}, member_pages.plan_page, wanted.as_json)
        return
    if not plan["safe"] and not wanted.force:
        hint = "--force does it all the same; --dry-run shows how it stands"
        raise CliError(REFUSED, f"unsafe: {'; '.join(plan['unsafe'])}", hint)
    if not wanted.yes and not plan["nothing_to_do"]:
        _confirm(planned)
    changing = AdminClient(asking.url, timeout_s + _GRACE_S)
    asked = {**body, "timeout_s": timeout_s, "force": wanted.force}
    answer = _waited(lambda: changing.post(*path, body=asked), asking.url, group_id, plan)
    if wanted.as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        show(member_pages.done_page(answer), console())


def _confirm(planned: Facts) -> None:
    """Show what would be done and ask. Raises CliError when there is nobody to be asked, or the answer is no."""
    if not sys.stdin.isatty():
        what = member_pages.action_text(planned["plan"])
        raise CliError(USAGE, f"{what}: deletes a replica, and there is no terminal to ask", "say --yes if it shall")
    show(member_pages.plan_page(planned), Console(highlight=False, stderr=True))
    if not click.confirm("do it?", err=True):
        raise CliError(REFUSED, "not confirmed; nothing was changed")


def _waited(ask: Callable[[], Facts], url: str, group_id: int, plan: Facts) -> Facts:
    """Return the answer; show on a terminal meanwhile what is waited for. Raises as `ask`, and CliError on Ctrl-C."""
    ended = threading.Event()
    outcome: list[Facts | Exception] = []

    def work() -> None:
        try:
            outcome.append(ask())
        except Exception as problem:  # raised again in the thread that waits
            outcome.append(problem)
        finally:
            ended.set()

    threading.Thread(target=work, name="change", daemon=True).start()
    try:
        _watch(ended, AdminClient(url, _LOOK_TIMEOUT_S), group_id, member_pages.action_text(plan))
    except KeyboardInterrupt:
        hint = f"`multiraft members {group_id}` shows what becomes of it; asking again is safe"
        raise CliError(INTERRUPTED, "interrupted; the change may go on", hint) from None
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    return found


def _watch(ended: threading.Event, client: AdminClient, group_id: int, what: str) -> None:
    screen = Console(highlight=False, stderr=True)
    if not screen.is_terminal:
        ended.wait()
        return
    began_s = time.monotonic()
    with screen.status(printable(what)) as shown:
        while not ended.wait(_LOOK_S):
            try:
                waits = client.get("groups", str(group_id), "membership")["waiting_for"]
                said = "; ".join(waits) or "the change is being made"
            except AdminClientError as problem:
                said = problem.error
            shown.update(
                f"{printable(what)}, {time.monotonic() - began_s:.0f} s: {printable(said)}".replace("[", "\\[")
            )
