"""The runner: follows the history for one process, and has its instances react.

    event store ──▶ read after the checkpoint ──▶ load the instances named ──▶ react, in order ──▶ one commit:
                                                        states, commands, timeouts, checkpoint (rule 43)

Only what this worker has on lease is worked on; and each commit is fenced by checkpoint and epoch, so two runners of
one process, whichever way that came about, waste work, and send nothing that was not kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence

from diptych.clock import Clock, pause
from diptych.errors import HistoryDiverged, UnreadableEvent
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import EventStore
from diptych.event_store.head_watch import HeadWatch
from diptych.event_store.history import History
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.timestamp import to_microseconds
from diptych.failures import told
from diptych.messages.registry import MessageTypes
from diptych.process_managers.process_events import StepRetried, StepSkipped
from diptych.process_managers.process_leases import ProcessLeases
from diptych.process_managers.process_manager import Process
from diptych.process_managers.process_store import Outgoing, ProcessChange, ProcessStore, StoredProcess
from diptych.process_managers.reactions import Folded, Given, Outbox
from diptych.process_managers.sender import Execute, Hold, ProcessSender

__all__ = ["ProcessRunner"]

BATCH_EVENTS_MAX = 500
"""Events that one commit takes in."""
CHECKPOINT_EVENTS = 1_000
"""Positions without anything for a process after which its checkpoint is written all the same."""
CATCH_UP_EVENTS = 500
"""Events read at once for an instance that goes on."""
REACTING_S_MAX = 0.02
"""Seconds for which events are reacted to before other work of the event loop has its turn."""
BLOCKED_PAGE = 100
"""Blocked instances that are looked at together, where the code has changed."""
IDLE_WAIT_S = 5.0
"""Seconds after which an idle runner looks again without having been woken."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 30.0
"""Seconds between tries while something fails: doubled each time, up to the second."""

_log = logging.getLogger("diptych.processes")


