"""The class that users write: declared, called as a plain object, and applied from bytes."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.adapting import adapt
from multiraft.engine.machine import Context, Machine, UnknownCommand, command_failed, environmental, pieces_of
from multiraft.errors import CommandFailed, InvalidRequest
from multiraft.methods import Method
from multiraft.statemachine import BytesStateMachine, StateMachine, command, methods_of, query, schema_of

CONTEXT = Context(index=7, term=2, group_id=16, time_ms=1_700_000_000_000)


@dataclass(frozen=True)
class Stock:
    count: int
    places: list[str]


class Shop(StateMachine):
    """Something of every kind of signature."""

    def __init__(self) -> None:
        self.stock: dict[str, Stock] = {}
        self.seen: list[int] = []

    @command(key="name")
    def add(self, name: str, count: int = 1, *, place: str = "shelf") -> Stock:
        """Add to the stock."""
        old = self.stock.get(name, Stock(0, []))
        self.stock[name] = Stock(old.count + count, [*old.places, place])
        return self.stock[name]

    @command(key="name")
    def remove(self, name: str) -> None:
        if name not in self.stock:
            raise KeyError(name)
        del self.stock[name]

    @command(key="name")
    def stamp(self, name: bytes) -> int:
        self.seen.append(self.context.index)
        return self.context.time_ms

    @command(key="number")
    def lie(self, number: int) -> str:
        return number  # type: ignore[return-value]

    @query(key="name")
    def find(self, name: str) -> Stock | None:
        return self.stock.get(name)

    @query(key=None)
    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self.stock if name.startswith(prefix)]


def encode(machine: type[StateMachine], method: str, /, *args: Any, **kwargs: Any) -> bytes:
    return methods_of(machine)[method].encode_call(args, kwargs)[1]


def decode(machine: type[StateMachine], name: str, raw: bytes) -> Any:
    return methods_of(machine)[name].decode_result(raw)


# ---------------------------------------------------------------------------------------------- an ordinary class


def test_on_an_instance_a_command_is_the_method() -> None:
    shop = Shop()
    assert shop.add("nail", 3, place="bin") == Stock(3, ["bin"])
    assert shop.find("nail") == Stock(3, ["bin"])
    assert shop.names() == ["nail"]
    assert Shop.add.__class__.__name__ == "RemoteCommand"


def test_the_context_is_no_part_of_the_state() -> None:
    shop = Shop()
    with pytest.raises(RuntimeError, match="only while a command is applied"):
        shop.stamp(b"x")
    shop.context = CONTEXT
    assert shop.stamp(b"x") == CONTEXT.time_ms
    assert shop.seen == [7]
    assert vars(shop) == {"stock": {}, "seen": [7]}


# ----------------------------------------------------------------------------------------------- at class definition


def method(annotations: str, body: str = "return None") -> Callable[..., Any]:
    """Make a function from the text of its parameters and result, as a class body would."""
    names: dict[str, Any] = {"Any": Any, "Stock": Stock}
    exec(f"def declared({annotations}: {body}", names)
    made = names["declared"]
    assert callable(made)
    return typing.cast("Callable[..., Any]", made)


def declare(function: Callable[..., Any], key: str = "name") -> None:
    type("Declared", (StateMachine,), {"declared": command(key=key)(function)})


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ("self, nam: str) -> None", "key='name' is not one of its parameters (there are: 'nam')"),
        ("self) -> None", "there are: none"),
        ("self, name) -> None", "parameter 'name' needs a type annotation"),
        ("self, name: str)", "write -> None"),
        ("self, name: str, *rest: int) -> None", "*rest cannot be carried; name every parameter"),
        ("self, name: str, **rest: int) -> None", "**rest cannot be carried"),
        ("self, name: str, what: set[int]) -> None", "parameter 'what': set[int] cannot be carried; use list"),
        ("self, name: str, what: Any) -> None", "parameter 'what'"),
        ("self, name: str, what: 'Missing') -> None", "'Missing' is not defined; an annotation must name something"),
        ("self, name: str, count: int = 'one') -> None", "parameter 'count': its default does not fit its type"),
        ("self, name: str) -> tuple[int, int]", "its result: tuple[int, int] cannot be carried"),
        ("self, name: float) -> None", "a routing key must be str, bytes or int, not float"),
        ("self, name: str | None) -> None", "a routing key must be str, bytes or int"),
        ("*, name: str) -> None", "the first parameter must be self"),
    ],
)
def test_a_declaration_that_cannot_work_fails_at_class_definition(annotations: str, words: str) -> None:
    with pytest.raises(TypeError) as refused:
        declare(method(annotations))
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["_hidden", "apply", "context", "query", "restore", "snapshot"])
def test_reserved_names_are_refused(name: str) -> None:
    function = method("self, name: str) -> None")
    function.__name__ = name
    with pytest.raises(TypeError, match="reserved"):
        command(key="name")(function)


def test_what_cannot_run_in_one_step_is_refused() -> None:
    async def later(self: Any, name: str) -> None: ...

    def many(self: Any, name: str) -> typing.Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="cannot be async"):
        command(key="name")(later)
    with pytest.raises(TypeError, match="cannot be a generator"):
        query(key="name")(many)
    with pytest.raises(TypeError, match="goes on a plain method"):
        command(key="name")(typing.cast(Any, 3))
    with pytest.raises(TypeError, match="key=None is not one of its parameters"):
        command(key=typing.cast(Any, None))(method("self, name: str) -> None"))


def test_a_subclass_inherits_replaces_and_adds() -> None:
    class BigShop(Shop):
        @command(key="name")
        def remove(self, name: str) -> None:
            self.stock.pop(name, None)

        @query(key=None)
        def count(self) -> int:
            return len(self.stock)

    assert {"add", "remove", "count", "names"} <= methods_of(BigShop).keys()
    assert "count" not in methods_of(Shop)
    machine = adapt(BigShop())
    assert machine.apply(encode(BigShop, "remove", "absent"), CONTEXT) == msgpack.packb(None)
    with pytest.raises(TypeError, match="add replaces a command by something else"):
        type("Bad", (Shop,), {"add": lambda self: None})
    with pytest.raises(TypeError, match="under another name"):
        type("Bad", (Shop,), {"other": vars(Shop)["add"]})


def test_commands_need_the_base_class() -> None:
    class Loose:
        @command(key="name")
        def add(self, name: str) -> int:
            return 1

    with pytest.raises(TypeError, match="must derive from StateMachine"):
        _ = Loose.add


def test_the_schema_is_plain_and_complete() -> None:
    schema = schema_of(Shop)
    stock = "Stock(count: int, places: list[str])"
    parameters = [["name", "str", False], ["count", "int", True], ["place", "str", True]]
    assert schema["add"] == ["command", "name", parameters, stock]
    assert schema["names"] == ["query", None, [["prefix", "str", True]], "list[str]"]
    assert msgpack.unpackb(msgpack.packb(schema)) == schema
    assert schema_of(BytesStateMachine) == {}


# ----------------------------------------------------------------------------------------------------- as bytes


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("nail", 1), {"place": "shelf"}),
        (("nail",), {}),
        ((), {"name": "nail"}),
        (("nail",), {"place": "shelf", "count": 1}),
        ((), {"place": "shelf", "count": 1, "name": "nail"}),
    ],
)
def test_one_call_has_one_encoding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert msgpack.unpackb(encode(Shop, "add", *args, **kwargs)) == ["add", "nail", 1, "shelf"]


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "words"),
    [
        ("add", (), {}, "missing a required argument: 'name'"),
        ("add", ("nail", 1, "shelf"), {}, "too many positional arguments"),
        ("add", ("nail",), {"name": "nail"}, "multiple values for argument 'name'"),
        ("add", ("nail",), {"amount": 1}, "got an unexpected keyword argument 'amount'"),
        ("add", ("nail", "1"), {}, "Shop.add: parameter 'count': expected int, got str '1'"),
        ("add", ("nail",), {"place": None}, "Shop.add: parameter 'place': expected str"),
        ("add", (b"nail",), {}, "Shop.add: parameter 'name': expected str, got bytes"),
        ("add", ("nail", 1 << 63), {}, "Shop.add: parameter 'count': expected an int of 64 bits"),
        ("add", ("\ud800",), {}, "surrogates not allowed"),
        ("lie", ("1",), {}, "Shop.lie: parameter 'number'"),
    ],
)
def test_arguments_are_checked_before_anything_is_sent(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode(Shop, name, *args, **kwargs)
    assert words in str(refused.value)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_keys_of_ints_keep_their_order(one: int, other: int) -> None:
    method: Method = methods_of(Shop)["lie"]
    keys = [method.encode_call((number,), {})[0] for number in (one, other)]
    assert (keys[0] < keys[1]) == (one < other)
    assert len(keys[0]) == 8


def test_keys_of_text_and_bytes() -> None:
    assert methods_of(Shop)["find"].encode_call(("Nägel",), {})[0] == "Nägel".encode()
    assert methods_of(Shop)["stamp"].encode_call((b"\xff\x00",), {})[0] == b"\xff\x00"
    assert methods_of(Shop)["names"].encode_call((), {})[0] == b""


def test_apply_runs_the_command_with_its_context() -> None:
    shop = Shop()
    machine: Machine = adapt(shop)
    assert decode(Shop, "add", machine.apply(encode(Shop, "add", "nail", 2, place="bin"), CONTEXT)) == Stock(2, ["bin"])
    assert decode(Shop, "stamp", machine.apply(encode(Shop, "stamp", b"x"), CONTEXT)) == CONTEXT.time_ms
    assert decode(Shop, "find", machine.query(encode(Shop, "find", "nail"))) == Stock(2, ["bin"])
    assert decode(Shop, "names", machine.query(encode(Shop, "names"))) == ["nail"]
    with pytest.raises(RuntimeError, match="only while"):
        _ = shop.context


def test_no_object_is_shared_between_a_result_and_the_machine() -> None:
    shop = Shop()
    machine = adapt(shop)
    result = decode(Shop, "add", machine.apply(encode(Shop, "add", "nail"), CONTEXT))
    result.places.append("elsewhere")
    assert shop.stock["nail"].places == ["shelf"]


def test_what_a_command_raises_leaves_no_context_behind() -> None:
    shop = Shop()
    machine = adapt(shop)
    with pytest.raises(KeyError):
        machine.apply(encode(Shop, "remove", "nail"), CONTEXT)
    with pytest.raises(RuntimeError, match="only while"):
        _ = shop.context


@pytest.mark.parametrize(
    ("raw", "exception"),
    [
        (b"", "InvalidCommand"),
        (b"\xc1", "InvalidCommand"),
        (msgpack.packb("add"), "InvalidCommand"),
        (msgpack.packb([]), "InvalidCommand"),
        (msgpack.packb([1]), "InvalidCommand"),
        (msgpack.packb(["add", "nail"]) + b"\x00", "InvalidCommand"),
        (b"\x92\xa3add\xa1\xff", "InvalidCommand"),
        (msgpack.packb(["add"]), "InvalidArguments"),
        (msgpack.packb(["add", 5]), "InvalidArguments"),
        (msgpack.packb(["lie", 5]), "InvalidResult"),
    ],
)
def test_bytes_that_are_no_command_fail_the_same_everywhere(raw: bytes, exception: str) -> None:
    shop = Shop()
    with pytest.raises(CommandFailed) as failed:
        adapt(shop).apply(raw, CONTEXT)
    assert failed.value.exception == exception
    assert shop.stock == {}


@pytest.mark.parametrize("count", [4, 20])
def test_more_arguments_than_the_class_knows_are_of_another_release(count: int) -> None:
    machine = adapt(Shop())
    raw = msgpack.packb(["add", *range(count)])
    assert machine.refuses(raw) == f"Shop.add takes 3 arguments, not {count}: another release of it may"
    with pytest.raises(UnknownCommand):
        machine.apply(raw, CONTEXT)


@pytest.mark.parametrize("name", ["sell", "find", "__init__", "n" * 32, "n" * 300])
def test_a_command_that_the_class_does_not_know_halts_it_and_is_never_proposed(name: str) -> None:
    """Another release may know it, and have another result. `find` is a query."""
    shop = Shop()
    machine = adapt(shop)
    raw = msgpack.packb([name, "nail"])
    assert str(machine.refuses(raw)).startswith(f"Shop has no command '{name[:60]}")
    with pytest.raises(UnknownCommand) as raised:
        machine.apply(raw, CONTEXT)
    assert environmental(raised.value)
    assert shop.stock == {}


@pytest.mark.parametrize(
    "raw",
    [
        msgpack.packb(["add", "nail", 1]),
        msgpack.packb(["add"]),  # too few arguments, and wrong ones, fail the same everywhere
        b"\xdc\x00\x02\xd9\x03add\xa1n",  # the same, at greater length than needed
        b"",
        b"\xc1",
        b"\x92\xa2\xff\xff\xa1n",
        msgpack.packb(5),
    ],
)
def test_what_may_be_proposed(raw: bytes) -> None:
    assert adapt(Shop()).refuses(raw) is None


def test_commands_are_described_as_they_are_written() -> None:
    machine = adapt(Shop())
    assert machine.describe(msgpack.packb(["add", "nail", 1, None])) == "command add('nail', 1, None)"
    assert machine.describe(b"\xc1..") == "3 bytes that are no command"
    assert machine.describe(msgpack.packb(["it's", "a'b"])) == "command it's(\"a'b\")"


def test_a_command_is_no_query() -> None:
    with pytest.raises(CommandFailed, match="UnknownQuery: Shop has no query 'add'"):
        adapt(Shop()).query(encode(Shop, "add", "nail"))


def test_a_log_from_before_a_parameter_was_added_is_read() -> None:
    machine = adapt(Shop())
    assert decode(Shop, "add", machine.apply(msgpack.packb(["add", "nail"]), CONTEXT)) == Stock(1, ["shelf"])
    assert decode(Shop, "add", machine.apply(msgpack.packb(["add", "nail", 2]), CONTEXT)).count == 3


class Echo(BytesStateMachine):
    def __init__(self) -> None:
        self.last = 0

    def apply(self, command: bytes) -> bytes:
        self.last = self.context.index
        return command if command else typing.cast(bytes, None)

    def query(self, query: bytes) -> bytes:
        return b"%d" % self.last


def test_a_machine_of_bytes_gets_them_as_they_are() -> None:
    machine = adapt(Echo())
    assert machine.apply(b"\xff\x00", CONTEXT) == b"\xff\x00"
    assert machine.query(b"") == b"7"
    with pytest.raises(CommandFailed, match=r"Echo.apply: expected bytes, got NoneType"):
        machine.apply(b"", CONTEXT)
    with pytest.raises(NotImplementedError, match="must define apply"):
        adapt(BytesStateMachine()).apply(b"", CONTEXT)
    with pytest.raises(TypeError, match="must derive from StateMachine or BytesStateMachine"):
        adapt(typing.cast(Any, object()))


# ---------------------------------------------------------------------------------------------------- snapshots


class Tally(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.order: list[str] = []

    @command(key="name")
    def add(self, name: str) -> int:
        self.values[name] = self.values.get(name, 0) + 1
        self.order.append(name)
        return self.values[name]


class Own(Tally):
    """Saves itself in its own way."""

    def snapshot(self) -> bytes:
        return b",".join(name.encode() for name in self.order)

    def restore(self, state: bytes) -> None:
        Tally.__init__(self)
        for name in state.decode().split(","):
            self.add(name)


def saved(machine: StateMachine | BytesStateMachine) -> bytes:
    return b"".join(pieces_of(adapt(machine).snapshot()))


@pytest.mark.parametrize("machine", [Tally, Own])
def test_a_machine_is_saved_and_restored_by_its_attributes_or_in_its_own_way(machine: type[Tally]) -> None:
    first, second = machine(), machine()
    for name in ("a", "b", "a"):
        adapt(first).apply(msgpack.packb(["add", name]), CONTEXT)
    second.add("z")
    adapt(second).restore(saved(first))
    assert vars(second) == vars(first) == {"values": {"a": 2, "b": 1}, "order": ["a", "b", "a"]}
    assert saved(second) == saved(first)
    assert second.add("a") == 3
    assert first.values["a"] == 2


def test_a_machine_with_other_attributes_says_which_and_what_to_do() -> None:
    shop = Shop()
    shop.add("x")
    with pytest.raises(TypeError, match=r"Shop.stock\['x'\]: a Stock cannot be .* define snapshot\(\) and restore\(\)"):
        saved(shop)


def test_a_machine_of_bytes_has_to_say_its_state_itself() -> None:
    with pytest.raises(NotImplementedError, match="Echo does not define snapshot"):
        saved(Echo())
    with pytest.raises(NotImplementedError, match="Echo does not define restore"):
        adapt(Echo()).restore(b"")


# ------------------------------------------------------------------------------------------- whose fault it is


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (RecursionError(), True),
        (asyncio.CancelledError(), True),
        (KeyboardInterrupt(), True),
        (SystemExit(), True),
        (ExceptionGroup("two", [ValueError(), ExceptionGroup("inner", [OSError()])]), True),
        (ExceptionGroup("two", [ValueError(), KeyError()]), False),
        (ValueError(), False),
        (RuntimeError(), False),
        (StopIteration(), False),
        (CommandFailed("X", ""), False),
    ],
)
def test_the_environment_s_failures_are_told_from_the_command_s(failure: BaseException, expected: bool) -> None:
    assert environmental(failure) is expected


def test_what_a_command_raised_reaches_its_caller_in_bounded_words() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert str(command_failed(KeyError("nail"))) == "KeyError: 'nail'"
    assert command_failed(Silent()).detail == "(its text cannot be had: ValueError)"
    assert len(command_failed(ValueError("x" * 5_000)).detail) == 1_000
    already = CommandFailed("InvalidResult", "x")
    assert command_failed(already) is already
