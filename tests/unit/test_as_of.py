"""Queries as of a past moment: which there are, what is folded for them, and how much of it (rules 19, 27, 30)."""

from __future__ import annotations

import asyncio
import gc
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from diptych import (
    Answer,
    Application,
    BoundedContext,
    Command,
    ContextChanged,
    DecisionModel,
    Event,
    Identity,
    Key,
    Page,
    Query,
    Reader,
    ReadModel,
    Searchable,
    SyncApplication,
    replace,
)
from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.errors import (
    Blocked,
    CannotShowPast,
    HistoryDiverged,
    HistoryPruned,
    InvalidMessage,
    Overloaded,
    PastTooLong,
)
from diptych.event_store.event_query import ALL_EVENTS as ALL
from diptych.event_store.position import NOWHERE, START, Place, Position, Token
from diptych.read_side import past, past_fold, past_rows, projector
from diptych.testing import InMemoryApplication, ManualClock
from tests.parking import discard
from tests.tenants import ACME, GLOBEX, PEN, Places, Stock, TenantId, UnitsEverywhere, UnitsOnShelf, warehouses
from tests.unit.test_partitions import OrderId, Progress, Ship, by_context
from tests.unit.test_partitions import Place as PlaceOrder

pytestmark = pytest.mark.anyio


class DocId(Identity): ...


class Write(Command):
    doc: DocId
    text: str


class Written(Event):
    doc: DocId
    text: str


class Archived(Event):
    doc: DocId


class Archive(Command):
    doc: DocId


class Doc(ReadModel):
    doc: Key[DocId]
    text: Searchable[str] = ""
    edits: int = 0


class Words(ReadModel):
    """Its key is computed, so that no tag tells which events are of a row."""

    word: Key[str]
    times: int = 0


class Draft(DecisionModel[DocId]):
    edits: int = 0

    def evolve(self, event: Written) -> Draft:
        return Draft(edits=self.edits + 1)


class DocOf(Query[Doc | None]):
    doc: DocId


class WordOf(Query[Words | None]):
    word: str


class Docs(Query[Page[Doc]]):
    cursor: str | None = None


class Found(Query[list[str]]):
    text: str


class Counted(Query[int]): ...


class Both(Query[tuple[int, int]]):
    """Asks for many by key."""

    docs: tuple[DocId, ...]


class AtOnce(Query[list[int]]):
    """Asks for several things at once."""


class Odd(Query[int]):
    """Asks by keys that no store can keep."""


class Nothing(Query[int]):
    """Reads nothing."""


class InSql(Query[int]): ...


class Held(Query[int]):
    """Waits to be let go."""


