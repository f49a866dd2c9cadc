"""Live queries: the first answer at once, and one more for each change that can affect it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import pytest

from diptych import Answer, Application, NotFresh, Query
from diptych.errors import HistoryDiverged, InvalidMessage, Overloaded, StoreClosed, UnknownMessage
from diptych.read_side import live_queries
from tests.watched import (
    Add,
    All,
    Counter,
    CounterId,
    CounterOf,
    Faults,
    HowMany,
    Looked,
    Note,
    Notes,
    Seen,
    Several,
    Turning,
    counters,
)

pytestmark = pytest.mark.anyio
R = TypeVar("R")
A, B = CounterId("a"), CounterId("b")
WAIT_S = 30
"""Seconds after which a test gives up."""


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def app(store_url: str, seen: Seen, faults: Faults) -> AsyncIterator[Application]:
    async with Application(counters(faults, seen), store=store_url) as opened:
        yield opened


async def following(answers: AsyncGenerator[Answer[R]]) -> Answer[R]:
    """The next answer."""
    async with asyncio.timeout(WAIT_S):
        return await anext(answers)


def expected(answers: AsyncGenerator[Answer[R]]) -> asyncio.Task[Answer[R]]:
    """The next answer, to be waited for later."""
    return asyncio.get_running_loop().create_task(following(answers))


async def give_up(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def watches() -> list[str]:
    """The tasks of live queries."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("diptych watch")]


# ── answers ──────────────────────────────────────────────────────────────────


async def test_the_first_answer_comes_at_once_and_others_as_it_changes(app: Application) -> None:
    """A row that is not there, then the row, then the row as each command leaves it."""
    async with aclosing(app.subscribe(CounterOf(counter=A))) as answers:
        assert (await following(answers)).value is None
        for count in (1, 2, 3):
            receipt = await app.execute(Add(counter=A))
            answer = await following(answers)
            assert answer.value == Counter(counter=A, count=count)
            assert answer == await app.answer(CounterOf(counter=A), after=receipt)


async def test_a_list_changes_with_any_row(app: Application) -> None:
    """A query of many rows is answered anew whichever of them changes, and also where one is added."""
    async with aclosing(app.subscribe(All())) as answers:
        assert (await following(answers)).value == []
        for counter, counts in ((A, [1]), (B, [1, 1]), (A, [2, 1])):
            await app.execute(Add(counter=counter))
            assert [row.count for row in (await following(answers)).value] == counts


async def test_what_changes_meanwhile_is_one_answer(app: Application) -> None:
    """A consumer that is busy gets the last state; nothing is asked while it is."""
    async with aclosing(app.subscribe(CounterOf(counter=A))) as answers:
        await following(answers)
        for _ in range(20):
            await app.execute(Add(counter=A))
        await app.projected()
        assert (await following(answers)).value == Counter(counter=A, count=20)
        late = expected(answers)
        await app.execute(Add(counter=A, count=5))
        assert (await late).value == Counter(counter=A, count=25)


async def test_nothing_is_asked_before_the_next_answer_is_wanted(app: Application, seen: Seen) -> None:
    """Backpressure: changes wake a subscription, and its handler is run when its consumer goes on."""
    async with aclosing(app.subscribe(Looked(counter=A))) as answers, aclosing(app.subscribe(All())) as others:
        await following(answers)
        await following(others)
        for _ in range(5):
            await app.execute(Add(counter=A))
            await following(others)
        assert seen.asked == 1
        assert (await following(answers)).value == 5
        assert seen.asked == 2


async def test_only_those_are_woken_whose_rows_an_event_touches(app: Application, seen: Seen) -> None:
    """Events of other rows of the same read model, and of other read models, ask no keyed query again."""
    async with aclosing(app.subscribe(Looked(counter=A))) as answers, aclosing(app.subscribe(All())) as others:
        await following(answers)
        await following(others)
        waiting = expected(answers)
        for _ in range(3):
            await app.execute(Note(text="n"))
            await app.execute(Add(counter=B))
            await following(others)
        assert seen.asked == 1
        assert not waiting.done()
        await app.execute(Add(counter=A))
        assert (await waiting).value == 1
        assert seen.asked == 2


