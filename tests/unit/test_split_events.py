"""One stored event is several now, or none: whoever reads it has its parts, in order, and nothing is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import UUID, uuid5

import pytest

from diptych import (
    Application,
    BoundedContext,
    DecisionModel,
    Event,
    EventContext,
    Key,
    ProcessManager,
    Reaction,
    ReadModel,
    Rejected,
    replace,
)
from diptych.application.registration import event_types, handled_commands, processes, projections
from diptych.clock import SystemClock
from diptych.errors import UnreadableEvent
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.stored_query import stored_query
from diptych.messages.codec import decode
from diptych.messages.registry import MessageTypes
from diptych.messages.unique_id import unique_bytes
from diptych.process_managers import reactions
from diptych.process_managers.process_manager import Process
from diptych.process_managers.reactions import Folded, Given, Outbox
from diptych.read_side.read_store import Failed
from diptych.testing import InMemoryApplication, scenario
from diptych.write_side.context_changed import ContextChanged
from diptych.write_side.decision_model import ModelFold
from diptych.write_side.group_commit import GroupCommit
from tests.parking import discard, parked, retry
from tests.split_orders import (
    INK,
    PEN,
    AddressGiven,
    Fields,
    GiveAddress,
    GiveAnyAddress,
    GiveOutside,
    Giving,
    Line,
    Look,
    OrderId,
    OrderPlaced,
    Pinged,
    Place,
    Seen,
    SeenOf,
    Ship,
    Shipped,
    apart,
    by_streets,
    in_euros,
    lines_of,
    nothing,
    orders,
    pinged,
    placed,
    splitting,
    store,
    until,
)

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
"""Where a second application finds what the first one has left; that every store is alike, others show."""
on_two = pytest.mark.parametrize("store_url", ["memory", "sqlite"], indirect=True)


async def seen(app: Application, order: OrderId = PEN) -> Any:
    """What decisions on an order see."""
    with pytest.raises(Rejected) as rejected:
        await app.execute(Look(order=order))
    return rejected.value.facts


async def rows(app: Application, order: OrderId = PEN) -> str:
    """What the read model shows of an order, that was stored before processes did anything."""
    await app.partition().process_worker.at_rest()
    shown = await app.query(SeenOf(order=order), freshness="latest")
    return "" if shown is None else shown.events


# ── whoever reads ────────────────────────────────────────────────────────────


async def test_everyone_has_the_parts_in_order(store_url: str) -> None:
    """Models, kept states, rows, subscribers and processes, each with what it asks for; the store keeps what it had."""
    told: list[tuple[Event, EventContext]] = []
    async with Application(orders(told=told), store=store_url) as app:
        await store(app.partition(), pinged(), placed(), placed(cents=50, street=""))
        assert await seen(app) == {
            "order": ["placed 250 EUR 0", "address Hafen 1/Germany 1", "placed 50 EUR 0"],
            "addresses": 2,
            "kept": ["Hafen 1"],
            "cents": 300,
            "every": 1,
        }
        assert await rows(app) == (
            "placed 250 EUR 0;address Hafen 1/Germany 1;placed 50 EUR 0;Shipped 0;Shipped 0;Shipped 0;"
        )
        await until(lambda: len(told) == 3, app)
        held = [event async for event in app.events(ALL_EVENTS)]
    assert [(event, context.position, context.ordinal) for event, context in told] == [
        (OrderPlaced(order=PEN, cents=250, currency="EUR"), 2, 0),
        (AddressGiven(order=PEN, lines=["Hafen 1", "Germany"]), 2, 1),
        (OrderPlaced(order=PEN, cents=50, currency="EUR"), 3, 0),
    ]
    assert told[0][1].event_id == told[1][1].event_id
    assert [(event.type, event.version) for event in held[:3]] == [
        ("shop.Pinged", 1), ("shop.OrderPlaced", 1), ("shop.OrderPlaced", 1),
    ]  # fmt: skip
    assert [decode(event.data, dict[str, str])["what"] for event in held[3:]] == [
        "bill", "parcel of 250 to Hafen 1", "bill",
    ]  # fmt: skip


@kept
async def test_states_go_on_from_parts(store_url: str) -> None:
    """A kept state and a snapshot are of parts as of any events, and what comes after them goes on."""
    async with Application(orders(), store=store_url) as app:
        await store(app.partition(), placed(), placed(cents=50, street="Kai 2", former=True))
        await app.execute(GiveAddress(order=PEN, street="Deich 3"))
        await app.execute(Place(order=PEN, cents=7))
        await app.partition().process_worker.at_rest()
        await app.close()
        await app.open()
        await store(app.partition(), placed(cents=1, street="Mole 4"))
        found = await seen(app)
    assert found["kept"] == ["Hafen 1", "Kai 2", "Deich 3", "Mole 4"]
    assert (found["cents"], found["addresses"]) == (308, 8)


@on_two
async def test_events_of_now_of_a_type_that_was_split_stay_one(store_url: str) -> None:
    """Only the version from which an upcaster splits is split, and a fold of parts is given nothing else."""
    async with Application(orders(), store=store_url) as app:
        await app.execute(Place(order=PEN))
        await app.execute(GiveAddress(order=PEN, street="Deich 3"))
        assert await seen(app) == {
            "order": ["placed 100 EUR 0", "address Deich 3/0 0"],
            "addresses": 2,
            "kept": ["Deich 3"],
            "cents": 100,
            "every": 1,
        }
        assert (await rows(app)).startswith("placed 100 EUR 0;address Deich 3/0 0;")


@kept
async def test_a_receipt_that_older_code_has_kept_tells_the_parts(store_url: str) -> None:
    """The command is not executed again."""
    old = BoundedContext("shop")

    class OrderPlaced(Event):
        order: OrderId
        cents: int
        street: str

    @old.command_handler
    def place(command: Place) -> OrderPlaced:
        return OrderPlaced(order=command.order, cents=command.cents, street="Hafen 1")

    async with Application(old, store=store_url) as app:
        await app.execute(Place(order=PEN), command_id="first")
    async with Application(orders(), store=store_url) as app:
        receipt = await app.execute(Place(order=PEN), command_id="first")
    assert receipt.position == 1
    assert [type(event).__name__ for event in receipt.events] == ["OrderPlaced", "AddressGiven"]


@on_two
async def test_stored_events_are_given_once_to_whoever_asks_for_a_part(store_url: str) -> None:
    """As they are stored; those of the type that have no such part are not, and limits count what is given."""
    given = EventQuery((QueryItem(frozenset({"shop.AddressGiven"}), frozenset({"order:pen"})),))
    async with Application(orders(shipping=False), store=store_url) as app:
        await store(app.partition(), placed(street=""), placed(), placed("ink"), placed(former=True), pinged())
        await app.execute(Place(order=PEN))
        await app.execute(GiveAddress(order=PEN, street="Deich 3"))
        found = [(event.position, event.type) async for event in app.events(given)]
        first = [event.position async for event in app.events(given, limit=2)]
        by_name = EventQuery((QueryItem(frozenset({"shop.Pinged"})),))
        assert [event.position async for event in app.events(by_name)] == [5]
    assert found == [(2, "shop.OrderPlaced"), (4, "shop.OrderCreated"), (7, "shop.AddressGiven")]
    assert first == [2, 4]


def test_what_is_split_costs_an_item_more_and_nothing_else_does() -> None:
    """The first one is what code of now stores; the others are what may have such parts, by all its names."""
    types = event_types([splitting()])

    def items(name: str, *tags: str) -> list[tuple[set[str], set[str]]]:
        query = stored_query(EventQuery((QueryItem(frozenset({name}), frozenset(tags)),)), types)
        return [(set(item.types), set(item.tags)) for item in query.items]

    split = {"shop.OrderPlaced", "shop.OrderCreated"}
    assert items("shop.AddressGiven") == [({"shop.AddressGiven"}, set()), (split, set())]
    assert items("shop.OrderPlaced") == [(split, set())]
    assert items("shop.Shipped") == [({"shop.Shipped"}, set())]
    assert items("shop.AddressGiven", "order:pen") == [
        ({"shop.AddressGiven"}, {"order:pen"}),
        ({"shop.AddressGiven"}, {"purchase:pen"}),
        (split, {"order:pen"}),
        (split, {"purchase:pen"}),
    ]


def test_a_scenario_gives_events_of_now_to_those_who_fold_them() -> None:
    """An order of today is none to a model of addresses, though what is stored as one may have such a part."""
    order = OrderPlaced(order=PEN, cents=1, currency="EUR")
    told = scenario(orders()).given(order, AddressGiven(order=PEN, lines=["Kai"]))
    told.when(GiveAddress(order=PEN, street="Mole")).then(AddressGiven(order=PEN, lines=["Mole", "1"]))


def stored(event: NewEvent) -> RecordedEvent:
    """An event as the first of a history."""
    return RecordedEvent(
        position=Position(1),
        event_id=event.event_id,
        type=event.type,
        version=event.version,
        data=event.data,
        tags=event.tags,
        metadata=event.metadata,
        recorded_at=SystemClock().now(),
    )


def test_what_splits_is_not_read_as_one_event() -> None:
    """Whoever has no place for parts is told so; and by which tags all of them are to be found."""
    history = History(event_types([splitting()]))
    with pytest.raises(UnreadableEvent, match="this is read in parts"):
        history.event(stored(placed()))
    assert history.tags(stored(placed(former=True))) == ("order:pen",)
    assert history.tags(stored(pinged())) == ()
    street = b'{"order":"pen","street":"Kai"}'
    split = stored(NewEvent(unique_bytes(), "shop.OrderPlaced", 1, street, ("order:pen",)))
    assert History(event_types([by_streets()])).tags(split) == ("order:pen", "street:Kai")


class AllAddresses(ReadModel):
    one: Key[str]
    count: int = 0


async def test_parts_are_read_in_partitions_and_across_them() -> None:
    """Each partition has its own; what is merged from them has them at its own positions, in order."""
    shop = orders(shipping=False)

    @shop.projection(commutative=True, key=lambda event: "all")
    def across(row: AllAddresses, event: AddressGiven) -> AllAddresses:
        return replace(row, count=row.count + 1)

    stores = {"pen": "memory:", "ink": "memory:", "*": "memory:"}
    async with Application(shop, store=stores, partition_by=OrderId) as app:
        await store(app.partition("pen"), placed(), placed(street=""))
        await store(app.partition("ink"), pinged("ink"), placed("ink", 7, "Kai 2"))
        assert [(await seen(app, order))["order"][-1] for order in (PEN, INK)] == [
            "placed 250 EUR 0",
            "address Kai 2/Germany 1",
        ]
        await app.execute(GiveAddress(order=INK, street="Mole"))
        await app.projected()
        assert app.across is not None
        async with app.across.read_store.snapshot() as snapshot:
            assert await snapshot.get_many("shop.AllAddresses", [("all",)]) == {("all",): ("all", 3)}


# ── decisions ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("way", [GiveAddress, GiveAnyAddress, GiveOutside])
async def test_g3_a_decision_on_parts_is_in_conflict_with_what_older_code_stores(
    store_url: str, way: type[Giving], former: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes between decision and append is found by the condition, and decided on."""
    async with Application(orders(shipping=False), store=store_url) as app:
        place, coming = app.partition().store, [placed(former=former)]
        append = place.append

        async def append_after(*commits: Any) -> Any:
            while coming:
                event = coming.pop()
                monkeypatch.setattr(place, "append", append)
                await store(app.partition(), event)
            return await append(*commits)

        monkeypatch.setattr(place, "append", append_after)
        receipt = await app.execute(way(order=PEN, street="Deich 3"))
    assert receipt.position == 2
    assert receipt.events == (AddressGiven(order=PEN, lines=["Deich 3", "1" if way is GiveAnyAddress else "2"]),)


