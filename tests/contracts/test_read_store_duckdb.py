"""What DuckDB's read store says beyond the contract: its file and owner, sums in SQL, and what SQL cannot do (G13)."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb as driver
import pytest

from diptych.adapters.connect import connect_event_store, connect_process_store, connect_read_store
from diptych.adapters.duckdb import read_snapshot, read_writes
from diptych.adapters.duckdb import read_store as duckdb
from diptych.adapters.duckdb.read_store import DuckdbReadStore
from diptych.clock import SystemClock
from diptych.errors import ConfigurationError, NewerStore, Overloaded, StoreUnavailable
from diptych.read_side.read_store import Column, ColumnKind, Failed, SliceWrite, Table, Written
from diptych.testing.contracts.read_store_cases import (
    BY_COURSE,
    NAME,
    SEATS,
    build,
    create,
    one_column,
    place,
    rows_of,
    write,
)
from tests.contracts.read_store_sql import COUNTED, opened, select

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"
PRICES = Table(
    "shop_prices",
    (
        Column("id", ColumnKind.INTEGER),
        Column("price", ColumnKind.DECIMAL, nullable=True),
        Column("lasts", ColumnKind.DURATION),
        Column("since", ColumnKind.DATETIME),
        Column("data", ColumnKind.DOCUMENT),
    ),
    key=("id",),
)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[DuckdbReadStore]:
    async with opened(duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}")) as store:
        yield store


def priced(*prices: str | None) -> list[tuple[Any, ...]]:
    return [
        (n, None if price is None else Decimal(price), dt.timedelta(hours=n), NOON, '{"n": 1}')
        for n, price in enumerate(prices)
    ]


# ── URLs and files ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["duckdb:", "duckdb::memory:"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ConfigurationError, match="memory:"):
        connect_read_store(url)


def test_events_are_not_kept_in_duckdb() -> None:
    """Neither they nor what processes keep: the error says where the URL belongs."""
    with pytest.raises(ConfigurationError, match="read_store="):
        connect_event_store("duckdb:shop.duckdb", SystemClock())
    with pytest.raises(ConfigurationError, match="read_store="):
        connect_process_store("duckdb:shop.duckdb")


async def test_a_second_process_is_told_who_owns_the_file(store: DuckdbReadStore, tmp_path: Path) -> None:
    """With the owner's number and what to do; another that only reads is refused as well."""
    await build(store, SEATS, [("a", 1)])
    program = f"""
import asyncio, sys
from diptych.adapters.duckdb.read_store import connect
from diptych.errors import StoreUnavailable
store = connect({f"duckdb:{tmp_path / 'read.duckdb'}"!r})
try:
    asyncio.run(store.open())
except StoreUnavailable as error:
    sys.exit(str(error))
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    assert "belongs to the process" in done.stderr
    assert "read a copy" in done.stderr
    assert await rows_of(store) == [("a", 1)]


async def test_a_second_store_in_this_process_is_refused(store: DuckdbReadStore, tmp_path: Path) -> None:
    """It would fold the same rows unnoticed; once the first is closed, it may."""
    other = duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}")
    with pytest.raises(StoreUnavailable, match="open in this process already"):
        await other.open()
    await store.close()
    async with opened(other):
        assert await other.generations() == []


async def test_a_newer_file_is_refused_and_left_alone(store: DuckdbReadStore, tmp_path: Path) -> None:
    """The error has both versions."""
    await store.close()
    with driver.connect(tmp_path / "read.duckdb") as connection:
        connection.execute("UPDATE diptych.store SET version = version + 1")
    with pytest.raises(NewerStore) as refusal:
        await store.open()
    assert refusal.value.found == refusal.value.known + 1


async def test_another_kind_of_database_is_refused(tmp_path: Path) -> None:
    """A file that something else made is not made a read store; what is no database is unavailable."""
    with driver.connect(tmp_path / "theirs.duckdb") as connection:
        connection.execute("CREATE TABLE theirs (a INTEGER)")
    (tmp_path / "text.duckdb").write_text("no database at all " * 1_000)
    for name, reason in (("theirs", "no read store of Diptych"), ("text", "text.duckdb"), ("missing/it", "missing")):
        with pytest.raises(StoreUnavailable, match=reason):
            await duckdb.connect(f"duckdb:{tmp_path / f'{name}.duckdb'}").open()


async def test_what_duckdb_refuses_fails_its_slice_alone(
    store: DuckdbReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no savepoints: the slices are written one by one then, and the others hold."""
    monkeypatch.setattr(read_writes, "row_refusal", lambda *_: None)
    made = [await create(store, SEATS, "one"), await create(store, one_column(ColumnKind.INTEGER), "two")]
    writes = [SliceWrite(made[0], place(1), [("a", 1)]), SliceWrite(made[1], place(1), [(1, "no number")])]
    first, second = await store.write(writes)
    assert isinstance(first, Written)
    assert isinstance(second, Failed)
    assert "no number" in second.reason
    assert await rows_of(store, name="one") == [("a", 1)]
    assert [found.checkpoint.position for found in await store.generations()] == [1, 0]


