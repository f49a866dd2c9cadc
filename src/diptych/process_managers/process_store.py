"""The port of the process store. The contract is `testing/contracts/process_store.py`.

For each process: how far it has followed the history, the state of its instances, and what is to go out: commands, and
timeouts that are not due yet. It lives in the write database. One call, `commit`, changes all of it in one
transaction, from the place and epoch that its caller stands on, or not at all (rule 43).

What has no order and is part of no reaction, such as a command that was scheduled, is put in and taken out by anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from diptych.event_store.position import START, Place, Position

__all__ = [
    "PRIORITY_MAX",
    "PRIORITY_MIN",
    "Instance",
    "InstanceCount",
    "Outgoing",
    "ProcessChange",
    "ProcessStore",
    "Resent",
    "StoredProcess",
]

PRIORITY_MIN, PRIORITY_MAX = -9, 9
"""The lowest and the highest priority of what is to go out."""


class StoredProcess(msgspec.Struct, frozen=True):
    """A process as it is stored.

    Attributes:
        name: qualified by context.
        checkpoint: up to where it has followed the history.
        fingerprint: of the code that last worked on it.
        epoch: goes up when the lease changes hands.
    """

    name: str
    checkpoint: Place
    fingerprint: str
    epoch: int


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a process.

    Attributes:
        id: its identity.
        state: as JSON.
        started: the position of the event that began it.
        started_at_us: when that was recorded, microseconds since 1970 UTC.
        last: the position of the last event that it has taken.
        last_at_us: when that was recorded.
        ended: whether it takes no more events.
        blocked: the position of the first event that it has not taken since `react` failed; 0 while there is none.
        failure: why it is blocked, or was closed.
        attempts: how often it has failed to take that event; 0 while there is none.
        trace: the stack trace of the last time; empty while there is none.
    """

    id: str
    state: bytes
    started: Position
    started_at_us: int
    last: Position
    last_at_us: int
    ended: bool = False
    blocked: Position = START
    failure: str = ""
    attempts: int = 0
    trace: str = ""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A command to send, or a timeout to append when it is due.

    Attributes:
        id: a UUIDv5 made of process, instance, event and ordinal: the command's id, or that of the timeout's commit.
        instance: whose it is.
        kind: which of the two.
        position: of the event that it is a reaction to.
        ordinal: which one of its kind of that reaction, from 0.
        due_us: not before, microseconds since 1970 UTC.
        type: the command's name with its context, or the stored name of the timeout.
        version: the stored version of the timeout; 1 for commands.
        data: its fields as JSON, as they are sent however often.
        tags: of the timeout.
        metadata: the envelope that it goes out in, as JSON.
        attempts: how often it has failed.
        failure: how it failed last.
        dead: whether it is not tried again by itself.
        priority: of what is due, the higher goes first; from `PRIORITY_MIN` to `PRIORITY_MAX`.
        expires_us: not after, microseconds since 1970 UTC; 0 where it does not expire.
        begun: whether a worker has begun to send it, where that is noted.
        trace: the stack trace of that failure; empty where there is none.
    """

    id: str
    instance: str
    kind: Literal["command", "timeout"]
    position: Position
    ordinal: int
    due_us: int
    type: str
    version: int
    data: bytes
    tags: tuple[str, ...]
    metadata: bytes
    attempts: int = 0
    failure: str = ""
    dead: bool = False
    priority: int = 0
    expires_us: int = 0
    begun: bool = False
    trace: str = ""


class Resent(msgspec.Struct, frozen=True, kw_only=True):
    """A dead command or timeout that is due again, as it was or with other fields, in its place among the others.

    Attributes:
        id: of what is dead. Where it is not, or not there, nothing is done.
        as_id: its id from now on; another one where its fields are.
        data: its fields from now on; None where they stay.
        metadata: its envelope from now on; None where it stays.
    """

    id: str
    as_id: str
    data: bytes | None = None
    metadata: bytes | None = None


class ProcessChange(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes true together.

    Applied in the order of the fields: what goes, goes before what comes.

    Attributes:
        process: its name.
        epoch: under which its writer holds it.
        after: the checkpoint that its writer stands on.
        checkpoint: the new one; may be the same.
        fingerprint: of the writer's code.
        emptied: instances of which nothing goes out any more.
        dropped_timeouts: instances whose timeouts are dropped.
        discarded: ids of what goes out no more, if it is dead.
        resent: what is dead and due again at `revived_due_us`, as if never tried; each id once.
        revived: instances whose dead commands and timeouts are due again, at `revived_due_us`, as if never tried.
        removed: ids of what has gone out; one that is not there is no error.
        begun: ids of what is being sent from now on; one that is not there is no error.
        failed: what could not go out, as it is to be kept; what is not there any more stays away.
        instances: as they are now.
        added: what is to go out; of ids that are new.
    """

    process: str
    epoch: int
    after: Place
    checkpoint: Place
    fingerprint: str
    emptied: Collection[str] = ()
    dropped_timeouts: Collection[str] = ()
    discarded: Collection[str] = ()
    resent: Sequence[Resent] = ()
    revived: Collection[str] = ()
    revived_due_us: int = 0
    removed: Collection[str] = ()
    begun: Collection[str] = ()
    failed: Sequence[Outgoing] = ()
    instances: Sequence[Instance] = ()
    added: Sequence[Outgoing] = ()


class InstanceCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many instances of a process there are.

    Attributes:
        running: that have not ended.
        blocked: of these, that take no events since `react` failed.
        waiting: commands that are not sent yet, and timeouts that are not due or not appended yet.
        dead: commands and timeouts that were given up.
    """

    running: int = 0
    blocked: int = 0
    waiting: int = 0
    dead: int = 0


class ProcessStore(Protocol):
    """Keeps the processes of one history. All methods raise `StoreClosed` while it is not open."""

    async def open(self) -> None:
        """Connect; make its tables where they are missing.

        Raises:
            NewerStore: a newer Diptych wrote it.
            StoreUnavailable: it cannot be opened; with the reason.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way and let go. May be called twice."""
        ...

    async def create(self, process: str, checkpoint: Place, fingerprint: str) -> StoredProcess:
        """Make a process with this checkpoint, or give the one that is there as it is."""
        ...

    async def processes(self) -> list[StoredProcess]:
        """Every process, by name."""
        ...

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        """Take what is free of these, and renew what the worker holds.

        The epoch of a process goes up with each change of hands, so that a commit of who held it before is refused.

        Returns:
            The epochs of those that the worker holds now.
        """
        ...

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        """Give up these at once, of what the worker holds; everything where none are named."""
        ...

    # ── change ───────────────────────────────────────────────────────────────

    async def commit(self, change: ProcessChange) -> bool:
        """Make a change true, in one durable transaction.

        Returns:
            False where the process is at another checkpoint or epoch: nothing was done.

        Raises:
            StoreUnavailable: whether it was done is not known; the checkpoint tells.
        """
        ...

    # ── by anybody: of what has no order and is part of no reaction, so that nothing has to be held ──

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Put in what is to go out, in one durable transaction; what is there under an id stays as it is.

        The process need not have been made yet.

        Returns:
            For each item, in order, what is kept of the process under its id now: it, or what was there before.

        Raises:
            StoreUnavailable: whether it was done is not known; the same call again tells.
        """
        ...

    async def drop(self, process: str, ids: Collection[str]) -> None:
        """Take out what is not to go out any more, durably; one that is not there is no error."""
        ...

    async def revive(self, process: str, ids: Collection[str], due_us: int) -> None:
        """Have what is dead of these due again at a time, as if never tried, durably; the rest is left as it is."""
        ...

    # ── read ─────────────────────────────────────────────────────────────────

    async def find(self, process: str, ids: Collection[str]) -> list[Outgoing]:
        """What is there under these ids, in any order."""
        ...

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        """The first `limit` commands and timeouts behind an id, in the order of the ids' code points.

        Args:
            process: whose.
            after: the last id of the page before; None before the first.
            limit: at least 1.
        """
        ...

    async def instances(self, process: str, ids: Collection[str]) -> list[Instance]:
        """Those of these instances that are there, in any order."""
        ...

    async def page(
        self,
        process: str,
        after: str | None,
        limit: int,
        *,
        ended: bool = False,
        stuck: bool = False,
        blocked: bool = False,
    ) -> list[Instance]:
        """The first `limit` instances behind an id, in the order of their code points.

        Args:
            process: whose.
            after: the last id of the page before; None before the first.
            limit: at least 1.
            ended: whether those that have ended are among them.
            stuck: only those that are blocked, or have something dead; whether they have ended or not.
            blocked: only those that are blocked.
        """
        ...

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        """The first `limit` dead commands and timeouts behind one, in the order of instance and id by code points.

        Args:
            process: whose.
            after: instance and id of the last one of the page before; None before the first.
            limit: at least 1.
        """
        ...

    async def count(self, process: str) -> InstanceCount:
        """How many instances there are, and how many wait for somebody."""
        ...

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        """What is to go out now, the highest priority first, then by due time, position and ordinal; at most `limit`.

        Of the commands of one instance only the first: the next one goes when it is gone. A dead one holds back
        those of its own reaction alone.
        """
        ...

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        """When the next thing is due after that time; None where nothing is."""
        ...

    async def outgoing(self, process: str, instance: str) -> list[Outgoing]:
        """All that waits or is dead of an instance, by position, kind and ordinal."""
        ...
