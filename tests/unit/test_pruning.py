"""Pruning: what may be dropped, what is kept of it before, and what becomes of those who ask for it (rule 19)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec import structs

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    ContextChanged,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    ProcessManager,
    Reaction,
    ReadModel,
    replace,
)
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.application import pruning
from diptych.application.pruning import PruneReport, Pruning
from diptych.errors import HistoryDiverged, HistoryPruned, NotGranted
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import KeptState, Pruned
from diptych.event_store.position import START, Position
from diptych.testing.contracts.event_store_case import SettableClock
from diptych.write_side.decision_model import ModelFold
from tests.postgres_server import as_role, in_thread, new_granted_stores, new_stores

pytestmark = pytest.mark.anyio

LATER = datetime(2999, 1, 1, tzinfo=UTC)


class ItemId(Identity): ...


class BinId(Identity): ...


class Put(Command):
    item: ItemId
    bin: BinId


class Look(Command):
    item: ItemId
    bin: BinId


class Placed(Event):
    item: ItemId
    bin: BinId


class Seen(Event):
    item: ItemId
    times: int


class FromEvents:
    class Times(DecisionModel[ItemId, BinId]):
        count: int = 0

        def evolve(self, event: Placed) -> FromEvents.Times:
            return replace(self, count=self.count + 1)


class Snapshots:
    class Times(DecisionModel[ItemId, BinId], snapshot_every=1):
        count: int = 0

        def evolve(self, event: Placed) -> Snapshots.Times:
            return replace(self, count=self.count + 1)


class Stored:
    class Times(DecisionModel[ItemId, BinId], state_stored=True):
        count: int = 0

        def evolve(self, event: Placed) -> Stored.Times:
            return replace(self, count=self.count + 1)


def bins(model: type[Any] = Stored.Times) -> BoundedContext:
    """A context that decides on how often an item was put into a bin."""
    context = BoundedContext("bins")

    @context.command_handler
    def put(command: Put) -> Placed:
        return Placed(item=command.item, bin=command.bin)

    @context.command_handler
    def look(command: Look, times: model) -> Seen:  # type: ignore[valid-type]
        return Seen(item=command.item, times=times.count)  # type: ignore[attr-defined]

    return context


async def put(app: Application, item: str, place: str = "north") -> None:
    await app.execute(Put(item=ItemId(item), bin=BinId(place)))


async def seen(app: Application, item: str, place: str = "north") -> int:
    (event,) = (await app.execute(Look(item=ItemId(item), bin=BinId(place)))).events
    assert isinstance(event, Seen)
    return event.times


async def data_of(app: Application, type: str) -> list[bytes]:
    events = (await app.partition().store.read(ALL_EVENTS, START, 1_000)).events
    return [event.data for event in events if event.type == type]


# ── decisions stay what they were ────────────────────────────────────────────


@pytest.fixture(params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that a second application finds."""
    return in_thread(new_stores()) if request.param == "postgres" else f"sqlite:{tmp_path}/events.db"


async def test_state_stored_models_decide_as_before_once_their_events_are_pruned(kept_url: str) -> None:
    """Also those that became state-stored, and to which nothing has happened since: they are kept first."""
    asked = [("a", "north"), ("a", "south"), ("b", "north"), ("c", "west"), ("d", "west")]
    async with Application(bins(FromEvents.Times), store=kept_url) as app:
        for item, place in (("a", "north"), *asked[:4]):
            await put(app, item, place)
    async with Application(bins(), store=kept_url) as app:
        await put(app, "c", "west")
        report = await app.pruning.prune(Placed, before=LATER)
        assert (report.pruned, report.states) == ({"bins.Placed": 6}, 3), "one of four had a state"
        assert await data_of(app, "bins.Placed") == [b""] * 6
    async with Application(bins(), store=kept_url) as app:
        assert [await seen(app, item, place) for item, place in asked] == [2, 1, 1, 2, 0]
        assert b"" not in await data_of(app, "bins.Seen")
        await put(app, "a")
        assert await seen(app, "a") == 3


