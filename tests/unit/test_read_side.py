"""The read side, through the application: projections, freshness, blocked keys, rebuilds, queries."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Event,
    EventContext,
    Identity,
    Indexed,
    Key,
    NotFresh,
    Page,
    Query,
    Reader,
    ReadModel,
    Searchable,
    Value,
    at_least,
    one_of,
    replace,
    starts_with,
)
from diptych.errors import Blocked, HistoryDiverged, InvalidMessage, UnknownMessage
from diptych.event_store.event_query import ALL_EVENTS
from diptych.read_side.comparison import RowDifference
from diptych.read_side.query_limits import QueryTimedOut
from tests.parking import discard, parked, retry
from tests.school import CourseId, CoursesTaken, Enrolled, Seats, SeatsOf, StudentId

pytestmark = pytest.mark.anyio

PYTHON = CourseId("python")


class Enter(Command):
    course: CourseId
    student: StudentId


def entries(*projections: object) -> BoundedContext:
    """A context that appends what it is told, with the seats projection."""
    context = BoundedContext("school")

    @context.command_handler
    def enter(command: Enter) -> Enrolled:
        return Enrolled(course=command.course, student=command.student)

    return context


def with_seats() -> BoundedContext:
    context = entries()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 1)

    return context


def with_seats_by_ten() -> BoundedContext:
    """The same read model, folded by other code."""
    context = entries()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 10)

    return context


async def enter(app: Application, *courses: str) -> str:
    token = ""
    for course in courses:
        token = (await app.execute(Enter(course=CourseId(course), student=StudentId("ada")))).token
    return token


# ── freshness ────────────────────────────────────────────────────────────────


async def test_g7_a_token_is_waited_for(store_url: str) -> None:
    """A query after a receipt shows what its command wrote, however far the projection was."""
    async with Application(with_seats(), store=store_url) as app:
        for n in range(1, 20):
            receipt = await app.execute(Enter(course=PYTHON, student=StudentId(f"s{n}")))
            assert await app.query(SeatsOf(course=PYTHON), after=receipt) == Seats(course=PYTHON, taken=n)


async def test_g7_past_the_wait_the_answer_is_not_fresh_and_never_older(store_url: str) -> None:
    """Where nobody projects, the wait ends in `NotFresh`, which says how far behind it is."""
    async with Application(with_seats(), store=store_url, projecting=False) as app:
        token = await enter(app, "python", "python")
        with pytest.raises(NotFresh) as behind:
            await app.query(SeatsOf(course=PYTHON), after=token, wait_s=0.01)
        assert (behind.value.wanted, behind.value.reached) == (2, 0)
        assert await app.query(SeatsOf(course=PYTHON)) is None


async def test_g7_latest_shows_the_head_of_when_it_was_asked(store_url: str) -> None:
    """`freshness="latest"` waits for everything that is there."""
    async with Application(with_seats(), store=store_url) as app:
        await enter(app, *["python"] * 30)
        assert await app.query(SeatsOf(course=PYTHON), freshness="latest") == Seats(course=PYTHON, taken=30)


async def test_g7_within_bounds_the_age_of_what_is_missing(store_url: str) -> None:
    """An answer that lacks an old event is not given; one that lacks only young ones is."""
    async with Application(with_seats(), store=store_url, projecting=False) as app:
        assert await app.query(SeatsOf(course=PYTHON), within_s=0.0) is None
        await enter(app, "python")
        assert await app.query(SeatsOf(course=PYTHON), within_s=3600.0) is None
        with pytest.raises(NotFresh):
            await app.query(SeatsOf(course=PYTHON), within_s=0.0, wait_s=0.0)


async def test_g8_an_answer_says_what_it_shows(store_url: str) -> None:
    """An answer's token is that of its snapshot: asking after it never shows less."""
    async with Application(with_seats(), store=store_url) as app:
        token = await enter(app, "python", "rust")
        answer = await app.answer(SeatsOf(course=PYTHON), after=token)
        assert (answer.shows[0].low, answer.shows[0].high.position) == (2, 2)
        assert await app.query(SeatsOf(course=PYTHON), after=answer) == answer.value