class Gate:
    """A service: whoever is in it, and may go on."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.open = asyncio.Event()


class Mended:
    is_mended = False


def words_in(event: Written) -> list[str]:
    return event.text.split()


def office() -> BoundedContext:
    context = BoundedContext("office")
    _decide_and_project(context)
    _answer(context)
    return context


def _decide_and_project(context: BoundedContext) -> None:

    @context.command_handler
    def write(command: Write, draft: Draft) -> Written:
        return Written(doc=command.doc, text=command.text)

    @context.command_handler
    def archive(command: Archive) -> Archived:
        return Archived(doc=command.doc)

    @context.projection
    def doc(row: Doc, event: Written | Archived) -> Doc | None:
        if isinstance(event, Archived):
            return None
        if event.text == "torn" and not Mended.is_mended:
            raise ValueError("it is torn")
        return replace(row, text=event.text, edits=row.edits + 1)

    @context.projection(keys=words_in)
    def words(row: Words, event: Written) -> Words:
        return replace(row, times=row.times + 1)


def _answer(context: BoundedContext) -> None:
    @context.query_handler
    async def docs(query: Docs, read: Reader) -> Page[Doc]:
        return await read.page(Doc, limit=2, cursor=query.cursor)

    @context.query_handler
    async def found(query: Found, read: Reader) -> list[str]:
        return [each.doc for each in await read.search(Doc, query.text)]

    @context.query_handler
    async def counted(query: Counted, read: Reader) -> int:
        return await read.count(Doc) + await read.count(Words)

    @context.query_handler
    async def both(query: Both, read: Reader) -> tuple[int, int]:
        rows = await read.get_many(Doc, query.docs)
        singly = [await read.get(Doc, key) for key in query.docs]
        return len(rows), sum(row.edits for row in singly if row is not None)

    @context.query_handler
    async def at_once(query: AtOnce, read: Reader) -> list[int]:
        rows = await asyncio.gather(*(read.get(Doc, key) for key in (A, B, A, C)))
        counts = await asyncio.gather(read.count(Doc), read.count(Words), read.count(Doc))
        return [*(0 if row is None else row.edits for row in rows), *counts]

    @context.query_handler
    async def odd(query: Odd, read: Reader) -> int:
        return len(await read.get_many(Doc, [A, "a\0"]))

    @context.query_handler
    async def nothing(query: Nothing, read: Reader) -> int:
        return 7

    @context.query_handler
    async def in_sql(query: InSql, read: Reader) -> int:
        return len(await read.sql(Doc, "SELECT * FROM office_doc", touches=[Doc]))

    @context.query_handler
    async def held(query: Held, read: Reader, gate: Gate) -> int:
        gate.entered.release()
        await gate.open.wait()
        return await read.count(Doc)


def office_on(store: str | None = "memory:", **more: Any) -> Application:
    return Application(office(), store=store, services={Gate: Gate()}, **more)


A, B, C = DocId("a"), DocId("b"), DocId("c")


async def write(app: Application, *texts: tuple[DocId, str]) -> str:
    token = ""
    for doc, text in texts:
        token = (await app.execute(Write(doc=doc, text=text))).token
    return token


# ── what it shows ────────────────────────────────────────────────────────────


async def test_every_kind_of_read_answers_as_of_then(store_url: str) -> None:
    """A row by key, a page and the next one, a search and counts: nothing of what came later, whatever it did."""
    async with office_on(store_url) as app:
        first = await write(app, (A, "a red fox"), (B, "the blue sea"))
        then = await write(app, (C, "red again"))
        await write(app, (A, "a green frog"), (DocId("d"), "red too"))
        await app.execute(Archive(doc=B))
        assert await app.query(DocOf(doc=A), as_of=then) == Doc(doc=A, text="a red fox", edits=1)
        assert await app.query(DocOf(doc=C), as_of=first) is None
        page = await app.query(Docs(), as_of=then)
        assert [found.doc for found in page.items] == [A, B]
        assert [found.doc for found in (await app.query(Docs(cursor=page.next), as_of=then)).items] == [C]
        assert await app.query(Found(text="red"), as_of=then) == [C, A]
        assert await app.query(Counted(), as_of=then) == 3 + 7
        assert await app.query(WordOf(word="red"), as_of=then) == Words(word="red", times=2)
        assert await app.query(Both(docs=(A, B, DocId("x"))), as_of=then) == (2, 2)
        assert await app.query(AtOnce(), as_of=then) == [1, 1, 1, 1, 3, 7, 3]
        assert await app.query(Nothing(), as_of=then) == 7


async def test_the_answer_says_which_moment_it_shows(store_url: str) -> None:
    """Its token is that position: it may be given again, waited for, and a command be based on it."""
    async with office_on(store_url) as app:
        receipt = await app.execute(Write(doc=A, text="one"))
        await write(app, (B, "other"), (A, "two"), (B, "more"))
        answer = await app.answer(DocOf(doc=A), as_of=receipt)
        assert answer == Answer(value=Doc(doc=A, text="one", edits=1), shows=(Token(Position(1), receipt.place),))
        assert await app.answer(DocOf(doc=A), as_of=answer) == answer
        assert (await app.query(DocOf(doc=A), after=answer)) is not None
        with pytest.raises(ContextChanged) as changed:
            await app.execute(Write(doc=A, text="three"), based_on=answer)
        assert [event.position for event in changed.value.events] == [3]
        of_b = await app.answer(DocOf(doc=B), as_of=(await app.answer(DocOf(doc=B), freshness="latest")))
        await app.execute(Write(doc=B, text="last"), based_on=of_b)


async def test_a_time_is_the_last_event_by_then(store_url: str) -> None:
    """Every event recorded then or before, none recorded later: before the first, between any two, at the last."""
    clock = ManualClock()
    begun = clock.now()
    async with Application(office(), store="memory:", clock=clock, services={Gate: Gate()}) as app:
        for number in range(1, 10):
            clock.advance(timedelta(minutes=2))
            await write(app, (A, f"n{number}"), (B, f"n{number}"))
        for minutes in range(19):
            answer = await app.answer(DocOf(doc=B), as_of=begun + timedelta(minutes=minutes))
            assert answer.value == (None if minutes < 2 else Doc(doc=B, text=f"n{minutes // 2}", edits=minutes // 2))
            assert answer.shows[0].high.position == minutes // 2 * 2
    async with office_on(store_url) as other:
        await write(other, (A, "one"), (A, "two"))
        times = [found.recorded_at async for found in other.events(ALL)]
        assert await other.query(DocOf(doc=A), as_of=times[0] - timedelta(microseconds=1)) is None
        assert (await other.query(DocOf(doc=A), as_of=times[1])) == Doc(doc=A, text="two", edits=2)


async def test_all_of_nothing() -> None:
    """Of an empty history any time shows nothing; so does the token that an answer of nothing has."""
    async with office_on() as app:
        assert await app.query(Counted(), as_of=datetime(2000, 1, 1, tzinfo=UTC)) == 0
        start = str(Token(START, Place(app.partition().store.history_id, START, NOWHERE)))
        await write(app, (A, "one"))
        assert await app.query(Counted(), as_of=start) == 0
        assert (await app.answer(DocOf(doc=A), as_of=start)).token == start


async def test_nothing_projects_where_the_past_is_asked(store_url: str) -> None:
    """It is folded from the log: no read model has to be there, nor as far."""
    async with office_on(store_url, projecting=False) as app:
        then = await write(app, (A, "one"))
        await write(app, (A, "two"))
        assert await app.query(DocOf(doc=A), as_of=then) == Doc(doc=A, text="one", edits=1)


def test_without_an_event_loop() -> None:
    """The same of a `SyncApplication`."""
    with SyncApplication(office(), services={Gate: Gate()}) as app:
        receipt = app.execute(Write(doc=A, text="one"))
        app.execute(Write(doc=A, text="two"))
        assert app.query(DocOf(doc=A), as_of=receipt) == Doc(doc=A, text="one", edits=1)
        assert app.answer(DocOf(doc=A), as_of=receipt).token == receipt.token


async def test_in_the_testing_kit() -> None:
    """`InMemoryApplication`, which shows the latest by default, shows the past where that is asked."""
    async with InMemoryApplication(office(), services={Gate: Gate()}) as app:
        receipt = await app.execute(Write(doc=A, text="one"))
        await app.execute(Write(doc=A, text="two"))
        assert await app.query(DocOf(doc=A), as_of=receipt) == Doc(doc=A, text="one", edits=1)


# ── what is no moment ────────────────────────────────────────────────────────


async def test_what_is_no_time_is_refused() -> None:
    """A naive time, one that has not come, and a moment together with a freshness."""
    async with office_on() as app:
        token = await write(app, (A, "one"))
        with pytest.raises(InvalidMessage, match="no time zone"):
            await app.query(DocOf(doc=A), as_of=datetime(2026, 1, 1))  # noqa: DTZ001 — that is what is refused
        with pytest.raises(InvalidMessage, match="has not come yet"):
            await app.query(DocOf(doc=A), as_of=app.now() + timedelta(days=1))
        with pytest.raises(InvalidMessage, match="give one of them"):
            await app.query(DocOf(doc=A), as_of=token, after=token)
        with pytest.raises(InvalidMessage, match="give one of them"):
            await app.query(DocOf(doc=A), as_of=token, freshness="latest")
        with pytest.raises(InvalidMessage, match="no token"):
            await app.query(DocOf(doc=A), as_of="yesterday")


async def test_a_token_of_no_one_moment_is_refused(store_url: str) -> None:
    """One that spans positions, and several: with the reason, and what would do."""
    async with office_on(store_url) as app:
        await write(app, (A, "one"))
        last = await app.execute(Write(doc=A, text="two"))
        with pytest.raises(CannotShowPast, match="different positions, 1 to 2.*a time"):
            await app.query(DocOf(doc=A), as_of=str(Token(Position(1), last.place)))
        with pytest.raises(CannotShowPast, match="different positions, 1 to 2"):
            await app.query(DocOf(doc=A), as_of=f"{last.token},{Token(Position(1), last.place)}")
        first = await app.answer(DocOf(doc=A), as_of=str(Token(last.place.position, last.place)))
        with pytest.raises(CannotShowPast, match="one moment"):
            await app.query(DocOf(doc=A), as_of=f"{first.token},{await token_at(app, 1)}")


async def test_a_token_of_another_history_is_refused(store_url: str) -> None:
    """Of another store, of an event that is not there, and past the head."""
    async with office_on(store_url) as app, office_on() as other:
        await write(app, (A, "one"))
        elsewhere = await write(other, (A, "one"))
        history_id = app.partition().store.history_id
        for place in (Place(history_id, Position(1), b"x" * 16), Place(history_id, Position(9), b"x" * 16)):
            with pytest.raises(HistoryDiverged, match="the moment asked for"):
                await app.query(DocOf(doc=A), as_of=str(Token(place.position, place)))
        with pytest.raises(HistoryDiverged):
            await app.query(DocOf(doc=A), as_of=elsewhere)


async def test_sql_is_refused(store_url: str) -> None:
    """There is none where rows of then are folded; the error names what there is."""
    async with office_on(store_url) as app:
        token = await write(app, (A, "one"))
        with pytest.raises(CannotShowPast, match=r"Reader\.sql.*get, find, page"):
            await app.query(InSql(), as_of=token)


# ── how much is folded ───────────────────────────────────────────────────────


async def test_a_row_by_key_is_folded_from_its_own_events(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its key is a tagged identity: however long the history, no more is counted towards the limit."""
    monkeypatch.setattr(past_fold, "PAST_EVENTS_MAX", 4)
    async with office_on(store_url) as app:
        await write(app, *[(DocId(f"x{n}"), "word") for n in range(10)], (A, "one"), (A, "two"))
        token = await write(app, *[(DocId(f"y{n}"), "word") for n in range(10)])
        assert await app.query(DocOf(doc=A), as_of=token) == Doc(doc=A, text="two", edits=2)
        assert await app.query(Both(docs=(A, DocId("x1"), DocId("y9"))), as_of=token) == (3, 4)
        asked: list[Query[Any]] = [
            Counted(),
            Docs(),
            WordOf(word="word"),
            Both(docs=(A, *(DocId(f"x{n}") for n in range(3)))),
        ]
        for query in asked:
            with pytest.raises(PastTooLong) as error:
                await app.query(query, as_of=token)
            assert (error.value.limit_name, error.value.limit, error.value.wanted) == ("PAST_EVENTS_MAX", 4, 22)
        assert await app.query(Counted(), as_of=str(await token_at(app, 2))) == 2 + 1


