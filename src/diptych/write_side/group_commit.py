"""Group commit: commands that wait at the same moment share one durable transaction.

One batch is in flight at a time. When it is back, the commands that came meanwhile are decided one after the other,
each on what the ones before it are about to append (a *chain*), and appended together. Every outcome passes the
store's append section with the conditions of all its models, events or not: a refusal, too, holds only if it is true
of the head.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TypeAlias

from diptych.clock import pause
from diptych.errors import (
    HistoryDiverged,
    InvalidEvent,
    InvalidMessage,
    OutcomeUnknown,
    Overloaded,
    StoreClosed,
    Unstorable,
)
from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_store import (
    COMMIT_STATES_MAX,
    Appended,
    AppendResult,
    ChainBroken,
    Commit,
    Conflicting,
    Duplicate,
    EventStore,
    ModelsChanged,
    Refused,
)
from diptych.event_store.position import START, Position
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.refusal import refusal
from diptych.messages.codec import encode
from diptych.messages.event import Event
from diptych.messages.registry import EventTypes
from diptych.messages.rejected import Rejected
from diptych.messages.unique_id import unique_bytes
from diptych.write_side.attempt import Attempt, Draft, Lost, Outdated, Superseded, Unfolded, UnfoldedModels
from diptych.write_side.command_handler import Decided, ModelKey
from diptych.write_side.decision_model import Folded
from diptych.write_side.idempotency import Receipt, encode_rejection, rejection
from diptych.write_side.known_models import KnownModels
from diptych.write_side.left_states import StateKeeping, after, due_snapshots, kept
from diptych.write_side.model_cache import ModelCache, RecentEvent, Tail

__all__ = ["GroupCommit"]

COMMANDS_WAITING_MAX = 10_000
"""Commands that wait for their commit; past it, `Overloaded`."""
BATCH_COMMANDS_MAX = 256
"""Commands that share one transaction."""
BATCH_BYTES_MAX = 4 << 20
"""Bytes of events, rejections and states after which a batch takes no further command; the rest are in the next one."""
CHAIN_ATTEMPTS_MAX = 100
"""How often a command is decided again because an earlier link of its chain broke; not its own conflicts."""


_Stands: TypeAlias = Mapping[ModelKey, Folded]
_Look: TypeAlias = Callable[[ModelKey], Folded | None]
_NONE_LEFT: _Stands = {}
"""What most commits leave of models whose states are kept."""


class GroupCommit:
    """Decides waiting commands and appends them in batches."""

    def __init__(
        self,
        store: EventStore,
        types: EventTypes,
        cache: ModelCache,
        models: KnownModels,
        keeping: StateKeeping,
        *,
        waiting_max: int = COMMANDS_WAITING_MAX,
    ) -> None:
        self._store = store
        self._types = types
        self._cache = cache
        self._models = models
        self._keeping = keeping
        self._waiting_max = waiting_max
        self._waiting: deque[Attempt] = deque()
        self._deferred: list[Attempt] = []
        self._batch_bytes = 0
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._observed = START
        self._forks = store.forks
        self.tail = Tail(START)

    async def open(self) -> None:
        """Learn where the history ends."""
        self._forks = self._store.forks
        self.tail.restart((await self._store.head()).position)

    def keep_up(self) -> int:
        """Forget all that was read of a history that is not there any more; `EventStore.forks` as it is now."""
        if self._forks != self._store.forks:
            self._forks = self._store.forks
            self._cache.clear()
            self._observed = START
            self.tail.restart(START)
        return self._forks

    def check(self, forks: int) -> None:
        """Make sure that what was read since then is all of one history.

        Raises:
            HistoryDiverged: it is not. Nothing was done.
        """
        if self._store.forks != forks:
            raise HistoryDiverged("what the command was decided on", "nothing was done; send it again")

    async def close(self) -> None:
        """Finish what was submitted, and take nothing more."""
        self._closed = True
        while self._running is not None:
            await asyncio.wait([self._running])

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closed

    def observe(self, head: Position) -> None:
        """Take note of a head that was read from the store: past our own, when other processes write."""
        self._observed = max(self._observed, head)

    def submit(self, attempt: Attempt) -> None:
        """Queue a command; `attempt.outcome` will have its outcome, also when the caller is cancelled.

        Raises:
            Overloaded: too many wait.
            StoreClosed: the application is closing.
        """
        if self._closed:
            raise StoreClosed("the application is closing: this command was not executed")
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded("commands_waiting_max", self._waiting_max)
        self._waiting.append(attempt)
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._run_batch()
                await pause()  # callers that were answered submit their next command before the next batch
        except BaseException:
            while self._waiting:  # the loop is being torn down: nobody is left waiting
                self._waiting.popleft().fail(StoreClosed("the event loop was torn down: this command was not executed"))
            raise
        finally:
            self._running = None

    async def _run_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_COMMANDS_MAX))]
        try:
            await self._commit(batch)
        except BaseException as error:
            # The store failed as a whole, or the loop is being torn down: everyone in the batch hears it.
            for attempt in batch:
                attempt.fail(_for_one(error, attempt))
            if not isinstance(error, Exception):
                raise

    async def _commit(self, batch: Sequence[Attempt]) -> None:
        self.keep_up()
        if self._observed > self.tail.end:
            self.tail.restart(self._observed)
        base = self.tail.end
        states: dict[ModelKey, Folded] = {}
        drafts = self._drafts(batch, states)
        if drafts:
            await self._append(base, drafts, states)
        self._waiting.extendleft(reversed(self._deferred))

    async def _append(self, base: Position, drafts: Sequence[Draft], states: dict[ModelKey, Folded]) -> None:
        forks, models = self._forks, self._models.mark
        try:
            results = await self._store.append([draft.commit for draft in drafts], base)
            if forks == self.keep_up():
                await self._remember(base, drafts, results, states, models)
        except BaseException:  # what became of the pending events is not known
            self.tail.restart(base if forks == self.keep_up() else START)
            raise
        for draft, result in zip(drafts, results, strict=True):
            self._answer(draft, result)

    async def _remember(
        self,
        base: Position,
        drafts: Sequence[Draft],
        results: Sequence[AppendResult],
        states: dict[ModelKey, Folded],
        models: bytes,
    ) -> None:
        """Learn from a batch: its events are the new end of the tail, whatever came before them.

        Nothing of models, where it turned out since the batch was decided that newer code folds more of them.
        """
        appended = [
            (result, draft) for draft, result in zip(drafts, results, strict=True) if isinstance(result, Appended)
        ]
        count = sum(len(draft.events) for _, draft in appended)
        forks = self._forks
        head = appended[-1][0].place.position if appended else (await self._store.head()).position
        if self.keep_up() != forks:
            return
        expected = head == base + count
        if not expected:  # there are foreign events before ours, which the tail does not know
            self.tail.restart(Position(head - count))
        self.tail.confirm([(result, draft.events) for result, draft in appended])
        if models != self._models.mark:
            return
        if expected and len(appended) == len(drafts):
            for key, folded in states.items():
                self._cache.put(key, folded)
        else:
            self._remember_stands(appended)

    def _remember_stands(self, appended: Sequence[tuple[Appended, Draft]]) -> None:
        """Keep what decisions stood on that held: its conditions say that it is whole up to their own events.

        And what was kept of models with them, which is whole up to the last of them.
        """
        for result, draft in appended:
            end = result.place.position
            before = Position(end - len(draft.events))
            for key, stood_on in draft.stands.items():
                self._cache.put(key, Folded(stood_on.query, stood_on.state, before, START, stood_on.unsaved))
            for key, folded in draft.left.items():
                self._cache.put(key, Folded(folded.query, folded.state, end))

    # ── deciding ─────────────────────────────────────────────────────────────

    def _drafts(self, batch: Sequence[Attempt], states: dict[ModelKey, Folded]) -> list[Draft]:
        """Decide the commands one after the other, as many as fit; the rest are first in the next batch."""
        drafts: list[Draft] = []
        self._deferred, self._batch_bytes = [], 0
        for index, attempt in enumerate(batch):
            if self._batch_bytes >= BATCH_BYTES_MAX:
                self._deferred += batch[index:]
                break
            draft = self._draft(attempt, states)
            if draft is not None:
                drafts.append(draft)
        return drafts

    def _draft(self, attempt: Attempt, states: dict[ModelKey, Folded]) -> Draft | None:
        """Decide a command and add its events to the pending ones; None where it ends here or has to wait."""
        try:
            self.check(attempt.forks)
            if attempt.models != self._models.mark:
                self._again(attempt, Superseded())
                return None
            look = partial(self._current, attempt, states) if self._keeping.keeps_any else _nothing
            if attempt.decided is not None:
                draft = self._encode(attempt, attempt.decided, attempt.stands, self.tail.judged_after, look)
            else:
                stands = self._stands(attempt, states)
                if stands is None:
                    return None
                seen = {key: folded.state for key, folded in stands.items()}
                decided = attempt.handler.decide(attempt.command, seen, attempt.context)
                draft = self._encode(attempt, decided, stands, self.tail.judged_after, look)
        except UnfoldedModels as unfolded:
            self._again(attempt, Unfolded(unfolded.keys))
            return None
        except BaseException as error:  # noqa: BLE001  # the user's code failed: its caller hears it, the others go on
            attempt.fail(error)
            return None
        self.tail.add_pending(draft.events)
        self._batch_bytes += sum([len(recent.new.data) for recent in draft.events]) + len(draft.commit.rejection or b"")
        if draft.left:
            for key, folded in draft.left.items():
                states[key] = Folded(folded.query, folded.state, self.tail.end, self.tail.end)
            self._batch_bytes += sum([len(state.data) for state in draft.commit.states])
        return draft

    def _stands(self, attempt: Attempt, states: dict[ModelKey, Folded]) -> dict[ModelKey, Folded] | None:
        """What a decision stands on now, pending events included; None where the attempt has to wait or ends here."""
        stands: dict[ModelKey, Folded] = {}
        for key, loaded in attempt.stands.items():
            newest = self._newest(key, states)
            if newest is None or newest.position < loaded.position:
                newest = loaded
            if self._is_outdated(attempt, newest):
                self._again(attempt, Outdated())
                return None
            folded = self.tail.fold(key, newest, pending=True)
            if folded is None:  # the model needs to know when a pending event was recorded: next batch
                self._deferred.append(attempt)
                return None
            stands[key] = states[key] = folded
        return stands

    def _newest(self, key: ModelKey, states: Mapping[ModelKey, Folded]) -> Folded | None:
        return states.get(key) or self._cache.peek(key)

    def _is_outdated(self, attempt: Attempt, newest: Folded) -> bool:
        """Whether a model is older than the tail, and what it lacks would make the decision a conflict for sure.

        It would where the tail has an event of it, and very likely where a chain has broken under it: such a decision
        would only lose to others of this process, so it is read anew instead of counting as a conflict of its own.
        """
        if newest.position >= self.tail.start:
            return False
        return attempt.broken > 0 or self.tail.knows_of(newest.item_now)

    def _current(self, attempt: Attempt, states: dict[ModelKey, Folded], key: ModelKey) -> Folded | None:
        """A model that a command is not decided on, pending events included; None where it has to be read."""
        newest = self._newest(key, states) or attempt.others.get(key)
        if newest is None:
            newest = self._made_up(attempt, key)
        elif self._is_outdated(attempt, newest):
            return None
        if newest is None:
            return None
        folded = self.tail.fold(key, newest, pending=True)
        if folded is not None:
            states[key] = folded
        return folded

    def _made_up(self, attempt: Attempt, key: ModelKey) -> Folded | None:
        """A model before its first event, where the handler has named another one when it was run before.

        It makes identities up, so that what is read for it is never what it names next. Whether this one is new indeed,
        its condition says.
        """
        fold, ids = key
        if not attempt.others or self.tail.knows_of(fold.query(ids).items[0]):
            return None
        return self._models.before(fold, ids)

    def _changed(self, attempt: Attempt, events: Sequence[RecentEvent], stands: _Stands, look: _Look) -> _Stands:
        """The models whose states go into the commit, before its events.

        Raises:
            UnfoldedModels: some of them have to be read.
            Unstorable: they are too many.
        """
        before: dict[ModelKey, Folded] = {}
        unfolded: list[ModelKey] = []
        attempt.changes = keys = self._keeping.touched(events)
        if len(keys) > COMMIT_STATES_MAX:
            reason = f"it changes more states of models than COMMIT_STATES_MAX={COMMIT_STATES_MAX}"
            raise Unstorable(attempt.handler.name, _names(events), reason)
        for key in keys:
            if (stood_on := stands.get(key)) is not None:
                before[key] = stood_on
            elif (found := look(key)) is not None:
                before[key] = found
            else:
                unfolded.append(key)
        if unfolded:
            raise UnfoldedModels(unfolded)
        return before | due_snapshots(stands, len(events))

    def _encode(
        self,
        attempt: Attempt,
        decided: Decided,
        stands: _Stands,
        judged_after: Callable[[Folded], Position],
        look: _Look,
    ) -> Draft:
        metadata = encode(attempt.envelope)
        events = [self._settle(attempt, event, metadata) for event in decided.events]
        refused = None if decided.rejected is None else _encode_rejection(attempt, decided.rejected)
        left = _NONE_LEFT
        if self._keeping.keeps_any and events and not attempt.dry_run:
            before = self._changed(attempt, events, stands, look)
            left = {key: after(key, folded, events) for key, folded in before.items()}
        commit = Commit(
            events=tuple([recent.new for recent in events]),
            conditions=_conditions(attempt, stands, left, judged_after),
            command_id=attempt.context.command_id,
            payload_hash=attempt.payload_hash,
            rejection=refused,
            keep=refused is None or attempt.caller_gave_id,
            states=kept(attempt.handler.name, left) if left else (),
            models=attempt.models,
        )
        rejected = None if refused is None else rejection(refused)
        if attempt.dry_run:
            if (reason := refusal(commit)) is not None:
                raise Unstorable(attempt.handler.name, _names(events), reason)
            tried = Commit(conditions=commit.conditions, models=attempt.models)
            return Draft(attempt, stands, tried, (), events, rejected, left)
        return Draft(attempt, stands, commit, events, events, rejected, left)

    def _settle(self, attempt: Attempt, event: Event, metadata: bytes) -> RecentEvent:
        found = self._types.of(type(event))
        try:
            data, settled = found.codec.settle(event)
            tags = found.tags(settled)
        except InvalidMessage as error:
            raise InvalidEvent(attempt.handler.name, found.name, str(error)) from error
        new = NewEvent(unique_bytes(), found.name, found.version, data, tags, metadata)
        return RecentEvent(settled, found.name, new, attempt.envelope)

    # ── decided apart ────────────────────────────────────────────────────────

    def prepare(self, attempt: Attempt, decided: Decided) -> Draft:
        """A decision on committed state alone, ready to be appended apart from any batch. Any thread may call it.

        Raises:
            UnfoldedModels: its events change models that have to be read first.
        """

        def look(key: ModelKey) -> Folded | None:
            return attempt.others.get(key) or self._cache.peek(key)

        return self._encode(attempt, decided, attempt.stands, attrgetter("position"), look)

    def conclude(self, draft: Draft, result: AppendResult) -> None:
        """Learn from what was appended apart, and answer its caller."""
        if isinstance(result, Appended) and self.keep_up() == draft.attempt.forks:
            self._follow(draft, result)
            if draft.attempt.models == self._models.mark:
                self._remember_stands([(result, draft)])
        if isinstance(result, ChainBroken):  # its models were read from a history that is longer than this one
            draft.attempt.end(Lost(self.tail.committed))
        else:
            self._answer(draft, result)

    def _follow(self, draft: Draft, result: Appended) -> None:
        """Take its events as the new end of the tail, where no batch is in flight that was decided without them."""
        end = result.place.position
        if self._running is not None:
            self.observe(end)
        elif end - len(draft.events) == self.tail.end:
            self.tail.add_pending(draft.events)
            self.tail.confirm([(result, draft.events)])
        elif end > self.tail.end:
            self.tail.restart(end)

    # ── answering ────────────────────────────────────────────────────────────

    def _answer(self, draft: Draft, result: AppendResult) -> None:
        attempt = draft.attempt
        match result:
            case Appended(place=place):
                events = tuple([recent.event for recent in draft.decided])
                receipt = Receipt(command_id=attempt.context.command_id, place=place, events=events)
                attempt.end(receipt if draft.rejected is None else draft.rejected)
            case Duplicate(outcome=outcome):
                attempt.end(outcome)
            case Conflicting(position=position):
                attempt.end(Lost(position))
            case ChainBroken():
                self._again(attempt)
            case ModelsChanged():
                self._again(attempt, Superseded())
            case Refused(reason=reason):
                attempt.fail(Unstorable(attempt.handler.name, _names(draft.events), reason))

    def _again(self, attempt: Attempt, outcome: Outdated | Superseded | Unfolded | None = None) -> None:
        attempt.broken += 1
        if attempt.broken > CHAIN_ATTEMPTS_MAX:
            attempt.end(Lost(self.tail.end))
        elif outcome is not None:
            attempt.end(outcome)
        else:
            self._waiting.append(attempt)


def _nothing(_: ModelKey) -> None:
    """No model is known: none is asked for."""


def _for_one(error: BaseException, attempt: Attempt) -> BaseException:
    """A failure of the batch as one of its commands hears it: by its own id.

    The batch is only cancelled where its event loop is torn down, in the middle of an append for all that one knows.
    """
    if isinstance(error, OutcomeUnknown):
        return OutcomeUnknown(attempt.context.command_id, error.cause)
    if isinstance(error, asyncio.CancelledError):
        return OutcomeUnknown(attempt.context.command_id, "its event loop was torn down meanwhile")
    return error


def _conditions(
    attempt: Attempt, stands: _Stands, left: _Stands, judged_after: Callable[[Folded], Position]
) -> tuple[AppendCondition, ...]:
    """That nothing came that the decision does not know; nor anything since what the command is based on."""
    known = [
        AppendCondition(item, judged_after(folded))
        for folded in ({**stands, **left} if left else stands).values()
        for item in folded.query.items
    ]
    if (since := attempt.based_on) is not None:
        known += [AppendCondition(item, since) for folded in stands.values() for item in folded.query.items]
    return tuple(known)


def _encode_rejection(attempt: Attempt, rejected: Rejected) -> bytes:
    try:
        return encode_rejection(rejected)
    except (TypeError, ValueError) as error:
        raise InvalidEvent(attempt.handler.name, f'Rejected("{rejected.code}")', str(error)) from error


def _names(events: Iterable[RecentEvent]) -> str:
    return ", ".join(dict.fromkeys(recent.type for recent in events)) or "outcome"
