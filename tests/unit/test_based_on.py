"""Stale screens (rule 28): a command that is based on an answer holds only while what it is decided on is as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import pytest

from diptych import (
    Application,
    BoundedContext,
    By,
    Command,
    Conflict,
    ContextChanged,
    DecisionModel,
    Event,
    Identity,
    Key,
    Query,
    ReadModel,
    Rejected,
    replace,
)
from diptych.errors import HistoryDiverged, InvalidMessage
from diptych.event_store.event_store import Commit
from diptych.event_store.position import Place, Position, Token, read_tokens
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.codec import encode
from diptych.messages.envelope import Envelope
from diptych.messages.unique_id import unique_bytes
from diptych.write_side.command_bus import CHANGES_TOLD_MAX

pytestmark = pytest.mark.anyio


class Sku(Identity): ...


class SetPrice(Command):
    sku: Sku
    price: int


class PriceSet(Event):
    sku: Sku
    price: int


class Describe(Command):
    sku: Sku
    text: str


class Described(Event):
    sku: Sku
    text: str


class Level(Command):
    one: Sku
    other: Sku
    price: int


class Announce(Command):
    text: str


class Announced(Event):
    text: str


class Price(DecisionModel[Sku]):
    price: int = 0

    def evolve(self, event: PriceSet) -> Price:
        return replace(self, price=event.price)


class Shelf(ReadModel):
    sku: Key[Sku]
    price: int = 0


class OnShelf(Query[Shelf | None]):
    sku: Sku


class Press:
    """What a handler that is not pure calls: it lets a test in while the decision is being made."""

    def __init__(self) -> None:
        self.calls = 0
        self.meanwhile: list[tuple[Application, Command]] = []

    async def print(self) -> None:
        self.calls += 1
        for app, command in self.meanwhile:
            await app.execute(command)


class SetPriceInPrint(Command):
    sku: Sku
    price: int


catalogue = BoundedContext("catalogue")


@catalogue.command_handler
def set_price(command: SetPrice, price: Price) -> PriceSet:
    if price.price == command.price:
        raise Rejected("same-price", price=price.price)
    return PriceSet(sku=command.sku, price=command.price)


@catalogue.command_handler
def level(command: Level, one: Annotated[Price, By("one")], other: Annotated[Price, By("other")]) -> Iterator[PriceSet]:
    for sku, price in ((command.one, one), (command.other, other)):
        if price.price != command.price:
            yield PriceSet(sku=sku, price=command.price)


@catalogue.command_handler
def describe(command: Describe) -> Described:
    return Described(sku=command.sku, text=command.text)


@catalogue.command_handler
def announce(command: Announce) -> Announced:
    return Announced(text=command.text)


@catalogue.command_handler
async def set_price_in_print(command: SetPriceInPrint, price: Price, press: Press) -> PriceSet:
    await press.print()
    return PriceSet(sku=command.sku, price=max(command.price, price.price))


@catalogue.projection
def shelve(row: Shelf, event: PriceSet) -> Shelf:
    return replace(row, price=event.price)


EMMA, ULYSSES = Sku("emma"), Sku("ulysses")


@asynccontextmanager
async def opened(store_url: str, press: Press | None = None, **options: object) -> AsyncGenerator[Application]:
    """A shop with one price."""
    app = Application(catalogue, store=store_url, services={Press: press or Press()}, **options)  # type: ignore[arg-type]
    async with app:
        await app.execute(SetPrice(sku=EMMA, price=10))
        await app.projected()
        yield app


async def test_unrelated_changes_do_not_matter(store_url: str) -> None:
    """Other events of the same entity, and the same events of another one, are nothing to the decision."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        await app.execute(Describe(sku=EMMA, text="a novel"))
        await app.execute(SetPrice(sku=ULYSSES, price=30))
        receipt = await app.execute(SetPrice(sku=EMMA, price=12), based_on=seen)
        assert receipt.position == 4


