"""Queries that need no handler, and those that would have needed one: what is told, and when."""

from __future__ import annotations

import pytest

from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel
from diptych.errors import ConfigurationError, UnknownMessage

pytestmark = pytest.mark.anyio


class RoomId(Identity): ...


class Open(Command):
    room: RoomId
    limit: int


class Opened(Event):
    room: RoomId
    limit: int


class Room(ReadModel):
    room: Key[RoomId]
    limit: int = 0


class Shed(ReadModel):
    room: Key[RoomId]


def rooms() -> BoundedContext:
    context = BoundedContext("house")

    @context.command_handler
    def open_room(command: Open) -> Opened:
        return Opened(room=command.room, limit=command.limit)

    @context.projection
    def room(event: Opened) -> Room:
        return Room(room=event.room, limit=event.limit)

    return context


class Rooms(Query[int]):
    """How many rooms there are: of a type that no read model answers."""


class ShedOf(Query[Shed | None]):
    room: RoomId


class Sheds(Query[list[Shed]]):
    room: RoomId


@pytest.mark.parametrize(
    ("query", "remedy"),
    [
        (Rooms(), "write `@context.query_handler async def handler(query: Rooms, read: Reader) -> int`"),
        (ShedOf(room=RoomId("a")), "no projection of this application feeds Shed"),
        (Sheds(room=RoomId("a")), "no projection of this application feeds Shed"),
    ],
)
async def test_a_query_that_nothing_answers_says_what_would(query: Query[object], remedy: str) -> None:
    """It is known by its class: a handler is missing, or a projection, and no name is misspelt."""
    async with Application(rooms(), store="memory:") as app:
        with pytest.raises(UnknownMessage) as unknown:
            await app.query(query)
    assert f"no handler for query {type(query).__name__}: " in str(unknown.value)
    assert remedy in str(unknown.value)
    assert "did you mean" not in str(unknown.value)


async def test_a_query_that_came_after_the_application_was_opened_says_so() -> None:
    """Queries without handler are found when the application opens."""
    async with Application(rooms(), store="memory:") as app:

        class Late(Query[Room | None]):
            room: RoomId

        with pytest.raises(UnknownMessage, match="no handler for query Late: it was defined after"):
            await app.query(Late(room=RoomId("a")))


class Limited(ReadModel):
    room: Key[RoomId]
    limit: int = 0


class LimitedTo(Query[list[Limited]]):
    limit: int


class Cursored(ReadModel):
    room: Key[RoomId]
    cursor: str = ""


class CursoredAt(Query[list[Cursored]]):
    cursor: str


class Ordered(ReadModel):
    room: Key[RoomId]
    order_by: str = ""


class OrderedBy(Query[list[Ordered]]):
    order_by: str


@pytest.mark.parametrize(
    ("model", "query", "field"),
    [(Limited, LimitedTo, "limit"), (Cursored, CursoredAt, "cursor"), (Ordered, OrderedBy, "order_by")],
)
async def test_a_list_filtered_by_a_column_that_is_named_as_an_argument_is_refused_at_start(
    model: type[ReadModel], query: type[Query[object]], field: str
) -> None:
    """`Reader.page` would take the value for its own limit, cursor or order: a handler has to ask otherwise."""
    context = BoundedContext("house")

    @context.projection
    def projected(event: Opened) -> model:  # type: ignore[valid-type]
        return model(room=event.room)

    with pytest.raises(ConfigurationError) as refused:
        async with Application(context, store="memory:"):
            pass
    assert f"{query.__qualname__} has no handler, and its field {field!r}" in str(refused.value)
    assert "Reader.sql" in str(refused.value)
