"""The lead set's digest: always that of the entries, and the same number everywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multiraft.engine.leadset import LeadSet, entry_digest
from multiraft.types import U64_MAX

_STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)),
    max_size=40,
)


@given(_STEPS)
def test_the_digest_depends_on_the_entries_alone_not_on_how_they_came(steps: list[tuple[bool, int, int, int]]) -> None:
    lead_set, naive = LeadSet(), dict[int, tuple[int, int]]()
    for puts, group_id, term, replica_id in steps:
        if puts:
            lead_set.put(group_id, term, replica_id)
            naive[group_id] = (term, replica_id)
        else:
            lead_set.drop(group_id)
            naive.pop(group_id, None)
        again = LeadSet()
        for other in sorted(naive):
            again.put(other, *naive[other])
        assert lead_set.rows() == again.rows() == tuple((g, *naive[g]) for g in sorted(naive))
        assert lead_set.digest == again.digest == lead_set.counted_digest()
        assert len(lead_set) == len(naive)
        assert lead_set.term_of(group_id) == naive.get(group_id, (0, 0))[0]


def test_the_digest_is_the_same_number_on_every_machine_and_version() -> None:
    assert entry_digest(1, 1, 1) == 0x6E3AEE702432E084
    assert entry_digest(U64_MAX, U64_MAX, U64_MAX) == 0xDE5618A54E51CA5F
    assert LeadSet().digest == 0


def test_sets_that_differ_a_little_have_different_digests() -> None:
    entries = {entry_digest(group, term, replica) for group in range(30) for term in range(30) for replica in range(30)}
    assert len(entries) == 27_000
    pairs = {entry_digest(1, term, 1) ^ entry_digest(2, other, 1) for term in range(100) for other in range(100)}
    assert len(pairs) == 10_000
    assert all(0 < entry <= U64_MAX for entry in pairs)