async def test_g8_rows_and_token_are_of_one_moment_while_writes_go_on(store_url: str) -> None:
    """The sum of all rows equals the position that the token names, in every answer."""

    class Total(Query[int]): ...

    context = with_seats()

    @context.query_handler
    async def total(query: Total, read: Reader) -> int:
        first = sum(row.taken for row in await read.find(Seats))
        await asyncio.sleep(0)  # noqa: TID251 — let the projector go on in the middle of the handler
        second = sum(row.taken for row in await read.find(Seats, order_by="-taken"))
        assert first == second
        return first

    async with Application(context, store=store_url) as app:
        writer = asyncio.ensure_future(enter(app, *[f"c{n % 7}" for n in range(300)]))
        while not writer.done():
            answer = await app.answer(Total())
            assert answer.value == answer.shows[0].high.position
        answer = await app.answer(Total(), after=await writer)
        assert answer.value == 300


async def test_tokens_of_another_history_are_refused(store_url: str, tmp_path: Path) -> None:
    """A token from elsewhere is `HistoryDiverged`, at once, and never waited for."""
    async with Application(with_seats(), store=f"sqlite:{tmp_path}/other.db") as other:
        token = await enter(other, "python")
    async with Application(with_seats(), store=store_url) as app:
        await enter(app, "python")
        with pytest.raises(HistoryDiverged):
            await app.query(SeatsOf(course=PYTHON), after=token)
        with pytest.raises(InvalidMessage):
            await app.query(SeatsOf(course=PYTHON), after="nonsense!")


async def test_a_restored_backup_is_another_history(tmp_path: Path) -> None:
    """Read models and tokens that are ahead of a restored store, or beside it, are not followed."""
    store, backup = tmp_path / "events.db", tmp_path / "backup.db"
    async with Application(with_seats(), store=f"sqlite:{store}") as app:
        await enter(app, "python")
    backup.write_bytes(store.read_bytes())
    async with Application(with_seats(), store=f"sqlite:{store}") as app:
        token = await enter(app, "python", "python")
        await app.projected()
    store.write_bytes(backup.read_bytes())
    with pytest.raises(HistoryDiverged, match="read model"):
        async with Application(with_seats(), store=f"sqlite:{store}"):
            pass
    async with Application(with_seats(), store=f"sqlite:{store}", read_store="memory:") as app:
        with pytest.raises(HistoryDiverged):
            await app.query(SeatsOf(course=PYTHON), after=token)
        await enter(app, "rust", "rust")
        with pytest.raises(HistoryDiverged):
            await app.query(SeatsOf(course=PYTHON), after=token)


# ── forms of projections ─────────────────────────────────────────────────────


class OrderId(Identity): ...


class Line(Value):
    sku: str
    units: int


class Place(Command):
    order: OrderId
    lines: tuple[Line, ...]
    at: datetime


class Cancel(Command):
    order: OrderId


class Placed(Event):
    order: OrderId
    lines: tuple[Line, ...]
    at: datetime


class Cancelled(Event):
    order: OrderId


class Order(ReadModel):
    order: Key[OrderId]
    lines: tuple[Line, ...]
    total: Decimal
    at: datetime
    recorded_at: datetime
    actor: str | None = None


class SkuSales(ReadModel):
    sku: Key[str]
    units: Indexed[int] = 0


class SkuDay(ReadModel):
    sku: Key[str]
    day: Key[str]
    units: int = 0


class Bought(ReadModel):
    sku: Key[str]
    last: OrderId


