"""What a load asks for: which key, read or written, and as what bytes.

Draws are made ahead and used round and round, so that drawing costs nothing while the load runs.

Rules of this file: pure; one seed, one sequence of operations.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final, Literal

import msgpack

from multiraft.errors import InvalidRequest

Distribution = Literal["uniform", "zipf", "sequential"]
DRAWS: Final = 1 << 16
KEYS_MAX: Final = 10_000_000
_pack: Final[Callable[[object], bytes]] = msgpack.packb


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for.

    write, read    the names of the command (key, value) and of the query (key)
    reads          the share of reads, 0 to 1
    keys           how many different ones, "bench:0" and so on
    distribution   uniform: every key as often; zipf: the k-th as often as 1 / k^zipf; sequential: one after the other
    value_bytes    of each value: random bytes, the same for all
    """

    write: str = "put"
    read: str = "get"
    reads: float = 0.0
    keys: int = 100_000
    distribution: Distribution = "uniform"
    zipf: float = 0.99
    value_bytes: int = 128
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (("keys", 1, KEYS_MAX), ("value_bytes", 0, 1 << 30)):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"{name} = {getattr(self, name)}: must be from {low} to {high}")
        if not 0 <= self.reads <= 1:
            raise InvalidRequest(f"reads = {self.reads}: must be a share from 0 to 1")
        if not 0 < self.zipf <= 10:
            raise InvalidRequest(f"zipf = {self.zipf}: must be above 0, at most 10")

    def operations(self) -> Iterator[tuple[bool, bytes, bytes]]:
        """Yield (whether it reads, key, encoded call) for ever."""
        chance = Random(self.seed)
        head_of_write = b"\x93" + _pack(self.write)
        head_of_read = b"\x92" + _pack(self.read)
        value = _pack(chance.randbytes(self.value_bytes))
        draws = []
        for number in self._numbers(chance):
            key = f"bench:{number}"
            draws.append((chance.random() < self.reads, key.encode(), _pack(key)))
        sequential = self.distribution == "sequential"
        at = 0
        while True:
            for reads, key_bytes, packed in draws:
                if sequential and self.keys > DRAWS:
                    text = f"bench:{at % self.keys}"
                    at += 1
                    key_bytes, packed = text.encode(), _pack(text)
                if reads:
                    yield True, key_bytes, head_of_read + packed
                else:
                    yield False, key_bytes, head_of_write + packed + value

    def _numbers(self, chance: Random) -> Iterator[int]:
        if self.distribution == "sequential":
            # Whole rounds, so that no key comes twice at the seam; more keys than draws are counted while it runs.
            yield from (number % self.keys for number in range(max(1, DRAWS // self.keys) * min(self.keys, DRAWS)))
        elif self.distribution == "uniform":
            yield from (chance.randrange(self.keys) for _ in range(DRAWS))
        else:
            weights = list(accumulate(number**-self.zipf for number in range(1, self.keys + 1)))
            yield from (bisect_left(weights, chance.random() * weights[-1]) for _ in range(DRAWS))
