"""Dry runs: what would come of a command, judged like any other, and nothing done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandContext,
    ContextChanged,
    DecisionModel,
    Event,
    Identity,
    Receipt,
    Rejected,
    SyncApplication,
    Verdict,
    replace,
)
from diptych.errors import InvalidMessage, NotPure, Unstorable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import TAG_BYTES_MAX, Commit
from diptych.event_store.position import START, Token
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.codec import encode
from diptych.messages.envelope import Envelope
from diptych.messages.unique_id import unique_bytes
from diptych.write_side.command_bus import NextCommand

pytestmark = pytest.mark.anyio


class Seat(Identity): ...


class Reserve(Command):
    seat: Seat
    by: str


class Reserved(Event):
    seat: Seat
    by: str


class ReservationRefused(Event):
    seat: Seat


class Ring(Command):
    seat: Seat


class Rung(Event):
    seat: Seat


class Bell:
    """What a handler with effects has."""


class Place(DecisionModel[Seat]):
    by: str = ""

    def evolve(self, event: Reserved) -> Place:
        return replace(self, by=event.by)


theatre = BoundedContext("theatre", events=[ReservationRefused])


@theatre.command_handler
def reserve(command: Reserve, place: Place) -> Reserved:
    if place.by:
        raise Rejected("taken", record=ReservationRefused(seat=command.seat), by=place.by)
    return Reserved(seat=command.seat, by=command.by)


@theatre.command_handler
def ring(command: Ring, bell: Bell) -> Rung:
    raise AssertionError(f"rung: {bell}")


FRONT = Seat("front")
ADA, BOB = Reserve(seat=FRONT, by="ada"), Reserve(seat=FRONT, by="bob")


@asynccontextmanager
async def opened(store_url: str, **options: object) -> AsyncGenerator[Application]:
    async with Application(theatre, store=store_url, services={Bell: Bell()}, **options) as app:  # type: ignore[arg-type]
        yield app


async def count(app: Application) -> int:
    return len([event async for event in app.events(ALL_EVENTS)])


async def test_what_would_happen_is_said_and_not_done(store_url: str) -> None:
    """The events that would come are told as a receipt tells them; the history stays as it is, and the way is free."""
    async with opened(store_url) as app:
        verdict = await app.can(ADA)
        assert verdict
        assert verdict == Verdict(events=(Reserved(seat=FRONT, by="ada"),))
        assert await count(app) == 0
        assert (await app.execute(BOB)).position == 1


async def test_a_refusal_is_said_and_leaves_nothing(store_url: str) -> None:
    """The domain's no comes with its code and facts; a fact that would go with it is not recorded."""
    async with opened(store_url) as app:
        await app.execute(ADA)
        verdict = await app.can(BOB)
        assert not verdict
        assert verdict.rejected is not None
        assert (verdict.rejected.code, verdict.rejected.facts) == ("taken", {"by": "ada"})
        assert await count(app) == 1


async def test_g3_it_is_judged_at_the_head(store_url: str) -> None:
    """A seat that somebody else has taken is taken, whatever this process remembers of it."""
    async with opened(store_url) as app:
        assert await app.can(ADA)
        data, metadata = b'{"seat":"front","by":"eve"}', encode(Envelope(command_id="elsewhere"))
        taken = NewEvent(unique_bytes(), "theatre.Reserved", 1, data, ("seat:front",), metadata)
        await app.partition().store.append([Commit(events=(taken,))])
        verdict = await app.can(ADA)
        assert verdict.rejected is not None
        assert verdict.rejected.facts == {"by": "eve"}


async def test_dry_runs_beside_commands_change_nothing_for_them(store_url: str) -> None:
    """In one batch with commands they take no position, and nobody decides on what they would have done."""
    async with opened(store_url) as app:
        tried = [app.can(Reserve(seat=Seat(f"s{number}"), by="eve")) for number in range(20)]
        done = [app.execute(Reserve(seat=Seat(f"s{number}"), by="ada")) for number in range(20)]
        mixed = [call for pair in zip(tried, done, strict=True) for call in pair]
        ended = await asyncio.gather(*mixed)
        assert sorted(each.position for each in ended if isinstance(each, Receipt)) == list(range(1, 21))
        assert all(each for each in ended if isinstance(each, Verdict))
        again = await asyncio.gather(*(app.can(Reserve(seat=Seat(f"s{number}"), by="eve")) for number in range(20)))
        assert not any(again)


async def test_a_handler_with_effects_is_not_tried(store_url: str) -> None:
    """One that takes services may do something outside: it is not run, and who asked is told why."""
    async with opened(store_url) as app:
        with pytest.raises(NotPure, match="Ring cannot be tried: .*ring is async or takes services"):
            await app.can(Ring(seat=FRONT))


async def test_it_fails_where_the_command_would(store_url: str) -> None:
    """Fields of a wrong type, an event that no store keeps, and a stale screen are told as by `execute`."""
    async with opened(store_url) as app:
        with pytest.raises(InvalidMessage):
            await app.can(Reserve(seat=FRONT, by=7))  # type: ignore[arg-type]
        with pytest.raises(Unstorable):
            await app.can(Reserve(seat=Seat("x" * TAG_BYTES_MAX), by="ada"))
        basis = await app.execute(ADA)
        await app.execute(Reserve(seat=Seat("back"), by="ada"))
        assert not await app.can(BOB, based_on=basis)
        with pytest.raises(ContextChanged):
            await app.can(BOB, based_on=str(Token(START, basis.place)))


async def test_middlewares_are_asked_and_told(store_url: str) -> None:
    """Who may not execute a command may not try it; the context says that it is a dry run."""
    seen: list[tuple[bool, str | None]] = []

    async def authorise(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        seen.append((context.dry_run, context.actor))
        if context.actor is None:
            raise PermissionError(f"nobody may {type(command).__name__}")
        return await proceed(command, context)

    async with opened(store_url, command_middleware=[authorise]) as app:
        with pytest.raises(PermissionError):
            await app.can(ADA)
        assert await app.can(ADA, actor="clerk")
        await app.execute(ADA, actor="clerk")
        assert seen == [(True, None), (True, "clerk"), (False, "clerk")]


def test_it_is_there_without_an_event_loop() -> None:
    """`SyncApplication` has it too."""
    with SyncApplication(theatre, services={Bell: Bell()}) as app:
        assert app.can(ADA)
        app.execute(ADA)
        assert not app.can(BOB)
