"""What follows one log: read models, subscribers and queries, wired, started and stopped in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from diptych.application.parked import Parked
from diptych.application.projected_store import Lag, ProjectedStore
from diptych.application.routed_rebuilds import RoutedRebuilds
from diptych.application.status import Health, ProjectionStatus, Status
from diptych.clock import Clock
from diptych.errors import ConfigurationError, DiptychError, HistoryDiverged, StoreUnavailable, Unavailable
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import Position, Token, read_tokens
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.stored_query import stored_query
from diptych.messages.event import Event
from diptych.messages.query import Query
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.event_rows import EventRows
from diptych.read_side.freshness import EVENTUAL, WAIT_S, HowFresh, Requirement, check_wait
from diptych.read_side.leases import Leases
from diptych.read_side.past import AsOf, Past
from diptych.read_side.past_rows import Moment
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import Answer, Handle, Handled, ReadPanel, answered
from diptych.read_side.query_context import QueryContext, query_context
from diptych.read_side.query_source import ReplicaStatus
from diptych.read_side.read_model import ReadModel
from diptych.read_side.read_model_rows import ReadModelRows, in_copy_time
from diptych.read_side.read_model_watch import Watches
from diptych.read_side.read_store import ReadStore
from diptych.read_side.routed_queries import RoutedQueries
from diptych.read_side.row_history import RowHistories
from diptych.security import actor_of

__all__ = ["Follower"]

R = TypeVar("R")

READ_PAGE_EVENTS = 500
"""Events that `Follower.events` reads at once."""
FOLLOW_WAIT_S = 3600.0
"""Seconds after which `Follower.events(follow=True)` looks again without having been woken."""
STATUS_S_MAX = 2.0
"""Seconds that one of several read stores has to tell how far its projections are; past it, it cannot be reached."""
REPLICA_LAG_S_MAX = 60.0
"""Seconds that a replica may be behind before the application's health tells of it."""


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Follows one log: its read models, its subscribers, and the queries of them.

    Made by the application. What is known of it, and what is done by hand, is for everyone.

    Attributes:
        name: of the partition; empty where there is only one.
        stores: the read stores, at least one; the first is the default one, which keeps what subscribers have heard.
        parked: what failed and waits for somebody: listed, shown, retried, discarded.
        log: what is followed.
        history: reads it with the event classes of the application.
        rebuilds: builds read models anew, wherever they are.
        row_histories: tells how rows came to be, event by event.
    """

    name: str
    log: EventLog
    history: History
    stores: Sequence[ProjectedStore]
    clock: Clock
    queries: RoutedQueries
    watches: Watches
    projecting: bool
    parked: Parked
    rebuilds: RoutedRebuilds
    row_histories: RowHistories

    @property
    def read_store(self) -> ReadStore:
        """The default one."""
        return self.stores[0].read_store

    @property
    def panel(self) -> ReadPanel:
        """What answers from the default one."""
        return self.stores[0].panel

    @property
    def projector(self) -> Projector:
        """What folds the read models in the default one."""
        return self.stores[0].projector

    @property
    def leases(self) -> Leases:
        """On what is in the default one."""
        return self.stores[0].leases

    @property
    def blocked_keys(self) -> BlockedKeys:
        """Of the read models in the default one."""
        return self.stores[0].blocked_keys

    @property
    def past(self) -> Past:
        """Finds past moments of the log."""
        return self.stores[0].past

    async def open(self) -> None:
        """Open the read stores, check that they fit the code and the log, which is open, and follow it."""
        for store in self.stores:
            await store.open()

    async def close(self) -> None:
        """Stop in the order of the data, each read store after what works on it."""
        async with AsyncExitStack() as closing:  # one that fails, or is cancelled, leaves none of the others open
            for store in self.stores:
                closing.push_async_callback(store.close)

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

    async def answer_as_of(
        self, query: Query[R], as_of: AsOf, wait_s: float, context: QueryContext, by: Handle | None = None
    ) -> Answer[R]:
        """Answer a query as its read models stood then; errors as of `QueryBus.answer` and `Past.moment`."""
        moment = await self.past.moment(as_of)
        return await self.queries.on(self.panels_at(moment)).answer(
            query, self.past.requirement(moment), wait_s, context, by
        )

    def panels_at(self, moment: Moment) -> list[ReadPanel]:
        """The panels of the read models as they stood then, for one answer."""
        return [store.past.panel(store.panel, moment) for store in self.stores]

    # ── all of it, for whoever wants columns ─────────────────────────────────

    @property
    def read_models(self) -> Mapping[str, type[ReadModel]]:
        """By name, "school.Seats"."""
        panels = [store.panel for store in self.stores]
        return {found.name: found.form.cls for panel in panels for found, _ in panel.projections.values()}

    def read_model_rows(
        self,
        model: type[ReadModel],
        /,
        *,
        after: str | None = None,
        freshness: Literal["eventual", "latest"] = "eventual",
        wait_s: float = WAIT_S,
    ) -> ReadModelRows:
        """Every row of a read model, of one moment, to be read as columns: see `diptych.adapters.duckdb.columnar_rows`.

        Like `events` it is for whoever may see everything: no middleware is asked. While they are read, one snapshot
        is held.

        Args:
            model: the read model.
            after: a token: they show at least that.
            freshness: "latest": everything that is in the history when they are read, once it is projected.
            wait_s: for how long to wait for that, 0 to 60 seconds.

        Raises:
            ConfigurationError: no projection feeds it.
            InvalidMessage: the token is none, or the wait too long.
        """
        panels = [store.panel for store in self.stores if model in store.panel.projections]
        if not panels:
            raise ConfigurationError(f"no projection of this application feeds {model.__name__}")
        panel, tokens = panels[0], None if after is None else read_tokens(after)
        check_wait(wait_s)

        async def ask(handle: Handled) -> Answer[Any]:
            requirement = await self.requirement(tokens, freshness, None)
            context = query_context(actor_of(None), self.clock.now())
            return await answered(panel, handle, requirement, wait_s, context, in_copy_time)

        return ReadModelRows(panel.projections[model][0], ask)

    def event_rows(self, event: type[Event], /, *, after: int = 0) -> EventRows:
        """Every event of one type, to be read as columns, one for each field: see `EventRows`."""
        return EventRows(event, self.log, self.history, after)

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
        """How far the history is, and how far everything that follows it.

        A read store that cannot be reached, where there are others, is told of by what is known here.
        """
        head = (await self.log.head()).position
        told = [(store, each) for store, found, _ in await self._projections(head) for each in found]
        told.sort(key=lambda found: (found[1].name, not found[0].answers(found[1].name)))
        return Status(
            head=head,
            history_id=self.log.history_id.hex(),
            projections=[each for _, each in told],
            subscribers=sorted(await self._subscribers(head), key=lambda found: found.name),
            replicas=await self.panel.source.replicas(),
        )

    async def _projections(self, head: Position) -> list[tuple[ProjectedStore, list[ProjectionStatus], str]]:
        """How far the projections of each read store are, and what is wrong with it; empty where nothing is."""
        lag = self._lag_behind(head)
        return await asyncio.gather(*(self._projections_in(store, lag) for store in self.stores))

    async def _projections_in(
        self, store: ProjectedStore, lag: Lag
    ) -> tuple[ProjectedStore, list[ProjectionStatus], str]:
        try:
            statuses = await self._told(store, store.projections(lag))
        except Unavailable as error:
            if len(self.stores) == 1:
                raise
            wrong = str(error) if store.url in str(error) else f"read store {store.url}: {error}"
            return store, await store.unreachable(error, lag), wrong
        wrong = store.wrong(statuses)
        return store, statuses, f"read store {store.url}: {wrong}" if wrong and store.url else wrong

    async def _told(self, store: ProjectedStore, asked: Awaitable[list[ProjectionStatus]]) -> list[ProjectionStatus]:
        """What a read store tells: where there are others, none of these waits for one that hangs."""
        limit = asyncio.timeout(None if len(self.stores) == 1 else STATUS_S_MAX)
        try:
            async with limit:
                return await asked
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StoreUnavailable(f"{store.url}: no answer within STATUS_S_MAX={STATUS_S_MAX:g} s") from error

    async def _subscribers(self, head: Position) -> list[ProjectionStatus]:
        default, lag = self.stores[0], self._lag_behind(head)
        try:
            return await self._told(default, default.subscribers(lag))
        except Unavailable as error:
            if len(self.stores) == 1:
                raise
            return await default.unreachable_subscribers(error, lag)

    def _lag_behind(self, head: Position) -> Lag:
        async def lag(checkpoint: Position) -> tuple[int, float]:
            return head - checkpoint, await self._lag_s(checkpoint)

        return lag

    async def _lag_s(self, checkpoint: Position) -> float:
        missing = (await self.log.read(ALL_EVENTS, checkpoint, 1)).events
        return max(0.0, (self.clock.now() - missing[0].recorded_at).total_seconds()) if missing else 0.0

    async def health(self) -> Health:
        """Whether a read store is reachable, and its projections run and keep up: one that is not is told of."""
        try:
            found = await self._projections((await self.log.head()).position)
        except DiptychError as error:
            return Health(ready=False, reason=self.stores[0].failure or str(error))
        told = [wrong for _, _, wrong in found if wrong]
        working = [not wrong for store, statuses, wrong in found if statuses or store.subscriptions or wrong]
        if told and not any(working):
            return Health(ready=False, reason=told[0])
        replicas = filter(None, map(_impaired, await self.panel.source.replicas()))
        return Health(ready=True, impaired=(*told, *replicas))

    async def projected(self) -> None:
        """Wait until every projection that can go on, in every read store, shows the history as it is now.

        Raises:
            NotFresh: nobody moves them, or they have stopped altogether.
        """
        head = (await self.log.head()).position
        for store in self.stores:
            await store.projected(head)


def _impaired(replica: ReplicaStatus) -> str:
    """What is wrong with a replica; empty where nothing is."""
    if replica.left_out:
        return f"no query is asked on the replica {replica.url}: {replica.left_out}"
    behind = f"the replica {replica.url} is {replica.lag_s:.0f} s behind"
    return behind if replica.lag_s > REPLICA_LAG_S_MAX else ""