class ProcessRunner:
    """Runs one process.

    Attributes:
        process: which.
        fingerprint: of its code.
        failure: why it does not go on; empty while it does.
        stopped: it does not go on by itself here.
        position: up to where it has followed the history, as far as is known here.
    """

    def __init__(
        self,
        process: Process,
        events: EventStore,
        history: History,
        store: ProcessStore,
        leases: ProcessLeases,
        commands: MessageTypes,
        execute: Execute,
        clock: Clock,
        fingerprint: str,
    ) -> None:
        self.process = process
        self._store = store
        self.fingerprint = fingerprint
        self.failure = ""
        self.stopped = False
        self.position = START
        self.outbox = Outbox(process, commands, history.types)
        self.sender = ProcessSender(process, self, events, history.types, commands, execute, clock)
        self._events = events
        self._history = history
        self._leases = leases
        self._clock = clock
        self._lock = asyncio.Lock()
        self._stored: StoredProcess | None = None
        self._mending = False
        self._forks = 0
        self._turn_began = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._moves = HeadWatch()

    # ── life ─────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Find its checkpoint, or make it: a new process begins at the head, or with the first event if told to."""
        begin = Place(self._events.history_id, START, NOWHERE)
        head = begin if self.process.from_beginning else await self._events.head()
        self.position = (await self._store.create(self.process.name, head, self.fingerprint)).checkpoint.position

    def start(self) -> None:
        """React and send from now on, in tasks of their own, while it is held."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._follow(), name=f"diptych process {self.process.name}"),
            loop.create_task(self.sender.follow(), name=f"diptych sender {self.process.name}"),
        ]

    async def close(self) -> None:
        """Stop; what is under way is cancelled, and comes again."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._stored = None

    @property
    def process_name(self) -> str:
        """Which one."""
        return self.process.name

    @property
    def store(self) -> ProcessStore:
        """Where it is kept."""
        return self._store

    @property
    def hold(self) -> Hold | None:
        """What this worker's work on it stands on now; None while it may not, or retries what was blocked."""
        stored = None if self._mending else self._stored
        if stored is None or self._leases.epoch(self.process.name) != stored.epoch or self._forks != self._events.forks:
            return None
        return Hold(stored.epoch, self._forks)

    async def until_held(self) -> None:
        """Wait until that may have changed."""
        await self._moves.wait(IDLE_WAIT_S)

    async def moved(self, timeout_s: float) -> None:
        """Wait until it has gone on."""
        await self._moves.wait(timeout_s)

    async def _follow(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self.stopped:
            try:
                await self._step()
                self.failure, backoff_s = self.failure if self.stopped else "", BACKOFF_FIRST_S
            except UnreadableEvent as error:
                self._stop(f"{told(error)}. It is left to workers with other code")
                await self._leases.leave(self.process.name)
            except Exception as error:  # noqa: BLE001  # whatever it is: told by status and health, and tried again
                self.failure = told(error)
                _log.error("process %s tries again in %.1f s: %s", self.process.name, backoff_s, self.failure)
                await pause(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _stop(self, reason: str) -> None:
        self.failure, self.stopped, self._stored = reason, True, None
        _log.error("process %s has stopped: %s", self.process.name, reason)
        self._moves.wake()

    async def _step(self) -> None:
        epoch = self._leases.epoch(self.process.name)
        if epoch is None:
            self._stored = None
            await self._leases.wait(IDLE_WAIT_S)
        elif self._stored is None or self._stored.epoch != epoch or self._forks != self._events.forks:
            await self._take_over(epoch)
        elif not await self._react():
            await self._events.wait_for_events(self.position, IDLE_WAIT_S)

    async def _take_over(self, epoch: int) -> None:
        """Go on where whoever had it last has left it; what is there is verified first (rule 17)."""
        forks = self._events.forks
        await self.open()
        (stored,) = [found for found in await self._store.processes() if found.name == self.process.name]
        place = await self._events.place_at(stored.checkpoint.position)
        event_id = None if place is None else place.event_id
        try:
            stored.checkpoint.check(self._events.history_id, event_id, f"the process {self.process.name}")
        except HistoryDiverged as error:
            if forks == self._events.forks:  # else it was compared with what is no history any more
                self._stop(f"{error}. Nothing is sent: restore events and processes from one backup")
            return
        if stored.epoch != epoch:
            await self._leases.wait(IDLE_WAIT_S)
            return
        self._stored, self.position, self._forks = stored, stored.checkpoint.position, forks
        if stored.fingerprint != self.fingerprint:
            self._mending = True
            try:
                await self._go_on_with_new_code()
            except BaseException:
                self._stored = None  # with the next try all of it begins anew
                raise
            finally:
                self._mending = False
        self._moves.wake()
        self.sender.wake()

    # ── reacting ─────────────────────────────────────────────────────────────

    async def _react(self) -> bool:
        """Take in the next events; False at the head."""
        stored = self._stored
        assert stored is not None, "it was taken over"
        found = await self._events.read(self.process.query, self.position, BATCH_EVENTS_MAX)
        if found.through == self.position:
            return False
        folded = await self._folded(found.events)
        quiet = found.through - stored.checkpoint.position < CHECKPOINT_EVENTS
        if not (quiet and not folded.changes_anything):
            place = await self._events.place_at(found.through)
            if self._forks != self._events.forks:
                return True  # what was read may be of another history
            assert place is not None, "the store said that this position was read"
            if not await self._commit(folded, place, self.fingerprint):
                return True
        self.position = found.through
        self._moves.wake()
        return True

    async def _folded(self, events: Sequence[RecordedEvent]) -> Folded:
        named = dict.fromkeys(found for recorded in events for found in self.process.named_by(recorded.tags))
        folded = await self._begun(named)
        self._turn_began = time.monotonic()
        splitting = self._history.types.splitting
        for recorded in events:
            if recorded.type in splitting:
                await self._take_parts(folded, recorded)
                continue
            given = self._given(recorded)
            for instance in self.process.named_by(recorded.tags):
                await self._take(folded, instance, given)
                await self._let_others()
        return folded

    async def _take_parts(self, folded: Folded, recorded: RecordedEvent, only: str | None = None) -> None:
        """Let the instances that they name, or one alone, take the parts of an event that may be several, or none."""
        found = self._history.matching(recorded, self.process.wanted)
        parts = [Given(recorded, event, self._history.context(recorded, ordinal)) for ordinal, event in found]
        named: dict[str, list[Given]] = {}
        for given in parts:
            tags = self._history.types.of(type(given.event)).tags(given.event)
            for instance in self.process.named_by(tags):
                named.setdefault(instance, []).append(given)
        for instance, mine in named.items():
            if only is None or instance == only:
                folded.take_together(instance, mine)
                await self._let_others()

    async def _let_others(self) -> None:
        if time.monotonic() - self._turn_began >= REACTING_S_MAX:
            await pause()
            self._turn_began = time.monotonic()

    async def _begun(self, instances: Collection[str]) -> Folded:
        known = await self._store.instances(self.process.name, list(instances)) if instances else []
        return Folded(self.process, self.outbox, known)

    async def _take(self, folded: Folded, instance: str, given: Given) -> None:
        by_hand, kind, before = self.process.by_hand, type(given.event), given.recorded.position
        if kind is by_hand.retried:
            folded.revive(instance)
            await self._catch_up(folded, instance, before)
        elif kind is by_hand.closed:
            folded.close(instance, given)
        elif kind is by_hand.given:
            folded.give(instance, given)
        elif kind is by_hand.outgoing_retried:
            folded.resend(instance, given)
        elif kind is by_hand.outgoing_discarded:
            folded.discard(given)
        elif isinstance(given.event, StepRetried | StepSkipped):
            if folded.is_blocked_at(instance, given.event.position):
                await self._catch_up(folded, instance, before, skipping=kind is by_hand.step_skipped)
        else:
            folded.take(instance, given)

    async def _catch_up(self, folded: Folded, instance: str, before: int, *, skipping: bool = False) -> None:
        """Let a blocked instance take what it has missed, from the log, in order; or all but the first of it."""
        known = folded.find(instance)
        if known is None or not known.blocked:
            return
        after, more = Position(known.blocked if skipping else known.blocked - 1), True
        query = self.process.of_instance(instance)
        folded.unblock(instance)
        while more:
            after, more = await self._catch_up_page(folded, instance, query, after, before)

    async def _catch_up_page(
        self, folded: Folded, instance: str, query: EventQuery, after: Position, before: int
    ) -> tuple[Position, bool]:
        found = await self._events.read(query, after, CATCH_UP_EVENTS, until=Position(before - 1))
        for recorded in found.events:
            if recorded.type in self._history.types.splitting:
                await self._take_parts(folded, recorded, instance)
                continue
            given = self._given(recorded)
            if type(given.event) not in self.process.by_hand:  # which was taken in when it came
                folded.take(instance, given)
                await self._let_others()
        return found.through, found.more

    def _given(self, recorded: RecordedEvent) -> Given:
        event = self._history.event(recorded)
        self._history.check_tagged(recorded, event)  # by its tags it found its instances, and missed none
        return Given(recorded, event, self._history.context(recorded))

    async def _go_on_with_new_code(self) -> None:
        """Instances keep their states; those that are blocked are tried again, for the code may be mended."""
        stored = self._stored
        assert stored is not None, "it was taken over"
        place, more = stored.checkpoint, True
        after: str | None = None
        while more:
            page = await self._store.page(self.process.name, after, BLOCKED_PAGE, stuck=True)
            folded = await self._begun([found.id for found in page])
            for found in page:
                await self._catch_up(folded, found.id, place.position + 1)
            more = len(page) == BLOCKED_PAGE
            if not await self._commit(folded, place, stored.fingerprint if more else self.fingerprint):
                return
            after = page[-1].id if page else None

    # ── committing ───────────────────────────────────────────────────────────

    async def settle(self, removed: Collection[str], failed: Sequence[Outgoing]) -> None:
        """Note what has gone out, and what has not."""
        async with self._lock:
            stored = self._stored
            if stored is None:
                return  # whoever has it now sends it again, to no effect
            change = ProcessChange(
                process=stored.name,
                epoch=stored.epoch,
                after=stored.checkpoint,
                checkpoint=stored.checkpoint,
                fingerprint=stored.fingerprint,
                removed=removed,
                failed=failed,
            )
            await self._committed(change)

    async def _commit(self, folded: Folded, place: Place, fingerprint: str) -> bool:
        async with self._lock:
            stored = self._stored
            if stored is None:
                return False
            now_us = to_microseconds(self._clock.now())
            change = folded.change(stored.epoch, stored.checkpoint, place, fingerprint, now_us)
            if not await self._committed(change):
                return False
        self.sender.wake()
        return True

    async def _committed(self, change: ProcessChange) -> bool:
        """Make a change true; where somebody else has made one, look again where the process is."""
        try:
            done = await self._store.commit(change)
        except BaseException:
            self._stored = None  # whether it was done, the store tells
            raise
        self._stored = (
            StoredProcess(change.process, change.checkpoint, change.fingerprint, change.epoch) if done else None
        )
        return done
