"""What is kept of decision models decides nothing (rules 24, 26): commands end as they would, folded from events.

Commands run at the same time on two buses over one store, in rounds, after each of which both buses are made anew and
know nothing. Plain Python replays the history: every command is legal at its place; and after each round every state
that is kept is what the events up to its place make of it, and no event of a state-stored model is later than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Command, Conflict, Event, Rejected
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import EventStore
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import Receipt
from tests.postgres_server import new_store
from tests.stock import (
    SALES_MAX,
    Count,
    Counted,
    Move,
    Moved,
    PlaceId,
    Receive,
    Received,
    Sell,
    Sku,
    Sold,
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
    st.builds(Count),
)
calls = st.tuples(commands, st.integers(0, 1), st.integers(0, 8))


# ── the same in plain Python ─────────────────────────────────────────────────


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
        case Sell(skus=sold, place=place):
            if sales(history, place) + len(sold) > SALES_MAX:
                return "closed"
            short = any(on_hand(history, sku) < sold.count(sku) for sku in sold)
            return "out of stock" if short else Sold(skus=sold, place=place)
        case _:
            return Counted(total=sum(isinstance(event, Sold | Counted) for event in history))


# ── what is executed ─────────────────────────────────────────────────────────


@asynccontextmanager
async def opened_store(kind: str) -> AsyncIterator[EventStore]:
    with TemporaryDirectory() as folder:
        store: EventStore = MemoryEventStore(SystemClock())
        if kind == "sqlite":
            store = SqliteEventStore(str(Path(folder, "events.db")), SystemClock(), synchronous="NORMAL")
        elif kind == "postgres":
            store = connect_postgres(await new_store(), SystemClock())
        await store.open()
        try:
            yield store
        finally:
            await store.close()


async def cold_bus(store: EventStore) -> CommandBus:
    """A bus that knows nothing."""
    parts = [warehouse()]
    types = event_types(parts)
    bus = CommandBus(command_handlers(parts, {}, types), store, History(types), SystemClock())
    await bus.open()
    return bus


async def told(bus: CommandBus, command: Command, turns: int) -> Receipt | Rejected | None:
    for _ in range(turns):
        await checkpoint()
    try:
        return await bus.execute(command, None, Sender())
    except Rejected as rejected:
        return rejected
    except Conflict:
        return None


async def history_of(store: EventStore) -> list[Event]:
    history = History(event_types([warehouse()]))
    return [history.event(recorded) for recorded in (await store.read(ALL_EVENTS, START, READ_MAX)).events]


def check_outcome(command: Command, outcome: Receipt | Rejected | None, before: int, log: Sequence[Event]) -> None:
    if isinstance(outcome, Receipt):
        assert serial(log[: outcome.position - 1], command) == log[outcome.position - 1], "accepted as at its place"
    elif isinstance(outcome, Rejected):
        heads = range(before, len(log) + 1)
        assert any(serial(log[:head], command) == outcome.code for head in heads), "refused at no head since"


async def check_states(store: EventStore, log: Sequence[Event]) -> None:
    """Every state that is kept is that of its place; where it is state-stored, no event of it is later."""
    for sku in SKUS:
        await check_state(store, "Product", [sku], [on_hand(log[:n], sku) for n in range(len(log) + 1)], "on_hand")
        for place in PLACES:
            counted = [there(log[:n], sku, place) for n in range(len(log) + 1)]
            await check_state(store, "Pair", [sku, place], counted, "there")
    await check_state(store, "Everything", [], [moved(log[:n]) for n in range(len(log) + 1)], "moved")
    for place in PLACES:
        kept = await store.model_state("stock.Register", msgspec.json.encode([place]).decode())
        if kept is not None:
            assert msgspec.json.decode(kept.data)["sales"] == sales(log[: kept.position], place)


async def check_state(store: EventStore, model: str, ids: Sequence[str], at: Sequence[int], field: str) -> None:
    kept = await store.model_state(f"stock.{model}", msgspec.json.encode(ids).decode())
    if kept is None:
        assert set(at) == {0}, f"{model} {ids} has changed, and nothing is kept of it"
    else:
        assert msgspec.json.decode(kept.data)[field] == at[kept.position]
        assert len(set(at[kept.position :])) == 1, f"{model} {ids} has changed behind what is kept of it"


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
def test_kept_states_decide_nothing_and_lag_behind_nothing(kind: str) -> None:
    """Any commands, on buses that know nothing at first: legal where they are, and what they make of models is kept."""

    @settings(max_examples={"memory": 150, "sqlite": 60, "postgres": 15}[kind], deadline=None)
    @given(st.lists(st.lists(calls, min_size=1, max_size=10), min_size=1, max_size=4))
    def holds(rounds: list[list[tuple[Command, int, int]]]) -> None:
        async def run() -> None:
            async with opened_store(kind) as store:
                for given_calls in rounds:
                    before = (await store.head()).position
                    buses = [await cold_bus(store) for _ in range(2)]
                    asked = [told(buses[bus], command, turns) for command, bus, turns in given_calls]
                    outcomes = await asyncio.gather(*asked)
                    for bus in buses:
                        await bus.close()
                    log = await history_of(store)
                    for (command, _, _), outcome in zip(given_calls, outcomes, strict=True):
                        check_outcome(command, outcome, before, log)
                    await check_states(store, log)

        asyncio.run(run())

    holds()
