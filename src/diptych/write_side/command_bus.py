"""The command bus: from a command to its one outcome.

authorise (middleware) → outcome kept? → still as based on? → fold the models → decide → group commit → receipt
                                         ▲                                               │
                                         └──────────────── lost the race ◀───────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from diptych.clock import Clock, pause
from diptych.errors import (
    CommandIdReused,
    Conflict,
    Forbidden,
    HistoryDiverged,
    NotPure,
    Overloaded,
    UnknownMessage,
)
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import EventStore, KeptOutcome
from diptych.event_store.history import History
from diptych.event_store.model_unions import OutgrownQuery
from diptych.event_store.position import START, Position, Token
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import Codec
from diptych.messages.command import Command, CommandContext
from diptych.messages.envelope import Envelope
from diptych.messages.rejected import Rejected
from diptych.messages.unique_id import unique_id
from diptych.write_side.attempt import Attempt, Decision, Lost, Outdated, Superseded, Unfolded
from diptych.write_side.command_handler import CommandHandler, ModelKey
from diptych.write_side.context_changed import ContextChanged
from diptych.write_side.decision_model import Folded, ModelFold
from diptych.write_side.group_commit import COMMANDS_WAITING_MAX, GroupCommit
from diptych.write_side.idempotency import Receipt, check_command_id, check_payload, receipt, rejection
from diptych.write_side.known_models import KnownModels
from diptych.write_side.left_states import StateKeeping
from diptych.write_side.model_cache import ModelCache
from diptych.write_side.own_tables import own_tables
from diptych.write_side.state_form import key_of
from diptych.write_side.verdict import Verdict

__all__ = ["Accepted", "CommandBus", "CommandMiddleware", "NextCommand", "Sender"]

CONFLICTS_MAX = 10
"""How often one command is decided before it ends in `Conflict`."""
FORKS_MAX = 3
"""How often one command is begun anew, since the history turned out to be another than it was decided on."""
CHANGES_TOLD_MAX = 100
"""Events that one `ContextChanged` lists."""
FOLD_PAGE_EVENTS = 1_000
"""Events read at once while a model is folded; between pages other work of the loop goes on."""

NextCommand: TypeAlias = Callable[[Command, CommandContext], Awaitable[Receipt]]
"""The rest of the way of a command, from inside a middleware."""
CommandMiddleware: TypeAlias = Callable[[Command, CommandContext, NextCommand], Awaitable[Receipt]]
"""Wraps the way of every command: `async def authorise(command, context, proceed): return await proceed(...)`."""


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a command, why, and as part of what; kept in the envelope of its events, but for what they may do."""

    actor: str | None = None
    reason: str | None = None
    scopes: AbstractSet[str] = frozenset()
    trusted: bool = False
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None


class Accepted(NamedTuple):
    """A command that is executed later, as it is kept until then.

    Attributes:
        name: with its context: "school.Enrol".
        data: its fields as JSON.
        payload_hash: tells this payload from others under the same id.
    """

    name: str
    data: bytes
    payload_hash: bytes


class _Call(NamedTuple):
    """A command as it was called for, but for itself and its context."""

    handler: CommandHandler
    sender: Sender
    based_on: Sequence[Token]
    caller_gave_id: bool
    dry_run: bool


