"""`multiraft recover`: after a lost quorum, in four steps over the directories of stopped nodes.

Rules of this file: nothing is written into a data directory but by `apply --yes`; every step shows what it found, as a
table or with --json, and refuses what does not fit rather than guess.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import click

from multiraft.admin import recover_pages
from multiraft.admin.client import DEFAULT_URL, AdminClient, NodeFailed, NotFound, offline_failure
from multiraft.admin.invoking import Options, present
from multiraft.admin.view import Facts
from multiraft.errors import RecoveryRefused, StorageError

_TIMEOUT_S: Final = 10.0
T = TypeVar("T")

_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")


@click.group(short_help="After a lost quorum: collect, plan, apply, verify.")
def recover() -> None:
    """Bring a cluster back when so many nodes are lost that groups have no quorum, and cannot get one again.

    Use it only when the lost nodes are lost for good: what they alone had is given up, and they are refused when they
    come back. Stop all surviving nodes first, and keep them stopped until the last step.

    \b
      1. on each surviving node    multiraft recover collect data/n3 -o n3.json
      2. anywhere                  multiraft recover plan n3.json n4.json -o plan.json
         read it: per group, what MAY BE LOST and what is NEWLY COMMITTED
      3. on each surviving node    multiraft recover apply plan.json data/n3
         and, when that says what you want, the same with --yes
      4. before the start          multiraft recover verify data/n3
         and after it              multiraft recover verify --url 10.0.0.3:7101 --plan plan.json
    """


@recover.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(dir_okay=False))
@_JSON
def collect(directory: str, output: str, as_json: bool) -> None:
    """Write down what the data directory of a stopped, surviving node has; it is not changed.

    \b
    Example:
      multiraft recover collect data/n3 -o n3.json
    """
    from multiraft.recovery import collect_directory, save_document  # loads LevelDB
    from multiraft.recovery.documents import COLLECTED

    def step() -> Facts:
        body = collect_directory(directory).to_plain()
        save_document(output, COLLECTED, body)
        return body

    present(lambda: _doing(step), recover_pages.collected_page, as_json)


@recover.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, metavar="PLAN", type=click.Path(dir_okay=False))
@click.option("--all", "everything", is_flag=True, help="Show every group, also those that are left alone.")
@_JSON
def plan(files: tuple[str, ...], output: str, everything: bool, as_json: bool) -> None:
    """Make a plan from what was collected on ALL surviving nodes, and say what it costs.

    Exits with 1 when something may be lost.

    \b
    Example:
      multiraft recover plan n3.json n4.json -o plan.json
    """
    from multiraft.recovery import NodeFacts, load_document, make_plan, save_document
    from multiraft.recovery.documents import COLLECTED, PLAN

    def step() -> Facts:
        made = make_plan([NodeFacts.from_plain(load_document(file, COLLECTED)) for file in files])
        save_document(output, PLAN, made.to_plain())
        lossy = any(group.may_lose for group in made.groups)
        return {**made.to_plain(), "healthy": not lossy}

    present(lambda: _doing(step), lambda found: recover_pages.plan_page(found, everything), as_json)


@recover.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path())
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--yes", is_flag=True, help="Do it. Without, it is only said what would be done.")
@_JSON
def apply(plan_file: str, directory: str, yes: bool, as_json: bool) -> None:
    """Carry the plan out on one surviving node, which is stopped; on each of them, before any is started.

    Writes nothing without --yes. Done again, it changes nothing; interrupted, do it again.

    \b
    Examples:
      multiraft recover apply plan.json data/n3
      multiraft recover apply plan.json data/n3 --yes
    """
    from multiraft.recovery import Plan, apply_plan, load_document
    from multiraft.recovery.documents import PLAN
    from multiraft.types import generation_name

    def step() -> Facts:
        made = Plan.from_plain(load_document(plan_file, PLAN))
        applied = apply_plan(made, directory, yes)
        return {
            "node_id": applied.node_id,
            "directory": directory,
            "generation": generation_name(applied.generation),
            "done_before": applied.done,
            "written": applied.written,
            "others": [name for name in sorted(made.survivors) if name != applied.node_id],
            "groups": {str(group_id): action for group_id, action in applied.actions.items()},
        }

    present(lambda: _doing(step), recover_pages.applied_page, as_json)


@recover.command()
@click.argument("directories", metavar="[DIR...]", nargs=-1, type=click.Path())
@click.option("--url", metavar="URL", help="Admin URL of a node that runs, instead of directories.")
@click.option("--plan", "plan_file", metavar="PLAN", type=click.Path(), help="With --url: compare with this plan.")
@_JSON
@click.pass_context
def verify(
    context: click.Context, directories: tuple[str, ...], url: str | None, plan_file: str | None, as_json: bool
) -> None:
    """Check that the survivors agree: by their directories before they start, or by --url when they run.

    Exits with 1 when something does not hold: nodes of different recovery generations, a group without a quorum among
    these directories, or, of nodes that run, a group without a leader; with --plan also a node or a group that is not
    as the plan has promised.

    \b
    Examples:
      multiraft recover verify data/n3 data/n4
      multiraft recover verify --url 10.0.0.3:7101
      multiraft recover verify --url 10.0.0.3:7101 --plan plan.json
    """
    given: Options = context.obj
    asked = url or (None if directories else given.url)
    if directories and url:
        raise click.UsageError("directories, or --url: not both")
    if not directories and asked is None:
        raise click.UsageError(f"name the directories of all survivors, or --url (e.g. {DEFAULT_URL})")
    if asked is not None:
        client = AdminClient(asked, given.timeout_s or _TIMEOUT_S)
        present(lambda: _running(client, plan_file), recover_pages.running_page, as_json)
        return
    if plan_file is not None:
        raise click.UsageError("--plan goes with --url: directories are compared with a plan by `recover apply`")
    from multiraft.recovery import verify_directories

    present(lambda: _doing(lambda: verify_directories(directories)), recover_pages.verified_page, as_json)


def _running(client: AdminClient, plan_file: str | None) -> Facts:
    """Return what the nodes that run say of the recovery, and of every group; with a plan, compared with that."""
    from multiraft.recovery import Plan, RunningGroup, differences, gone_by_plan, load_document  # loads LevelDB
    from multiraft.recovery.documents import PLAN

    plan = None if plan_file is None else _doing(lambda: Plan.from_plain(load_document(plan_file, PLAN)))
    gone = set() if plan is None else gone_by_plan(plan)
    status, groups = client.get("status"), client.get("groups")
    up = [node for node in status["nodes"] if node["state"] == "up"]
    generations = {node["node_id"]: str(node.get("generation", "")) for node in up}
    problems = [] if len(set(generations.values())) <= 1 else ["nodes of different recovery generations run together"]
    rows = []
    for group in groups["groups"]:
        if not group.get("leader") and group["group_id"] not in gone:
            problems.append(f"group {group['group_id']} has no leader")
        rows.append(
            {
                "group_id": group["group_id"],
                "service": group.get("service"),
                "leader": group.get("leader"),
                "term": group.get("term"),
                **{
                    kind: [node_id for _, node_id in (group.get("membership") or {}).get(kind, [])]
                    for kind in ("voters", "learners")
                },
            }
        )
    if plan is not None:
        running = [RunningGroup(*_as_running(group)) for group in groups["groups"]]
        problems += differences(plan, generations, running)
    told = {"healthy": not problems, "problems": problems, "generations": generations, "groups": rows}
    return told if plan is None else {**told, "gone": sorted(gone)}


def _as_running(group: Facts) -> tuple[int, str | None, int, int, int, dict[int, str]]:
    """Return the fields of a RunningGroup."""
    members = group.get("membership") or {}
    named = {
        int(replica_id): str(node_id)
        for kind in ("voters", "outgoing", "learners")
        for replica_id, node_id in members.get(kind, [])
    }
    numbers = int(group.get("term") or 0), int(group.get("commit") or 0), int(members.get("index") or 0)
    return int(group["group_id"]), group.get("leader"), *numbers, named


def _doing(step: Callable[[], T]) -> T:
    """Run a step; what it refuses becomes the command line's kind of error."""
    try:
        return step()
    except (RecoveryRefused, StorageError) as problem:
        missing = "is not a data directory" in str(problem) or "No such file" in str(problem)
        raise offline_failure(str(problem), NotFound if missing else NodeFailed) from problem
