"""The third write model: handlers that read and write own tables, in the transaction of the append (rule 25).

They are decided one by one, apart from any batch: the store lends its connection to the handler, and appends what it
gives as the last statement of the same transaction. Whatever stands against that takes back what the handler has
written. Their decision models are guarded as all are; their own tables they guard themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

from diptych.errors import (
    ConfigurationError,
    DiptychError,
    OutcomeUnknown,
    Overloaded,
    StoreClosed,
    TransactionAborted,
    TransactionMisused,
)
from diptych.event_store.event_store import AppendResult, EventStore
from diptych.event_store.transactions import Change, Lender, Transactional, Work
from diptych.write_side.attempt import Attempt, Draft, UnfoldedModels
from diptych.write_side.command_handler import CommandHandler, Decided, ModelKey
from diptych.write_side.group_commit import GroupCommit

__all__ = ["OwnTables", "own_tables"]

ABORTS_MAX = 5
"""How often one handler is run again at most, each time since the database ended its transaction for others."""
OTHERS_READ_S_MAX = 2
"""Seconds that the thread which writes waits for models whose states a handler's events change; nobody else writes."""

_ReadOthers: TypeAlias = Callable[[Attempt, Sequence[ModelKey]], Coroutine[Any, Any, None]]
"""Reads models that an attempt is not decided on, for `Attempt.others`."""
_writing: ContextVar[OwnTables | None] = ContextVar("_writing", default=None)
"""Whose synchronous handler is running here: it is called in a context of its own."""


def own_tables(
    handlers: Iterable[CommandHandler], store: EventStore, group: GroupCommit, read_others: _ReadOthers
) -> OwnTables | None:
    """What runs the handlers that take the transaction; None where none does.

    Raises:
        ConfigurationError: the store lends none, or not what a handler takes.
    """
    takers = [(handler, handler.lender) for handler in handlers if handler.lender is not None]
    if not takers:
        return None
    if not isinstance(store, Transactional):
        raise ConfigurationError(
            f"{takers[0][0].name} takes the transaction, and events in memory are in none: name the database with its "
            "tables, store='sqlite:…', 'postgresql://…', or in tests 'memory:?own_tables=<name>'"
        )
    for handler, lender in takers:
        _check(handler, lender, store)
    return OwnTables(store, store, group, read_others)


def _check(handler: CommandHandler, lender: Lender, store: Transactional) -> None:
    lending = store.lending
    if handler.is_async and not lending.awaits:
        problem = "a handler is synchronous there: write `def`, without `async`"
    elif lending.awaits and not handler.is_async:
        problem = "a handler awaits there: write `async def`"
    else:
        problem = lender.objection(lending)
    if problem:
        raise ConfigurationError(f"{handler.name} takes the transaction of {lending.database}: {problem}")


class OwnTables:
    """Runs handlers in the transaction in which their outcome is committed."""

    def __init__(self, store: EventStore, lends: Transactional, group: GroupCommit, read_others: _ReadOthers) -> None:
        self._store = store
        self._lends = lends
        self._group = group
        self._read_others = read_others

    def check_not_inside(self) -> None:
        """Make sure that it is not a synchronous handler which executes this command: it would wait for itself.

        Raises:
            TransactionMisused: it is.
        """
        if _writing.get() is self:
            raise TransactionMisused(
                "the handler executes another command while nobody but itself can write; decide both in one, or let a "
                "subscriber send the second"
            )

    async def decide(self, attempt: Attempt) -> None:
        """Take an attempt to its outcome.

        Raises:
            Exception: whatever the handler raises beside `Rejected`, unless the command was done meanwhile.
        """
        try:
            draft, result = await self._transact(attempt)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(attempt.context.command_id, error.cause) from error
        except DiptychError:
            raise
        except Exception:
            # The very same command, sent to another process, may have been what was in the way: a duplicate wins.
            kept = await self._store.outcome(attempt.context.command_id) if attempt.caller_gave_id else None
            if kept is None:
                raise
            attempt.end(kept)
        else:
            self._group.conclude(draft, result)

    async def _transact(self, attempt: Attempt) -> tuple[Draft, AppendResult]:
        aborts = 0
        while True:  # at most ABORTS_MAX times more than once
            if self._group.closed:
                raise StoreClosed("the application is closing: this command was not executed")
            self._group.check(attempt.forks)
            drafts: list[Draft] = []
            try:
                result = await self._lends.transact(self._work(attempt, drafts), _lender(attempt).lane)
            except TransactionAborted:
                aborts += 1
                if aborts > ABORTS_MAX or not attempt.handler.idempotent:
                    raise
            else:
                return drafts[-1], result

    def _work(self, attempt: Attempt, drafts: list[Draft]) -> Work:
        """The handler, to be run with a connection; `drafts` gets what it comes to."""
        handler, command, context = attempt.handler, attempt.command, attempt.context
        states = {key: folded.state for key, folded in attempt.stands.items()}

        def change(decided: Decided) -> Change:
            draft = self._group.prepare(attempt, decided)
            drafts.append(draft)
            return Change(draft.commit, take_back=decided.rejected is not None or attempt.dry_run)

        loop = asyncio.get_running_loop()

        def work(connection: Any) -> Change:
            _writing.set(self)
            decided = handler.decide_in(connection, command, states, context)
            try:
                return change(decided)
            except UnfoldedModels as unfolded:
                _wait_for(self._read_others(attempt, unfolded.keys), loop)
                return change(decided)

        async def work_async(connection: Any) -> Change:
            decided = await handler.decide_in_async(connection, command, states, context)
            try:
                return change(decided)
            except UnfoldedModels as unfolded:
                await self._read_others(attempt, unfolded.keys)
                return change(decided)

        return work_async if handler.is_async else work


def _wait_for(reading: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    """Wait on the thread that writes for what is read on the loop, which does not wait for this thread.

    Raises:
        Overloaded: it took too long.
    """
    read = asyncio.run_coroutine_threadsafe(reading, loop)
    try:
        read.result(OTHERS_READ_S_MAX)
    except TimeoutError as error:
        read.cancel()
        raise Overloaded("OTHERS_READ_S_MAX", OTHERS_READ_S_MAX) from error


def _lender(attempt: Attempt) -> Lender:
    assert attempt.handler.lender is not None
    return attempt.handler.lender
