"""Places and tokens: opaque text that carries proof of its history."""

from __future__ import annotations

import base64

import msgspec
import pytest

from diptych import Application
from diptych.errors import HistoryDiverged, InvalidMessage
from diptych.event_store.position import NOWHERE, START, Place, Position, Token, read_tokens
from tests.school import CourseId, OpenCourse, SeatsOf, school, with_seats

pytestmark = pytest.mark.anyio

MINE, OTHER, EVENT = b"m" * 16, b"o" * 16, b"e" * 16
SEVEN = Place(MINE, Position(7), EVENT)


def text_of(token: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode()


@pytest.mark.parametrize("place", [SEVEN, Place(MINE, START, NOWHERE), Place(MINE, Position(2**62), EVENT)])
def test_a_token_is_opaque_text_and_back(place: Place) -> None:
    """Letters, digits, - and _ only: fit for headers and URLs."""
    token = Token(place.position, place)
    assert str(token).replace("-", "").replace("_", "").isalnum()
    assert read_tokens(str(token)) == [token]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ä",
        "null",
        str(Token(Position(7), SEVEN))[:-3],
        text_of([1]),
        text_of([1, [MINE, 7]]),
        text_of(["1", [MINE, 7, EVENT]]),
        text_of([1, [MINE, -1, EVENT]]),
        text_of([-1, [MINE, 7, EVENT]]),
        text_of([1, [MINE, 2**63, EVENT]]),
        text_of([2**64 - 1, [MINE, 7, EVENT]]),
        text_of({"low": 1}),
        "\0",
        "\ud800",
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    """Forged or cut short: no other error reaches the caller."""
    with pytest.raises(InvalidMessage, match="no token that Diptych gave out"):
        read_tokens(text)


@pytest.mark.parametrize(
    ("history_id", "event_id", "text"),
    [
        (OTHER, EVENT, "another history id"),
        (MINE, None, "ends before position 7"),
        (MINE, b"f" * 16, "another event is at position 7"),
    ],
)
def test_a_place_of_another_history_is_noticed(history_id: bytes, event_id: bytes | None, text: str) -> None:
    """By the store's id, by its length, and by the event at the place."""
    with pytest.raises(HistoryDiverged, match=f"the token.*{text}"):
        SEVEN.check(history_id, event_id, "the token")
    SEVEN.check(MINE, EVENT, "the token")


async def test_forged_tokens_never_reach_the_store(store_url: str) -> None:
    """A position that no store can hold, or one past the head, is refused by name and never waited for."""
    context = with_seats(school())
    context.command_handlers = [found for found in context.command_handlers if not found.name.endswith("audit")]
    async with Application(context, store=store_url) as app:
        receipt = await app.execute(OpenCourse(course=CourseId("a"), capacity=1))
        for position in (2, 2**31, 2**62):
            forged = Place(receipt.place.history_id, Position(position), EVENT)
            with pytest.raises(HistoryDiverged):
                await app.query(SeatsOf(course=CourseId("a")), after=str(Token(Position(1), forged)))
        with pytest.raises(InvalidMessage):
            await app.query(SeatsOf(course=CourseId("a")), after=text_of([1, [MINE, 2**64 - 1, EVENT]]))
