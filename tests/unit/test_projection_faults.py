"""What a projection may choke on, and who else writes meanwhile: nothing is skipped, doubled, or stops the others."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    EventContext,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    replace,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.application.registration import event_types, projections
from diptych.clock import SystemClock
from diptych.errors import Blocked, InvalidMessage, NotFresh, UnreadableEvent
from diptych.event_store.event_store import Commit
from diptych.event_store.history import History
from diptych.event_store.position import START
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Order, SliceWrite, WriteResult, Written
from diptych.read_side.subscriber import Subscription, compile_subscriber
from diptych.testing.manual_clock import ManualClock
from tests.parking import ACTOR, REASON

pytestmark = pytest.mark.anyio

TOO_LARGE = 1 << 70
ROWS_MAX = 1_000


class Sku(Identity): ...


class Counted(Event):
    sku: Sku
    other: Sku = Sku("other")
    amount: int = 1


class Stock(ReadModel):
    sku: Key[Sku]
    amount: int = 0
    events: int = 0


class Ledger(ReadModel):
    sku: Key[Sku]
    document: dict[str, object] = {}


class Total(ReadModel):
    sku: Key[Sku]
    total: int = 0


class Kind(enum.StrEnum):
    GOOD = "good"


class Entry(ReadModel):
    sku: Key[Sku]
    kind: str = ""
    size: Kind = Kind.GOOD
    amount: int = 0
    document: dict[str, object] = {}


class WatchedReadStore(MemoryReadStore):
    """A read store in memory that lets something happen just before a write, and keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], Awaitable[None]] | None = None
        self.written: list[SliceWrite] = []

    async def write(self, writes: Sequence[SliceWrite]) -> list[WriteResult]:
        if self.before is not None:
            await self.before()
        results = await super().write(writes)
        self.written += [write for write, result in zip(writes, results, strict=True) if isinstance(result, Written)]
        return results


class Warehouse:
    """A history of counts, its read store, and any number of projectors on them."""

    def __init__(self, context: BoundedContext) -> None:
        self.types = event_types([context])
        self.store = MemoryEventStore(SystemClock())
        self.read_store = WatchedReadStore()
        self.projections = projections([context], self.types)

    async def open(self, *events: Event) -> Projector:
        await self.store.open()
        await self.read_store.open()
        await self.append(*events)
        return await self.projector()

    async def append(self, *events: Event) -> None:
        for event in events:
            found = self.types.of(type(event))
            data, settled = found.codec.settle(event)
            new = NewEvent(unique_bytes(), found.name, 1, data, found.tags(settled))
            await self.store.append([Commit((new,))])

    async def projector(self) -> Projector:
        made = Projector(self.store, History(self.types), self.read_store, self.projections)
        await made.open()
        return made

    async def rows(self, model: type[ReadModel]) -> list[ReadModel]:
        (projection,) = (found for found in self.projections if found.form.cls is model)
        order = [Order(column) for column in projection.form.table.key]
        async with self.read_store.snapshot() as snapshot:
            rows = await snapshot.find(projection.name, (), order, ROWS_MAX)
        return [projection.form.model(row) for row in rows]

    async def blocked(self, model: type[ReadModel]) -> dict[str, int]:
        (projection,) = (found for found in self.projections if found.form.cls is model)
        async with self.read_store.snapshot() as snapshot:
            return {found.key: int(found.position) for found in await snapshot.blocked(projection.name)}


def both(event: Counted) -> tuple[Sku, Sku]:
    return event.sku, event.other


async def run(projector: Projector) -> None:
    while await projector.advance(projector.slices):
        pass


def counted(sku: str, amount: int = 1, other: str = "other") -> Counted:
    return Counted(sku=Sku(sku), other=Sku(other), amount=amount)


def with_stock(context: BoundedContext | None = None) -> BoundedContext:
    context = context or BoundedContext("warehouse", events=[Counted])

    @context.projection
    def stock(row: Stock, event: Counted) -> Stock:
        if event.amount == 13:
            raise ValueError("poisoned")
        return replace(row, amount=event.amount, events=row.events + 1)

    return context


# ── what a projection may choke on ───────────────────────────────────────────


