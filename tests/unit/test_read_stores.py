"""Read models in stores of their own: sent there by the application, asked as if they were in one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    Identity,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
    SyncApplication,
    Value,
    replace,
)
from diptych.adapters.connect import connect_read_store, default_read_store
from diptych.application.follower import Follower
from diptych.application.read_routing import ReadStores
from diptych.clock import SystemClock
from diptych.errors import Blocked, ConfigurationError
from diptych.event_store.position import Position, read_tokens
from diptych.read_side import snapshot_turns
from diptych.read_side.comparison import Comparison
from diptych.read_side.freshness import EVENTUAL
from diptych.read_side.query_context import query_context
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from diptych.security import actor_of
from tests.postgres_server import in_thread, new_read_store, new_stores
from tests.tenants import (
    ACME,
    GLOBEX,
    PEN,
    OnAllShelves,
    OnShelf,
    Stock,
    TenantId,
    UnitsEverywhere,
    UnitsOnShelf,
    warehouses,
)

pytestmark = pytest.mark.anyio

WAIT_S = 20


class ShelfId(Identity): ...


class Put(Command):
    shelf: ShelfId
    weight: int


class Putting(Event):
    shelf: ShelfId
    weight: int


class Count(ReadModel):
    shelf: Key[ShelfId]
    things: int = 0


class Weight(ReadModel):
    shelf: Key[ShelfId]
    total: int = 0


class Heaviest(ReadModel):
    shelf: Key[ShelfId]
    weight: int = 0


class CountOf(Query[Count | None]):
    shelf: ShelfId


class WeightOf(Query[Weight | None]):
    shelf: ShelfId


class HeaviestOf(Query[Heaviest | None]):
    shelf: ShelfId


class Both(Value):
    things: int
    total: int


class BothOf(Query[Both]):
    shelf: ShelfId


class AtOnce(Query[Both]):
    shelf: ShelfId


class InSql(Query[list[Both]]): ...


A, B = ShelfId("a"), ShelfId("b")
POISON = 13


def shelves(*, choking: bool = False, name: str = "shelves", version: int = 1) -> BoundedContext:
    """Three read models of the same events, and queries of one and of two of them."""
    context = BoundedContext(name, events=[Putting])

    @context.command_handler
    def put(command: Put) -> Putting:
        return Putting(shelf=command.shelf, weight=command.weight)

    @context.projection(version=version)
    def count(row: Count, event: Putting) -> Count:
        if choking and event.weight == POISON:
            raise ValueError("thirteen")
        return replace(row, things=row.things + version)

    @context.projection
    def weight(row: Weight, event: Putting) -> Weight:
        return replace(row, total=row.total + event.weight)

    @context.projection
    def heaviest(row: Heaviest, event: Putting) -> Heaviest:
        return replace(row, weight=max(row.weight, event.weight))

    @context.query_handler
    async def both_of(query: BothOf, read: Reader) -> Both:
        count, weight = await read.get(Count, query.shelf), await read.get(Weight, query.shelf)
        return Both(things=count.things if count else 0, total=weight.total if weight else 0)

    @context.query_handler
    async def at_once(query: AtOnce, read: Reader) -> Both:
        count, weight, _, _ = await asyncio.gather(
            read.get(Count, query.shelf),
            read.get(Weight, query.shelf),
            read.get(Heaviest, query.shelf),
            read.get(Heaviest, B),
        )
        return Both(things=count.things if count else 0, total=weight.total if weight else 0)

    @context.query_handler
    async def in_sql(query: InSql, read: Reader) -> list[Both]:
        return await read.sql(Both, "SELECT 1 AS things, 2 AS total", touches=[Count, Weight])

    return context


@pytest.fixture(
    params=["memory beside sqlite", "two files", "postgres and memory", "two schemas", "file beside memory"]
)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ReadStores]:
    """Where the events are, and where read models are sent."""
    file = f"sqlite:{tmp_path}/events.db"
    match request.param:
        case "memory beside sqlite":
            return file, {Count: "memory:"}
        case "two files":
            return file, {Count: f"sqlite:{tmp_path}/counts.db", "Heaviest": f"sqlite:{tmp_path}/heaviest.db"}
        case "postgres and memory":
            return in_thread(new_stores()), {Weight: "memory:", "shelves.Heaviest": "memory:"}
        case "two schemas":
            return in_thread(new_stores()), {Weight: in_thread(new_read_store())}
        case _:
            return "memory:", {Weight: f"sqlite:{tmp_path}/weights.db", Heaviest: ["memory:"]}


async def filled(app: Application, *weights: int) -> None:
    for number, weight in enumerate(weights):
        await app.execute(Put(shelf=(A, B)[number % 2], weight=weight))


# ── the same answers ─────────────────────────────────────────────────────────


async def test_queries_are_answered_as_if_all_read_models_were_in_one_store(places: tuple[str, ReadStores]) -> None:
    """By key and by handler, after a token, latest, overlaid and as of a moment; the token tells of one history."""
    url, sent = places
    async with Application(shelves(), store=url, read_stores=sent) as app:
        first = await app.execute(Put(shelf=A, weight=5))
        last = await app.execute(Put(shelf=A, weight=2))
        assert await app.query(CountOf(shelf=A), after=last, wait_s=WAIT_S) == Count(shelf=A, things=2)
        assert await app.query(WeightOf(shelf=A), after=last, wait_s=WAIT_S) == Weight(shelf=A, total=7)
        assert await app.query(HeaviestOf(shelf=A), freshness="latest", wait_s=WAIT_S) == Heaviest(shelf=A, weight=5)
        for query in (BothOf(shelf=A), AtOnce(shelf=A)):
            found = await app.answer(query, after=last, wait_s=WAIT_S)
            assert found.value == Both(things=2, total=7)
            (token,) = read_tokens(found.token)
            assert (token.low, token.high.position) == (2, 2)
        await app.execute(Put(shelf=A, weight=1))
        assert await app.query(BothOf(shelf=A), freshness="overlay", wait_s=WAIT_S) == Both(things=3, total=8)
        assert await app.query(BothOf(shelf=A), within_s=0, wait_s=WAIT_S) == Both(things=3, total=8)
        then = await app.answer(BothOf(shelf=A), as_of=first)
        assert then.value == Both(things=1, total=5)
        assert [(token.low, token.high.position) for token in then.shows] == [(1, 1)]


async def test_the_token_of_an_answer_from_two_stores_spans_what_each_of_them_shows(
    places: tuple[str, ReadStores],
) -> None:
    """The rows are of two moments, and said to be: at least low, at most high; whoever asks after it is shown both."""
    url, sent = places
    async with Application(shelves(), store=url, read_stores=sent) as app:
        await filled(app, 5, 3)
        await app.projected()
        held, other = (
            store for store in app.partition().stores if {*store.names()} & {"shelves.Count", "shelves.Weight"}
        )
        async with held.projector.lock:  # it folds nothing meanwhile
            receipt = await app.execute(Put(shelf=A, weight=1))
            await other.projected(Position(receipt.position))
            found = await app.answer(BothOf(shelf=A))
            assert [(token.low, token.high.position) for token in found.shows] == [(2, 3)]
            with pytest.raises(NotFresh):
                await app.answer(BothOf(shelf=A), after=found, wait_s=0)
        assert await app.query(BothOf(shelf=A), after=found, wait_s=WAIT_S) == Both(things=2, total=6)


async def test_a_live_query_of_two_stores_hears_of_both(places: tuple[str, ReadStores]) -> None:
    """Its answers go on until they show what was done last, and their tokens never go back."""
    url, sent = places
    async with asyncio.timeout(WAIT_S), Application(shelves(), store=url, read_stores=sent) as app:
        answers = app.subscribe(BothOf(shelf=A))
        found = await anext(answers)
        assert found.value == Both(things=0, total=0)
        for weight, until in ((5, Both(things=1, total=5)), (2, Both(things=2, total=7))):
            await app.execute(Put(shelf=A, weight=weight))
            while found.value != until:
                before, found = found, await anext(answers)
                assert found.shows[0].high.position >= before.shows[0].high.position
        await answers.aclose()


async def test_what_is_asked_for_at_once_is_of_one_snapshot_of_each_store(places: tuple[str, ReadStores]) -> None:
    """Whatever any of it meets, the answer tells: here that events are missing from one row."""
    url, sent = places
    async with Application(shelves(choking=True), store=url, read_stores=sent) as app:
        await filled(app, POISON)
        await app.projected()
        found = await app.answer(AtOnce(shelf=A))
        assert (found.value, found.incomplete) == (Both(things=0, total=POISON), True)


async def test_one_statement_of_sql_reads_one_store(places: tuple[str, ReadStores]) -> None:
    """Where it names read models of two, it is refused and not run."""
    url, sent = places
    async with Application(shelves(), store=url, read_stores=sent) as app:
        with pytest.raises(ConfigurationError, match=r"one read store; it touches Count, Weight"):
            await app.query(InSql())


def test_the_synchronous_application_sends_them_too(tmp_path: Path) -> None:
    """By the same argument."""
    with SyncApplication(shelves(), store=f"sqlite:{tmp_path}/events.db", read_stores={Count: "memory:"}) as app:
        receipt = app.execute(Put(shelf=A, weight=1))
        assert app.query(BothOf(shelf=A), after=receipt) == Both(things=1, total=1)


# ── each store by itself ─────────────────────────────────────────────────────


async def test_each_read_model_is_kept_where_it_was_sent(tmp_path: Path) -> None:
    """And nowhere else."""
    url, counts = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/counts.db"
    async with Application(shelves(), store=url, read_stores={Count: counts}) as app:
        await filled(app, 1, 2)
        await app.projected()
        assert [(found.name, found.store, found.checkpoint) for found in (await app.status()).projections] == [
            ("shelves.Count", counts, 2),
            ("shelves.Heaviest", default_read_store(url), 2),
            ("shelves.Weight", default_read_store(url), 2),
        ]
    assert await names_in(counts) == {"shelves.Count"}
    assert await names_in(default_read_store(url)) == {"shelves.Heaviest", "shelves.Weight"}


async def names_in(url: str) -> set[str]:
    """The read models of which there is something in a store."""
    store = connect_read_store(url)
    await store.open()
    try:
        return {found.name for found in await store.generations()}
    finally:
        await store.close()


async def test_of_several_stores_the_first_answers_and_all_are_fed(tmp_path: Path) -> None:
    """Which can be changed at any time: they have the same rows."""
    url, one, two = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/one.db", in_thread(new_read_store())
    async with Application(shelves(), store=url, read_stores={Count: [one, two], Weight: two}) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
        named = [(found.name, found.store == one, found.checkpoint) for found in (await app.status()).projections]
        assert named[:2] == [("shelves.Count", True, 3), ("shelves.Count", False, 3)], "the one that answers is first"
        assert await app.query(BothOf(shelf=A)) == Both(things=2, total=4)
    assert await names_in(two) == {"shelves.Count", "shelves.Weight"}
    async with Application(shelves(), store=url, read_stores={Count: [two, one]}, projecting=False) as app:
        assert await app.query(CountOf(shelf=A)) == Count(shelf=A, things=2)
        (panel,) = (store for store in app.partition().stores if store.answers("shelves.Count"))
        assert panel.url.startswith("postgresql:")


async def test_a_rebuild_builds_in_every_store(tmp_path: Path) -> None:
    """And a comparison compares what answers."""
    url, one = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/one.db"
    sent: ReadStores = {Count: [one, "memory:"]}
    async with Application(shelves(), store=url, read_stores=sent) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
        assert await app.rebuilds.rebuild("Count") == 3
        stores = [store for store in app.partition().stores if "shelves.Count" in store.names()]
        kept = [{found.number: found.live for found in await store.read_store.generations()} for store in stores]
        assert kept == [{1: False, 2: True}] * 2
        assert await app.rebuilds.back("Count") == 3
        kept = [{found.number: found.live for found in await store.read_store.generations()} for store in stores]
        assert kept == [{1: True, 2: False}] * 2
        assert (await app.rebuilds.compare("Count")).same
        assert await app.rebuilds.rebuild("shelves.Weight") == 3
        assert await app.query(BothOf(shelf=A)) == Both(things=2, total=4)
        with pytest.raises(ConfigurationError, match=r"'Counts'; there are shelves.Count, shelves.Heaviest"):
            await app.rebuilds.rebuild("Counts")


@pytest.mark.parametrize("answering", ["memory", "file"])
async def test_what_is_in_memory_is_not_gone_back_with_nor_compared(answering: str, tmp_path: Path) -> None:
    """In another process: its rows are folded by the code of that, and tell nothing of those that are kept."""
    url, one = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/one.db"
    sent: ReadStores = {Count: ["memory:", one] if answering == "memory" else [one, "memory:"]}
    async with Application(shelves(), store=url, read_stores=sent) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
        assert await app.rebuilds.rebuild("Count") == 3
    async with Application(shelves(), store=url, read_stores=sent, projecting=False) as by_hand:
        assert await by_hand.rebuilds.back("Count") == 3
        (kept,) = (store for store in by_hand.partition().stores if store.url == one)
        assert {found.number: found.live for found in await kept.read_store.generations()} == {1: True, 2: False}
    async with Application(shelves(version=2), store=url, read_stores=sent, projecting=False) as by_hand:
        compared = list[tuple[int, int]]()

        def approve(found: Comparison) -> bool:
            compared.append((found.rows, found.changed))
            return False

        assert not (await by_hand.rebuilds.compare("Count")).same
        assert await by_hand.rebuilds.rebuild("Count", approve=approve) is None
        assert compared == [(2, 2)]


async def test_going_back_is_all_or_nothing_where_a_store_keeps_nothing(tmp_path: Path) -> None:
    """It says which, before anything has changed."""
    url, one, other = (f"sqlite:{tmp_path}/{name}.db" for name in ("events", "one", "other"))
    async with Application(shelves(), store=url, read_stores={Count: one}) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
        assert await app.rebuilds.rebuild("Count") == 3
    async with Application(shelves(), store=url, read_stores={Count: [one, other]}) as app:
        await app.projected()
        with pytest.raises(ConfigurationError, match=r"other\.db keeps no rows of Count .*one\.db does"):
            await app.rebuilds.back("Count")
        (kept,) = (store for store in app.partition().stores if store.url == one)
        assert {found.number: found.live for found in await kept.read_store.generations()} == {1: False, 2: True}


async def test_changed_rows_that_another_store_answers_are_refused_as_well(tmp_path: Path) -> None:
    """Opening builds nothing, in whichever store it is."""
    url, one, other = (f"sqlite:{tmp_path}/{name}.db" for name in ("events", "one", "other"))
    async with Application(shelves(), store=url, read_stores={Count: [one, other]}) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
    async with Application(shelves(version=2), store=url, read_stores={Count: one}) as app:
        await app.projected()
    sent, refusing = {Count: [one, other]}, RebuildPolicy(on_changed="refuse")
    with pytest.raises(ConfigurationError, match=r"the rows of shelves\.Count are of other code"):
        await Application(shelves(version=2), store=url, read_stores=sent, rebuilding=refusing).open()


async def test_a_key_that_is_blocked_in_several_stores_is_one_item(tmp_path: Path) -> None:
    """What is done with it by hand is done in all of them."""
    url, one = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/one.db"
    async with Application(shelves(choking=True), store=url, read_stores={Count: [one, "memory:"]}) as app:
        await filled(app, 1, 2, POISON, 4)
        last = await app.execute(Put(shelf=A, weight=5))
        await app.projected()
        with pytest.raises(Blocked):
            await app.query(CountOf(shelf=A), after=last)
        assert await app.query(WeightOf(shelf=A), after=last) == Weight(shelf=A, total=19)
        assert [found.blocked for found in (await app.status()).projections] == [1, 1, 0, 0]
        (item,) = (await app.parked.list()).items
        dealt = await app.parked.retry(item.id, actor="eve", reason="again")
        assert dealt.still is not None
        assert [retry.reason for retry in (await app.parked.show(item.id)).retries] == ["again"]
        await app.parked.discard(item.id, actor="eve", reason="not mine")
        assert not (await app.parked.list()).items
        assert [each.position for each in (await app.parked.discarded()).items] == [3]
        assert await app.query(CountOf(shelf=A), after=last) == Count(shelf=A, things=2)
        for store in app.partition().stores:
            if "shelves.Count" in store.names():
                assert (await store.rebuilds.compare("Count")).same
                async with store.read_store.snapshot() as snapshot:
                    assert await snapshot.get_many("shelves.Count", [(A,)]) == {(A,): (A, 2)}


# ── in memory ────────────────────────────────────────────────────────────────


async def test_what_is_in_memory_is_built_anew_at_start(places: tuple[str, ReadStores]) -> None:
    """By every process, also by one that does not project: nobody else can."""
    url, _ = places
    if url == "memory:":
        pytest.skip("such a history has no second process")
    async with Application(shelves(), store=url) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
    async with Application(shelves(), store=url, read_stores={Count: "memory:"}, projecting=False) as app:
        assert await app.query(CountOf(shelf=A), wait_s=WAIT_S) == Count(shelf=A, things=2), "it is waited for"
        assert await app.query(WeightOf(shelf=A)) == Weight(shelf=A, total=4)
        await app.execute(Put(shelf=A, weight=1))
        assert await app.query(CountOf(shelf=A), freshness="latest", wait_s=WAIT_S) == Count(shelf=A, things=3)
        with pytest.raises(NotFresh):
            await app.query(WeightOf(shelf=A), freshness="latest", wait_s=0)


async def test_one_store_that_is_overloaded_is_told_of_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the others can be asked, so that the application is ready."""
    monkeypatch.setattr(snapshot_turns, "SNAPSHOT_WAIT_S_MAX", 0.01)
    url, counts = f"sqlite:{tmp_path}/events.db", f"sqlite:{tmp_path}/counts.db"
    async with Application(shelves(), store=url, read_stores={Count: counts}) as app, AsyncExitStack() as held:
        await filled(app, 1)
        await app.projected()
        (kept,) = (store for store in app.partition().stores if store.url == counts)
        for _ in range(SNAPSHOTS_MAX):
            await held.enter_async_context(kept.read_store.snapshot())
        health = await app.health()
        assert health.ready
        (told,) = health.impaired
        assert told.startswith(f"read store {counts}: SNAPSHOT_WAIT_S_MAX")
        stopped = {found.name: bool(found.stopped) for found in (await app.status()).projections}
        assert stopped == {"shelves.Count": True, "shelves.Heaviest": False, "shelves.Weight": False}


