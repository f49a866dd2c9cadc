"""The same application for code without an event loop: scripts, Django, notebooks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from diptych.application.application import Application
from diptych.application.bounded_context import BoundedContext
from diptych.application.dividing import PartitionBy, Replicas, Stores
from diptych.application.pruning import PruneReport
from diptych.application.query_panel import HowAsked
from diptych.application.read_routing import ReadStores
from diptych.application.status import Health, Status
from diptych.application.sync_parked import SyncParked
from diptych.application.sync_processes import SyncProcesses
from diptych.application.sync_scheduled_commands import SyncScheduledCommands
from diptych.clock import Clock
from diptych.errors import StoreClosed
from diptych.messages.command import Command
from diptych.messages.event import Event
from diptych.messages.query import Query
from diptych.read_side.freshness import WAIT_S, HowFresh
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits
from diptych.read_side.query_middleware import QueryMiddleware
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.row_streams import RowStream
from diptych.security import Actor
from diptych.write_side.command_bus import CommandMiddleware
from diptych.write_side.group_commit import COMMANDS_WAITING_MAX
from diptych.write_side.idempotency import Receipt
from diptych.write_side.verdict import Verdict

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Self

    from diptych.process_managers.scheduled_commands import Scheduled
    from diptych.read_side.query_source import ReplicaPolicy
    from diptych.read_side.read_model import ReadModel

__all__ = ["SyncApplication"]

R = TypeVar("R")
T = TypeVar("T")


class SyncApplication:
    """An `Application` whose calls block: `with SyncApplication(school) as app: app.execute(...)`.

    It runs on an event loop in a thread of its own, so it may be called from any thread, many at a time; their
    commands share transactions. See `Application` for the arguments and errors of every method.
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
        self._application = Application(
            *contexts,
            store=store,
            read_store=read_store,
            read_stores=read_stores,
            inline=inline,
            read_replicas=read_replicas,
            partition_by=partition_by,
            replica_policy=replica_policy,
            services=services,
            command_middleware=command_middleware,
            query_middleware=query_middleware,
            query_limits=query_limits,
            clock=clock,
            projecting=projecting,
            rebuilding=rebuilding,
            commands_waiting_max=commands_waiting_max,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._turn = threading.Lock()  # so that no call slips in behind the last one that close() answers

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """See `Application.open`."""
        if self._loop is not None:
            raise StoreClosed("this application is open already")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="diptych", daemon=True)
        self._thread.start()
        try:
            self._call(self._application.open())
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        """See `Application.close`."""
        if self._loop is not None:
            try:
                self._call(self._application.close())
            finally:
                self._stop()

    def execute(
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
        """See `Application.execute`."""
        return self._call(
            self._application.execute(
                command,
                command_id=command_id,
                actor=actor,
                reason=reason,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=traceparent,
                based_on=based_on,
            )
        )

    def schedule(  # noqa: PLR0913 — by keyword, most of them
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
        """See `Application.schedule`."""
        return self._call(
            self._application.schedule(
                command,
                at=at,
                after=after,
                expires_at=expires_at,
                expires_after=expires_after,
                priority=priority,
                command_id=command_id,
                actor=actor,
                reason=reason,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=traceparent,
            )
        )

    def can(
        self,
        command: Command,
        /,
        *,
        actor: Actor | str | None = None,
        based_on: Receipt | Answer[Any] | str | None = None,
    ) -> Verdict:
        """See `Application.can`."""
        return self._call(self._application.can(command, actor=actor, based_on=based_on))

    def query(self, query: Query[R], /, **how: Unpack[HowAsked]) -> R:
        """See `Application.query`."""
        return self._call(self._application.query(query, **how))

    def answer(self, query: Query[R], /, **how: Unpack[HowAsked]) -> Answer[R]:
        """See `Application.answer`."""
        return self._call(self._application.answer(query, **how))

    def query_many(self, queries: Sequence[Query[Any]], /, **how: Unpack[HowAsked]) -> list[Any]:
        """See `Application.query_many`."""
        return self._call(self._application.query_many(queries, **how))

    def answer_many(self, queries: Sequence[Query[Any]], /, **how: Unpack[HowAsked]) -> Answer[list[Any]]:
        """See `Application.answer_many`."""
        return self._call(self._application.answer_many(queries, **how))

    def stream(
        self,
        query: Query[list[T]],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        freshness: HowFresh = "eventual",
        within_s: float | None = None,
        wait_s: float = WAIT_S,
        limits: QueryLimits | None = None,
    ) -> Generator[T]:
        """See `Application.stream`: `for row in app.stream(query)` blocks until there is the next one.

        For one thread, which keeps it for itself.
        """
        rows = self._application.stream(
            query, actor=actor, after=after, freshness=freshness, within_s=within_s, wait_s=wait_s, limits=limits
        )
        try:
            while (page := self._call(rows.next_page())) is not None:
                yield from page
        finally:
            self._let_go(rows)

    def subscribe(
        self,
        query: Query[R],
        /,
        *,
        actor: Actor | str | None = None,
        after: Receipt | Answer[Any] | str | None = None,
        wait_s: float = WAIT_S,
    ) -> Generator[Answer[R]]:
        """See `Application.subscribe`: `for answer in app.subscribe(query)` blocks until there is the next one.

        For one thread, which keeps it for itself. It ends when another one closes the application.
        """
        answers = self._call(self._subscribe(query, actor, after, wait_s))
        with suppress(StoreClosed):  # from here on that it is closed is the end
            try:
                while (answer := self._call(_next(answers))) is not None:
                    yield answer
            finally:
                self._let_go(answers)

    async def _subscribe(
        self, query: Query[R], actor: Actor | str | None, after: Receipt | Answer[Any] | str | None, wait_s: float
    ) -> AsyncGenerator[Answer[R]]:
        return self._application.subscribe(query, actor=actor, after=after, wait_s=wait_s)

    def status(self, partition: str = "") -> Status:
        """See `Partition.status`; where there are several, of the one named."""
        return self._call(self._status(partition))

    async def _status(self, partition: str) -> Status:
        return await self._application.partition(partition).status()

    def health(self) -> Health:
        """See `Application.health`."""
        return self._call(self._application.health())

    def projected(self) -> None:
        """See `Application.projected`."""
        self._call(self._application.projected())

    def prune(self, *events: type[Event], before: datetime, dry_run: bool = False, partition: str = "") -> PruneReport:
        """See `Pruning.prune`; of a partitioned application, in the one that is named."""
        return self._call(self._prune(partition, events, before, dry_run=dry_run))

    async def _prune(
        self, partition: str, events: Sequence[type[Event]], before: datetime, *, dry_run: bool
    ) -> PruneReport:
        return await self._application.partition(partition).pruning.prune(*events, before=before, dry_run=dry_run)

    def processes(self, partition: str = "") -> SyncProcesses:
        """The instances of processes; where there are several partitions, of the one named."""
        return SyncProcesses(self._call, lambda: self._application.partition(partition).processes)

    def scheduled(self, partition: str = "") -> SyncScheduledCommands:
        """The commands that are executed later; where there are several partitions, of the one named."""
        return SyncScheduledCommands(self._call, lambda: self._application.partition(partition).scheduled)

    def parked(self, partition: str = "") -> SyncParked:
        """What failed and waits for somebody; where there are several partitions, in the one named."""
        return SyncParked(self._call, lambda: self._application.partition(partition).parked)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._turn:
            refused = self._refusal()
            if self._loop is None or refused:
                coroutine.close()
                raise StoreClosed(refused)
            answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return answer.result()
        except KeyboardInterrupt:
            answer.cancel()  # nobody waits for it any more, and it may wait for ever
            raise
        except concurrent.futures.CancelledError as error:
            raise StoreClosed("the application was closed while this call waited") from error

    def _let_go(self, answers: AsyncGenerator[object] | RowStream[Any]) -> None:
        """End a live query or a stream, without a wait: the garbage collector may end it, in the loop's own thread."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and so is every live query
                loop.call_soon_threadsafe(self._leave_soon, answers)

    def _leave_soon(self, answers: AsyncGenerator[object] | RowStream[Any]) -> None:
        task = asyncio.get_running_loop().create_task(_leave(answers))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _refusal(self) -> str:
        if self._loop is None or self._thread is None:
            return "this application is not open: use it inside `with SyncApplication(...) as app`"
        if not self._thread.is_alive():
            return "the thread of this application is gone: after a fork, open an application in the new process"
        return ""

    def _stop(self) -> None:
        with self._turn:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None and thread.is_alive():
            asyncio.run_coroutine_threadsafe(_end_calls(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _next(answers: AsyncGenerator[Answer[R]]) -> Answer[R] | None:
    """The next answer; None where there are no more."""
    return await anext(answers, None)


async def _leave(answers: AsyncGenerator[object] | RowStream[Any]) -> None:
    with suppress(RuntimeError):  # the call for the next one was given up, and is leaving
        await answers.aclose()


async def _end_calls() -> None:
    """Let everyone who still waits for an answer hear that there will be none."""
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