async def test_chains_hold_over_events_of_now_of_a_split_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of one batch: an order that is about to be placed has no address in it, and breaks no decision."""
    batches: list[int] = []
    run = GroupCommit._run_batch

    async def counted(group: GroupCommit) -> None:
        batches.append(1)
        await run(group)

    monkeypatch.setattr(GroupCommit, "_run_batch", counted)
    async with Application(orders(shipping=False), projecting=False) as app:
        await seen(app)
        for way in (GiveAddress, GiveAnyAddress):
            await app.execute(way(order=PEN, street="Deich"))
        batches.clear()
        ways = [Place(order=PEN), GiveAnyAddress(order=PEN, street="Kai"), Place(order=INK), Place(order=PEN)]
        await asyncio.gather(*[app.execute(command) for command in [*ways, GiveAddress(order=PEN, street="Mole")]])
        assert (await seen(app))["every"] == 4
    assert len(batches) == 2, "one for all of them, and one to look"


async def test_a_stale_screen_is_only_stale_by_parts_that_are_meant(store_url: str) -> None:
    """An order of now is none of an address's business; one of older code is, and is told by its part."""
    async with Application(orders(shipping=False), store=store_url) as app:
        first = await app.execute(GiveAddress(order=PEN, street="Deich 3"))
        for _ in range(3):
            await app.execute(Place(order=PEN))
        second = await app.execute(GiveAddress(order=PEN, street="Kai 2"), based_on=first)
        await store(app.partition(), placed(street=""))
        assert await app.can(GiveAddress(order=PEN, street="Mole"), based_on=second)
        await store(app.partition(), placed())
        with pytest.raises(
            ContextChanged, match=r"based on position 5.*shop\.AddressGiven at position 7; n"
        ) as changed:
            await app.execute(GiveAddress(order=PEN, street="Mole 4"), based_on=second)
    (part,) = changed.value.events
    assert (part.type, part.version, part.tags) == ("shop.AddressGiven", 2, ("order:pen",))
    assert decode(part.data, AddressGiven) == AddressGiven(order=PEN, lines=["Hafen 1", "Germany"])


