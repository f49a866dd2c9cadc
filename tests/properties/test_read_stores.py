"""Answers are the same wherever read models are kept: in one store, or each in stores of its own (G5, G6)."""

from __future__ import annotations

import asyncio
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application, Event, Query, Reader, ReadModel
from diptych.application.read_routing import ReadStores
from diptych.errors import Blocked
from diptych.event_store.position import Token
from diptych.testing import ManualClock
from tests.postgres_server import new_read_store
from tests.properties.test_batches import append
from tests.warehouse import Blank, Explicit, Log, PerPair, PerPart, Touched, events, warehouse

MODELS: list[type[ReadModel]] = [Blank, Explicit, Log, PerPair, PerPart, Touched]
PLACES = ("beside the events", "memory", "one file", "another file", "postgres")


class Everything(Query[dict[str, list[str]]]):
    """The rows of every read model, in the order of their keys."""


def asked() -> Any:
    """The warehouse, and one query of all that is in it."""
    context = warehouse()

    @context.query_handler
    async def everything(query: Everything, read: Reader) -> dict[str, list[str]]:
        return {model.__name__: [repr(row) for row in await read.find(model)] for model in MODELS}

    return context


async def answers(folder: str, name: str, history: list[Event], sent: ReadStores) -> list[Any]:
    """What is answered now, and as of the middle; whether that is complete; and the token, but for its history."""
    found: list[Any] = []
    at = f"sqlite:{folder}/{name}.db"
    async with Application(asked(), store=at, read_stores=sent, clock=ManualClock()) as app:
        partition = app.partition()
        for number, event in enumerate(history):
            await append(partition.store, app.event_types, number, event)  # type: ignore[arg-type]
        await app.projected()
        found.append(await told(app, {}))
        try:
            found.append(await told(app, {"freshness": "latest"}))
        except Blocked:
            found.append(Blocked)
        middle = await partition.store.place_at(len(history) // 2)  # type: ignore[arg-type]
        assert middle is not None
        try:
            found.append(await told(app, {"as_of": str(Token(middle.position, middle))}))
        except Blocked:
            found.append(Blocked)
        blocked = [(item.name, item.key, item.position) for item in (await app.parked.list()).items]
    return [*found, blocked]


async def told(app: Application, how: dict[str, Any]) -> tuple[Any, bool, list[tuple[int, int]]]:
    answer = await app.answer(Everything(), **how)
    return answer.value, answer.incomplete, [(token.low, token.high.position) for token in answer.shows]


@settings(max_examples=5, deadline=None)
@given(
    st.lists(events, min_size=1, max_size=12),
    st.lists(st.lists(st.sampled_from(PLACES), min_size=1, max_size=2, unique=True), min_size=6, max_size=6),
)
def test_answers_are_the_same_wherever_read_models_are_kept(history: list[Event], places: list[list[str]]) -> None:
    """Now, when all is there, and as of a moment; with the same keys blocked, each of them once."""

    async def run(folder: str) -> None:
        urls = {
            "beside the events": f"sqlite:{folder}/apart.read.db",
            "memory": "memory:",
            "one file": f"sqlite:{folder}/one.db",
            "another file": f"sqlite:{folder}/another.db",
            "postgres": await new_read_store() if any("postgres" in each for each in places) else "",
        }
        sent = {model: [urls[place] for place in at] for model, at in zip(MODELS, places, strict=True)}
        together = await answers(folder, "together", history, {})
        apart = await answers(folder, "apart", history, sent)
        assert apart == together

    with TemporaryDirectory() as folder:
        asyncio.run(run(folder))
