"""The event store's contract: the language of queries, in reads and in conditions."""

from __future__ import annotations

from diptych.event_store.append_condition import AppendCondition
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.event_store import Appended, Commit, Conflicting, EventStore
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import (
    READ_MAX,
    EventStoreCase,
    append_one,
    commit,
    condition,
    event,
    expect,
    item,
    matching,
    positions,
)

__all__ = ["QueryContract"]

EVENTS = (
    ("Opened", ("account:a",)),  # 1
    ("Opened", ("account:b",)),  # 2
    ("Moved", ("account:a", "account:b")),  # 3
    ("Noted", ()),  # 4
    ("Moved", ("account:b", "account:c")),  # 5
    ("Closed", ("account:a",)),  # 6
    ("Opened", ("account:c", "branch:n")),  # 7
    ("Noted", ("branch:n",)),  # 8
)
"""Types and tags of the events that the queries are asked of, from position 1."""

QUERIES: tuple[tuple[tuple[QueryItem, ...], list[int]], ...] = (
    # types only
    ((item({"Opened"}),), [1, 2, 7]),
    ((item({"Opened", "Closed"}),), [1, 2, 6, 7]),
    ((item({"Noted", "Unheard"}),), [4, 8]),
    # tags only
    ((item(tags={"account:a"}),), [1, 3, 6]),
    ((item(tags={"account:a", "account:b"}),), [3]),
    ((item(tags=["account:b", "account:b"]),), [2, 3, 5]),
    # both
    ((item({"Moved"}, {"account:b"}),), [3, 5]),
    ((item({"Opened", "Moved"}, {"account:c"}),), [5, 7]),
    ((item({"Moved"}, {"account:b", "account:c"}),), [5]),
    # several items
    ((item(tags={"account:a"}), item(tags={"branch:n"})), [1, 3, 6, 7, 8]),
    ((item({"Opened"}), item(tags={"account:a"}), item({"Closed"})), [1, 2, 3, 6, 7]),
    ((item({"Opened"}), item({"Opened"})), [1, 2, 7]),
    ((item({"Noted"}), item({"Moved"}, {"account:c"}), item({"Unheard"})), [4, 5, 8]),
    # all, and nothing
    ((item(),), [1, 2, 3, 4, 5, 6, 7, 8]),
    ((item({"Opened"}), item()), [1, 2, 3, 4, 5, 6, 7, 8]),
    ((), []),
    ((item({"Unheard"}),), []),
    ((item(tags={"account:z"}),), []),
    ((item({"Noted"}, {"account:a"}),), []),
    ((item(tags={"account:a", "account:c"}),), []),
    ((item(tags={"account:a", "account:z"}),), []),
    ((item({"Unheard"}, {"account:a"}),), []),
    ((item({"Opened\0"}), item(tags={"account:\ud800"})), []),
)
"""Every form of query, and the positions that it matches."""

ITEMS_MANY = 230
"""Items in one query: more than a store may want to put in one statement."""
READ_LONG = 2_500
"""Events in one read: more than a store may want to read at a stretch."""