async def test_events_of_other_read_models_ask_nothing_again(app: Application, seen: Seen) -> None:
    """A query of any row of one read model rests while only another one changes."""
    async with (
        aclosing(app.subscribe(HowMany())) as answers,
        aclosing(app.subscribe(Notes())) as others,
        aclosing(app.subscribe(All())) as rows,
    ):
        await following(answers)
        await following(others)
        await following(rows)
        waiting = expected(answers)
        for number in range(3):
            await app.execute(Note(text=f"n{number}"))
            assert len((await following(others)).value) == number + 1
        await app.execute(Add(counter=A))
        assert len((await following(rows)).value) == 1
        assert (await waiting).value == 1
        assert seen.asked == 2


async def test_what_changes_while_it_is_asked_is_not_missed(app: Application, seen: Seen) -> None:
    """A change behind the answer's snapshot, of which all others were told before anyone knew what it rests on."""
    async with aclosing(app.subscribe(All())) as others, aclosing(app.subscribe(Looked(counter=A))) as answers:
        await following(others)

        async def change() -> None:
            seen.meanwhile = None
            await app.execute(Add(counter=A))
            await following(others)

        seen.meanwhile = change
        assert (await following(answers)).value == 0
        assert (await following(answers)).value == 1


async def test_a_change_that_gives_the_same_answer_is_none(app: Application) -> None:
    """An answer is given where its value differs from the last one."""
    async with aclosing(app.subscribe(CounterOf(counter=A))) as answers, aclosing(app.subscribe(Looked(counter=A))):
        await app.execute(Add(counter=A))
        first = await following(answers)
        first = first if first.value else await following(answers)
        waiting = expected(answers)
        async with aclosing(app.subscribe(All(), after=first)) as others:
            await following(others)
            await app.execute(Add(counter=A, count=0))
            await app.execute(Add(counter=B))
            assert len((await following(others)).value) == 2
        assert not waiting.done()
        await app.execute(Add(counter=A))
        assert (await waiting).value == Counter(counter=A, count=2)


async def test_what_is_rested_on_follows_what_is_read(app: Application) -> None:
    """The keys are those of the last answer: a query that reads by what it has read is woken by either."""
    async with aclosing(app.subscribe(Several(counter=A))) as answers:
        assert (await following(answers)).value == 0
        await app.execute(Add(counter=A))
        assert (await following(answers)).value == 1
        await app.execute(Add(counter=CounterId("c1"), count=7))
        assert (await following(answers)).value == 701
        await app.execute(Add(counter=A))
        assert (await following(answers)).value == 2
        waiting = expected(answers)
        await app.execute(Add(counter=CounterId("c1")))
        await app.execute(Add(counter=CounterId("c2"), count=3))
        assert (await waiting).value == 302


