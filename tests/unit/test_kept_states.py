"""Decision models whose states are kept: state-stored ones (rule 24) and snapshots (rule 26)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    DecisionModel,
    Event,
    EventContext,
    Rejected,
    replace,
)
from diptych.errors import UnreadableState, Unstorable
from diptych.event_store.event_store import STATE_BYTES_MAX, Appended, Commit, KeptState, ModelState
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.write_side.decision_model import ModelFold
from diptych.write_side.state_form import STATE_STORED
from tests.postgres_server import new_stores
from tests.stock import SNAPSHOT_EVERY, Move, PlaceId, Receive, Sell, Sku, warehouse

pytestmark = pytest.mark.anyio

A, NORTH = Sku("a"), PlaceId("north")
BIG_BYTES = STATE_BYTES_MAX


class Note(Command):
    sku: Sku
    text: str = ""


class Noted(Event):
    sku: Sku
    text: str = ""


class Asked(Event):
    sku: Sku
    known: int


class Ask(Command):
    sku: Sku


def notes(model: type[Any]) -> BoundedContext:
    """A context that decides on a model of `Noted`, whichever way it is kept."""
    context = BoundedContext("notes")

    @context.command_handler
    def note(command: Note, notes: model) -> Noted:  # type: ignore[valid-type]
        return Noted(sku=command.sku, text=command.text)

    @context.command_handler
    def ask(command: Ask, notes: model) -> Asked:  # type: ignore[valid-type]
        return Asked(sku=command.sku, known=notes.count)  # type: ignore[attr-defined]

    return context


class FromEvents:
    class Notes(DecisionModel[Sku]):
        sku: Sku
        count: int = 0

        def evolve(self, event: Noted) -> FromEvents.Notes:
            return replace(self, count=self.count + 1)


class Stored:
    class Notes(DecisionModel[Sku], state_stored=True):
        sku: Sku
        count: int = 0

        def evolve(self, event: Noted) -> Stored.Notes:
            return replace(self, count=self.count + 1)


class Snapshots:
    class Notes(DecisionModel[Sku], snapshot_every=2):
        sku: Sku
        count: int = 0

        def evolve(self, event: Noted) -> Snapshots.Notes:
            return replace(self, count=self.count + 1)


class ByTens:
    class Notes(DecisionModel[Sku], snapshot_every=2):
        sku: Sku
        count: int = 0

        def evolve(self, event: Noted) -> ByTens.Notes:
            return replace(self, count=self.count + 10)


async def known(app: Application) -> int:
    """What decisions know of `A`."""
    (event,) = (await app.execute(Ask(sku=A))).events
    assert isinstance(event, Asked)
    return event.known


async def kept_of(app: Application, model: str, key: str = '["a"]') -> KeptState | None:
    return await app.partition().store.model_state(model, key)


async def plant(app: Application, *states: ModelState) -> None:
    """Keep states that no fold has made, with an event that nobody folds."""
    stray = NewEvent(unique_bytes(), "elsewhere.Stray", 1, b"{}")
    (result,) = await app.partition().store.append([Commit(events=(stray,), states=states)])
    assert isinstance(result, Appended)


@asynccontextmanager
async def opened(model: type[Any], url: str) -> AsyncGenerator[Application]:
    async with Application(notes(model), store=url, projecting=False) as app:
        yield app


# ── what is kept is what is loaded ───────────────────────────────────────────


@pytest.mark.parametrize("model", [Stored.Notes, Snapshots.Notes], ids=["stored", "snapshots"])
async def test_a_model_is_loaded_from_its_state_and_not_from_its_history(model: type[Any], store_url: str) -> None:
    """What is kept counts for all events up to its place; those behind it are folded onto it."""
    async with opened(model, store_url) as app:
        fold = _fold_of(app, model)
        await app.partition().store.append([Commit(events=(_noted(),)) for _ in range(3)])
        await plant(app, ModelState("notes.Notes", '["a"]', fold, b'{"sku":"a","count":100}'))
        await app.partition().store.append([Commit(events=(_noted(),))])
        assert await known(app) == 101


async def test_a_state_is_kept_by_whoever_changes_it(store_url: str) -> None:
    """Also by a handler that is not decided on it, at the place of its event; a dry run keeps none."""
    async with Application(warehouse(), store=store_url, projecting=False) as app:
        await app.can(Receive(sku=A, place=NORTH, count=3))
        assert await kept_of(app, "stock.Product") is None
        receipt = await app.execute(Receive(sku=A, place=NORTH, count=3))
        await app.execute(Move(sku=A, source=NORTH, target=PlaceId("south"), count=1))
        kept = await kept_of(app, "stock.Product")
        assert kept == KeptState(STATE_STORED, b'{"sku":"a","on_hand":3,"missed":0}', Position(receipt.position))
        kept = await kept_of(app, "stock.Pair", '["a","south"]')
        assert kept == KeptState(STATE_STORED, b'{"sku":"a","place":"south","there":1}', Position(2))
        assert await kept_of(app, "stock.Everything", "[]") == KeptState(STATE_STORED, b'{"moved":1}', Position(2))


async def test_a_snapshot_is_taken_when_it_is_due(store_url: str) -> None:
    """After so many events more, again and again, with the command whose events make them so many."""
    async with Application(warehouse(), store=store_url, projecting=False) as app:
        await app.execute(Receive(sku=A, place=NORTH, count=20))
        taken: list[int] = []
        for _ in range(3 * SNAPSHOT_EVERY):
            position = (await app.execute(Sell(skus=(A,), place=NORTH))).position
            kept = await kept_of(app, "stock.Register", '["north"]')
            taken += [position] if kept is not None and kept.position == position else []
        assert taken == [1 + SNAPSHOT_EVERY, 1 + 2 * SNAPSHOT_EVERY, 1 + 3 * SNAPSHOT_EVERY]


async def test_a_refusal_that_leaves_a_fact_keeps_states_as_well(store_url: str) -> None:
    """Its fact is an event like others."""
    context = BoundedContext("notes")

    @context.command_handler
    def note(command: Note, notes: Stored.Notes) -> Noted:
        raise Rejected("no", record=Noted(sku=command.sku))

    async with Application(context, store=store_url, projecting=False) as app:
        with pytest.raises(Rejected):
            await app.execute(Note(sku=A))
        assert await kept_of(app, "notes.Notes") == KeptState(STATE_STORED, b'{"sku":"a","count":1}', Position(1))


# ── changed code ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_model_may_be_kept_another_way_from_now_on(kind: str, tmp_path: Path) -> None:
    """Any way after any other, to and fro: decisions know every event, whoever kept something meanwhile."""
    url = await new_stores() if kind == "postgres" else f"sqlite:{tmp_path}/events.db"
    ways: list[Any] = [FromEvents, Stored, FromEvents, Snapshots, Stored, Snapshots, FromEvents, Stored]
    for count, way in enumerate(ways):
        async with opened(way.Notes, url) as app:
            assert await known(app) == 3 * count
            for _ in range(3):
                await app.execute(Note(sku=A))
            assert await known(app) == 3 * count + 3


async def test_a_changed_fold_does_not_go_on_from_a_snapshot_of_the_former_one(store_url: str) -> None:
    """It folds from the first event."""
    async with opened(ByTens.Notes, store_url) as app:
        await app.partition().store.append([Commit(events=(_noted(),)) for _ in range(3)])
        former = _fold_of(app, Snapshots.Notes)
        assert former != _fold_of(app, ByTens.Notes)
        await plant(app, ModelState("notes.Notes", '["a"]', former, b'{"sku":"a","count":100}'))
        assert await known(app) == 30


async def test_a_stored_state_is_read_with_the_fields_of_today(store_url: str) -> None:
    """A field that is new has its default, one that is gone is left out; one of another type is a clear error."""
    async with opened(Stored.Notes, store_url) as app:
        await plant(app, ModelState("notes.Notes", '["a"]', STATE_STORED, b'{"sku":"a","gone":true}'))
        assert await known(app) == 0
    async with opened(Stored.Notes, "memory:") as app:
        await plant(app, ModelState("notes.Notes", '["a"]', STATE_STORED, b'{"sku":"a","count":"three"}'))
        with pytest.raises(
            UnreadableState, match=r'the state of notes\.Notes \["a"\], kept at position 1, cannot'
        ) as e:
            await known(app)
        assert (e.value.model, e.value.key, e.value.position) == ("notes.Notes", '["a"]', 1)
        assert "count" in e.value.reason


async def test_a_snapshot_that_cannot_be_read_is_none(store_url: str) -> None:
    """Models are folded from their events instead."""
    async with opened(Snapshots.Notes, store_url) as app:
        await app.partition().store.append([Commit(events=(_noted(),))])
        fold = _fold_of(app, Snapshots.Notes)
        await plant(app, ModelState("notes.Notes", '["a"]', fold, b'{"sku":"a","count":"three"}'))
        assert await known(app) == 1


# ── what cannot be kept ──────────────────────────────────────────────────────


class Texts:
    class Notes(DecisionModel[Sku], state_stored=True):
        sku: Sku
        count: int = 0
        texts: tuple[str, ...] = ()

        def evolve(self, event: Noted) -> Texts.Notes:
            return replace(self, count=self.count + 1, texts=(*self.texts, event.text))


class TextSnapshots:
    class Notes(DecisionModel[Sku], snapshot_every=1):
        sku: Sku
        count: int = 0
        texts: tuple[str, ...] = ()

        def evolve(self, event: Noted) -> TextSnapshots.Notes:
            return replace(self, count=self.count + 1, texts=(*self.texts, event.text))


async def test_a_state_that_is_too_large_refuses_its_command(store_url: str) -> None:
    """Nothing is done, and it is said what is too large; others go on."""
    async with opened(Texts.Notes, store_url) as app:
        half = "x" * (BIG_BYTES // 2)
        await app.execute(Note(sku=A, text=half))
        with pytest.raises(Unstorable, match="state of notes.Notes.*STATE_BYTES_MAX"):
            await app.execute(Note(sku=A, text=half))
        assert await known(app) == 1


async def test_a_snapshot_that_is_too_large_is_left_out(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Commands go on, and it is said once."""
    async with opened(TextSnapshots.Notes, store_url) as app:
        half = "x" * (BIG_BYTES // 2)
        for _ in range(4):
            await app.execute(Note(sku=A, text=half))
        assert await known(app) == 4
    assert len([record for record in caplog.records if "no snapshot" in record.message]) == 1


async def test_what_cannot_be_kept_is_said_when_the_application_is_opened() -> None:
    """Both ways at once, no events, the time of events, what is no JSON, and two models of one name."""

    class Both(DecisionModel[Sku], state_stored=True, snapshot_every=3):
        def evolve(self, event: Noted) -> Both: ...

    class Never(DecisionModel[Sku], snapshot_every=0):
        def evolve(self, event: Noted) -> Never: ...

    class Timed(DecisionModel[Sku], state_stored=True):
        at: datetime | None = None

        def evolve(self, event: Noted, context: EventContext) -> Timed: ...

    class Objects(DecisionModel[Sku], state_stored=True):
        last: Noted | Asked | None = None

        def evolve(self, event: Noted) -> Objects: ...

    for model, told in (
        (Both, "drop snapshot_every"),
        (Never, "from 1 on, not 0"),
        (Timed, "EventContext"),
        (Objects, "cannot be kept as JSON"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            await Application(notes(model)).open()

    twice = BoundedContext("notes")

    @twice.command_handler
    def note(command: Note, notes: Stored.Notes) -> Noted: ...

    @twice.command_handler
    def ask(command: Ask, notes: Snapshots.Notes) -> Asked: ...

    with pytest.raises(ConfigurationError, match=r"two decision models would be kept as notes\.Notes"):
        await Application(twice).open()


def test_only_decision_models_are_kept() -> None:
    """An event, a read model or a command that asks for it is refused where it is written."""
    with pytest.raises(TypeError, match="for decision models"):
        type("Odd", (Event,), {"__module__": __name__}, state_stored=True)


def _noted() -> NewEvent:
    return NewEvent(unique_bytes(), "notes.Noted", 1, b'{"sku":"a"}', ("sku:a",))


def _fold_of(app: Application, model: type[Any]) -> str:
    form = ModelFold(model, app.event_types).form
    assert form is not None
    return form.fold
