"""Random mutants of the core that nothing can notice, each with its reason.

Rules of this file: a mutant stands here only where the code does the same with it and without it, as far as any user of
the core can tell; where a test could notice, the test is what is missing. Names are those that `random_run.py` prints.
"""

from __future__ import annotations

from typing import Final

EXPLAINED: Final[dict[str, str]] = {
    "election Elections._become_leader: [self._timer_due = False => pass]": "read only when a deadline has passed; the "
    "leader's is at infinity, and whatever sets another one sets this as well",
    "replication Replication._held: return majority_index( [[0 => 1] if (peer := find(voter)) is None or peer.state is LOST "
    "else peer.match for voter in voters] )": "the "
    "entry at 1 is the founding, which is committed already; what is compared lies above it",
    "replication Replication._round_of: rounds.append(-1 if [peer is None => dropped] or peer.state is LOST else "
    "peer.acked_round)": "a leader has progress of every member: both change together",
    "replication Replication._merge: low = max(record.first, self.commit + [1 => 0])": "the entry at the commit has the "
    "record's term, as was checked just before, so starting there finds the same",
    "state ReplicaState.__init__: self._office_since = [-math.inf => (math.inf)]": "read by leaders only, and set anew by "
    "taking office",
    "log Log.compact: [self.held_after = self._records[count].last => pass]": "between the two values lie only entries "
    "before the start, of which nothing is asked",
    "progress Progress.__init__: self._round_end: Index = next_index [- => +] 1": "whoever is judged by rounds begins one "
    "first",
    "reconfiguration Reconfiguration._take_effect: if index [> => >=] self.membership.index": "what would be read again is "
    "the membership that is in effect",
    "replication Replication._on_rejection: if message.hint_index < agreed or agreed_term > message.hint_term or rejected "
    "[<= => <] self.log.start.index": "what is asked next lies at or before the log's start either way, and that is answered "
    "by a snapshot",
    "state ReplicaState._store: self._changes.append(record.[first => last])": "a membership entry is a record of its own",
}