async def test_the_limit_tells_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """With about how many events there would be, and what to do."""
    monkeypatch.setattr(past_fold, "PAST_EVENTS_MAX", 1_000)
    monkeypatch.setattr(projector, "BATCH_LOOP_TARGET_S", 60)
    monkeypatch.setattr(projector, "BATCH_TARGET_S", 60)
    async with office_on() as app:
        commands = [Write(doc=DocId(f"d{n}"), text="w") for n in range(2_500)]
        await asyncio.gather(*(app.execute(command) for command in commands))
        with pytest.raises(PastTooLong, match=r"position 2000 of 2500 .* about 1250 in all; ask by key") as error:
            await app.query(Counted(), as_of=app.now())
        assert (error.value.read_model, error.value.reached) == ("office.Doc", 2_000)


async def test_rows_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold of few events into many rows ends at a limit of its own."""
    monkeypatch.setattr(past_fold, "PAST_ROWS_MAX", 50)
    async with office_on() as app:
        token = await write(app, (A, " ".join(f"w{n}" for n in range(50))))
        assert await app.query(WordOf(word="w7"), as_of=token) == Words(word="w7", times=1)
        token = await write(app, (A, "one more"))
        with pytest.raises(PastTooLong, match="PAST_ROWS_MAX=50"):
            await app.query(WordOf(word="w7"), as_of=token)


async def test_many_rows_by_key_are_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number of keys all of the read model is folded, to the same answer."""
    async with office_on() as app:
        token = await write(app, *[(DocId(f"d{n}"), "word") for n in range(10)])
        some = Both(docs=tuple(DocId(f"d{n}") for n in range(8)))
        expected = await app.query(some, as_of=token)
        monkeypatch.setattr(past_rows, "PAST_KEYS_MAX", 3)
        assert await app.query(some, as_of=token) == expected == (8, 8)