def shop() -> BoundedContext:
    """Every form of a projection."""
    context = BoundedContext("shop")

    @context.command_handler
    def place(command: Place) -> Placed:
        return Placed(order=command.order, lines=command.lines, at=command.at)

    @context.command_handler
    def cancel(command: Cancel) -> Cancelled:
        return Cancelled(order=command.order)

    @context.projection
    def order(event: Placed, context: EventContext) -> Order:
        units = sum(line.units for line in event.lines)
        return Order(
            order=event.order,
            lines=event.lines,
            total=Decimal(units) / 4,
            at=event.at,
            recorded_at=context.recorded_at,
            actor=context.actor,
        )

    @context.projection
    def gone(row: Order | None, event: Cancelled) -> Order | None:
        return None

    def lines(event: Placed) -> tuple[Line, ...]:
        return event.lines

    @context.projection(each=lines)
    def sku_sales(row: SkuSales, event: Placed, line: Line) -> SkuSales:
        return replace(row, units=row.units + line.units)

    def sku_and_day(event: Placed) -> tuple[str, str]:
        return event.lines[0].sku, event.at.date().isoformat()

    @context.projection(key=sku_and_day)
    def sku_day(row: SkuDay, event: Placed) -> SkuDay:
        return replace(row, units=row.units + sum(line.units for line in event.lines))

    def skus(event: Placed) -> list[str]:
        return [line.sku for line in event.lines]

    @context.projection(keys=skus)
    def bought(row: Bought | None, event: Placed) -> Bought | None:
        if row is None:
            return Bought(sku=event.lines[0].sku, last=event.order)
        return replace(row, last=event.order)

    return context


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class OrderOf(Query[Order | None]):
    order: OrderId


class SkuSalesOf(Query[SkuSales | None]):
    sku: str


class SkuDayOf(Query[SkuDay | None]):
    day: str
    sku: str


async def test_rows_are_created_from_events_and_their_context(store_url: str) -> None:
    """The form without a row creates; documents, decimals and times read back equal."""
    async with Application(shop(), store=store_url) as app:
        lines = (Line(sku="a", units=2), Line(sku="b", units=3), Line(sku="a", units=1))
        receipt = await app.execute(Place(order=OrderId("1"), lines=lines, at=NOON), actor="ada")
        row = await app.query(OrderOf(order=OrderId("1")), after=receipt)
        assert row is not None
        assert (row.lines, row.total, row.at, row.actor) == (lines, Decimal("1.5"), NOON, "ada")
        assert row.recorded_at.tzinfo is UTC
        assert await app.query(SkuSalesOf(sku="a"), after=receipt) == SkuSales(sku="a", units=3)
        assert await app.query(SkuDayOf(sku="a", day="2026-03-01"), after=receipt) == SkuDay(
            sku="a", day="2026-03-01", units=6
        )


async def test_a_returned_none_deletes_the_row(store_url: str) -> None:
    """Several functions over distinct events feed one read model; None deletes."""
    async with Application(shop(), store=store_url) as app:
        await app.execute(Place(order=OrderId("1"), lines=(Line(sku="a", units=2),), at=NOON))
        receipt = await app.execute(Cancel(order=OrderId("1")))
        assert await app.query(OrderOf(order=OrderId("1")), after=receipt) is None
        receipt = await app.execute(Place(order=OrderId("1"), lines=(Line(sku="a", units=4),), at=NOON))
        row = await app.query(OrderOf(order=OrderId("1")), after=receipt)
        assert row is not None
        assert row.total == 1


async def test_g9_a_row_returned_with_another_key_blocks_its_key(store_url: str) -> None:
    """A fold that moves a row without saying so is a failure of that key, not a silent second row."""
    async with Application(shop(), store=store_url) as app:
        lines = (Line(sku="a", units=1), Line(sku="b", units=1))  # `bought` answers "a" for both keys
        await app.execute(Place(order=OrderId("1"), lines=lines, at=NOON))
        await app.projected()
        (blocked,) = await parked(app)
        assert (blocked.name, blocked.key) == ("shop.Bought", '["b"]')
        assert "keys=" in blocked.error


# ── blocked keys ─────────────────────────────────────────────────────────────


class Mended:
    """Whether the fold has been mended."""

    yet = False


def fragile() -> BoundedContext:
    context = entries()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        if event.student == "poison" and not Mended.yet:
            raise ValueError("poison")
        return replace(row, taken=row.taken + 1)

    return context


@pytest.fixture
def _broken() -> None:
    Mended.yet = False


async def _poisoned(app: Application) -> str:
    token = ""
    for course, student in [("a", "1"), ("b", "1"), ("a", "poison"), ("a", "2"), ("b", "2"), ("a", "3")]:
        token = (await app.execute(Enter(course=CourseId(course), student=StudentId(student)))).token
    await app.projected()
    return token