async def test_two_processes_share_the_stores_and_have_an_image_each(tmp_path: Path) -> None:
    """Each row is folded once, by whichever holds the lease in its store; what is in memory by both."""
    sent: ReadStores = {Weight: f"sqlite:{tmp_path}/weights.db", Heaviest: "memory:"}
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(shelves(), store=url, read_stores=sent) as one:
        async with Application(shelves(), store=url, read_stores=sent) as other:
            for number, app in enumerate((one, other, one)):
                await app.execute(Put(shelf=A, weight=number))
            receipt = await other.execute(Put(shelf=A, weight=3))
            for app in (one, other):
                assert await app.query(BothOf(shelf=A), after=receipt, wait_s=WAIT_S) == Both(things=4, total=6)
                assert await app.query(HeaviestOf(shelf=A), after=receipt, wait_s=WAIT_S) == Heaviest(shelf=A, weight=3)
        receipt = await one.execute(Put(shelf=A, weight=9))
        assert await one.query(BothOf(shelf=A), after=receipt, wait_s=WAIT_S) == Both(things=5, total=15)
        for store in one.partition().stores:
            assert (await store.rebuilds.compare(store.names()[0])).same


async def test_it_is_not_ready_where_no_store_that_keeps_anything_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one is no reason to be ready."""
    sent: ReadStores = dict.fromkeys((Count, Weight, Heaviest), "memory:")
    async with Application(shelves(), store=f"sqlite:{tmp_path}/events.db", read_stores=sent) as app:
        assert (await app.health()).ready
        default, image = app.partition().stores
        assert (default.names(), len(image.names())) == ([], 3)
        monkeypatch.setattr(image.projector, "failure", "no room")
        health = await app.health()
        assert (health.ready, health.reason) == (False, "read store memory:: projections have stopped: no room")


async def test_what_is_in_memory_never_answers_before_it_is_built(tmp_path: Path) -> None:
    """Not even a query that takes whatever there is: it would be told that there are no rows."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(shelves(), store=url) as app:
        await filled(app, 1, 2, 3)
        await app.projected()
    app = Application(shelves(), store=url, read_stores={Count: "memory:"})
    partition = app._wired().find("")  # pyright: ignore[reportPrivateUsage]
    await partition.store.open()
    try:
        await partition.history.register(partition.store, partition.context_names)
        for store in partition.stores:
            await store.read_store.open()
            await store.projector.open()  # and nothing is folded yet
        status = (await Follower.status(partition)).projections[0]
        assert (status.name, status.store, status.live, status.checkpoint) == ("shelves.Count", "memory:", False, 0)
        context = query_context(actor_of(None), SystemClock().now())
        with pytest.raises(NotFresh, match="not built"):
            await partition.queries.answer(CountOf(shelf=A), EVENTUAL, 0, context)
        with pytest.raises(NotFresh, match="not built"):
            await partition.queries.answer(BothOf(shelf=A), EVENTUAL, 0, context)
        assert (await partition.queries.answer(WeightOf(shelf=A), EVENTUAL, 0, context)).value == Weight(
            shelf=A, total=4
        )
    finally:
        await partition.close()
    async with app:
        await app.projected()
        assert await app.query(BothOf(shelf=A), wait_s=0) == Both(things=2, total=4)
        assert (await app.status()).projections[0].live