async def test_what_is_kept_outlives_the_process(store: DuckdbReadStore) -> None:
    """Until when, with its rows and however it is split; SQL shows what answers, and the catalog tells them apart."""
    table = Table("notes", (Column("id", ColumnKind.TEXT, searchable=True),), key=("id",))
    first = await build(store, table, [("an old note",)])
    second = await write(store, await create(store, table, live=False), upserts=[("a new note",)])
    assert await store.switch(NAME, second.number, keep_s=3_600)
    assert await store.split(NAME, first.number, 2)
    before = await store.generations()
    assert [found.number for found in before if found.kept_until is not None] == [first.number] * 2
    await store.close()
    await store.open()
    await store.drop_overdue()
    assert await store.generations() == before
    async with store.snapshot() as snapshot:
        kept, _ = await snapshot.kept(NAME, first.fingerprint)
        assert await snapshot.search(NAME, "note", 10, (), kept.number) == [("an old note",)]
    text = "SELECT id, number FROM notes, diptych.generations WHERE live"
    columns = {"id": ColumnKind.TEXT, "number": ColumnKind.INTEGER}
    assert await select(store, text, **columns) == [{"id": "a new note", "number": second.number}]


# ── copies for others ────────────────────────────────────────────────────────


def copied(path: Path) -> list[Any]:
    """What another program reads of a copy; this process may, since the copy is not the file that it owns."""
    with driver.connect(path, read_only=True) as connection:
        rows = connection.execute("SELECT * FROM school_seats ORDER BY course").fetchall()
        return [*rows, *connection.execute("SELECT position FROM diptych.generations").fetchall()]