async def test_a_snapshot_of_later_events_is_no_state_to_go_on_from() -> None:
    """It was left by code that folded the model from its events: what is kept before they go takes its place."""
    clock = SettableClock()
    async with Application(bins(), clock=clock) as app:
        await put(app, "a")
        clock.move(2)
        until = clock.now()
        await put(app, "a")
        store = app.partition().store
        assert isinstance(store, MemoryEventStore)
        store._states = {name: structs.replace(kept, fold="of code") for name, kept in store._states.items()}
        report = await app.pruning.prune(Placed, before=until)
        assert (report.pruned, report.states) == ({"bins.Placed": 1}, 1)
        app.partition().commands._cache._states.clear()
        assert await seen(app, "a") == 2


async def test_a_state_that_older_code_left_behind_is_brought_up_first() -> None:
    """Its row is of an earlier event than the last one that goes."""
    async with Application(bins()) as app:
        await put(app, "a")
        store = app.partition().store
        assert isinstance(store, MemoryEventStore)
        kept = dict(store._states)
        await put(app, "a")
        store._states.update(kept)
        report = await app.pruning.prune(Placed, before=LATER)
        app.partition().commands._cache._states.clear()
        assert (report.states, await seen(app, "a")) == (1, 2)


async def test_what_is_pruned_is_up_to_a_time(store_url: str) -> None:
    """Events of that very time stay; a dry run only counts; done twice it changes nothing."""
    clock = SettableClock()
    async with Application(bins(), store=store_url, clock=clock) as app:
        for _ in range(3):
            await put(app, "a")
            clock.move(60)
        second = (await app.partition().store.read(ALL_EVENTS, START, 2)).events[1].recorded_at
        counted = await app.pruning.prune(Placed, before=second, dry_run=True)
        assert counted == PruneReport(Position(1), {"bins.Placed": 1}, 0)
        assert b"" not in await data_of(app, "bins.Placed")
        moved: list[tuple[int, int | None]] = []
        report = await app.pruning.prune(Placed, before=second, moved=lambda done, of: moved.append((done, of)))
        assert (report.until, report.pruned, moved) == (1, {"bins.Placed": 1}, [(1, 2), (2, 2)])
        assert [bool(data) for data in await data_of(app, "bins.Placed")] == [False, True, True]
        assert (await app.pruning.prune(Placed, before=second)).pruned == {"bins.Placed": 0}
        earliest = await app.pruning.prune(Placed, before=datetime(1970, 1, 1, tzinfo=UTC))
        assert (earliest.until, earliest.pruned) == (0, {"bins.Placed": 0})


async def test_an_outcome_is_told_again_though_its_events_are_pruned(store_url: str) -> None:
    """Where it took effect, that it did; what it said nobody knows any more."""
    async with Application(bins(), store=store_url) as app:
        first = await app.execute(Put(item=ItemId("a"), bin=BinId("north")), command_id="p-1")
        await app.pruning.prune(Placed, before=LATER)
        again = await app.execute(Put(item=ItemId("a"), bin=BinId("north")), command_id="p-1")
        assert (again.position, again.events, first.events) == (
            first.position,
            (),
            (Placed(item=ItemId("a"), bin=BinId("north")),),
        )


async def test_a_screen_that_is_older_than_what_is_pruned_is_told_so(store_url: str) -> None:
    """What has come since nobody can read any more; that it has is known."""
    async with Application(bins(), store=store_url) as app:
        await put(app, "b")
        shown = await app.execute(Put(item=ItemId("a"), bin=BinId("north")))
        await put(app, "a")
        await app.pruning.prune(Placed, before=LATER)
        with pytest.raises(ContextChanged) as changed:
            await app.execute(Look(item=ItemId("a"), bin=BinId("north")), based_on=shown)
    assert [(event.position, event.type, event.data) for event in changed.value.events] == [(3, "bins.Placed", b"")]