# ── rows ─────────────────────────────────────────────────────────────────────


class Parcel(ReadModel):
    order: Key[OrderId]
    cents: int = 0
    to: str = ""


def parcels(broken: list[str], *, lost: bool = False) -> BoundedContext:
    """A read model whose fold fails of addresses while something is broken; or does not find their rows."""
    shop = splitting()

    def key(event: OrderPlaced | AddressGiven) -> str:
        if lost and broken and isinstance(event, AddressGiven):
            raise ValueError(broken[0])
        return event.order

    @shop.projection(key=key)
    def fold(row: Parcel, event: OrderPlaced | AddressGiven) -> Parcel:
        if isinstance(event, OrderPlaced):
            return replace(row, cents=row.cents + event.cents)
        if broken:
            raise ValueError(broken[0])
        return replace(row, to=row.to + event.lines[0])

    return shop


ByHand: TypeAlias = Callable[[Application, str], Awaitable[object]]


@on_two
@pytest.mark.parametrize("way", [retry, discard])
async def test_g9_a_key_that_a_part_blocks_is_blocked_before_the_stored_event(store_url: str, way: ByHand) -> None:
    """Its row is as it was before the first part, so that a retry folds each once; a discard leaves out all."""
    broken = ["the address is odd"]
    async with Application(parcels(broken), store=store_url) as app:
        await store(app.partition(), placed(cents=1, street=""), placed(cents=10), placed("ink", 5, ""))
        await store(app.partition(), placed(cents=100, street=""))
        await app.projected()
        (blocked,) = await parked(app)
        assert (blocked.key, blocked.position) == ('["pen"]', 2)
        async with app.partition().read_store.snapshot() as snapshot:
            held = await snapshot.get_many("shop.Parcel", [("pen",), ("ink",)])
        assert sorted(held.values()) == [("ink", 5, ""), ("pen", 1, "")]
        again = await retry(app, '["pen"]')
        assert again is not None
        assert again.position == 2
        broken.clear()
        assert await way(app, '["pen"]') is None
        async with app.partition().read_store.snapshot() as snapshot:
            (row,) = (await snapshot.get_many("shop.Parcel", [("pen",)])).values()
        assert row == (("pen", 111, "Hafen 1") if way is retry else ("pen", 101, ""))
        if way is retry:
            assert (await app.rebuilds.compare("shop.Parcel")).same


