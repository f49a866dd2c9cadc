"""The part of the event store's contract on which events decision models fold (rule 22)."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from diptych.event_store.event_store import Appended, Commit, EventStore, KeptState, ModelsChanged, ModelState
from diptych.event_store.model_unions import NONE_KEPT, ModelUnion
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    SettableClock,
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
    opened,
)

__all__ = ["ModelsContract"]

ORDER = ModelUnion("shop.Order", 1, ("A", "B"))
STOCK = ModelUnion("shop.Stock", 3, ())


def decided(models: bytes, commit: Commit) -> Commit:
    """A commit that was decided under this mark."""
    return replace(commit, models=models)


class ModelsContract(EventStoreCase):
    """What is kept of models, and who may not append any more once something else is."""

    async def test_models_are_kept_by_name(self) -> None:
        """Each in place of what was there under its name, for all who have the history, and for whoever comes later."""
        async with self.history(SettableClock()) as connect:
            async with opened(connect()) as store:
                assert await store.stored_models() == NONE_KEPT
                assert await store.keep_models([STOCK, ORDER], b"")
                first = await store.stored_models()
                assert first.models == (ORDER, STOCK)
                wider = ModelUnion("shop.Order", 2, ("A", "C"))
                assert await store.keep_models([wider], first.mark)
            async with opened(connect()) as store:
                second = await store.stored_models()
                assert second.models == (wider, STOCK)
                assert first.mark, "nothing tells what is kept from nothing"
                assert second.mark != first.mark

    async def test_models_are_kept_in_place_of_what_is_known(self) -> None:
        """Where others have kept some meanwhile, nothing is done, and the caller is told."""
        async with self.two_stores() as (store, other):
            assert await store.keep_models([ORDER], b"")
            kept = await other.stored_models()
            assert not await other.keep_models([STOCK], b"")
            assert not await other.keep_models([STOCK], b"12345678")
            assert await store.stored_models() == kept
            answers = await asyncio.gather(*(each.keep_models([STOCK], kept.mark) for each in (store, other)))
            assert sorted(answers) == [False, True]

    async def test_what_was_decided_under_other_models_is_not_judged(self) -> None:
        """Neither events nor outcomes nor states come of any commit of the batch, whatever else holds."""
        async with self.two_stores() as (store, other):
            await append_one(store, event("A", "a:1"))
            assert await other.keep_models([ORDER], b"")
            known = (await store.stored_models()).mark
            await store.append([decided(known, commit(event("A"), command_id="before"))])
            assert await other.keep_models([STOCK], known)
            state = ModelState("shop.Order", "1", "fold", b"{}")
            batch = [
                decided(known, commit(event("A"), command_id="c-1", states=[state])),
                decided(known, commit(event("A"), conditions=[condition(0, ["A"])])),
                decided(known, commit(command_id="c-2", rejection=b"{}")),
                decided(known, commit(command_id="before")),
            ]
            before = await store.head()
            assert await store.append(batch) == [ModelsChanged()] * 4
            assert await store.append(batch, before.position) == [ModelsChanged()] * 4
            assert await store.head() == before
            assert [await store.outcome(command_id) for command_id in ("c-1", "c-2")] == [None, None]
            assert await store.model_state("shop.Order", "1") is None

    async def test_what_was_decided_under_these_models_is_appended(self) -> None:
        """And what nobody has decided, whichever are kept; nothing has to be opened again."""
        async with self.two_stores() as (store, other):
            await check_appends(store, b"")
            assert await other.keep_models([ORDER], b"")
            await check_appends(store, b"")
            mark = (await store.stored_models()).mark
            await check_appends(store, mark)
            await check_appends(other, mark)
            assert len(await history_of(store)) == 4

    async def test_a_mark_of_nothing_that_is_kept_is_another_one(self) -> None:
        """What was decided under models that a failover has lost is not appended either."""
        async with self.store() as store:
            assert await store.append([decided(b"12345678", commit(event()))]) == [ModelsChanged()]
            assert await history_of(store) == []

    async def test_models_and_appends_do_not_pass_each_other(self) -> None:
        """Of commits at the same moment, those behind the change are answered, and those before it are there."""
        async with self.two_stores() as (store, other):
            assert await store.keep_models([ORDER], b"")
            mark = (await store.stored_models()).mark
            appends = [store.append([decided(mark, commit(event("A")))]) for _ in range(5)]
            keeping = asyncio.create_task(other.keep_models([STOCK], mark))
            answers = await asyncio.gather(*appends)
            assert await keeping
            appended = [result for (result,) in answers if not isinstance(result, ModelsChanged)]
            assert [expect(Appended, result).place.position for result in appended] == [
                recorded.position for recorded in await history_of(store)
            ]
            assert await store.append([decided(mark, commit(event("A")))]) == [ModelsChanged()]


async def check_appends(store: EventStore, mark: bytes) -> None:
    """A commit that was decided under the mark, with a state, is appended."""
    head = (await store.head()).position
    state = ModelState("shop.Order", str(head), "fold", b"{}")
    (result,) = await store.append([decided(mark, commit(event(), states=[state]))])
    at = expect(Appended, result).place.position
    assert at == head + 1
    assert await store.model_state("shop.Order", str(head)) == KeptState("fold", b"{}", Position(at))
