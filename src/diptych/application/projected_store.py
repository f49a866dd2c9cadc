"""One read store of a log: the read models in it, what folds them, and what answers from them.

Each has a projector, leases and checkpoints of its own, so that one that cannot be reached holds up no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeAlias

from diptych.application.status import ProjectionStatus
from diptych.errors import NotFresh, Unavailable
from diptych.event_store.position import START, Position
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.changed_code import refuse_changed, wait_until_built
from diptych.read_side.leases import Leases
from diptych.read_side.past import Past
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import ReadPanel
from diptych.read_side.read_store import Generation, ReadStore
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.slice import Slice
from diptych.read_side.subscriber import Subscription

__all__ = ["Lag", "ProjectedStore"]

READY_LAG_MAX = 100_000
"""Events that a projection may be behind before the application says that it is not ready."""
PROJECTED_WAIT_S = 5.0
"""Seconds after which `Application.projected` looks again without having been woken: the projector may have failed."""

Lag: TypeAlias = Callable[[Position], Awaitable[tuple[int, float]]]
"""How many events, and for how many seconds, a checkpoint is behind."""


@dataclass(frozen=True, kw_only=True)
class ProjectedStore:
    """One of the read stores of a log. Made by the application.

    Attributes:
        url: where it is, without a password; empty where it is the only one, and is kept where the events are.
        panel: of the read models whose queries it answers.
        projector: folds these, and those that another store answers from.
        subscriptions: whose progress is kept here.
        projecting: whether this process folds what is here. A store in its memory nobody else can.
        delivering: whether this process delivers to subscribers.
    """

    url: str
    read_store: ReadStore
    panel: ReadPanel
    projector: Projector
    leases: Leases
    subscriptions: Sequence[Subscription]
    blocked_keys: BlockedKeys
    rebuilds: Rebuilds
    policy: RebuildPolicy
    past: Past
    projecting: bool
    delivering: bool

    async def open(self) -> None:
        """Open the read models, check that they fit the code and the log, which is open, and follow it."""
        await self.read_store.open()
        await self.panel.source.open()
        code = {projection.name: fingerprint for projection, fingerprint in self.panel.projections.values()}
        if self.policy.on_changed == "refuse":
            await refuse_changed(self.read_store, self.projector.fingerprints)  # also where another store answers
        await self.projector.open(making=self.projecting)
        if self.delivering:
            for subscription in self.subscriptions:
                await subscription.open()
        if self.projecting or self.delivering:
            await self.leases.open()
        if self.projecting:
            await self.projector.start(self.leases)
        if self.policy.on_changed == "wait":  # deliveries wait for that too
            await wait_until_built(self.projector, self.read_store, code, lambda: self.failure)
        if self.delivering:
            for subscription in self.subscriptions:
                subscription.start(self.leases)

    async def close(self) -> None:
        """Stop in the order of the data, the read store last."""
        async with AsyncExitStack() as closing:  # one that fails, or is cancelled, leaves none of the others open
            closing.push_async_callback(self.read_store.close)
            closing.push_async_callback(self.panel.source.close)
            closing.push_async_callback(self.leases.close)
            closing.push_async_callback(self.projector.close)
            for subscription in reversed(self.subscriptions):
                closing.push_async_callback(subscription.close)

    # ── what is known of it ──────────────────────────────────────────────────

    @property
    def failure(self) -> str:
        """Why nothing is folded here any more; empty while all is well, and where others fold it."""
        return (self.projector.failure or self.leases.failure) if self.projecting else ""

    def answers(self, name: str) -> bool:
        """Whether queries of a projection's read model are answered from here."""
        return any(name == found.name for found, _ in self.panel.projections.values())

    def names(self) -> list[str]:
        """Of the projections, "school.Seats"."""
        return list(dict.fromkeys(slice.projection.name for slice in self.projector.slices))

    async def projections(self, lag: Lag) -> list[ProjectionStatus]:
        """How far each projection is."""
        known = await self.read_store.generations()
        return [await self._status(name, known, lag) for name in self.names()]

    async def _status(self, name: str, known: Sequence[Generation], lag: Lag) -> ProjectionStatus:
        mine = self.projector.slices_of(name)
        stored = _stored([slice.generation for slice in mine], known)
        checkpoint = min(slice.checkpoint.position for slice in stored)
        async with self.read_store.snapshot() as snapshot:
            blocked = await snapshot.blocked(name, stored[0].number)
        lag_events, lag_s = await lag(checkpoint)
        kept = [found for found in known if found.name == name and found.kept_until is not None]
        return ProjectionStatus(
            name=name,
            checkpoint=checkpoint,
            lag_events=lag_events,
            lag_s=lag_s,
            slices=len(stored),
            blocked=len(blocked),
            live=stored[0].live,
            other_code=any(
                other.name == name and other.live and other.fingerprint != stored[0].fingerprint for other in known
            ),
            stopped=_stopped(mine, stored),
            kept_until=kept[0].kept_until if kept else None,
            kept_checkpoint=min((slice.checkpoint.position for slice in kept), default=START),
            store=self.url,
        )

    async def subscribers(self, lag: Lag) -> list[ProjectionStatus]:
        """How far each subscriber is."""
        known = await self.read_store.generations() if self.subscriptions else ()
        delivered = {found.name: found.checkpoint.position for found in known if found.table is None}
        return [await self._subscriber(found, delivered, lag) for found in self.subscriptions]

    async def _subscriber(
        self, subscription: Subscription, delivered: Mapping[str, Position], lag: Lag
    ) -> ProjectionStatus:
        name = subscription.subscriber.name
        checkpoint = delivered.get(name, START)
        async with self.read_store.snapshot() as snapshot:
            failing = [found.error for found in await snapshot.blocked(name)]
        lag_events, lag_s = await lag(checkpoint)
        return ProjectionStatus(
            name=name,
            checkpoint=checkpoint,
            lag_events=lag_events,
            lag_s=lag_s,
            stopped=subscription.failure or next(iter(failing), ""),
            blocked=len(failing),
            store=self.url,
        )

    async def unreachable(self, error: Unavailable, lag: Lag) -> list[ProjectionStatus]:
        """How far each projection was when this process last heard of it."""
        return [
            await self._last_heard(name, min(slice.position for slice in mine), str(error), lag, mine)
            for name in self.names()
            if (mine := self.projector.slices_of(name))
        ]

    async def unreachable_subscribers(self, error: Unavailable, lag: Lag) -> list[ProjectionStatus]:
        """How far each subscriber was, likewise."""
        return [
            await self._last_heard(found.subscriber.name, found.position, str(error), lag)
            for found in self.subscriptions
        ]

    async def _last_heard(
        self, name: str, checkpoint: Position, error: str, lag: Lag, slices: Sequence[Slice] = ()
    ) -> ProjectionStatus:
        lag_events, lag_s = await lag(checkpoint)
        return ProjectionStatus(
            name=name,
            checkpoint=checkpoint,
            lag_events=lag_events,
            lag_s=lag_s,
            slices=len(slices) or 1,
            live=all(slice.generation.live for slice in slices),
            stopped=error,
            store=self.url,
        )

    def wrong(self, projections: Sequence[ProjectionStatus]) -> str:
        """What is wrong with it, where these are its projections; empty where nothing is."""
        if self.failure:
            return f"projections have stopped: {self.failure}"
        for found in projections:
            if found.stopped:
                return f"projection {found.name} has stopped: {found.stopped}"
            if found.lag_events > READY_LAG_MAX:
                return f"projection {found.name} is {found.lag_events} events behind"
        return ""

    async def projected(self, head: Position) -> None:
        """Wait until every projection that can go on shows the history up to there.

        Raises:
            NotFresh: nobody moves them, or they have stopped altogether.
        """
        seen = 0
        while True:
            behind = await self._behind(head)
            if behind is None:
                return
            if self.failure or not self.projecting:
                reason = self.failure or "this application does not project"
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


def _is_behind(generation: Generation, head: Position) -> bool:
    return generation.checkpoint.position < head or generation.under_way


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
    newest = max(same, key=lambda found: (found.live, found.number == mine[0].number, found.number))
    return [found for found in same if found.number == newest.number]