async def test_g9_a_document_that_cannot_be_written_blocks_its_key_alone() -> None:
    """Whatever goes wrong when a row is encoded, other keys and other projections go on."""
    context = with_stock()

    @context.projection
    def ledger(row: Ledger, event: Counted) -> Ledger:
        held: object = event.amount
        if event.amount == 5:
            for _ in range(100_000):
                held = [held]  # deeper than any encoder goes
        if event.amount == 6:
            held = object()
        return replace(row, document={"held": held})

    warehouse = Warehouse(context)
    projector = await warehouse.open(counted("a"), counted("b", 5), counted("a", 2), counted("c", 6), counted("d"))
    await run(projector)
    assert await warehouse.blocked(Ledger) == {'["b"]': 2, '["c"]': 4}
    assert [row.document for row in await warehouse.rows(Ledger)] == [  # type: ignore[attr-defined]
        {"held": 2},
        {"held": 1},
    ]
    assert len(await warehouse.rows(Stock)) == 4


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda row: replace(row, kind="a\0b"), "cannot be stored: column kind cannot hold 'a\\x00b': it contains NUL"),
        (lambda row: replace(row, amount=TOO_LARGE), "column amount cannot hold 1180591620717411303424: it needs more"),
        (lambda row: replace(row, amount="x"), "column amount cannot hold 'x': it is no int"),
        (lambda row: replace(row, size="x"), "column size cannot hold 'x'"),
        (lambda row: replace(row, document={"held": object()}), "column document cannot hold {'held': <object"),
        (lambda row: Entry(sku=Sku("b")), "returned a row with the key"),
    ],
)
async def test_a_row_that_cannot_be_stored_is_told_by_read_model_key_field_and_function(
    returned: Callable[[Entry], Entry], told: str
) -> None:
    """And by no place in the code that looks at it: the author of the projection can do nothing there."""
    context = BoundedContext("warehouse", events=[Counted])

    @context.projection
    def entries(row: Entry, event: Counted) -> Entry:
        return returned(row)

    warehouse = Warehouse(context)
    await run(await warehouse.open(counted("a")))
    async with warehouse.read_store.snapshot() as snapshot:
        (blocked,) = await snapshot.blocked("warehouse.Entry")
    assert told in blocked.error
    assert blocked.error.startswith(f"{entries.__module__}.{entries.__qualname__} returned a row")
    assert "Entry" in blocked.error
    assert 'the key ["a"]' in blocked.error
    assert ".py" not in blocked.error


@pytest.mark.parametrize("key", [["a"], {"a": 1}, 7, None, ("a", "b"), object(), "a\0"])
async def test_g9_a_key_that_is_none_stops_its_projection_alone(key: object) -> None:
    """A key function that gives no value of the key column stops that slice, which says why; the others go on."""
    context = with_stock()

    def key_of(event: Counted) -> object:
        return key if event.amount == 5 else event.sku

    @context.projection(key=key_of)
    def total(row: Total, event: Counted) -> Total:
        return replace(row, total=row.total + event.amount)

    warehouse = Warehouse(context)
    projector = await warehouse.open()
    await warehouse.append(counted("a"), counted("b", 5), counted("a", 2))
    await run(projector)
    stopped = {slice.projection.form.name: slice.stopped for slice in projector.slices}
    assert stopped["Stock"] == ""
    assert "position 2" in stopped["Total"]
    assert await warehouse.rows(Total) == [Total(sku=Sku("a"), total=1)]
    assert len(await warehouse.rows(Stock)) == 2


async def test_g9_an_event_that_meets_a_blocked_key_never_moves_the_blockade() -> None:
    """A key stays blocked from its first position on, also if a later event of it fails in another way."""
    context = BoundedContext("warehouse", events=[Counted])

    @context.projection(keys=both)
    def ledger(row: Ledger, event: Counted) -> Ledger:
        if event.amount == 13 and row.sku == "a":
            raise ValueError("poisoned")
        return replace(row, document={"held": object() if event.amount == 5 else event.amount})

    warehouse = Warehouse(context)
    projector = await warehouse.open(counted("a", 13, "b"), counted("a", 1, "b"))
    await run(projector)
    assert await warehouse.blocked(Ledger) == {'["a"]': 1}
    await warehouse.append(counted("a", 5, "b"))
    await run(projector)
    assert await warehouse.blocked(Ledger) == {'["a"]': 1, '["b"]': 3}