async def test_a_change_refuses_the_command_and_is_told(store_url: str) -> None:
    """Nothing is done; the error lists what has come, and where, and is no conflict that is worth a retry as it is."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        await app.execute(SetPrice(sku=EMMA, price=11))
        await app.execute(Describe(sku=EMMA, text="a novel"))
        await app.execute(SetPrice(sku=EMMA, price=13))
        with pytest.raises(ContextChanged, match=r"position 2, catalogue.PriceSet at position 4; nothing") as no:
            await app.execute(SetPrice(sku=EMMA, price=12), based_on=seen.token)
        assert not isinstance(no.value, Conflict)
        assert (no.value.command, no.value.based_on, no.value.more) == ("SetPrice", 1, False)
        assert [(event.position, event.type) for event in no.value.events] == [
            (2, "catalogue.PriceSet"),
            (4, "catalogue.PriceSet"),
        ]
        assert await app.query(OnShelf(sku=EMMA), freshness="latest") == Shelf(sku=EMMA, price=13)


async def test_a_receipt_is_a_basis(store_url: str) -> None:
    """Whoever has just written may go on from there, and no further than the next change of somebody else."""
    async with opened(store_url) as app:
        first = await app.execute(SetPrice(sku=EMMA, price=11))
        second = await app.execute(SetPrice(sku=EMMA, price=12), based_on=first)
        with pytest.raises(ContextChanged):
            await app.execute(SetPrice(sku=EMMA, price=13), based_on=first)
        assert (await app.execute(SetPrice(sku=EMMA, price=13), based_on=second)).position == 4


async def test_the_lowest_of_what_was_shown_counts(store_url: str) -> None:
    """An answer from read models at several positions is a basis as old as the oldest of them."""
    async with opened(store_url) as app:
        await app.execute(SetPrice(sku=EMMA, price=11))
        (shown,) = (await app.answer(OnShelf(sku=EMMA), freshness="latest")).shows
        with pytest.raises(ContextChanged):
            await app.execute(SetPrice(sku=EMMA, price=12), based_on=str(Token(Position(1), shown.high)))
        await app.execute(SetPrice(sku=EMMA, price=12), based_on=str(shown))


async def test_a_refusal_is_not_told_of_what_the_user_has_not_seen(store_url: str) -> None:
    """A change comes before the domain's no, which may be about it."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        await app.execute(SetPrice(sku=EMMA, price=12))
        with pytest.raises(ContextChanged):
            await app.execute(SetPrice(sku=EMMA, price=12), based_on=seen)


async def test_of_two_on_one_basis_one_holds(store_url: str) -> None:
    """Concurrent commands that were decided on the same screen: the first wins, in one batch or in several."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        commands = [SetPrice(sku=EMMA, price=price) for price in range(20, 40)]
        ended = await asyncio.gather(
            *(app.execute(command, based_on=seen) for command in commands), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in ended) == ["ContextChanged"] * 19 + ["Receipt"]
        await app.execute(SetPrice(sku=EMMA, price=50))


async def test_a_pending_change_that_fails_is_none() -> None:
    """What was decided on the pending event of a command that then falls is decided anew, without it.

    In memory: there nothing is waited for in between, so that both are in one batch.
    """
    async with opened("memory:") as app:
        await app.execute(SetPrice(sku=ULYSSES, price=30))
        seen = await app.answer(OnShelf(sku=EMMA), freshness="latest")
        data, metadata = b'{"sku":"ulysses","price":31}', encode(Envelope(command_id="elsewhere"))
        unknown = NewEvent(unique_bytes(), "catalogue.PriceSet", 1, data, ("sku:ulysses",), metadata)
        await app.partition().store.append([Commit(events=(unknown,))])
        overtaken, based = await asyncio.gather(
            app.execute(Level(one=EMMA, other=ULYSSES, price=50)),
            app.execute(SetPrice(sku=EMMA, price=50), based_on=seen),
        )
        assert based.events == (PriceSet(sku=EMMA, price=50),)
        assert overtaken.events == (PriceSet(sku=ULYSSES, price=50),)


async def test_a_handler_is_not_called_in_vain(store_url: str) -> None:
    """One that is not pure is not run on a basis that holds no more; one that lost its basis meanwhile is told so."""
    press = Press()
    async with opened(store_url, press) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        press.meanwhile = [(app, SetPrice(sku=EMMA, price=11))]
        with pytest.raises(ContextChanged, match="position 2"):
            await app.execute(SetPriceInPrint(sku=EMMA, price=12), based_on=seen)
        press.meanwhile = []
        with pytest.raises(ContextChanged, match="position 2"):
            await app.execute(SetPriceInPrint(sku=EMMA, price=12), based_on=seen)
        assert press.calls == 1


async def test_a_command_that_was_executed_is_not_judged_again(store_url: str) -> None:
    """A duplicate wins over all else: sent again under its id it gives its first outcome, on whatever basis."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        first = await app.execute(SetPrice(sku=EMMA, price=12), command_id="c-1", based_on=seen)
        await app.execute(SetPrice(sku=EMMA, price=13))
        assert await app.execute(SetPrice(sku=EMMA, price=12), command_id="c-1", based_on=seen) == first


