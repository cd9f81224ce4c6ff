"""The directory: idempotent, deterministic, and clear about what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.engine.machine import Context, Machine, UnknownCommand, environmental
from multiraft.errors import CommandFailed, WireError
from multiraft.shard import (
    Declaration,
    Directory,
    NodeInfo,
    ShardMap,
    admit_command,
    create_service_command,
    decode_map,
    decode_nodes,
    decode_version,
    group_nodes_command,
    map_query,
    nodes_query,
    register_node_command,
)
from multiraft.types import DIRECTORY_GROUP, FIRST_USER_GROUP, Identity

CONTEXT = Context(2, 1, DIRECTORY_GROUP, 0)
NODES = ["a", "b", "c"]
COUNTERS = Declaration("counters", initial_shards=4, replicas=3, schema={"total": ["query", None, [], "int"]})


def applied(*commands: bytes) -> Directory:
    directory = Directory()
    for command in commands:
        directory.apply(command, CONTEXT)
    return directory


def test_it_is_a_machine_of_the_engine() -> None:
    machine: Machine = Directory()
    assert decode_version(machine.apply(create_service_command(COUNTERS, NODES), CONTEXT)) == 1


def test_creating_a_service_makes_its_shards_and_groups() -> None:
    directory = applied(create_service_command(COUNTERS, NODES))
    shards = directory.map.services["counters"].shards
    assert [shard.shard_id for shard in shards] == [1, 2, 3, 4]
    assert [shard.group_id for shard in shards] == list(range(FIRST_USER_GROUP, FIRST_USER_GROUP + 4))
    assert [directory.map.groups[shard.group_id][0] for shard in shards] == ["a", "b", "c", "a"]
    assert {group.service for group in directory.groups.values()} == {"counters"}
    assert {group_id: group.nodes for group_id, group in directory.groups.items()} == dict(directory.map.groups)


def test_a_second_service_gets_ids_of_its_own() -> None:
    directory = applied(
        create_service_command(COUNTERS, NODES),
        create_service_command(Declaration("names", "range", boundaries=(b"m",), replicas=2), NODES),
    )
    assert directory.map.version == 2
    assert [shard.group_id for shard in directory.map.services["names"].shards] == [20, 21]
    assert directory.map.services["names"].find(b"zoe").group_id == 21


def test_declaring_again_changes_nothing() -> None:
    directory = applied(create_service_command(COUNTERS, NODES))
    state = directory.snapshot()
    told: list[int] = []
    directory.subscribe(lambda changed: told.append(changed.map.version))
    assert decode_version(directory.apply(create_service_command(COUNTERS, ["d", "e", "f"]), CONTEXT)) == 1
    assert directory.snapshot() == state
    assert told == []


def test_a_newer_release_adds_its_methods() -> None:
    directory = applied(create_service_command(COUNTERS, NODES))
    newer = replace(COUNTERS, schema={"add": ["command", "name", [["name", "str", False]], "int"]})
    directory.apply(create_service_command(newer, NODES), CONTEXT)
    assert sorted(directory.services["counters"].schema) == ["add", "total"]
    assert directory.map.version == 1


@pytest.mark.parametrize(
    ("command", "exception", "words"),
    [
        (create_service_command(replace(COUNTERS, initial_shards=5), NODES), "ServiceDiffers", "initial_shards = 5"),
        (create_service_command(replace(COUNTERS, replicas=1), NODES), "ServiceDiffers", "replicas = 1"),
        (create_service_command(Declaration("new"), ["a", "b"]), "TooFewNodes", "wants 3 replicas, but there are 2"),
        (create_service_command(Declaration("new"), ["a", "b", "b"]), "InvalidDeclaration", "different names"),
        (create_service_command(Declaration("new"), ["a", "b", ""]), "InvalidDeclaration", "different names"),
        (
            msgpack.packb(["create_service", ["n", "hash", 1, [], 3, [], 0], NODES, "a"]),
            "InvalidDeclaration",
            "version",
        ),
        (msgpack.packb(["create_service", [], NODES, "a"]), "InvalidDeclaration", ""),
        (
            msgpack.packb(["create_service", ["n", "hash", 0, [], 3, [], 1], NODES, "a"]),
            "InvalidDeclaration",
            "initial_shards",
        ),
        (msgpack.packb(["create_service", ["n", "hash", 1, [], 3, [5], 1], NODES, "a"]), "InvalidDeclaration", ""),
        (register_node_command("", "127.0.0.1:1"), "InvalidNode", ""),
        (msgpack.packb(["register_node", "a", "b", None]), "InvalidNode", ""),
        (group_nodes_command(99, 5, ["a"]), "UnknownGroup", "99"),
        (group_nodes_command(DIRECTORY_GROUP, 5, ["a"]), "UnknownGroup", "1"),
        (group_nodes_command(16, 5, []), "InvalidNodes", "group 16"),
        (group_nodes_command(16, 5, ["a", "a"]), "InvalidNodes", "different"),
        (group_nodes_command(16, 5, [""]), "InvalidNodes", "names"),
        (msgpack.packb(["group_nodes", 16, 5, [["a"]]]), "InvalidNodes", "names"),
        (msgpack.packb(["group_nodes", 16, 5, "a"]), "InvalidNodes", "names"),
        (msgpack.packb(["group_nodes", 16, None, ["a"]]), "UnknownGroup", ""),
        (msgpack.packb(["group_nodes", [16], 5, ["a"]]), "UnknownGroup", ""),
        (msgpack.packb([]), "InvalidCommand", ""),
        (msgpack.packb({"a": 1}), "InvalidCommand", ""),
        (b"", "InvalidCommand", ""),
    ],
)
def test_a_refusal_names_its_reason_and_changes_nothing(command: bytes, exception: str, words: str) -> None:
    directory = applied(create_service_command(COUNTERS, NODES), register_node_command("a", "127.0.0.1:7001"))
    state = directory.snapshot()
    told: list[int] = []
    directory.subscribe(lambda changed: told.append(changed.map.version))
    with pytest.raises(CommandFailed) as refused:
        directory.apply(command, CONTEXT)
    assert refused.value.exception == exception
    assert words in refused.value.detail
    assert directory.snapshot() == state
    assert told == []


@pytest.mark.parametrize(
    "parts", [["create_service", None], ["group_nodes", 16, 5], ["drop_everything"], [["create_service"], 1, 2]]
)
def test_a_later_versions_command_halts_it_and_is_never_proposed(parts: list[Any]) -> None:
    directory = applied(create_service_command(COUNTERS, NODES))
    state = directory.snapshot()
    command = msgpack.packb(parts)
    assert "the directory has no command" in str(directory.refuses(command))
    with pytest.raises(UnknownCommand) as raised:
        directory.apply(command, CONTEXT)
    assert environmental(raised.value)
    assert directory.snapshot() == state
    assert directory.refuses(create_service_command(COUNTERS, NODES)) is None
    assert directory.refuses(b"") is None  # which is no command of any version, and fails the same everywhere


def test_what_all_nodes_know_may_be_used_and_never_goes_back() -> None:
    def declares(node_id: str, version: int) -> bytes:
        return create_service_command(replace(COUNTERS, version=version), NODES, node_id)

    directory = applied(create_service_command(COUNTERS, NODES), declares("a", 2), declares("b", 3))
    service = directory.map.services["counters"]
    assert service.version == 1
    assert service.behind(2) == ["c"]
    assert service.behind(3) == ["a", "c"]
    version = directory.map.version
    directory.apply(declares("b", 3), CONTEXT)
    assert directory.map.version == version
    directory.apply(declares("c", 2), CONTEXT)
    assert directory.map.version == version + 1
    assert directory.map.services["counters"].version == 2
    with pytest.raises(CommandFailed, match=r"commands of version 2 .* are in use, .* up to version 1"):
        directory.apply(declares("a", 1), CONTEXT)
    directory.apply(declares("b", 2), CONTEXT)  # as far as nobody uses more, a program may be taken back
    directory.apply(create_service_command(replace(COUNTERS, version=2), NODES, "d"), CONTEXT)
    service = directory.map.services["counters"]
    assert (service.version, dict(service.versions)) == (2, {"a": 2, "b": 2, "c": 2, "d": 2})
    assert directory.services["counters"].version == 3
    again = Directory()
    again.restore(directory.snapshot())
    assert again.map == directory.map


def test_nodes_are_registered_and_move() -> None:
    directory = applied(register_node_command("b", "127.0.0.1:7002"), register_node_command("a", "127.0.0.1:7001"))
    directory.apply(register_node_command("b", "127.0.0.1:7003", "http://127.0.0.1:8003"), CONTEXT)
    assert decode_nodes(directory.query(nodes_query())) == {
        "a": NodeInfo("127.0.0.1:7001", ""),
        "b": NodeInfo("127.0.0.1:7003", "http://127.0.0.1:8003"),
    }
    assert directory.map.version == 0


def test_where_a_group_lives_is_what_its_newest_membership_says() -> None:
    directory = applied(create_service_command(COUNTERS, NODES))
    told: list[int] = []
    directory.subscribe(lambda changed: told.append(changed.map.version))
    assert decode_version(directory.apply(group_nodes_command(17, 9, ["b", "c", "d"]), CONTEXT)) == 2
    assert directory.map.groups[17] == ("b", "c", "d")
    assert directory.map.groups[16] == ("a", "b", "c")
    assert told == [2]


def test_an_older_or_repeated_report_changes_nothing() -> None:
    directory = applied(create_service_command(COUNTERS, NODES), group_nodes_command(17, 9, ["b", "c", "d"]))
    state = directory.snapshot()
    for as_of, nodes in ((9, ["b", "c", "d"]), (9, ["a"]), (8, ["a", "b", "c"]), (1, ["a"])):
        assert decode_version(directory.apply(group_nodes_command(17, as_of, nodes), CONTEXT)) == 2
    assert directory.snapshot() == state


def test_a_newer_report_of_the_same_nodes_is_remembered_without_a_new_map() -> None:
    directory = applied(create_service_command(COUNTERS, NODES), group_nodes_command(17, 9, ["b", "c", "d"]))
    assert decode_version(directory.apply(group_nodes_command(17, 12, ["b", "c", "d"]), CONTEXT)) == 2
    directory.apply(group_nodes_command(17, 11, ["a"]), CONTEXT)  # late: of before what is known
    assert directory.map.groups[17] == ("b", "c", "d")


def test_where_a_group_began_stays_and_all_of_it_is_restored() -> None:
    directory = applied(create_service_command(COUNTERS, NODES), group_nodes_command(17, 9, ["b", "c", "d"]))
    founded = applied(create_service_command(COUNTERS, NODES)).groups[17].nodes
    other = Directory()
    other.restore(directory.snapshot())
    assert other.groups == directory.groups
    assert other.groups[17].nodes == founded
    assert other.groups[17].as_of == 9
    assert other.map.groups == directory.map.groups


def test_the_map_is_asked_for_by_version() -> None:
    directory = Directory()
    assert decode_map(directory.query(map_query())) == ShardMap()
    directory.apply(create_service_command(COUNTERS, NODES), CONTEXT)
    assert decode_map(directory.query(map_query())) == directory.map
    assert decode_map(directory.query(map_query(0))) == directory.map
    assert decode_map(directory.query(map_query(1))) is None


@pytest.mark.parametrize("query", [b"", b"\xc1", msgpack.packb(["map"]), msgpack.packb(["map", "1"]), msgpack.packb(7)])
def test_other_questions_are_refused(query: bytes) -> None:
    with pytest.raises(CommandFailed, match="UnknownQuery"):
        Directory().query(query)


def test_subscribers_hear_of_each_change_and_cannot_harm(caplog: pytest.LogCaptureFixture) -> None:
    directory = Directory()
    told: list[int] = []

    def broken(changed: Directory) -> None:
        raise ValueError("broken subscriber")

    directory.subscribe(broken)
    unsubscribe = directory.subscribe(lambda changed: told.append(changed.map.version))
    with caplog.at_level(logging.ERROR):
        directory.apply(register_node_command("a", "127.0.0.1:7001"), CONTEXT)
        directory.apply(register_node_command("a", "127.0.0.1:7001"), CONTEXT)
        directory.apply(create_service_command(COUNTERS, NODES), CONTEXT)
    assert told == [0, 1]
    assert "broken subscriber" in caplog.text
    unsubscribe()
    unsubscribe()
    directory.apply(register_node_command("a", "127.0.0.1:7009"), CONTEXT)
    assert told == [0, 1]


names = st.sampled_from(["counters", "names", "things"])
declarations = st.one_of(
    st.builds(Declaration, names, st.just("hash"), st.integers(1, 5), replicas=st.integers(1, 4)),
    st.builds(Declaration, names, st.just("range"), boundaries=st.just((b"g", b"p")), replicas=st.integers(1, 4)),
)
commands = st.lists(
    st.one_of(
        st.builds(create_service_command, declarations, st.permutations(["a", "b", "c", "d"])),
        st.builds(register_node_command, st.sampled_from(["a", "b"]), st.sampled_from(["127.0.0.1:1", "127.0.0.1:2"])),
        st.builds(admit_command, st.sampled_from(["a", "b"]), st.sampled_from([b"1", b"2"]), st.integers(0, 3)),
        st.binary(max_size=4),
    ),
    max_size=12,
)


def outcomes(directory: Directory, sequence: list[bytes]) -> list[Any]:
    found: list[Any] = []
    for command in sequence:
        try:
            found.append(directory.apply(command, CONTEXT))
        except CommandFailed as refused:
            found.append((refused.exception, refused.detail))
        except UnknownCommand as unknown:  # a node never proposes one, and halts where it finds one
            found.append(str(unknown))
    return found


@given(commands)
def test_the_same_commands_leave_the_same_bytes(sequence: list[bytes]) -> None:
    one, other = Directory(), Directory()
    versions: list[int] = []
    other.subscribe(lambda changed: versions.append(changed.map.version))
    assert outcomes(one, sequence) == outcomes(other, sequence)
    assert one.snapshot() == other.snapshot()


@given(commands, commands)
def test_a_restored_directory_goes_on_as_the_original(before: list[bytes], after: list[bytes]) -> None:
    original = Directory()
    outcomes(original, before)
    restored = applied(register_node_command("left over", "127.0.0.1:3"))
    restored.restore(original.snapshot())
    assert restored.snapshot() == original.snapshot()
    assert outcomes(restored, after) == outcomes(original, after)
    assert restored.snapshot() == original.snapshot()


@given(commands)
def test_every_command_may_be_sent_twice(sequence: list[bytes]) -> None:
    once, twice = Directory(), Directory()
    creations = [command for command in sequence if b"create_service" in command]
    outcomes(once, creations)
    outcomes(twice, [command for command in creations for _ in range(2)])
    assert once.snapshot() == twice.snapshot()


def test_restoring_says_so_and_refuses_other_bytes() -> None:
    source = applied(create_service_command(COUNTERS, NODES))
    directory = Directory()
    told: list[int] = []
    directory.subscribe(lambda changed: told.append(changed.map.version))
    directory.restore(source.snapshot())
    assert told == [1]
    state = directory.snapshot()
    plain = msgpack.unpackb(state)
    for damaged in (b"", b"\xc1", msgpack.packb([]), msgpack.packb([1, *plain[1:]]), msgpack.packb([*plain[:5], None])):
        with pytest.raises(WireError):
            directory.restore(damaged)
    assert directory.snapshot() == state


@pytest.mark.parametrize("answer", [b"", b"\xc1", msgpack.packb("x")])
def test_malformed_answers_are_refused(answer: bytes) -> None:
    for decode in (decode_version, decode_map, decode_nodes):
        with pytest.raises(WireError):
            decode(answer)


def identity(node_id: str, store: bytes, admitted: tuple[str, ...] = ()) -> Identity:
    return Identity(node_id, store, b"cluster", {node_id: store}, admitted)


def test_an_admission_is_counted_once_and_one_that_was_overtaken_is_refused() -> None:
    directory = applied(admit_command("c", b"new", 0), admit_command("c", b"new", 0), admit_command("c", b"new", 7))
    assert (directory.stores, directory.readmissions) == ({"c": b"new"}, 1)
    with pytest.raises(CommandFailed, match="Overtaken: 1 readmissions have happened, not 0"):
        directory.apply(admit_command("b", b"other", 0), CONTEXT)
    directory.apply(admit_command("c", b"newer", 1), CONTEXT)
    with pytest.raises(CommandFailed, match="Overtaken"):
        directory.apply(admit_command("c", b"new", 1), CONTEXT)  # sent again, late
    assert (directory.stores, directory.readmissions) == ({"c": b"newer"}, 2)


@pytest.mark.parametrize("command", [admit_command("", b"s", 0), admit_command("a", b"", 0)])
def test_an_admission_of_nothing_is_refused(command: bytes) -> None:
    with pytest.raises(CommandFailed, match="InvalidAdmission"):
        applied(command)


def test_a_group_is_founded_by_the_stores_alone_that_its_nodes_had_at_the_time() -> None:
    names = Declaration("names", "hash", 1, replicas=3)
    things = Declaration("things", "hash", 1, replicas=3)
    directory = applied(
        create_service_command(names, ["a", "b", "c"]),
        admit_command("c", b"second", 0),
        create_service_command(things, ["a", "b", "c"]),
        admit_command("c", b"third", 1),
    )
    first, second = (directory.groups[group_id] for group_id in sorted(directory.groups))
    founding, admitted = identity("c", b"first"), [identity("c", store, ("c",)) for store in (b"second", b"third")]
    assert [first.founds(one) for one in (founding, *admitted)] == [True, False, False]
    assert [second.founds(one) for one in (founding, *admitted)] == [False, True, False]
    for group in (first, second):
        assert group.founds(identity("a", b"store", ("c",)))
        assert not group.founds(identity("d", b"store"))
    restored = Directory()
    restored.restore(directory.snapshot())
    assert restored.groups == directory.groups
    assert (restored.stores, restored.readmissions) == (directory.stores, 2)
