"""The part of the process store's contract that is about what goes out: when, in which order, put in by whom."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec

from diptych.process_managers.process_store import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    Outgoing,
    Resent,
)
from diptych.testing.contracts.process_store_case import (
    FAR_US,
    RACERS,
    SHIPPING,
    ProcessStoreCase,
    begun,
    item,
)

__all__ = ["OutgoingContract"]


class OutgoingContract(ProcessStoreCase):
    """What is due, what waits, and what is dead."""

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
