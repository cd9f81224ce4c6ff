"""One tree of errors: whose move it is stands in the type.

    MultiRaftError
      NotCommitted            the command certainly did not happen: safe to retry
        NotLeader             ask `leader` instead
        Overloaded            a bound was reached; slow down
        NotReady              no leader yet, or the service is not there yet
        Unreachable           the request never left this node
        Halted                the replica has stopped applying
        DeadlineExceeded      time ran out before the command was proposed
        InvalidRequest        the command itself is refused (size, arguments); a retry cannot help
        WrongShard            routed by an outdated map
        SessionExpired        the session is not known any more; begin another one
        DiskFull              too little free space is left on the leader's disk
        ReadFailed            a read was not answered; reads change nothing
      OutcomeUnknown          it may or may not have happened
        ReplyForgotten        nothing is kept of it any more: it happened long ago, or its client gave it up
      CommandFailed           it was committed, and the state machine raised: a deterministic result
      ConfigError             the configuration is wrong
      StartError              the node cannot start from what is there
        StorageError          the store is damaged, locked, of another node, or cannot be written
          CorruptRecord       what is stored is not what was written
            UnreadableStore   parts of it cannot be read at all; the rest can
      BackupRefused           a backup is damaged, not whole, or does not fit to where it is to go
      RecoveryRefused         what survives does not fit together, or not to the plan; nothing was written
      NotRunning              called before start or after stop
      NoSuchFile              a peer does not have the file of a snapshot any more
    InvariantViolation        a bug in multiraft itself; not a MultiRaftError, so that nobody handles it by accident
    UnsupportedType           a command's signature cannot be carried: a bug in a user's program, found at its start

Rules of this file: standard library only; every message says what to do next.
"""

from __future__ import annotations

from multiraft.types import GroupId, NodeId


class MultiRaftError(Exception):
    """The root of everything that multiraft raises for its users to handle."""


class NotCommitted(MultiRaftError):
    """The command certainly did not happen. It is safe to retry."""


class NotLeader(NotCommitted):
    """This replica does not lead the group; nothing was proposed.

    leader  the node to ask instead; None while an election is under way
    """

    def __init__(self, group_id: GroupId, leader: NodeId | None = None) -> None:
        hint = f"ask node {leader!r}" if leader else "an election is under way; retry shortly"
        super().__init__(f"group {group_id} is not led by this node: {hint}")
        self.group_id = group_id
        self.leader = leader


class Overloaded(NotCommitted):
    """A bound (queue, bytes, in-flight work) was reached; nothing was proposed. Slow down, then retry."""


class NotReady(NotCommitted):
    """The service or group cannot serve yet; the message says which part, and why."""


class Unreachable(NotCommitted):
    """The node to ask is not connected; nothing was sent."""


class Halted(NotCommitted):
    """The replica stopped applying after a failure of its environment; the message says which."""


class DeadlineExceeded(NotCommitted):
    """Time ran out before the command was proposed."""


class InvalidRequest(NotCommitted):
    """The command or query is refused as it stands: too large, unknown, or wrong arguments. Do not retry it."""


class WrongShard(NotCommitted):
    """The command reached a group that does not serve its key; the route was outdated."""


class SessionExpired(NotCommitted):
    """The group does not know the session, or not any more; this command was not applied. Begin another session."""


class DiskFull(NotCommitted):
    """Too little space is left on the disk of the node that would have to store it. Free some, then retry."""


class ChangeRefused(NotCommitted):
    """A membership change that cannot be made to the group as it is; the message says why. Nothing was proposed."""


class ChangePending(ChangeRefused):
    """Another membership change is under way; one at a time. Retry when it has taken effect."""


class MembershipChanged(ChangeRefused):
    """The membership has changed since the one that the change was made for. Look at it again, then decide."""


class ReadFailed(NotCommitted):
    """A read could not be answered (leadership moved, time ran out). A read changes nothing: safe to retry."""


class OutcomeUnknown(MultiRaftError):
    """The command may or may not have happened: its answer was lost (timeout, leader gone, node stopping)."""


class ReplyForgotten(OutcomeUnknown):
    """The group keeps no reply under the command's number; another attempt under it is never applied.

    Either the command was applied, once, but so long ago, or with so large a result, that the result is not kept; or
    its own client had given the number up. The message says which.
    """


class CommandFailed(MultiRaftError):
    """The command was committed and its state machine raised: the same on every replica, and not retried.

    exception  the name of the exception's class
    detail     its text
    """

    def __init__(self, exception: str, detail: str) -> None:
        super().__init__(f"{exception}: {detail}" if detail else exception)
        self.exception = exception
        self.detail = detail


class ConfigError(MultiRaftError):
    """A setting is unknown, out of range, or contradicts another; the message names it and its limits."""


class StartError(MultiRaftError):
    """The node cannot start from what it found; the message says what was found and the ways out."""


class StorageError(StartError):
    """The store cannot be opened, read or written; the message says where and why.

    errno  the system's number of what went wrong, where there is one; else 0
    """

    errno = 0


class CorruptRecord(StorageError):
    """Stored or received bytes are not what was written: a checksum, length or format does not hold."""


class BackupRefused(MultiRaftError):
    """A backup is damaged, not whole, or does not fit to where it is to go; nothing was made of it."""


class UnreadableStore(CorruptRecord):
    """Parts of the database cannot be read at all; left out, the rest is a store again."""


class RecoveryRefused(MultiRaftError):
    """What was collected does not fit together, or the plan not to what is here; nothing was written."""


class NotRunning(NotCommitted):
    """The node has not been started, or has stopped."""


class NoSuchFile(MultiRaftError):
    """A peer does not have the file asked for, or not any more. Ask the group's leader for its newest snapshot."""


class WireError(MultiRaftError):
    """A frame or message from a peer is malformed, oversized or of an unknown format; it is dropped and counted."""


class InvariantViolation(Exception):
    """A rule that the code relies on does not hold: a bug. The replica concerned halts; the others go on."""


def invariant(holds: bool, message: str) -> None:
    """Raise InvariantViolation(message) unless `holds`. Unlike `assert`, it stays under `python -O`."""
    if not holds:
        raise InvariantViolation(message)


class UnsupportedType(TypeError):
    """An annotation that msgpack cannot carry faithfully; the message says what to write instead."""
