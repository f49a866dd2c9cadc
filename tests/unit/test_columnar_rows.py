"""Read models and events in typed columns: as Arrow, and as Parquet files, from any store and of one moment."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import random
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel, Value
from diptych.adapters.duckdb import staging
from diptych.adapters.duckdb.columnar_rows import export_rows, row_table
from diptych.application.dividing import ACROSS
from diptych.errors import Blocked, ConfigurationError, InvalidMessage, NotFresh, Overloaded, StoreUnavailable
from diptych.read_side import read_model_rows
from diptych.read_side.read_model import ExpiresAt
from diptych.read_side.read_store import Column, ColumnKind
from diptych.testing import ManualClock
from tests.opensearch_server import new_read_store as new_opensearch
from tests.postgres_server import in_thread, new_stores
from tests.split_orders import INK, PEN, AddressGiven, OrderPlaced, Place, Shipped, orders, placed, store
from tests.tenants import ACME, GLOBEX, OnAllShelves, OnShelf, Places, Sku, Stock, TenantId, warehouses
from tests.valkey_server import new_read_store as new_valkey

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.read_side.columnar_rows import ColumnarRows, RowSink

pytestmark = pytest.mark.anyio

LATER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class LotId(Identity): ...


class Grade(enum.StrEnum):
    FINE = "fine"
    POOR = "poor"


class Pallet(Value):
    shelf: int
    labels: tuple[str, ...] = ()


class Weigh(Command):
    lot: LotId
    units: int
    price: Decimal | None = None
    pallet: Pallet | None = None
    until: dt.datetime | None = None


class Weighed(Event):
    lot: LotId
    units: int
    price: Decimal | None
    pallet: Pallet | None
    until: dt.datetime | None


class Lot(ReadModel):
    lot: Key[LotId]
    units: int
    share: float
    sound: bool
    price: Decimal | None
    day: dt.date
    at: dt.datetime
    waited: dt.timedelta
    mark: bytes
    serial: UUID
    grade: Grade
    pallet: Pallet | None
    until: ExpiresAt[dt.datetime | None] = None


class LotOf(Query[Lot | None]):
    lot: LotId


def depot(slices: int = 1) -> BoundedContext:
    context = BoundedContext("depot")

    @context.command_handler
    def weigh(command: Weigh) -> Weighed:
        return Weighed(
            lot=command.lot, units=command.units, price=command.price, pallet=command.pallet, until=command.until
        )

    @context.projection(partitions=slices)
    def lots(row: Lot | None, event: Weighed) -> Lot:
        if event.units < 0:
            raise ValueError("less than nothing")
        return Lot(
            lot=event.lot,
            units=event.units + (0 if row is None else row.units),
            share=event.units / 8,
            sound=event.units > 1,
            price=event.price,
            day=NOON.date(),
            at=NOON.astimezone(dt.timezone(dt.timedelta(hours=2))),
            waited=dt.timedelta(seconds=1.5),
            mark=b"\x00\xff",
            serial=UUID(int=event.units),
            grade=Grade.FINE,
            pallet=event.pallet,
            until=event.until,
        )

    return context


async def weigh(app: Application, lot: str, units: int = 1, **fields: Any) -> None:
    await app.execute(Weigh(lot=LotId(lot), units=units, **fields))


class Interrupted:
    """Rows into which somebody breaks, once, when the first page is there."""

    def __init__(self, rows: ColumnarRows, breaks: Any) -> None:
        self._rows = rows
        self._breaks = breaks
        self.name, self.columns = rows.name, rows.columns
        self.pages = 0

    async def into(self, sink: RowSink) -> Mapping[str, str]:
        outer = self

        class Passing:
            async def begin(self, expected: int | None) -> None:
                await sink.begin(expected)

            async def take(self, rows: Sequence[Any]) -> None:
                outer.pages += 1
                await sink.take(rows)
                if outer.pages == 1:
                    await outer._breaks()

        return await self._rows.into(Passing())


@pytest.fixture(params=["memory", "sqlite", "postgres", "duckdb", "valkey", "opensearch"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """Events and read models, these in every store that there is."""
    if request.param == "postgres":
        return {"store": in_thread(new_stores())}
    if request.param == "memory":
        return {"store": "memory:"}
    of = {
        "sqlite": lambda: f"sqlite:{tmp_path}/rows.db",
        "duckdb": lambda: f"duckdb:{tmp_path}/rows.duckdb",
        "valkey": new_valkey,
        "opensearch": new_opensearch,
    }
    return {"store": f"sqlite:{tmp_path}/events.db", "read_store": of[request.param]()}


def test_columns_have_the_types_of_the_fields() -> None:
    """Whatever the rows are: the schema follows from the class."""

    async def schema() -> Any:
        async with Application(depot()) as app, row_table(app.read_model_rows(Lot, freshness="latest")) as table:
            return table.to_arrow().schema

    found = asyncio.run(schema())
    assert {field.name: str(field.type) for field in found} == {
        "lot": "string",
        "units": "int64",
        "share": "double",
        "sound": "bool",
        "price": "decimal128(38, 12)",
        "day": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "waited": "int64",
        "mark": "binary",
        "serial": "string",
        "grade": "string",
        "pallet": "string",
        "until": "timestamp[us, tz=UTC]",
    }


async def test_a_read_model_of_any_store_is_a_table_of_one_moment(
    stores: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in pages, it shows nothing of what is written meanwhile; its position says up to where it is."""
    monkeypatch.setattr(read_model_rows, "COPY_PAGE_ROWS", 2)
    async with Application(depot(), store=stores["store"], read_store=stores.get("read_store")) as app:
        for lot in ("a", "b", "c", "d", "e"):
            await weigh(app, lot, 3, price=Decimal("40.10"), pallet=Pallet(shelf=7, labels=("é",)))

        async def write() -> None:
            for lot in ("a", "e", "f"):
                await weigh(app, lot, 100)
            await app.projected()

        rows = Interrupted(app.read_model_rows(Lot, freshness="latest"), write)
        async with row_table(rows) as table:
            found = table.to_arrow().read_all().to_pylist()
            metadata = table.metadata
        assert rows.pages == 3
        assert (metadata["diptych.read_model"], metadata["diptych.position"]) == ("depot.Lot", "5")
        assert metadata["diptych.incomplete"] == "false"
        assert [row["lot"] for row in found] == ["a", "b", "c", "d", "e"]
        assert found[0] == {
            "lot": "a",
            "units": 3,
            "share": 0.375,
            "sound": True,
            "price": Decimal("40.10"),
            "day": NOON.date(),
            "at": NOON,
            "waited": 1_500_000,
            "mark": b"\x00\xff",
            "serial": str(UUID(int=3)),
            "grade": "fine",
            "pallet": '{"shelf":7,"labels":["é"]}',
            "until": None,
        }
        assert found[4]["units"] == 3
        assert await app.query(LotOf(lot=LotId("f")), after=metadata["diptych.token"]) is not None
        async with row_table(app.read_model_rows(Lot, after=metadata["diptych.token"])) as again:
            assert (again.count, again.metadata["diptych.position"]) == (6, "8")


