"""The scheduler: commands that were accepted for later are executed when they are due, each with an effect once.

They wait in the process store, as what processes send does, under a name that no process has, and are sent by whichever
worker has that name on lease. What becomes of one is decided in the event store and nowhere else: it is the outcome
that is kept under its id (G4), be it a receipt, the domain's no, or that it was cancelled or has expired.

    accepted ──▶ due ──▶ begun ──▶ command bus ──▶ outcome kept ──▶ removed
        │                                             ▲
        └── cancelled, expired: a rejection ──────────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from diptych.clock import Clock
from diptych.errors import CommandIdReused, Forbidden, HistoryDiverged, Overloaded
from diptych.event_store.event_store import Appended, Commit, Duplicate, EventStore, KeptOutcome
from diptych.event_store.position import NOWHERE, START, Place
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.messages.codec import Codec, decode
from diptych.messages.command import Command
from diptych.messages.registry import MessageTypes
from diptych.messages.rejected import Rejected
from diptych.process_managers.process_leases import ProcessLeases
from diptych.process_managers.process_store import Outgoing, ProcessChange, ProcessStore, StoredProcess
from diptych.process_managers.sender import Hold, OutgoingSender
from diptych.process_managers.together import Together
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import encode_rejection

__all__ = [
    "CANCELLED",
    "DISCARDED",
    "EXPIRED",
    "REPLACED",
    "SCHEDULED",
    "AcceptedFrom",
    "ScheduledSender",
    "Scheduler",
    "is_of",
    "refuse",
]

SCHEDULED = "(scheduled)"
"""The name under which commands wait in the process store: no process has one without its context."""
CANCELLED, EXPIRED, DISCARDED, REPLACED = "cancelled", "expired", "discarded", "replaced"
"""The codes of the rejections that are kept where nobody asked the domain any more."""
SCHEDULED_MAX = 1_000_000
"""Commands of one history that wait to be executed; past it, `Overloaded`."""
COUNT_AGE_S = 10.0
"""Seconds for which a count of what waits is taken as good, though others may accept more meanwhile."""
FULL_COUNT_AGE_S = 1.0
"""The same, while there is no room: counting takes long then, and whoever is refused comes again."""
ADDED_TOGETHER_MAX = 256
"""Commands that are accepted in one transaction."""
ADDING_MAX = 10_000
"""Commands that wait to be accepted; past it, `Overloaded`."""
SCHEDULED_LOOK_S = 0.5
"""Seconds after which a worker looks again for what other processes have accepted."""
LEASE_WAIT_S = 5.0
"""Seconds after which a scheduler that has no lease looks again without having been woken."""


class AcceptedFrom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who sent a command that is executed later, and what is known beside, as it is kept with the command.

    With the scopes that they had then, so that it is executed with these, and with no others.

    Attributes:
        payload_hash: tells the command from others under the same id.
        accepted_us: when it was accepted, microseconds since 1970 UTC; 0 where that was not kept.
    """

    payload_hash: bytes = b""
    accepted_us: int = 0
    actor: str | None = None
    reason: str | None = None
    scopes: AbstractSet[str] = frozenset()
    trusted: bool = False
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None

    @property
    def sender(self) -> Sender:
        """Whom the command bus is told of."""
        return Sender(
            actor=self.actor,
            reason=self.reason,
            scopes=self.scopes,
            trusted=self.trusted,
            correlation_id=self.correlation_id,
            causation_id=self.causation_id,
            traceparent=self.traceparent,
        )


async def refuse(events: EventStore, item: Outgoing, rejected: Rejected) -> KeptOutcome | None:
    """Have a command rejected without deciding it, where it has no outcome yet.

    Returns:
        The outcome that was kept before, whatever it is; None where the rejection is the outcome now.
    """
    hashed = decode(item.metadata, AcceptedFrom).payload_hash
    commit = Commit(command_id=item.id, payload_hash=hashed, rejection=encode_rejection(rejected))
    (result,) = await events.append([commit])
    if isinstance(result, Duplicate):
        return result.outcome
    assert isinstance(result, Appended), f"a commit without events and conditions is appended, and not {result!r}"
    return None


def is_of(kept: KeptOutcome, item: Outgoing) -> bool:
    """Whether an outcome is that of the command that waits, and not of another one under its id."""
    return kept.payload_hash == decode(item.metadata, AcceptedFrom).payload_hash


class ScheduledSender(OutgoingSender):
    """Executes what is due of the commands that were accepted for later, while the scheduler holds them."""

    look_s = SCHEDULED_LOOK_S

    def __init__(
        self, scheduler: Scheduler, events: EventStore, commands: CommandBus, types: MessageTypes, clock: Clock
    ) -> None:
        super().__init__("the scheduler", scheduler, clock)
        self._scheduler = scheduler
        self._events = events
        self._commands = commands
        self._types = types
        self._codecs: dict[type[Command], Codec] = {}

    async def _begin(self, items: Sequence[Outgoing]) -> bool:
        """Note which ones are under way, in one commit, for those who ask for their status."""
        new = [item.id for item in items if not item.begun]
        return not new or await self._scheduler.change(begun=new)

    async def _is_done(self, item: Outgoing) -> bool:
        del item
        return False  # the command bus finds out

    async def _go_out(self, item: Outgoing) -> None:
        if item.expires_us and to_microseconds(self._clock.now()) >= item.expires_us:
            await self._refuse(item, Rejected(EXPIRED, expires_at=moment(item.expires_us)))
            return
        cls = self._types.find(item.type)
        if cls not in self._codecs:
            self._codecs[cls] = Codec(cls)
        command: Command = self._codecs[cls].decode(item.data)
        try:
            await self._commands.execute(command, item.id, decode(item.metadata, AcceptedFrom).sender)
        except Rejected as rejected:  # and kept, unless it was a middleware that said so
            await self._refuse(item, rejected)

    async def _refuse(self, item: Outgoing, rejected: Rejected) -> None:
        kept = await refuse(self._events, item, rejected)
        if kept is not None and not is_of(kept, item):
            raise CommandIdReused(item.id)

    def _is_hopeless(self, error: Exception) -> bool:
        return isinstance(error, Forbidden | CommandIdReused)


