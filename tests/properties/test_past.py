"""What was answered once is answered again as of then, whatever has happened since (G6, rules 27, 30, 40).

Random commands, and time that passes. After each, several queries are asked and what they gave is remembered: rows by
key, lists, handlers that find and page, rows that expire. Later, after more events, discards and rebuilds, each is
asked again as of its token, and as of the time. And how a row came to be is what a few lines of plain Python make of
the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import (
    Answer,
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    ExpiresAt,
    Identity,
    Indexed,
    Key,
    Query,
    Reader,
    ReadModel,
    Untagged,
    Value,
    at_least,
    replace,
)
from diptych.errors import Blocked
from diptych.testing import ManualClock
from tests.parking import discard, parked

BAD = 13
"""An amount that one of the folds fails at."""


class ShopId(Identity): ...


class ItemId(Identity): ...


class Line(Value):
    item: ItemId
    amount: int


class Sell(Command):
    shop: ShopId
    lines: tuple[Line, ...]


class Send(Command):
    source: ShopId
    target: ShopId
    amount: int


class Visit(Command):
    shop: ShopId
    minutes: int | None


class Close(Command):
    shop: ShopId


class Sold(Event):
    shop: ShopId
    lines: tuple[Line, ...]


class Sent(Event):
    shop: ShopId
    target: Untagged[ShopId]
    amount: int


class Visited(Event):
    shop: ShopId
    minutes: int | None


class Closed(Event):
    shop: ShopId


class Takings(ReadModel):
    """Its key is a tagged identity of its events."""

    shop: Key[ShopId]
    total: Indexed[int] = 0
    items: tuple[str, ...] = ()


class Stock(ReadModel):
    """Its key is computed, and so no tag tells its events, though a field is named like it."""

    shop: Key[ShopId]
    sent: Indexed[int] = 0


class Ranking(ReadModel):
    """Its key is of a part."""

    item: Key[ItemId]
    sold: Indexed[int] = 0


class Presence(ReadModel):
    """It expires."""

    shop: Key[ShopId]
    times: int = 0
    until: ExpiresAt[datetime | None] = None


class TakingsOf(Query[Takings | None]):
    shop: ShopId


class StockOf(Query[Stock | None]):
    shop: ShopId


class RankingOf(Query[Ranking | None]):
    item: ItemId


class PresenceOf(Query[Presence | None]):
    shop: ShopId


class AllPresent(Query[list[Presence]]): ...


class Ranked(Query[list[Ranking]]): ...


class Overview(Query[list[str]]):
    """Several read models, in several ways, in one handler."""


def both_ends(event: Sent) -> tuple[ShopId, ShopId]:
    return event.shop, event.target


def lines_of(event: Sold) -> tuple[Line, ...]:
    """The lines, and one of an item that the event is not tagged with."""
    return (*event.lines, Line(item=ItemId("any"), amount=len(event.lines)))


def market() -> BoundedContext:
    context = BoundedContext("market")

    @context.command_handler
    def sell(command: Sell) -> Sold:
        return Sold(shop=command.shop, lines=command.lines)

    @context.command_handler
    def send(command: Send) -> Sent:
        return Sent(shop=command.source, target=command.target, amount=command.amount)

    @context.command_handler
    def visit(command: Visit) -> Visited:
        return Visited(shop=command.shop, minutes=command.minutes)

    @context.command_handler
    def close(command: Close) -> Closed:
        return Closed(shop=command.shop)

    @context.projection
    def takings(row: Takings | None, event: Sold | Closed) -> Takings | None:
        if isinstance(event, Closed):
            return None
        before = row or Takings(shop=event.shop)
        if any(line.amount == BAD for line in event.lines):
            raise ValueError("bad luck")
        total = before.total + sum(line.amount for line in event.lines)
        return replace(before, total=total, items=(*before.items, *(line.item for line in event.lines)))

    @context.projection(keys=both_ends)
    def stock(row: Stock, event: Sent) -> Stock:
        here = event.shop == row.shop
        return replace(row, sent=row.sent + (event.amount if here else -event.amount))

    @context.projection(each=lines_of)
    def ranking(row: Ranking, event: Sold, line: Line) -> Ranking:
        return replace(row, sold=row.sold + line.amount)

    @context.projection
    def presence(row: Presence | None, event: Visited, context: EventContext) -> Presence:
        times = 0 if row is None else row.times
        until = None if event.minutes is None else context.recorded_at + timedelta(minutes=event.minutes)
        return Presence(shop=event.shop, times=times + 1, until=until)

    @context.query_handler
    async def overview(query: Overview, read: Reader) -> list[str]:
        first = await read.get(Presence, "a")
        best = await read.find(Ranking, order_by="-sold", limit=2, sold=at_least(1))
        page = await read.page(Stock, order_by="-sent", limit=1)
        more = [] if page.next is None else (await read.page(Stock, order_by="-sent", limit=9, cursor=page.next)).items
        both = await read.get_many(Presence, ["a", "b", "nobody"])
        again = await read.find(Presence)
        return [repr(found) for found in (first, best, page.items, more, both, again, await read.count(Ranking))]

    return context


shops = st.sampled_from([ShopId("a"), ShopId("b"), ShopId("bad")])
lines = st.lists(
    st.builds(Line, item=st.sampled_from([ItemId("x"), ItemId("y")]), amount=st.integers(1, 5)), max_size=3
)
bad_lines = st.just((Line(item=ItemId("x"), amount=BAD),))


class Step(NamedTuple):
    """Something happens, so many minutes after what was before; None: only time passes."""

    minutes: int
    command: Command | None


steps = st.builds(
    Step,
    minutes=st.integers(0, 3),
    command=st.one_of(
        st.none(),
        st.builds(Sell, shop=shops, lines=lines.map(tuple)),
        st.builds(Sell, shop=st.just(ShopId("bad")), lines=bad_lines),
        st.builds(Send, source=shops, target=shops, amount=st.integers(1, 9)),
        st.builds(Visit, shop=shops, minutes=st.none() | st.integers(0, 4)),
        st.builds(Close, shop=shops),
    ),
)
QUERIES: Sequence[Query[Any]] = [
    TakingsOf(shop=ShopId("a")),
    TakingsOf(shop=ShopId("b")),
    StockOf(shop=ShopId("a")),
    StockOf(shop=ShopId("bad")),
    RankingOf(item=ItemId("x")),
    RankingOf(item=ItemId("any")),
    PresenceOf(shop=ShopId("a")),
    PresenceOf(shop=ShopId("bad")),
    AllPresent(),
    Ranked(),
    Overview(),
]


class Remembered(NamedTuple):
    """What was answered, and when.

    Attributes:
        at_event: whether an event was recorded at that very time, the last one there was.
        only_then: whether nothing was recorded later at that very time.
    """

    query: Query[Any]
    answer: Answer[Any]
    time: datetime
    at_event: bool
    only_then: bool


async def happen(app: Application, clock: ManualClock, told: Sequence[Step]) -> list[Remembered]:
    """Do what is told, and ask everything after each."""
    found: list[Remembered] = []
    for number, step in enumerate(told):
        clock.advance(timedelta(minutes=step.minutes))
        if step.command is not None:
            await app.execute(step.command)
        await app.projected()
        same_time = takewhile(lambda later: later.minutes == 0, told[number + 1 :])
        only_then = all(later.command is None for later in same_time)
        for query in QUERIES:
            answer = await app.answer(query, freshness="latest")
            found.append(Remembered(query, answer, clock.now(), step.command is not None, only_then))
    return found


async def check(app: Application, remembered: Iterable[Remembered]) -> None:
    for query, answer, time, at_event, only_then in remembered:
        moments: list[Answer[Any] | str | datetime] = [answer, answer.token] if at_event else []
        for moment in [*moments, *([time] if only_then else [])]:
            again = await app.answer(query, as_of=moment)
            assert (query, again.value) == (query, answer.value), moment
            assert again.shows == answer.shows or answer.shows[0].high.position == 0
            assert not again.incomplete


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_was_answered_is_answered_again_as_of_then(kind: str) -> None:
    """By token and by time: at once, after more events and a rebuild, and after what cannot be folded was discarded."""

    @settings(max_examples=25 if kind == "memory" else 6, deadline=None)
    @given(first=st.lists(steps, min_size=1, max_size=8), more=st.lists(steps, max_size=5))
    def holds(first: list[Step], more: list[Step]) -> None:
        async def run(folder: str) -> None:
            clock = ManualClock()
            store = "memory:" if kind == "memory" else f"sqlite:{folder}/events.db"
            async with Application(market(), store=store, clock=clock) as app:
                remembered = await happen(app, clock, first)
                await check(app, remembered)
                clock.advance(timedelta(minutes=1))
                remembered += await happen(app, clock, more)
                await app.rebuilds.rebuild("Presence")
                await check(app, remembered)
                bad = TakingsOf(shop=ShopId("bad"))
                for item in await parked(app):
                    with pytest.raises(Blocked):
                        await app.query(bad, as_of=clock.now())
                    await discard(app, item.key)
                await check(app, remembered)
                if not await parked(app):
                    assert await app.query(bad, as_of=clock.now()) == await app.query(bad, freshness="latest")

        with TemporaryDirectory() as folder:
            asyncio.run(run(folder))

    holds()


# ── how a row came to be ─────────────────────────────────────────────────────


def naive(told: Sequence[Command]) -> list[tuple[int, str, dict[str, Any]]]:
    """What happens to the takings of the shop "bad", whose folds fail, by position: the effect, and what changed."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    row: dict[str, Any] | None = None
    blocked = False
    for position, command in enumerate(told, 1):
        if not isinstance(command, Sell | Close) or command.shop != "bad":
            continue
        if blocked:
            found.append((position, "waiting", {}))
        elif isinstance(command, Close):
            found.append((position, "unchanged" if row is None else "removed", {}))
            row = None
        elif any(line.amount == BAD for line in command.lines):
            blocked = True
            found.append((position, "blocked", {}))
        else:
            before = row or {"total": 0, "items": ()}
            after = {
                "total": before["total"] + sum(line.amount for line in command.lines),
                "items": (*before["items"], *(line.item for line in command.lines)),
            }
            changed = {name: after[name] for name in after if row is None or row[name] != after[name]}
            effect = "created" if row is None else "changed" if changed else "unchanged"
            found.append((position, effect, changed))
            row = after
    return found


@settings(max_examples=60, deadline=None)
@given(told=st.lists(steps, max_size=20))
def test_how_a_row_came_to_be_is_what_plain_python_makes_of_the_events(told: list[Step]) -> None:
    """Each event of the row with its effect and the fields that changed, each from what it was after the one before."""

    async def run() -> None:
        commands = [step.command for step in told if step.command is not None]
        async with Application(market(), store="memory:", clock=ManualClock()) as app:
            for command in commands:
                await app.execute(command)
            changes = [each async for each in app.partition().row_histories.of(Takings, ShopId("bad"))]
        shown = [(each.position, each.effect, {found.field: found.after for found in each.changes}) for each in changes]
        assert shown == naive(commands)
        last: Any = None
        for each in changes:
            assert each.before == last
            assert [found.before for found in each.changes] == [getattr(last, f.field, None) for f in each.changes]
            last = each.after

    asyncio.run(run())
