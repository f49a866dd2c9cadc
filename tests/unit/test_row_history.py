"""How a row came to be, in Python: pages, keys of several columns, expiry, splits, and what stops it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    Event,
    EventContext,
    ExpiresAt,
    Identity,
    Key,
    ReadModel,
    Value,
    replace,
)
from diptych.errors import Blocked, HistoryPruned
from diptych.event_store import pages
from diptych.event_store.position import START, Position
from diptych.read_side.row_history import FieldChange, RowChange
from diptych.testing import ManualClock
from tests.tenants import (
    ACME,
    GLOBEX,
    PEN,
    OnAllShelves,
    OnShelf,
    Places,
    Stock,
    TenantId,
    UnitsEverywhere,
    warehouses,
)

pytestmark = pytest.mark.anyio


class RoomId(Identity): ...


class Night(Value):
    day: int
    price: int


class Book(Command):
    room: RoomId
    nights: tuple[Night, ...]
    minutes: int = 5


class Booked(Event):
    room: RoomId
    nights: tuple[Night, ...]
    minutes: int


class Stay(ReadModel):
    """A key of two columns, of which a part tells one."""

    room: Key[RoomId]
    day: Key[int]
    price: int = 0


class Hold(ReadModel):
    room: Key[RoomId]
    times: int = 0
    until: ExpiresAt[datetime | None] = None


class Record(ReadModel):
    """What only the fold tells the key of."""

    price: Key[int]
    room: str


class Unfed(ReadModel):
    room: Key[RoomId]


def nights_of(event: Booked) -> tuple[Night, ...]:
    return event.nights


def hotel() -> BoundedContext:
    context = BoundedContext("hotel")

    @context.command_handler
    def book(command: Book) -> Booked:
        return Booked(room=command.room, nights=command.nights, minutes=command.minutes)

    @context.projection(each=nights_of)
    def stay(row: Stay, event: Booked, night: Night) -> Stay:
        if night.price < 0:
            raise ValueError("no such price")
        return replace(row, price=row.price + night.price)

    @context.projection
    def hold(row: Hold | None, event: Booked, context: EventContext) -> Hold:
        times = 0 if row is None else row.times
        return Hold(room=event.room, times=times + 1, until=context.recorded_at + timedelta(minutes=event.minutes))

    @context.projection
    def record(event: Booked) -> Record:
        if event.minutes == 0:
            raise ValueError("no time")
        return Record(price=sum(night.price for night in event.nights), room=event.room)

    return context


R1, R2 = RoomId("1"), RoomId("2")


async def changes(app: Application, model: type[ReadModel], *key: object) -> list[RowChange]:
    return [change async for change in app.partition().row_histories.of(model, *key)]


async def test_each_row_has_its_own(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key of two columns; several parts of one event are one change; pages of one event do not show."""
    monkeypatch.setattr(pages, "FIRST_PAGE_EVENTS", 1)
    monkeypatch.setattr(pages, "PAGE_EVENTS_MAX", 1)
    async with Application(hotel(), store=store_url) as app:
        twice = (Night(day=1, price=10), Night(day=2, price=20), Night(day=1, price=5))
        await app.execute(Book(room=R1, nights=twice), actor="ann", reason="by phone")
        await app.execute(Book(room=R2, nights=twice))
        await app.execute(Book(room=R1, nights=(Night(day=2, price=0),)))
        await app.execute(Book(room=R1, nights=(Night(day=1, price=1),)))
        first, second = await changes(app, Stay, R1, 1)
        assert (first.position, first.event, first.actor, first.reason) == (1, "hotel.Booked", "ann", "by phone")
        assert (first.effect, first.changes) == ("created", (FieldChange("price", None, 15),))
        assert (second.position, second.before, second.after) == (4, first.after, Stay(room=R1, day=1, price=16))
        assert [found.effect for found in await changes(app, Stay, R1, 2)] == ["created", "unchanged"]
        assert await changes(app, Stay, R1, 3) == []
        assert [found.position for found in await changes(app, Record, 35)] == [1, 2]


async def test_what_fails_of_another_row_is_none_of_this_one() -> None:
    """An event that cannot be folded into one of its rows still is into the others."""
    async with Application(hotel(), store="memory:") as app:
        await app.execute(Book(room=R1, nights=(Night(day=1, price=10), Night(day=2, price=-1))))
        assert [found.effect for found in await changes(app, Stay, R1, 1)] == ["created"]
        assert [found.effect for found in await changes(app, Stay, R1, 2)] == ["blocked"]


async def test_a_row_that_had_expired_is_none_to_the_next_event() -> None:
    """By the times of the log: it says when it had, and a new one begins."""
    clock = ManualClock()
    async with Application(hotel(), store="memory:", clock=clock) as app:
        for minutes in (0, 4, 5):
            clock.advance(timedelta(minutes=minutes))
            await app.execute(Book(room=R1, nights=()))
        one, two, three = await changes(app, Hold, R1)
        assert [each.effect for each in (one, two, three)] == ["created", "changed", "created"]
        assert (two.expired_at, three.expired_at, three.before) == (None, two.after.until, None)
        assert three.after.times == 1


async def test_a_row_across_partitions_has_one_too(places: Places) -> None:
    """Its events are those of all of them, in the kept order."""
    async with Application(warehouses(), partition_by=TenantId, store=places(ACME, GLOBEX, "*")) as app:
        for number in range(1, 5):
            receipt = await app.execute(Stock(tenant=(ACME, GLOBEX)[number % 2], sku=PEN, units=number))
            await app.query(UnitsEverywhere(sku=PEN), after=receipt)
        found = [change async for change in app.across.row_histories.of(OnAllShelves, PEN)]
        assert [(each.position, each.after.units) for each in found] == [(1, 1), (2, 3), (3, 6), (4, 10)]
        own = [change async for change in app.partition(ACME).row_histories.of(OnShelf, PEN)]
        assert [(each.position, each.after.units) for each in own] == [(1, 2), (2, 6)]


async def test_what_nothing_can_be_told_behind_is_an_error(store_url: str) -> None:
    """Data that were dropped, a fold that fails before it tells a key, a read model that nothing feeds, a wrong key."""
    async with Application(hotel(), store=store_url) as app:
        await app.execute(Book(room=R1, nights=()))
        await app.execute(Book(room=R1, nights=(), minutes=0))
        with pytest.raises(Blocked, match="Record has stopped.*no time"):
            await changes(app, Record, 0)
        with pytest.raises(ConfigurationError, match="no projection of this application feeds Unfed"):
            await changes(app, Unfed, R1)
        with pytest.raises(ConfigurationError, match=r"the key of Stay is \(room, day\)"):
            await changes(app, Stay, R1)
        await app.partition().store.prune("hotel.Booked", START, Position(1), 10)
        with pytest.raises(HistoryPruned):
            await changes(app, Hold, R1)
