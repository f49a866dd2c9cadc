"""The event store's contract: commits of one batch that build on each other's pending positions."""

from __future__ import annotations

from diptych.event_store.event_store import Appended, AppendResult, ChainBroken, Commit, Conflicting, Duplicate, Refused
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
)

__all__ = ["ChainContract"]


def link(after: int, *, tag: str = "hot", command_id: str | None = None) -> Commit:
    """A commit of one event that was decided on the tag's state at a position."""
    return commit(event("Linked", tag), conditions=[condition(after, tags={tag})], command_id=command_id)


def kinds(results: list[AppendResult]) -> list[type[AppendResult]]:
    """Of which kind each is."""
    return [type(result) for result in results]


class ChainContract(EventStoreCase):
    """A condition beyond `base` names a pending position, and holds only if that came about."""

    async def test_a_chain_is_appended_whole(self) -> None:
        """Links that were each decided on the pending state of the one before are all appended."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            wide = commit(event("Linked", "hot"), event("Linked", "hot"), conditions=[condition(2, tags={"hot"})])
            results = await store.append([link(1), wide, link(4), commit(), link(5)], Position(1))
            assert [expect(Appended, result).place.position for result in results] == [2, 4, 5, 5, 6]

    async def test_a_link_that_misses_a_pending_event_is_a_conflict(self) -> None:
        """Within a chain, too, an event behind `after` breaks a condition."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            results = await store.append([link(1), link(2), link(2)], Position(1))
            assert kinds(results) == [Appended, Appended, Conflicting]

    async def test_a_chain_breaks_where_a_link_conflicts(self) -> None:
        """What stood on a link that was not appended is broken; what stands on history is judged as ever."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"), event("Opened", "cold"))
            stale = link(0)
            results = await store.append([stale, link(3), link(2, tag="cold"), link(3), link(4)], Position(2))
            assert kinds(results) == [Conflicting, ChainBroken, Appended, ChainBroken, ChainBroken]
            assert [recorded.tags for recorded in await history_of(store)] == [("hot",), ("cold",), ("cold",)]

    async def test_a_chain_breaks_whatever_took_the_pending_position(self) -> None:
        """A pending position that another event took is broken, even where no condition minds that event."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            other = commit(event("Other", "other"))
            results = await store.append([link(0), other, link(2)], Position(1))
            assert kinds(results) == [Conflicting, Appended, ChainBroken]

    async def test_what_stood_before_the_broken_link_still_counts(self) -> None:
        """A pending position in front of the link that failed came about, and may be built on."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"), event("Opened", "cold"))
            results = await store.append([link(2), link(1, tag="cold"), link(3), link(4)], Position(2))
            assert kinds(results) == [Appended, Conflicting, Appended, ChainBroken]

    async def test_a_chain_breaks_where_the_history_went_on(self) -> None:
        """Behind a `base` that is no longer the head, every pending position is broken, and history is judged."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            await append_one(store, event("Foreign"))
            results = await store.append([link(1), link(2), commit(conditions=[condition(1, {"Opened"})])], Position(1))
            assert kinds(results) == [Appended, ChainBroken, Appended]

    async def test_a_chain_breaks_on_a_duplicate_and_on_a_refusal(self) -> None:
        """Not appended is not appended: whoever stood on such a link decides again."""
        async with self.store() as store:
            await store.append([commit(event("Opened", "hot"), command_id="c-1")])
            after_duplicate = await store.append([link(1, command_id="c-1"), link(2)], Position(1))
            assert kinds(after_duplicate) == [Duplicate, ChainBroken]
            after_refusal = await store.append([commit(event("A\0", "hot")), link(2)], Position(1))
            assert kinds(after_refusal) == [Refused, ChainBroken]

    async def test_a_commit_without_events_breaks_no_chain(self) -> None:
        """It takes no position: where it conflicts, the pending positions behind it come about all the same."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            empty = commit(conditions=[condition(0, tags={"hot"})], rejection=b"{}", command_id="c-1")
            results = await store.append([link(1), empty, link(2)], Position(1))
            assert kinds(results) == [Appended, Conflicting, Appended]

    async def test_a_broken_chain_is_no_conflict(self) -> None:
        """Where one condition is broken and another stale, the commit stood on sand: it is the chain that counts."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"), event("Opened", "cold"))
            both = commit(event(), conditions=[condition(0, tags={"cold"}), condition(3, tags={"hot"})])
            results = await store.append([link(0), both], Position(2))
            assert kinds(results) == [Conflicting, ChainBroken]

    async def test_without_base_nothing_is_pending(self) -> None:
        """A condition beyond the head is broken, be the position taken by this very batch."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            results = await store.append([link(2), link(1), link(2), commit(event(), conditions=[condition(9)])])
            assert kinds(results) == [ChainBroken, Appended, ChainBroken, ChainBroken]

    async def test_a_base_beyond_the_head_promises_nothing(self) -> None:
        """A caller that knows a longer history is told so for every position past this one's head."""
        async with self.store() as store:
            await append_one(store, event("Opened", "hot"))
            results = await store.append([link(3), link(1), link(2), link(4)], Position(3))
            assert kinds(results) == [ChainBroken, Appended, ChainBroken, ChainBroken]
            assert len(await history_of(store)) == 2