async def test_answers_wait_for_their_turn_and_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other goes; past a number of them, and past a time, they are told that it is too much."""
    monkeypatch.setattr(past, "PAST_ANSWERS_MAX", 1)
    monkeypatch.setattr(past, "PAST_WAITING_MAX", 1)
    gate = Gate()
    async with Application(office(), store="memory:", services={Gate: gate}) as app:
        token = await write(app, (A, "one"))
        first = asyncio.create_task(app.query(Held(), as_of=token))
        await gate.entered.acquire()
        second = asyncio.create_task(app.query(DocOf(doc=A), as_of=token))
        await asyncio.sleep(0)  # noqa: TID251 — until it waits
        with pytest.raises(Overloaded, match="PAST_WAITING_MAX=1"):
            await app.query(DocOf(doc=A), as_of=token)
        gate.open.set()
        assert (await first, await second) == (1, Doc(doc=A, text="one", edits=1))
        gate.open.clear()
        monkeypatch.setattr(past, "PAST_WAIT_S_MAX", 0)
        first = asyncio.create_task(app.query(Held(), as_of=token))
        await gate.entered.acquire()
        with pytest.raises(Overloaded, match="PAST_WAIT_S_MAX=0"):
            await app.query(DocOf(doc=A), as_of=token)
        gate.open.set()
        assert await first == 1


async def test_nothing_is_left_of_an_answer() -> None:
    """Rows that were folded for it are gone with it, also where it failed."""

    def stores() -> int:
        gc.collect()
        return sum(isinstance(found, MemoryReadStore) for found in gc.get_objects())

    async with office_on() as app:
        token = await write(app, (A, "one"))
        before = stores()
        for _ in range(5):
            await app.query(Counted(), as_of=token)
            with pytest.raises(CannotShowPast):
                await app.query(InSql(), as_of=token)
        assert stores() == before


# ── what cannot be folded ────────────────────────────────────────────────────


async def test_pruned_events_are_told(store_url: str) -> None:
    """An answer across a horizon is `HistoryPruned`; one that needs none of those events is given."""
    async with office_on(store_url) as app:
        await write(app, (A, "one"), (B, "two"))
        token = await write(app, (B, "three"))
        await app.partition().store.prune("office.Written", START, Position(1), 10)
        asked: list[Query[Any]] = [DocOf(doc=A), Counted(), WordOf(word="two")]
        for query in asked:
            with pytest.raises(HistoryPruned) as error:
                await app.query(query, as_of=token)
            assert error.value.position == 1
        assert await app.query(DocOf(doc=B), as_of=token) == Doc(doc=B, text="three", edits=2)


async def test_a_key_that_cannot_be_folded_is_blocked(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the event on that fails, for whoever touches it, and nobody else; discards and new code are honoured."""
    async with office_on(store_url) as app:
        before = await write(app, (A, "whole"), (B, "whole"))
        torn = await write(app, (A, "torn"))
        later = await write(app, (A, "mended"))
        await app.projected()
        caplog.clear()
        asked: list[Query[Any]] = [DocOf(doc=A), Docs(), Both(docs=(B, A)), Both(docs=(A, B))]
        with caplog.at_level(logging.ERROR):
            for query in asked:
                with pytest.raises(Blocked, match='keys \\["a"\\] of Doc'):
                    await app.query(query, as_of=later)
        assert caplog.records == [], "whoever asks is told, and nobody else"
        assert await app.query(DocOf(doc=A), as_of=before) == Doc(doc=A, text="whole", edits=1)
        assert await app.query(DocOf(doc=B), as_of=later) == Doc(doc=B, text="whole", edits=1)
        monkeypatch.setattr(Mended, "is_mended", True)
        assert await app.query(DocOf(doc=A), as_of=torn) == Doc(doc=A, text="torn", edits=2)
        monkeypatch.setattr(Mended, "is_mended", False)
        assert await discard(app, '["a"]') is None
        assert await app.query(DocOf(doc=A), as_of=torn) == Doc(doc=A, text="whole", edits=1)
        assert await app.query(DocOf(doc=A), as_of=later) == Doc(doc=A, text="mended", edits=2)
        assert (await app.query(Docs(), as_of=later)).items == [
            Doc(doc=A, text="mended", edits=2),
            Doc(doc=B, text="whole", edits=1),
        ]