async def test_others_read_a_copy_that_is_replaced(tmp_path: Path) -> None:
    """At once, after each period with a change, and at the end."""
    copy = tmp_path / "for others.duckdb"
    url = f"duckdb:{tmp_path / 'read.duckdb'}?copy={copy}"
    async with opened(duckdb.connect(url)) as store:
        await build(store, SEATS, [("a", 1)])
    assert copied(copy) == [("a", 1), (1,)]
    async with opened(duckdb.connect(url + "&copy_every_s=0.01")) as store:
        (generation,) = await store.generations()
        await write(store, generation, upserts=[("b", 2)])
        while copied(copy)[-1] != (2,):
            await asyncio.wait([asyncio.create_task(store.generations())])
    assert copied(copy) == [("a", 1), ("b", 2), (2,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["for others.duckdb", "read.duckdb"]


async def test_a_copy_that_cannot_be_made_is_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The store goes on, and what a killed process has left of one is no reason."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "read.duckdb.copying").mkdir()
    (tmp_path / "read.duckdb.copying" / "copy.duckdb").write_text("half a file")
    async with opened(duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}?copy={tmp_path / 'taken'}")) as store:
        await build(store, SEATS, [("a", 1)])
        assert await rows_of(store) == [("a", 1)]
    assert "no copy was made for others to read" in caplog.text
    with pytest.raises(ConfigurationError, match="there is no folder"):
        await duckdb.connect(f"duckdb:{tmp_path / 'read.duckdb'}?copy={tmp_path / 'missing' / 'c'}").open()


@pytest.mark.parametrize("query", ["copies=a", "copy=", "copy_every_s=3", "copy=a&copy_every_s=0", "copy=read.duckdb"])
def test_what_follows_the_path_is_checked(query: str) -> None:
    """The error says what may be there."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        duckdb.connect(f"duckdb:read.duckdb?{query}")


# ── SQL ──────────────────────────────────────────────────────────────────────


async def test_decimals_add_up_in_sql(store: DuckdbReadStore) -> None:
    """Exactly; a column read as it is keeps its zeros with its exponent; durations and documents are DuckDB's own."""
    await build(store, PRICES, priced("0.10", "0.20", None, "12345678901234567890123456.000000000001"))
    text = "SELECT sum(price) AS total, sum(lasts) AS lasting, max(since) AS since FROM shop_prices WHERE id < ?"
    (found,) = await select(
        store, text, 3, total=ColumnKind.DECIMAL, lasting=ColumnKind.DURATION, since=ColumnKind.DATETIME
    )
    assert found == {"total": Decimal("0.3"), "lasting": dt.timedelta(hours=3), "since": NOON}
    (found,) = await select(store, "SELECT sum(price) AS total FROM shop_prices", total=ColumnKind.DECIMAL)
    assert found == {"total": Decimal("12345678901234567890123456.300000000001")}
    (found,) = await select(
        store,
        "SELECT price, price__exponent, (data ->> 'n')::BIGINT AS n FROM shop_prices WHERE price = ?",
        Decimal("0.1"),
        price=ColumnKind.DECIMAL,
        n=ColumnKind.INTEGER,
    )
    assert (str(found["price"]), found["n"]) == ("0.10", 1)


@pytest.mark.parametrize("price", ["100000000000000000000000000", "0.0000000000001", "-1E+999", "1E-999"])
async def test_a_decimal_that_sql_has_no_room_for_is_no_silent_gap(store: DuckdbReadStore, price: str) -> None:
    """The row is kept exactly; a sum over it is an error, one without it is not."""
    await build(store, PRICES, priced("1", price))
    async with store.snapshot() as snapshot:
        assert (await snapshot.get_many(NAME, [(1,)]))[(1,)][1] == Decimal(price)
    with pytest.raises(ConfigurationError, match="does not fit"):
        await select(store, "SELECT ? AS c", Decimal(price), c=ColumnKind.DECIMAL)
    with pytest.raises(ConfigurationError, match="more than 26 digits before the point or 12 behind"):
        await select(store, "SELECT sum(price) AS total FROM shop_prices", total=ColumnKind.DECIMAL)
    text = "SELECT sum(price) AS total FROM shop_prices WHERE id = 0"
    assert await select(store, text, total=ColumnKind.DECIMAL) == [{"total": Decimal(1)}]


WRONG: Sequence[tuple[str, tuple[Any, ...], str]] = (
    ("SELEC 1", (), "syntax error"),
    ("SELECT 1 AS other", (), "selects other, but not c"),
    ("SELECT ? AS c", (object(),), "cannot be <object"),
    ("SELECT missing FROM school_seats", (), 'column "missing" not found'),
    ("SELECT 1 AS c; SELECT 2 AS c", (), "one SELECT"),
    ("SELECT ? AS c", (), "parameter"),
    ("", (), "one SELECT"),
    ("SELECT 'text' AS c", (), "column c: 'text' is not of the kind integer"),
    ("SELECT TRUE AS c", (), "column c: True is not of the kind integer"),
    ("SELECT NULL AS c", (), "column c: None"),
    ("SELECT error('no') AS c", (), "no"),
    ("ROLLBACK", (), "one SELECT"),
    ("SET threads = 1", (), "one SELECT"),
    ("INSERT INTO school_seats__g1 VALUES ('x', 1) RETURNING 1 AS c", (), "one SELECT"),
    ("WITH x AS (SELECT 1) DELETE FROM school_seats__g1", (), "one SELECT"),
    ("COPY school_seats TO '/tmp/diptych-stolen.csv'", (), "one SELECT"),
    ("ATTACH '/tmp/diptych-other.duckdb'", (), "one SELECT"),
    ("SELECT * FROM read_text('/etc/hostname')", (), "disabled by configuration"),
    ("SELECT nextval('diptych.retry_numbers') AS c", (), "read-only"),
)


@pytest.mark.parametrize(("statement", "parameters", "reason"), WRONG)
async def test_sql_that_is_wrong_says_what(
    store: DuckdbReadStore, statement: str, parameters: tuple[Any, ...], reason: str
) -> None:
    """The reason is DuckDB's or ours, and nothing is changed; another snapshot shows what is there."""
    await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        with pytest.raises((ConfigurationError, StoreUnavailable), match=reason):
            await snapshot.sql(statement, parameters, COUNTED)
    assert await rows_of(store) == [("a", 1)]


async def test_a_snapshot_ends_with_sql_that_failed(store: DuckdbReadStore) -> None:
    """DuckDB gives up its transaction: nothing more is shown, since it would be of another moment."""
    generation = await build(store, SEATS, [("a", 1)])
    async with store.snapshot() as snapshot:
        assert await snapshot.find(NAME, (), BY_COURSE, 10) == [("a", 1)]
        with pytest.raises(ConfigurationError, match="cannot be run"):
            await snapshot.sql("SELECT missing FROM school_seats", (), COUNTED)
        await write(store, generation, upserts=[("b", 2)])
        with pytest.raises(StoreUnavailable, match="ended with a read that failed"):
            await snapshot.find(NAME, (), BY_COURSE, 10)


async def test_sql_that_runs_too_long_is_stopped(store: DuckdbReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit it ends with the limit's name, and its connection is fit for more."""
    monkeypatch.setattr(read_snapshot, "READ_S_MAX", 0.05)
    with pytest.raises(Overloaded, match="READ_S_MAX"):
        await select(store, ENDLESS, c=ColumnKind.INTEGER)
    assert await select(store, "SELECT 1 AS c", c=ColumnKind.INTEGER) == [{"c": 1}]


async def test_sql_that_nobody_waits_for_is_stopped(store: DuckdbReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is cancelled leaves nothing running, or closing would wait for it."""
    monkeypatch.setattr(read_snapshot, "READ_S_MAX", 3_600)
    asking = asyncio.create_task(select(store, ENDLESS, c=ColumnKind.INTEGER))
    await asyncio.wait([asking], timeout=0.2)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert await select(store, "SELECT 1 AS c", c=ColumnKind.INTEGER) == [{"c": 1}]
    await asyncio.wait_for(store.close(), 10)