@pytest.mark.usefixtures("_broken")
async def test_g9_a_poisoned_event_blocks_its_key_alone(store_url: str) -> None:
    """Other keys go on, strict reads of the key say so, eventual ones say that they are incomplete."""
    async with Application(fragile(), store=store_url) as app:
        token = await _poisoned(app)
        (blocked,) = await parked(app)
        assert (blocked.name, blocked.key, blocked.position) == ("school.Seats", '["a"]', 3)
        assert "ValueError: poison" in blocked.error
        assert await app.query(SeatsOf(course=CourseId("b")), after=token) == Seats(course=CourseId("b"), taken=2)
        with pytest.raises(Blocked) as strict:
            await app.query(SeatsOf(course=CourseId("a")), after=token)
        assert strict.value.keys == ('["a"]',)
        with pytest.raises(Blocked):
            await app.query(CoursesTaken(taken=2), freshness="latest")
        answer = await app.answer(SeatsOf(course=CourseId("a")))
        assert (answer.incomplete, answer.value) == (True, Seats(course=CourseId("a"), taken=1))
        assert not (await app.answer(SeatsOf(course=CourseId("b")))).incomplete


@pytest.mark.usefixtures("_broken")
async def test_g9_a_replay_folds_what_waited(store_url: str) -> None:
    """After the fold is mended a replay folds the waiting events in order, and the key goes on."""
    async with Application(fragile(), store=store_url) as app:
        await _poisoned(app)
        still = await retry(app, '["a"]')
        assert still is not None
        assert still.position == 3
        Mended.yet = True
        assert await retry(app, '["a"]') is None
        assert await parked(app) == []
        receipt = await app.execute(Enter(course=CourseId("a"), student=StudentId("4")))
        assert await app.query(SeatsOf(course=CourseId("a")), after=receipt) == Seats(course=CourseId("a"), taken=5)


@pytest.mark.usefixtures("_broken")
async def test_g9_a_discard_is_for_good(store_url: str) -> None:
    """A discarded event is left out by the replay, and by every rebuild."""
    async with Application(fragile(), store=store_url) as app:
        await _poisoned(app)
        assert await discard(app, '["a"]') is None
        assert await app.query(SeatsOf(course=CourseId("a")), freshness="latest") == Seats(
            course=CourseId("a"), taken=3
        )
        await app.rebuilds.rebuild("school.Seats")
        assert await parked(app) == []
        assert await app.query(SeatsOf(course=CourseId("a")), freshness="latest") == Seats(
            course=CourseId("a"), taken=3
        )
        assert (await app.rebuilds.compare("school.Seats")).same


@pytest.mark.usefixtures("_broken")
async def test_g9_blocked_keys_survive_a_restart(tmp_path: Path) -> None:
    """What is blocked is durable; so is the place from which it goes on."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(fragile(), store=url) as app:
        await _poisoned(app)
    async with Application(fragile(), store=url) as app:
        await app.execute(Enter(course=CourseId("a"), student=StudentId("4")))
        await app.projected()
        assert [blocked.position for blocked in await parked(app)] == [3]
        Mended.yet = True
        assert await retry(app, '["a"]') is None
        assert await app.query(SeatsOf(course=CourseId("a")), freshness="latest") == Seats(
            course=CourseId("a"), taken=5
        )


@pytest.mark.usefixtures("_broken")
async def test_g9_a_replay_by_another_process_is_noticed(tmp_path: Path) -> None:
    """The projector that did not replay is fenced, learns of it, and neither skips nor doubles an event."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(fragile(), store=url) as app, Application(fragile(), store=url, projecting=False) as cli:
        await _poisoned(app)
        Mended.yet = True
        assert await retry(cli, '["a"]') is None
        receipt = await app.execute(Enter(course=CourseId("a"), student=StudentId("4")))
        assert await app.query(SeatsOf(course=CourseId("a")), after=receipt) == Seats(course=CourseId("a"), taken=5)


