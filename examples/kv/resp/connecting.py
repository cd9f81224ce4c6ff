"""The commands about the connection and the server: PING, HELLO, AUTH, CLIENT, COMMAND, SELECT, INFO and their kin.

Rules of this file: no I/O; what is told of the server is told by the place (client.py).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Final

from examples.kv.resp.client import Client
from examples.kv.resp.command import Command, Refused
from examples.kv.resp.parser import Request
from examples.kv.resp.replies import RESP2, RESP3, Answer, Simple, Verbatim
from examples.kv.resp.strings import number_of

VERSION: Final = "7.0.15"
"""The version of Redis whose words are spoken here; clients decide by it what they may ask for."""
_NAME_LIMIT: Final = 256
_WRONG_PASSWORD: Final = "WRONGPASS invalid username-password pair or user is disabled."


def _ping(client: Client, request: Request) -> Answer:
    if len(request) > 2:
        raise Refused("ERR wrong number of arguments for 'ping' command")
    return request[1] if len(request) == 2 else Simple("PONG")


def _echo(client: Client, request: Request) -> Answer:
    return request[1]


def _quit(client: Client, request: Request) -> Answer:
    client.leaves = True
    return True


def _select(client: Client, request: Request) -> Answer:
    if number_of(request[1]) != 0:
        raise Refused("ERR DB index is out of range")
    return True


def _reset(client: Client, request: Request) -> Answer:
    client.transaction = None
    client.watched.clear()
    client.replies = RESP2
    client.name = ""
    client.known = client.place.password is None
    return Simple("RESET")


# ------------------------------------------------------------------------------------------------- who is speaking


def _check(client: Client, user: bytes, password: bytes) -> None:
    expected = client.place.password
    fits = expected is not None and hmac.compare_digest(password, expected.encode())
    if user != b"default" or not (fits or expected is None):
        raise Refused(_WRONG_PASSWORD)
    client.known = True


def _auth(client: Client, request: Request) -> Answer:
    if len(request) > 3:
        raise Refused("ERR syntax error")
    if len(request) == 2 and client.place.password is None:
        raise Refused(
            "ERR AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    _check(client, request[1] if len(request) == 3 else b"default", request[-1])
    return True


def _hello(client: Client, request: Request) -> Answer:
    replies = client.replies
    at = 1
    if len(request) > 1:
        try:
            version = number_of(request[1])
        except Refused:
            raise Refused("ERR Protocol version is not an integer or out of range") from None
        if version not in (2, 3):
            raise Refused("NOPROTO unsupported protocol version")
        replies = RESP3 if version == 3 else RESP2
        at = 2
    name: str | None = None
    while at < len(request):
        word = request[at].upper()
        if word == b"AUTH" and at + 2 < len(request):
            _check(client, request[at + 1], request[at + 2])
            at += 3
        elif word == b"SETNAME" and at + 1 < len(request):
            name = _name(request[at + 1])
            at += 2
        else:
            raise Refused(f"ERR Syntax error in HELLO option '{request[at].decode('utf-8', 'replace')}'")
    if not client.known:
        raise Refused(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
            "<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
            "same time"
        )
    if name is not None:
        client.name = name
    client.replies = replies
    return {
        b"server": b"redis",
        b"version": VERSION.encode(),
        b"proto": replies.version,
        b"id": client.number,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


def _name(text: bytes) -> str:
    if len(text) > _NAME_LIMIT:
        raise Refused(f"ERR a name has at most {_NAME_LIMIT} bytes here")
    if not all(0x21 <= byte <= 0x7E for byte in text):
        raise Refused("ERR Client names cannot contain spaces, newlines or special characters.")
    return text.decode("ascii")


# ----------------------------------------------------------------------------------------------------------- CLIENT


def _client(client: Client, request: Request) -> Answer:
    what = request[1].upper()
    handler, count = _CLIENT.get(what, (None, 0))
    if handler is None:
        raise Refused(f"ERR unknown subcommand '{request[1].decode('utf-8', 'replace')[:128]}'. Try CLIENT HELP.")
    if count and len(request) != count:
        raise Refused(f"ERR wrong number of arguments for 'client|{what.decode().lower()}' command")
    return handler(client, request)


def _set_name(client: Client, request: Request) -> Answer:
    client.name = _name(request[2])
    return True


def _set_info(client: Client, request: Request) -> Answer:
    option, text = request[2].upper(), _name(request[3])
    if option == b"LIB-NAME":
        client.library = text
    elif option == b"LIB-VER":
        client.library_version = text
    else:
        raise Refused(f"ERR Unrecognized option '{request[2].decode('utf-8', 'replace')}'")
    return True


def _list(client: Client, request: Request) -> Answer:
    return Verbatim("".join(_line(other) + "\n" for other in client.place.clients()))


def _line(client: Client) -> str:
    queued = -1 if client.transaction is None else len(client.transaction.queued)
    told = {
        "id": client.number,
        "addr": client.address,
        "laddr": client.own_address,
        "name": client.name,
        "age": int(time.monotonic() - client.since_s),
        "flags": "x" if client.transaction is not None else "N",
        "db": 0,
        "multi": queued,
        "watch": len(client.watched),
        "cmd": client.last.lower(),
        "user": "default",
        "resp": client.replies.version,
        "lib-name": client.library,
        "lib-ver": client.library_version,
    }
    return " ".join(f"{name}={value}" for name, value in told.items())


def _client_help(client: Client, request: Request) -> Answer:
    return [Simple("CLIENT knows here:"), *[Simple(name.decode()) for name in _CLIENT]]


_CLIENT: Final[dict[bytes, tuple[Callable[[Client, Request], Answer], int]]] = {
    b"GETNAME": (lambda client, request: client.name.encode() or None, 2),
    b"HELP": (_client_help, 2),
    b"ID": (lambda client, request: client.number, 2),
    b"INFO": (lambda client, request: Verbatim(_line(client) + "\n"), 2),
    b"LIST": (_list, 2),
    b"NO-EVICT": (lambda client, request: True, 3),
    b"SETINFO": (_set_info, 4),
    b"SETNAME": (_set_name, 3),
}


# ---------------------------------------------------------------------------------------------- about the commands


def _describe(command: Command) -> Answer:
    first, last, step = command.keys
    flags = [Simple(flag) for flag in command.flags if flag != "no_multi"]
    return [command.name.encode(), command.arity, flags, first, last, step, [], [], [], []]


def _command(client: Client, request: Request) -> Answer:
    table = client.place.table
    what = request[1].upper() if len(request) > 1 else b""
    names = [name.decode("utf-8", "surrogateescape").lower() for name in request[2:]]
    if not what:
        return [_describe(command) for command in table.values()]
    if what == b"COUNT":
        return len(table)
    if what == b"LIST":
        return [name.encode() for name in table]
    if what == b"INFO":
        return [_describe(table[name]) if name in table else None for name in names or table]
    if what == b"DOCS":
        return {
            name.encode(): {b"summary": b"as in Redis, but for what docs/kv.md says", b"since": VERSION.encode()}
            for name in names or table
            if name in table
        }
    if what == b"GETKEYS" and len(request) > 2:
        return _keys(table.get(names[0]), request[2:])
    raise Refused(f"ERR unknown subcommand '{request[1].decode('utf-8', 'replace')[:128]}'. Try COMMAND HELP.")


def _keys(command: Command | None, request: Request) -> Answer:
    if command is None:
        raise Refused("ERR Invalid command specified")
    first, last, step = command.keys
    if not first:
        raise Refused("ERR The command has no key arguments")
    try:
        command.check(request)
    except Refused:
        raise Refused("ERR Invalid number of arguments specified for command") from None
    return request[first : len(request) + last + 1 if last < 0 else last + 1 : step]


def _config(client: Client, request: Request) -> Answer:
    if request[1].upper() != b"GET" or len(request) < 3:
        raise Refused("ERR CONFIG here knows only GET; a node is configured by its options")
    asked = [name.lower() for name in request[2:]]
    return {name: value for name, value in _CONFIG.items() if name in asked or b"*" in asked}


_CONFIG: Final = {b"appendfsync": b"always", b"appendonly": b"yes", b"databases": b"1", b"save": b""}
"""What programs look up: nothing is acknowledged that is not synced."""


def _info(client: Client, request: Request) -> Answer:
    facts = client.place.facts()
    asked = {section.decode("utf-8", "surrogateescape").lower() for section in request[1:]}
    if not asked or asked & {"all", "default", "everything"}:
        asked = set(facts)
    sections = [
        f"# {name.capitalize()}\r\n" + "".join(f"{fact}:{value}\r\n" for fact, value in section.items())
        for name, section in facts.items()
        if name in asked
    ]
    return Verbatim("\r\n".join(sections))


_FLAGS: Final = ("noscript", "loading", "stale", "fast")

COMMANDS: Final = (
    Command("ping", -1, ("fast",), act=_ping),
    Command("echo", 2, ("fast",), act=_echo),
    Command("quit", -1, (*_FLAGS, "no_auth"), act=_quit, at_once=True, alone=True, last=True),
    Command("select", 2, ("loading", "stale", "fast"), act=_select),
    Command("reset", 1, (*_FLAGS, "no_auth"), act=_reset, at_once=True, alone=True),
    Command("auth", -2, (*_FLAGS, "no_auth"), act=_auth),
    Command("hello", -1, (*_FLAGS, "no_auth"), act=_hello, alone=True),
    Command("client", -2, ("noscript", "loading", "stale"), act=_client),
    Command("command", -1, ("loading", "stale"), act=_command),
    Command("config", -2, ("admin", "noscript", "loading", "stale"), act=_config),
    Command("info", -1, ("loading", "stale"), act=_info),
)
