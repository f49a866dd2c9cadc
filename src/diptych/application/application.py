"""The application: contexts, stores and services, wired and run.

The wiring is done once, when it opens: contexts load their modules, events are found from annotations, handlers and
projections are compiled against them, and whatever does not fit is a `ConfigurationError` before the first command.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from diptych.application.across import Across
from diptych.application.bounded_context import BoundedContext
from diptych.application.dividing import (
    ACROSS,
    PartitionBy,
    Replicas,
    Stores,
    StoreUrls,
    divided,
    inline_names,
    store_urls,
)
from diptych.application.partition import Partition
from diptych.application.partitions import ByContext, ByIdentity, Partitions
from diptych.application.pruning import Pruning
from diptych.application.query_panel import QueryPanel, shown_tokens
from diptych.application.read_routing import MEMORY, ReadStores, check_apart, routes, sent
from diptych.application.routed_rebuilds import RoutedRebuilds
from diptych.application.status import Health, Status
from diptych.application.wiring import Compiled, ConnectedStore, compile_contexts, wire, wire_across
from diptych.clock import Clock, SystemClock
from diptych.errors import ConfigurationError, StoreClosed
from diptych.event_store.event_query import EventQuery
from diptych.event_store.merged_log import MergedLog
from diptych.messages.command import Command
from diptych.messages.registry import EventTypes, MessageTypes
from diptych.process_managers.scheduled_commands import When
from diptych.read_side.freshness import WAIT_S
from diptych.read_side.live_queries import LiveQueries
from diptych.read_side.query_bus import Answer, QueryHandlers
from diptych.read_side.query_limits import DEFAULT_LIMITS, NO_LIMITS, QueryLimits, check_limits
from diptych.read_side.query_middleware import QueryMiddleware, QueryWay
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.row_streams import RowStreams
from diptych.security import Actor, actor_of, check_reason
from diptych.write_side.command_bus import CommandMiddleware, Sender
from diptych.write_side.group_commit import COMMANDS_WAITING_MAX
from diptych.write_side.idempotency import Receipt
from diptych.write_side.verdict import Verdict

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Self

    from diptych.application.parked import Parked
    from diptych.event_store.event_store import EventLog, EventStore, KeptOutcome
    from diptych.event_store.recorded_event import RecordedEvent
    from diptych.messages.event import Event
    from diptych.messages.query import Query
    from diptych.process_managers.process_store import ProcessStore
    from diptych.process_managers.processes import Processes
    from diptych.process_managers.scheduled_commands import Scheduled, ScheduledCommands
    from diptych.read_side.event_rows import EventRows
    from diptych.read_side.query_source import ReplicaPolicy
    from diptych.read_side.read_model import ReadModel
    from diptych.read_side.read_model_rows import ReadModelRows
    from diptych.read_side.read_store import ReadStore

__all__ = ["Application"]

_log = logging.getLogger("diptych")


class Application(QueryPanel):
    """Runs bounded contexts on a store: `async with Application(school, store="sqlite:school.db") as app`.

    Args:
        contexts: at least one.
        store: the event store's URL; without one, events are kept in memory and gone with the process. Of a
            partitioned application, the URL of each partition by name; `read_store` and `read_replicas` likewise.
        read_store: the read models' URL; by default beside the event store.
        read_stores: where single read models are kept instead, by class or name: the URL of a store, or of several, of
            which the first answers and all are fed. Of a partitioned application, that by partition.
        inline: read models, or their names ("school.Seats"), that every append folds in its own transaction. Their
            read store is the event store's own database; where `read_store` says nothing, that is where all are.
        read_replicas: URLs of streaming replicas of the read store that queries are asked on; PostgreSQL only.
        partition_by: divides the application into partitions, each a history of its own: by "context", or by an
            identity that every command and query names, such as a tenant's. None: it is not divided.
        replica_policy: what becomes of a query that has to show more than a replica has replayed: "wait" waits for
            that, "primary" asks the read store itself.
        services: what handlers and subscribers take, by type.
        command_middleware: wraps the way of every command, the first outermost.
        query_middleware: wraps the way of every query, the first outermost.
        query_limits: how long queries may take, and how many rows they may ask for, of which their author says nothing
            (`limited`); 30 seconds and 100,000 rows where nothing is said here either.
        clock: tells the time.
        projecting: whether this process folds projections and runs subscribers. Without, another one has to.
        rebuilding: what becomes of read models whose code has changed, how fast they are built anew, and for how long
            the rows that were replaced are kept.
        commands_waiting_max: commands under way at once, in each partition; past it, `Overloaded`.
    """

    def __init__(  # noqa: PLR0913 — by keyword, each of them
        self,
        *contexts: BoundedContext,
        store: Stores = None,
        read_store: Stores = None,
        read_stores: ReadStores = MappingProxyType({}),
        inline: Iterable[type[ReadModel] | str] = (),
        read_replicas: Replicas = (),
        partition_by: PartitionBy | None = None,
        replica_policy: ReplicaPolicy = "wait",
        services: Mapping[type[Any], object] | None = None,
        command_middleware: Sequence[CommandMiddleware] = (),
        query_middleware: Sequence[QueryMiddleware] = (),
        query_limits: QueryLimits = NO_LIMITS,
        clock: Clock | None = None,
        projecting: bool = True,
        rebuilding: RebuildPolicy | None = None,
        commands_waiting_max: int = COMMANDS_WAITING_MAX,
    ) -> None:
        if not contexts:
            raise ConfigurationError("an Application needs at least one BoundedContext")
        if isinstance(read_replicas, str):
            raise ConfigurationError("read_replicas is a sequence of URLs, not one URL")
        if isinstance(inline, str):
            raise ConfigurationError("inline is a sequence of read models, or of their names, not one name")
        if replica_policy not in ("wait", "primary"):
            raise ConfigurationError(f"replica_policy={replica_policy!r}: it is 'wait' or 'primary'")
        self.contexts = contexts
        self._urls = (store, read_store, read_replicas)
        self._read_stores = read_stores
        self._inline = tuple(inline)
        self._partition_by: PartitionBy | None = partition_by
        self._replica_policy: ReplicaPolicy = replica_policy
        self._services = dict(services or {})
        self._middleware = tuple(command_middleware)
        self._query_middleware = tuple(query_middleware)
        self._query_limits = query_limits.or_else(DEFAULT_LIMITS)
        check_limits("query_limits", seconds=self._query_limits.seconds, rows=self._query_limits.rows)
        self._clock = clock or SystemClock()
        self._projecting = projecting
        self._rebuilding = rebuilding or RebuildPolicy()
        self._commands_waiting_max = commands_waiting_max
        self._partitions: Partitions | None = None
        self._routes: Partitions | None = None
        self._live: LiveQueries
        self._compiled: Compiled
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
        if self._partitions is not None or self._opening:
            raise StoreClosed("this application is open already")
        self._opening = True
        try:
            for context in self.contexts:
                context.load()
            wired = self._routes = self._wired()
            try:
                await wired.open()
            except BaseException:
                await wired.close()
                raise
            self._partitions = wired
            self._way = QueryWay(
                self._query_middleware, self._compiled.query_scopes, self._compiled.query_limits, self._query_limits
            )
            apart = frozenset(self._compiled.answered) if self._read_stores else None
            self._live = LiveQueries(self._again, self._clock, apart)
            self._streams = RowStreams(self._compiled.query_handlers)
            models = {projection.form.cls: projection for projection in self._compiled.projections}
            self._handlers = QueryHandlers(self._compiled.query_handlers, models)
        finally:
            self._opening = False

    async def close(self) -> None:
        """Commit what was submitted, finish the batch under way, and let go of the stores. May be called twice.

        Whoever subscribes to a query hears that there are no more answers.
        """
        open_ones, self._partitions = self._partitions, None
        if open_ones is not None:
            try:
                await self._streams.close()
                await self._live.close()
            finally:
                await open_ones.close()

    def _wired(self) -> Partitions:
        compiled = self._compiled = compile_contexts(self.contexts, self._services)
        kept = store_urls(self._partition_by, *self._urls)
        parts = divided(compiled, self.contexts, self._partition_by, list(kept))
        urls = self._sent(compiled, kept, parts)
        inline = inline_names(self._inline, parts)
        named = {name: self._partition(name, parts[name], urls[name], inline) for name in urls if name != ACROSS}
        if self._partition_by is None:
            return Partitions(named)
        across = self._across(parts[ACROSS], urls[ACROSS], list(named.values())) if ACROSS in urls else None
        if self._partition_by == "context":
            return ByContext(named, across, parts, compiled.query_handlers)
        return ByIdentity(named, across, self._partition_by, compiled)

    def _partition(self, name: str, compiled: Compiled, urls: StoreUrls, named: Collection[str]) -> Partition:
        if urls.store is None:
            _log.warning("no store was given: events are kept in memory, and gone with this process")
        inline = [found.name for found in compiled.projections if found.name in named]
        events = self._connected(urls)
        return wire(
            compiled,
            events,
            self._read_stores_of(compiled, urls, events, beside_events=bool(inline)),
            self._connected_processes(urls),
            whole=self._compiled,
            execute=self._execute_for_process,
            outcome=self._outcome_for_process,
            is_here=lambda command: self._opened().of_command(command).name == name,
            name=name,
            inline=inline,
            middleware=self._middleware,
            clock=self._clock,
            projecting=self._projecting,
            policy=self._rebuilding,
            commands_waiting_max=self._commands_waiting_max,
        )

    def _across(self, compiled: Compiled, urls: StoreUrls, partitions: Sequence[Partition]) -> Across:
        log = MergedLog(self._connected(urls), [partition.store for partition in partitions])
        return wire_across(
            compiled,
            log,
            self._read_stores_of(compiled, urls, log),
            name=ACROSS,
            clock=self._clock,
            projecting=self._projecting,
            policy=self._rebuilding,
        )

    def _sent(
        self, compiled: Compiled, urls: Mapping[str, StoreUrls], parts: Mapping[str, Compiled]
    ) -> dict[str, StoreUrls]:
        """Where each partition is kept, with where its read models are sent.

        Raises:
            ConfigurationError: they are sent where they are not folded, or to one place from two partitions.
        """
        folded = {name: [each.name for each in parts[name].projections] if name in parts else [] for name in urls}
        by_partition = sent(self._read_stores, compiled.projections, None if self._partition_by is None else folded)
        found = {name: each._replace(sent=by_partition[name]) for name, each in urls.items()}
        if self._partition_by is not None:
            check_apart({name: each.read_urls for name, each in found.items()})
        return found

    def _connected(self, urls: StoreUrls) -> EventStore:
        found: EventStore = import_module("diptych.adapters.connect").connect_event_store(
            urls.store or "memory:", self._clock
        )
        return found

    def _read_stores_of(
        self, compiled: Compiled, urls: StoreUrls, log: EventLog, *, beside_events: bool = False
    ) -> list[ConnectedStore]:
        """The read stores of a partition, the default one first: in the database of the events, where one says so."""
        connect = import_module("diptych.adapters.connect")
        beside = connect.read_store_beside if beside_events else connect.default_read_store
        default = urls.read_store or beside(urls.store or "memory:")
        found: list[ConnectedStore] = []
        kept = routes(compiled.projections, urls.sent, default)
        told = len(kept) > 1 or (default == MEMORY and (urls.store or MEMORY) != MEMORY)
        for url, projections, answering in kept:
            read_store: ReadStore = connect.connect_read_store(url or default)
            shown = connect.without_password(url or default) if told else ""
            source = None
            if url is None and urls.read_replicas:
                source = connect.connect_query_source(
                    default, read_store, urls.read_replicas, self._replica_policy, log.place_at
                )
            found.append(ConnectedStore(read_store, projections, answering, shown, source))
        return found

    @staticmethod
    def _connected_processes(urls: StoreUrls) -> ProcessStore:
        found: ProcessStore = import_module("diptych.adapters.connect").connect_process_store(urls.store or "memory:")
        return found

    async def _execute_for_process(self, command: Command, command_id: str, sender: Sender) -> object:
        """Execute a command that a process sends, in whichever partition it belongs to, also while others open.

        A process is the application's own code: it may do what the actors behind its events may not.
        """
        assert self._routes is not None, "processes run from when it opens until it is closed"
        trusted = msgspec.structs.replace(sender, trusted=True)
        return await self._routes.of_command(command).commands.execute(command, command_id, trusted)

    async def _outcome_for_process(self, command: Command, command_id: str) -> KeptOutcome | None:
        """What is kept of a command that a process has sent, in whichever partition it belongs to."""
        return await self._opened().of_command(command).store.outcome(command_id)

    def _opened(self) -> Partitions:
        if self._partitions is None:
            raise StoreClosed("this application is not open: use it inside `async with Application(...) as app`")
        return self._partitions

    def partition(self, name: str = "") -> Partition:
        """A partition of the application: what is known of it, and what is done by hand.

        Args:
            name: as in `store`; empty for the only one.

        Raises:
            ConfigurationError: there is none of that name; or there are several, and none was named.
        """
        return self._opened().find(name)

    @property
    def across(self) -> Across:
        """What follows all partitions at once: the rows that are folded across them.

        Raises:
            ConfigurationError: nothing does.
        """
        found = self._opened().across
        if found is None:
            raise ConfigurationError(f"nothing is folded across partitions here: store has no {ACROSS!r}")
        return found

    # ── the two panels ───────────────────────────────────────────────────────

    async def execute(
        self,
        command: Command,
        /,
        *,
        command_id: str | None = None,
        actor: Actor | str | None = None,
        reason: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        based_on: Receipt | Answer[Any] | str | None = None,
    ) -> Receipt:
        """Execute a command, durably, once.

        Args:
            command: what is wanted.
            command_id: 1 to 128 printable characters; the same id again gives the first outcome again (G4).
            actor: who wants it, kept with the events; a name alone has no scopes.
            reason: why, in one line of 1 to 500 characters, kept with the events.
            correlation_id: what it belongs to.
            causation_id: what caused it.
            traceparent: W3C trace context.
            based_on: the answer (or its token) that whoever wants it was looking at: it is refused where anything that
                it is decided on has changed since.

        Raises:
            Rejected: the domain says no; with its code and facts.
            Forbidden: its handler requires a scope that the actor does not have.
            Conflict: others changed what it was decided on, as often as the limit allows.
            ContextChanged: what it is decided on has changed since `based_on`; with the events.
            InvalidMessage: a field is of the wrong type; or the actor's name, or the reason, is none.
            CommandIdReused: the id was given for another command before.
            Unavailable: not now; nothing was done, but for `OutcomeUnknown`.
        """
        sender = _sender(actor, reason, correlation_id, causation_id, traceparent)
        basis = shown_tokens(based_on) or ()
        return await self._opened().of_command(command).commands.execute(command, command_id, sender, basis)

    async def schedule(  # noqa: PLR0913 — by keyword, most of them
        self,
        command: Command,
        /,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        expires_at: datetime | None = None,
        expires_after: timedelta | None = None,
        priority: int = 0,
        command_id: str | None = None,
        actor: Actor | str | None = None,
        reason: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Scheduled:
        """Accept a command, durably, to be executed once when it is due; as soon as possible where no time is given.

        It is checked now, the scopes of the actor included, and is executed with those. A process that projects
        executes it. What becomes of it `scheduled.status` tells, and executing it under the same id.

        Args:
            command: what is wanted.
            at: not before; aware.
            after: as `at`, counted from now.
            expires_at: once that has passed it is not executed any more, but rejected as "expired"; aware.
            expires_after: as `expires_at`, counted from when it is due.
            priority: -9 to 9; of what is due, the higher goes first.
            command_id: 1 to 128 printable characters; the same id again schedules nothing new (G4).
            actor: as in `execute`.
            reason: as in `execute`.
            correlation_id: as in `execute`.
            causation_id: as in `execute`.
            traceparent: as in `execute`.

        Raises:
            Forbidden: its handler requires a scope that the actor does not have.
            InvalidMessage: a field is of the wrong type, a time is naive, or it would expire before it is due.
            CommandIdReused: the id was given for another command before.
            Unavailable: not now; `Overloaded` where too many wait.
        """
        sender = _sender(actor, reason, correlation_id, causation_id, traceparent)
        when = When(at, after, expires_at, expires_after, priority)
        partition = self._opened().of_command(command)
        accepted = await partition.scheduled.accept(command, command_id, sender, when)
        return msgspec.structs.replace(accepted, partition=partition.name)

    async def can(
        self,
        command: Command,
        /,
        *,
        actor: Actor | str | None = None,
        based_on: Receipt | Answer[Any] | str | None = None,
    ) -> Verdict:
        """Say what would come of a command now: its events, or the domain's no. Nothing is stored, sent or promised.

        It goes the way of `execute`, through every middleware, and is judged at the head (G3).

        Args:
            command: what might be wanted.
            actor: who might want it.
            based_on: as for `execute`.

        Raises:
            NotPure: its handler is async or takes services; one that takes the transaction, and no services, is run,
                and what it has written is taken back.
            DiptychError: what else `execute` raises, but for `Rejected`.
        """
        who = actor_of(actor)
        sender = Sender(actor=who.name, scopes=who.scopes, trusted=who.trusted)
        commands = self._opened().of_command(command).commands
        return await commands.can(command, sender, shown_tokens(based_on) or ())

    # ── what is known of it ──────────────────────────────────────────────────

    @property
    def commands(self) -> MessageTypes:
        """The commands, by name."""
        self._opened()
        return self._compiled.commands

    @property
    def queries(self) -> MessageTypes:
        """The queries, by name."""
        self._opened()
        return self._compiled.queries

    def can_be_tried(self, command: type[Command]) -> bool:
        """Whether `can` may run a command's handler: it is pure, or does nothing but in the transaction."""
        self._opened()
        return self._compiled.handlers[command].tryable

    def required_scopes(self, message: type[Command | Query[Any]]) -> frozenset[str]:
        """The scopes that a command's handler `requires`, or a query; mostly none."""
        self._opened()
        handler = self._compiled.handlers.get(cast("type[Command]", message))
        return self._compiled.query_scopes.get(message, frozenset()) if handler is None else handler.requires

    @property
    def event_types(self) -> EventTypes:
        """The events, and the names that they are stored under."""
        self._opened()
        return self._compiled.types

    def now(self) -> datetime:
        """The time by the application's clock, aware, in UTC."""
        return self._clock.now()

    async def health(self) -> Health:
        """Whether the stores are reachable, and the projections run and keep up."""
        return await self._opened().health()

    async def projected(self) -> None:
        """Wait until every projection shows its history as it is now: for scripts and tests."""
        await self._opened().projected()

    # ── of the only partition; where there are several, say `partition(name)` first ──

    def events(
        self, query: EventQuery, *, after: int = 0, limit: int | None = None, follow: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """See `Partition.events`."""
        return self.partition().events(query, after=after, limit=limit, follow=follow)

    def read_model_rows(
        self,
        model: type[ReadModel],
        /,
        *,
        after: str | None = None,
        freshness: Literal["eventual", "latest"] = "eventual",
        wait_s: float = WAIT_S,
    ) -> ReadModelRows:
        """See `Partition.read_model_rows`."""
        return self.partition().read_model_rows(model, after=after, freshness=freshness, wait_s=wait_s)

    def event_rows(self, event: type[Event], /, *, after: int = 0) -> EventRows:
        """See `Partition.event_rows`."""
        return self.partition().event_rows(event, after=after)

    async def status(self) -> Status:
        """See `Partition.status`."""
        return await self.partition().status()

    @property
    def parked(self) -> Parked:
        """What failed and waits for somebody: listed, shown, retried, discarded."""
        return self.partition().parked

    @property
    def processes(self) -> Processes:
        """The instances of processes: listed, and helped on by hand."""
        return self.partition().processes

    @property
    def pruning(self) -> Pruning:
        """Drops the data of old events that nothing folds any more."""
        return self.partition().pruning

    @property
    def scheduled(self) -> ScheduledCommands:
        """The commands that are executed later: listed, cancelled, and tried again."""
        return self.partition().scheduled

    @property
    def rebuilds(self) -> RoutedRebuilds:
        """Builds read models anew, or compares them with a fresh fold."""
        return self.partition().rebuilds


def _sender(
    actor: Actor | str | None,
    reason: str | None,
    correlation_id: str | None,
    causation_id: str | None,
    traceparent: str | None,
) -> Sender:
    who = actor_of(actor)
    return Sender(
        actor=who.name,
        reason=None if reason is None else check_reason(reason),
        scopes=who.scopes,
        trusted=who.trusted,
        correlation_id=correlation_id,
        causation_id=causation_id,
        traceparent=traceparent,
    )
