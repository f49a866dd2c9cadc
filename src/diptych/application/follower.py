"""What follows one log: read models, subscribers and queries, wired, started and stopped in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from diptych.application.parked import Parked
from diptych.application.status import Health, ProjectionStatus, Status
from diptych.clock import Clock
from diptych.errors import DiptychError, HistoryDiverged, NotFresh
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import START, Position, Token
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.stored_query import stored_query
from diptych.messages.query import Query
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.freshness import EVENTUAL, HowFresh, Requirement
from diptych.read_side.leases import Leases
from diptych.read_side.past import AsOf, Past
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import Answer, QueryBus, ReadPanel
from diptych.read_side.query_source import ReplicaStatus
from diptych.read_side.read_model_watch import Watches
from diptych.read_side.read_store import Generation, ReadStore
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.row_history import RowHistories
from diptych.read_side.slice import Slice
from diptych.read_side.subscriber import Subscription

__all__ = ["Follower"]

R = TypeVar("R")

READ_PAGE_EVENTS = 500
"""Events that `Follower.events` reads at once."""
FOLLOW_WAIT_S = 3600.0
"""Seconds after which `Follower.events(follow=True)` looks again without having been woken."""
READY_LAG_MAX = 100_000
"""Events that a projection may be behind before the application says that it is not ready."""
REPLICA_LAG_S_MAX = 60.0
"""Seconds that a replica may be behind before the application's health tells of it."""
PROJECTED_WAIT_S = 5.0
"""Seconds after which `Application.projected` looks again without having been woken: the projector may have failed."""


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Follows one log: its read models, its subscribers, and the queries of them.

    Made by the application. What is known of it, and what is done by hand, is for everyone.

    Attributes:
        name: of the partition; empty where there is only one.
        parked: what failed and waits for somebody: listed, shown, retried, discarded.
        log: what is followed.
        history: reads it with the event classes of the application.
        row_histories: tells how rows came to be, event by event.
    """

    name: str
    log: EventLog
    history: History
    read_store: ReadStore
    clock: Clock
    queries: QueryBus
    panel: ReadPanel
    watches: Watches
    projector: Projector
    subscriptions: Sequence[Subscription]
    leases: Leases
    projecting: bool
    blocked_keys: BlockedKeys
    parked: Parked
    rebuilds: Rebuilds
    past: Past
    row_histories: RowHistories

    async def open(self) -> None:
        """Open the read models, check that they fit the code and the log, which is open, and follow it."""
        await self.read_store.open()
        await self.panel.source.open()
        await self.projector.open(making=self.projecting)
        if self.projecting:
            for subscription in self.subscriptions:
                await subscription.open()
            await self.leases.open()
            for subscription in self.subscriptions:
                subscription.start(self.leases)
            await self.projector.start(self.leases)

    async def close(self) -> None:
        """Stop in the order of the data, the read store last."""
        async with AsyncExitStack() as closing:  # one that fails, or is cancelled, leaves none of the others open
            closing.push_async_callback(self.read_store.close)
            closing.push_async_callback(self.panel.source.close)
            closing.push_async_callback(self.leases.close)
            closing.push_async_callback(self.projector.close)
            for subscription in reversed(self.subscriptions):
                closing.push_async_callback(subscription.close)

    async def requirement(self, after: Sequence[Token] | None, asked: HowFresh, within_s: float | None) -> Requirement:
        """What an answer from this partition has to show, of the tokens, freshness or age that was asked for.

        Raises:
            HistoryDiverged: what a token tells of this history is not in it.
            InvalidMessage: the age is no number of seconds.
        """
        freshness = self.panel.freshness
        if after is not None:
            return await freshness.after(after)
        if within_s is not None:
            return freshness.within(within_s)
        if asked == "overlay":
            return await freshness.overlay()
        return await freshness.latest() if asked == "latest" else EVENTUAL

    async def answer_as_of(self, query: Query[R], as_of: AsOf, wait_s: float) -> Answer[R]:
        """Answer a query as its read models stood then; errors as of `QueryBus.answer` and `Past.moment`."""
        moment = await self.past.moment(as_of)
        return await self.queries.on(self.past.panel(self.panel, moment)).answer(
            query, self.past.requirement(moment), wait_s
        )

    # ── what is known of it ──────────────────────────────────────────────────

    async def events(
        self, query: EventQuery, *, after: int = 0, limit: int | None = None, follow: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """The recorded events that match, ordered by position; with `follow`, those to come as well.

        They are as they are stored. A name or tag of now stands for the former ones as well, see `formerly=`; and what
        was split by an upcaster is given, once, to whoever asks for one of its parts.

        Raises:
            HistoryDiverged: after a failover, other events may be where those were that it gave.
            UnreadableEvent: whether an event has such a part cannot be told.
        """
        store, asked, query = self.log, query, stored_query(query, self.history.types)
        is_meant = self.history.holds(asked)
        position, left, forks = Position(after), limit, store.forks
        while left is None or left > 0:
            found = await store.read(query, position, READ_PAGE_EVENTS if left is None else min(left, READ_PAGE_EVENTS))
            if store.forks != forks:
                raise HistoryDiverged("what was read so far", "the history turned out to be another one; read it anew")
            events = found.events if is_meant is None else [each for each in found.events if is_meant(each)]
            for recorded in events:
                yield recorded
            left = None if left is None else left - len(events)
            position = found.through
            if not found.more:
                if not follow:
                    return
                await store.wait_for_events(position, FOLLOW_WAIT_S)

    async def status(self) -> Status:
        """How far the history is, and how far everything that follows it."""
        head = (await self.log.head()).position
        known = await self.read_store.generations()
        projections: list[ProjectionStatus] = []
        for name in dict.fromkeys(slice.projection.name for slice in self.projector.slices):
            mine = self.projector.slices_of(name)
            stored = _stored([slice.generation for slice in mine], known)
            checkpoint = min(slice.checkpoint.position for slice in stored)
            async with self.read_store.snapshot() as snapshot:
                blocked = await snapshot.blocked(name, stored[0].number)
            projections.append(
                ProjectionStatus(
                    name=name,
                    checkpoint=checkpoint,
                    lag_events=head - checkpoint,
                    lag_s=await self._lag_s(checkpoint),
                    slices=len(stored),
                    blocked=len(blocked),
                    live=stored[0].live,
                    other_code=any(
                        other.name == name and other.live and other.fingerprint != stored[0].fingerprint
                        for other in known
                    ),
                    stopped=_stopped(mine, stored),
                )
            )
        delivered = {found.name: found.checkpoint.position for found in known if found.table is None}
        subscribers = [
            await self._subscriber_status(found, delivered.get(found.subscriber.name, START), head)
            for found in self.subscriptions
        ]
        return Status(
            head=head,
            history_id=self.log.history_id.hex(),
            projections=sorted(projections, key=lambda found: found.name),
            subscribers=sorted(subscribers, key=lambda found: found.name),
            replicas=await self.panel.source.replicas(),
        )

    async def _subscriber_status(
        self, subscription: Subscription, checkpoint: Position, head: Position
    ) -> ProjectionStatus:
        name = subscription.subscriber.name
        async with self.read_store.snapshot() as snapshot:
            failing = [found.error for found in await snapshot.blocked(name)]
        return ProjectionStatus(
            name=name,
            checkpoint=checkpoint,
            lag_events=head - checkpoint,
            lag_s=await self._lag_s(checkpoint),
            stopped=subscription.failure or next(iter(failing), ""),
            blocked=len(failing),
        )

    async def _lag_s(self, checkpoint: Position) -> float:
        missing = (await self.log.read(ALL_EVENTS, checkpoint, 1)).events
        return max(0.0, (self.clock.now() - missing[0].recorded_at).total_seconds()) if missing else 0.0

    async def health(self) -> Health:
        """Whether the store is reachable, and the projections run and keep up."""
        failure = self.projector.failure or self.leases.failure
        if self.projecting and failure:
            return Health(ready=False, reason=f"projections have stopped: {failure}")
        try:
            status = await self.status()
        except DiptychError as error:
            return Health(ready=False, reason=str(error))
        for found in status.projections:
            if found.stopped:
                return Health(ready=False, reason=f"projection {found.name} has stopped: {found.stopped}")
            if found.lag_events > READY_LAG_MAX:
                return Health(ready=False, reason=f"projection {found.name} is {found.lag_events} events behind")
        return Health(ready=True, impaired=tuple(filter(None, map(_impaired, status.replicas))))

    async def projected(self) -> None:
        """Wait until every projection that can go on shows the history as it is now.

        Raises:
            NotFresh: nobody moves them, or they have stopped altogether.
        """
        head, seen = (await self.log.head()).position, 0
        while True:
            behind = await self._behind(head)
            if behind is None:
                return
            failure = self.projector.failure or self.leases.failure
            if failure or not self.projecting:
                reason = failure or "this application does not project"
                raise NotFresh(behind.name, head, behind.checkpoint.position, reason)
            seen = await self.read_store.wait_for_change(seen, PROJECTED_WAIT_S)

    async def _behind(self, head: Position) -> Generation | None:
        """One that can go on and does not show the history up to there; by the store, for others may fold it."""
        async with self.projector.lock:  # a commit wakes us before the projector itself has noted it
            going_on = [slice for slice in self.projector.slices if not slice.stopped]
            behind = {slice.projection.name for slice in going_on if _is_behind(slice.generation, head)}
            known = await self.read_store.generations() if behind else ()
            followed = [[slice.generation for slice in self.projector.slices_of(name)] for name in sorted(behind)]
        stored = [found for mine in followed for found in _going_on(_stored(mine, known))]
        return next((found for found in stored if _is_behind(found, head)), None)


def _impaired(replica: ReplicaStatus) -> str:
    """What is wrong with a replica; empty where nothing is."""
    if replica.left_out:
        return f"no query is asked on the replica {replica.url}: {replica.left_out}"
    behind = f"the replica {replica.url} is {replica.lag_s:.0f} s behind"
    return behind if replica.lag_s > REPLICA_LAG_S_MAX else ""


def _is_behind(generation: Generation, head: Position) -> bool:
    return generation.checkpoint.position < head or not generation.live


def _going_on(slices: Sequence[Generation]) -> Sequence[Generation]:
    """Those that can go on; none where one that has stopped keeps them from being live."""
    stopped = any(slice.stopped for slice in slices)
    return [] if stopped and not slices[0].live else [slice for slice in slices if not slice.stopped]


def _stopped(mine: Sequence[Slice], stored: Sequence[Generation]) -> str:
    """Why a projection cannot go on: as it is stored, or here, unless another process has gone on with it."""
    reasons = [found.stopped for found in stored if found.stopped]
    reached = {found.slice: found.checkpoint.position for found in stored}
    here = [slice for slice in mine if slice.stopped and reached.get(slice.generation.slice, START) <= slice.position]
    return next(iter(reasons + [slice.stopped for slice in here]), "")


def _stored(mine: Sequence[Generation], known: Sequence[Generation]) -> Sequence[Generation]:
    """A generation's slices as they are now; or those of the same code that another process has made meanwhile."""
    same = [found for found in known if (found.name, found.fingerprint) == (mine[0].name, mine[0].fingerprint)]
    if not same:
        return mine
    newest = max(same, key=lambda found: (found.number == mine[0].number, found.live, found.number))
    return [found for found in same if found.number == newest.number]
