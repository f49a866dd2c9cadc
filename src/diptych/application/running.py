"""An application that is open: its parts, wired, started and stopped in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.clock import Clock
from diptych.errors import DiptychError, NotFresh
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START, Position
from diptych.messages.registry import MessageTypes
from diptych.messages.unique_id import unique_id
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.freshness import Freshness
from diptych.read_side.leases import Leases
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import QueryBus, compile_query_handlers
from diptych.read_side.query_source import QuerySource, ReadStoreSource, ReplicaStatus
from diptych.read_side.read_store import Generation, ReadStore
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.slice import Slice
from diptych.read_side.subscriber import Subscription
from diptych.write_side.command_bus import CommandBus, CommandMiddleware

__all__ = ["Health", "ProjectionStatus", "Running", "Status", "wire"]

READY_LAG_MAX = 100_000
"""Events that a projection may be behind before the application says that it is not ready."""
REPLICA_LAG_S_MAX = 60.0
"""Seconds that a replica may be behind before the application's health tells of it."""
PROJECTED_WAIT_S = 5.0
"""Seconds after which `Application.projected` looks again without having been woken: the projector may have failed."""


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one projection, or subscriber, is.

    Attributes:
        name: "school.Seats".
        checkpoint: every event up to this position is folded.
        lag_events: how many positions the history is ahead.
        lag_s: for how many seconds the first event that is not folded has been in the history; 0 at the head.
        slices: into how many its rows are split; the checkpoint is that of the one furthest behind.
        blocked: how many keys are blocked.
        live: whether its rows answer queries; those of a build that has not caught up, or was not begun, do not.
        other_code: whether rows are live that other code folded. They answer where that code still runs.
        stopped: why it cannot go on; empty while it can.
    """

    name: str
    checkpoint: int
    lag_events: int
    lag_s: float
    slices: int = 1
    blocked: int = 0
    live: bool = True
    other_code: bool = False
    stopped: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where an application stands.

    Attributes:
        head: the position of the last event.
        history_id: 32 hexadecimal digits that name the history.
        projections: by name.
        subscribers: by name.
        replicas: that queries are asked on, in the order given, as they were when they were looked at last.
    """

    head: int
    history_id: str
    projections: list[ProjectionStatus]
    subscribers: list[ProjectionStatus]
    replicas: list[ReplicaStatus] = []


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an application can do its work now; if not, why.

    Attributes:
        ready: whether it can.
        reason: why not; empty where it can.
        impaired: what is wrong though it can: replicas that are left out, or far behind.
    """

    ready: bool
    reason: str = ""
    impaired: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Running:
    """The parts of an open application."""

    store: EventStore
    read_store: ReadStore
    query_source: QuerySource
    history: History
    clock: Clock
    commands: CommandBus
    queries: QueryBus
    freshness: Freshness
    projector: Projector
    subscriptions: Sequence[Subscription]
    leases: Leases
    command_types: MessageTypes
    query_types: MessageTypes
    projecting: bool
    context_names: frozenset[str]
    blocked_keys: BlockedKeys
    rebuilds: Rebuilds

    async def open(self) -> None:
        """Open the stores, check that they fit the code and each other, and follow the history."""
        await self.store.open()
        await self.read_store.open()
        await self.query_source.open()
        await self.history.register(self.store, self.context_names)
        await self.commands.open()
        await self.projector.open(making=self.projecting)
        if self.projecting:
            for subscription in self.subscriptions:
                await subscription.open()
            await self.leases.open()
            for subscription in self.subscriptions:
                subscription.start(self.leases)
            await self.projector.start(self.leases)

    async def close(self) -> None:
        """Stop in the order of the data: commands first, the stores last."""
        async with AsyncExitStack() as closing:  # one that fails, or is cancelled, leaves none of the others open
            closing.push_async_callback(self.store.close)
            closing.push_async_callback(self.read_store.close)
            closing.push_async_callback(self.query_source.close)
            closing.push_async_callback(self.leases.close)
            closing.push_async_callback(self.projector.close)
            for subscription in reversed(self.subscriptions):
                closing.push_async_callback(subscription.close)
            closing.push_async_callback(self.commands.close)

    async def status(self) -> Status:
        """How far the history is, and how far everything that follows it."""
        head = (await self.store.head()).position
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
            history_id=self.store.history_id.hex(),
            projections=sorted(projections, key=lambda found: found.name),
            subscribers=sorted(subscribers, key=lambda found: found.name),
            replicas=await self.query_source.replicas(),
        )

    async def _subscriber_status(
        self, subscription: Subscription, checkpoint: Position, head: Position
    ) -> ProjectionStatus:
        return ProjectionStatus(
            name=subscription.subscriber.name,
            checkpoint=checkpoint,
            lag_events=head - checkpoint,
            lag_s=await self._lag_s(checkpoint),
            stopped=subscription.failure,
        )

    async def _lag_s(self, checkpoint: Position) -> float:
        missing = (await self.store.read(ALL_EVENTS, checkpoint, 1)).events
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
        head, seen = (await self.store.head()).position, 0
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


def wire(
    contexts: Sequence[BoundedContext],
    store: EventStore,
    read_store: ReadStore,
    *,
    services: Mapping[type[Any], object],
    middleware: Sequence[CommandMiddleware],
    clock: Clock,
    projecting: bool,
    commands_waiting_max: int,
    query_source: QuerySource | None = None,
) -> Running:
    """Compile the contexts and give every part what it needs; nothing is opened yet.

    Raises:
        ConfigurationError: something in the contexts does not fit.
    """
    types = registration.event_types(contexts)
    history = History(types)
    handlers = registration.command_handlers(contexts, services, types)
    projections = registration.projections(contexts, types)
    query_handlers, answered = compile_query_handlers(
        [found for context in contexts for found in context.query_handlers], projections, services
    )
    freshness = Freshness(store, clock)
    source = query_source or ReadStoreSource(read_store)
    projector = Projector(store, history, read_store, projections)
    by_model = {found.form.cls: (found, projector.fingerprint(found)) for found in projections}
    subscriptions = [
        Subscription(found, store, history, read_store)
        for found in registration.subscribers(contexts, services, types, projections)
    ]
    return Running(
        store=store,
        read_store=read_store,
        query_source=source,
        history=history,
        clock=clock,
        commands=CommandBus(handlers, store, history, clock, middleware=middleware, waiting_max=commands_waiting_max),
        queries=QueryBus(query_handlers, by_model, store, source, freshness),
        freshness=freshness,
        projector=projector,
        subscriptions=subscriptions,
        leases=Leases(
            read_store, lambda: projector.wanted() + [found.lease_key for found in subscriptions], unique_id()
        ),
        command_types=MessageTypes("command", registration.handled_commands(contexts)),
        query_types=MessageTypes("query", registration.handled_queries(contexts, query_handlers, answered)),
        projecting=projecting,
        blocked_keys=BlockedKeys(projector, store, read_store),
        rebuilds=Rebuilds(projector, read_store),
        context_names=frozenset(context.name for context in contexts),
    )