async def test_g9_where_no_key_can_be_told_the_projection_stops_and_says_so(store_url: str) -> None:
    """An event without a key is neither skipped nor guessed; everything before it is there."""
    context = entries()

    def broken_key(event: Enrolled) -> str:
        if event.student == "poison":
            raise KeyError("no key")
        return event.course

    @context.projection(key=broken_key)
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 1)

    async with Application(context, store=store_url) as app:
        await app.execute(Enter(course=PYTHON, student=StudentId("ada")))
        receipt = await app.execute(Enter(course=PYTHON, student=StudentId("poison")))
        await app.projected()
        (status,) = (await app.status()).projections
        assert status.checkpoint == 1
        assert "no key" in status.stopped
        assert not (await app.health()).ready
        with pytest.raises(Blocked, match="no key"):
            await app.query(SeatsOf(course=PYTHON), after=receipt)
        answer = await app.answer(SeatsOf(course=PYTHON))
        assert (answer.value, answer.incomplete) == (Seats(course=PYTHON, taken=1), True)


async def test_g9_a_row_that_cannot_be_written_blocks_its_key_alone(store_url: str) -> None:
    """A number that no column holds is found among its batch, and only its key waits."""
    context = entries()

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=1 << 80 if event.student == "poison" else row.taken + 1)

    async with Application(context, store=store_url) as app:
        await _poisoned(app)
        (blocked,) = await parked(app)
        assert (blocked.key, blocked.position) == ('["a"]', 3)
        assert await app.query(SeatsOf(course=CourseId("a"))) == Seats(course=CourseId("a"), taken=1)
        assert await app.query(SeatsOf(course=CourseId("b"))) == Seats(course=CourseId("b"), taken=2)


async def test_g9_a_missing_row_is_not_silent(store_url: str) -> None:
    """A fold that needs a row with fields that have no default blocks the key until one exists."""

    class Seat(ReadModel):
        course: Key[CourseId]
        opened_by: str

    context = entries()

    @context.projection
    def seat(row: Seat, event: Enrolled) -> Seat:
        return row

    async with Application(context, store=store_url) as app:
        await enter(app, "python")
        await app.projected()
        (blocked,) = await parked(app)
        assert "MissingRow" in blocked.error


# ── rebuilds ─────────────────────────────────────────────────────────────────


async def test_g6_a_rebuild_equals_what_was_built_live(store_url: str) -> None:
    """Every read model equals a fresh fold of the history, row for row, and a rebuild changes nothing."""
    async with Application(shop(), store=store_url) as app:
        for n in range(200):
            lines = tuple(Line(sku=f"s{(n * k) % 11}", units=k + n % 3) for k in range(1, 4))
            await app.execute(Place(order=OrderId(str(n % 70)), lines=lines[:1] if n % 2 else lines, at=NOON))
            if n % 9 == 0:
                await app.execute(Cancel(order=OrderId(str(n % 50))))
        await app.projected()
        for status in (await app.status()).projections:
            assert (await app.rebuilds.compare(status.name)).same
        before = await app.query(SkuSalesOf(sku="s1"))
        assert before is not None
        await app.rebuilds.rebuild("SkuSales")
        assert await app.query(SkuSalesOf(sku="s1"), freshness="latest") == before


async def test_g6_a_difference_is_found(tmp_path: Path) -> None:
    """A row that is not what the history says is found and shown."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(fragile(), store=url, read_store=f"sqlite:{tmp_path}/read.db") as app:
        Mended.yet = True
        await enter(app, "a", "b", "b")
        await app.projected()
    with sqlite3.connect(tmp_path / "read.db") as connection:
        (table,) = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'school_seats__g*'"
        ).fetchone()
        connection.execute(f"UPDATE {table} SET taken = 7 WHERE course = 'b'")
    connection.close()
    async with Application(fragile(), store=url, read_store=f"sqlite:{tmp_path}/read.db") as app:
        found = await app.rebuilds.compare("school.Seats")
        assert (found.same, found.rows, found.position) == (False, 2, 3)
        assert (found.changed, found.added, found.removed) == (1, 0, 0)
        assert found.samples == (RowDifference({"course": "b", "taken": 7}, {"course": "b", "taken": 2}),)


async def test_a_changed_fold_is_built_beside_and_never_answers_half_built(tmp_path: Path) -> None:
    """Rows of an old fold do not answer for a new one: the query waits until the new ones are there."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(with_seats(), store=url) as app:
        await enter(app, "python", "python")
        await app.projected()
    context = with_seats_by_ten()
    async with Application(context, store=url, projecting=False) as app:
        with pytest.raises(NotFresh, match="not built yet"):
            await app.query(SeatsOf(course=PYTHON), wait_s=0.0)
    async with Application(context, store=url) as app:
        assert await app.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=20)
        assert [status.live for status in (await app.status()).projections] == [True]