# ── in partitions ────────────────────────────────────────────────────────────


async def test_partitions_have_read_stores_of_their_own(tmp_path: Path) -> None:
    """Also what follows all of them: each read model is told for each partition, or is in the memory of each."""
    stores = {name: f"sqlite:{tmp_path}/{name}.db" for name in (ACME, GLOBEX)} | {"*": f"sqlite:{tmp_path}/all.db"}
    shelf = {ACME: f"sqlite:{tmp_path}/acme.shelf.db", GLOBEX: ["memory:", f"sqlite:{tmp_path}/globex.shelf.db"]}
    sent: ReadStores = {OnShelf: shelf, OnAllShelves: ["memory:"]}
    async with Application(warehouses(), partition_by=TenantId, store=stores, read_stores=sent) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        last = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        found = await app.query(UnitsEverywhere(sku=PEN), after=last, wait_s=WAIT_S)
        assert found is not None
        assert (await app.query(UnitsOnShelf(tenant=GLOBEX, sku=PEN), after=last, wait_s=WAIT_S)) == 2
        assert (await app.query(UnitsOnShelf(tenant=ACME, sku=PEN), freshness="latest", wait_s=WAIT_S)) == 1
        await app.projected()
        assert [found.store for found in (await app.partition(GLOBEX).status()).projections] == shelf[GLOBEX]
        assert [found.store for found in (await app.across.status()).projections] == ["memory:"]
    assert await names_in(f"sqlite:{tmp_path}/globex.shelf.db") == {"warehouse.OnShelf"}


