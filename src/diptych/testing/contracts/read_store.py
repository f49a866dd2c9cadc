"""What every read store does: the contract of `read_side/read_store.py` as a test suite.

An adapter's test is a subclass that says how to connect:

    class TestSqliteReadStore(ReadStoreContract):
        def connect(self, folder: Path) -> ReadStore:
            return connect(f"sqlite:{folder / 'read.db'}")

Needs pytest with the anyio plugin on its asyncio backend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest

from diptych.clock import pause
from diptych.errors import StoreClosed, StoreUnavailable
from diptych.event_store.position import Place, Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Discard,
    Fenced,
    Filter,
    Generation,
    Order,
    ReadStore,
    Retry,
    SliceWrite,
    Table,
)
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    LINES,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    shown_generation,
    stored_generation,
    write,
)
from diptych.testing.contracts.read_store_expiry import ExpiryContract
from diptych.testing.contracts.read_store_leases import LeasesContract
from diptych.testing.contracts.read_store_rows import RowsContract
from diptych.testing.contracts.read_store_slices import SlicesContract

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ReadStoreContract"]

MOMENT = dt.datetime(2026, 11, 1, 12, 30, 0, 7, dt.UTC)
"""When something was decided."""
SCANNED_ROWS = 2_500
"""Rows of a read that takes long enough to be stopped in the middle."""
BUSY_WRITES = 50
"""Writes that go on while others read."""
READS_AT_ONCE = 5
"""Reads of each kind that one snapshot is asked for at once."""
WAIT_S_MAX = 10.0
"""No wait of a test that is to succeed takes longer."""


@pytest.mark.anyio
class ReadStoreContract(RowsContract, ExpiryContract, LeasesContract, SlicesContract):
    """The contract; subclasses say how to connect."""

    def connect(self, folder: Path) -> ReadStore:
        """A store that keeps what it keeps in that folder, not opened yet."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncGenerator[ReadStore, None]:
        """An empty store, open."""
        store = self.connect(tmp_path)
        await store.open()
        yield store
        await store.close()

    # ── checkpoints and fences ───────────────────────────────────────────────

    async def test_rows_and_checkpoint_change_together(self, store: ReadStore) -> None:
        """After a write both are new; the result is the generation as it is stored."""
        generation = await create(store, SEATS)
        written = await write(store, generation, checkpoint=place(7), upserts=[("a", 1)], stopped="too many")
        assert written == msgspec.structs.replace(generation, checkpoint=place(7), stopped="too many")
        assert await stored_generation(store) == written
        assert await rows_of(store) == [("a", 1)]
        assert (await write(store, written)).stopped == ""

    async def test_a_stale_checkpoint_is_fenced(self, store: ReadStore) -> None:
        """A writer whose checkpoint is not the stored one changes nothing, be it behind, ahead or in a fork."""
        old = await create(store, SEATS)
        current = await write(store, old, upserts=[("a", 1)])
        elsewhere = Place(b"x" * 16, current.checkpoint.position, current.checkpoint.event_id)
        forked = Place(current.checkpoint.history_id, current.checkpoint.position, b"x" * 16)
        for stale in (old.checkpoint, place(2), elsewhere, forked):
            await self._is_fenced(store, msgspec.structs.replace(current, checkpoint=stale), current)

    async def test_a_change_by_hand_fences_those_who_do_not_know_of_it(self, store: ReadStore) -> None:
        """It raises the epoch, though the checkpoint may stay; the old epoch is fenced, the new one goes on."""
        old = await build(store, SEATS, [("a", 1)])
        current = await write(store, old, checkpoint=old.checkpoint, by_hand=True)
        assert (current.epoch, current.checkpoint) == (old.epoch + 1, old.checkpoint)
        await self._is_fenced(store, old, current)
        await write(store, current, upserts=[("a", 2)])
        assert await rows_of(store) == [("a", 2)]

    async def test_a_generation_that_is_gone_is_fenced(self, store: ReadStore) -> None:
        """A writer of a dropped generation, or of one that never was, is fenced."""
        gone = await create(store, SEATS)
        current = await build(store, SEATS, [("a", 1)])
        await store.drop_generation(NAME, gone.number)
        for generation in (gone, msgspec.structs.replace(current, number=99)):
            await self._is_fenced(store, generation, current)

    async def _is_fenced(self, store: ReadStore, stale: Generation, current: Generation) -> None:
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        discard = Discard(NAME, '["a"]', Position(1))
        retry = Retry(NAME, '["a"]', Position(1), "ann", "", MOMENT)
        bad = SliceWrite(stale, place(9), [("a", 99)], [("b",)], [blocked], (), [discard], [retry], by_hand=True)
        assert await store.write([bad]) == [Fenced()]
        assert await stored_generation(store) == current
        assert await rows_of(store) == [("a", 1)]
        assert await store.discards(NAME) == []
        assert await store.retries(NAME, '["a"]', 1) == []
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == []

    # ── snapshots ────────────────────────────────────────────────────────────

    async def test_a_read_shows_its_moment_though_rows_change_while_it_runs(self, store: ReadStore) -> None:
        """Neither what is written nor what is removed meanwhile is seen by it."""
        rows = [(f"course {number:05}", number) for number in range(SCANNED_ROWS)]
        written = await build(store, SEATS, rows)
        async with store.snapshot() as snapshot:
            assert await shown_generation(snapshot, NAME) == written
            reading = asyncio.create_task(snapshot.find(NAME, (), BY_COURSE, 2 * SCANNED_ROWS))
            await asyncio.sleep(0)  # noqa: TID251 - its turn, not a wait
            changed = [(course, taken + 1) for course, taken in rows[1::2]]
            await write(store, written, upserts=[*changed, ("new", 1)], deletes=[(course,) for course, _ in rows[::2]])
            assert await reading == rows

    async def test_a_read_whose_caller_is_gone_is_stopped(self, store: ReadStore) -> None:
        """It ends at once, and what it held is free for others: every snapshot that there may be, several times."""
        rows = [(f"course {number}", number) for number in range(SCANNED_ROWS)]
        written = await build(store, SEATS, rows)
        by_taken = (Order("taken", descending=True), Order("course"))
        for number in range(2 * SNAPSHOTS_MAX):
            async with store.snapshot() as snapshot:
                assert await shown_generation(snapshot, NAME) == written
                reading = asyncio.create_task(snapshot.find(NAME, (), by_taken, SCANNED_ROWS))
                for _ in range(number % 2 + 1):
                    await asyncio.sleep(0)  # noqa: TID251 - a turn for the others, not a wait
                assert not reading.done(), "nobody else had a turn: it could not be stopped"
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
        written = await write(store, written, upserts=[("a", SCANNED_ROWS)])
        async with AsyncExitStack() as stack:
            for _ in range(SNAPSHOTS_MAX):
                snapshot = await stack.enter_async_context(store.snapshot())
                assert await shown_generation(snapshot, NAME) == written
                assert await snapshot.find(NAME, (), by_taken, 1) == [("a", SCANNED_ROWS)]

    async def test_a_snapshot_shows_one_moment(self, store: ReadStore) -> None:
        """Rows, checkpoint and blocked keys are those of its first read at the latest, whatever is written then."""
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        old = await write(store, await create(store, SEATS), upserts=[("a", 1), ("b", 2)], block=[blocked])
        async with store.snapshot() as snapshot:
            assert await snapshot.count(NAME, ()) == 2
            new = await write(store, old, upserts=[("a", 10), ("c", 3)], deletes=[("b",)], unblock=['["a"]'])
            new = await write(store, new, upserts=[("b", 20)], deletes=[("a",)])
            assert await shown_generation(snapshot, NAME) == old
            assert await snapshot.get_many(NAME, [("a",), ("b",), ("c",)]) == {("a",): ("a", 1), ("b",): ("b", 2)}
            assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1), ("b", 2)]
            assert await snapshot.count(NAME, ()) == 2
            assert await snapshot.blocked(NAME) == [blocked]
            await store.drop_generation(NAME, new.number)
            assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1), ("b", 2)]
        assert await stored_generation(store) is None

    async def test_a_snapshot_is_asked_for_several_things_at_once(self, store: ReadStore) -> None:
        """A handler may: what runs on one connection takes turns there, and all of it is of one moment."""
        old = await build(store, SEATS, [("a", 1), ("b", 2)])
        async with store.snapshot() as snapshot:
            assert await shown_generation(snapshot, NAME) == old
            await write(store, old, upserts=[("a", 10)])
            reads = [
                (snapshot.get_many(NAME, [("a",)]), snapshot.find(NAME, (), BY_COURSE, 10), snapshot.count(NAME, ()))
                for _ in range(READS_AT_ONCE)
            ]
            answers = await asyncio.gather(*(read for each in reads for read in each), snapshot.blocked(NAME))
        assert answers == [{("a",): ("a", 1)}, [("a", 1), ("b", 2)], 2] * READS_AT_ONCE + [[]]

    async def test_what_a_snapshot_was_asked_and_nobody_waits_for_hurts_nobody(self, store: ReadStore) -> None:
        """It shows that moment or is given up, and the snapshots after it are whole."""
        await build(store, SEATS, [("a", 1), ("b", 2)])
        async with store.snapshot() as snapshot:
            left = [asyncio.ensure_future(snapshot.search(NAME, "a", 1)) for _ in range(READS_AT_ONCE)]
            await pause()
        for answer in await asyncio.gather(*left, return_exceptions=True):
            assert answer == [] or isinstance(answer, BaseException), answer
        for _ in range(READS_AT_ONCE):
            assert await rows_of(store) == [("a", 1), ("b", 2)]

    async def test_snapshots_are_consistent_while_writes_go_on(self, store: ReadStore) -> None:
        """Each write sets every row to its position; no snapshot ever shows two positions."""
        turn, wrote = asyncio.Event(), asyncio.Event()

        async def keep_writing(generation: Generation) -> None:
            for _ in range(BUSY_WRITES):
                await turn.wait()
                turn.clear()
                position = Position(generation.checkpoint.position + 1)
                rows = [(course, position) for course in "abc"]
                block = [BlockedKey(NAME, '["a"]', position, "boom")]
                generation = await write(store, generation, upserts=rows, block=block)
                wrote.set()

        started = await build(store, SEATS, [(course, 1) for course in "abc"])
        writing = asyncio.create_task(keep_writing(started))
        for expected in range(1, BUSY_WRITES + 1):
            async with store.snapshot() as snapshot:
                generation = await shown_generation(snapshot, NAME)
                turn.set()
                rows = await snapshot.find(NAME, (), BY_COURSE, 10)
                await asyncio.wait_for(wrote.wait(), WAIT_S_MAX)
                wrote.clear()
                got = await snapshot.get_many(NAME, [("a",), ("b",)])
                blocked = await snapshot.blocked(NAME)
            assert generation is not None
            assert generation.checkpoint == place(expected)
            assert rows == [(course, expected) for course in "abc"]
            assert list(got.values()) == rows[:2]
            assert [key.position for key in blocked] == [expected][: expected - 1]
        await writing

    # ── generations ──────────────────────────────────────────────────────────

    async def test_a_generation_is_listed_as_it_was_made(self, store: ReadStore) -> None:
        """`generations` gives each with its form and checkpoint, by name and number; subscribers have no table."""
        made = [
            *await store.create_generation("b", "1", LINES, place(5), live=True),
            *await store.create_generation("b", "2", SEATS, place(0), live=False),
            *await store.create_generation("a", "1", None, place(3), live=True),
        ]
        assert made[0] == Generation("b", 1, "1", LINES, live=True, checkpoint=place(5))
        assert made[1] == Generation("b", 2, "2", SEATS, live=False, checkpoint=place(0))
        assert await store.generations() == [made[2], made[0], made[1]]
        async with store.snapshot() as snapshot:
            assert await shown_generation(snapshot, "b") == made[0]
            assert await shown_generation(snapshot, "b", 2) == made[1]
            assert await shown_generation(snapshot, "b", 3) is None
            assert await shown_generation(snapshot, "c") is None

    async def test_racing_to_create_makes_one(self, store: ReadStore) -> None:
        """The same fingerprint again gives the generation that is live or newer, not a second one."""
        racers = [store.create_generation(NAME, "1", SEATS, place(0), live=True) for _ in range(5)]
        made = await asyncio.gather(*racers)
        assert {generation.number for (generation,) in made} == {1}
        again = [store.create_generation(NAME, "2", SEATS, place(0), live=False) for _ in range(5)]
        assert {generation.number for (generation,) in await asyncio.gather(*again)} == {2}
        assert len(await store.generations()) == 2

    async def test_an_older_fingerprint_is_found_again(self, store: ReadStore) -> None:
        """What the live one has replaced goes on from where it is, if it is there: it is of the same fold."""
        for fingerprint in ("1", "2"):
            await store.create_generation(NAME, fingerprint, SEATS, place(0), live=True)
        (back,) = await store.create_generation(NAME, "1", SEATS, place(0), live=False)
        assert (back.number, back.live) == (1, False)
        assert [generation.live for generation in await store.generations()] == [False, True]

    async def test_generations_have_rows_of_their_own(self, store: ReadStore) -> None:
        """A second one is built beside the live one, in another form; reads of it say its number."""
        await build(store, SEATS, [("a", 1)])
        wider = Table(SEATS.name, (*SEATS.columns, Column("note", ColumnKind.TEXT)), SEATS.key)
        second = await create(store, wider, live=False)
        await write(store, second, upserts=[("b", 2, "new")])
        assert await rows_of(store) == [("a", 1)]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), BY_COURSE, 10, None, 2) == [("b", 2, "new")]
            assert await snapshot.get_many(NAME, [("b",)], 2) == {("b",): ("b", 2, "new")}
            assert await snapshot.get_many(NAME, [("b",)]) == {}

    async def test_a_switch_is_refused_while_behind(self, store: ReadStore) -> None:
        """A generation that is behind the live one cannot replace it; nothing changes."""
        await write(store, await create(store, SEATS), checkpoint=place(5), upserts=[("a", 1)])
        second = await write(store, await create(store, SEATS, live=False), checkpoint=place(4), upserts=[("b", 2)])
        before = await store.generations()
        assert not await store.switch(NAME, second.number)
        assert not await store.switch(NAME, 99)
        assert await store.generations() == before
        assert await rows_of(store) == [("a", 1)]

    async def test_a_switch_shows_the_new_one_and_drops_the_others(self, store: ReadStore) -> None:
        """Level with the live one it answers from now on; the old one is gone and its writer fenced."""
        first = await write(store, await create(store, ARTICLES), upserts=[("x", 1, "old", None)])
        second = await create(store, ARTICLES, live=False)
        third = await write(store, await create(store, ARTICLES, live=False), upserts=[("y", 2, "new", None)])
        assert await store.switch(NAME, third.number)
        assert await store.generations() == [msgspec.structs.replace(third, live=True)]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), (Order("id"),), 10) == [("y", 2, "new", None)]
            assert await snapshot.search(NAME, "old", 10) == []
            assert await snapshot.search(NAME, "new", 10) == [("y", 2, "new", None)]
        for gone in (first, second):
            assert await store.write([SliceWrite(gone, place(9))]) == [Fenced()]
        third = await write(store, third, upserts=[("z", 3, "newer", None)])
        assert third.live, "a writer that has not seen the switch goes on, and learns of it"

    async def test_a_switch_keeps_the_replaced_one_for_a_time(self, store: ReadStore) -> None:
        """It does not answer, is fenced once, goes on with its rows and blocked keys; and is found by its code."""
        first = await write(store, await create(store, SEATS), checkpoint=place(5), upserts=[("a", 1)])
        second = await create(store, SEATS, live=False)
        third = await write(store, await create(store, SEATS, live=False), checkpoint=place(5), upserts=[("b", 2)])
        assert await store.switch(NAME, third.number, keep_s=60)
        assert [(found.number, found.live) for found in await store.generations()] == [(1, False), (3, True)]
        assert await store.write([SliceWrite(first, place(6))]) == [Fenced()], "its writer learns that it is kept"
        assert await store.write([SliceWrite(second, place(6))]) == [Fenced()], "builds under way are dropped"
        async with store.snapshot() as snapshot:
            (kept,) = await snapshot.kept(NAME, first.fingerprint)
            assert not await snapshot.kept(NAME, third.fingerprint), "what answers is not kept"
            assert not await snapshot.kept("other", first.fingerprint)
        assert kept.kept_until is not None
        assert (kept.under_way, kept.epoch, kept.checkpoint) == (False, first.epoch + 1, place(5))
        kept = await write(store, kept, checkpoint=place(6), upserts=[("c", 3)])
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, (), BY_COURSE, 10, None, kept.number) == [("a", 1), ("c", 3)]
            assert await snapshot.count(NAME, (), kept.number) == 2
            assert await snapshot.count(NAME, ()) == 1
        await store.drop_overdue()
        assert len(await store.generations()) == 2, "its time is not over"

    async def test_a_kept_one_is_searched_by_its_number(self, store: ReadStore) -> None:
        """What is kept is found among its own words, and what answers among its own, as both go on."""
        first = await write(store, await create(store, ARTICLES), upserts=[("x", 1, "an old note", None)])
        second = await write(store, await create(store, ARTICLES, live=False), upserts=[("x", 2, "a new note", None)])
        assert await store.switch(NAME, second.number, keep_s=60)
        (kept, _) = await store.generations()
        await write(store, kept, upserts=[("y", 3, "an older note", None)])
        filters = (Filter("rank", Comparison.AT_LEAST, 2),)
        async with store.snapshot() as snapshot:
            assert await snapshot.search(NAME, "note", 10) == [("x", 2, "a new note", None)]
            assert await snapshot.search(NAME, "old", 10) == []
            found = await snapshot.search(NAME, "old note", 10, (), first.number)
            assert sorted(row[0] for row in found) == ["x", "y"]
            found = await snapshot.search(NAME, "note", 10, filters, first.number)
            assert found == [("y", 3, "an older note", None)]

    async def test_a_kept_one_is_gone_back_to(self, store: ReadStore) -> None:
        """At or past the one that answers, in one transaction; that is kept then, and nothing else."""
        first = await write(store, await create(store, SEATS), checkpoint=place(5), upserts=[("a", 1)])
        second = await write(store, await create(store, SEATS, live=False), checkpoint=place(6), upserts=[("b", 2)])
        assert await store.switch(NAME, second.number, keep_s=60)
        assert not await store.switch(NAME, first.number, keep_s=60), "it shows less than what answers"
        (kept, _) = await store.generations()
        await write(store, kept, checkpoint=place(6))
        assert await store.switch(NAME, first.number, keep_s=60)
        found = {each.number: (each.live, each.kept_until is not None) for each in await store.generations()}
        assert found == {1: (True, False), 2: (False, True)}
        assert await rows_of(store) == [("a", 1)]
        before = await store.generations()
        assert await store.switch(NAME, first.number), "it answers already"
        assert await store.generations() == before

    async def test_a_kept_one_is_taken_up_by_its_code(self, store: ReadStore) -> None:
        """Asked for by fingerprint it is being built again, from where it is, and whoever wrote to it is fenced."""
        first = await write(store, await create(store, SEATS), checkpoint=place(5), upserts=[("a", 1)])
        second = await write(store, await create(store, SEATS, live=False), checkpoint=place(5))
        await store.switch(NAME, second.number, keep_s=0.000_001)
        (kept, _) = await store.generations()
        (again,) = await store.create_generation(NAME, first.fingerprint, SEATS, place(0), live=False)
        assert (again.number, again.checkpoint, again.under_way) == (first.number, place(5), True)
        assert await store.write([SliceWrite(kept, place(6))]) == [Fenced()]
        await store.drop_overdue()
        assert len(await store.generations()) == 2, "it is not kept any more"
        await write(store, again, checkpoint=place(6))
        assert await store.switch(NAME, first.number)

    async def test_a_kept_one_is_dropped_when_its_time_is_over(self, store: ReadStore) -> None:
        """With its rows and blocked keys; and at once where it was not to be kept at all."""
        first = await write(
            store,
            await create(store, SEATS),
            upserts=[("a", 1)],
            block=[BlockedKey(NAME, '["x"]', Position(1), "boom")],
        )
        second = await write(store, await create(store, SEATS, live=False))
        assert await store.switch(NAME, second.number, keep_s=0.000_001)
        await store.drop_overdue()
        assert [found.number for found in await store.generations()] == [second.number]
        assert await store.write([SliceWrite(first, place(9))]) == [Fenced()]
        async with store.snapshot() as snapshot:
            assert not await snapshot.kept(NAME, first.fingerprint)
            assert not await snapshot.blocked(NAME, first.number)

    async def test_numbers_are_never_reused(self, store: ReadStore) -> None:
        """After a drop the next generation has a new number and no rows."""
        for number in (1, 2, 3):
            generation = await build(store, ARTICLES, [("x", 1, "title", None)])
            assert generation.number == number
            await store.drop_generation(NAME, number)
            await store.drop_generation(NAME, number)
        assert await store.generations() == []
        await create(store, ARTICLES)
        assert await rows_of(store, order=(Order("id"),)) == []

    async def test_without_a_generation_there_are_no_answers(self, store: ReadStore) -> None:
        """Rows of what has no live generation, or no table, are unavailable rather than none."""
        await create(store, SEATS, live=False)
        await create(store, None, "mail")
        async with store.snapshot() as snapshot:
            for name, number in ((NAME, None), (NAME, 9), ("mail", None), ("none", None)):
                with pytest.raises(StoreUnavailable):
                    await snapshot.get_many(name, [("a",)], number)
                with pytest.raises(StoreUnavailable):
                    await snapshot.find(name, (), BY_COURSE, 1, None, number)
            with pytest.raises(StoreUnavailable):
                await snapshot.count(NAME, ())
            with pytest.raises(StoreUnavailable):
                await snapshot.search(NAME, "a", 1)

    # ── blocked keys and discards ────────────────────────────────────────────

    async def test_keys_are_blocked_and_unblocked(self, store: ReadStore) -> None:
        """Blocked keys are listed by position, until they are unblocked; blocking again replaces."""
        keys = [BlockedKey(NAME, f'["{n}"]', Position(9 - n), "boom\n\ud800") for n in range(3)]
        generation = await write(store, await create(store, SEATS), block=keys)
        async with store.snapshot() as snapshot:
            assert [(key.key, key.position) for key in await snapshot.blocked(NAME)] == [
                ('["2"]', 7),
                ('["1"]', 8),
                ('["0"]', 9),
            ]
        later = BlockedKey(NAME, '["1"]', Position(20), "again")
        await write(store, generation, block=[later], unblock=['["0"]', '["2"]', '["7"]'])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [later]
            assert await snapshot.blocked("other") == []

    async def test_blocked_keys_belong_to_their_generation(self, store: ReadStore) -> None:
        """One built beside has blocked keys of its own, which answer with it after a switch and go when it goes."""
        first, second = await create(store, SEATS), await create(store, SEATS, live=False)
        old, new = (BlockedKey(NAME, '["a"]', Position(n), f"boom {n}") for n in (1, 2))
        await write(store, first, block=[old])
        await write(store, second, block=[new])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [old]
            assert await snapshot.blocked(NAME, second.number) == [new]
        await store.switch(NAME, second.number)
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [new]
            assert await snapshot.blocked(NAME, first.number) == []

    async def test_discards_outlive_generations(self, store: ReadStore) -> None:
        """A discard is kept once, by projection, and stays when every generation is dropped."""
        wanted = [Discard(NAME, '["b"]', Position(3)), Discard(NAME, '["a"]', Position(4))]
        generation = await write(store, await create(store, SEATS), discard=wanted[::-1], by_hand=True)
        await write(store, generation, discard=wanted[:1], by_hand=True)
        await store.drop_generation(NAME, generation.number)
        assert await store.discards(NAME) == wanted
        assert await store.discards("other") == []

    async def test_a_discard_says_who_decided_it_first(self, store: ReadStore) -> None:
        """With why and when; another decision about the same event changes nothing, and one may say nothing of it."""
        first = Discard(NAME, '["a"]', Position(1), "ann", "by phone", MOMENT)
        unsaid = Discard(NAME, '["b"]', Position(2))
        generation = await write(store, await create(store, SEATS), discard=[first, unsaid], by_hand=True)
        await write(store, generation, discard=[Discard(NAME, '["a"]', Position(1), "bob", "too late")], by_hand=True)
        assert await store.discards(NAME) == [first, unsaid]

    async def test_retries_are_kept_for_good(self, store: ReadStore) -> None:
        """The latest first, of one key, at most so many; they stay when every generation is dropped."""
        made = [Retry(NAME, '["a"]', Position(1), "ann", f"try {n}", MOMENT) for n in range(3)]
        other = Retry(NAME, '["b"]', Position(1), "bob", "", MOMENT)
        generation = await write(store, await create(store, SEATS), retried=[made[0], other], by_hand=True)
        generation = await write(store, generation, retried=made[1:], by_hand=True)
        await store.drop_generation(NAME, generation.number)
        assert await store.retries(NAME, '["a"]', 10) == made[::-1]
        assert await store.retries(NAME, '["a"]', 2) == [made[2], made[1]]
        assert await store.retries(NAME, '["b"]', 10) == [other]
        assert await store.retries("other", '["a"]', 10) == []

    async def test_a_blocked_key_has_its_attempts_and_its_stack_trace(self, store: ReadStore) -> None:
        """The trace is told by itself, of the generation that is asked for, and is that of the last failure."""
        long = "Traceback\n" * 1_000
        old = BlockedKey(NAME, '["a"]', Position(1), "boom", 2, long)
        first, second = await create(store, SEATS), await create(store, SEATS, live=False)
        first = await write(store, first, block=[old])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [msgspec.structs.replace(old, trace="")]
        assert await store.trace(NAME, first.number, '["a"]') == long
        for elsewhere in ((NAME, second.number, '["a"]'), (NAME, first.number, '["b"]'), ("other", 1, '["a"]')):
            assert await store.trace(*elsewhere) == ""
        again = BlockedKey(NAME, '["a"]', Position(1), "boom again", 4, "Traceback 2")
        await write(store, first, block=[again])
        async with store.snapshot() as snapshot:
            assert await snapshot.blocked(NAME) == [msgspec.structs.replace(again, trace="")]
        assert await store.trace(NAME, first.number, '["a"]') == "Traceback 2"

    async def test_what_a_durable_store_keeps_survives_reopening(self, store: ReadStore, tmp_path: Path) -> None:
        """Rows, checkpoints, blocked keys, discards and numbers are there after closing and connecting anew."""
        if not store.durable:
            pytest.skip("this store says that it is not durable")
        blocked = BlockedKey(NAME, '["a"]', Position(1), "boom")
        discard = Discard(NAME, '["b"]', Position(2))
        generation = await write(
            store, await create(store, SEATS), upserts=[("a", 1)], block=[blocked], discard=[discard], by_hand=True
        )
        await create(store, ARTICLES, "second")
        await store.drop_generation("second", 1)
        await store.close()
        again = self.connect(tmp_path)
        await again.open()
        try:
            assert await again.generations() == [generation]
            assert await rows_of(again) == [("a", 1)]
            assert await again.discards(NAME) == [discard]
            async with again.snapshot() as snapshot:
                assert await snapshot.blocked(NAME) == [blocked]
            assert (await create(again, ARTICLES, "second")).number == 2
        finally:
            await again.close()

    # ── waiting, opening, closing ────────────────────────────────────────────

    async def test_a_write_wakes_who_waits_for_a_change(self, store: ReadStore) -> None:
        """Waiting since before a write returns at once; waiting since now returns with the next write."""
        generation = await create(store, SEATS)
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await write(store, generation, upserts=[("a", 1)])
        now = await asyncio.wait_for(waiting, WAIT_S_MAX * 2)
        assert now != seen
        assert await store.wait_for_change(seen, WAIT_S_MAX) == now

    async def test_what_was_written_since_changes_was_read_is_waited_for_no_more(self, store: ReadStore) -> None:
        """Whoever reads `changes`, takes a snapshot and misses something in it, hears of the write that brings it."""
        generation = await create(store, SEATS)
        seen = store.changes
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, [("a",)]) == {}
            await write(store, generation, upserts=[("a", 1)])
        assert await store.wait_for_change(seen, WAIT_S_MAX) == store.changes != seen

    async def test_without_a_write_the_wait_ends_unchanged(self, store: ReadStore) -> None:
        """Past its time the wait returns the number it was given."""
        await build(store, SEATS, [("a", 1)])
        seen = await store.wait_for_change(0, 0)
        assert await store.wait_for_change(seen, 0.01) == seen

    async def test_a_closed_store_says_so(self, store: ReadStore) -> None:
        """Every method raises `StoreClosed` after closing, and who waits hears it too; closing twice is no error."""
        generation = await create(store, SEATS)
        seen = await store.wait_for_change(0, 0)
        waiting = asyncio.create_task(store.wait_for_change(seen, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        await store.close()
        await store.close()
        with pytest.raises(StoreClosed):
            await asyncio.wait_for(waiting, WAIT_S_MAX * 2)
        await self._is_closed(store, generation)

    async def test_a_store_that_was_not_opened_says_so(self, tmp_path: Path) -> None:
        """Every method raises `StoreClosed` before opening."""
        never_made = Generation(NAME, 1, "1", SEATS, live=True, checkpoint=place(0))
        await self._is_closed(self.connect(tmp_path / "other"), never_made)

    async def _is_closed(self, store: ReadStore, generation: Generation) -> None:
        for call in (
            store.generations,
            lambda: store.create_generation(NAME, "1", SEATS, place(0), live=True),
            lambda: store.switch(NAME, 1),
            lambda: store.drop_generation(NAME, 1),
            lambda: store.write([SliceWrite(generation, place(1))]),
            lambda: store.discards(NAME),
            lambda: store.split(NAME, 1, 2),
            lambda: store.lease("worker", [(NAME, 1, 0)], WAIT_S_MAX),
            lambda: store.release("worker"),
            lambda: store.wait_for_change(0, 0),
        ):
            with pytest.raises(StoreClosed):
                await call()
        with pytest.raises(StoreClosed):
            _ = store.changes
        with pytest.raises(StoreClosed):
            async with store.snapshot():
                pass