async def test_past_the_limit_of_keys_any_row_wakes(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that reads more keys than are remembered is answered anew all the same."""
    monkeypatch.setattr(live_queries, "KEYS_MAX", 0)
    async with aclosing(app.subscribe(CounterOf(counter=A))) as answers:
        await following(answers)
        await app.execute(Add(counter=A))
        assert (await following(answers)).value == Counter(counter=A, count=1)


async def test_equal_queries_are_asked_once(app: Application, seen: Seen) -> None:
    """Those that wait for the same answer share the run; who leaves meanwhile takes it from nobody."""
    answers = [app.subscribe(Looked(counter=A)) for _ in range(10)]
    for each in answers:
        await following(each)
    asked, waiting = seen.asked, [expected(each) for each in answers]
    await asyncio.wait(waiting, timeout=0)
    for given_up in waiting[:3]:
        given_up.cancel()
    await app.execute(Add(counter=A))
    assert [(await each).value for each in waiting[3:]] == [1] * 7
    assert seen.asked == asked + 1
    for each in answers:
        await each.aclose()
    assert watches() == []


# ── tokens ───────────────────────────────────────────────────────────────────


async def test_a_token_goes_on_where_it_was(app: Application) -> None:
    """The first answer of a resumed subscription shows at least what the last one before it did."""
    async with aclosing(app.subscribe(CounterOf(counter=A))) as answers:
        await following(answers)
        await app.execute(Add(counter=A))
        last = await following(answers)
    receipt = await app.execute(Add(counter=A))
    for after, counts in ((last, {1, 2}), (last.token, {1, 2}), (receipt, {2})):
        async with aclosing(app.subscribe(CounterOf(counter=A), after=after)) as resumed:
            shown = await following(resumed)
            assert shown.shows[0].high.position >= last.shows[0].high.position
            assert shown.value is not None
            assert shown.value.count in counts


async def test_a_token_that_is_not_there_in_time_is_told(store_url: str) -> None:
    """Nobody projects: the first answer is as that of `answer`."""
    async with Application(counters(), store=store_url, projecting=False) as app:
        receipt = await app.execute(Add(counter=A))
        with pytest.raises(NotFresh):
            await following(app.subscribe(CounterOf(counter=A), after=receipt, wait_s=0))


async def test_tokens_never_go_back(app: Application, faults: Faults) -> None:
    """Also where an answer rests on another read model than the one before it, which has stopped earlier."""
    async with aclosing(app.subscribe(Turning(counter=A))) as answers:
        await app.execute(Note(text="one"))
        await app.execute(Note(text=""))
        receipt = await app.execute(Add(counter=A))
        answer = await following(answers)
        answer = answer if answer.value else await following(answers)
        assert answer.shows[0].high == receipt.place
        faults.turned = True
        await app.execute(Add(counter=A))
        turned = await following(answers)
        assert turned.value == 101
        assert turned.shows[0].low == 1
        assert turned.shows[0].high == answer.shows[0].high


# ── what is refused ──────────────────────────────────────────────────────────


class Unknown(Query[int]): ...


async def test_what_cannot_be_asked_is_told(app: Application) -> None:
    """With the first answer; no watch is begun."""
    with pytest.raises(UnknownMessage):
        await following(app.subscribe(Unknown()))
    with pytest.raises(InvalidMessage):
        await following(app.subscribe(CounterOf(counter=1)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidMessage):
        app.subscribe(CounterOf(counter=A), after="none")
    with pytest.raises(InvalidMessage):
        await following(app.subscribe(CounterOf(counter=A), wait_s=-1))
    async with Application(counters(), store="memory:") as other:
        receipt = await other.execute(Add(counter=A))
    with pytest.raises(HistoryDiverged):
        await following(app.subscribe(CounterOf(counter=A), after=receipt))
    assert watches() == []


async def test_there_is_a_limit_and_room_again_below_it(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `SUBSCRIPTIONS_MAX` it is `Overloaded`; who leaves makes room."""
    monkeypatch.setattr(live_queries, "SUBSCRIPTIONS_MAX", 2)
    one, two = app.subscribe(All()), app.subscribe(All())
    await following(one)
    await following(two)
    with pytest.raises(Overloaded, match="SUBSCRIPTIONS_MAX"):
        await following(app.subscribe(All()))
    await one.aclose()
    three = app.subscribe(All())
    assert (await following(three)).value == []
    await two.aclose()
    await three.aclose()


# ── the end ──────────────────────────────────────────────────────────────────


async def test_leaving_leaves_nothing_behind(app: Application) -> None:
    """However it is left: a watch lasts as long as somebody rests on its read model."""
    one, two = app.subscribe(CounterOf(counter=A)), app.subscribe(All())
    await following(one)
    await following(two)
    assert len(watches()) == 1
    await one.aclose()
    assert len(watches()) == 1
    waiting = expected(two)
    await asyncio.wait((waiting,), timeout=0)
    await give_up(waiting)
    assert watches() == []
    with pytest.raises(StopAsyncIteration):
        await anext(two)


async def test_closing_the_application_ends_every_subscription(store_url: str) -> None:
    """One that waits, one whose consumer is busy, and one that nobody has begun; no task is left."""
    async with Application(counters(), store=store_url) as app:
        waits, busy, unbegun = app.subscribe(All()), app.subscribe(CounterOf(counter=A)), app.subscribe(All())
        await following(waits)
        await following(busy)
        waiting = expected(waits)
        await asyncio.wait((waiting,), timeout=0)
    assert watches() == []
    with pytest.raises(StopAsyncIteration):
        await waiting
    for ended in (busy, unbegun):
        with pytest.raises(StopAsyncIteration):
            await anext(ended)
    with pytest.raises(StoreClosed):
        app.subscribe(All())
