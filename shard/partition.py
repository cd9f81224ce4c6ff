"""From a key to its routing key, and how the space of routing keys is first cut into ranges.

A routing key is the key itself (range mode: neighbouring keys share a shard, and ranges can be scanned) or its 64-bit
hash (hash mode: load spreads evenly). Either way it is a byte string, a shard is a contiguous range [start, end) of
them in the order of bytes, and end None means "to the end of the space".

Rules of this file: pure functions, the same on every machine and in every version: what they return is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

from multiraft.errors import InvalidRequest

Mode: TypeAlias = Literal["hash", "range"]
Range: TypeAlias = tuple[bytes, bytes | None]

HASH_BYTES: Final = 8
_EMPTY_HASH: Final = blake2b(digest_size=HASH_BYTES)
SHARDS_MAX: Final = 65_536
"""Most shards that one service can be declared with."""


def routing_key(mode: Mode, key: bytes) -> bytes:
    """Return where `key` stands in the space of routing keys."""
    if mode != "hash":
        return key
    hashing = _EMPTY_HASH.copy()
    hashing.update(key)
    return hashing.digest()


def hash_ranges(count: int) -> tuple[Range, ...]:
    """Cut the space of hashes into `count` ranges of equal size (to within one hash).

    Raises InvalidRequest for a count below 1 or above SHARDS_MAX.
    """
    if type(count) is not int or not 1 <= count <= SHARDS_MAX:
        raise InvalidRequest(f"initial_shards = {count!r}: must be a whole number from 1 to {SHARDS_MAX}")
    space = 1 << (8 * HASH_BYTES)
    return _ranges([(number * space // count).to_bytes(HASH_BYTES, "big") for number in range(1, count)])


def key_ranges(boundaries: Sequence[bytes]) -> tuple[Range, ...]:
    """Cut the space of keys at `boundaries`, each the first key of the next range; with none it is one range.

    Raises InvalidRequest when they are not bytes, not ascending, one is empty, or there are too many.
    """
    if len(boundaries) >= SHARDS_MAX:
        raise InvalidRequest(f"boundaries: at most {SHARDS_MAX - 1} are allowed, not {len(boundaries)}")
    before = b""
    for boundary in boundaries:
        if type(boundary) is not bytes or boundary <= before:
            raise InvalidRequest(
                f"boundaries: must be non-empty bytes in ascending order; {boundary!r:.60} is out of place"
            )
        before = boundary
    return _ranges(boundaries)


def _ranges(boundaries: Sequence[bytes]) -> tuple[Range, ...]:
    starts = [b"", *boundaries]
    return tuple(zip(starts, [*boundaries, None], strict=True))


def in_range(key: bytes, start: bytes, end: bytes | None) -> bool:
    """Return whether the routing key `key` lies in [start, end)."""
    return start <= key and (end is None or key < end)
