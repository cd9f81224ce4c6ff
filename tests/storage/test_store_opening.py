"""Opening: whose store it is, whether it is whole, and which run this is; the same for every store.

Rules of this file: damage is done while no store is open; every refusal is one line that says what to do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage import layout
from multiraft.types import ADMITTED_RUNS, RUNS_KEPT, Identity, SeenRun

if TYPE_CHECKING:
    from tests.storage.conftest import Place

CLUSTER = bytes(range(16))


def refusal(place: Place, node_id: str = "n1") -> str:
    """Open, which must be refused, in one line; return it."""
    with pytest.raises(StorageError) as caught:
        place.open(node_id)
    text = str(caught.value)
    assert "\n" not in text
    return text


async def formed(place: Place) -> Identity:
    """Open, bind and close a store; return its identity."""
    store = place.open()
    store.bind_cluster(CLUSTER, {"n1": store.identity.store_id, "n2": b"2" * 16})
    identity = store.identity
    await store.close()
    return identity


async def test_a_new_store_draws_its_id_and_keeps_it(place: Place) -> None:
    store = place.open()
    first = store.identity
    assert (first.node_id, len(first.store_id), first.formed) == ("n1", 16, False)
    await store.close()
    assert place.open().identity == first


async def test_incarnations_rise_by_one_at_every_opening(place: Place) -> None:
    for expected in range(1, 6):
        store = place.open()
        assert store.incarnation == expected
        if expected % 2:
            await store.close()
        else:
            place.end_abruptly(store)


async def test_binding_is_in_both_places_when_it_returns(place: Place) -> None:
    store = place.open()
    stores = {"n1": store.identity.store_id, "n2": b"2" * 16}
    store.bind_cluster(CLUSTER, stores)
    bound = Identity("n1", store.identity.store_id, CLUSTER, stores)
    assert store.identity == bound
    place.end_abruptly(store)
    assert layout.decode_identity_file(place.identity_file() or b"") == (bound, 1, False)
    assert layout.decode_identity(place.peek()[layout.IDENTITY_KEY]) == bound
    assert place.open().identity == bound


async def test_binding_again_is_no_harm_but_another_cluster_is_refused(place: Place) -> None:
    identity = await formed(place)
    store = place.open()
    stores = dict(identity.stores)
    store.bind_cluster(CLUSTER, stores)
    with pytest.raises(StorageError, match="belongs to cluster 00010203 and cannot join cluster 78787878"):
        store.bind_cluster(b"x" * 16, stores)
    with pytest.raises(StorageError, match="cannot join"):
        store.bind_cluster(CLUSTER, {**stores, "n2": b"3" * 16})
    assert store.identity == identity


async def test_a_cluster_that_knows_the_node_by_another_store_is_refused(place: Place) -> None:
    store = place.open()
    for stores in ({"n1": b"other" * 3}, {"n2": store.identity.store_id}):
        with pytest.raises(StorageError, match="is not the store that cluster"):
            store.bind_cluster(CLUSTER, stores)
    assert not store.identity.formed


async def test_another_nodes_store_is_refused_and_left_as_it_was(place: Place) -> None:
    await formed(place)
    before = place.peek()
    text = refusal(place, "n3")
    assert "belongs to node 'n1' of cluster 00010203..., but the configuration says node 'n3'" in text
    assert "remove" in text
    assert place.peek() == before
    store = place.open()
    assert (store.incarnation, store.closed_orderly) == (2, True)


async def test_a_place_in_use_is_refused_and_its_holder_goes_on(place: Place) -> None:
    store = place.open()
    assert "in use" in refusal(place)
    await place.found(store)
    assert len(store.load_replicas()) == 1


async def test_a_crash_while_binding_is_mended(place: Place) -> None:
    store = place.open()
    unbound = place.identity_file()
    stores = {"n1": store.identity.store_id}
    store.bind_cluster(CLUSTER, stores)
    identity = store.identity
    place.end_abruptly(store)
    place.set_identity_file(unbound)
    store = place.open()
    assert store.identity == identity
    assert layout.decode_identity_file(place.identity_file() or b"") == (identity, 2, False)


@pytest.mark.parametrize("file_written", [False, True])
async def test_a_crash_in_the_first_opening_is_mended(place: Place, file_written: bool) -> None:
    store = place.open()
    identity = store.identity
    place.end_abruptly(store)
    place.poke(layout.INCARNATION_KEY, None)
    place.set_identity_file(layout.encode_identity_file(identity, 0, False) if file_written else None)
    store = place.open()
    assert (store.identity, store.incarnation) == (identity, 1)
    assert layout.decode_identity_file(place.identity_file() or b"") == (identity, 1, False)


@pytest.mark.parametrize("orderly", [False, True])
async def test_a_crash_in_a_later_opening_is_mended(place: Place, orderly: bool) -> None:
    store = place.open()
    if orderly:
        await store.close()
    else:
        place.end_abruptly(store)
    before = place.identity_file()
    place.end_abruptly(place.open())
    place.set_identity_file(before)
    store = place.open()
    assert (store.incarnation, store.closed_orderly) == (3, False)


async def test_a_crash_at_the_end_of_closing_is_mended(place: Place) -> None:
    store = place.open()
    before = place.identity_file()
    await store.close()
    place.set_identity_file(before)
    assert place.open().closed_orderly


async def test_a_database_that_forgot_its_latest_run_is_refused(place: Place) -> None:
    store = place.open()
    await store.close()
    old = place.peek()
    place.end_abruptly(place.open())
    for key in place.peek():
        place.poke(key, old.get(key))
    place.poke(layout.CLOSING_KEY, old[layout.CLOSING_KEY])
    assert "has lost what node 'n1' last wrote: the database stands within run 1, but run 2 was begun" in refusal(place)


async def test_a_database_that_forgot_its_orderly_end_is_refused(place: Place) -> None:
    await formed(place)
    place.poke(layout.CLOSING_KEY, None)
    assert "the database stands within run 1, but run 1 ended" in refusal(place)


async def test_a_database_that_came_back_empty_is_refused(place: Place) -> None:
    await formed(place)
    for key in place.peek():
        place.poke(key, None)
    text = refusal(place)
    assert "node 'n1' of cluster 00010203..., but its database came back empty" in text
    assert "Put back a copy" in text
    assert place.peek() == {}


async def test_a_database_of_something_else_is_refused_and_left_alone(place: Place) -> None:
    place.end_abruptly(place.open())
    for key in place.peek():
        place.poke(key, None)
    place.set_identity_file(None)
    place.poke(b"theirs", b"precious")
    assert "is not multiraft's; name another directory" in refusal(place)
    assert place.peek() == {b"theirs": b"precious"}


async def test_a_database_from_before_the_cluster_is_refused(place: Place) -> None:
    store = place.open()
    await store.close()
    old = place.peek()
    await formed(place)
    place.poke(layout.IDENTITY_KEY, old[layout.IDENTITY_KEY])
    assert "put together from two stores" in refusal(place)


async def test_a_lost_identity_file_is_refused(place: Place) -> None:
    await formed(place)
    place.set_identity_file(None)
    assert "has lost its IDENTITY file" in refusal(place)
    assert place.identity_file() is None


async def test_an_identity_file_of_another_store_is_refused(place: Place) -> None:
    await formed(place)
    place.set_identity_file(layout.encode_identity_file(Identity("n1", b"another store id"), 1, True))
    assert "put together from two stores" in refusal(place)


@pytest.mark.parametrize("key", [layout.FORMAT_KEY, layout.IDENTITY_KEY, layout.INCARNATION_KEY, layout.CLOSING_KEY])
async def test_a_damaged_store_wide_value_is_refused(place: Place, key: bytes) -> None:
    await formed(place)
    value = bytearray(place.peek()[key])
    value[-1] ^= 1
    place.poke(key, bytes(value))
    text = refusal(place)
    assert "is damaged" in text
    assert "checksum" in text


async def test_a_damaged_identity_file_is_refused_at_every_byte(place: Place) -> None:
    await formed(place)
    raw = place.identity_file() or b""
    for position in range(len(raw)):
        place.set_identity_file(raw[:position] + bytes([raw[position] ^ 0x20]) + raw[position + 1 :])
        assert "is damaged" in refusal(place)
    place.set_identity_file(b"")
    assert "is damaged" in refusal(place)
    place.set_identity_file(raw)
    place.open()


async def test_a_later_store_format_is_refused(place: Place) -> None:
    await formed(place)
    place.poke(layout.FORMAT_KEY, layout.encode_number(layout.FORMAT_KEY, layout.STORE_FORMAT + 1))
    assert f"store format {layout.STORE_FORMAT + 1}, this version reads {layout.STORE_FORMAT}" in refusal(place)


async def test_the_closing_record_is_gone_as_soon_as_the_next_run_begins(place: Place) -> None:
    await place.open().close()
    assert layout.CLOSING_KEY in place.peek()
    place.end_abruptly(place.open())
    assert layout.CLOSING_KEY not in place.peek()


async def test_a_stale_closing_record_is_not_taken_for_the_last_runs(place: Place) -> None:
    store = place.open()
    place.end_abruptly(store)
    place.poke(layout.CLOSING_KEY, layout.encode_number(layout.CLOSING_KEY, 7))
    assert not place.open().closed_orderly


# ------------------------------------------------------------------------------ stores that were admitted, runs, marks


async def test_a_store_that_was_admitted_counts_its_runs_above_those_of_all_earlier_stores(place: Place) -> None:
    place.open()
    await place.opened[-1].close()
    store = place.open()
    store.bind_cluster(CLUSTER, {"n1": store.identity.store_id, "n2": b"2" * 16}, ("n1",), 3)
    assert not store.identity.founder
    assert store.incarnation == 3 * ADMITTED_RUNS + 2
    place.end_abruptly(store)
    again = place.open()
    assert (again.identity, again.incarnation) == (store.identity, 3 * ADMITTED_RUNS + 3)
    await again.close()
    assert place.open().closed_orderly


async def test_a_founder_that_joins_after_a_readmission_keeps_its_number(place: Place) -> None:
    store = place.open()
    store.bind_cluster(CLUSTER, {"n1": store.identity.store_id, "n2": b"2" * 16}, ("n2",), 1)
    assert (store.identity.founder, store.incarnation) == (True, 1)


async def test_another_store_of_a_member_is_bound_in_both_places(place: Place) -> None:
    identity = await formed(place)
    store = place.open()
    stores = {**identity.stores, "n2": b"3" * 16}
    store.bind_stores(stores, ("n2",), 1)
    bound = Identity("n1", identity.store_id, CLUSTER, stores, ("n2",), 1)
    assert store.identity == bound
    place.end_abruptly(store)
    assert layout.decode_identity_file(place.identity_file() or b"") == (bound, 2, False)
    store = place.open()
    store.bind_stores({**stores, "n2": b"4" * 16}, ("n2",), 1)  # no later than what it knows
    store.bind_stores(dict(identity.stores), (), 0)
    assert store.identity == bound


async def test_a_crash_while_another_store_is_bound_is_mended(place: Place) -> None:
    identity = await formed(place)
    store = place.open()
    before = place.identity_file()
    store.bind_stores({**identity.stores, "n2": b"3" * 16}, ("n2",), 1)
    bound = store.identity
    place.end_abruptly(store)
    place.set_identity_file(before)
    assert place.open().identity == bound


async def test_a_database_that_forgot_a_readmission_is_refused(place: Place) -> None:
    identity = await formed(place)
    store = place.open()
    before = place.identity_file(), layout.encode_identity(identity)
    store.bind_stores({**identity.stores, "n2": b"3" * 16}, ("n2",), 1)
    place.end_abruptly(store)
    place.poke(layout.IDENTITY_KEY, before[1])
    assert "put together from two stores" in refusal(place)


async def test_a_store_in_whose_place_another_one_was_admitted_is_given_up(place: Place) -> None:
    identity = await formed(place)
    store = place.open()
    with pytest.raises(StorageError, match="was given up: another store was admitted for node 'n1'"):
        store.bind_stores({**identity.stores, "n1": b"9" * 16}, ("n1",), 1)
    assert store.identity == identity


async def test_every_run_draws_an_id_and_knows_those_before_it(place: Place) -> None:
    known: tuple[bytes, ...] = ()
    for _ in range(RUNS_KEPT + 3):
        store = place.open()
        assert store.runs[:-1] == known[-(RUNS_KEPT - 1) :]
        assert store.runs[-1] not in known
        known = store.runs
        place.end_abruptly(store)
    assert len(known) == RUNS_KEPT


async def test_the_runs_seen_of_peers_come_back(place: Place) -> None:
    store = place.open()
    assert store.load_seen() == {}
    seen = {"n2": SeenRun(b"2" * 16, 7, b"r" * 8), "n3": SeenRun(b"3" * 16, 2**40, b"")}
    batch = store.batch()
    batch.put_seen({"n2": SeenRun(b"2" * 16, 6, b"q" * 8)})
    batch.put_seen(seen)
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.submit(batch, done.set_result)
    assert await done is None
    place.end_abruptly(store)
    assert place.open().load_seen() == seen
    await place.opened[-1].close()
    place.poke(layout.SEEN_KEY, layout.seal(layout.SEEN_KEY, b"\x93\x01\x02\x03"))
    with pytest.raises(CorruptRecord, match="is damaged: runs seen of peers"):
        place.open().load_seen()


async def test_a_condemned_store_is_never_opened_again(place: Place) -> None:
    store = place.open()
    store.condemn("it was rolled back")
    place.end_abruptly(store)
    for _ in range(2):
        assert "may take part no longer: it was rolled back" in refusal(place)