async def test_a_new_projection_is_built_from_the_beginning(tmp_path: Path) -> None:
    """A read model added later shows the whole history."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(entries(), store=url) as app:
        await enter(app, "python", "python", "rust")
    async with Application(with_seats(), store=url) as app:
        assert await app.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=2)


async def test_a_rebuild_by_another_process_is_followed(tmp_path: Path) -> None:
    """The projector whose generation was replaced goes on with the new one, and answers from it."""
    url = f"sqlite:{tmp_path}/events.db"
    async with (
        Application(with_seats(), store=url) as app,
        Application(with_seats(), store=url, projecting=False) as cli,
    ):
        await enter(app, "python", "python")
        await app.projected()
        await cli.rebuilds.rebuild("school.Seats")
        for taken in (3, 4):
            receipt = await app.execute(Enter(course=PYTHON, student=StudentId("ada")))
            assert await app.query(SeatsOf(course=PYTHON), after=receipt) == Seats(course=PYTHON, taken=taken)
        assert (await app.health()).ready


async def test_a_changed_fold_can_be_rebuilt_where_nobody_projects(tmp_path: Path) -> None:
    """A rebuild ends by itself, and what it built answers."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(with_seats(), store=url) as app:
        await enter(app, "python", "python")
        await app.projected()
    context = with_seats_by_ten()
    async with Application(context, store=url, projecting=False) as app:
        assert await app.rebuilds.rebuild("school.Seats") == 2
        assert await app.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=20)


async def test_an_application_that_does_not_project_makes_no_generation(tmp_path: Path) -> None:
    """Nobody would fold it. Status says that its code has no live rows, and whoever makes them later is seen."""
    url = f"sqlite:{tmp_path}/events.db"
    async with Application(with_seats(), store=url) as app:
        await enter(app, "python", "python")
        await app.projected()
    context = with_seats_by_ten()
    async with Application(context, store=url, projecting=False) as looking:
        running = looking.partition()
        assert [(found.number, found.live) for found in await running.read_store.generations()] == [(1, True)]
        (status,) = (await looking.status()).projections
        assert (status.live, status.other_code, status.checkpoint, status.lag_events) == (False, True, 0, 2)
        found = await looking.rebuilds.compare("school.Seats")
        assert (found.changed, found.rows, found.position) == (1, 1, 2)
        assert [(found.number, found.live) for found in await running.read_store.generations()] == [(1, True)]
        async with Application(context, store=url) as app:
            await app.projected()
            (status,) = (await looking.status()).projections
            assert (status.live, status.other_code, status.checkpoint) == (True, False, 2)
            assert (await looking.rebuilds.compare("school.Seats")).same
            assert await looking.query(SeatsOf(course=PYTHON)) == Seats(course=PYTHON, taken=20)


# ── queries ──────────────────────────────────────────────────────────────────


class Book(ReadModel):
    isbn: Key[str]
    title: Searchable[str]
    country: Indexed[str]
    price: Indexed[Decimal]
    sold: int | None = None


class Publish(Command):
    isbn: str
    title: str
    country: str
    price: Decimal


class Published(Event):
    isbn: str
    title: str
    country: str
    price: Decimal


class Ask(Query[list[str]]):
    what: str


class Pages(Query[Page[str]]):
    cursor: str | None = None


class Count(msgspec.Struct):
    country: str
    books: int
    cheapest: Decimal


BOOKS = [
    ("1", "Pride and Prejudice", "GB", "9.90"),
    ("2", "Candide, or Optimism", "FR", "10.0"),
    ("3", "Les Misérables", "FR", "10.00"),
    ("4", "The Trial", "CZ", "-1.5"),
    ("5", "A Trial of Pride", "GB", "100"),
]


def isbns(rows: Sequence[Book]) -> list[str]:
    return [row.isbn for row in rows]


async def by_country(read: Reader) -> list[str]:
    statement = (
        "SELECT country, count(*) AS books, min(price) AS cheapest FROM library_book"
        " WHERE country <> ? GROUP BY country ORDER BY country"
    )
    rows = await read.sql(Count, statement, "CZ", touches=[Book])
    return [f"{row.country} {row.books} {row.cheapest}" for row in rows]


