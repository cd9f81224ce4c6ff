"""Whether the store still holds what it acknowledged: on every node, by two ways of looking.

    served    what a node answers over HTTP, for all keys: linearizable, so mostly the leaders' word
    replicas  what each node's own replicas hold, read behind the store's back once they have applied all that is
              committed: here a record that one replica alone has lost is seen

Rules of this file: nothing is compared before the replica has caught up; a record counts as lost where it is
missing or differs, and as strange where nobody wrote it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from examples.kv.client import Client
from examples.kv.machine import SERVICE


@dataclass(frozen=True, slots=True)
class Difference:
    """How one view of the store differs from what was acknowledged.

    where  the node, and the way of looking
    read   records found there
    """

    where: str
    read: int
    missing: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return len(self.missing) + len(self.different)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.different or self.strange)

    def example(self) -> str:
        """Name one record of each kind that is there."""
        kinds = (("missing", self.missing), ("different", self.different), ("never written", self.strange))
        return "; ".join(f"{len(keys)} {kind}, such as {keys[0]!r}" for kind, keys in kinds if keys)


def compare(where: str, acknowledged: Mapping[str, bytes], found: Mapping[str, bytes]) -> Difference:
    """Return how `found` differs from `acknowledged`."""
    return Difference(
        where,
        len(found),
        missing=sorted(key for key in acknowledged if key not in found),
        different=sorted(key for key, value in acknowledged.items() if key in found and found[key] != value),
        strange=sorted(key for key in found if key not in acknowledged),
    )


async def read_served(url: str) -> dict[str, bytes]:
    """Read everything through one node. Raises what Client.scan raises."""
    async with Client([url]) as client:
        return {key: value async for key, value in client.scan(page=4_000)}


async def read_replicas(session: aiohttp.ClientSession, url: str, groups: list[dict[str, Any]]) -> dict[str, bytes]:
    """Read what the node's own replicas hold, each once it has applied all that its leader had committed.

    groups  what /admin/groups says of the groups, some moment before
    """
    found: dict[str, bytes] = {}
    for group in groups:
        address = f"{url}/replica/{group['group_id']}?applied={group['commit']}"
        async with session.get(address) as response:
            content = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{address}: {json.loads(content)['error']}")
        _, *lines, last = content.splitlines()
        if json.loads(last) != {"records": len(lines)}:
            raise RuntimeError(f"{address}: the answer was cut short")
        for line in lines:
            key, value = json.loads(line)
            found[key] = base64.b64decode(value)
    return found


async def read_groups(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """Return what /admin/groups of one node says of all the store's groups."""
    async with session.get(f"{url}/admin/groups?service={SERVICE}") as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise RuntimeError(f"{url}/admin/groups: {answer['error']}")
        return answer


async def compare_everywhere(
    session: aiohttp.ClientSession, urls: Mapping[str, str], acknowledged: Mapping[str, bytes]
) -> list[Difference]:
    """Compare both views of every node with what was acknowledged. Nobody may be writing meanwhile.

    urls  of each node, by its id
    """
    differences = []
    for node_id, url in urls.items():
        groups = (await read_groups(session, url))["groups"]
        if any(node_id not in {replica["node_id"] for replica in group["replicas"]} for group in groups):
            raise RuntimeError(
                f"node {node_id} does not host a replica of every group: there is nothing to compare with"
            )
        differences.append(compare(f"{node_id}, served", acknowledged, await read_served(url)))
        differences.append(compare(f"{node_id}, replicas", acknowledged, await read_replicas(session, url, groups)))
    return differences