async def test_a_file_of_a_read_model_says_what_it_shows(tmp_path: Path) -> None:
    """Both pyarrow and DuckDB read its columns, and the position in its metadata; nothing else is left beside it."""
    target, told = tmp_path / "it's.parquet", list[tuple[int, int | None]]()
    async with Application(depot(slices=3)) as app:
        for number in range(20):
            await weigh(app, f"lot {number:02}", number)
        count, metadata = await export_rows(
            app.read_model_rows(Lot, freshness="latest"), target, lambda *now: told.append(now)
        )
    assert (count, told[0], told[-1]) == (20, (0, 20), (20, 20))
    table = pq.read_table(target)
    assert table.column("units").to_pylist() == list(range(20))
    assert table.schema.metadata[b"diptych.position"] == b"20" == metadata["diptych.position_high"].encode()
    with duckdb.connect(":memory:") as connection:
        (types,) = connection.execute(f"SELECT list(typeof(COLUMNS(*)))[1] FROM '{tmp_path}/*.parquet'").fetchall()
    assert types[4] == "DECIMAL(38,12)"
    assert list(tmp_path.iterdir()) == [target]


async def test_rows_that_have_expired_are_left_out() -> None:
    """As a query leaves them out, at the moment of the table."""
    clock = ManualClock(NOON)
    async with Application(depot(), clock=clock) as app:
        await weigh(app, "a", until=NOON + dt.timedelta(hours=1))
        await weigh(app, "b", until=NOON + dt.timedelta(hours=3))
        clock.advance(dt.timedelta(hours=2))
        async with row_table(app.read_model_rows(Lot, freshness="latest")) as table:
            assert [row[0] for row in table.relation.fetchall()] == ["b"]