class CommandBus:
    """Executes commands. Made by the application; one per event store and process."""

    def __init__(
        self,
        handlers: Mapping[type[Command], CommandHandler],
        store: EventStore,
        history: History,
        clock: Clock,
        *,
        middleware: Sequence[CommandMiddleware] = (),
        waiting_max: int = COMMANDS_WAITING_MAX,
    ) -> None:
        self._handlers = handlers
        self._codecs = {command: Codec(command) for command in handlers}
        self._store = store
        self._history = history
        self._clock = clock
        self._middleware = tuple(middleware)
        self._cache = ModelCache()
        folds = [(handler.context, fold) for handler in handlers.values() for fold in handler.folds]
        self._models = KnownModels(folds, store, self._cache.clear)
        keeping = StateKeeping({fold for _, fold in folds})
        self._group = GroupCommit(store, history.types, self._cache, self._models, keeping, waiting_max=waiting_max)
        self._own_tables = own_tables(handlers.values(), store, self._group, self._read_others)
        self._waiting_max = waiting_max
        self._under_way = 0
        self._folding: dict[ModelKey, asyncio.Future[Folded | None]] = {}
        self._in_flight: dict[str, asyncio.Future[tuple[bytes, Receipt | BaseException]]] = {}

    async def open(self) -> None:
        """Learn which models are kept, and where the history ends. The store is open."""
        await self._models.open()
        await self._group.open()

    async def close(self) -> None:
        """Commit what was submitted, and take nothing more."""
        await self._group.close()

    async def execute(
        self, command: Command, command_id: str | None, sender: Sender, based_on: Sequence[Token] = ()
    ) -> Receipt:
        """Execute a command once, whatever happens around it.

        Args:
            command: what is wanted.
            command_id: under which its outcome is kept; None makes one.
            sender: who wants it.
            based_on: what the answer showed that its caller decided on; empty where that does not matter.

        Raises:
            Rejected: the domain says no.
            Forbidden: its handler requires a scope that the sender does not have.
            Conflict: it lost the race too often.
            ContextChanged: what it is decided on has changed since what it is based on.
            HistoryDiverged: what it is based on is of another history.
            CommandIdReused: the id was given for another command before.
            InvalidMessage: a field is of the wrong type.
            Overloaded: too many commands are waiting.
        """
        handler = self._handler(command)
        if command_id is not None:
            check_command_id(command_id)
        call = _Call(handler, sender, based_on, caller_gave_id=command_id is not None, dry_run=False)
        return await self._call(call, command, command_id)

    async def can(self, command: Command, sender: Sender, based_on: Sequence[Token] = ()) -> Verdict:
        """Decide a command as `execute` would, at the head, and append nothing.

        Raises:
            NotPure: its handler may do something outside.
        """
        handler = self._handler(command)
        if not handler.tryable:
            raise NotPure(handler.command.__name__, handler.name)
        try:
            receipt = await self._call(
                _Call(handler, sender, based_on, caller_gave_id=False, dry_run=True), command, None
            )
        except Rejected as rejected:
            return Verdict(rejected=rejected)
        return Verdict(events=receipt.events)

    async def accept(self, command: Command, command_id: str, sender: Sender) -> Accepted:
        """Check a command that is to be executed later: all that `execute` does before it looks at anything stored.

        It goes through every middleware, with a context that says `dry_run`, and whoever sends it has to have the
        scopes that its handler requires. Nothing is decided.

        Raises:
            Forbidden: its handler requires a scope that the sender does not have.
            InvalidMessage: a field is of the wrong type, or the id is none.
            UnknownMessage: nobody handles it.
        """
        handler = self._handler(command)
        check_command_id(command_id)
        if self._own_tables is not None:
            self._own_tables.check_not_inside()
        codec = self._codecs[type(command)]
        data, settled = codec.settle(command)
        hashed = codec.payload_hash(handler.command_name, settled)

        async def admit(reached: Command, context: CommandContext) -> Receipt:
            nonlocal hashed
            _authorise(handler, context)
            hashed = codec.payload_hash(handler.command_name, reached)  # as a middleware may have changed it
            return Receipt(command_id=command_id, place=await self._store.head())

        await self._through(admit)(settled, self._context(command_id, sender, dry_run=True))
        return Accepted(handler.command_name, data, hashed)

    async def heard(self, kept: KeptOutcome) -> Receipt | Rejected:
        """The outcome that is kept of a command, as whoever executes it again hears it."""
        return await self._heard(kept, self._group.keep_up())

    def _handler(self, command: Command) -> CommandHandler:
        handler = self._handlers.get(type(command))
        if handler is None:
            raise UnknownMessage("command", type(command).__name__, [known.__name__ for known in self._handlers])
        return handler

    async def _call(self, call: _Call, command: Command, command_id: str | None) -> Receipt:
        if self._under_way >= self._waiting_max:
            raise Overloaded("commands_waiting_max", self._waiting_max)
        if self._own_tables is not None:
            self._own_tables.check_not_inside()
        _, settled = self._codecs[type(command)].settle(command)
        context = self._context(command_id or unique_id(), call.sender, dry_run=call.dry_run)
        reach = partial(self._reach, call)
        self._under_way += 1
        try:
            return await self._through(reach)(settled, context)
        finally:
            self._under_way -= 1

    def _context(self, command_id: str, sender: Sender, *, dry_run: bool) -> CommandContext:
        return CommandContext(
            now=self._clock.now(),
            command_id=command_id,
            actor=sender.actor,
            correlation_id=sender.correlation_id,
            dry_run=dry_run,
            reason=sender.reason,
            scopes=sender.scopes,
            trusted=sender.trusted,
        )

    def _through(self, reach: NextCommand) -> NextCommand:
        """The way through every middleware, the first one outermost."""
        proceed = reach
        for middleware in reversed(self._middleware):
            proceed = _wrapped(middleware, proceed)
        return proceed

    async def _reach(self, call: _Call, command: Command, context: CommandContext) -> Receipt:
        """The outcome of a command that every middleware let through."""
        handler, sender = call.handler, call.sender
        if handler.requires:
            _authorise(handler, context)
        envelope = Envelope(
            command_id=context.command_id,
            correlation_id=context.correlation_id,
            causation_id=sender.causation_id,
            actor=context.actor,
            traceparent=sender.traceparent,
            reason=context.reason,
        )
        hashed = self._codecs[handler.command].payload_hash(handler.command_name, command)
        attempt = Attempt(
            handler, command, context, envelope, hashed, caller_gave_id=call.caller_gave_id, dry_run=call.dry_run
        )
        reach = partial(self._once if call.caller_gave_id else self._decide, based_on=call.based_on)
        for _ in range(FORKS_MAX - 1):
            attempt.forks = self._group.keep_up()
            try:
                return await reach(attempt)
            except HistoryDiverged:
                if attempt.forks == self._store.forks or not handler.idempotent:
                    raise
            attempt.await_outcome()
        attempt.forks = self._group.keep_up()
        return await reach(attempt)

    # ── once ─────────────────────────────────────────────────────────────────

    async def _once(self, attempt: Attempt, based_on: Sequence[Token]) -> Receipt:
        """The outcome kept under the command's id; or the one that is under way; or a new one."""
        command_id = attempt.context.command_id
        while (leader := self._in_flight.get(command_id)) is not None:
            hashed, outcome = await asyncio.shield(leader)
            if hashed != attempt.payload_hash:
                raise CommandIdReused(command_id)
            if not isinstance(outcome, asyncio.CancelledError):
                return _told(outcome)
        mine = self._in_flight[command_id] = asyncio.get_running_loop().create_future()
        ended: Receipt | BaseException = asyncio.CancelledError()
        try:
            kept = await self._store.outcome(command_id)
            found = await (self._decide(attempt, based_on) if kept is None else self._kept(kept, attempt))
        except Exception as error:
            ended = error
            raise
        else:
            ended = found
            return found
        finally:
            del self._in_flight[command_id]
            mine.set_result((attempt.payload_hash, ended))

    async def _kept(self, kept: KeptOutcome, attempt: Attempt) -> Receipt:
        check_payload(kept, attempt.payload_hash)
        return _told(await self._heard(kept, attempt.forks))

    async def _heard(self, kept: KeptOutcome, forks: int) -> Receipt | Rejected:
        if kept.rejection is not None:
            return rejection(kept.rejection)
        first = Position(kept.place.position - kept.event_count)
        found = await self._store.read(ALL_EVENTS, first, max(kept.event_count, 1), until=kept.place.position)
        self._group.check(forks)
        whole = [recorded for recorded in found.events if recorded.data]  # of the others nobody knows the data any more
        return receipt(kept, [event for recorded in whole for event in self._history.parts(recorded)])

    # ── decide, until it holds ───────────────────────────────────────────────

    async def _decide(self, attempt: Attempt, based_on: Sequence[Token]) -> Receipt:
        keys = attempt.handler.models(attempt.command)
        attempt.others.clear()
        attempt.based_on = shown = await self._anchor(based_on) if based_on else None
        if shown is not None:
            await self._check_unchanged(attempt, keys, shown)
        conflicts = 0
        while True:  # at most CONFLICTS_MAX conflicts, and CHAIN_ATTEMPTS_MAX broken chains
            attempt.models = self._models.mark
            for key in keys:
                known = self._cache.get(key)
                if known is None or known.position < self._group.tail.start:
                    known = await self._folded(key, attempt.forks)
                attempt.stands[key] = known
            outcome = await self._outcome(attempt)
            if isinstance(outcome, Lost):
                if shown is not None:
                    await self._check_unchanged(attempt, keys, shown)
                conflicts += 1
                if conflicts >= CONFLICTS_MAX or not attempt.handler.idempotent:
                    raise Conflict(attempt.handler.command.__name__, conflicts, outcome.position)
            elif not isinstance(outcome, Outdated):
                if isinstance(outcome, KeptOutcome):
                    return await self._kept(outcome, attempt)
                return _told(outcome)
            known_here = outcome.position if isinstance(outcome, Lost) else self._group.tail.committed
            for key in dict.fromkeys((*keys, *attempt.changes)):
                await self._folded(key, attempt.forks, known_here)
            attempt.changes = ()
            attempt.others.clear()
            attempt.await_outcome()

    async def _outcome(self, attempt: Attempt) -> Decision:
        """What becomes of an attempt, once every model that its events change is there as well (rule 24)."""
        if not attempt.handler.pure:
            await self._decide_impure(attempt)
        while True:  # at most CHAIN_ATTEMPTS_MAX times
            if self._own_tables is not None and attempt.handler.lender is not None:
                await self._own_tables.decide(attempt)
            else:
                self._group.submit(attempt)
            outcome = await attempt.outcome
            if isinstance(outcome, Superseded):
                await self._models.learn(attempt.models)
                if attempt.decided is not None:
                    await self._look_again(attempt)
                else:
                    return Outdated() if attempt.handler.idempotent else Lost(self._group.tail.committed)
            elif isinstance(outcome, Unfolded):
                await self._read_others(attempt, outcome.keys)
            else:
                return outcome
            attempt.await_outcome()

    async def _look_again(self, attempt: Attempt) -> None:
        """Make sure that a decision which is made already lacks no event that newer code folds, to send it again.

        Raises:
            NewerHistory: it does.
        """
        attempt.models = self._models.mark
        attempt.others.clear()
        for (fold, ids), folded in attempt.stands.items():
            query = self._models.query(fold, ids)
            await self._check_before(query, folded.position)
            attempt.stands[fold, ids] = replace(folded, query=query)

    async def _check_before(self, query: EventQuery, until: Position) -> None:
        """Make sure that a state up to there, which was folded without looking for them, lacks no event.

        Raises:
            NewerHistory: newer code's model folds one, and this one's does not.
        """
        if isinstance(query, OutgrownQuery):
            found = await self._store.read(query.only_beyond, START, 1, until=until)
            query.check(found.events)

    async def _read_others(self, attempt: Attempt, keys: Sequence[ModelKey]) -> None:
        """Read models that a command is not decided on, and whose states its events change."""
        for key in keys:
            attempt.others[key] = await self._folded(key, attempt.forks)

    async def _anchor(self, tokens: Sequence[Token]) -> Position:
        """What was shown for certain, of this history, by what a command is based on.

        Raises:
            HistoryDiverged: it was of another history.
        """
        ours = [token for token in tokens if token.high.history_id == self._store.history_id]
        for token in ours or tokens:
            there = await self._store.place_at(token.high.position)
            token.high.check(self._store.history_id, None if there is None else there.event_id, _BASIS)
        return min(token.low for token in ours)

    async def _check_unchanged(self, attempt: Attempt, keys: Sequence[ModelKey], shown: Position) -> None:
        """Make sure that what a command is decided on is still as it was in the answer that it is based on.

        Its conditions say the same to the append section. Here its caller hears why, and a handler is not run in vain.
        What has come of which no part is meant is passed over, by the conditions as well.

        Raises:
            ContextChanged: it is not.
        """
        queries = [self._models.query(fold, ids) for fold, ids in keys]
        query = EventQuery(tuple([item for found in queries for item in found.items]))
        wanted = EventQuery(tuple([found.items[0] for found in queries]))
        more = True
        while more:
            assert attempt.based_on is not None, "its caller was shown something"
            found = await self._store.read(query, attempt.based_on, CHANGES_TOLD_MAX)
            self._group.check(attempt.forks)
            for outgrown in queries:
                if isinstance(outgrown, OutgrownQuery):
                    outgrown.check(found.events)
            changes = [part for recorded in found.events for part in self._history.as_now(recorded)]
            if any(recorded.type in self._history.types.splitting for recorded in found.events):
                changes = [part for part in changes if not part.data or wanted.matches(part.type, part.tags)]
            if changes:
                raise ContextChanged(type(attempt.command).__name__, shown, changes, more=found.more)
            if found.events:
                attempt.based_on = found.through
            more = found.more

    async def _decide_impure(self, attempt: Attempt) -> None:
        """Have a handler that is async or takes services decide, on committed state and outside of any batch.

        One that takes the transaction decides on that state, too, in `OwnTables`.
        """
        tail = self._group.tail
        attempt.stands = {
            key: tail.fold(key, folded, pending=False) or folded for key, folded in attempt.stands.items()
        }
        if attempt.handler.lender is None:
            states = {key: folded.state for key, folded in attempt.stands.items()}
            attempt.decided = await attempt.handler.decide_async(attempt.command, states, attempt.context)

    async def _kept_state(self, fold: ModelFold, ids: tuple[str, ...]) -> Folded:
        """Where a model's fold begins: at the state that was kept of it, or before the first event.

        Raises:
            NewerHistory: it may be made of an event that newer code's model folds, and this one's does not.
        """
        if fold.form is not None:
            kept = await self._store.model_state(fold.form.model, key_of(ids))
            state = None if kept is None else fold.form.state(ids, kept)
            if kept is not None and state is not None:
                query = self._models.query(fold, ids)
                await self._check_before(query, kept.position)
                return Folded(query, state, kept.position)
        return self._models.before(fold, ids)

    async def _folded(self, key: ModelKey, forks: int, at_least: Position = START) -> Folded:
        """A model folded from the store up to a position or further; whoever wants the same at the same time joins.

        Raises:
            HistoryDiverged: there were more forks meanwhile, so that the position may never come.
        """
        while True:
            self._group.check(forks)
            under_way = self._folding.get(key)
            folded = await (self._lead_fold(key) if under_way is None else asyncio.shield(under_way))
            if folded is not None and folded.position >= at_least:
                return folded

    async def _lead_fold(self, key: ModelKey) -> Folded:
        """Fold for oneself and for those who join; they do it themselves where this fails or is cancelled."""
        self._folding[key] = asyncio.get_running_loop().create_future()
        folded: Folded | None = None
        try:
            folded = await self._fold(key)
            return folded
        finally:
            self._folding.pop(key).set_result(folded)

    async def _fold(self, key: ModelKey) -> Folded:
        """Fold what the store holds onto the state that is known, or from the beginning."""
        forks = self._group.keep_up()
        while True:  # again only where other models were kept meanwhile
            models = self._models.mark
            folded = await self._folded_by_now(key, forks)
            if models == self._models.mark:
                break
        self._cache.put(key, folded)
        self._group.observe(folded.position)
        return folded

    async def _folded_by_now(self, key: ModelKey, forks: int) -> Folded:
        """A model folded up to the head.

        Raises:
            NewerHistory: newer code's model folds an event that this one's does not.
        """
        fold, ids = key
        folded = self._cache.get(key) or await self._kept_state(fold, ids)
        more = True
        while more:
            found = await self._store.read(folded.query, folded.position, FOLD_PAGE_EVENTS)
            self._group.check(forks)
            if isinstance(folded.query, OutgrownQuery):
                folded.query.check(found.events)
            if fold.splits:
                state = self._evolved_by_parts(fold, folded, found.events)
            else:
                state = folded.state
                for recorded in found.events:
                    context = self._history.context(recorded) if fold.takes_context else None
                    state = fold.evolve(state, self._history.event(recorded), context)
            folded = Folded(folded.query, state, found.through, START, folded.unsaved + len(found.events))
            more = found.more
            if more:
                await pause()
        return folded

    def _evolved_by_parts(self, fold: ModelFold, folded: Folded, events: Sequence[RecordedEvent]) -> Any:
        """A state after the parts of these events that are meant."""
        state = folded.state
        for recorded in events:
            for ordinal, event in self._history.matching(recorded, folded.item_now):
                context = self._history.context(recorded, ordinal) if fold.takes_context else None
                state = fold.evolve(state, event, context)
        return state


_BASIS = "the answer that the command is based on"


def _authorise(handler: CommandHandler, context: CommandContext) -> None:
    missing = handler.requires - context.scopes
    if missing and not context.trusted:
        raise Forbidden(handler.command.__name__, context.actor, sorted(missing))


def _told(outcome: Receipt | BaseException) -> Receipt:
    if isinstance(outcome, Receipt):
        return outcome
    if isinstance(outcome, Rejected):
        raise Rejected(outcome.code, **outcome.facts) from None
    raise outcome


def _wrapped(middleware: CommandMiddleware, proceed: NextCommand) -> NextCommand:
    async def wrapped(command: Command, context: CommandContext) -> Receipt:
        return await middleware(command, context, proceed)

    return wrapped