class QueryContract(EventStoreCase):
    """Reads and conditions agree with `QueryItem.matches`, whatever the query's form."""

    async def test_a_forward_read_gives_what_matches_in_order(self) -> None:
        """Every form of query gives exactly the matching events, ascending."""
        async with self.store() as store:
            await fill(store)
            for items, expected in QUERIES:
                result = await store.read(EventQuery(items), Position(0), READ_MAX)
                assert positions(result.events) == expected, f"{items} gave {positions(result.events)}"
                assert result.through == len(EVENTS)
                assert not result.more

    async def test_a_backward_read_gives_what_matches_from_the_last(self) -> None:
        """Every form of query gives exactly the matching events, descending."""
        async with self.store() as store:
            await fill(store)
            for items, expected in QUERIES:
                result = await store.read_backward(EventQuery(items), READ_MAX)
                assert positions(result.events) == expected[::-1], f"{items} gave {positions(result.events)}"
                assert result.through == len(EVENTS)
                assert not result.more

    async def test_a_forward_read_keeps_its_bounds(self) -> None:
        """`after` is excluded, `until` included, for every query and every pair of them."""
        async with self.store() as store:
            await fill(store)
            for items, matched in QUERIES:
                for after in range(len(EVENTS) + 1):
                    for until in range(1, len(EVENTS) + 2):
                        expected = [p for p in matched if after < p <= until]
                        result = await store.read(EventQuery(items), Position(after), READ_MAX, until=Position(until))
                        assert positions(result.events) == expected, f"{items} in ({after}, {until}]"
                        assert result.through == min(until, len(EVENTS))

    async def test_a_backward_read_keeps_its_bound(self) -> None:
        """`before` is excluded, for every query."""
        async with self.store() as store:
            await fill(store)
            for items, matched in QUERIES:
                for before in range(1, len(EVENTS) + 3):
                    expected = [p for p in reversed(matched) if p < before]
                    result = await store.read_backward(EventQuery(items), READ_MAX, before=Position(before))
                    assert positions(result.events) == expected, f"{items} before {before}"

    async def test_a_limit_cuts_a_read_short_and_says_so(self) -> None:
        """With a limit come the first matching events, how far they tell, and whether there are more."""
        async with self.store() as store:
            await fill(store)
            for items, matched in QUERIES:
                for limit in range(1, len(EVENTS) + 1):
                    forward = await store.read(EventQuery(items), Position(0), limit)
                    assert positions(forward.events) == matched[:limit]
                    assert forward.more == (len(matched) > limit)
                    assert forward.through == (matched[limit - 1] if forward.more else len(EVENTS))
                    backward = await store.read_backward(EventQuery(items), limit)
                    assert positions(backward.events) == matched[::-1][:limit]
                    assert backward.more == (len(matched) > limit)

    async def test_reading_on_from_through_misses_nothing(self) -> None:
        """Pages of any size, each read from where the last one told to, make up the whole."""
        async with self.store() as store:
            await fill(store)
            for items, matched in QUERIES:
                for size in (1, 2, 3):
                    seen: list[int] = []
                    through, more = Position(0), True
                    while more:
                        page = await store.read(EventQuery(items), through, size)
                        seen += positions(page.events)
                        assert page.through > through, "a read that does not get on would never end"
                        through, more = page.through, page.more
                    assert seen == matched

    async def test_a_read_from_beyond_the_head_is_empty(self) -> None:
        """Nothing is there yet; the read tells as far as the head."""
        async with self.store() as store:
            await fill(store)
            result = await store.read(ALL_EVENTS, Position(99), READ_MAX)
            assert (result.events, result.through, result.more) == ([], len(EVENTS), False)

    async def test_an_empty_history_reads_as_empty(self) -> None:
        """Before the first event, every query of either direction gives nothing, through 0."""
        async with self.store() as store:
            for items, _ in QUERIES:
                forward = await store.read(EventQuery(items), Position(0), READ_MAX)
                backward = await store.read_backward(EventQuery(items), READ_MAX)
                assert forward.events == backward.events == []
                assert forward.through == backward.through == 0

    async def test_a_query_may_have_many_items(self) -> None:
        """Hundreds of items give their events once each and in order, limits included."""
        async with self.store() as store:
            await store.append([commit(event("Stocked", f"product:{n % ITEMS_MANY}")) for n in range(ITEMS_MANY * 2)])
            items = tuple(item(tags={f"product:{n}"}) for n in reversed(range(ITEMS_MANY)))
            assert await matching(store, *items) == list(range(1, ITEMS_MANY * 2 + 1))
            some = await store.read(EventQuery(items), Position(5), 7)
            assert (positions(some.events), some.through, some.more) == (list(range(6, 13)), 12, True)
            last = await store.read_backward(EventQuery(items), 3)
            assert positions(last.events) == [ITEMS_MANY * 2, ITEMS_MANY * 2 - 1, ITEMS_MANY * 2 - 2]

    async def test_a_read_may_be_long(self) -> None:
        """Thousands of events come whole, in either direction."""
        async with self.store() as store:
            for _ in range(5):
                await store.append([commit(event()) for _ in range(READ_LONG // 5)])
            forward = await store.read(ALL_EVENTS, Position(0), READ_LONG - 1)
            assert positions(forward.events) == list(range(1, READ_LONG))
            assert (forward.through, forward.more) == (READ_LONG - 1, True)
            backward = await store.read_backward(ALL_EVENTS, READ_MAX)
            assert positions(backward.events) == list(range(READ_LONG, 0, -1))

    async def test_a_rare_tag_beside_a_common_one_is_found(self) -> None:
        """A query for two tags gives the events with both, whichever of them is the rarer."""
        async with self.store() as store:
            common = [commit(event("Sold", "shop:1", *(["day:x"] if n % 150 == 0 else []))) for n in range(300)]
            await store.append([*common, *(commit(event("Sold", "day:x")) for _ in range(3))])
            assert await matching(store, item(tags={"shop:1", "day:x"})) == [1, 151]
            assert await matching(store, item({"Sold"}, {"day:x", "shop:1"})) == [1, 151]

    async def test_a_condition_breaks_on_a_later_match_only(self) -> None:
        """For every form of item and every `after`: it conflicts exactly if an event behind `after` matches."""
        async with self.store() as store:
            await fill(store)
            for items, matched in QUERIES:
                if len(items) == 1:
                    await check_condition(store, items[0], matched)

    async def test_conditions_are_judged_among_later_matches_of_the_batch_too(self) -> None:
        """For every form of item: an event that the same batch appended before breaks it like any other."""
        for items, matched in QUERIES:
            if len(items) != 1:
                continue
            async with self.store() as store:
                probe = commit(conditions=[AppendCondition(items[0], Position(0))], keep=False)
                batch: list[Commit] = [probe]
                for type, tags in EVENTS:
                    batch += (commit(event(type, *tags)), probe)
                for index, result in enumerate((await store.append(batch))[::2]):
                    broken = any(p <= index for p in matched)
                    expect(Conflicting if broken else Appended, result)

    async def test_a_condition_on_everything_breaks_on_any_event(self) -> None:
        """The empty item stands for the whole history."""
        async with self.store() as store:
            await append_one(store, event())
            stale, fresh = await store.append([commit(conditions=[condition(0)]), commit(conditions=[condition(1)])])
            expect(Conflicting, stale)
            expect(Appended, fresh)


async def fill(store: EventStore) -> None:
    """Append `EVENTS`, the last three in one commit of their own."""
    for type, tags in EVENTS[:-3]:
        await append_one(store, event(type, *tags))
    await append_one(store, *(event(type, *tags) for type, tags in EVENTS[-3:]))


async def check_condition(store: EventStore, asked: QueryItem, matched: list[int]) -> None:
    """Judge a condition on the item after every position."""
    probes = [commit(conditions=[AppendCondition(asked, Position(after))]) for after in range(len(EVENTS) + 1)]
    for after, result in enumerate(await store.append(probes)):
        later = [position for position in matched if position > after]
        if not later:
            expect(Appended, result)
            continue
        conflict = expect(Conflicting, result)
        assert conflict.item == asked
        assert conflict.position in later, f"{asked} after {after} is broken by {later}, not {conflict.position}"