async def test_missing_events_of_a_blocked_key_are_told(store_url: str) -> None:
    """Where everything is asked for, they are an error."""
    async with Application(depot(), store=store_url) as app:
        await weigh(app, "a")
        await weigh(app, "b", -1)
        await app.projected()
        async with row_table(app.read_model_rows(Lot)) as table:
            assert (table.count, table.metadata["diptych.incomplete"]) == (1, "true")
        with pytest.raises(Blocked, match="less than nothing"):
            async with row_table(app.read_model_rows(Lot, freshness="latest")):
                pass


async def test_rows_that_are_not_there_are_told(tmp_path: Path) -> None:
    """Of a process that only looks, at a read model that nobody has built; and of a class that nothing feeds."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(depot(), store=url, projecting=False) as app:
        await weigh(app, "a")
    async with Application(depot(), store=url, projecting=False) as app:
        with pytest.raises(NotFresh):
            await export_rows(app.read_model_rows(Lot, freshness="latest", wait_s=0), tmp_path / "lots.parquet")
        with pytest.raises(InvalidMessage, match="0 to 60 seconds"):
            app.read_model_rows(Lot, wait_s=61)

        class Other(ReadModel):
            key: Key[str]

        with pytest.raises(ConfigurationError, match="no projection of this application feeds Other"):
            app.read_model_rows(Other)
    assert not list(tmp_path.glob("*parquet*"))


async def test_it_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot is held for ever."""
    monkeypatch.setattr(read_model_rows, "COPY_S_MAX", 0)
    async with Application(depot()) as app:
        await weigh(app, "a")
        with pytest.raises(Overloaded, match="COPY_S_MAX"):
            async with row_table(app.read_model_rows(Lot, freshness="latest")):
                pass


async def test_each_partition_has_tables_of_its_own(places: Places) -> None:
    """And those of rows across all are of what follows all."""
    stores = places(ACME, GLOBEX, ACROSS)
    async with Application(warehouses(), partition_by=TenantId, store=stores) as app:
        for tenant, units in ((ACME, 2), (GLOBEX, 3)):
            await app.execute(Stock(tenant=tenant, sku=Sku("ink"), units=units))
        await app.projected()
        found = {}
        for of, model in ((app.partition(ACME), OnShelf), (app.partition(GLOBEX), OnShelf), (app.across, OnAllShelves)):
            async with row_table(of.read_model_rows(model)) as table:
                found[of.name] = table.relation.fetchall()
        assert found == {ACME: [("ink", 2)], GLOBEX: [("ink", 3)], ACROSS: [("ink", 5)]}
        with pytest.raises(ConfigurationError, match="say which partition"):
            app.read_model_rows(OnShelf)


# ── decimals ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("price", ["1E-13", "1E+26", "-0.1234567890123"])
async def test_a_decimal_that_does_not_fit_is_no_gap_in_a_sum(tmp_path: Path, price: str) -> None:
    """It is an error that names it, and nothing is written; as text it is there exactly."""
    target = tmp_path / "lots.parquet"
    async with Application(depot()) as app:
        await weigh(app, "a", price=Decimal("1.50"))
        await weigh(app, "b", price=Decimal(price))
        rows = app.read_model_rows(Lot, freshness="latest")
        with pytest.raises(ConfigurationError, match=r"depot.Lot.price is Decimal.* does not fit DECIMAL\(38,12\)"):
            await export_rows(rows, target)
        assert not list(tmp_path.iterdir())
        await export_rows(rows, target, decimals="text")
    assert pq.read_table(target).column("price").to_pylist() == ["1.50", str(Decimal(price))]


# ── what takes them ──────────────────────────────────────────────────────────