async def delete_all(read: Reader) -> list[str]:
    return [str(await read.sql(Count, "DELETE FROM library_book", touches=[Book]))]


async def ten_or_so(read: Reader) -> list[str]:
    return isbns(await read.find(Book, price=at_least(Decimal("9.9")), country=one_of("FR", "GB")))


async def three_keys(read: Reader) -> list[str]:
    return sorted(await read.get_many(Book, ["2", "9", "1"]))


async def count_french(read: Reader) -> list[str]:
    return [str(await read.count(Book, country="FR"))]


def finds(**arguments: Any) -> Callable[[Reader], Awaitable[list[str]]]:
    async def find(read: Reader) -> list[str]:
        return isbns(await read.find(Book, **arguments))

    return find


def searches(text: str) -> Callable[[Reader], Awaitable[list[str]]]:
    async def search(read: Reader) -> list[str]:
        return isbns(await read.search(Book, text))

    return search


QUESTIONS = {
    "cheap first": finds(order_by="price"),
    "dear first": finds(order_by="-price", limit=2),
    "ten": finds(price=Decimal(10)),
    "at least ten": ten_or_so,
    "prefix": finds(title=starts_with("Pri")),
    "search": searches("TRIAL pri"),
    "accents": searches("miser"),
    "unsold": finds(sold=None, limit=1),
    "many": three_keys,
    "count": count_french,
    "sql": by_country,
    "write": delete_all,
    "unknown column": finds(colour="red"),
}


def library() -> BoundedContext:
    context = BoundedContext("library")

    @context.command_handler
    def publish(command: Publish) -> Published:
        return Published(isbn=command.isbn, title=command.title, country=command.country, price=command.price)

    @context.projection
    def book(event: Published) -> Book:
        return Book(isbn=event.isbn, title=event.title, country=event.country, price=event.price)

    @context.query_handler
    async def ask(query: Ask, read: Reader) -> list[str]:
        return await QUESTIONS[query.what](read)

    @context.query_handler
    async def pages(query: Pages, read: Reader) -> Page[str]:
        page = await read.page(Book, order_by="country, -price", limit=2, cursor=query.cursor)
        return Page([row.isbn for row in page.items], page.next)

    return context


async def publish_all(app: Application) -> None:
    for isbn, title, country, price in BOOKS:
        await app.execute(Publish(isbn=isbn, title=title, country=country, price=Decimal(price)))
    await app.projected()


@pytest.mark.parametrize(
    ("what", "isbns"),
    [
        ("cheap first", ["4", "1", "2", "3", "5"]),
        ("dear first", ["5", "2"]),
        ("ten", ["2", "3"]),
        ("at least ten", ["1", "2", "3", "5"]),
        ("prefix", ["1"]),
        ("search", ["5"]),
        ("accents", ["3"]),
        ("unsold", ["1"]),
        ("many", ["1", "2"]),
        ("count", ["2"]),
    ],
)
async def test_readers_find_count_and_search(store_url: str, what: str, isbns: list[str]) -> None:
    """Conditions, orders and searches answer alike on every store; decimals compare by value."""
    async with Application(library(), store=store_url) as app:
        await publish_all(app)
        assert await app.query(Ask(what=what)) == isbns


async def test_g13_sql_is_read_only_and_typed(tmp_path: Path) -> None:
    """SQL over the read models gives typed rows; what would write is refused by the connection (G13)."""
    async with Application(library(), store=f"sqlite:{tmp_path}/events.db") as app:
        await publish_all(app)
        assert await app.query(Ask(what="sql")) == ["FR 2 10", "GB 2 9.9"]
        with pytest.raises(ConfigurationError):
            await app.query(Ask(what="write"))
        assert await app.query(Ask(what="count")) == ["2"]


async def test_pages_cover_everything_once(store_url: str) -> None:
    """Cursors go on where the page ended, also when rows came meanwhile."""
    async with Application(library(), store=store_url) as app:
        await publish_all(app)
        seen: list[str] = []
        cursor: str | None = None
        for _ in range(3):
            page = await app.query(Pages(cursor=cursor))
            seen += page.items
            cursor = page.next
            await app.execute(Publish(isbn=f"0{len(seen)}", title="New", country="AA", price=Decimal(1)))
            await app.projected()
        assert seen == ["4", "2", "3", "5", "1"]
        assert cursor is None
        with pytest.raises(InvalidMessage):
            await app.query(Pages(cursor="bm9uc2Vuc2U"))


