"""The contract of `diptych.read_side.inline_rows`: what an event store does that folds rows with each append.

    @pytest.mark.anyio
    class TestMyInlineRows(InlineContract):
        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            ...                                # as for the event store's contract

        def rows(self, store: EventStore) -> ReadStore:
            ...                                # the read store in the database of this event store, not open

        def elsewhere(self) -> ReadStore:
            ...                                # one that is in no such database

The tests are coroutines without parameters, for whichever plugin runs those. A failed guarantee is an AssertionError.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import Appended, Conflicting, EventStore
from diptych.event_store.position import START, Position
from diptych.event_store.transactions import Change, Transactional
from diptych.read_side.inline_rows import Appending, FoldsInline, InlineRows
from diptych.read_side.read_store import (
    BlockedKey,
    Discard,
    Failed,
    Fenced,
    ReadStore,
    RowsAsked,
    SliceWrite,
    WriteResult,
    Written,
)
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    SettableClock,
    append_one,
    commit,
    condition,
    event,
    history_of,
    item,
    opened,
)
from diptych.testing.contracts.read_store_cases import NAME, SEATS, rows_of, stored_generation

__all__ = ["Fold", "InlineContract", "count"]

WAIT_S = 20.0
"""How long a test waits for what has to happen."""
CALLERS = 4
"""Callers that append at a time."""
ROUNDS = 10
"""Appends of each."""
Work: TypeAlias = Callable[[InlineRows, Appending], Awaitable[None]]
"""What a fold does."""


class Fold:
    """An inline fold that does what a test says, and notes what it hears."""

    def __init__(self) -> None:
        self.work: Work = count
        self.appending: list[Appending] = []
        self.errors: list[Exception] = []

    async def fold(self, rows: InlineRows, appending: Appending) -> None:
        """Do it."""
        self.appending.append(appending)
        await self.work(rows, appending)

    def failed(self, error: Exception) -> None:
        """Note it."""
        self.errors.append(error)


class Opened(NamedTuple):
    """An event store, the rows beside it, and the fold."""

    store: EventStore
    rows: ReadStore
    fold: Fold


class InlineContract(EventStoreCase):
    """Everything that an event store guarantees whose appends fold rows. Derive from it, and give it both stores."""

    @abstractmethod
    def rows(self, store: EventStore) -> ReadStore:
        """The read store in the database of an event store; not open."""

    @abstractmethod
    def elsewhere(self) -> ReadStore:
        """A read store in another database."""

    @asynccontextmanager
    async def both(self) -> AsyncGenerator[Opened]:
        """A new history with an empty read model beside it, both open."""
        async with self.history(SettableClock()) as connect:
            store, fold = connect(), Fold()
            rows = self.rows(store)
            assert isinstance(store, FoldsInline)
            store.fold_inline(rows, fold)
            async with opened(store):
                await rows.open()
                try:
                    await rows.create_generation(NAME, "fold", SEATS, await store.head(), live=True)
                    yield Opened(store, rows, fold)
                finally:
                    await rows.close()

    # ── together ─────────────────────────────────────────────────────────────

    async def test_g5_rows_and_checkpoint_are_there_when_the_append_returns(self) -> None:
        """The rows show every event, and the checkpoint is the head."""
        async with self.both() as (store, rows, fold):
            await append_one(store, event("A"), event("B"))
            await append_one(store, event("A"))
            assert await rows_of(rows) == [("A", 2), ("B", 1)]
            generation = await stored_generation(rows)
            assert generation is not None
            assert generation.checkpoint == await store.head()
            assert not fold.errors

    async def test_g8_no_reader_sees_events_without_their_rows(self) -> None:
        """Whoever reads the head and then the rows finds all of its events in them, whoever appends meanwhile."""
        async with self.both() as (store, rows, _):
            appending = [asyncio.create_task(self._append_many(store)) for _ in range(CALLERS)]
            try:
                while not all(task.done() for task in appending):
                    head = await store.head()
                    async with rows.snapshot() as snapshot:
                        (found,) = await snapshot.slices(NAME)
                        shown = sum(row[1] for row in (await snapshot.get_many(NAME, [("A",)])).values())
                    assert found.checkpoint.position >= head.position, "rows lag behind the history"
                    assert shown == found.checkpoint.position, "rows and checkpoint are of two moments"
                    await asyncio.sleep(0)  # noqa: TID251 - a turn for the others, not a wait
                await asyncio.gather(*appending)
            finally:
                for task in appending:
                    task.cancel()
                await asyncio.wait(appending)
            assert await rows_of(rows) == [("A", CALLERS * ROUNDS)]

    @staticmethod
    async def _append_many(store: EventStore) -> None:
        for _ in range(ROUNDS):
            await append_one(store, event("A"))

    async def test_a_batch_is_folded_once_with_what_was_appended_of_it(self) -> None:
        """Commits that something stands against are not told of, nor is a batch of which nothing is left."""
        async with self.both() as (store, rows, fold):
            first = await append_one(store, event("A"))
            stale = commit(event("B"), conditions=[condition(0, ["A"])])
            results = await store.append([commit(event("A", "t:1")), stale, commit(event("C", data=b'{"a":1}'))])
            assert [type(result) for result in results] == [Appended, Conflicting, Appended]
            assert [type(result) for result in await store.append([stale])] == [Conflicting]
            await store.append([commit(command_id="c-1")])
            assert len(fold.appending) == 2
            told = fold.appending[-1]
            assert told.before == first.place
            assert told.head == await store.head()
            assert list(told.events) == (await history_of(store))[1:], "events are told as they are read"
            assert await rows_of(rows) == [("A", 2), ("C", 1)]

    async def test_whoever_waits_for_rows_is_woken(self) -> None:
        """A wait for a change ends with the append."""
        async with self.both() as (store, rows, _):
            seen = rows.changes
            waiting = asyncio.create_task(rows.wait_for_change(seen, WAIT_S))
            await asyncio.sleep(0)  # noqa: TID251 - its turn, not a wait
            await append_one(store, event("A"))
            assert await waiting != seen

    async def test_g1_a_transaction_that_is_lent_folds_too(self) -> None:
        """Where handlers take the transaction, what they append is folded in it."""
        async with self.both() as (store, rows, _):
            if not isinstance(store, Transactional):
                return
            awaits = store.lending.awaits

            def work(_: object) -> Change:
                return Change(commit(event("A")))

            async def work_async(connection: object) -> Change:
                return work(connection)

            result = await store.transact(work_async if awaits else work)
            assert isinstance(result, Appended)
            assert await rows_of(rows) == [("A", 1)]

    # ── what fails ───────────────────────────────────────────────────────────

    async def test_a_fold_that_fails_keeps_nobody_from_appending(self) -> None:
        """The events are there, and the next one finds the rows as they were."""
        async with self.both() as (store, rows, fold):
            await append_one(store, event("A"))
            error = ValueError("no")

            async def break_off(there: InlineRows, _: Appending) -> None:
                await there.generations([NAME])
                raise error

            fold.work = break_off
            await append_one(store, event("A"))
            assert fold.errors == [error]
            assert await rows_of(rows) == [("A", 1)]
            fold.work = count
            await append_one(store, event("B"))
            assert [recorded.type for recorded in await history_of(store)] == ["A", "A", "B"]
            assert await rows_of(rows) == [("A", 2), ("B", 1)], "what it lacked was caught up with"

    async def test_g5_a_write_from_a_stale_place_changes_nothing(self) -> None:
        """Writes are fenced by checkpoint and epoch, as those of the read store are."""
        async with self.both() as (store, rows, fold):
            results: list[WriteResult] = []

            async def stale(there: InlineRows, appending: Appending) -> None:
                (found,) = await there.generations([NAME])
                raised = replace(found, epoch=found.epoch + 1)
                results.extend(await there.write([SliceWrite(raised, appending.head, upserts=[("A", 1)])]))

            fold.work = stale
            await append_one(store, event("A"))
            assert results == [Fenced()]
            assert await rows_of(rows) == []

    async def test_a_row_that_cannot_be_stored_leaves_its_slice_alone(self) -> None:
        """The others are written."""
        async with self.both() as (store, rows, fold):
            await rows.create_generation(
                "school.Other", "fold", replace(SEATS, name="other"), await store.head(), live=True
            )
            results: list[WriteResult] = []

            async def too_large(there: InlineRows, appending: Appending) -> None:
                found = {each.name: each for each in await there.generations([NAME, "school.Other"])}
                bad = SliceWrite(found[NAME], appending.head, upserts=[("A", 1 << 70)])
                good = SliceWrite(found["school.Other"], appending.head, upserts=[("A", 1)])
                results.extend(await there.write([bad, good]))

            fold.work = too_large
            await append_one(store, event("A"))
            assert [type(result) for result in results] == [Failed, Written]
            assert await rows_of(rows) == []
            assert await rows_of(rows, name="school.Other") == [("A", 1)]
            assert not fold.errors

    async def test_rows_in_another_database_are_refused(self) -> None:
        """They could not be committed together."""
        async with self.history(SettableClock()) as connect:
            store = connect()
            assert isinstance(store, FoldsInline)
            try:
                store.fold_inline(self.elsewhere(), Fold())
            except ConfigurationError:
                return
            raise AssertionError("rows of another database were taken")

    # ── what the fold sees ───────────────────────────────────────────────────

    async def test_the_fold_sees_what_is_kept_beside_the_rows(self) -> None:
        """Blocked keys, discards, stored rows, and the events before."""
        async with self.both() as (store, rows, fold):
            await append_one(store, event("A"), event("B"))
            generation = await stored_generation(rows)
            assert generation is not None
            blocked = BlockedKey(NAME, '["B"]', Position(2), "no")
            discard = Discard(NAME, '["A"]', Position(1), "ada", "because")
            (written,) = await rows.write(
                [SliceWrite(generation, generation.checkpoint, block=[blocked], discard=[discard], by_hand=True)]
            )
            assert isinstance(written, Written)
            seen: list[object] = []

            async def look(there: InlineRows, appending: Appending) -> None:
                (found,) = await there.generations([NAME])
                assert await there.generations(["school.Nothing"]) == []
                loaded = await there.load(RowsAsked(found, [("A",), ("Z",)]))
                earlier = await there.events(EventQuery((item(["B"]),)), START, appending.before.position)
                seen.extend([found, list(await there.blocked(found)), list(await there.discards(NAME)), loaded])
                seen.extend([await there.event_id(Position(1)), await there.event_id(Position(99))])
                seen.append(list(earlier))

            fold.work = look
            await append_one(store, event("C"))
            assert not fold.errors
            first, second, _ = await history_of(store)
            assert seen == [
                written.generation,
                [blocked],
                [discard],
                {("A",): ("A", 1)},
                first.event_id,
                None,
                [second],
            ]


async def count(rows: InlineRows, appending: Appending) -> None:
    """Count the events of each type, those included that the rows lack."""
    (found,) = await rows.generations([NAME])
    earlier = await rows.events(EventQuery((item(),)), found.checkpoint.position, appending.before.position)
    types = [each.type for each in (*earlier, *appending.events)]
    loaded = await rows.load(RowsAsked(found, [(type,) for type in dict.fromkeys(types)]))
    counts = {type: types.count(type) + loaded.get((type,), (type, 0))[1] for type in types}
    (result,) = await rows.write([SliceWrite(found, appending.head, upserts=list(counts.items()))])
    assert isinstance(result, Written), result