class Given:
    """Rows of numbers, in any number of attempts."""

    name = "x.Number"
    columns = (Column("number", ColumnKind.INTEGER),)

    def __init__(self, *attempts: Sequence[int], stuck: asyncio.Event | None = None) -> None:
        self._attempts = attempts
        self._stuck = stuck

    async def into(self, sink: RowSink) -> Mapping[str, str]:
        for numbers in self._attempts:
            await sink.begin(len(numbers))
            await sink.take([(number,) for number in numbers])
        if self._stuck is not None:
            self._stuck.set()
            await asyncio.Event().wait()
        return {"diptych.position": "1"}


async def test_rows_that_are_read_again_are_there_once(tmp_path: Path) -> None:
    """What was taken of the attempt before is forgotten; pages may be of any size."""
    target = tmp_path / "numbers.parquet"
    count, _ = await export_rows(Given(range(7), range(12_345)), target)
    assert count == 12_345
    assert pq.read_table(target).column("number").to_pylist() == list(range(12_345))


async def test_an_export_of_rows_that_is_cancelled_leaves_what_was_there(tmp_path: Path) -> None:
    """Neither half a file nor a staging one; another to the same file is refused meanwhile."""
    target, stuck = tmp_path / "numbers.parquet", asyncio.Event()
    await export_rows(Given([1]), target)
    before = target.read_bytes()
    exporting = asyncio.create_task(export_rows(Given(range(20_000), stuck=stuck), target))
    await asyncio.wait_for(stuck.wait(), 10)
    assert len(list(tmp_path.iterdir())) > 1
    with pytest.raises(StoreUnavailable, match="already attached"):
        await export_rows(Given([2]), target)
    exporting.cancel()
    await asyncio.wait([exporting])
    assert exporting.cancelled()
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