async def test_contexts_with_read_stores_of_their_own_are_asked_together(tmp_path: Path) -> None:
    """One handler over two histories, each in two stores; the token tells of both, and is a moment of both."""
    one, other = shelves(), shelves_of_others()
    stores = {name: f"sqlite:{tmp_path}/{name}.db" for name in ("shelves", "others")}
    sent: ReadStores = {Count: "memory:", "OtherCount": {"others": f"sqlite:{tmp_path}/counts.db"}}
    async with Application(one, other, partition_by="context", store=stores, read_stores=sent) as app:
        first = await app.execute(Put(shelf=A, weight=5))
        second = await app.execute(PutThere(shelf=A))
        query = Everywhere(shelf=A)
        found = await app.answer(query, after=f"{first.token},{second.token}", wait_s=WAIT_S)
        assert found.value == [1, 1, 1, 5]
        assert [(token.low, token.high.position) for token in found.shows] == [(1, 1), (1, 1)]
        await app.execute(Put(shelf=A, weight=2))
        await app.execute(PutThere(shelf=A))
        for freshness in ("latest", "overlay"):
            assert await app.query(query, freshness=freshness, wait_s=WAIT_S) == [2, 2, 2, 7]
        assert await app.query(query, as_of=found) == [1, 1, 1, 5]