async def test_a_refused_command_may_be_sent_again_on_a_newer_basis(store_url: str) -> None:
    """`ContextChanged` is no outcome that is kept: after another look the same id is free."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        newer = await app.execute(SetPrice(sku=EMMA, price=11))
        with pytest.raises(ContextChanged):
            await app.execute(SetPrice(sku=EMMA, price=12), command_id="c-1", based_on=seen)
        assert (await app.execute(SetPrice(sku=EMMA, price=12), command_id="c-1", based_on=newer)).position == 3


async def test_a_decision_on_nothing_is_never_refused(store_url: str) -> None:
    """A handler without decision models depends on nothing that could have changed."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        await app.execute(SetPrice(sku=EMMA, price=11))
        await app.execute(Announce(text="sale"), based_on=seen)


async def test_the_events_that_are_told_have_a_limit(store_url: str) -> None:
    """Of many changes the first are listed, and that there are more."""
    async with opened(store_url) as app:
        seen = await app.answer(OnShelf(sku=EMMA))
        for price in range(100, 100 + CHANGES_TOLD_MAX + 1):
            await app.execute(SetPrice(sku=EMMA, price=price))
        with pytest.raises(ContextChanged, match=", more; nothing") as no:
            await app.execute(SetPrice(sku=EMMA, price=1), based_on=seen)
        assert len(no.value.events) == CHANGES_TOLD_MAX
        assert no.value.more


async def test_what_another_process_has_written_counts(tmp_path: Path) -> None:
    """The basis may be ahead of what this process has heard of, and so may the change."""
    store_url = f"sqlite:{tmp_path}/events.db"
    async with (
        opened(store_url) as app,
        Application(catalogue, store=store_url, services={Press: Press()}, projecting=False) as other,
    ):
        basis = await other.execute(SetPrice(sku=EMMA, price=11))
        await app.execute(SetPrice(sku=EMMA, price=12), based_on=basis)
        with pytest.raises(ContextChanged, match="position 3"):
            await other.execute(SetPrice(sku=EMMA, price=13), based_on=basis)


async def test_a_basis_in_another_history_is_refused(store_url: str) -> None:
    """It says nothing about this one; what is no token at all is an invalid message."""
    async with opened("memory:") as stranger, opened(store_url) as app:
        elsewhere = await stranger.answer(OnShelf(sku=EMMA))
        with pytest.raises(HistoryDiverged, match="the answer that the command is based on"):
            await app.execute(SetPrice(sku=EMMA, price=12), based_on=elsewhere)
        with pytest.raises(InvalidMessage):
            await app.execute(SetPrice(sku=EMMA, price=12), based_on="nonsense")
        (shown,) = read_tokens((await app.answer(OnShelf(sku=EMMA))).token)
        past_the_end = Token(shown.low, replace_position(shown.high, Position(99)))
        with pytest.raises(HistoryDiverged, match="ends before position 99"):
            await app.execute(SetPrice(sku=EMMA, price=12), based_on=str(past_the_end))


def replace_position(place: Place, position: Position) -> Place:
    return Place(place.history_id, position, place.event_id)
