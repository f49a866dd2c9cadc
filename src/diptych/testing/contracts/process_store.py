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
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Literal
from uuid import UUID, uuid5

import msgspec
import pytest

from diptych.errors import StoreClosed
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.process_managers.process_store import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    Instance,
    InstanceCount,
    Outgoing,
    ProcessChange,
    ProcessStore,
    Resent,
    StoredProcess,
)

__all__ = ["ProcessStoreContract"]

HISTORY = b"h" * 16
"""The id of the history that is followed."""
SHIPPING = "shop.Shipping"
LONG_S = 3_600.0
"""A lease that does not run out while a test runs."""
OVER_S = 0.0
"""A lease that has run out as soon as it was given."""
RACERS = 5
"""Commits that begin at one place."""
FAR_US = (1 << 62) - 1
"""A time that no test reaches."""


def place(position: int) -> Place:
    """A place in the history."""
    return Place(HISTORY, Position(position), NOWHERE if position == 0 else position.to_bytes(16, "big"))


def instance(name: str, **changes: Any) -> Instance:
    """An instance that goes on."""
    begun = Instance(id=name, state=b"{}", started=Position(1), started_at_us=1, last=Position(1), last_at_us=1)
    return msgspec.structs.replace(begun, **changes)


def item(
    of: str, position: int = 1, ordinal: int = 0, kind: Literal["command", "timeout"] = "command", **changes: Any
) -> Outgoing:
    """A command or timeout of an instance."""
    found = Outgoing(
        id=str(uuid5(UUID(int=0), f"{of} {position} {ordinal} {kind}")),
        instance=of,
        kind=kind,
        position=Position(position),
        ordinal=ordinal,
        due_us=0,
        type="shop.Ship",
        version=1,
        data=b'{"order": "a"}',
        tags=(),
        metadata=b"{}",
    )
    return msgspec.structs.replace(found, **changes)


class Writing:
    """A process as whoever works on it knows it."""

    def __init__(self, store: ProcessStore, stored: StoredProcess) -> None:
        self.store = store
        self.stored = stored

    def change(self, to: int | None = None, **what: Any) -> ProcessChange:
        """A change from where it stands."""
        stored = self.stored
        return ProcessChange(
            process=stored.name,
            epoch=stored.epoch,
            after=stored.checkpoint,
            checkpoint=stored.checkpoint if to is None else place(to),
            fingerprint="new",
            **what,
        )

    async def commit(self, to: int | None = None, **what: Any) -> None:
        """Make a change true, which has to work."""
        change = self.change(to, **what)
        assert await self.store.commit(change), "nobody else has changed the process, and the commit is refused"
        self.stored = StoredProcess(change.process, change.checkpoint, change.fingerprint, change.epoch)

    async def due(self, now_us: int = 0, limit: int = 100) -> list[Outgoing]:
        """What is to go out."""
        return await self.store.due(self.stored.name, now_us, limit)


