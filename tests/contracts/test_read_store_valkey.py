"""What Valkey does beyond the contract of read stores: what it refuses, how it finds rows, how long it keeps what."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.valkey import index_scan, read_snapshot, read_store, read_writes
from diptych.adapters.valkey.connection import parse_url
from diptych.adapters.valkey.read_store import ValkeyReadStore, connect
from diptych.errors import ConfigurationError, NewerStore, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side.read_store import (
    BlockedKey,
    Column,
    ColumnKind,
    Comparison,
    Discard,
    Fenced,
    Filter,
    Order,
    ReadSnapshot,
    RowsAsked,
    SliceWrite,
    Table,
    Written,
)
from diptych.testing.contracts.read_store import WAIT_S_MAX
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    NAME,
    SEATS,
    build,
    create,
    place,
    rows_of,
    stored_generation,
    write,
)
from tests.contracts.read_store_sql import opened
from tests.valkey_server import new_read_store, own_server, shared_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

CITIES = Table(
    "cities",
    (
        Column("name", ColumnKind.TEXT),
        Column("country", ColumnKind.TEXT, indexed=True),
        Column("people", ColumnKind.INTEGER, indexed=True),
        Column("mayor", ColumnKind.TEXT, nullable=True),
    ),
    key=("name",),
)
BY_NAME = (Order("name"),)


@pytest.fixture
def url() -> str:
    return new_read_store()


@pytest.fixture
async def store(url: str) -> AsyncIterator[ValkeyReadStore]:
    async with opened(connect(url)) as store:
        yield store


def keys_of(url: str) -> int:
    """How many keys there are under the prefix of a URL."""
    words = ("EVAL", "return #redis.call('KEYS', ARGV[1])", "0", parse_url(url).prefix + "*")
    return int(shared_server().command(*words)[1:])


# ── what is refused ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "maxmemory-policy allkeys-lru.*noeviction"),
        (("--maxmemory-policy", "volatile-ttl"), "maxmemory-policy volatile-ttl.*noeviction"),
        (("--cluster-enabled", "yes"), "cluster"),
    ],
)
async def test_a_server_that_would_lose_rows_silently_is_refused(setting: tuple[str, str], named: str) -> None:
    """Opening says which setting, and what it has to be."""
    with own_server(*setting) as server:
        store = connect(server.url())
        with pytest.raises(ConfigurationError, match=named):
            await store.open()
        await store.close()


async def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    """The text names the server, and no password."""
    store = connect("valkey://ann:secret@localhost:1/0?prefix=shop")
    with pytest.raises(StoreUnavailable, match=r"localhost:1") as refused:
        await store.open()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("valkey:", "valkey://host:6379/0"),
        ("valkey://host/name", "number of the database"),
        ("valkey://host?prefix=a b", "a prefix has"),
        ("valkey://ann:secret@host?protocol=3", "'protocol'"),
        ("valkey://host:port", "cannot be read"),
        ("valkey+unix:", "valkey\\+unix:///"),
    ],
)
def test_a_url_that_cannot_be_read_says_why(url: str, named: str) -> None:
    """With what it should look like, and without its password."""
    with pytest.raises(ConfigurationError, match=named) as refused:
        connect(url)
    assert "secret" not in str(refused.value)


async def test_a_newer_format_is_refused(url: str) -> None:
    """As any store that a newer Diptych wrote."""
    shared_server().command("HSET", f"{parse_url(url).prefix}:store", "format", str(read_store.FORMAT + 1))
    store = connect(url)
    with pytest.raises(NewerStore):
        await store.open()


async def test_sql_is_refused(store: ValkeyReadStore) -> None:
    """With where a read model could be kept instead."""
    async with store.snapshot() as snapshot:
        with pytest.raises(ConfigurationError, match="no SQL.*sqlite: or postgresql:"):
            await snapshot.sql("SELECT 1", (), {})


async def test_what_is_decided_by_hand_is_refused_where_nothing_is_written_down() -> None:
    """Without an append-only file it would be lost with the server's process; everything else goes on."""
    with own_server() as server:
        async with opened(connect(server.url())) as store:
            generation = await build(store, SEATS, [("a", 1)])
            discard = Discard(NAME, '["a"]', Position(2))
            with pytest.raises(ConfigurationError, match="appendonly"):
                await store.write([SliceWrite(generation, place(2), discard=[discard], by_hand=True)])
            assert await store.discards(NAME) == []
            await write(store, generation, upserts=[("a", 2)])