async def test_g12_a_query_handler_that_does_not_end_lets_go_of_its_snapshot(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the named limit its caller hears so, and others are answered."""

    class Never(Query[int]): ...

    context = with_seats()

    @context.query_handler
    async def never(query: Never, read: Reader) -> int:
        await asyncio.Event().wait()
        return await read.count(Seats)

    async with Application(context, store=store_url) as app:
        with monkeypatch.context() as impatient:
            impatient.setattr("diptych.read_side.query_limits.HANDLER_S_MAX", 0.01)
            for _ in range(20):
                with pytest.raises(QueryTimedOut, match="Never took longer"):
                    await app.query(Never())
        assert await app.query(SeatsOf(course=PYTHON)) is None


async def test_unknown_columns_are_named(store_url: str) -> None:
    """A condition on a column that does not exist names those that do."""
    async with Application(library(), store=store_url) as app:
        with pytest.raises(ConfigurationError, match=r"colour.*isbn, title"):
            await app.query(Ask(what="unknown column"))


async def test_queries_that_are_a_filter_need_no_handler(store_url: str) -> None:
    """`Query[list[M]]` whose fields are columns finds rows by equality."""
    async with Application(with_seats(), store=store_url) as app:
        token = await enter(app, "a", "b", "a", "c")
        rows = await app.query(CoursesTaken(taken=1), after=token)
        assert [row.course for row in rows] == ["b", "c"]


async def test_queries_that_nobody_answers_are_unknown() -> None:
    """A query without handler or read model names close ones."""

    class SeatsFor(Query[int]):
        course: CourseId

    async with Application(with_seats()) as app:
        with pytest.raises(UnknownMessage) as unknown:
            await app.query(SeatsFor(course=PYTHON))
        assert "SeatsOf" in unknown.value.close


# ── subscribers ──────────────────────────────────────────────────────────────


async def test_subscribers_hear_every_event_in_order_and_go_on_where_they_were(tmp_path: Path) -> None:
    """Batches come in order; what failed comes again; after a restart nothing that was delivered comes twice."""
    url = f"sqlite:{tmp_path}/events.db"
    heard: list[int] = []
    complete = asyncio.Event()
    failures = [RuntimeError("mail server down")]

    def mailing() -> BoundedContext:
        context = entries()

        @context.subscriber
        async def mail(events: Sequence[tuple[Enrolled, EventContext]]) -> None:
            if failures:
                raise failures.pop()
            heard.extend(context.position for _, context in events)
            if heard[-1] >= 5:
                complete.set()

        return context

    async with Application(mailing(), store=url) as app:
        await enter(app, *"abcde")
        await asyncio.wait_for(complete.wait(), 10)
    async with Application(mailing(), store=url) as app:
        complete.clear()
        await enter(app, "f")
        await asyncio.wait_for(complete.wait(), 10)
    async with Application(mailing(), store=url, projecting=False) as app:
        (status,) = (await app.status()).subscribers
        assert (status.name, status.checkpoint) == ("school.mail", 6)
    assert heard == [1, 2, 3, 4, 5, 6]


async def test_events_can_be_followed(store_url: str) -> None:
    """`events(follow=True)` gives what is there and what is to come."""
    async with Application(entries(), store=store_url) as app:
        await enter(app, "a")
        found: list[int] = []
        async for event in app.events(ALL_EVENTS, follow=True):
            found.append(event.position)
            if len(found) == 3:
                break
            await enter(app, "b")
        assert found == [1, 2, 3]


async def test_lag_is_told_in_events_and_seconds(store_url: str) -> None:
    """Status says how far each projection is behind, and for how long."""
    async with Application(with_seats(), store=store_url, projecting=False) as app:
        await enter(app, "a", "b")
        (status,) = (await app.status()).projections
        assert (status.checkpoint, status.lag_events) == (0, 2)
        assert timedelta(seconds=status.lag_s) < timedelta(minutes=1)