class ProcessStoreContract(ABC):
    """Everything that a process store guarantees. Derive from it, and give it places."""

    shares_place: ClassVar[bool] = True
    """Whether two instances can be open on one place at a time. If not, the tests use one instance in both places."""
    leases_are_locks: ClassVar[bool] = False
    """Whether leases are locks of the operating system, which end with their holder and after no time."""

    @abstractmethod
    def place(self) -> AbstractAsyncContextManager[Callable[[], ProcessStore]]:
        """A new, empty place, for the length of the block; what is yielded connects one more store to it."""

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[ProcessStore]:
        """One open store in a new place."""
        async with self.place() as connect, _opened(connect()) as store:
            yield store

    @asynccontextmanager
    async def two_stores(self) -> AsyncGenerator[tuple[ProcessStore, ProcessStore]]:
        """Two open stores in one new place."""
        async with self.place() as connect, _opened(connect()) as one:
            if not self.shares_place:
                yield one, one
                return
            async with _opened(connect()) as other:
                yield one, other

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[Writing]:
        """One process at the beginning, held."""
        async with self.store() as store:
            yield await begun(store)

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
            async with _opened(store):
                await (await begun(store)).commit(1, instances=[instance("a")], added=[item("a")])
            for again in (store, connect()):
                async with _opened(again):
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

    # ── what is due ──────────────────────────────────────────────────────────

    async def test_one_that_is_dead_is_due_again_alone(self) -> None:
        """As it was under its id, or with other fields under another one; in its place, and as if never tried."""
        async with self.writing() as writing:
            first = item("a", dead=True, attempts=9, failure="no", trace="Traceback")
            second, third = (item("a", 1, n, dead=True, attempts=9, failure="no", trace="Traceback") for n in (1, 2))
            alive = item("a", 2, due_us=FAR_US)
            await writing.commit(added=[first, second, third, alive])
            edited = Resent(id=second.id, as_id=str(UUID(int=7)), data=b'{"order": "b"}', metadata=b'{"actor": "x"}')
            late = Resent(id=alive.id, as_id=str(UUID(int=8)), data=b"{}")
            gone = Resent(id=str(UUID(int=9)), as_id=str(UUID(int=10)))
            again = [Resent(id=first.id, as_id=first.id), edited, late, gone]
            await writing.commit(resent=again, revived_due_us=5)
            anew = {"dead": False, "attempts": 0, "failure": "", "trace": "", "due_us": 5}
            expected = [
                msgspec.structs.replace(first, **anew),
                msgspec.structs.replace(second, id=edited.as_id, data=edited.data, metadata=edited.metadata, **anew),
                third,
                alive,
            ]
            assert await writing.store.outgoing(SHIPPING, "a") == expected
            assert [found.id for found in await writing.due(5)] == [first.id]

    async def test_only_the_dead_are_discarded(self) -> None:
        """One that waits to go out stays, and so does what is not named."""
        async with self.writing() as writing:
            dead, other, alive = item("a", dead=True), item("a", 2, dead=True), item("b")
            await writing.commit(added=[dead, other, alive])
            await writing.commit(discarded=[dead.id, alive.id, str(UUID(int=9))])
            assert await writing.store.outgoing(SHIPPING, "a") == [other]
            assert await writing.store.outgoing(SHIPPING, "b") == [alive]

    async def test_the_dead_come_in_pages(self) -> None:
        """By instance and id, whatever their number and kind; of one process alone."""
        async with self.writing() as writing:
            dead = [item(of, n, kind=kind, dead=True) for of in "ba" for n in (1, 2) for kind in ("command", "timeout")]
            await writing.commit(added=[*dead, item("a", 9), item("c")])
            await (await begun(writing.store, "shop.Other")).commit(added=[item("a", 7, dead=True)])
            expected = sorted(dead, key=lambda found: (found.instance, found.id))
            found: list[Outgoing] = []
            while page := await writing.store.dead(SHIPPING, (found[-1].instance, found[-1].id) if found else None, 3):
                assert len(page) <= 3
                found += page
            assert found == expected

    async def test_what_is_due_comes_in_its_order(self) -> None:
        """By time, position and ordinal, up to the limit; not what is due later, nor what is dead."""
        async with self.writing() as writing:
            given = [
                item("a", 2, due_us=20),
                item("b", 1, due_us=20),
                item("c", 9, due_us=10),
                item("d", 1, due_us=21),
                item("e", 1, due_us=1, dead=True),
                item("f", 1, 0, "timeout", due_us=20),
                item("f", 1, 1, "timeout", due_us=20),
            ]
            await writing.commit(1, added=given)
            found = await writing.due(20)
            assert [(each.instance, each.ordinal) for each in found[:1]] == [("c", 0)]
            assert {(each.instance, each.ordinal) for each in found[1:4]} == {("b", 0), ("f", 0), ("f", 1)} or {
                (each.instance, each.ordinal) for each in found[1:3]
            } == {("b", 0), ("f", 0)}
            assert [(each.due_us, each.position, each.ordinal) for each in found] == sorted(
                (each.due_us, each.position, each.ordinal) for each in found
            )
            assert sorted(each.instance for each in found) == ["a", "b", "c", "f", "f"]
            assert await writing.due(20, limit=2) == found[:2]

    async def test_a_higher_priority_goes_first(self) -> None:
        """Of what is due; then by time, up to the limit. It moves nothing of an instance out of its order."""
        async with self.writing() as writing:
            given = [
                item("a", 1, due_us=10),
                item("b", 1, due_us=20, priority=PRIORITY_MAX),
                item("c", 1, due_us=15, priority=PRIORITY_MAX),
                item("d", 1, due_us=1, priority=PRIORITY_MIN),
                item("e", 1, due_us=21, priority=5),
                item("f", 1, due_us=12),
                item("a", 2, due_us=1, priority=3),
            ]
            await writing.commit(1, added=given)
            assert [each.instance for each in await writing.due(20)] == ["c", "b", "a", "f", "d"]
            assert [each.instance for each in await writing.due(20, limit=3)] == ["c", "b", "a"]
            assert [each.instance for each in await writing.due(9)] == ["d"]
            assert await writing.store.next_due_us(SHIPPING, 0) == 1
            assert await writing.store.next_due_us(SHIPPING, 19) == 20
            assert await writing.store.next_due_us(SHIPPING, 20) == 21

    async def test_what_is_begun_is_noted(self) -> None:
        """Until it fails, or is revived; it stays due, for whoever takes over. What is gone stays away."""
        async with self.writing() as writing:
            await writing.commit(1, added=[item("a"), item("b")])
            await writing.commit(2, begun=[item("a").id, "none"])
            assert sorted(await writing.due(), key=lambda each: each.instance) == [item("a", begun=True), item("b")]
            failed = item("a", attempts=9, failure="no", dead=True)
            await writing.commit(3, failed=[failed])
            assert await writing.store.outgoing(SHIPPING, "a") == [failed]
            await writing.commit(4, begun=[failed.id], revived=["a"], revived_due_us=0)
            assert await writing.store.outgoing(SHIPPING, "a") == [item("a", begun=True)]
            await writing.commit(5, failed=[item("a", begun=True, dead=True)])
            await writing.commit(6, revived=["a"])
            assert await writing.store.outgoing(SHIPPING, "a") == [item("a")]

    # ── by anybody ───────────────────────────────────────────────────────────

    async def test_anybody_adds_what_is_to_go_out(self) -> None:
        """Without a lease, before the process is made, and seen by who makes it; all that it says is kept."""
        async with self.two_stores() as (one, other):
            given = [
                item("a", priority=-3, expires_us=FAR_US, data=b'{"x": 1}', metadata=b'{"m": 1}'),
                item("b", due_us=7),
            ]
            assert await one.add(SHIPPING, given) == given
            assert await other.find(SHIPPING, [given[1].id, "none", given[0].id, given[0].id]) in (given, given[::-1])
            writing = await begun(other)
            assert await writing.due(7) == [given[1], given[0]]
            await writing.commit(1, removed=[given[0].id])
            assert await one.find(SHIPPING, [each.id for each in given]) == [given[1]]
            assert await one.add(SHIPPING, []) == []

    async def test_what_is_there_under_an_id_stays(self) -> None:
        """Whoever adds it again gets it as it is, also twice in one call; the other items are put in."""
        async with self.two_stores() as (one, other):
            first = item("a", data=b"[1]")
            await one.add(SHIPPING, [first])
            again = item("a", data=b"[2]", priority=4, due_us=9)
            twice = [item("b", data=b"[3]"), item("b", data=b"[4]")]
            assert await other.add(SHIPPING, [again, *twice]) == [first, twice[0], twice[0]]
            assert await one.find(SHIPPING, [first.id, twice[0].id]) in ([first, twice[0]], [twice[0], first])
            assert await one.add("shop.Billing", [again]) == [again]

    async def test_of_many_that_add_one_id_one_is_kept(self) -> None:
        """All hear of the same one."""
        async with self.two_stores() as (one, other):
            stores, given = [one, other], [item("a", data=b"[%d]" % n) for n in range(RACERS)]
            found = await asyncio.gather(*(stores[n % 2].add(SHIPPING, [each]) for n, each in enumerate(given)))
            assert len({each.data for (each,) in found}) == 1
            assert await one.find(SHIPPING, [given[0].id]) == found[0]

    async def test_anybody_drops_and_revives(self) -> None:
        """Of the ids that are named, and of that process alone; what is not dead is not revived."""
        async with self.writing() as writing:
            store = writing.store
            dead: dict[str, Any] = {"dead": True, "attempts": 9, "failure": "no", "begun": True}
            given = [item("a", **dead), item("b", **dead), item("c", attempts=2, due_us=5), item("d")]
            await writing.commit(1, added=given)
            await store.add("shop.Billing", given)
            await store.revive(SHIPPING, [given[0].id, given[2].id, "none"], 3)
            await store.drop(SHIPPING, [given[3].id, "none"])
            assert await store.dead(SHIPPING, None, 10) == [given[1]]
            assert await writing.due(5) == [item("a", due_us=3), given[2]]
            assert len(await store.waiting("shop.Billing", None, 10)) == len(given)
            assert len(await store.dead("shop.Billing", None, 10)) == 2

    async def test_what_waits_comes_in_pages(self) -> None:
        """By id, in the order of code points, without gaps; what is dead waits for somebody, too."""
        async with self.store() as store:
            names = ["B", "a", "b", "ä", "😀", "Z", "0"]
            given = [item(name, id=name, dead=name in ("b", "Z", "a")) for name in names]
            await store.add(SHIPPING, given)
            seen: list[str] = []
            while page := await store.waiting(SHIPPING, seen[-1] if seen else None, 2):
                assert len(page) <= 2
                seen += [each.id for each in page]
            assert seen == sorted(names)

    async def test_commands_of_an_instance_go_one_after_the_other(self) -> None:
        """The next one shows when the first is gone, however long that is put off; timeouts wait for nobody."""
        async with self.writing() as writing:
            first, second, third = item("a", 1, 0, due_us=50), item("a", 1, 1), item("a", 2, 0)
            timeout = item("a", 3, 0, "timeout")
            await writing.commit(1, added=[third, second, first, timeout, item("b", 9)])
            assert await writing.due(49) == [timeout, item("b", 9)]
            assert await writing.due(50) == [timeout, item("b", 9), first]
            await writing.commit(2, removed=[first.id, timeout.id])
            assert await writing.due(50) == [second, item("b", 9)]
            await writing.commit(3, removed=[second.id])
            assert await writing.due(50) == [third, item("b", 9)]

    async def test_a_dead_command_holds_back_its_own_reaction_alone(self) -> None:
        """Those behind it of the same event wait; what a later event makes the instance send does not."""
        async with self.writing() as writing:
            first, second, third = item("a", 1, 0), item("a", 1, 1), item("a", 2, 0)
            fourth = item("a", 2, 1)
            await writing.commit(1, added=[first, second, third, fourth])
            await writing.commit(2, failed=[msgspec.structs.replace(first, dead=True, failure="no")])
            assert await writing.due() == [third]
            await writing.commit(3, removed=[third.id])
            assert await writing.due() == [fourth]
            await writing.commit(4, revived=["a"], removed=[fourth.id])
            assert await writing.due() == [first]

    async def test_the_next_due_time_is_told(self) -> None:
        """Of what is due after a time; not of the dead."""
        async with self.writing() as writing:
            assert await writing.store.next_due_us(SHIPPING, 0) is None
            await writing.commit(1, added=[item("a", due_us=30), item("b", due_us=20), item("c", due_us=10, dead=True)])
            found = [await writing.store.next_due_us(SHIPPING, after) for after in (0, 19, 20, 30)]
            assert found == [20, 20, 30, None]

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


async def begun(store: ProcessStore, process: str = SHIPPING) -> Writing:
    """A new process at the beginning, held by "a"."""
    stored = await store.create(process, place(START), "")
    epochs = await store.lease("a", [process], LONG_S)
    return Writing(store, msgspec.structs.replace(stored, epoch=epochs[process]))


@asynccontextmanager
async def _opened(store: ProcessStore) -> AsyncGenerator[ProcessStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


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
