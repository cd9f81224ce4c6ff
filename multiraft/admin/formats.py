"""How single values look on a terminal: ages, sizes, times, and the entries of a log.

Rules of this file: pure functions of their arguments; whatever comes from outside (names, keys, messages) passes
`printable`, so that no control character of a stored value ever reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgpack

UNKNOWN: Final = "-"
"""Shown for what nobody knows; a mark rather than nothing, so that columns can be counted."""
_CUT: Final = "…"


def printable(value: object) -> str:
    """Return `value` as one line without control characters (shown as \\x1b and the like); None as UNKNOWN."""
    if value is None:
        return UNKNOWN
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def cut(text: str, width: int) -> str:
    """Return `text`, shortened to `width` characters with a mark at its end; 0 means no limit."""
    return text if not width or len(text) <= width else text[: max(0, width - 1)] + _CUT


def seconds(value: float | None) -> str:
    """Return a duration in the largest unit that leaves two digits of meaning: 0.04s, 12.3s, 5m12s, 3h04m, 2d03h."""
    if value is None:
        return UNKNOWN
    if value < 60:
        return f"{value:.2f}s" if value < 1 else f"{value:.1f}s"
    whole = int(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def size(value: float | None) -> str:
    """Return a number of bytes in binary units: 812B, 4.0KiB, 17.5MiB."""
    if value is None:
        return UNKNOWN
    if value < 1024:
        return f"{value:.0f}B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f}{unit}"
    return f"{value / 1024:.1f}TiB"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f}%"


def milliseconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}ms"


def moment(stamp_ms: int | None) -> str:
    """Return a stamp (milliseconds since 1970) as UTC; UNKNOWN for none or one that no calendar holds."""
    if not stamp_ms:
        return UNKNOWN
    try:
        when = datetime.fromtimestamp(stamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return UNKNOWN
    return when.strftime("%Y-%m-%d %H:%M:%S.") + f"{stamp_ms % 1000:03d}Z"


def entry_text(kind: str, entry: bytes, cut_off: bool = False) -> str:
    """Return one log entry in words: a command as `method(arg, ...)`, anything else that is msgpack as its value,

    and bytes that are not as hex. `cut_off`: only the beginning of the entry is there.
    """
    if not entry:
        return UNKNOWN if not cut_off else _CUT
    if cut_off:
        return (_call_begun(entry) if kind == "command" else "") or f"0x{entry.hex()}{_CUT}"
    value, whole = _unpacked(entry)
    if whole and kind == "command" and isinstance(value, list) and value and isinstance(value[0], str):
        return printable(f"{value[0]}({', '.join(map(_literal, value[1:]))})")
    if whole and (kind != "command" or isinstance(value, (list, dict))):
        return printable(_literal(value))
    return "0x" + entry.hex()


def _call_begun(entry: bytes) -> str:
    """Return the method and those arguments of a command that are whole in its first bytes; empty if it is none."""
    values = _leading_values(entry)
    if not values or not isinstance(values[0], str):
        return ""
    return printable(f"{values[0]}({', '.join([*map(_literal, values[1:]), _CUT])}")


def _leading_values(entry: bytes) -> list[Any]:
    """Return the values at the beginning of a msgpack array whose end may be missing."""
    stream = msgpack.Unpacker(strict_map_key=False)
    stream.feed(entry)
    values: list[Any] = []
    try:
        for _ in range(stream.read_array_header()):
            values.append(stream.unpack())
    except Exception:  # bytes of any origin: what follows is missing, or was never msgpack
        return values
    return values


def _unpacked(entry: bytes) -> tuple[Any, bool]:
    decode: Callable[..., Any] = msgpack.unpackb
    try:
        return decode(entry, strict_map_key=False), True
    except Exception:  # bytes of any origin: whatever does not decode is shown as hex
        return None, False


def _literal(value: object) -> str:
    """Like repr, but a byte string that holds text reads as b'text' and long ones stay short of flooding a line."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
