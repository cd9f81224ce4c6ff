"""Every message comes back from the wire as it was, and what is not a message is a WireError.

Rules of this file: a list of all message types is taken from the module itself, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft import messages
from multiraft.compiled import COMPILED, field_names
from multiraft.errors import InvariantViolation, WireError
from multiraft.gathered import Acks, Appends
from multiraft.membership import pack_membership
from multiraft.messages import (
    Append,
    AppendAnswer,
    AskRemoved,
    Beat,
    Committed,
    CommitTo,
    CreateReplica,
    Form,
    Formed,
    Installing,
    InstallSnapshot,
    LeadAll,
    LeadAsk,
    LeadDelta,
    Message,
    PreVote,
    RemovedReplica,
    Request,
    RequestVote,
    Response,
)
from multiraft.records import COMMANDS, Record, encode_record
from multiraft.singly import singly
from multiraft.transport.frames import encode_message
from multiraft.transport.wire import ID_BYTES_MAX, from_wire, to_wire
from multiraft.types import U64_MAX, founding_membership

KINDS: list[Any] = [kind for _, kind in inspect.getmembers(messages, inspect.isclass) if "CODE" in vars(kind)]

u64 = st.one_of(st.integers(0, U64_MAX), st.sampled_from([0, 1, 255, 256, 2**63, U64_MAX]))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "added": st.lists(st.tuples(u64, u64, u64), max_size=5).map(tuple),
    "led": st.lists(st.tuples(u64, u64, u64), max_size=5).map(tuple),
    "removed": st.lists(st.tuples(u64, u64), max_size=5).map(tuple),
    "body": st.binary(max_size=100),
    "data": st.binary(max_size=100),
    "service": names,
    "method": names,
    "cluster_id": st.binary(max_size=ID_BYTES_MAX),
    "rows": st.lists(st.tuples(u64, u64, u64, u64, u64), max_size=5),
    **dict.fromkeys(("accepted", "granted", "forced", "answer_now", "gone"), st.booleans()),
}


@st.composite
def appends(draw: st.DrawFn) -> Append:
    group_id, after, term = draw(u64), draw(st.integers(0, 2**40)), draw(st.integers(0, 100))
    prev_index, prev_term, records = after, term, []
    for entries in draw(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=4)):
        before, term = term, term + draw(st.integers(0, 3))
        record = encode_record(group_id, after + 1, term, before, COMMANDS, draw(u64), entries)
        records.append(record)
        after = record.last
    leader_term = term + draw(st.integers(0, 3))
    return Append(draw(u64), group_id, prev_index, prev_term, tuple(records), draw(u64), leader_term, draw(u64))


@st.composite
def gathered(draw: st.DrawFn) -> Appends:
    singles = [one for one in draw(st.lists(appends(), min_size=1, max_size=4)) if one.records]
    first = encode_record(16, 8, 3, 3, COMMANDS, 0, [b"x"])
    rows, records = [(1, 16, 7, 3, 1, 3, 2)], [first]
    for one in singles:
        rows.append((one.commit, one.group_id, one.prev_index, one.prev_term, one.sender, one.term, one.to))
        records.append(one.records[0])
    return Appends(records, rows)


@st.composite
def snapshots(draw: st.DrawFn) -> InstallSnapshot:
    index_term = draw(st.integers(1, U64_MAX))
    membership = pack_membership(founding_membership(tuple(draw(st.lists(names, max_size=4, unique=True)))))
    term = draw(st.integers(index_term, U64_MAX))
    index = draw(st.integers(1, U64_MAX))
    data = draw(st.binary(max_size=100))
    return InstallSnapshot(data, draw(u64), index, index_term, membership, draw(u64), term, draw(u64))


@st.composite
def forms(draw: st.DrawFn) -> Form:
    stores = draw(st.dictionaries(names, st.binary(max_size=ID_BYTES_MAX), max_size=4))
    admitted = tuple(name for name in stores if draw(st.booleans()))
    return Form(draw(FIELDS["cluster_id"]), tuple(stores.items()), admitted, draw(u64), draw(u64))


def of_kind(kind: Any) -> st.SearchStrategy[Message]:
    if kind is Append:
        return appends()
    if kind is Appends:
        return gathered()
    if kind is InstallSnapshot:
        return snapshots()
    if kind is CreateReplica:
        return st.builds(CreateReplica, u64, st.integers(1, U64_MAX), names)
    if kind is Form:
        return forms()
    return st.builds(kind, **{name: FIELDS.get(name, u64) for name in field_names(kind)})


def same(value: Any) -> Any:
    """Return a value that is equal for equal messages, which compare by identity."""
    if isinstance(value, tuple | list):
        return tuple(same(item) for item in value)
    if isinstance(value, Record) or type(value) in KINDS:
        return (type(value), *[same(getattr(value, name)) for name in field_names(type(value))])
    return value


def over_the_wire(message: Message) -> Message:
    parts = msgpack.unpackb(encode_message(message))
    assert all(type(part) is bytes for part in parts), "a flat array of byte strings"
    return from_wire(parts)


@given(st.sampled_from(KINDS).flatmap(of_kind))
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert same(over_the_wire(message)) == same(message)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_as_itself(kind: Any) -> None:
    samples: dict[str, Any] = {"records": (), "led": ((1, 2, 3),), "added": ((1, 2, 3),), "removed": ((4, 5),)}
    samples |= {"stores": (("a", b"s"),), "body": b"b", "method": "m", "cluster_id": b"c", "prev_term": 1, "term": 2}
    samples |= {"data": b"d", "index_term": 1, "service": "kv", "stores_admitted": ("a",)}
    samples |= {"membership": pack_membership(founding_membership(("a", "b")))}
    samples |= {"rows": [(1, 2, 3, 4, 5)]}
    if kind is Appends:
        samples |= {"rows": [(1, 16, 7, 3, 1, 3, 2)], "records": [record(8)]}
    fields = {name: samples.get(name, index % 2 == 0) for index, name in enumerate(field_names(kind))}
    numbers = {name: index + 3 for index, name in enumerate(field_names(kind))}
    flags = ("accepted", "granted", "forced", "answer_now", "gone")
    fields |= {name: numbers[name] for name in fields if name not in flags and name not in samples}
    message = kind(**fields)
    found = over_the_wire(message)
    assert type(found) is kind
    assert same(found) == same(message)


def test_codes_are_unique_and_slots_sorted_and_in_the_order_of_arguments() -> None:
    assert len({kind.CODE for kind in KINDS}) == len(KINDS) == 26
    for kind in KINDS:
        if not COMPILED:  # which has no slots
            assert list(kind.__slots__) == sorted(kind.__slots__)
        assert tuple(inspect.signature(kind).parameters) == field_names(kind)


GOLDEN: list[tuple[Message, str]] = [
    (CommitTo(1, 2, 3, 4, 5), "07" + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5))),
    (Committed(1, 2, 3, 4, 5, 6), "0a" + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5, 6))),
    (Installing(True, 1, 2, 3, 4, 5), "0b01" + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5))),
    (AppendAnswer(True, 1, 2, 3, 4, 5, 6, 7), "0601" + "".join(f"{n:016x}" for n in (1, 2, 3, 4, 5, 6, 7))),
    (RequestVote(False, 1, 2, 3, 4, 5, 6), "0300" + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5, 6))),
    (PreVote(1, 2, 3, 4, 5, 6), "01" + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5, 6))),
    (Beat(1, 2, True, 3, 4, 5), "14" + f"{1:016x}{2:016x}01{3:016x}{4:016x}{5:016x}"),
    (LeadAsk(), "18"),
    (Acks([(1, 2, 3, 4, 5)]), "0d," + "".join(f"{number:016x}" for number in (1, 2, 3, 4, 5))),
    (LeadAll(((1, 2, 3),)), f"16,{1:016x}{2:016x}{3:016x}"),
    (LeadDelta(((1, 2, 3),), ((4, 5),)), f"17,{1:016x}{2:016x}{3:016x},{4:016x}{5:016x}"),
    (Form(b"\xcc", (("a", b"\xaa"), ("b", b"\xbb")), ("b",), 3, 4), f"1e{3:016x}{4:016x},cc,61,aa,00,62,bb,01"),
    (Formed(b"\xcc"), "1f,cc"),
    (Request(b"\x01", "m", 2, 3), f"28{2:016x}{3:016x},01,6d"),
    (Response(b"\x01", 2), f"29{2:016x},01"),
    (CreateReplica(1, 2, "kv"), f"1a{1:016x}{2:016x},6b76"),
    (AskRemoved(1, 2), f"1c{1:016x}{2:016x}"),
    (RemovedReplica(1, 2, 3), f"1b{1:016x}{2:016x}{3:016x}"),
    (
        InstallSnapshot(b"\xdd", 1, 2, 3, pack_membership(founding_membership(("a",))), 4, 5, 6),
        "09" + "".join(f"{n:016x}" for n in (1, 2, 3, 4, 5, 6)) + ",dd,99019101909090c2919201a1619002",
    ),
]


@pytest.mark.parametrize(("message", "expected"), GOLDEN)
def test_the_layout_stays_what_nodes_of_other_versions_expect(message: Message, expected: str) -> None:
    assert ",".join(part.hex() for part in to_wire(message)) == expected


def test_an_append_carries_its_records_byte_for_byte() -> None:
    records = tuple(encode_record(16, index, 3, 3, COMMANDS, 0, [b"x"]) for index in (8, 9))
    assert to_wire(Append(1, 16, 7, 3, records, 1, 3, 2))[1:] == tuple(record.raw for record in records)


def test_appends_of_many_groups_carry_rows_of_numbers_and_their_records() -> None:
    rows = [(1, 16, 7, 3, 1, 3, 2), (2, 17, 7, 3, 1, 3, 2)]
    records = [record(8), record(8, group_id=17)]
    numbers = "".join(f"{number:016x}" for row in rows for number in row)
    assert [part.hex() for part in to_wire(Appends(records, rows))] == [
        "0c", numbers, records[0].raw.hex(), records[1].raw.hex()
    ]  # fmt: skip


def gathered_parts(*records: Record, commit: int = 1, prev_index: int = 7, prev_term: int = 3, term: int = 3) -> Any:
    row = (commit, 16, prev_index, prev_term, 1, term, 2)
    return list(to_wire(Appends(list(records), [row] * len(records))))


def test_what_is_gathered_says_the_same_singly() -> None:
    first, second = record(8), record(8, group_id=17)
    rows = [(1, 16, 7, 3, 1, 3, 2), (2, 17, 7, 3, 4, 3, 5)]
    singles = singly([LeadAsk(), Appends([first, second], rows), Acks([(16, 9, 2, 3, 1)])])
    expected = [
        LeadAsk(),
        Append(1, 16, 7, 3, (first,), 1, 3, 2),
        Append(2, 17, 7, 3, (second,), 4, 3, 5),
        AppendAnswer(True, 16, 0, 0, 9, 2, 3, 1),
    ]
    assert [same(one) for one in singles] == [same(one) for one in expected]


def append_parts(*records: Record, prev_index: int = 7, prev_term: int = 3, term: int = 3) -> list[Any]:
    return list(to_wire(Append(1, 16, prev_index, prev_term, records, 1, term, 2)))


def record(first: int, term: int = 3, prev_term: int = 3, group_id: int = 16) -> Record:
    return encode_record(group_id, first, term, prev_term, COMMANDS, 0, [b"x"])


@pytest.mark.parametrize(
    "parts",
    [
        None,
        (),
        b"\x18",
        [],
        [24],
        [b""],
        ["\x18"],
        [b"\x00"],
        [b"\xff"],
        [b"\x18\x00"],  # a head too long
        [b"\x07" + bytes(39)],  # a head too short
        [b"\x18", b""],  # a part too many
        [b"\x16"],  # a part too few
        [b"\x16", bytes(23)],  # half a row
        [b"\x16", 1],
        [b"\x17", bytes(24), bytes(15)],
        [b"\x1e"],
        [b"\x1e", b"c", b"a"],  # a node without a store
        [b"\x1e", b"c", b"", b"s"],  # a node without a name
        [b"\x1e", b"c", b"\xff", b"s"],  # a name that is no text
        [b"\x1e", b"c", b"a" * 256, b"s"],
        [b"\x1e", b"c", b"a", bytes(ID_BYTES_MAX + 1)],
        [b"\x1f", bytes(ID_BYTES_MAX + 1)],
        [b"\x28" + bytes(16), b"body", b""],
        [b"\x28" + bytes(16), None, b"m"],
        [b"\x29" + bytes(8), "text"],
        append_parts(record(9)),  # does not follow prev_index
        append_parts(record(8), record(10)),  # a gap
        append_parts(record(8), record(8)),  # an overlap
        append_parts(record(8, prev_term=2)),  # of another history
        append_parts(record(8, term=4)),  # of a later term than its leader
        append_parts(record(8, group_id=17)),  # of another group
        gathered_parts(),  # nothing
        gathered_parts(record(9)),
        gathered_parts(record(8, prev_term=2)),
        gathered_parts(record(8, term=4)),
        gathered_parts(record(8, group_id=17)),
        [*gathered_parts(record(8)), record(8).raw],  # more records than rows
        gathered_parts(record(8))[:2],
        [*gathered_parts(record(8))[:2], 5],
        [*gathered_parts(record(8))[:2], record(8).raw[:-1]],
        [b"\x0c\x00", *gathered_parts(record(8))[1:]],
        [b"\x0d"],
        [b"\x0d", bytes(39)],  # half a row
        [*append_parts(), record(8).raw[:-1]],
        [*append_parts(), bytes(record(8).raw[:-1]) + b"y"],
        [*append_parts(), b""],
        [*append_parts(), 5],
    ],
)
def test_what_is_no_message_is_a_wire_error(parts: Any) -> None:
    with pytest.raises(WireError):
        from_wire(parts)


@given(st.recursive(st.none() | st.integers() | st.binary(max_size=80) | st.text(max_size=5), st.lists))
def test_any_value_is_a_message_or_a_wire_error(value: Any) -> None:
    try:
        message = from_wire(value)
    except WireError:
        return
    assert same(over_the_wire(message)) == same(message)


@given(st.sampled_from(KINDS).flatmap(of_kind), st.data())
def test_a_message_with_one_byte_changed_is_a_message_or_a_wire_error(message: Message, data: st.DataObject) -> None:
    parts: list[Any] = list(to_wire(message))
    which = data.draw(st.sampled_from([index for index, part in enumerate(parts) if part]))
    at = data.draw(st.integers(0, len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[at] ^= data.draw(st.integers(1, 255))
    parts[which] = bytes(changed)
    try:
        found = from_wire(parts)
    except WireError:
        return
    assert type(found) in KINDS
    assert not (type(message) is Append and which > 0), "a damaged record never passes"
    assert not (type(message) is Appends and which > 1), "a damaged record never passes"


@pytest.mark.parametrize("number", [-1, U64_MAX + 1])
def test_a_message_that_must_not_exist_is_not_sent(number: int) -> None:
    for message in (CommitTo(number, 1, 1, 1, 1), LeadAll(((1, number, 1),)), Response(b"", number)):
        with pytest.raises(InvariantViolation):
            to_wire(message)