class Scheduler:
    """Holds the commands that were accepted for later, of one history: takes them in, and has them executed.

    Args:
        store: where they wait.
        events: the history, in which their outcomes are kept.
        commands: executes them.
        types: the commands of the application.
        leases: of this worker.
        clock: tells the time.
        monotonic: tells how old a count is.

    Attributes:
        sender: executes what is due, once the scheduler was started.
    """

    process_name = SCHEDULED

    def __init__(
        self,
        store: ProcessStore,
        events: EventStore,
        commands: CommandBus,
        types: MessageTypes,
        leases: ProcessLeases,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sender = ScheduledSender(self, events, commands, types, clock)
        self._store = store
        self._events = events
        self._leases = leases
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._stored: StoredProcess | None = None
        self._forks = 0
        self._task: asyncio.Task[None] | None = None
        self._adding = Together(self._add, ADDED_TOGETHER_MAX, "diptych scheduling")
        self._waiting = 0
        self._counted_at = float("-inf")

    # ── life ─────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Make sure that there is something to lease, and that commands may be executed here.

        Raises:
            NotGranted: this role of the database may not.
        """
        await self._events.outcome(SCHEDULED)  # which nobody may read who may not execute
        await self._store.create(SCHEDULED, Place(self._events.history_id, START, NOWHERE), "")

    def start(self) -> None:
        """Execute what is due from now on, in a task of its own, while it is held."""
        self._task = asyncio.get_running_loop().create_task(self.sender.follow(), name="diptych scheduler")

    async def close(self) -> None:
        """Take in what was given; stop executing: what is under way is cancelled, and comes again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._adding.end()
        self._stored = None

    # ── holding ──────────────────────────────────────────────────────────────

    @property
    def store(self) -> ProcessStore:
        """Where they wait."""
        return self._store

    @property
    def hold(self) -> Hold | None:
        """What this worker's work on them stands on now; None while it may not execute any."""
        stored = self._stored
        if stored is None or self._leases.epoch(SCHEDULED) != stored.epoch or self._forks != self._events.forks:
            return None
        return Hold(stored.epoch, self._forks)

    async def until_held(self) -> None:
        """Take them over, or wait until that may be done.

        Raises:
            HistoryDiverged: the outcomes of what waits here are kept in another history.
        """
        epoch, forks = self._leases.epoch(SCHEDULED), self._events.forks
        if epoch is None:
            await self._leases.wait(LEASE_WAIT_S)
            return
        await self.open()
        (stored,) = [found for found in await self._store.processes() if found.name == SCHEDULED]
        if stored.checkpoint.history_id != self._events.history_id:
            raise HistoryDiverged("what was scheduled", "nothing is executed: restore all of it from one backup")
        if stored.epoch == epoch:
            self._stored, self._forks = stored, forks
        else:
            await self._leases.wait(LEASE_WAIT_S)

    async def settle(self, removed: Collection[str], failed: Sequence[Outgoing]) -> None:
        """Note what has an outcome, and what failed."""
        if await self.change(removed=removed, failed=failed):
            self._waiting -= len(removed) + sum(item.dead for item in failed)

    async def change(
        self, *, removed: Collection[str] = (), begun: Collection[str] = (), failed: Sequence[Outgoing] = ()
    ) -> bool:
        """Note something, if they are held; False where they are not, so that whoever has them does it again."""
        async with self._lock:
            stored = self._stored
            if stored is None:
                return False
            change = ProcessChange(
                process=SCHEDULED,
                epoch=stored.epoch,
                after=stored.checkpoint,
                checkpoint=stored.checkpoint,
                fingerprint=stored.fingerprint,
                removed=removed,
                begun=begun,
                failed=failed,
            )
            done = False
            try:
                done = await self._store.commit(change)
            finally:
                if not done:
                    self._stored = None
            return done

    # ── taking in ────────────────────────────────────────────────────────────

    async def add(self, item: Outgoing) -> Outgoing:
        """Keep a command, durably; those that come at the same moment share one transaction.

        Returns:
            What is kept under its id: it, or what was there before.

        Raises:
            Overloaded: too many wait.
            StoreUnavailable: whether it was done is not known; the same call again tells.
        """
        await self._check_room()
        return await self._adding.result(item)

    def dropped(self) -> None:
        """One that waited was taken out otherwise, such as by cancelling it."""
        self._waiting -= 1

    async def _check_room(self) -> None:
        if self._adding.waiting >= ADDING_MAX:
            raise Overloaded("ADDING_MAX", ADDING_MAX)
        age_max_s = COUNT_AGE_S if self._waiting < SCHEDULED_MAX else FULL_COUNT_AGE_S
        if self._monotonic() - self._counted_at >= age_max_s:
            self._counted_at = self._monotonic()
            self._waiting = (await self._store.count(SCHEDULED)).waiting
        if self._waiting >= SCHEDULED_MAX:
            raise Overloaded("SCHEDULED_MAX", SCHEDULED_MAX)

    async def _add(self, items: Sequence[Outgoing]) -> Sequence[Outgoing]:
        found = await self._store.add(SCHEDULED, items)
        self._waiting += len(items)
        self.sender.wake()
        return found