@kept
async def test_no_checkpoint_is_between_two_parts(store_url: str) -> None:
    """A projection that cannot go past the second of them has not folded the first; mended, it folds both once."""
    broken = ["no idea whose"]
    context = parcels(broken, lost=True)
    async with Application(context, store=store_url) as app:
        await store(app.partition(), placed(cents=1, street=""), placed(cents=10), placed(cents=100, street=""))
        (followed,) = app.partition().projector.slices
        await until(lambda: bool(followed.stopped), app)
        assert followed.position == 1
        broken.clear()
    async with Application(context, store=store_url) as app:
        await app.projected()
        async with app.partition().read_store.snapshot() as snapshot:
            (row,) = (await snapshot.get_many("shop.Parcel", [("pen",)])).values()
    assert row == ("pen", 111, "Hafen 1")


async def test_a_batch_that_cannot_be_written_is_not_cut_between_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisected down to its events, what is written has at every checkpoint both parts of what is there (rule 12)."""
    async with Application(parcels([])) as app:
        read_store = app.partition().read_store
        write, written = read_store.write, list[Any]()

        async def write_little(writes: Any) -> Any:
            if any(each.checkpoint.position - each.generation.checkpoint.position > 1 for each in writes):
                return [Failed("too much at once") for _ in writes]
            written.extend((each.checkpoint.position, row) for each in writes for row in each.upserts)
            return await write(writes)

        monkeypatch.setattr(read_store, "write", write_little)
        await store(app.partition(), *[placed(cents=10**n) for n in range(5)])
        await app.projected()
    assert written == [(n, ("pen", int("1" * n), "Hafen 1" * n)) for n in range(1, 6)]


@on_two
async def test_each_and_slices_have_the_parts(store_url: str) -> None:
    """A projection that is split by key, of what `each` finds in a part; rebuilt it is the same."""
    shop = splitting()

    @shop.projection(each=lines_of, key=lambda line: line, partitions=3)
    def lines(row: Line, event: AddressGiven, line: str) -> Line:
        return replace(row, orders=row.orders + 1)

    async with Application(shop, store=store_url) as app:
        await store(
            app.partition(), placed(), placed("ink"), placed("ink", street="Kai 2"), placed(street=""), pinged()
        )
        await app.projected()
        async with app.partition().read_store.snapshot() as snapshot:
            held = await snapshot.get_many("shop.Line", [("Hafen 1",), ("Kai 2",), ("Germany",)])
        assert sorted(held.values()) == [("Germany", 3), ("Hafen 1", 2), ("Kai 2", 1)]
        assert (await app.rebuilds.compare("shop.Line")).same


def fingerprint(context: BoundedContext) -> dict[str, str]:
    return {found.name: found.fingerprint() for found in projections([context], event_types([context]))}


def test_a_snapshot_is_of_the_upcasters_that_split_into_its_events() -> None:
    """With another one it is folded anew; where another type's are another, it is not (rule 26)."""

    class Snapshot(DecisionModel[OrderId], snapshot_every=2):
        count: int = 0

        def evolve(self, event: AddressGiven) -> Snapshot:
            return self

    def fold(split: Any = apart, pings: Any = nothing) -> str:
        shop = splitting(split)
        shop.upcasters.pop()
        shop.upcaster(Pinged, from_version=1, into={})(pings)
        form = ModelFold(Snapshot, event_types([shop])).form
        assert form is not None
        return form.fold

    assert fold() == fold(pings=lambda stored: [])
    assert fold() != fold(split=lambda stored: [])