async def test_past_the_memory_it_may_use_nothing_is_half_written() -> None:
    """A write is refused whole, before it has begun; queries go on."""
    with own_server("--maxmemory", "16mb") as server:
        async with opened(connect(server.url())) as store:
            generation = await build(store, ARTICLES, [("a", 0, "x" * 1_000_000, None)])
            with pytest.raises(StoreUnavailable, match="maxmemory"):  # noqa: PT012  # whichever is the first too many
                for n in range(40):
                    generation = await write(store, generation, upserts=[(f"b{n}", n, "x" * 1_000_000, None)])
            assert await stored_generation(store) == generation
            position = generation.checkpoint.position
            async with store.snapshot() as snapshot:
                assert await snapshot.count(NAME, ()) == position


# ── finding rows ─────────────────────────────────────────────────────────────


async def test_what_has_no_index_is_looked_for_up_to_a_limit(
    store: ValkeyReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past it the error names what was asked, and `Indexed`; what has an index is found however many rows there are."""
    monkeypatch.setattr(read_snapshot, "SCANNED_ROWS_MAX", 100)
    monkeypatch.setattr(index_scan, "FEW_ROWS", 50)
    monkeypatch.setattr(read_snapshot, "PAGE_ROWS", 50)
    monkeypatch.setattr(read_snapshot, "FIRST_PAGE_ROWS", 10)
    rows = [(f"c{n:04}", "FR" if n % 100 == 0 else "DE", n, None if n % 50 else "ann") for n in range(1_000)]
    await build(store, CITIES, rows)
    async with store.snapshot() as snapshot:
        mayor = [Filter("mayor", Comparison.EQUAL, "ann")]
        for order in (BY_NAME, (Order("mayor"), *BY_NAME)):
            with pytest.raises(ConfigurationError, match=r"by mayor.*Indexed"):
                await snapshot.find(NAME, mayor, order, 10)
        with pytest.raises(ConfigurationError, match="Indexed"):
            await snapshot.count(NAME, mayor)
        assert await snapshot.find(NAME, mayor, BY_NAME, 1) == rows[:1]
        french = [Filter("country", Comparison.EQUAL, "FR")]
        assert await snapshot.find(NAME, [*french, *mayor], BY_NAME, 50) == rows[::100]
        assert await snapshot.find(NAME, french, (Order("mayor"), *BY_NAME), 50) == rows[::100]
        assert await snapshot.count(NAME, french) == 10
        assert await snapshot.count(NAME, ()) == 1_000
        assert await snapshot.count(NAME, [Filter("people", Comparison.AT_LEAST, 300)]) == 700
        german = [Filter("country", Comparison.EQUAL, "DE")]
        largest = (Order("people", descending=True), Order("name"))
        assert await snapshot.find(NAME, german, largest, 3) == rows[:-4:-1]
        assert await snapshot.find(NAME, german, largest, 3, (500, "c0500")) == rows[499:496:-1]
        assert await snapshot.find(NAME, (), BY_NAME, 3, ("c0500",)) == rows[501:504]
        with pytest.raises(ConfigurationError, match="Indexed"):
            await snapshot.count(NAME, [*german, *mayor])


async def test_indexes_keep_step_with_the_rows(store: ValkeyReadStore) -> None:
    """What a row was before is found and counted no more, and takes no place of another one in a page."""
    generation = await build(store, CITIES, [(f"c{n}", "FR", n, None) for n in range(6)])
    moved = [(f"c{n}", "DE", 10 - n, None) for n in range(3)]
    await write(store, generation, upserts=moved, deletes=[("c3",)])
    async with store.snapshot() as snapshot:
        french = [Filter("country", Comparison.EQUAL, "FR")]
        assert await snapshot.count(NAME, french) == 2
        assert await snapshot.count(NAME, [Filter("country", Comparison.EQUAL, "DE")]) == 3
        assert await snapshot.count(NAME, [Filter("people", Comparison.LESS_THAN, 6)]) == 2
        by_people = (Order("people"), Order("name"))
        assert [row[2] for row in await snapshot.find(NAME, (), by_people, 3)] == [4, 5, 8]
        assert [row[0] for row in await snapshot.find(NAME, french, BY_NAME, 5)] == ["c4", "c5"]


# ── moments ──────────────────────────────────────────────────────────────────


async def test_a_snapshot_whose_past_is_lost_says_so(store: ValkeyReadStore, url: str) -> None:
    """It never shows rows of two moments: neither where what was is gone, nor where the store was emptied."""
    generation = await build(store, SEATS, [("a", 1), ("b", 1)])
    for lose in ("undo", "change"):
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, [("a",)]) == {("a",): ("a", generation.checkpoint.position)}
            position = generation.checkpoint.position + 1
            generation = await write(store, generation, upserts=[("a", position), ("b", position)])
            shared_server().command("DEL", f"{parse_url(url).prefix}:{lose}")
            with pytest.raises(StoreUnavailable, match="ask again"):
                await snapshot.get_many(NAME, [("b",)])


async def test_a_snapshot_shows_what_answered_then(store: ValkeyReadStore) -> None:
    """Also of a read model that it has not read before another build of it was switched to, and was written."""
    await build(store, SEATS, [("a", 1)], "other")
    old = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert len(await snapshot.slices("other")) == 1
        new = await write(store, await create(store, SEATS, live=False), upserts=[("b", 2)])
        assert await store.switch(NAME, new.number)
        await write(store, new, upserts=[("c", 3)])
        assert await snapshot.slices(NAME) == (old,)
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
        assert await snapshot.slices(NAME, new.number) == ()


async def test_a_snapshot_shows_what_was_kept_then(store: ValkeyReadStore, url: str) -> None:
    """Also one that has not asked for it before it was gone back to, and then dropped; rows and epochs of then."""

    @contextlib.asynccontextmanager
    async def begun() -> AsyncIterator[ReadSnapshot]:
        async with store.snapshot() as snapshot:
            assert len(await snapshot.slices("other")) == 1
            yield snapshot

    await build(store, SEATS, [("a", 1)], "other")
    (first,) = await store.create_generation(NAME, "old", SEATS, place(0), live=True)
    first = await write(store, first, upserts=[("a", 1)])
    async with begun() as none:
        (second,) = await store.create_generation(NAME, "new", SEATS, place(0), live=False)
        second = await write(store, second, upserts=[("b", 2)])
        assert await store.switch(NAME, second.number, keep_s=WAIT_S_MAX)
        (kept,) = [each for each in await store.generations() if each.kept_until is not None]
        async with begun() as old:
            kept = await write(store, kept, upserts=[("a", 9)])
            assert await store.switch(NAME, kept.number, keep_s=WAIT_S_MAX)
            back = await write(store, kept, upserts=[("c", 3)])
            assert back == await stored_generation(store), "it is not kept any more"
            async with begun() as new:
                await store.drop_generation(NAME, second.number)
                assert await none.kept(NAME, "old") == await none.kept(NAME, "new") == ()
                assert await none.slices(NAME) == (first,)
                (found,) = await old.kept(NAME, "old")
                assert found.kept_until is not None
                assert (found.epoch, found.checkpoint) == (first.epoch + 1, first.checkpoint)
                assert await old.find(NAME, (), BY_COURSE, 10, None, found.number) == [("a", 1)]
                assert await old.kept(NAME, "new") == ()
                (found,) = await new.kept(NAME, "new")
                assert await new.find(NAME, (), BY_COURSE, 10, None, found.number) == [("b", 2)]
                assert await new.kept(NAME, "old") == ()
    assert shared_server().command("HGET", f"{parse_url(url).prefix}:live:{NAME}", "kept") == b"$-1"


async def test_a_cancellation_that_the_driver_swallows_is_raised(store: ValkeyReadStore) -> None:
    """Whoever is cancelled while the server is asked does not go on."""
    begun = asyncio.Event()

    async def asks() -> str:
        async with store._opened()._failures():
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):  # as the driver does now and then
                await asyncio.Event().wait()
        return "went on"

    asking = asyncio.create_task(asks())
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_what_was_is_kept_only_while_a_snapshot_needs_it(store: ValkeyReadStore, url: str) -> None:
    """A write after the last of them has ended takes it away."""
    undo = ("LLEN", f"{parse_url(url).prefix}:undo")
    generation = await build(store, SEATS, [("a", 1)])
    generation = await write(store, generation, upserts=[("a", 2)])
    assert shared_server().command(*undo) == b":0"
    async with store.snapshot() as first:
        assert await first.count(NAME, ()) == 1
        generation = await write(store, generation, upserts=[("a", 3)])
        async with store.snapshot() as second:
            assert await second.get_many(NAME, [("a",)]) == {("a",): ("a", 3)}
            generation = await write(store, generation, upserts=[("a", 4)])
            assert shared_server().command(*undo) == b":2"
            assert await first.get_many(NAME, [("a",)]) == {("a",): ("a", 2)}
    await store.load([RowsAsked(generation, [("a",)])])  # tells which are over
    await write(store, generation, upserts=[("a", 5)])
    assert shared_server().command(*undo) == b":0"


async def test_one_that_ended_without_a_word_is_forgotten(
    store: ValkeyReadStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed does not make the server keep the past for ever."""
    monkeypatch.setattr(read_store, "SNAPSHOT_S_MAX", 0)
    generation = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert await snapshot.count(NAME, ()) == 1
        await write(store, generation, upserts=[("a", 2)])
        assert shared_server().command("LLEN", f"{parse_url(url).prefix}:undo") == b":0"
        with pytest.raises(StoreUnavailable, match="SNAPSHOT_S_MAX"):
            await snapshot.get_many(NAME, [("a",)])


async def test_what_was_dropped_is_removed_when_no_snapshot_shows_it(store: ValkeyReadStore, url: str) -> None:
    """Its rows and indexes, blocked keys and traces: nothing of it is left."""
    articles = [(f"a{n}", n, "tea and coffee", None) for n in range(2_500)]
    generation = await build(store, ARTICLES, articles)
    generation = await write(store, generation, block=[BlockedKey(NAME, "[]", Position(1), "boom", 1, "trace")])
    async with store.snapshot() as snapshot:
        assert len(await snapshot.slices(NAME)) == 1
        await store.drop_generation(NAME, generation.number)
        await store._sweep()
        assert await snapshot.search(NAME, "tea", 10_000) != []
        assert await snapshot.count(NAME, ()) == len(articles)
    await store.load([RowsAsked(generation, [("a0",)])])
    assert keys_of(url) > len(articles)
    await store._sweep()
    assert keys_of(url) < 10


# ── writes ───────────────────────────────────────────────────────────────────


async def test_many_slices_go_in_several_scripts(store: ValkeyReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many together as `SCRIPT_ROWS_MAX` allows; each is answered on its own, and is whole."""
    monkeypatch.setattr(read_writes, "SCRIPT_ROWS_MAX", 3)
    builds = [await create(store, SEATS, f"t{n}") for n in range(4)]
    sizes = (2, 2, 5, 1)
    writes = [
        SliceWrite(of, place(1), upserts=[(f"c{n}", n) for n in range(size)])
        for of, size in zip(builds, sizes, strict=True)
    ]
    assert [len(batch) for batch in read_writes.batches(writes)] == [1, 1, 1, 1]
    assert [len(batch) for batch in read_writes.batches(writes[::-1])] == [1, 1, 1, 1]
    assert [len(batch) for batch in read_writes.batches([writes[3], writes[0], writes[3]])] == [2, 1]
    stale = SliceWrite(builds[0], place(9), upserts=[("z", 9)])
    results = await store.write([*writes, stale])
    assert [type(result) for result in results] == [Written] * 4 + [Fenced]
    for n, size in enumerate(sizes):
        assert len(await rows_of(store, name=f"t{n}")) == size


async def test_a_generation_of_another_fold_under_the_same_number_is_fenced(store: ValkeyReadStore, url: str) -> None:
    """After the store was emptied, numbers begin anew: who still writes the old one does not mix into the new."""
    (old,) = await store.create_generation(NAME, "old", SEATS, place(0), live=True)
    shared_server().command("EVAL", "for _, k in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', k) end",
                            "0", parse_url(url).prefix + "*")  # fmt: skip
    (new,) = await store.create_generation(NAME, "new", SEATS, place(0), live=True)
    assert (old.number, old.checkpoint, old.epoch) == (new.number, new.checkpoint, new.epoch)
    assert await store.write([SliceWrite(old, place(1), upserts=[("a", 1)])]) == [Fenced()]
    assert await rows_of(store, order=BY_COURSE) == []


# ── other processes, and the server's ────────────────────────────────────────


async def test_changes_of_other_processes_are_heard_of(store: ValkeyReadStore, url: str) -> None:
    """As soon as they are made."""
    async with opened(connect(url)) as other:
        waiting = asyncio.create_task(store.wait_for_change(store.changes, WAIT_S_MAX))
        await asyncio.wait([waiting], timeout=0)
        await create(other, SEATS)
        assert await asyncio.wait_for(waiting, WAIT_S_MAX * 2) > 0


async def test_a_server_that_was_started_anew_fences_everybody() -> None:
    """It may have lost what it acknowledged: whoever holds a lease is told to look where rows are."""
    with own_server("--appendonly", "yes", "--appendfsync", "always") as server:
        async with opened(connect(server.url())) as store:
            generation = await build(store, SEATS, [("a", 1)])
            assert (await store.lease("a", [generation.lease_key], WAIT_S_MAX)).epochs == {generation.lease_key: 0}
            server.kill()
            with pytest.raises(StoreUnavailable):
                await store.generations()
            server.start()
            assert (await store.lease("a", [generation.lease_key], WAIT_S_MAX)).epochs == {generation.lease_key: 1}
            assert await store.write([SliceWrite(generation, place(2))]) == [Fenced()]
            assert (await store.lease("a", [generation.lease_key], WAIT_S_MAX)).epochs == {generation.lease_key: 1}
            assert await rows_of(store) == [("a", 1)]


async def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(store: ValkeyReadStore) -> None:
    """As after each start of it."""
    generation = await build(store, SEATS, [("a", 1)])
    shared_server().command("SCRIPT", "FLUSH")
    await write(store, generation, upserts=[("a", 2)])
    assert await rows_of(store) == [("a", 2)]