async def test_what_a_retired_process_could_not_take_is_shown_though_it_is_pruned() -> None:
    """Without its fields."""

    class Failing(ProcessManager[ItemId]):
        def react(self, event: Placed) -> Reaction[Failing]:
            raise ValueError("no")

    context = bins()
    context.process_manager(starts=[Placed])(Failing)
    async with Application(context) as app:
        await put(app, "a")
        await app.partition().process_worker.at_rest()
        (parked,) = (await app.parked.list()).items
        store = app.partition().store
        await store.prune("bins.Placed", START, Position(1), 10)
        assert (await app.parked.show(parked.id)).data == {}


class LookedAt(MemoryEventStore):
    """Notes which states it is asked for."""

    asked: ClassVar[list[str]] = []

    async def model_state(self, model: str, key: str) -> KeptState | None:
        self.asked.append(key)
        return await super().model_state(model, key)


@pytest.mark.parametrize(("known", "looks"), [(10, 2), (1, 4)])
async def test_a_state_is_looked_for_once_however_many_events_it_is_of(
    monkeypatch: pytest.MonkeyPatch, known: int, looks: int
) -> None:
    """Unless there are more models than are remembered; where it is missing, it is folded once, and kept."""
    monkeypatch.setattr(pruning, "KNOWN_MODELS_MAX", known)
    async with Application(bins()) as app:
        partition = app.partition()
        assert isinstance(partition.store, MemoryEventStore)
        for item in ("a", "b", "a", "b"):
            await put(app, item)
        del partition.store._states["bins.Times", '["a","north"]']
        store = LookedAt(SettableClock())
        store.__dict__ = partition.store.__dict__
        LookedAt.asked.clear()
        models = [("bins", ModelFold(Stored.Times, partition.history.types))]
        report = await Pruning(store, partition.history, models, ()).prune(Placed, before=LATER)
        assert (report.states, report.pruned) == (1, {"bins.Placed": 4})
        folded = 1  # which begins with what is kept
        assert len(LookedAt.asked) == looks + folded
        partition.commands._cache._states.clear()
        assert [await seen(app, "a"), await seen(app, "b")] == [2, 2]


# ── who folds from the first event on ────────────────────────────────────────


class Shelf(ReadModel):
    item: Key[ItemId]
    count: int = 0


class Moving(ProcessManager[ItemId]):
    def react(self, event: Placed) -> Reaction[Moving]:
        return Reaction(self)


def with_projection() -> BoundedContext:
    context = bins()

    @context.projection
    def shelf(row: Shelf, event: Placed) -> Shelf:
        return replace(row, count=row.count + 1)

    return context


def with_subscriber() -> BoundedContext:
    context = bins()

    @context.subscriber
    async def mail(events: Sequence[tuple[Placed, EventContext]]) -> None: ...

    return context


def with_process(*, retired: bool = False) -> BoundedContext:
    context = bins()
    context.process_manager(starts=[Placed], retired=retired)(Moving)
    return context


@pytest.mark.parametrize(
    ("context", "named"),
    [
        (bins(FromEvents.Times), r"the model Times \(event-sourced\)"),
        (bins(Snapshots.Times), r"the model Times \(event-sourced, with snapshots\)"),
        (with_projection(), "the projection into bins.Shelf"),
        (with_subscriber(), "the subscriber bins.mail"),
        (with_process(), "the process bins.Moving"),
    ],
    ids=["events", "snapshots", "projection", "subscriber", "process"],
)
async def test_what_is_folded_from_the_first_event_on_is_not_pruned(context: BoundedContext, named: str) -> None:
    """A dry run says so too; other events of the context may go."""
    async with Application(context) as app:
        await put(app, "a")
        await seen(app, "a")
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match=named):
                await app.pruning.prune(Seen, Placed, before=LATER, dry_run=dry_run)
        assert b"" not in await data_of(app, "bins.Placed")
        assert (await app.pruning.prune(Seen, before=LATER)).pruned == {"bins.Seen": 1}