def test_fingerprints_cover_what_splits_into_the_events_of_a_fold() -> None:
    """Its code, what that reaches, and the versions that it gives; of other folds nothing changes (rule 23)."""

    def read_models(*, split: Any = apart, version: int = 1, splits: bool = True) -> dict[str, str]:
        shop = BoundedContext("shop", events=[OrderPlaced, AddressGiven, Shipped])
        if splits:
            shop.upcaster(OrderPlaced, from_version=1, into={OrderPlaced: 2, AddressGiven: version})(split)
        shop.upcaster(OrderPlaced, from_version=2)(in_euros)
        shop.upcaster(AddressGiven, from_version=1)(lambda stored: stored)

        @shop.projection
        def addresses(row: Parcel, event: AddressGiven) -> Parcel:
            return row

        @shop.projection
        def shipped(row: Seen, event: Shipped) -> Seen:
            return row

        return fingerprint(shop)

    def other(stored: Fields) -> Any:
        return [(OrderPlaced, stored)]

    found = [read_models(), read_models(split=other), read_models(version=2), read_models(splits=False)]
    assert len({each["shop.Parcel"] for each in found}) == 4
    assert len({each["shop.Seen"] for each in found}) == 1
    assert read_models() == found[0]


# ── processes ────────────────────────────────────────────────────────────────


