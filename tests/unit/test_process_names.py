"""Processes and names: what was renamed reaches its instance, and an instance has any identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandRejected,
    Event,
    Identity,
    ProcessManager,
    Reaction,
    Rejected,
    Timeout,
    replace,
)
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import Appended, Commit
from diptych.event_store.recorded_event import NewEvent
from diptych.messages.unique_id import unique_bytes
from diptych.testing import ManualClock
from tests.transferring import OVERDUE, Request, TransferId, banking

pytestmark = pytest.mark.anyio
kept = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)


async def at_rest(app: Application) -> None:
    """Every process has reacted to everything, and sent what is due."""
    await app.partition().process_worker.at_rest()


async def happened(app: Application) -> list[str]:
    """The names of all events, in order."""
    return [recorded.type.partition(".")[2] async for recorded in app.events(ALL_EVENTS)]


async def append(app: Application, type: str, data: bytes, *tags: str) -> None:
    """Store an event as it is, by code that is not ours."""
    commit = Commit(events=(NewEvent(unique_bytes(), type, 1, data, tags),))
    (result,) = await app.partition().store.append([commit])
    assert isinstance(result, Appended)


# ── names that changed ───────────────────────────────────────────────────────


class OldParcelId(Identity, tag="package"): ...


class ParcelId(Identity, formerly=["package"]): ...


def parcels(*, renamed: bool) -> BoundedContext:
    """Parcels that are looked for after a while; by code from before and after everything was renamed but the process.

    A parcel named "lost" cannot be looked for.
    """
    return _parcels_now() if renamed else _parcels_before()


class Send(Command):
    parcel: OldParcelId


class Search(Command):
    parcel: OldParcelId


class SentOff(Event):
    parcel: OldParcelId


class Searched(Event):
    parcel: OldParcelId


class NotArrived(Timeout):
    parcel: OldParcelId


def _parcels_before() -> BoundedContext:
    class Tracking(ProcessManager[OldParcelId]):
        parcel: OldParcelId
        heard: tuple[str, ...] = ()

        def react(self, event: SentOff | NotArrived | CommandRejected[Search]) -> Reaction[Tracking]:
            heard = replace(self, heard=(*self.heard, type(event).__name__))
            if isinstance(event, SentOff):
                search = [Search(parcel=self.parcel)] if self.parcel == "lost" else []
                return Reaction(heard, search, [(NotArrived(parcel=self.parcel), OVERDUE)])
            return Reaction(heard)

    context = BoundedContext("post")
    context.process_manager(Tracking)

    @context.command_handler
    def send(command: Send) -> SentOff:
        return SentOff(parcel=command.parcel)

    @context.command_handler
    def search(command: Search) -> Searched:
        raise Rejected("nobody-knows")

    return context


class Dispatch(Command):
    parcel: ParcelId


class Dispatched(Event, formerly=["SentOff"]):
    parcel: ParcelId


class Traced(Event, formerly=["Searched"]):
    parcel: ParcelId


class Overdue(Timeout, formerly=["NotArrived"]):
    parcel: ParcelId


class SearchRejected(Event, stored_as="post.Tracking.SearchRejected", version=2):
    """What is left of a command that there is no more."""

    instance: ParcelId
    code: str


def _parcels_now() -> BoundedContext:
    class Tracking(ProcessManager[ParcelId]):
        parcel: ParcelId
        heard: tuple[str, ...] = ()

        def react(self, event: Dispatched | Overdue | SearchRejected) -> Reaction[Tracking]:
            return Reaction(replace(self, heard=(*self.heard, type(event).__name__)))

    context = BoundedContext("post", events=[Traced])
    context.process_manager(Tracking)

    @context.upcaster(SearchRejected, from_version=1)
    def without_its_command(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"instance": stored["instance"], "code": stored["code"]}

    @context.command_handler
    def dispatch(command: Dispatch) -> Dispatched:
        return Dispatched(parcel=command.parcel)

    return context


@kept
async def test_a_process_goes_on_when_events_timeouts_and_its_identity_are_renamed(store_url: str) -> None:
    """What waits under the names of before fires and reaches the instance; what comes under the new ones does, too."""
    clock, parcel = ManualClock(), OldParcelId("a:b")
    async with Application(parcels(renamed=False), store=store_url, clock=clock) as app:
        await app.execute(Send(parcel=parcel))
        await at_rest(app)
    async with Application(parcels(renamed=True), store=store_url, clock=clock) as app:
        await append(app, "post.SentOff", b'{"parcel":"a:b"}', "package:a:b")
        await append(app, "post.Dispatched", b'{"parcel":"a:b"}', "package:a:b")
        await app.execute(Dispatch(parcel=ParcelId("a:b")))
        clock.advance(OVERDUE)
        await at_rest(app)
        (found,) = await app.processes.list()
        assert (found.id, found.blocked) == ("a:b", 0)
        assert found.state["heard"] == ["SentOff", *["Dispatched"] * 3, "Overdue"]
        shown = await app.processes.show("Tracking", "a:b")
        assert [event.type for event in shown.events] == [
            *["post.SentOff"] * 2,
            *["post.Dispatched"] * 2,
            "post.NotArrived",
        ]
        await app.processes.close("Tracking", "a:b", reason="found")
        await at_rest(app)
        assert await app.processes.list() == []


@kept
async def test_a_blocked_instance_takes_what_it_missed_under_former_names(store_url: str) -> None:
    """Its events are looked for by every name and tag that they may have."""
    async with Application(parcels(renamed=True), store=store_url, clock=ManualClock()) as app:
        process, failing = app.partition().process_worker._runners[0].process, [True]
        react = process._react

        def fail(state: Any, event: Any) -> Any:
            if failing:
                raise ZeroDivisionError("not yet mended")
            return react(state, event)

        process._react = fail
        for type, tag in (("SentOff", "package"), ("Dispatched", "parcel"), ("SentOff", "parcel")):
            await append(app, f"post.{type}", b'{"parcel":"p"}', f"{tag}:p")
        await at_rest(app)
        assert [found.blocked for found in await app.processes.list()] == [1]
        failing.clear()
        await app.processes.retry("Tracking", "p")
        await at_rest(app)
        assert [found.state["heard"] for found in await app.processes.list()] == [["Dispatched"] * 3]


@kept
async def test_the_rejection_of_a_command_that_is_gone_is_read_as_an_event_of_its_name(store_url: str) -> None:
    """Where it was stored before, and the process has not taken it yet; else nothing could read this history."""
    clock = ManualClock()
    async with Application(parcels(renamed=False), store=store_url, clock=clock) as app:
        await app.execute(Send(parcel=OldParcelId("lost")))
        await at_rest(app)
        assert await happened(app) == ["SentOff", "Tracking.SearchRejected"]
    async with Application(parcels(renamed=True), store=store_url, clock=clock) as app:
        data = b'{"instance":"lost","command":{"parcel":"lost"},"code":"nobody-knows","facts":{}}'
        await append(app, "post.Tracking.SearchRejected", data, "package:lost")
        await at_rest(app)
        (found,) = await app.processes.list()
        assert found.state["heard"] == ["SentOff", "SearchRejected", "SearchRejected"]


# ── identities ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "odd", ["a:b", "transfer:t1", ":", " ", "-", "%_*", "ü'\"\\{},[bold]", "NULL", "\n\t", "x" * 490, "😀", ""]
)
async def test_an_instance_has_any_identity_that_events_may_have(store_url: str, odd: str) -> None:
    """It is seen through, listed and helped on like every other."""
    clock, transfer = ManualClock(), TransferId(odd)
    async with Application(banking(), store=store_url, clock=clock) as app:
        await app.execute(Request(transfer=transfer))
        await app.execute(Request(transfer=TransferId("other")))
        await at_rest(app)
        assert odd in [found.id for found in await app.processes.list()]
        await app.processes.retry("Transferring", odd)
        await at_rest(app)
        clock.advance(OVERDUE)
        await at_rest(app)
        assert (await happened(app)).count("Refunded") == 2
        shown = await app.processes.show("Transferring", odd)
        assert (shown.status.id, shown.status.ended, len(shown.events)) == (odd, True, 4)