async def test_a_key_that_no_event_can_carry_has_no_row(store_url: str) -> None:
    """Whatever it is: it is asked for like any other, and there is none."""
    async with office_on(store_url) as app:
        token = await write(app, (A, "one"))
        assert await app.query(Odd(), as_of=token) == 1
        assert await app.query(Both(docs=(A, DocId("long" * 500))), as_of=token) == (1, 1)


# ── partitions ───────────────────────────────────────────────────────────────


async def test_each_partition_has_moments_of_its_own(places: Places) -> None:
    """A tenant's query is answered as of its own history; a token of another one's says nothing of it."""
    stores = places(ACME, GLOBEX, "*")
    async with Application(warehouses(), partition_by=TenantId, store=stores) as app:
        first = await app.execute(Stock(tenant=ACME, sku=PEN, units=1))
        other = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=2))
        await app.execute(Stock(tenant=ACME, sku=PEN, units=3))
        of_acme = UnitsOnShelf(tenant=ACME, sku=PEN)
        assert await app.query(of_acme, as_of=first) == 1
        assert await app.query(of_acme, as_of=f"{first.token},{other.token}") == 1
        assert await app.query(of_acme, as_of=app.now()) == 4
        with pytest.raises(HistoryDiverged, match="another history"):
            await app.query(of_acme, as_of=other)
        for moment in (first, app.now()):
            with pytest.raises(CannotShowPast, match="across partitions"):
                await app.query(UnitsEverywhere(sku=PEN), as_of=moment)


async def test_a_query_of_several_partitions_shows_each_as_of_then(places: Places) -> None:
    """As of a time, each history where it was; as of tokens, those that they tell of, and no other one."""
    async with by_context(places("sales", "shipping")) as app:
        query = Progress(order=OrderId("o-1"))
        placed = await app.execute(PlaceOrder(order=OrderId("o-1")))
        between = app.now()
        shipped = await app.execute(Ship(order=OrderId("o-1")))
        now = app.now()
        assert await app.query(query, as_of=between - timedelta(hours=1)) == "unknown"
        answer = await app.answer(query, as_of=between)
        assert answer.value == "placed"
        assert await app.answer(query, as_of=answer) == answer
        assert await app.query(query, as_of=now) == "shipped"
        assert await app.query(query, as_of=f"{placed.token},{shipped.token}") == "shipped"
        with pytest.raises(CannotShowPast, match="tells nothing of 'shipping'"):
            await app.query(query, as_of=placed)


async def token_at(app: Application, position: int) -> Token:
    place = await app.partition().store.place_at(Position(position))
    assert place is not None
    return Token(place.position, place)