async def test_commands_of_two_parts_have_ids_of_their_own() -> None:
    """They differ by the part, in the order of the parts; that of the first, or only one, is what it always was."""
    async with InMemoryApplication(orders()) as app:
        event = placed()
        await store(app.partition(), event, placed("ink", street=""))
        await app.settled()
        sent = [fact for fact in await app.facts() if isinstance(fact.event, Shipped)]
    ids = UUID("0b0ed4f6-6b8b-5d1c-9f0c-4c1f6a4b7e55")
    of_pen = [fact for fact in sent if fact.event == Shipped(order=PEN, what=getattr(fact.event, "what", ""))]
    expected = [
        str(uuid5(ids, "\0".join(("shop.Shipping", "pen", str(UUID(bytes=event.event_id)), "command", ordinal))))
        for ordinal in ("0", "1000")
    ]
    assert [fact.context.command_id for fact in of_pen] == expected
    assert [getattr(fact.event, "what", "") for fact in of_pen] == ["bill", "parcel of 250 to Hafen 1"]
    assert reactions.REACTION_COMMANDS_MAX <= reactions.PART_ORDINALS
    assert reactions.REACTION_TIMEOUTS_MAX <= reactions.PART_ORDINALS


def shipping(broken: list[str]) -> BoundedContext:
    """A shop whose process cannot react to addresses while something is broken."""
    shop = orders(shipping=False)

    class Shipping(ProcessManager[OrderId]):
        order: OrderId
        cents: int = 0

        def react(self, event: OrderPlaced | AddressGiven) -> Reaction[Shipping]:
            if isinstance(event, OrderPlaced):
                return Reaction(replace(self, cents=self.cents + event.cents), [Ship(order=self.order, what="bill")])
            if broken:
                raise ValueError(broken[0])
            return Reaction(self, [Ship(order=self.order, what=f"parcel of {self.cents}")])

    shop.process_manager(from_beginning=True)(Shipping)
    return shop


def compiled(context: BoundedContext) -> tuple[Process, History, Outbox]:
    types = event_types([context])
    commands = MessageTypes("command", handled_commands([context]))
    (process,) = processes([context], types, commands.names)
    return process, History(types), Outbox(process, commands, types)


@on_two
@pytest.mark.parametrize("begun", [False, True])
async def test_an_instance_that_fails_at_a_part_has_taken_none_of_them(store_url: str, begun: bool) -> None:
    """Blocked as it was before the stored event, with nothing sent; when it goes on, it takes each part once (G9)."""
    broken = ["the address is odd"]
    async with Application(shipping(broken), store=store_url) as app:
        events = [placed(cents=1, street="")] * begun + [placed(cents=10), placed(cents=100, street="")]
        await store(app.partition(), *events)
        await app.partition().process_worker.at_rest()
        instance = (await app.processes.show("Shipping", "pen")).status
        assert (instance.blocked, instance.state["cents"]) == (len(events) - 1, int(begun))
        assert len([event async for event in app.events(ALL_EVENTS)]) == len(events) + begun, "nothing was sent"
        broken.clear()
        await app.processes.retry("Shipping", "pen")
        await app.partition().process_worker.at_rest()
        found = await app.processes.show("Shipping", "pen")
        instance = found.status
        shipped = EventQuery((QueryItem(frozenset({"shop.Shipped"})),))
        sent = [decode(event.data, Shipped).what async for event in app.events(shipped)]
    total = 110 + begun
    assert (instance.blocked, instance.state["cents"]) == (0, total)
    assert sent == ["bill"] * begun + ["bill", f"parcel of {10 + begun}", "bill"]


