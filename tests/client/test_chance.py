"""A client against nodes that are lost, refuse and move at random: every call ends once, and is applied once."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from multiraft.client import frames
from multiraft.errors import MultiRaftError, NotLeader, OutcomeUnknown, SessionExpired
from multiraft.sessions import HEAD
from tests.client.playing import Play


class _Group:
    """A replicated counter that keeps replies by number, as a group does; it may lose questions and answers."""

    def __init__(self) -> None:
        self.replies: dict[tuple[bytes, int], bytes] = {}
        self.clients: set[bytes] = set()
        self.applied: dict[bytes, int] = {}

    def do(self, kind: int, body: bytes) -> bytes | MultiRaftError:
        if kind == frames.REGISTER:
            assert body not in self.clients, "an id was registered twice"
            self.clients.add(body)
            return b""
        if kind == frames.READ:
            return b"%d" % len(self.applied)
        client, sequence, _ = HEAD.unpack_from(body)
        if client not in self.clients:
            return SessionExpired("unknown")
        number = (client, sequence)
        if number not in self.replies:
            command = body[HEAD.size :]
            self.applied[command] = self.applied.get(command, 0) + 1
            self.replies[number] = b"did " + command
        return self.replies[number]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_lost_and_refused_each_call_ends_once_and_is_applied_once(seed: int) -> None:
    chance = Random(seed)
    play, groups = Play(), {16: _Group(), 17: _Group()}
    leader = {16: "a", 17: "b"}
    play.opened("a", "b", "c")
    asked = 0
    for _ in range(120):
        if len(play.core.outstanding) < 20 and asked < 60:
            asked += 1
            if chance.random() < 0.8:
                play.call(asked, b"%d" % asked, where=chance.choice((16, 17)), timeout_s=60.0)
            else:
                play.read(asked, where=chance.choice((16, 17)), timeout_s=60.0)
        event = chance.random()
        if event < 0.05 and play.links:
            play.lose(chance.choice(sorted(play.links)))
        elif event < 0.15:
            missing = sorted({"a", "b", "c"} - play.links.keys())
            if missing:
                play.connect(chance.choice(missing))
        elif event < 0.2:
            leader[chance.choice((16, 17))] = chance.choice("abc")
        elif event < 0.22:
            groups[chance.choice((16, 17))].clients.clear()
        _serve(play, groups, leader, chance, chance.random() < 0.3)
        while play.dialled:
            node_id = play.dialled.pop()
            if node_id not in play.links:
                if chance.random() < 0.5:
                    play.connect(node_id)
                else:
                    play.core.unreachable(node_id, "chance")
        play.pass_time(chance.random() * 0.2)
    for node_id in {"a", "b", "c"} - play.links.keys():
        play.connect(node_id)
    for _ in range(40):
        _serve(play, groups, leader, chance, False)
        play.pass_time(0.2)
    assert not play.core.outstanding
    assert set(play.told) == set(range(1, asked + 1))
    for group in groups.values():
        assert all(times == 1 for times in group.applied.values())
    applied = {int(command) for group in groups.values() for command in group.applied}
    for name, outcome in play.told.items():
        if type(outcome) is bytes and outcome.startswith(b"did "):
            assert outcome == f"did {name}".encode()
            assert name in applied
        elif not isinstance(outcome, OutcomeUnknown) and type(outcome) is not bytes:
            assert name not in applied, f"{name} was applied, and its caller told {outcome!r}"


def _serve(play: Play, groups: dict[int, _Group], leader: dict[int, str], chance: Random, lossy: bool) -> None:
    """Have the nodes take what is sent to them, and answer it; lossy: a connection may be cut before its answer."""
    for node_id in sorted(play.links):
        link = play.links[node_id]
        while link.looks:
            play.map({group_id: chance.choice("abc") for group_id in groups})
        for batch in play.sent(node_id):
            if leader[batch.group_id] != node_id and not batch.argument & frames.ANYBODY:
                play.answer(
                    node_id, batch, NotLeader(batch.group_id, chance.choice((None, leader[batch.group_id]))), first=-1
                )
                continue
            outcomes = [groups[batch.group_id].do(batch.kind, body) for body in batch.bodies]
            if lossy and chance.random() < 0.3:
                play.lose(node_id)
                break
            play.answer(node_id, batch, *outcomes)