async def test_long_rows_are_in_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is in memory as a whole while it is written; all are there, in order."""
    monkeypatch.setattr(staging, "ROW_GROUP_BYTES_MAX", 4_000_000)
    chance = random.Random(7)
    rows = [(number, chance.randbytes(1_000).hex()) for number in range(12_000)]

    class Long:
        name = "x.Long"
        columns = (Column("number", ColumnKind.INTEGER), Column("text", ColumnKind.TEXT))

        async def into(self, sink: RowSink) -> Mapping[str, str]:
            await sink.begin(None)
            for begin in range(0, len(rows), 250):
                await sink.take(rows[begin : begin + 250])
            return {}

    target = tmp_path / "long.parquet"
    await export_rows(Long(), target)
    file = pq.ParquetFile(target)
    assert file.metadata.num_row_groups > 3
    assert [tuple(row.values()) for row in file.read().to_pylist()] == rows
    assert list(tmp_path.iterdir()) == [target]


async def test_a_table_goes_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does its file; the stream of it is read a batch at a time."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with row_table(Given(range(200_000))) as table:
        assert list(tmp_path.iterdir())
        reader = pa.RecordBatchReader.from_stream(table)
        sizes = [len(batch) for batch in reader]
        assert sum(sizes) == 200_000 == table.count
        assert len(sizes) > 1
    assert not list(tmp_path.iterdir())


async def test_pyarrow_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but its reader is there without it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    async with row_table(Given([1])) as table:
        assert table.relation.fetchall() == [(1,)]
        with pytest.raises(ConfigurationError, match=r"pip install 'diptych\[arrow\]'"):
            table.to_arrow()


# ── events ───────────────────────────────────────────────────────────────────


async def event_rows(app: Application, event: type[Event], *columns: str, after: int = 0) -> tuple[list[Any], Any]:
    async with row_table(app.event_rows(event, after=after)) as table:
        return table.relation.project(", ".join(columns)).fetchall(), table.metadata


async def test_events_of_one_type_have_a_column_for_each_field(store_url: str) -> None:
    """Behind what the store knows of them, up to where the history is."""
    async with Application(depot(), store=store_url) as app:
        receipt = await app.execute(
            Weigh(lot=LotId("a"), units=2, price=Decimal("9.5"), pallet=Pallet(shelf=1)),
            actor="ada",
            command_id="w-1",
            reason="counted",
        )
        await weigh(app, "b", 3, until=NOON)
        async with row_table(app.event_rows(Weighed)) as table:
            names, found = table.relation.columns, table.relation.fetchall()
        assert names == [
            *("_position", "_ordinal", "_recorded_at", "_event_id", "_command_id", "_correlation_id", "_causation_id"),
            *("_actor", "_reason", "lot", "units", "price", "pallet", "until"),
        ]
        stored = {names[place]: value for place, value in enumerate(found[0])}
        assert (stored["_position"], stored["_ordinal"], stored["_command_id"]) == (receipt.position, 0, "w-1")
        assert (stored["_actor"], stored["_reason"]) == ("ada", "counted")
        assert found[0][9:] == ("a", 2, Decimal("9.5"), '{"shelf":1,"labels":[]}', None)
        assert found[1][9:] == ("b", 3, None, None, NOON)
        rows, metadata = await event_rows(app, Weighed, "lot", after=1)
        assert rows == [("b",)]
        assert (metadata["diptych.event"], metadata["diptych.after"]) == ("depot.Weighed", "1")
        assert (metadata["diptych.position"], metadata["diptych.version"]) == ("2", "1")


async def test_events_of_older_code_are_rows_of_todays(store_url: str) -> None:
    """Upcast, under former names, and the parts of what is stored as one event with their ordinals."""
    async with Application(orders(shipping=False), store=store_url) as app:
        await store(app.partition(), placed("pen", 250), placed("ink", 10, street="", former=True))
        await app.execute(Place(order=PEN, cents=7))
        found, metadata = await event_rows(app, OrderPlaced, "_position", "_ordinal", '"order"', "cents", "currency")
        assert found == [(1, 0, PEN, 250, "EUR"), (2, 0, INK, 10, "EUR"), (3, 0, PEN, 7, "EUR")]
        assert metadata["diptych.version"] == "3"
        found, _ = await event_rows(app, AddressGiven, "_position", "_ordinal", "lines")
        assert found == [(1, 1, '["Hafen 1","Germany"]')]
        found, metadata = await event_rows(app, Shipped, "_position")
        assert (found, metadata["diptych.position"]) == ([], "3")


async def test_events_that_were_pruned_are_rows_without_fields(store_url: str) -> None:
    """They have happened: they are counted, and told of."""
    context = BoundedContext("depot", events=[Weighed])

    @context.command_handler
    def weigh_one(command: Weigh) -> Weighed:
        return Weighed(lot=command.lot, units=command.units, price=None, pallet=None, until=None)

    async with Application(context, store=store_url) as app:
        await weigh(app, "a")
        await app.pruning.prune(Weighed, before=LATER)
        await weigh(app, "b", 5)
        found, metadata = await event_rows(app, Weighed, "_position", "lot", "units")
    assert found == [(1, None, None), (2, "b", 5)]
    assert metadata["diptych.pruned"] == "1"


async def test_what_cannot_be_a_column_is_told() -> None:
    """A number that is too large, with its place; and a field with the name of another column."""

    class Counted(Event):
        _position: int
        total: int

    class Large(Event):
        total: int

    class Count(Command):
        total: int

    context = BoundedContext("depot", events=[Counted])

    @context.command_handler
    def count(command: Count) -> Large:
        return Large(total=command.total)

    async with Application(context) as app:
        await app.execute(Count(total=1))
        await app.execute(Count(total=2**63))
        with pytest.raises(
            InvalidMessage, match="event at position 2, the column total cannot hold 9223372036854775808"
        ):
            await event_rows(app, Large, "total")
        with pytest.raises(ConfigurationError, match="Counted._position has the name of a column"):
            app.event_rows(Counted)
        with pytest.raises(ConfigurationError, match="Weighed is no event that this application knows"):
            app.event_rows(Weighed)


async def test_events_are_read_up_to_where_the_history_was(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is appended while they are read, which is for the next time."""
    monkeypatch.setattr("diptych.read_side.event_rows.PAGE_EVENTS", 2)
    async with Application(depot(), store=store_url) as app:
        for lot in ("a", "b", "c"):
            await weigh(app, lot)

        async def write() -> None:
            await weigh(app, "d")

        rows = Interrupted(app.event_rows(Weighed), write)
        async with row_table(rows) as table:
            assert (table.count, table.metadata["diptych.position"]) == (3, "3")
        assert rows.pages == 2
        found, _ = await event_rows(app, Weighed, "lot", after=3)
        assert found == [("d",)]