def test_an_instance_that_goes_on_in_the_same_batch_begins_before_the_parts() -> None:
    """Blocked, it has neither the state that the first part made of it nor what that gave; then each comes once."""
    broken = ["the address is odd"]
    process, history, outbox = compiled(shipping(broken))
    recorded = stored(placed(cents=10))
    found = history.matching(recorded, process.wanted)
    parts = [Given(recorded, part, history.context(recorded, ordinal)) for ordinal, part in found]
    folded = Folded(process, outbox, ())
    folded.take_together("pen", parts)
    blocked = folded.find("pen")
    assert blocked is not None
    assert (blocked.blocked, blocked.started, decode(blocked.state, dict[str, Any])["cents"]) == (1, 1, 0)
    assert folded.added == []
    broken.clear()
    folded.unblock("pen")
    folded.take_together("pen", parts)
    known = folded.find("pen")
    assert known is not None
    assert decode(known.state, dict[str, Any])["cents"] == 10
    assert [(item.position, item.ordinal) for item in folded.added] == [(1, 0), (1, 1000)]


async def test_an_instance_is_shown_with_the_stored_events_that_reach_it_in_part() -> None:
    """As they are stored; an order of today is none to a process that takes addresses."""
    shop = splitting()

    @shop.process_manager(from_beginning=True)
    class Delivering(ProcessManager[OrderId]):
        def react(self, event: AddressGiven) -> Reaction[Delivering]:
            return Reaction(self)

    @shop.command_handler
    def place(command: Place) -> OrderPlaced:
        return OrderPlaced(order=command.order, cents=command.cents, currency="EUR")

    async with Application(shop) as app:
        await store(app.partition(), placed(street=""), placed())
        await app.execute(Place(order=PEN))
        await app.partition().process_worker.at_rest()
        shown = await app.processes.show("Delivering", "pen")
    assert [(event.position, event.type) for event in shown.events] == [(2, "shop.OrderPlaced")]


class Moved(Event, version=2):
    source: OrderId
    target: OrderId


async def test_an_instance_goes_on_without_the_others_that_a_part_names() -> None:
    """What it missed is taken by it alone: the others had it when it came."""
    broken = ["pen"]
    shop = BoundedContext("shop", events=[Moved])

    @shop.upcaster(Moved, from_version=1, into={Moved: 2})
    def twice(stored: Fields) -> Any:
        return [(Moved, stored)] * 2

    @shop.process_manager(from_beginning=True)
    class Moving(ProcessManager[OrderId]):
        order: OrderId
        moves: int = 0

        def react(self, event: Moved) -> Reaction[Moving]:
            if self.order in broken:
                raise ValueError(self.order)
            return Reaction(replace(self, moves=self.moves + 1))

    async with Application(shop) as app:
        data = b'{"source":"ink","target":"ink"}', b'{"source":"pen","target":"ink"}'
        for moved, tags in zip(data, [("order:ink",), ("order:pen", "order:ink")], strict=True):
            await store(app.partition(), NewEvent(unique_bytes(), "shop.Moved", 1, moved, tags))
        await app.partition().process_worker.at_rest()
        assert [(found.id, found.state["moves"]) for found in await app.processes.list()] == [("ink", 4), ("pen", 0)]
        broken.clear()
        await app.processes.retry("Moving", "pen")
        await app.partition().process_worker.at_rest()
        assert [(found.id, found.state["moves"]) for found in await app.processes.list()] == [("ink", 4), ("pen", 2)]
