"""What is kept of decision models decides nothing (rules 24, 26): commands end as they would, folded from events.

Commands run at the same time on two buses over one store, or on two that share a file or a schema, in rounds, after
each of which both buses are made anew and know nothing. Plain Python replays the history: every command is legal at its
place; and after each round every state that is kept is what the events up to its place make of it, and no event of a
state-stored model is later than that, unless one of the two is of code that keeps none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Command, ContextChanged, Event, Rejected, Verdict
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.errors import NotPure
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.write_side.command_bus import CommandBus
from diptych.write_side.idempotency import Receipt
from tests.calls import Answer, Call, calls_of, check_again, tail_limit, told_all
from tests.postgres_server import new_store
from tests.stock import (
    SALES_MAX,
    Count,
    Counted,
    Find,
    Missed,
    Move,
    Moved,
    PlaceId,
    Receive,
    Received,
    Sell,
    Sku,
    Sold,
    Take,
    warehouse,
)

READ_MAX = 10_000
SKUS = [Sku("a"), Sku("b"), Sku("c")]
PLACES = [PlaceId("north"), PlaceId("south")]

skus, places, counts = st.sampled_from(SKUS), st.sampled_from(PLACES), st.integers(1, 3)
commands = st.one_of(
    st.builds(Receive, sku=skus, place=places, count=counts),
    st.builds(Move, sku=skus, source=places, target=places, count=counts),
    st.builds(Sell, skus=st.lists(skus, min_size=1, max_size=3).map(tuple), place=places),
    st.builds(Take, sku=skus, place=places),
    st.builds(Find, place=places),
    st.builds(Count),
)


# ── the same in plain Python ─────────────────────────────────────────────────

FOUND = Sku("found")
"""Stands for whatever was made up."""


def as_told(event: Event) -> Event:
    """An event, as `serial` gives it."""
    if isinstance(event, Received) and event.sku not in SKUS:
        return Received(sku=FOUND, place=event.place, count=event.count)
    return event


def on_hand(history: Iterable[Event], sku: str) -> int:
    received = sum(event.count for event in history if isinstance(event, Received) and event.sku == sku)
    return received - sum(event.skus.count(Sku(sku)) for event in history if isinstance(event, Sold))


def there(history: Iterable[Event], sku: str, place: str) -> int:
    count = 0
    for event in history:
        match event:
            case Received() if (event.sku, event.place) == (sku, place):
                count += event.count
            case Sold() if event.place == place:
                count -= event.skus.count(Sku(sku))
            case Moved() if event.sku == sku:
                count += event.count * ((event.target == place) - (event.source == place))
            case _:
                pass
    return count


def moved(history: Iterable[Event]) -> int:
    return sum(event.count for event in history if isinstance(event, Moved))


def sales(history: Iterable[Event], place: str) -> int:
    return sum(len(event.skus) for event in history if isinstance(event, Sold) and event.place == place)


def serial(history: Sequence[Event], command: Command) -> Event | str:
    """What a command gives where it is executed alone, after this history: an event, or why not."""
    match command:
        case Receive(sku=sku, place=place, count=count):
            return Received(sku=sku, place=place, count=count)
        case Move(sku=sku, source=source, target=target, count=count):
            if there(history, sku, source) < count:
                return "not there"
            if moved(history) + count > 2 * SALES_MAX:
                return "moved too much"
            return Moved(sku=sku, source=source, target=target, count=count)
        case Take(sku=sku, place=place):
            return Sold(skus=(sku,), place=place) if on_hand(history, sku) else Missed(sku=sku, place=place)
        case Find(place=place):
            return Received(sku=FOUND, place=place, count=1)
        case Sell(skus=sold, place=place):
            if sales(history, place) + len(sold) > SALES_MAX:
                return "closed"
            short = any(on_hand(history, sku) < sold.count(sku) for sku in sold)
            return "out of stock" if short else Sold(skus=sold, place=place)
        case _:
            return Counted(total=sum(isinstance(event, Sold | Counted) for event in history))


def concerns(command: Command, event: Event) -> bool:
    """Whether what the command is decided on has this event in it."""
    match command, event:
        case Move(), Moved():
            return True
        case Move(sku=sku, source=source), Received(place=place) | Sold(place=place):
            return place == source and sku in ((event.sku,) if isinstance(event, Received) else event.skus)
        case Sell(place=place), Sold() if event.place == place:
            return True
        case Sell(skus=sold), Sold() | Received() | Missed():
            return not set(sold).isdisjoint(event.skus if isinstance(event, Sold) else (event.sku,))
        case Take(sku=sku), Sold() | Received() | Missed():
            return sku in (event.skus if isinstance(event, Sold) else (event.sku,))
        case Count(), Sold() | Counted():
            return True
        case _:
            return False


# ── what is executed ─────────────────────────────────────────────────────────


@asynccontextmanager
async def opened_stores(kind: str) -> AsyncIterator[Sequence[EventStore]]:
    """The stores of two buses: the same one, or two instances over one file or schema."""
    with TemporaryDirectory() as folder:
        path, clock = str(Path(folder, "events.db")), SystemClock()
        stores: list[EventStore] = [MemoryEventStore(clock)]
        if kind.startswith("sqlite"):
            stores = [SqliteEventStore(path, clock, synchronous="NORMAL") for _ in range(2)]
        elif kind.startswith("postgres"):
            url = await new_store()
            stores = [connect_postgres(url, clock) for _ in range(2)]
        stores = stores if kind.endswith("two instances") else stores[:1] * 2
        for store in dict.fromkeys(stores):
            await store.open()
        try:
            yield stores
        finally:
            for store in dict.fromkeys(stores):
                await store.close()


async def cold_bus(store: EventStore, cached: int, *, keeping: bool) -> CommandBus:
    """A bus that knows nothing; perhaps of code that keeps no states."""
    parts = [warehouse()]
    types = event_types(parts)
    handlers = command_handlers(parts, {}, types)
    if not keeping:
        for fold in (fold for handler in handlers.values() for fold in handler.folds):
            fold.form = None
    bus = CommandBus(handlers, store, History(types), SystemClock())
    bus._cache._limit = cached
    await bus.open()
    return bus


async def history_of(store: EventStore) -> list[Event]:
    history = History(event_types([warehouse()]))
    return [history.event(recorded) for recorded in (await store.read(ALL_EVENTS, START, READ_MAX)).events]


# ── what has to hold ─────────────────────────────────────────────────────────


def check_answer(answer: Answer, log: Sequence[Event]) -> None:
    command, outcome = answer.call.command, answer.outcome
    heads = range(answer.basis if answer.call.back is not None else answer.before, answer.after + 1)
    unchanged = [head for head in heads if answer.call.back is None or holds_at(answer, head, log)]
    if isinstance(outcome, Receipt):
        (event,) = outcome.events
        assert event == log[outcome.position - 1]
        assert serial(log[: outcome.position - 1], command) == as_told(event), "accepted as at its place"
        assert answer.call.back is None or holds_at(answer, outcome.position - 1, log), "accepted on what was seen"
    elif isinstance(outcome, Verdict):
        said = outcome.rejected.code if outcome.rejected else as_told(outcome.events[0])
        assert any(serial(log[:head], command) == said for head in unchanged), "would be so at no head since"
    elif isinstance(outcome, ContextChanged):
        assert any(concerns(command, event) for event in log[answer.basis : answer.after]), "something has changed"
    elif isinstance(outcome, NotPure):
        assert isinstance(command, Take)
    elif isinstance(outcome, Rejected) and isinstance(command, Take):
        missed = Missed(sku=command.sku, place=command.place)
        places = [head for head in unchanged if log[head : head + 1] == [missed]]
        assert any(serial(log[:head], command) == missed for head in places), "refused at no place of its fact"
    elif isinstance(outcome, Rejected):
        assert any(serial(log[:head], command) == outcome.code for head in unchanged), "refused at no head since"


def holds_at(answer: Answer, head: int, log: Sequence[Event]) -> bool:
    return not any(concerns(answer.call.command, event) for event in log[answer.basis : head])


async def check_states(store: EventStore, log: Sequence[Event], *, all_keep: bool) -> None:
    """Every state that is kept is that of its place; where it is state-stored, no event of it is later."""
    heads = range(len(log) + 1)
    for sku in {event.sku for event in log if isinstance(event, Received)}:
        await check_state(store, "Product", [sku], [on_hand(log[:n], sku) for n in heads], "on_hand", last=all_keep)
        for place in PLACES:
            counted = [there(log[:n], sku, place) for n in heads]
            await check_state(store, "Pair", [sku, place], counted, "there", last=all_keep)
    for sku in SKUS:
        missed = [sum(isinstance(event, Missed) and event.sku == sku for event in log[:n]) for n in heads]
        await check_state(store, "Product", [sku], missed, "missed", last=all_keep)
    await check_state(store, "Everything", [], [moved(log[:n]) for n in heads], "moved", last=all_keep)
    for place in PLACES:
        await check_state(store, "Register", [place], [sales(log[:n], place) for n in heads], "sales", last=False)


async def check_state(
    store: EventStore, model: str, ids: Sequence[str], at: Sequence[int], field: str, *, last: bool
) -> None:
    kept = await store.model_state(f"stock.{model}", msgspec.json.encode(ids).decode())
    if kept is not None:
        assert msgspec.json.decode(kept.data)[field] == at[kept.position], f"{model} {ids} is not as it was there"
    if last:
        since = at[kept.position if kept is not None else 0 :]
        assert len(set(since)) == 1, f"{model} {ids} has changed behind what is kept of it"


KINDS = {"memory": 100, "sqlite": 30, "sqlite two instances": 30, "postgres": 8, "postgres two instances": 8}


@pytest.mark.parametrize("one_keeps_none", [False, True], ids=["", "beside older code"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_states_decide_nothing_and_lag_behind_nothing(kind: str, one_keeps_none: bool) -> None:
    """Any commands, on buses that know nothing at first: legal where they are, and what they make of models is kept."""

    @settings(max_examples=KINDS[kind], deadline=None)
    @given(
        st.lists(st.lists(calls_of(commands), min_size=1, max_size=10), min_size=1, max_size=4),
        st.sampled_from([1, 2, 1_000]),
        st.sampled_from([1, 3, 1_000]),
    )
    def holds(rounds: list[list[Call]], cached: int, tail: int) -> None:
        async def run() -> None:
            async with opened_stores(kind) as stores:
                for number, given_calls in enumerate(rounds):
                    keeps = [True, not one_keeps_none]
                    buses = [
                        await cold_bus(store, cached, keeping=keeping)
                        for store, keeping in zip(stores, keeps, strict=True)
                    ]
                    answers = await told_all(stores, buses, given_calls, str(number))
                    log = await history_of(stores[0])
                    for answer in answers:
                        check_answer(answer, log)
                    await check_again(answers, buses[1])
                    for bus in buses:
                        await bus.close()
                    assert await history_of(stores[1]) == log, "what was sent again changed nothing"
                    await check_states(stores[0], log, all_keep=all(keeps))

        with tail_limit(tail):
            asyncio.run(run())

    holds()
