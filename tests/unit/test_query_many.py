"""Several queries at once: of one moment, with one token, after one wait."""

from __future__ import annotations

from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    Event,
    Key,
    NotFresh,
    Query,
    Reader,
    ReadModel,
    SyncApplication,
)
from diptych.application.query_panel import QUERIES_TOGETHER_MAX
from diptych.errors import Blocked, Forbidden, InvalidMessage, SpansPartitions
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_context import QueryContext
from diptych.read_side.query_middleware import NextQuery
from diptych.security import requires
from tests.tenants import ACME, GLOBEX, PEN, Places, Stock, UnitsOnShelf, by_tenant

pytestmark = pytest.mark.anyio


class Press(Command):
    button: str


class Pressed(Event):
    button: str


class Light(ReadModel):
    button: Key[str]
    times: int = 0


class Bell(ReadModel):
    button: Key[str]
    times: int = 0


class Lights(Query[list[Light]]): ...


class Bells(Query[list[Bell]]): ...


class LightOf(Query[Light | None]):
    button: str


class Presses(Query[int]):
    """Presses another time, the first time that it is asked, and then counts."""


@requires("secret")
class Secret(Query[list[Light]]): ...


def house(app: list[Application]) -> BoundedContext:
    context = BoundedContext("house")
    pressed: list[str] = []

    @context.command_handler
    def press(command: Press) -> Pressed:
        return Pressed(button=command.button)

    @context.projection
    def light(row: Light, event: Pressed) -> Light:
        if event.button == "torn":
            raise ValueError("cannot be folded")
        return Light(button=row.button, times=row.times + 1)

    @context.projection
    def bell(row: Bell, event: Pressed) -> Bell:
        return Bell(button=row.button, times=row.times + 1)

    @context.query_handler
    async def presses(query: Presses, read: Reader) -> int:
        before = await read.count(Bell)
        if not pressed:
            pressed.append("now")
            await app[0].query(Bells(), after=await app[0].execute(Press(button="now")))
        return before

    return context


async def test_all_answers_are_of_one_moment(store_url: str) -> None:
    """What happens between two of them is in none; and one token tells what all show."""
    app: list[Application] = []
    async with Application(house(app), store=store_url) as opened:
        app.append(opened)
        receipt = await opened.execute(Press(button="a"))
        answer: Answer[list[Any]] = await opened.answer_many(
            [Lights(), Presses(), Bells(), LightOf(button="a"), LightOf(button="now")], after=receipt
        )
        lights, count, bells, one, none = answer.value
        assert [(row.button, row.times) for row in lights] == [("a", 1)] == [(row.button, row.times) for row in bells]
        assert (count, one, none) == (1, Light(button="a", times=1), None)
        assert answer.token == receipt.token
        later = await opened.query_many([Lights(), Bells()], as_of=receipt)
        assert [[row.button for row in rows] for rows in later] == [["a"], ["a"]]


async def test_it_waits_for_all_of_them_or_gives_none() -> None:
    """Freshness is of all; a blocked key that one touches is an error of all that are strict."""
    async with Application(house([]), store="memory:", projecting=False) as app:
        receipt = await app.execute(Press(button="a"))
        with pytest.raises(NotFresh):
            await app.query_many([Lights(), Bells()], after=receipt, wait_s=0)
    async with Application(house([]), store="memory:") as app:
        torn = await app.execute(Press(button="torn"))
        with pytest.raises(Blocked):
            await app.query_many([Bells(), Lights()], after=torn)
        assert (await app.answer_many([Bells(), Lights()])).incomplete
        assert not (await app.answer_many([Bells()])).incomplete


async def test_each_goes_through_the_middlewares(store_url: str) -> None:
    """Rows are narrowed for one and not for the other; what may not be asked alone may not be asked among others."""

    async def lights_alone(query: Query[Any], context: QueryContext, proceed: NextQuery) -> Answer[Any]:
        return await proceed(query, context.only(Light, button="b") if isinstance(query, Lights) else context)

    async with Application(house([]), store=store_url, query_middleware=[lights_alone]) as app:
        await app.execute(Press(button="a"))
        token = await app.execute(Press(button="b"))
        asked: list[Query[Any]] = [LightOf(button="a"), Lights(), LightOf(button="a"), Bells()]
        one, lights, again, bells = await app.query_many(asked, after=token)
        assert one == again == Light(button="a", times=1)
        assert ([row.button for row in lights], [row.button for row in bells]) == (["b"], ["a", "b"])
        with pytest.raises(Forbidden):
            await app.query_many([Lights(), Secret()])


async def test_too_many_and_none_are_refused() -> None:
    """Up to a named number."""
    async with Application(house([]), store="memory:") as app:
        for queries in ([], [Lights()] * (QUERIES_TOGETHER_MAX + 1)):
            with pytest.raises(InvalidMessage, match="QUERIES_TOGETHER_MAX"):
                await app.query_many(queries)


async def test_queries_of_two_tenants_are_not_asked_together(places: Places) -> None:
    """No answer is ever from another tenant's rows than the query names."""
    async with by_tenant(places) as app:
        await app.execute(Stock(tenant=ACME, sku=PEN, units=8))
        token = await app.execute(Stock(tenant=GLOBEX, sku=PEN, units=9))
        acme, globex = UnitsOnShelf(tenant=ACME, sku=PEN), UnitsOnShelf(tenant=GLOBEX, sku=PEN)
        assert await app.query_many([globex, globex], after=token) == [9, 9]
        with pytest.raises(SpansPartitions):
            await app.query_many([acme, globex])


def test_without_an_event_loop_it_is_the_same() -> None:
    """The synchronous application asks many, and streams, alike."""
    with SyncApplication(house([]), store="memory:") as app:
        token = app.execute(Press(button="a"))
        assert [len(rows) for rows in app.query_many([Lights(), Bells()], after=token)] == [1, 1]
        assert [row.button for row in app.stream(Lights())] == ["a"]
