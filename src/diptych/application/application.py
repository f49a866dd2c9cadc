"""The application: contexts, stores and services, wired and run.

The wiring is done once, when it opens: contexts load their modules, events are found from annotations, handlers and
projections are compiled against them, and whatever does not fit is a `ConfigurationError` before the first command.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from diptych.application.bounded_context import BoundedContext
from diptych.application.running import Health, Running, Status, wire
from diptych.clock import Clock, SystemClock
from diptych.errors import ConfigurationError, HistoryDiverged, InvalidMessage, StoreClosed
from diptych.event_store.event_query import EventQuery
from diptych.event_store.position import Position
from diptych.messages.command import Command
from diptych.messages.query import Query
from diptych.messages.registry import MessageTypes
from diptych.read_side.freshness import EVENTUAL, WAIT_S, Freshness, Requirement
from diptych.read_side.query_bus import Answer
from diptych.read_side.rebuild import Rebuilds
from diptych.write_side.command_bus import CommandMiddleware, Sender
from diptych.write_side.group_commit import COMMANDS_WAITING_MAX
from diptych.write_side.idempotency import Receipt

if TYPE_CHECKING:
    from typing import Self

    from diptych.event_store.event_store import EventStore
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.read_side.query_source import QuerySource, ReplicaPolicy
    from diptych.read_side.read_store import BlockedKey, ReadStore

__all__ = ["Application"]

R = TypeVar("R")
READ_PAGE_EVENTS = 500
"""Events that `Application.events` reads at once."""
FOLLOW_WAIT_S = 3600.0
"""Seconds after which `Application.events(follow=True)` looks again without having been woken."""

_log = logging.getLogger("diptych")


class Application:
    """Runs bounded contexts on a store: `async with Application(school, store="sqlite:school.db") as app`.

    Args:
        contexts: at least one.
        store: the event store's URL; without one, events are kept in memory and gone with the process.
        read_store: the read models' URL; by default beside the event store.
        read_replicas: URLs of streaming replicas of the read store that queries are asked on; PostgreSQL only.
        replica_policy: what becomes of a query that has to show more than a replica has replayed: "wait" waits for
            that, "primary" asks the read store itself.
        services: what handlers and subscribers take, by type.
        command_middleware: wraps the way of every command, the first outermost.
        clock: tells the time.
        projecting: whether this process folds projections and runs subscribers. Without, another one has to.
        commands_waiting_max: commands under way at once; past it, `Overloaded`.
    """

    def __init__(
        self,
        *contexts: BoundedContext,
        store: str | None = None,
        read_store: str | None = None,
        read_replicas: Sequence[str] = (),
        replica_policy: ReplicaPolicy = "wait",
        services: Mapping[type[Any], object] | None = None,
        command_middleware: Sequence[CommandMiddleware] = (),
        clock: Clock | None = None,
        projecting: bool = True,
        commands_waiting_max: int = COMMANDS_WAITING_MAX,
    ) -> None:
        if not contexts:
            raise ConfigurationError("an Application needs at least one BoundedContext")
        if isinstance(read_replicas, str):
            raise ConfigurationError("read_replicas is a sequence of URLs, not one URL")
        if replica_policy not in ("wait", "primary"):
            raise ConfigurationError(f"replica_policy={replica_policy!r}: it is 'wait' or 'primary'")
        self.contexts = contexts
        self._urls = (store, read_store)
        self._read_replicas = tuple(read_replicas)
        self._replica_policy: ReplicaPolicy = replica_policy
        self._services = dict(services or {})
        self._middleware = tuple(command_middleware)
        self._clock = clock or SystemClock()
        self._projecting = projecting
        self._commands_waiting_max = commands_waiting_max
        self._running: Running | None = None
        self._opening = False

    # ── life ─────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Compile the contexts, open the stores, and follow the history.

        Raises:
            ConfigurationError: something in the code or the URLs does not fit.
            HistoryError: the stores do not fit the code, or each other.
            StoreUnavailable: a store cannot be opened.
        """
        if self._running is not None or self._opening:
            raise StoreClosed("this application is open already")
        self._opening = True
        try:
            for context in self.contexts:
                context.load()
            running = self._wired()
            try:
                await running.open()
            except BaseException:
                await running.close()
                raise
            self._running = running
        finally:
            self._opening = False

    async def close(self) -> None:
        """Commit what was submitted, finish the batch under way, and let go of the stores. May be called twice."""
        running, self._running = self._running, None
        if running is not None:
            await running.close()

    def _wired(self) -> Running:
        connected = self._stores()
        return wire(
            self.contexts,
            connected[0],
            connected[1],
            query_source=connected[2],
            services=self._services,
            middleware=self._middleware,
            clock=self._clock,
            projecting=self._projecting,
            commands_waiting_max=self._commands_waiting_max,
        )

    def _stores(self) -> tuple[EventStore, ReadStore, QuerySource | None]:
        connect = import_module("diptych.adapters.connect")
        store, read_store = self._urls
        if store is None:
            _log.warning("no store was given: events are kept in memory, and gone with this process")
            store = "memory:"
        read_url = read_store or connect.default_read_store(store)
        events: EventStore = connect.connect_event_store(store, self._clock)
        rows: ReadStore = connect.connect_read_store(read_url)
        source: QuerySource | None = None
        if self._read_replicas:
            source = connect.connect_query_source(
                read_url, rows, self._read_replicas, self._replica_policy, events.place_at
            )
        return events, rows, source

    def _open_parts(self) -> Running:
        if self._running is None:
            raise StoreClosed("this application is not open: use it inside `async with Application(...) as app`")
        return self._running

    # ── the two panels ───────────────────────────────────────────────────────

    async def execute(
        self,
        command: Command,
        /,
        *,
        command_id: str | None = None,
        actor: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Receipt:
        """Execute a command, durably, once.

        Args:
            command: what is wanted.
            command_id: 1 to 128 printable characters; the same id again gives the first outcome again (G4).
            actor: who wants it.
            correlation_id: what it belongs to.
            causation_id: what caused it.
            traceparent: W3C trace context.

        Raises:
            Rejected: the domain says no; with its code and facts.
            Conflict: others changed what it was decided on, as often as the limit allows.
            InvalidMessage: a field is of the wrong type.
            CommandIdReused: the id was given for another command before.
            Unavailable: not now; nothing was done, but for `OutcomeUnknown`.
        """
        sender = Sender(actor=actor, correlation_id=correlation_id, causation_id=causation_id, traceparent=traceparent)
        return await self._open_parts().commands.execute(command, command_id, sender)

    async def query(
        self,
        query: Query[R],
        /,
        *,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: Literal["eventual", "latest"] = "eventual",
        within_s: float | None = None,
        wait_s: float = WAIT_S,
    ) -> R:
        """Ask a query; see `answer`, which gives the token as well."""
        found = await self.answer(query, after=after, freshness=freshness, within_s=within_s, wait_s=wait_s)
        return found.value

    async def answer(
        self,
        query: Query[R],
        /,
        *,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: Literal["eventual", "latest"] = "eventual",
        within_s: float | None = None,
        wait_s: float = WAIT_S,
    ) -> Answer[R]:
        """Ask a query; the value, and what it shows, are of one moment.

        Args:
            query: what is asked.
            after: a receipt, answer or token: the answer shows at least that.
            freshness: "latest" shows everything that is in the history when it is asked.
            within_s: the answer lacks nothing that is older than so many seconds.
            wait_s: for how long to wait for it, 0 to 60 seconds.

        Raises:
            NotFresh: it is not there within `wait_s`; an older answer is never given.
            Blocked: what was asked for waits behind an event that cannot be folded.
            HistoryDiverged: the token is of another history.
        """
        running = self._open_parts()
        requirement = await self._requirement(running.freshness, after, freshness, within_s)
        return await running.queries.answer(query, requirement, wait_s)

    async def _requirement(
        self,
        freshness: Freshness,
        after: Receipt | Answer[Any] | str | None,
        asked: str,
        within_s: float | None,
    ) -> Requirement:
        if (after is not None) + (asked != "eventual") + (within_s is not None) > 1:
            raise InvalidMessage("query", [("$", "after, freshness and within_s: give one of them")])
        if after is not None:
            return await freshness.after(after if isinstance(after, str) else after.token)
        if within_s is not None:
            return freshness.within(within_s)
        return await freshness.latest() if asked == "latest" else EVENTUAL

    # ── what is known of it ──────────────────────────────────────────────────

    @property
    def commands(self) -> MessageTypes:
        """The commands, by name."""
        return self._open_parts().command_types

    @property
    def queries(self) -> MessageTypes:
        """The queries, by name."""
        return self._open_parts().query_types

    async def events(
        self, query: EventQuery, *, after: int = 0, limit: int | None = None, follow: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """The recorded events that match, ordered by position; with `follow`, those to come as well.

        Raises:
            HistoryDiverged: after a failover, other events may be where those were that it gave.
        """
        store = self._open_parts().store
        position, left, forks = Position(after), limit, store.forks
        while left is None or left > 0:
            found = await store.read(query, position, READ_PAGE_EVENTS if left is None else min(left, READ_PAGE_EVENTS))
            if store.forks != forks:
                raise HistoryDiverged("what was read so far", "the history turned out to be another one; read it anew")
            for recorded in found.events:
                yield recorded
            left = None if left is None else left - len(found.events)
            position = found.through
            if not found.more:
                if not follow:
                    return
                await store.wait_for_events(position, FOLLOW_WAIT_S)

    async def status(self) -> Status:
        """How far the history is, and how far everything that follows it."""
        return await self._open_parts().status()

    async def health(self) -> Health:
        """Whether the store is reachable, and the projections run and keep up."""
        return await self._open_parts().health()

    async def projected(self) -> None:
        """Wait until every projection shows the history as it is now: for scripts and tests."""
        await self._open_parts().projected()

    # ── by hand ──────────────────────────────────────────────────────────────

    async def parked(self) -> list[BlockedKey]:
        """The blocked keys of every projection, each with the event that could not be folded, and why."""
        return await self._open_parts().blocked_keys.all()

    async def replay(self, projection: str, key: str) -> BlockedKey | None:
        """Fold the waiting events of a blocked key; None when it goes on, else what blocks it now.

        Raises:
            ConfigurationError: no such projection, or the key (a JSON array, as listed) is not blocked.
        """
        return await self._open_parts().blocked_keys.replay(projection, key)

    async def discard(self, projection: str, key: str) -> BlockedKey | None:
        """Leave the event that blocks a key out of its row, for good, and fold the others; see `replay`."""
        return await self._open_parts().blocked_keys.discard(projection, key)

    @property
    def rebuilds(self) -> Rebuilds:
        """Builds read models anew, or compares them with a fresh fold."""
        return self._open_parts().rebuilds
