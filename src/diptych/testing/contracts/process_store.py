"""The contract of `diptych.process_managers.process_store`: what every process store does, as tests for any adapter.

    class TestMyProcessStore(ProcessStoreContract):
        @asynccontextmanager
        async def place(self) -> AsyncGenerator[Callable[[], ProcessStore]]:
            with TemporaryDirectory() as folder:
                yield lambda: MyProcessStore(folder)

The tests are coroutines without parameters, for whichever plugin runs those. A failed guarantee is an AssertionError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from diptych.errors import StoreClosed
from diptych.event_store.position import Place, Position
from diptych.process_managers.process_store import (
    InstanceCount,
    ProcessStore,
    StoredProcess,
)
from diptych.testing.contracts.process_store_case import (
    FAR_US,
    HISTORY,
    LONG_S,
    OVER_S,
    RACERS,
    SHIPPING,
    Writing,
    begun,
    instance,
    item,
    opened,
    place,
)
from diptych.testing.contracts.process_store_outgoing import OutgoingContract

__all__ = ["ProcessStoreContract"]


class ProcessStoreContract(OutgoingContract):
    """Everything that a process store guarantees. Derive from it, and give it places."""

    # ── processes ────────────────────────────────────────────────────────────

    async def test_a_process_is_made_once(self) -> None:
        """Whoever makes it again gets it as it is."""
        async with self.two_stores() as (one, other):
            first = await one.create(SHIPPING, place(3), "code")
            assert first == StoredProcess(SHIPPING, place(3), "code", 0)
            assert await other.create(SHIPPING, place(9), "other code") == first
            await one.create("shop.Billing", place(0), "")
            assert [found.name for found in await other.processes()] == ["shop.Billing", SHIPPING]

    async def test_what_was_committed_is_there_for_others(self) -> None:
        """Checkpoint, fingerprint, instances and what goes out, as they were given, byte for byte."""
        async with self.two_stores() as (one, other):
            writing = await begun(one)
            given = instance(
                "a", state=b'{"n": 1}', last=Position(7), last_at_us=9, blocked=Position(8), failure="ü'\""
            )
            sent = item("a", 7, 2, data=b'{"x": "\xc3\xbc"}', metadata=b'{"m": 1}', attempts=3, failure="no")
            timeout = item("a", 7, 1, "timeout", due_us=5, tags=('order:a "b" \\ {c},', "ü:"), version=3)
            await writing.commit(7, instances=[given, instance("b", ended=True)], added=[sent, timeout])
            assert await other.processes() == [writing.stored]
            assert writing.stored.checkpoint == place(7)
            assert await other.instances(SHIPPING, ["a", "none"]) == [given]
            assert await other.outgoing(SHIPPING, "a") == [sent, timeout]

    async def test_it_survives_being_closed(self) -> None:
        """The same, or another store in that place, finds everything again."""
        async with self.place() as connect:
            store = connect()
            async with opened(store):
                await (await begun(store)).commit(1, instances=[instance("a")], added=[item("a")])
            for again in (store, connect()):
                async with opened(again):
                    assert await again.instances(SHIPPING, ["a"]) == [instance("a")]
                    assert await again.due(SHIPPING, 0, 10) == [item("a")]

    async def test_processes_are_apart(self) -> None:
        """Instances of one name belong to one process each."""
        async with self.writing() as writing:
            other = await begun(writing.store, "shop.Billing")
            await writing.commit(1, instances=[instance("a")], added=[item("a")])
            await other.commit(2, instances=[instance("a", state=b"[]")], added=[item("a", 2)])
            await other.commit(3, emptied=["a"])
            assert await writing.store.instances(SHIPPING, ["a"]) == [instance("a")]
            assert await writing.due() == [item("a")]
            assert await writing.store.count("shop.Billing") == InstanceCount(running=1)
            assert await writing.store.page("shop.Billing", None, 10) == [instance("a", state=b"[]")]

    # ── the fence ────────────────────────────────────────────────────────────

    async def test_a_commit_from_another_checkpoint_does_nothing(self) -> None:
        """Whether its writer is behind or ahead, or on another event of that position."""
        async with self.writing() as writing:
            await writing.commit(5, instances=[instance("a")], added=[item("a")])
            astray = Place(HISTORY, Position(5), b"x" * 16)
            elsewhere = Place(b"x" * 16, Position(5), place(5).event_id)
            for after in (place(0), place(4), place(6), astray, elsewhere):
                change = writing.change(9, instances=[instance("b")], removed=[item("a").id], added=[item("b")])
                assert not await writing.store.commit(msgspec.structs.replace(change, after=after))
            assert (await writing.store.processes())[0].checkpoint == place(5)
            assert await writing.store.instances(SHIPPING, ["a", "b"]) == [instance("a")]
            assert await writing.due() == [item("a")]

    async def test_of_many_commits_from_one_place_one_holds(self) -> None:
        """All at once, from two stores: one is made true, with all that is in it."""
        async with self.two_stores() as (one, other):
            writing = await begun(one)
            changes = [writing.change(1, instances=[instance(f"i{n}")], added=[item(f"i{n}")]) for n in range(RACERS)]
            stores = [one, other]
            done = await asyncio.gather(*(stores[n % 2].commit(change) for n, change in enumerate(changes)))
            assert sorted(done) == [False] * (RACERS - 1) + [True]
            winner = f"i{done.index(True)}"
            assert [found.id for found in await other.page(SHIPPING, None, 10)] == [winner]
            assert [found.instance for found in await other.due(SHIPPING, 0, 10)] == [winner]

    async def test_a_worker_that_lost_the_lease_commits_nothing(self) -> None:
        """Once another has it, whatever the checkpoint says."""
        async with self.two_stores() as (one, other):
            await one.create(SHIPPING, place(0), "")
            first = await one.lease("a", [SHIPPING], OVER_S)
            stalled = Writing(one, StoredProcess(SHIPPING, place(0), "", first[SHIPPING]))
            if self.leases_are_locks:
                await one.release("a")
            taken = await other.lease("b", [SHIPPING], LONG_S)
            assert taken[SHIPPING] > first[SHIPPING]
            assert not await one.commit(stalled.change(1, instances=[instance("a")], added=[item("a")]))
            assert await other.page(SHIPPING, None, 10) == []
            await Writing(other, StoredProcess(SHIPPING, place(0), "", taken[SHIPPING])).commit(1)

    async def test_a_release_fences_at_once(self) -> None:
        """Also before anybody else has asked."""
        async with self.writing() as writing:
            await writing.store.release("a")
            assert not await writing.store.commit(writing.change(1))

    # ── leases ───────────────────────────────────────────────────────────────

    async def test_one_holds_what_another_does_not(self) -> None:
        """However often anybody asks; a renewal keeps the epoch."""
        async with self.two_stores() as (one, other):
            for name in ("a.A", "a.B"):
                await one.create(name, place(0), "")
            first = await one.lease("one", ["a.A"], LONG_S)
            assert first == {"a.A": 0}
            assert await other.lease("other", ["a.A", "a.B"], LONG_S) == {"a.B": 0}
            assert await one.lease("one", ["a.A", "a.B"], LONG_S) == first

    async def test_what_is_released_is_free_at_once(self) -> None:
        """For whoever asks next, under another epoch; what is not there is nobody's."""
        async with self.two_stores() as (one, other):
            await one.create(SHIPPING, place(0), "")
            first = await one.lease("one", [SHIPPING, "no.Such"], LONG_S)
            assert set(first) == {SHIPPING}
            await one.release("one")
            again = await other.lease("other", [SHIPPING], LONG_S)
            assert again[SHIPPING] > first[SHIPPING]
            assert (await one.processes())[0].epoch == again[SHIPPING]

    async def test_one_process_is_released_alone(self) -> None:
        """The others are held as before, and so is what somebody else holds."""
        async with self.two_stores() as (one, other):
            for name in ("a.A", "a.B", "a.C"):
                await one.create(name, place(0), "")
            first = await one.lease("one", ["a.A", "a.B"], LONG_S)
            await other.lease("other", ["a.C"], LONG_S)
            await one.release("one", ["a.A", "a.C", "no.Such"])
            again = await other.lease("other", ["a.A", "a.B", "a.C"], LONG_S)
            assert again == {"a.A": first["a.A"] + 1, "a.C": 0}
            assert await one.lease("one", ["a.A", "a.B"], LONG_S) == {"a.B": first["a.B"]}
            await Writing(one, StoredProcess("a.B", place(0), "", first["a.B"])).commit(1)

    # ── what a change does ───────────────────────────────────────────────────

    async def test_a_change_takes_out_before_it_puts_in(self) -> None:
        """What comes with the same change as an end is what the end leaves."""
        async with self.writing() as writing:
            old = [item("a"), item("a", 1, 1, "timeout"), item("b"), item("b", 1, 1, "timeout"), item("c")]
            await writing.commit(1, added=old)
            new = [item("a", 2), item("b", 2), item("b", 2, 1, "timeout")]
            await writing.commit(2, emptied=["a"], dropped_timeouts=["b"], removed=[old[4].id, "none"], added=new)
            found = [await writing.store.outgoing(SHIPPING, each) for each in "abc"]
            assert found == [[new[0]], [item("b"), new[1], new[2]], []]

    async def test_an_instance_is_replaced_as_a_whole(self) -> None:
        """The last one committed is the one that is there."""
        async with self.writing() as writing:
            blocked = instance("a", blocked=Position(1), failure="no", attempts=2, trace="Traceback")
            await writing.commit(1, instances=[blocked, instance("b")])
            assert await writing.store.instances(SHIPPING, ["a"]) == [blocked]
            changed = instance("a", state=b"[]", started=Position(2), last=Position(3), last_at_us=4, ended=True)
            await writing.commit(2, instances=[changed])
            assert await writing.store.page(SHIPPING, None, 10, ended=True) == [changed, instance("b")]

    async def test_what_failed_is_kept_as_it_is_given(self) -> None:
        """And comes again when it is due; what is gone stays away."""
        async with self.writing() as writing:
            await writing.commit(1, added=[item("a"), item("b")])
            failed = item("a", attempts=2, failure="no", due_us=50, trace="Traceback")
            await writing.commit(2, removed=[item("b").id], failed=[failed, item("b", attempts=1)])
            assert await writing.due(49) == []
            assert await writing.due(50) == [failed]

    async def test_the_dead_are_revived_together(self) -> None:
        """All of an instance, as if never tried; what waits by itself, and other instances, are left."""
        async with self.writing() as writing:
            dead: dict[str, Any] = {"dead": True, "attempts": 9, "failure": "no", "trace": "Traceback"}
            waits = item("a", 3, attempts=1, due_us=99)
            given = [item("a", 1, **dead), item("a", 2, 0, "timeout", **dead), waits, item("b", 1, **dead)]
            await writing.commit(1, added=given)
            await writing.commit(2, revived=["a"], revived_due_us=7)
            assert await writing.store.outgoing(SHIPPING, "a") == [
                item("a", 1, due_us=7),
                item("a", 2, 0, "timeout", due_us=7),
                waits,
            ]
            assert await writing.store.outgoing(SHIPPING, "b") == [given[3]]

    # ── lists ────────────────────────────────────────────────────────────────

    async def test_instances_come_in_pages(self) -> None:
        """In the order of code points, without gaps; those that have ended only where they are asked for."""
        async with self.writing() as writing:
            names = ["B", "a", "b", "ä", "", "😀", "Z"]
            given = [instance(name, ended=name in ("b", "Z")) for name in names]
            await writing.commit(1, instances=given)
            for ended in (False, True):
                expected = sorted(each.id for each in given if ended or not each.ended)
                seen: list[str] = []
                while page := await writing.store.page(SHIPPING, seen[-1] if seen else None, 2, ended=ended):
                    assert len(page) <= 2
                    seen += [each.id for each in page]
                assert seen == expected

    async def test_what_is_stuck_is_found(self) -> None:
        """Blocked, or with something dead, whether it has ended or not; and counted."""
        async with self.writing() as writing:
            given = [
                instance("blocked", blocked=Position(3), failure="no"),
                instance("dead", ended=True),
                instance("done", ended=True),
                instance("fine"),
            ]
            added = [item("dead", dead=True), item("fine"), item("fine", 1, 0, "timeout", due_us=FAR_US)]
            await writing.commit(1, instances=given, added=added)
            assert await writing.store.page(SHIPPING, None, 10, stuck=True) == given[:2]
            assert await writing.store.page(SHIPPING, "blocked", 10, stuck=True) == given[1:2]
            assert await writing.store.page(SHIPPING, None, 10, blocked=True) == given[:1]
            assert await writing.store.page(SHIPPING, "blocked", 10, blocked=True) == []
            expected = InstanceCount(running=2, blocked=1, waiting=2, dead=1)
            assert await writing.store.count(SHIPPING) == expected

    async def test_of_an_unknown_process_there_is_nothing(self) -> None:
        """No error, and no rows."""
        async with self.store() as store:
            assert await store.instances("no.Such", ["a"]) == []
            assert await store.page("no.Such", None, 1) == []
            assert await store.due("no.Such", FAR_US, 1) == []
            assert await store.outgoing("no.Such", "a") == []
            assert await store.waiting("no.Such", None, 1) == []
            assert await store.dead("no.Such", None, 1) == []
            assert await store.find("no.Such", ["a"]) == []
            await store.drop("no.Such", ["a"])
            await store.revive("no.Such", ["a"], 0)
            assert await store.count("no.Such") == InstanceCount()
            nowhere = StoredProcess("no.Such", place(0), "", 0)
            assert not await store.commit(Writing(store, nowhere).change(1))

    async def test_a_closed_store_says_so(self) -> None:
        """Before it is opened and after it was closed, every method raises StoreClosed; closing twice is no error."""
        async with self.place() as connect:
            store = connect()
            await _check_closed(store)
            await store.open()
            await store.open()
            await store.create(SHIPPING, place(0), "")
            await store.close()
            await store.close()
            await _check_closed(store)


async def _check_closed(store: ProcessStore) -> None:
    change = Writing(store, StoredProcess(SHIPPING, place(0), "", 0)).change(1)
    calls: Sequence[Callable[[], Awaitable[object]]] = (
        store.processes,
        lambda: store.create(SHIPPING, place(0), ""),
        lambda: store.lease("a", [SHIPPING], LONG_S),
        lambda: store.release("a"),
        lambda: store.commit(change),
        lambda: store.instances(SHIPPING, ["a"]),
        lambda: store.page(SHIPPING, None, 1),
        lambda: store.count(SHIPPING),
        lambda: store.due(SHIPPING, 0, 1),
        lambda: store.next_due_us(SHIPPING, 0),
        lambda: store.outgoing(SHIPPING, "a"),
        lambda: store.add(SHIPPING, [item("a")]),
        lambda: store.drop(SHIPPING, ["a"]),
        lambda: store.revive(SHIPPING, ["a"], 0),
        lambda: store.find(SHIPPING, ["a"]),
        lambda: store.waiting(SHIPPING, None, 1),
        lambda: store.dead(SHIPPING, None, 1),
    )
    for call in calls:
        with pytest.raises(StoreClosed):
            await call()