async def test_g9_a_replay_stops_at_what_it_cannot_read() -> None:
    """Events behind one that this code cannot read may concern the key: the replay says so and changes nothing."""
    warehouse = Warehouse(with_stock())
    projector = await warehouse.open(counted("a", 13), counted("a"), counted("b"), counted("a", 2))
    await run(projector)
    recorded = warehouse.store._events[2]
    warehouse.store._events[2] = type(recorded)(
        recorded.position, recorded.event_id, recorded.type, 1, b"{}", recorded.tags, b"{}", recorded.recorded_at
    )
    blocked_keys = BlockedKeys(projector, warehouse.store, warehouse.read_store, ManualClock())
    for again in (blocked_keys.retry, blocked_keys.discard):
        found = await again("warehouse.Stock", '["a"]', position=1, actor=ACTOR, reason=REASON)
        assert found is not None
        assert found.position == 1
        assert "position 3" in found.error
    assert await warehouse.blocked(Stock) == {'["a"]': 1}
    assert await warehouse.read_store.discards("warehouse.Stock") == []


# ── who else writes ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("amounts", [(1, 13, 1, 2), (1, 2, 1, TOO_LARGE), (TOO_LARGE, 1, 1, 1)])
@pytest.mark.parametrize("at", range(6))
async def test_g5_a_projector_that_is_overtaken_in_the_middle_of_a_batch_skips_and_doubles_nothing(
    amounts: tuple[int, ...], at: int
) -> None:
    """Another projector writes between any two writes of a bisected batch: every event is folded once."""
    context = BoundedContext("warehouse", events=[Counted])

    @context.projection
    def ledger(row: Ledger, event: Counted) -> Ledger:
        held = object() if event.amount == TOO_LARGE else event.amount
        seen = row.document.get("seen", 0)
        assert isinstance(seen, int)
        return replace(row, document={"held": held, "seen": seen + 1})

    @context.projection
    def stock(row: Stock, event: Counted) -> Stock:
        if event.amount == 13:
            raise ValueError("poisoned")
        return replace(row, amount=row.amount + event.amount % 1_000, events=row.events + 1)

    warehouse = Warehouse(context)
    events = [counted(sku, amount) for amount in amounts for sku in ("a", "b") if sku == "a" or amount < 10]
    projector = await warehouse.open(*events)
    other = await warehouse.projector()
    writes = 0

    async def overtake() -> None:
        nonlocal writes
        writes += 1
        if writes - 1 == at:
            warehouse.read_store.before = None
            other._batch_max = 3
            await other.advance(other.slices)

    warehouse.read_store.before = overtake
    await run(projector)
    await run(other)
    good = len([amount for amount in amounts if amount < 10])
    seen_by_b = [row.document["seen"] for row in await warehouse.rows(Ledger) if row.sku == "b"]  # type: ignore[attr-defined]
    assert seen_by_b == [good]
    assert [row.events for row in await warehouse.rows(Stock) if row.sku == "b"] == [good]  # type: ignore[attr-defined]


async def test_g5_of_two_projectors_one_folds_and_the_other_goes_on_from_there() -> None:
    """A stale checkpoint writes nothing, and the loser learns the new one."""
    warehouse = Warehouse(with_stock())
    one = await warehouse.open(*(counted("a") for _ in range(9)))
    two = await warehouse.projector()
    one._batch_max, two._batch_max = 2, 3
    for projector in (one, two, one, two, one, two, one, two, two, one):
        await projector.advance(projector.slices)
    assert await warehouse.rows(Stock) == [Stock(sku=Sku("a"), amount=1, events=9)]
    assert {slice.position for projector in (one, two) for slice in projector.slices} == {9}


async def test_g5_rows_and_checkpoint_are_one_write() -> None:
    """Every write that moves the checkpoint over an event carries the rows of that event."""
    warehouse = Warehouse(with_stock())
    projector = await warehouse.open(counted("a"), counted("b"))
    await run(projector)
    assert [(write.checkpoint.position, len(write.upserts)) for write in warehouse.read_store.written] == [(2, 2)]
    again = await warehouse.projector()
    assert not await again.advance(again.slices)


# ── subscribers ──────────────────────────────────────────────────────────────


async def test_a_subscriber_that_is_overtaken_goes_on_from_there() -> None:
    """Of two processes that deliver, the loser does not deliver the same batch for ever."""
    context = with_stock()
    heard: list[int] = []

    async def notify(events: Sequence[tuple[Counted, EventContext]]) -> None:
        heard.extend(context.position for _, context in events)

    context.subscriber(notify)
    warehouse = Warehouse(context)
    await warehouse.open(counted("a"), counted("b"))
    one, two = (
        Subscription(
            compile_subscriber("warehouse", context.subscribers[0], {}, warehouse.types),
            warehouse.store,
            History(warehouse.types),
            warehouse.read_store,
        )
        for _ in range(2)
    )
    await one.open()
    await two.open()
    assert await one._deliver_batch()
    await two._deliver_batch()
    await warehouse.append(counted("c"))
    while await two._deliver_batch():
        pass
    assert (one.position, two.position) == (2, 3)
    assert sorted(set(heard)) == [1, 2, 3]
    assert heard.count(1) <= 2


