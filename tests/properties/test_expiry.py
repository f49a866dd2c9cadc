"""What expires does so alike for everyone (rule 40, G6): whatever the batches, and whenever removal ran.

A history with times is folded live, in batches that end anywhere, with removal of at most so many rows each, by
projectors that stop and go on, with a fold that fails for a while and a key that is replayed; and by a few lines of
plain Python that know of no storage. What is shown has to be the same at every time that a clock may tell, be it
behind the history's own; and a later event has to meet the same rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych import BoundedContext, Event, EventContext, ExpiresAt, Identity, Key, ReadModel, Value, replace
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.adapters.sqlite.read_store import SqliteReadStore
from diptych.application.registration import event_types, projections
from diptych.event_store.event_store import Commit
from diptych.event_store.history import History
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.registry import EventTypes
from diptych.messages.unique_id import unique_bytes
from diptych.read_side import projector as projector_module
from diptych.read_side import slice as slice_module
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Order, ReadStore
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.snapshot_reader import moment_shown
from diptych.testing import ManualClock

ROWS_MAX = 10_000
BATCHES = (1, 2, 7, 1_000)


class SessionId(Identity): ...


class Part(Value):
    session: SessionId
    minutes: int | None


class Seen(Event):
    session: SessionId
    minutes: int | None
    """For how long it is good; None: for ever."""


class SeenTogether(Event):
    parts: tuple[Part, ...]


class Left(Event):
    session: SessionId


class Unrelated(Event):
    number: int


class Session(ReadModel):
    """Of an explicit fold: it begins anew once it has expired."""

    session: Key[SessionId]
    times: int = 0
    until: ExpiresAt[datetime | None] = None


class Tally(ReadModel):
    """Of a fold that meets a blank row, with several steps of one event for one row; and that fails at times."""

    session: Key[SessionId]
    minutes: tuple[int | None, ...] = ()
    until: ExpiresAt[datetime | None] = None


class Choking:
    """What a fold fails at, until it is mended."""

    at: int | None = None


def end(context: EventContext, minutes: int | None) -> datetime | None:
    return None if minutes is None else context.recorded_at + timedelta(minutes=minutes)


def parts_of(event: Seen | SeenTogether) -> Iterable[Part]:
    return event.parts if isinstance(event, SeenTogether) else (Part(session=event.session, minutes=event.minutes),)


def website() -> BoundedContext:
    context = BoundedContext("web", events=[Seen, SeenTogether, Left, Unrelated])

    @context.projection
    def session(row: Session | None, event: Seen | Left, context: EventContext) -> Session | None:
        if isinstance(event, Left):
            return None
        row = row or Session(session=event.session)
        return replace(row, times=row.times + 1, until=end(context, event.minutes))

    @context.projection(each=parts_of, version=1)
    def tally(row: Tally, event: Seen | SeenTogether, part: Part, context: EventContext) -> Tally:
        if context.position == Choking.at:
            raise ValueError("chokes")
        return replace(row, minutes=(*row.minutes, part.minutes), until=end(context, part.minutes))

    return context


# ── the same in plain Python ─────────────────────────────────────────────────


def naive(history: Sequence[tuple[datetime, Event]]) -> dict[str, dict[Any, Any]]:
    """The rows after a history, expired ones included, by read model."""
    sessions: dict[Any, Any] = {}
    tallies: dict[Any, Any] = {}
    for at, event in history:
        for rows in (sessions, tallies):
            for key in [key for key, row in rows.items() if row.until is not None and row.until <= at]:
                del rows[key]
        match event:
            case Seen(session=found, minutes=minutes):
                times = sessions[found].times + 1 if found in sessions else 1
                sessions[found] = Session(session=found, times=times, until=later(at, minutes))
            case Left(session=found):
                sessions.pop(found, None)
            case _:
                pass
        for part in parts_of(event) if isinstance(event, Seen | SeenTogether) else ():
            before = tallies.get(part.session)
            known = before.minutes if before is not None and (before.until is None or before.until > at) else ()
            until = later(at, part.minutes)
            tallies[part.session] = Tally(session=part.session, minutes=(*known, part.minutes), until=until)
    return {"Session": sessions, "Tally": tallies}


def later(at: datetime, minutes: int | None) -> datetime | None:
    return None if minutes is None else at + timedelta(minutes=minutes)


def shown(rows: dict[Any, Any], moment: datetime) -> dict[Any, Any]:
    return {key: row for key, row in rows.items() if row.until is None or row.until > moment}


# ── live ─────────────────────────────────────────────────────────────────────


class Moment(NamedTuple):
    """Something happens, so many minutes after what was before; and what the projector does then.

    Attributes:
        batch: how many events a batch has from here on; None: the projector sleeps.
        anew: whether another projector takes over.
    """

    minutes: int
    event: Event
    batch: int | None
    anew: bool


ids = st.sampled_from([SessionId("a"), SessionId("b"), SessionId("c")])
ends = st.sampled_from([None, 0, 1, 2, 3, 5, 10])
some_parts = st.lists(st.builds(Part, session=ids, minutes=ends), min_size=1, max_size=3).map(tuple)
events = st.one_of(
    st.builds(Seen, session=ids, minutes=ends),
    st.builds(Seen, session=ids, minutes=ends),
    st.builds(SeenTogether, parts=some_parts),
    st.builds(Left, session=ids),
    st.builds(Unrelated, number=st.just(1)),
)
moments = st.builds(
    Moment,
    minutes=st.integers(0, 4),
    event=events,
    batch=st.sampled_from((None, *BATCHES)),
    anew=st.booleans(),
)
A, B = SessionId("a"), SessionId("b")


async def append(store: MemoryEventStore, types: EventTypes, event: Event) -> None:
    found = types.of(type(event))
    data, settled = found.codec.settle(event)
    new = NewEvent(unique_bytes(), found.name, found.version, data, found.tags(settled))
    await store.append([Commit((new,))])


class Live:
    """A history that goes on, and what follows it."""

    def __init__(self, read_store: ReadStore) -> None:
        self.clock = ManualClock()
        self.store = MemoryEventStore(self.clock)
        self.read_store = read_store
        self.types = event_types([website()])
        self.projector = self._projector()

    def _projector(self) -> Projector:
        return Projector(self.store, History(self.types), self.read_store, projections([website()], self.types))

    async def open(self) -> None:
        await self.store.open()
        await self.read_store.open()
        await self.projector.open()

    async def happens(self, moment: Moment) -> None:
        self.clock.advance(timedelta(minutes=moment.minutes))
        await append(self.store, self.types, moment.event)
        if moment.anew:
            self.projector = self._projector()
            await self.projector.open()
        if moment.batch is not None:
            await self.follow(moment.batch)

    async def follow(self, batch: int) -> None:
        kept = projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN
        projector_module.BATCH_EVENTS_MAX = projector_module.BATCH_EVENTS_MIN = batch
        self.projector._batch_max = batch
        try:
            while await self.projector.advance(self.projector.slices):
                pass
        finally:
            projector_module.BATCH_EVENTS_MAX, projector_module.BATCH_EVENTS_MIN = kept

    async def rows(self, now: datetime) -> dict[str, dict[Any, Any]]:
        found: dict[str, dict[Any, Any]] = {}
        async with self.read_store.snapshot() as snapshot:
            for slice in self.projector.slices:
                form, name = slice.projection.form, slice.projection.name
                filters = form.unexpired(moment_shown(await snapshot.slices(name), now))
                rows = await snapshot.find(name, filters, [Order("session")], ROWS_MAX)
                found[form.name] = {form.model(row).session: form.model(row) for row in rows}
        return found

    async def replay(self) -> None:
        keys = BlockedKeys(self.projector, self.store, self.read_store, self.clock)
        for blocked in await keys.all():
            by = {"actor": "ann", "reason": "mended"}
            assert await keys.retry(blocked.name, blocked.key, position=blocked.position, **by) is None

    async def verify(self) -> None:
        rebuilds = Rebuilds(self.projector, self.read_store)
        for slice in self.projector.slices:
            assert (await rebuilds.compare(slice.projection.name)).same


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_g6_expiry_does_not_depend_on_removal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live, with removal at any moment, shows what plain Python does at any time; a rebuild and a replay do so too."""

    @settings(max_examples=200 if kind == "memory" else 30, deadline=None)
    @given(
        history=st.lists(moments, min_size=1, max_size=25),
        removed_max=st.sampled_from([0, 1, 1_000]),
        chokes_at=st.none() | st.integers(1, 10),
    )
    # A row is removed while an event that met it is blocked: the replay must meet it.
    @example(
        history=[
            Moment(0, Seen(session=A, minutes=2), 1, anew=False),
            Moment(1, Seen(session=A, minutes=None), 1, anew=False),
            Moment(5, Seen(session=B, minutes=1), 1, anew=False),
            Moment(5, Seen(session=B, minutes=1), 1, anew=False),
        ],
        removed_max=1_000,
        chokes_at=2,
    )
    # The same in one batch.
    @example(
        history=[
            Moment(0, Seen(session=A, minutes=2), None, anew=False),
            Moment(1, Seen(session=A, minutes=None), None, anew=False),
            Moment(5, Seen(session=B, minutes=1), 1_000, anew=False),
        ],
        removed_max=1_000,
        chokes_at=2,
    )
    def holds(history: list[Moment], removed_max: int, chokes_at: int | None) -> None:
        async def run(folder: str) -> None:
            monkeypatch.setattr(slice_module, "EXPIRED_ROWS_MAX", removed_max)
            monkeypatch.setattr(Choking, "at", chokes_at)
            read_store: ReadStore = MemoryReadStore() if kind == "memory" else SqliteReadStore(f"{folder}/rows.db")
            live = Live(read_store)
            await live.open()
            try:
                told: list[tuple[datetime, Event]] = []
                for moment in history:
                    await live.happens(moment)
                    told.append((live.clock.now(), moment.event))
                await live.follow(7)
                await live.verify()
                monkeypatch.setattr(Choking, "at", None)
                await live.replay()
                last = live.clock.now()
                for minutes in (-30, -1, 0, 1, 2, 3, 5, 11):
                    now = last + timedelta(minutes=minutes)
                    expected = {model: shown(rows, max(now, last)) for model, rows in naive(told).items()}
                    assert await live.rows(now) == expected, minutes
                await live.verify()
            finally:
                await read_store.close()

        with TemporaryDirectory() as folder:
            asyncio.run(run(folder))

    holds()


def test_removal_is_bounded_and_leaves_nothing_behind() -> None:
    """Once an event was recorded after all have expired, each batch removes up to the limit, until none is stored."""

    async def run() -> list[int]:
        live = Live(MemoryReadStore())
        await live.open()
        for number in range(2_500):
            await append(live.store, live.types, Seen(session=SessionId(f"s{number}"), minutes=5))
        await live.follow(1_000)
        stored: list[int] = []
        for _ in range(4):
            async with live.read_store.snapshot() as snapshot:
                stored.append(await snapshot.count("web.Session", ()))
            await live.happens(Moment(10, Unrelated(number=1), 1, anew=False))
        return stored

    assert asyncio.run(run()) == [2_500, 1_500, 500, 0]