class PutThere(Command):
    shelf: ShelfId


class PuttingThere(Event):
    shelf: ShelfId


class OtherCount(ReadModel):
    shelf: Key[ShelfId]
    things: int = 0


class OtherTimes(ReadModel):
    shelf: Key[ShelfId]
    things: int = 0


class Everywhere(Query[list[int]]):
    shelf: ShelfId


def shelves_of_others() -> BoundedContext:
    """Another context, with a query of all read models of both."""
    context = BoundedContext("others", events=[PuttingThere])

    @context.command_handler
    def put(command: PutThere) -> PuttingThere:
        return PuttingThere(shelf=command.shelf)

    @context.projection
    def count(row: OtherCount, event: PuttingThere) -> OtherCount:
        return replace(row, things=row.things + 1)

    @context.projection
    def times(row: OtherTimes, event: PuttingThere) -> OtherTimes:
        return replace(row, things=row.things + 1)

    @context.query_handler
    async def everywhere(query: Everywhere, read: Reader) -> list[int]:
        count, weight = await read.get(Count, query.shelf), await read.get(Weight, query.shelf)
        other, times = await read.get(OtherCount, query.shelf), await read.get(OtherTimes, query.shelf)
        return [row.things if row else 0 for row in (count, other, times)] + [weight.total if weight else 0]

    return context


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({OnShelf: "sqlite:one.db"}, r"by partition, as store is"),
        ({OnShelf: {"hooli": "memory:"}}, r"no partition 'hooli'"),
        ({OnAllShelves: {ACME: "memory:"}}, r"OnAllShelves: it is not folded in the partition 'acme', but in '\*'"),
        ({OnShelf: {"*": "memory:"}}, r"OnShelf: it is not folded in the partition '\*', but in 'acme', 'globex'"),
        ({OnShelf: {ACME: "sqlite:one.db", GLOBEX: "sqlite:one.db"}}, r"'acme' and 'globex' cannot be kept in one"),
        ({OnShelf: {ACME: "sqlite:{}/rows.db"}}, r"'acme' and 'globex' cannot be kept in one"),
    ],
)
async def test_what_cannot_be_sent_from_partitions_is_refused(sent: Any, told: str, tmp_path: Path) -> None:
    """Two do not share a read store, for their read models have the same names; and what is said is read."""
    sent = {model: _in(tmp_path, places) for model, places in sent.items()}
    stores, rows = {ACME: "memory:", GLOBEX: "memory:", "*": "memory:"}, {GLOBEX: f"sqlite:{tmp_path}/rows.db"}
    with pytest.raises(ConfigurationError, match=told):
        await Application(warehouses(), partition_by=TenantId, store=stores, read_store=rows, read_stores=sent).open()