# ── freshness ────────────────────────────────────────────────────────────────


class Count(Command):
    sku: Sku


class StockOf(Query[Stock | None]):
    sku: Sku


class Guarded(Query[int]):
    """Its handler catches whatever the reader raises."""


def counting() -> BoundedContext:
    context = with_stock(BoundedContext("warehouse"))

    @context.command_handler
    def count(command: Count) -> Counted:
        return Counted(sku=command.sku)

    @context.query_handler
    async def guarded(query: Guarded, read: Reader) -> int:
        try:
            return len(await read.find(Stock))
        except Exception:  # noqa: BLE001 — what a careless handler does
            return -1

    return context


async def test_g7_a_handler_that_catches_everything_is_asked_again_all_the_same(store_url: str) -> None:
    """That a read model is behind cannot be swallowed: the answer is fresh, or there is none."""
    async with Application(counting(), store=store_url) as app:
        for n in range(1, 6):
            receipt = await app.execute(Count(sku=Sku(f"s{n}")))
            assert await app.query(Guarded(), after=receipt) == n
    async with Application(counting(), store="memory:", projecting=False) as app:
        receipt = await app.execute(Count(sku=Sku("a")))
        with pytest.raises(NotFresh):
            await app.query(Guarded(), after=receipt, wait_s=0.0)


@pytest.mark.parametrize("within_s", [float("nan"), float("inf"), -1.0])
async def test_ages_that_are_none_are_refused(within_s: float) -> None:
    """Seconds are finite and not negative."""
    async with Application(counting(), store="memory:") as app:
        with pytest.raises(InvalidMessage, match="within_s"):
            await app.query(StockOf(sku=Sku("a")), within_s=within_s)


async def test_within_accepts_a_long_time() -> None:
    """An age past the beginning of the calendar asks for nothing."""
    async with Application(counting(), store="memory:", clock=ManualClock(), projecting=False) as app:
        await app.execute(Count(sku=Sku("a")))
        assert await app.query(StockOf(sku=Sku("a")), within_s=timedelta(days=400_000).total_seconds() * 3) is None


async def test_g9_a_projection_that_stopped_is_waited_for_once_its_code_is_mended(tmp_path: object) -> None:
    """After a restart with a mended key function, a strict query waits for the fold instead of repeating old news."""
    broken = True

    def key(event: Counted) -> Sku:
        if broken:
            raise KeyError("no key")
        return event.sku

    def context() -> BoundedContext:
        made = BoundedContext("warehouse")

        @made.command_handler
        def count(command: Count) -> Counted:
            return Counted(sku=command.sku)

        @made.projection(key=key)
        def stock(row: Stock, event: Counted) -> Stock:
            return replace(row, events=row.events + 1)

        return made

    url = f"sqlite:{tmp_path}/events.db"
    async with Application(context(), store=url) as app:
        receipt = await app.execute(Count(sku=Sku("a")))
        with pytest.raises(Blocked, match="stopped"):
            await app.query(StockOf(sku=Sku("a")), after=receipt)
    broken = False
    for _ in range(3):
        async with Application(context(), store=url) as app:
            assert await app.query(StockOf(sku=Sku("a")), after=receipt.token) == Stock(sku=Sku("a"), events=1)


# ── events that cannot be read ───────────────────────────────────────────────


async def test_an_event_whose_fields_no_longer_fit_stops_projections_and_fails_commands() -> None:
    """A field made required: the projection stops before that position, and says which event and what mends it."""
    warehouse = Warehouse(with_stock())
    projector = await warehouse.open()
    await warehouse.append(counted("a"))
    new = NewEvent(unique_bytes(), "warehouse.Counted", 1, b'{"amount": 1}', ("sku:a",))
    await warehouse.store.append([Commit((new,))])
    await warehouse.append(counted("b"))
    await run(projector)
    (slice,) = projector.slices
    assert "position 2" in slice.stopped
    assert "missing required field `sku`" in slice.stopped
    assert "default" in slice.stopped
    assert slice.position == 1
    assert await warehouse.rows(Stock) == [Stock(sku=Sku("a"), amount=1, events=1)]
    with pytest.raises(UnreadableEvent) as unreadable:
        History(warehouse.types).event((await warehouse.store.read(warehouse.projections[0].query, START, 9)).events[1])
    assert (unreadable.value.type, unreadable.value.position) == ("warehouse.Counted", 2)