async def test_a_retired_process_is_in_nobodys_way() -> None:
    """It takes no events any more."""
    async with Application(with_process(retired=True)) as app:
        await put(app, "a")
        assert (await app.pruning.prune(Placed, before=LATER)).pruned == {"bins.Placed": 1}


async def test_what_is_not_said_is_asked_for() -> None:
    """No events, no time zone, no event of this application."""
    async with Application(bins()) as app:
        with pytest.raises(ConfigurationError, match="at least one"):
            await app.pruning.prune(before=LATER)
        with pytest.raises(ConfigurationError, match="time zone"):
            await app.pruning.prune(Placed, before=datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is wrong
        with pytest.raises(ConfigurationError, match="Event is no event"):
            await app.pruning.prune(Event, before=LATER)


async def test_code_that_comes_to_fold_pruned_events_is_told(kept_url: str) -> None:
    """A decision fails with what is missing; a projection stops there, parks nothing, and health says why."""
    async with Application(bins(), store=kept_url) as app:
        await put(app, "a")
        await app.pruning.prune(Placed, before=LATER)
    async with Application(bins(FromEvents.Times), store=kept_url) as app:
        with pytest.raises(HistoryPruned, match="position 1 .*diptych prune"):
            await seen(app, "a")
    async with Application(with_projection(), store=kept_url) as app:
        await app.projected()
        assert (await app.parked.list()).items == []
        assert "diptych prune" in (await app.health()).reason


# ── while it is done ─────────────────────────────────────────────────────────


class Interrupted(MemoryEventStore):
    """Raises after the first page that it has pruned."""

    async def prune(self, type: str, after: Position, until: Position, limit: int) -> Pruned:
        await super().prune(type, after, until, limit)
        raise KeyError("stopped")


class Forking(MemoryEventStore):
    """Is another history with each look."""

    looks = 0

    @property
    def forks(self) -> int:
        self.looks += 1
        return self.looks


@pytest.mark.parametrize(("store_type", "error"), [(Interrupted, KeyError), (Forking, HistoryDiverged)])
async def test_it_may_be_stopped_and_run_again(
    store_type: type[MemoryEventStore], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are kept before the first event has no data any more; once all are, they are kept already."""
    monkeypatch.setattr(pruning, "PRUNE_PAGE_EVENTS", 2)
    async with Application(bins()) as app:
        partition = app.partition()
        assert isinstance(partition.store, MemoryEventStore)
        for item in ("a", "b", "a", "a", "b"):
            await put(app, item)
        partition.store._states.clear()
        stopping = store_type(SettableClock())
        stopping.__dict__ = partition.store.__dict__
        models = [("bins", ModelFold(Stored.Times, partition.history.types))]
        with pytest.raises(error):
            await Pruning(stopping, partition.history, models, ()).prune(Placed, before=LATER)
        assert [await seen(app, "a"), await seen(app, "b")] == [3, 2]
        report = await app.pruning.prune(Placed, before=LATER)
        assert (report.states, report.pruned) == (0, {"bins.Placed": 3 if store_type is Interrupted else 5})
        partition.commands._cache._states.clear()
        assert [await seen(app, "a"), await seen(app, "b")] == [3, 2]


async def test_whoever_only_writes_prunes_nothing(tmp_path: Path) -> None:
    """That is the owner's: the writer's role may not change what is stored."""
    url = as_role(await new_granted_stores(), "writer")
    async with Application(bins(), store=url, read_store=f"sqlite:{tmp_path}/rows.db", projecting=False) as app:
        await put(app, "a")
        assert (await app.pruning.prune(Placed, before=LATER, dry_run=True)).pruned == {"bins.Placed": 1}
        with pytest.raises(NotGranted, match="the owner's to do"):
            await app.pruning.prune(Placed, before=LATER)
        assert b"" not in await data_of(app, "bins.Placed")