def _in(folder: Path, places: Any) -> Any:
    if isinstance(places, dict):
        return {name: url.format(folder) for name, url in places.items()}
    return places


# ── what does not fit ────────────────────────────────────────────────────────


class Unfed(ReadModel):
    shelf: Key[ShelfId]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({Unfed: "memory:"}, r"no projection of this application feeds Unfed; there are shelves\.Count"),
        ({"Counts": "memory:"}, r"feeds 'Counts'"),
        ("memory:", r"maps read models to URLs"),
        ({Count: "memory:", "shelves.Count": "memory:"}, r"names shelves\.Count twice"),
        ({Count: []}, r"of shelves\.Count: give a URL"),
        ({Count: ""}, r"of shelves\.Count: give a URL"),
        ({Count: ["memory:", "memory:"]}, r"names one place twice"),
        ({Count: {"fr": "memory:"}}, r"by partition, and there are none"),
        ({Count: "oracle:x"}, r"no store for the URL"),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_start(sent: Any, told: str, tmp_path: Path) -> None:
    """And nothing is opened."""
    with pytest.raises(ConfigurationError, match=told):
        await Application(shelves(), store=f"sqlite:{tmp_path}/events.db", read_stores=sent).open()
    assert not [*tmp_path.iterdir()]


async def test_subscribers_beside_events_that_are_kept_are_not_delivered_to_from_memory(tmp_path: Path) -> None:
    """All of the history would be delivered again by each process that starts. Who delivers nothing may look."""
    store, context, delivered = f"sqlite:{tmp_path}/events.db", shelves(), list[int]()

    @context.subscriber
    async def tell(events: Sequence[tuple[Putting, EventContext]]) -> None:
        delivered.extend(about.position for _, about in events)

    in_memory = Application(context, store=store, read_store="memory:")
    with pytest.raises(ConfigurationError, match=r"deliver the whole history to shelves\.tell.*read_stores="):
        await in_memory.open()
    async with Application(context, store=store, read_store="memory:", projecting=False) as looking:
        await looking.execute(Put(shelf=A, weight=1))
    for _ in range(2):
        read_stores: ReadStores = dict.fromkeys((Count, Weight, Heaviest), "memory:")
        async with asyncio.timeout(WAIT_S), Application(context, store=store, read_stores=read_stores) as app:
            seen = 0
            while (await app.status()).subscribers[0].checkpoint < 1:
                seen = await app.partition().read_store.wait_for_change(seen, WAIT_S)
    assert delivered == [1]
    async with Application(context, read_store="memory:"):
        pass  # neither is kept: it begins with the history
