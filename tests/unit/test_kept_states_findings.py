"""Kept states where commands overtake each other, make up identities, or come in numbers (rules 2, 5, 23, 24, 26)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    DecisionModel,
    Event,
    Identity,
    Transaction,
    replace,
)
from diptych.adapters.connect import connect_event_store
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.deployment import migrate
from diptych.application.registration import command_handlers, event_types
from diptych.clock import SystemClock
from diptych.errors import StoreClosed, Unstorable
from diptych.event_store.copying import compare, copy_history
from diptych.event_store.event_store import COMMIT_BYTES_MAX, AppendResult, Commit, EventStore, KeptState
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.testing.contracts.event_store_case import let_others_run
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.decision_model import ModelFold
from diptych.write_side.group_commit import BATCH_BYTES_MAX
from diptych.write_side.state_form import STATE_STORED
from tests.own_tables import AccountId, Bank, Deposit, Deposited, Deposits, Look, Looked, Note, Noted
from tests.postgres_server import new_stores, run

pytestmark = pytest.mark.anyio

WAIT_S = 20.0
HALF = 1 << 19
"""Bytes: half of what one state may have."""
MADE_UP_RUNS_MAX = 3
"""Runs of one handler whose identities are new each time: once to be told, once more, and one to spare."""


class OrderId(Identity): ...


class ClerkId(Identity): ...


class Take(Command):
    clerk: ClerkId


class Pack(Command):
    order: OrderId


class Taken(Event):
    order: OrderId
    clerk: ClerkId


class Packed(Event):
    order: OrderId


class Seen(Event):
    clerk: ClerkId


class Order(DecisionModel[OrderId], state_stored=True):
    events: int = 0

    def evolve(self, event: Taken | Packed) -> Order:
        return replace(self, events=self.events + 1)


class Clerk(DecisionModel[ClerkId]):
    taken: int = 0

    def evolve(self, event: Taken | Seen) -> Clerk:
        return replace(self, taken=self.taken + 1)


ORDER, CLERK = OrderId("o"), ClerkId("c")


class Orders:
    """A context that keeps orders.

    Attributes:
        runs: how often an order was taken.
    """

    def __init__(self, *, order: OrderId | None = None) -> None:
        """Give every order one id, or each an id of its own."""
        self.runs = 0
        self.context = BoundedContext("orders", events=[Seen])

        @self.context.command_handler
        def take(command: Take, clerk: Clerk) -> Taken:
            self.runs += 1
            return Taken(order=order or OrderId.new(), clerk=command.clerk)

        @self.context.command_handler
        def pack(command: Pack) -> Packed:
            return Packed(order=command.order)

        @self.context.command_handler
        def look(command: LookAt, order: Order) -> SawOrder:
            return SawOrder(order=command.order, events=order.events)


class LookAt(Command):
    order: OrderId


class SawOrder(Event):
    order: OrderId
    events: int


async def kept(app: Application, model: str, key: str) -> KeptState | None:
    return await app.partition().store.model_state(model, msgspec.json.encode([key]).decode())


# ── identities that are made up ──────────────────────────────────────────────


async def test_a_handler_may_make_up_the_identity_of_what_is_kept(store_url: str) -> None:
    """Another one each time that it is run: the model is known to be new by its condition."""
    orders = Orders()
    async with Application(orders.context, store=store_url, projecting=False) as app:
        (event,) = (await app.execute(Take(clerk=CLERK))).events
        assert isinstance(event, Taken)
        assert orders.runs <= MADE_UP_RUNS_MAX
        assert await kept(app, "orders.Order", event.order) == KeptState(STATE_STORED, b'{"events":1}', Position(1))
        many = await asyncio.gather(*(app.execute(Take(clerk=CLERK)) for _ in range(30)))
        for receipt in many:
            (event,) = receipt.events
            assert isinstance(event, Taken)
            found = await kept(app, "orders.Order", event.order)
            assert found == KeptState(STATE_STORED, b'{"events":1}', Position(receipt.position))


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    with closing(Bank(request.param, tmp_path)) as made:
        made.sql("INSERT INTO accounts VALUES ('ada', 0), ('bob', 0)")
        yield made


class Bell:
    rung = 0


def opening(bank: Bank, *, services: bool) -> BoundedContext:
    """A context whose handler takes the transaction and makes up an account, each time another one."""
    context = BoundedContext("bank")

    @context.command_handler
    def look(command: Look, deposits: Deposits) -> Looked:
        return Looked(account=command.account, count=deposits.count)

    def deposited() -> Deposited:
        bank.runs += 1
        return Deposited(account=AccountId.new(), cents=0, balance=0)

    def ring(command: Note, transaction: Transaction, bell: Bell) -> Deposited:
        return deposited()

    async def ring_async(command: Note, transaction: Transaction, bell: Bell) -> Deposited:
        return deposited()

    def make(command: Note, transaction: Transaction) -> Deposited:
        return deposited()

    async def make_async(command: Note, transaction: Transaction) -> Deposited:
        return deposited()

    if bank.database != "postgres":
        context.command_handler(ring if services else make)
    else:
        context.command_handler(ring_async if services else make_async)
    return context


@pytest.mark.parametrize("services", [False, True], ids=["pure", "services"])
async def test_a_handler_with_the_transaction_is_run_once_whatever_its_events_change(
    bank: Bank, services: bool
) -> None:
    """What they change of models that nobody has read yet is read in the middle of it."""
    context = opening(bank, services=services)
    async with Application(context, store=bank.url, services={Bell: Bell()}) as app, asyncio.timeout(WAIT_S):
        (event,) = (await app.execute(Note(account=AccountId("ada")))).events
        assert isinstance(event, Deposited)
        assert bank.runs == 1
        found = await kept(app, "bank.Deposits", event.account)
        assert found == KeptState(STATE_STORED, b'{"count":1}', Position(1))


# ── what is remembered ───────────────────────────────────────────────────────


async def test_own_tables_know_what_they_have_made_of_models_that_they_do_not_decide_on(bank: Bank) -> None:
    """One after the other, no handler is run twice."""

    @bank.context.command_handler
    def look(command: Look, deposits: Deposits) -> Looked:
        return Looked(account=command.account, count=deposits.count)

    ada = AccountId("ada")
    async with Application(bank.context, store=bank.url) as app:
        for _ in range(5):
            await app.execute(Deposit(account=ada))
        assert bank.runs == 5
        assert await kept(app, "bank.Deposits", ada) == KeptState(STATE_STORED, b'{"count":5}', Position(5))


class Seldom(DecisionModel[AccountId], snapshot_every=4):
    count: int = 0

    def evolve(self, event: Noted) -> Seldom:
        return replace(self, count=self.count + 1)


async def test_own_tables_take_snapshots_only_when_they_are_due(bank: Bank) -> None:
    """Not with each command from the first one on that took one."""
    context = BoundedContext("bank")

    def note(command: Note, seldom: Seldom, transaction: Transaction) -> Noted:
        return Noted(account=command.account, number=seldom.count + 1)

    async def note_async(command: Note, seldom: Seldom, transaction: Transaction) -> Noted:
        return Noted(account=command.account, number=seldom.count + 1)

    context.command_handler(note_async if bank.database == "postgres" else note)
    ada = AccountId("ada")
    async with Application(context, store=bank.url) as app:
        taken: list[int] = []
        for _ in range(12):
            position = (await app.execute(Note(account=ada))).position
            found = await kept(app, "bank.Seldom", ada)
            taken += [position] if found is not None and found.position == position else []
    assert taken == [4, 8, 12]


class Overtaken(MemoryEventStore):
    """Somebody else appends in front of a batch.

    Attributes:
        first: what they append, once; None where nobody does.
    """

    first: NewEvent | None = None

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        first, self.first = self.first, None
        if first is not None:
            await super().append([Commit(events=(first,))])
        return await super().append(commits, base)


@asynccontextmanager
async def forgetful_bus(store: EventStore, part: BoundedContext) -> AsyncGenerator[CommandBus]:
    """A bus that remembers one model."""
    types = event_types([part])
    bus = CommandBus(command_handlers([part], {}, types), store, History(types), SystemClock())
    bus._cache._limit = 1
    await store.open()
    await bus.open()
    yield bus
    await bus.close()


async def test_what_did_not_come_about_is_in_no_state() -> None:
    """A command that followed one which lost the race does not keep what that one would have made of a model."""
    store = Overtaken(SystemClock())
    async with forgetful_bus(store, Orders(order=ORDER).context) as bus:
        store.first = NewEvent(unique_bytes(), "orders.Seen", 1, b'{"clerk":"c"}', ("clerk:c",))
        await asyncio.gather(
            bus.execute(Take(clerk=CLERK), None, Sender()), bus.execute(Pack(order=ORDER), None, Sender())
        )
        found = await store.model_state("orders.Order", '["o"]')
        assert found == KeptState(STATE_STORED, b'{"events":2}', Position(3))


# ── how much ─────────────────────────────────────────────────────────────────


class Import(Command):
    orders: int
    clerks: int


class Imported(Event):
    orders: tuple[OrderId, ...]
    clerks: tuple[ClerkId, ...]


class Meeting(DecisionModel[OrderId, ClerkId], state_stored=True):
    count: int = 0

    def evolve(self, event: Imported) -> Meeting:
        return replace(self, count=self.count + 1)


async def test_one_commit_changes_no_more_states_than_a_limit(store_url: str) -> None:
    """Every order with every clerk would be hundreds of thousands of states: it is said, and nothing done."""
    context = BoundedContext("orders")

    @context.command_handler
    def take(command: Import) -> Imported:
        return Imported(
            orders=tuple(OrderId(f"o{n}") for n in range(command.orders)),
            clerks=tuple(ClerkId(f"c{n}") for n in range(command.clerks)),
        )

    @context.command_handler
    def meet(command: Meet, meeting: Meeting) -> Met:
        return Met(order=command.order, clerk=command.clerk, count=meeting.count)

    async with Application(context, store=store_url, projecting=False) as app:
        with pytest.raises(Unstorable, match="COMMIT_STATES_MAX"):
            await app.execute(Import(orders=400, clerks=400))
        await app.execute(Import(orders=4, clerks=4))
        (met,) = (await app.execute(Meet(order=OrderId("o3"), clerk=ClerkId("c3")))).events
        assert isinstance(met, Met)
        assert met.count == 1


class Meet(Command):
    order: OrderId
    clerk: ClerkId


class Met(Event):
    order: OrderId
    clerk: ClerkId
    count: int


class Write(Command):
    order: OrderId
    text: str


class Written(Event):
    order: OrderId
    text: str


class Text(DecisionModel[OrderId], state_stored=True):
    text: str = ""

    def evolve(self, event: Written) -> Text:
        return replace(self, text=self.text or event.text)


class TextSnapshot(DecisionModel[OrderId], snapshot_every=1):
    text: str = ""

    def evolve(self, event: Written) -> TextSnapshot:
        return replace(self, text=self.text or event.text)


class WriteAll(Command):
    orders: tuple[OrderId, ...]
    text: str


@pytest.mark.parametrize("model", [Text, TextSnapshot], ids=["stored", "snapshots"])
async def test_g12_the_states_of_one_commit_have_a_limit_together(model: type[Any], store_url: str) -> None:
    """Past it, a command that changes so many is refused; as many snapshots are taken as there is room for."""
    context = BoundedContext("orders")

    @context.command_handler
    def write_all(command: WriteAll, texts: Mapping[OrderId, model]) -> Iterator[Written]:  # type: ignore[valid-type]
        for order in command.orders:
            yield Written(order=order, text=command.text)

    orders = tuple(OrderId(str(number)) for number in range(COMMIT_BYTES_MAX // HALF + 1))
    half = "x" * (HALF - len('{"text":""}'))
    async with Application(context, store=store_url, projecting=False) as app:
        for order in orders[::10]:
            ten = orders[int(order) : int(order) + 10]
            await app.execute(WriteAll(orders=ten, text=half))
        if model is Text:
            with pytest.raises(Unstorable, match="COMMIT_BYTES_MAX"):
                await app.execute(WriteAll(orders=orders, text=""))
        else:
            receipt = await app.execute(WriteAll(orders=orders, text=""))
            found = [await kept(app, "orders.TextSnapshot", order) for order in orders]
            taken = [state for state in found if state is not None and state.position == receipt.position]
            assert len(taken) == len(orders) - 1


class Watching(MemoryEventStore):
    """Keeps in mind how many bytes of states came with each batch."""

    batches: tuple[int, ...] = ()

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        self.batches += (sum(len(state.data) for commit in commits for state in commit.states),)
        return await super().append(commits, base)


async def test_g12_the_states_of_a_batch_count_as_its_bytes() -> None:
    """Small events of models with large states do not make a batch of any size."""
    context = BoundedContext("orders")

    @context.command_handler
    def write(command: Write, text: Text) -> Written:
        return Written(order=command.order, text=command.text)

    store = Watching(SystemClock())
    async with forgetful_bus(store, context) as bus:
        bus._cache._limit = 100
        orders = [OrderId(str(number)) for number in range(30)]
        await asyncio.gather(*(bus.execute(Write(order=order, text="x" * HALF), None, Sender()) for order in orders))
        store.batches = ()
        await asyncio.gather(*(bus.execute(Write(order=order, text=""), None, Sender()) for order in orders))
    assert sum(store.batches) > 30 * HALF
    assert max(store.batches) <= BATCH_BYTES_MAX + 2 * HALF


# ── which code ───────────────────────────────────────────────────────────────


def models() -> Iterator[type[Any]]:
    """The same model again and again, with one thing changed."""

    def model(start: int, formerly: Sequence[str], tags: Sequence[str]) -> type[Any]:
        class PlaceId(Identity, tag="place", formerly=tags): ...

        class Entered(Event, formerly=formerly):
            place: PlaceId

        class Visits(DecisionModel[PlaceId], snapshot_every=2):
            count: int = start

            def evolve(self, event: Entered) -> Visits:
                return replace(self, count=self.count + 1)

        return Visits

    yield model(0, (), ())
    yield model(1, (), ())
    yield model(0, ("Came",), ())
    yield model(0, (), ("spot",))


def test_a_snapshot_is_of_the_fold_whatever_of_it_has_changed() -> None:
    """Where it begins, and by which former names events and identities are found, are parts of it."""

    def fold(model: type[Any]) -> str:
        form = ModelFold(model, event_types([visits(model)])).form
        assert form is not None
        return form.fold

    def visits(model: type[Any]) -> BoundedContext:
        context = BoundedContext("visits")

        @context.command_handler
        def take(command: Take, visits: model) -> Taken:  # type: ignore[valid-type]
            raise NotImplementedError

        return context

    folds = [fold(model) for model in models()]
    assert len(set(folds)) == len(folds)
    again = [fold(model) for model in models()]
    assert again == folds


async def test_the_order_in_which_events_are_named_names_no_model() -> None:
    """Its state is found again where two events of other contexts have changed places in the annotation."""

    class First(DecisionModel[OrderId], state_stored=True):
        def evolve(self, event: Taken | Met) -> First: ...

    class Second(DecisionModel[OrderId], state_stored=True):
        def evolve(self, event: Met | Taken) -> Second: ...

    types = event_types([BoundedContext("orders", events=[Taken]), BoundedContext("clerks", events=[Met])])
    forms = [ModelFold(model, types).form for model in (First, Second)]
    assert [form.model.partition(".")[0] for form in forms if form is not None] == ["clerks", "clerks"]


class RoomId(Identity, formerly=["cell", "hall"]): ...


class Entered(Event, formerly=["Came"]):
    rooms: tuple[RoomId, ...]


class Enter(Command):
    rooms: tuple[RoomId, ...]


class CountVisits(Command):
    room: RoomId


class Visited(Event):
    room: RoomId
    visits: int


class Visits(DecisionModel[RoomId], state_stored=True):
    count: int = 0

    def evolve(self, event: Entered) -> Visits:
        return replace(self, count=self.count + 1)


async def test_states_are_of_events_by_all_their_names(store_url: str) -> None:
    """What was stored under former names, also by older code in between, is in every state that is kept."""
    context = BoundedContext("rooms")

    @context.command_handler
    def enter(command: Enter) -> Entered:
        return Entered(rooms=command.rooms)

    @context.command_handler
    def count(command: CountVisits, visits: Visits) -> Visited:
        return Visited(room=command.room, visits=visits.count)

    def came(name: str, tag: str) -> NewEvent:
        return NewEvent(unique_bytes(), f"rooms.{name}", 1, b'{"rooms":["a"]}', (f"{tag}:a",))

    async with Application(context, store=store_url, projecting=False) as app:
        store = app.partition().store
        await store.append([Commit(events=(came("Came", "cell"), came("Came", "hall"), came("Entered", "cell")))])
        for older in (came("Came", "hall"), came("Entered", "cell")):
            receipt = await app.execute(Enter(rooms=(RoomId("a"), RoomId("b"))))
            state = await kept(app, "rooms.Visits", "a")
            assert state == KeptState(STATE_STORED, b'{"count":%d}' % (receipt.position), Position(receipt.position))
            await store.append([Commit(events=(older,))])
        (visited,) = (await app.execute(CountVisits(room=RoomId("a")))).events
        assert visited == Visited(room=RoomId("a"), visits=7)
        assert (await kept(app, "rooms.Visits", "b")) == KeptState(STATE_STORED, b'{"count":2}', Position(6))


async def test_a_copy_has_the_states_as_well(store_url: str) -> None:
    """As they are, at their places; and its models go on from them."""
    orders, source, clock = Orders(order=ORDER), MemoryEventStore(SystemClock()), SystemClock()
    async with forgetful_bus(source, orders.context) as bus:
        await bus.execute(Take(clerk=CLERK), None, Sender())
        await bus.execute(Pack(order=ORDER), None, Sender())
        state = await source.model_state("orders.Order", '["o"]')
        assert state is not None
        target = connect_event_store(store_url, clock)
        await target.open()
        at = await copy_history(source, target, lambda _: nullcontext(lambda *_: None))
        assert await target.model_state("orders.Order", '["o"]') == state
        assert (await compare(source, target, at, lambda _: nullcontext(lambda *_: None))).difference is None
    async with forgetful_bus(target, orders.context) as bus:
        receipt = await bus.execute(Pack(order=ORDER), None, Sender())
        found = await target.model_state("orders.Order", '["o"]')
        assert found == KeptState(STATE_STORED, b'{"events":3}', Position(receipt.position))
    await target.close()


# ── while it closes ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("bank", ["memory", "sqlite"], indirect=True)
async def test_a_handler_that_is_overtaken_by_the_end_leaves_nothing(bank: Bank) -> None:
    """What its events change cannot be read any more: it is told, its rows are taken back, and nobody waits for it."""

    @bank.context.command_handler
    def look(command: Look, deposits: Deposits) -> Looked:
        return Looked(account=command.account, count=deposits.count)

    running, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(*_: object) -> None:
        loop.call_soon_threadsafe(running.set)
        assert ended.wait(WAIT_S)

    bank.hook = wait
    app = Application(bank.context, store=bank.url)
    await app.open()
    deposit = asyncio.create_task(app.execute(Deposit(account=AccountId("ada"), cents=5)))
    async with asyncio.timeout(WAIT_S):
        await running.wait()
        store = app.partition().store
        closing = asyncio.create_task(store.close())
        while not await is_closed(store):
            await let_others_run()
        ended.set()
        with pytest.raises(StoreClosed):
            await deposit
        await closing
        await app.close()
    assert bank.balances() == {"ada": 0, "bob": 0}


async def is_closed(store: EventStore) -> bool:
    try:
        await store.head()
    except StoreClosed:
        return True
    return False


# ── stores of before ─────────────────────────────────────────────────────────


async def test_a_schema_of_before_is_migrated_and_keeps_states_from_then_on() -> None:
    """With a history, as a dump of it has brought it back."""
    url = await new_stores()
    quoted = parse_url(url).quoted_schema
    context = Orders(order=ORDER).context
    async with Application(context, store=url, projecting=False) as app:
        await app.execute(Take(clerk=CLERK))
    await run(
        url,
        f"DROP TABLE {quoted}.model_states, {quoted}.horizons, {quoted}.model_unions",
        f"DROP FUNCTION {quoted}.keep_facts, {quoted}.keep_models",
        f"ALTER TABLE {quoted}.history DROP COLUMN tagging, DROP COLUMN unfinished, DROP COLUMN models",
        f"ALTER TABLE {quoted}.event_versions DROP COLUMN facts",
        f"DELETE FROM {quoted}.migrations WHERE store = 'event store' AND number > 5",
    )
    with pytest.raises(ConfigurationError, match="migrate"):
        await Application(context, store=url, projecting=False).open()
    await migrate(url, "event_store")
    async with Application(context, store=url, projecting=False) as app:
        await app.execute(Pack(order=ORDER))
        assert await kept(app, "orders.Order", ORDER) == KeptState(STATE_STORED, b'{"events":2}', Position(2))
