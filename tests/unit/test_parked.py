"""What failed and waits for somebody, in one place: on every store listed, shown, retried, edited, discarded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypedDict

import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandRejected,
    Event,
    EventContext,
    Identity,
    Key,
    ProcessManager,
    Query,
    Reaction,
    ReadModel,
    Rejected,
    SyncApplication,
    Timeout,
    replace,
)
from diptych.application.parked import ByHand, Discarded, ParkedDetails, ParkedItem
from diptych.errors import ConfigurationError, InvalidMessage, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS, EventQuery, QueryItem
from diptych.failures import TRACE_CHARACTERS_MAX
from diptych.messages.codec import decode
from diptych.process_managers import sender
from diptych.process_managers.processes import Waiting
from diptych.read_side import subscriber
from diptych.testing import ManualClock
from tests.parking import parked

pytestmark = pytest.mark.anyio


class Who(TypedDict):
    actor: str
    reason: str


WHO: Who = {"actor": "ann", "reason": "by phone"}
AN_HOUR = 3_600


class JobId(Identity, tag="job"): ...


class Work(Command):
    job: JobId
    n: int


class Carry(Command):
    job: JobId
    n: int


class Worked(Event):
    job: JobId
    n: int


class Carried(Event):
    job: JobId
    n: int


class Late(Timeout):
    job: JobId


class Tally(ReadModel):
    job: Key[JobId]
    total: int = 0


class TallyOf(Query[Tally | None]):
    job: JobId


class Carrying(ProcessManager[JobId]):
    job: JobId
    heard: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()

    def react(self, event: Worked | Carried | Late | CommandRejected[Carry]) -> Reaction[Carrying]:
        match event:
            case Worked(n=n):
                if n in NOT_REACTED_TO:
                    raise LookupError(f"nobody reacts to {n}")
                commands = [Carry(job=self.job, n=n), Carry(job=self.job, n=n + 1)]
                return Reaction(replace(self, heard=(*self.heard, n)), commands, [(Late(job=self.job), timedelta(1))])
            case Carried(n=n):
                return Reaction(replace(self, carried=(*self.carried, n)))
            case Late():
                return Reaction(self)
            case CommandRejected(command=command):
                return Reaction(replace(self, carried=(*self.carried, -command.n)))


NOT_FOLDED: set[int] = set()
NOT_REACTED_TO: set[int] = set()
NOT_CARRIED: set[int] = set()
REJECTED: set[int] = set()
ONE, TWO = JobId("one"), JobId("two")


@pytest.fixture(autouse=True)
def _all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 2)
    for broken in (NOT_FOLDED, NOT_REACTED_TO, NOT_CARRIED, REJECTED):
        broken.clear()


def works() -> BoundedContext:
    context = BoundedContext("works", events=[Carried])
    context.process_manager(starts=[Worked])(Carrying)

    @context.command_handler
    def work(command: Work) -> Worked:
        return Worked(job=command.job, n=command.n)

    @context.command_handler
    def carry(command: Carry) -> Carried:
        if command.n in NOT_CARRIED:
            code = command.n * 1_000 + 337
            raise ArithmeticError(f"too heavy: {command.n}" if code else "")
        if command.n in REJECTED:
            raise Rejected("too-heavy")
        return Carried(job=command.job, n=command.n)

    @context.projection
    def tally(row: Tally, event: Worked) -> Tally:
        if event.n in NOT_FOLDED:
            code = event.n * 1_000 + 337
            raise LookupError(f"nobody folds {event.n}" if code else "")
        return replace(row, total=row.total + event.n)

    return context


class Works:
    """An application and its clock."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.app = Application(works(), store=url, clock=self.clock)

    async def work(self, job: JobId, *numbers: int) -> None:
        for n in numbers:
            await self.app.execute(Work(job=job, n=n))
        await self.rest()

    async def rest(self) -> None:
        """Every process has reacted to everything, and what fails was given up."""
        await self.app.projected()
        for _ in range(sender.SEND_ATTEMPTS_MAX):
            await self.app.partition().process_worker.at_rest()
            self.clock.advance(AN_HOUR / 60)
        await self.app.partition().process_worker.at_rest()

    async def given_up(self) -> Waiting:
        """The one command that was given up, as its process knows it."""
        (found,) = [each for each in (await self.app.processes.show("Carrying", ONE)).commands if each.dead]
        return found

    async def the(self, kind: str) -> ParkedDetails:
        """The one parked item of a kind."""
        (item,) = (await self.app.parked.list(kind=kind)).items
        return await self.app.parked.show(item.id)

    async def state(self, job: JobId = ONE) -> tuple[list[int], list[int]]:
        """What the instance has heard, and what was carried."""
        found = (await self.app.processes.show("Carrying", job)).status.state
        return found["heard"], found["carried"]

    async def by_hand(self) -> list[str]:
        """What was done by hand, as the history tells it: which event, by whom, why."""
        events = [found async for found in self.app.events(ALL_EVENTS)]
        return [
            f"{each.type.rpartition('.')[2]} {self.app.partition().history.context(each).actor} {reason}"
            for each in events
            if (reason := decode(each.data, dict[str, object]).get("reason"))
        ]


# ── listed and shown ─────────────────────────────────────────────────────────


async def test_g9_everything_that_waits_is_in_one_place(store_url: str) -> None:
    """An event of a projection, a step of a process and a command: where, what, why, how often, since when."""
    NOT_FOLDED.add(5)
    NOT_REACTED_TO.add(6)
    NOT_CARRIED.add(7)
    here = Works(store_url)
    async with here.app:
        before = here.clock.now()
        await here.work(ONE, 5)
        await here.work(TWO, 6)
        await here.work(JobId("three"), 7)
        found = await parked(here.app)
        assert [(each.kind, each.type, each.name, each.key, each.attempts) for each in found] == [
            ("event", "works.Worked", "works.Tally", '["one"]', 2),
            ("step", "works.Worked", "works.Carrying", "two", 1),
            ("command", "works.Carry", "works.Carrying", "three", 2),
        ]
        assert [each.error.partition(" (")[0] for each in found] == [
            "LookupError: nobody folds 5",
            "LookupError: nobody reacts to 6",
            "ArithmeticError: too heavy: 7",
        ]
        events = {int(each.position): each async for each in here.app.events(ALL_EVENTS)}
        assert [decode(events[each.position].data, dict[str, object])["n"] for each in found] == [5, 6, 7]
        assert [each.since for each in found] == [events[each.position].recorded_at for each in found]
        assert found[0].since >= before
        assert len({each.id for each in found}) == 3


async def test_an_item_is_shown_with_its_fields_and_its_stack_trace(store_url: str) -> None:
    """The trace names the line that failed, and has no values of variables."""
    NOT_FOLDED.add(5)
    NOT_REACTED_TO.add(6)
    NOT_CARRIED.add(7)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        await here.work(TWO, 6)
        await here.work(JobId("three"), 7)
        for kind, n, line in [("event", 5, "nobody folds"), ("step", 6, "nobody reacts"), ("command", 7, "too heavy")]:
            shown = await here.the(kind)
            assert shown.data["n"] == n
            assert shown.trace.startswith("Traceback (most recent call last)")
            assert shown.trace.count("Traceback") == 1
            assert f'Error(f"{line}' in shown.trace
            assert f"{n}337" not in shown.trace
            assert not shown.retries


async def test_what_fails_once_alone_is_not_parked() -> None:
    """An event is folded once more before its key waits."""
    context, tries = BoundedContext("works", events=[Worked]), 0

    @context.projection
    def tally(row: Tally, event: Worked) -> Tally:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise MemoryError
        return replace(row, total=row.total + event.n)

    @context.command_handler
    def work(command: Work) -> Worked:
        return Worked(job=command.job, n=command.n)

    here = Works("memory:")
    here.app = Application(context, store="memory:", clock=here.clock)
    async with here.app:
        await here.work(ONE, 5)
        assert await here.app.query(TallyOf(job=ONE), freshness="latest") == Tally(job=ONE, total=5)
        assert await parked(here.app) == []


@pytest.mark.parametrize("text", ["long " * TRACE_CHARACTERS_MAX, "a\0b \ud800"], ids=["long", "unstorable"])
async def test_a_stack_trace_can_be_kept_whatever_it_says(store_url: str, text: str) -> None:
    """It is cut in the middle where it is too long; what a store cannot keep is replaced."""
    context = BoundedContext("works", events=[Worked])

    @context.projection
    def tally(row: Tally, event: Worked) -> Tally:
        raise ValueError(text)

    class Hearing(ProcessManager[JobId]):
        job: JobId

        def react(self, event: Worked) -> Reaction[Hearing]:
            raise ValueError(text)

    context.process_manager(Hearing)

    @context.command_handler
    def work(command: Work) -> Worked:
        return Worked(job=command.job, n=command.n)

    here = Works(store_url)
    here.app = Application(context, store=store_url, clock=here.clock)
    async with here.app:
        await here.work(ONE, 1)
        for kind in ("event", "step"):
            shown = await here.the(kind)
            assert shown.trace.startswith("Traceback")
            assert "raise ValueError(text)" in shown.trace
            assert len(shown.trace) <= TRACE_CHARACTERS_MAX
            assert len(shown.error) <= 500


async def test_pages_hold_everything_once(store_url: str) -> None:
    """Whatever their size, over all kinds, in one order; a cursor that is none is refused."""
    NOT_FOLDED.update({1, 2, 3})
    NOT_REACTED_TO.update({1})
    NOT_CARRIED.update({2, 3})
    here = Works(store_url)
    async with here.app:
        for n in (1, 2, 3):
            await here.work(JobId(f"job {n}"), n)
        expected = await parked(here.app)
        assert [each.kind for each in expected] == ["event"] * 3 + ["step"] + ["command"] * 2
        for size in (1, 2, 3, 6, 100):
            found: list[ParkedItem] = []
            page = await here.app.parked.list(limit=size)
            while page.next:
                assert len(page.items) == size
                found += page.items
                page = await here.app.parked.list(limit=size, after=page.next)
            assert [*found, *page.items] == expected
        kinds = [(await here.app.parked.list(kind=kind)).items for kind in ("event", "step", "command", "timeout")]
        assert [each for items in kinds for each in items] == expected
        for wrong in ({"after": "nonsense"}, {"after": "WzldCg"}, {"limit": 0}, {"limit": 101}):
            with pytest.raises(InvalidMessage):
                await here.app.parked.list(**wrong)
        with pytest.raises(ConfigurationError, match="no kind 'keys'"):
            await here.app.parked.list(kind="keys")


# ── by hand ──────────────────────────────────────────────────────────────────


async def test_g9_a_retry_says_who_and_why_and_counts_on(store_url: str) -> None:
    """What fails again is under the same id, with more attempts, and with whoever tried."""
    NOT_FOLDED.add(5)
    NOT_REACTED_TO.add(5)
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        for kind, attempts in (("event", 4), ("step", 2)):
            item = await here.the(kind)
            dealt = await here.app.parked.retry(item.id, **WHO)
            await here.rest()
            again = await here.the(kind)
            assert (again.id, again.attempts) == (item.id, attempts)
            assert (dealt.still is None) == (kind == "step")
            (retried,) = again.retries
            assert (retried.actor, retried.reason) == ("ann", "by phone")
            assert retried.at is not None
        NOT_REACTED_TO.clear()
        await here.app.parked.retry((await here.the("step")).id, **WHO)
        await here.rest()
        command = await here.the("command")
        await here.app.parked.retry(command.id, **WHO)
        await here.rest()
        again = await here.the("command")
        assert (again.id, again.attempts, [each.actor for each in again.retries]) == (command.id, 2, ["ann"])
        assert await here.by_hand() == ["StepRetried ann by phone"] * 2 + ["OutgoingRetried ann by phone"]


async def test_g9_a_retry_of_what_was_mended_goes_on(store_url: str) -> None:
    """The row, the instance and the command: each goes on from where it failed."""
    NOT_FOLDED.add(5)
    NOT_REACTED_TO.add(6)
    NOT_CARRIED.add(7)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5, 6, 7)
        NOT_FOLDED.clear()
        NOT_REACTED_TO.clear()
        NOT_CARRIED.clear()
        for item in await parked(here.app):
            await here.app.parked.retry(item.id, **WHO)
        await here.rest()
        for item in await parked(here.app):
            await here.app.parked.retry(item.id, **WHO)
        await here.rest()
        assert await parked(here.app) == []
        assert await here.app.query(TallyOf(job=ONE), freshness="latest") == Tally(job=ONE, total=18)
        heard, carried = await here.state()
        assert heard == [5, 6, 7]
        assert sorted(carried) == [5, 6, 6, 7, 7, 8]


async def test_one_dead_command_is_retried_alone(store_url: str) -> None:
    """Others of the same instance stay where they are."""
    NOT_CARRIED.update({5, 7})
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5, 7)
        first, second = await parked(here.app)
        NOT_CARRIED.clear()
        await here.app.parked.retry(second.id, **WHO)
        await here.rest()
        assert await parked(here.app) == [first]


async def test_g10_an_edited_command_has_an_id_of_its_own_and_takes_effect_once(store_url: str) -> None:
    """The new id is made of the event by hand, so that taking that in twice sends nothing twice."""
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        dead = await here.the("command")
        assert dead.data == {"job": "one", "n": 5}
        before = await here.given_up()
        await here.app.parked.retry(dead.id, edited={"n": 50}, **WHO)
        await here.rest()
        await put_back_by_hand(here)
        await here.rest()
        assert await parked(here.app) == []
        assert await here.state() == ([5], [50, 6])  # in the place of the one that it stands for
        outcome = here.app.partition().store.outcome
        assert await outcome(before.id) is None
        (edited,) = [each async for each in here.app.events(of_type("works.Carrying.OutgoingRetried"))]
        fields = decode(edited.data, dict[str, object])
        assert (fields["outgoing"], fields["data"]) == (before.id, '{"job":"one","n":50}')
        carried = [each async for each in here.app.events(of_type("works.Carried"))]
        caused = [here.app.partition().history.context(each) for each in carried]
        assert next(each.causation_id for each in caused) == here.app.partition().history.context(edited).event_id


async def put_back_by_hand(here: Works) -> None:
    """Have the runner take in the events by hand once more: as where a worker lost its commit."""
    runner = here.app.partition().process_worker._runners[0]
    (stored,) = [found for found in await runner.store.processes() if found.name == runner.process_name]
    events = (await here.app.partition().store.read(of_type("works.Carrying.OutgoingRetried"), 0, 10)).events  # type: ignore[arg-type]
    assert events
    folded = await runner._folded(events)
    change = folded.change(stored.epoch, stored.checkpoint, stored.checkpoint, stored.fingerprint, 0)
    assert change.resent
    assert await runner.store.commit(change)
    runner.sender.wake()


def of_type(name: str) -> EventQuery:
    return EventQuery((QueryItem(frozenset({name})),))


async def test_g4_the_rejection_of_before_is_not_the_outcome_of_an_edited_command(store_url: str) -> None:
    """It is decided anew, and its rejection comes back to the process with its own fields."""
    NOT_CARRIED.add(5)
    REJECTED.add(60)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        await here.app.parked.retry((await here.the("command")).id, edited={"n": 60}, **WHO)
        await here.rest()
        assert await here.state() == ([5], [-60, 6])
        assert await parked(here.app) == []


async def test_a_command_edited_to_what_it_was_keeps_its_id(store_url: str) -> None:
    """It is the same command, and so it has the same outcome."""
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        dead = await here.the("command")
        before = await here.given_up()
        NOT_CARRIED.clear()
        await here.app.parked.retry(dead.id, edited={"n": 5}, **WHO)
        await here.rest()
        assert await here.app.partition().store.outcome(before.id) is not None


async def test_a_command_that_took_effect_after_all_is_not_edited(store_url: str) -> None:
    """It would take effect a second time, with other fields."""
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        dead = await here.the("command")
        before = await here.given_up()
        NOT_CARRIED.clear()
        await here.app.execute(Carry(job=ONE, n=5), command_id=before.id)
        with pytest.raises(ConfigurationError, match="has taken effect after all"):
            await here.app.parked.retry(dead.id, edited={"n": 50}, **WHO)
        await here.app.parked.discard(dead.id, **WHO)
        await here.rest()
        assert await parked(here.app) == []


@pytest.mark.parametrize("edited", [{"n": "five"}, {"m": 5}], ids=["wrong type", "unknown"])
async def test_wrong_fields_are_refused_before_anything_is_done(edited: dict[str, object]) -> None:
    """The error names the field; nothing is in the history."""
    NOT_CARRIED.add(5)
    here = Works("memory:")
    async with here.app:
        await here.work(ONE, 5)
        with pytest.raises(InvalidMessage, match="Carry is invalid"):
            await here.app.parked.retry((await here.the("command")).id, edited=edited, **WHO)
        assert await here.by_hand() == []


async def test_of_several_who_help_at_once_the_first_is_followed(store_url: str) -> None:
    """A command is sent once, whether two retry, edit or discard it: whatever comes later changes nothing."""
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        item = await here.the("command")
        async with held_up(here):
            await here.app.parked.retry(item.id, edited={"n": 50}, **WHO)
            await here.app.parked.retry(item.id, edited={"n": 51}, **WHO)
            await here.app.parked.discard(item.id, **WHO)
            await here.app.parked.retry(item.id, **WHO)
        await here.rest()
        assert await here.state() == ([5], [50, 6])


class held_up:  # noqa: N801 — reads as what it does
    """No event is taken in by processes while it lasts, and then all that came at once."""

    def __init__(self, here: Works) -> None:
        self._runner = here.app.partition().process_worker._runners[0]

    async def __aenter__(self) -> None:
        await self._runner.close()

    async def __aexit__(self, *_: object) -> None:
        self._runner.start()


async def test_g9_a_discarded_step_is_left_out_and_the_rest_taken(store_url: str) -> None:
    """The instance goes on behind it; a retry that comes too late changes nothing."""
    NOT_REACTED_TO.add(6)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5, 6, 7)
        item = await here.the("step")
        async with held_up(here):
            await here.app.parked.discard(item.id, **WHO)
            await here.app.parked.retry(item.id, **WHO)
        NOT_REACTED_TO.clear()
        await here.rest()
        assert (await here.state())[0] == [5, 7]
        assert await parked(here.app) == []
        (left_out,) = (await here.app.parked.discarded()).items
        assert (left_out.kind, left_out.name, left_out.key) == ("step", "works.Carrying", "one")
        assert (left_out.position, left_out.by.actor, left_out.by.reason) == (item.position, "ann", "by phone")


async def test_of_several_who_skip_at_once_only_one_event_is_left_out(store_url: str) -> None:
    """The second decision was about the event that is left out already, and not about the one that blocks now."""
    NOT_REACTED_TO.update({5, 6})
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5, 6, 7)
        item = await here.the("step")
        async with held_up(here):
            await here.app.parked.discard(item.id, **WHO)
            await here.app.parked.discard(item.id, **WHO)
        await here.rest()
        again = await here.the("step")
        assert (again.data["n"], again.attempts) == (6, 1)


async def test_the_event_that_would_begin_an_instance_can_be_skipped(store_url: str) -> None:
    """It then goes on from the state that it has at first."""
    NOT_REACTED_TO.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        await here.app.parked.discard((await here.the("step")).id, **WHO)
        await here.work(ONE, 8)
        assert (await here.state())[0] == [8]


async def test_a_discarded_command_does_not_go_out_and_is_kept_in_the_history(store_url: str) -> None:
    """The later ones of its reaction go; what was dropped can be read."""
    NOT_CARRIED.add(5)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5)
        await here.app.parked.discard((await here.the("command")).id, **WHO)
        NOT_CARRIED.clear()
        await here.rest()
        assert await here.state() == ([5], [6])
        (dropped,) = [each async for each in here.app.events(of_type("works.Carrying.OutgoingDiscarded"))]
        fields = decode(dropped.data, dict[str, object])
        assert (fields["kind"], fields["name"], fields["data"]) == ("command", "works.Carry", '{"job":"one","n":5}')
        (told,) = (await here.app.parked.discarded()).items
        assert (told.kind, told.type, told.by.actor) == ("command", "works.Carry", "ann")


async def test_g6_a_discard_says_who_and_why_and_rebuilds_find_it(store_url: str) -> None:
    """It is kept beside the rows of any generation: the rebuilt rows leave the event out, and the list tells of it."""
    NOT_FOLDED.add(6)
    here = Works(store_url)
    async with here.app:
        await here.work(ONE, 5, 6, 7)
        at = here.clock.now()
        item = await here.the("event")
        await here.app.parked.discard(item.id, **WHO)
        NOT_FOLDED.clear()
        await here.app.rebuilds.rebuild("works.Tally")
        assert await here.app.query(TallyOf(job=ONE), freshness="latest") == Tally(job=ONE, total=12)
        (told,) = (await here.app.parked.discarded()).items
        assert (told.kind, told.type, told.name, told.key) == ("event", "works.Worked", "works.Tally", '["one"]')
        assert (told.position, told.by) == (item.position, ByHand(actor="ann", reason="by phone", at=at))


async def test_discards_come_in_pages_too(store_url: str) -> None:
    """Over all kinds, each once."""
    NOT_FOLDED.update({1, 2, 3})
    NOT_REACTED_TO.update({1, 2})
    NOT_CARRIED.add(3)
    here = Works(store_url)
    async with here.app:
        for n in (1, 2, 3):
            await here.work(JobId(f"job {n}"), n)
        for item in await parked(here.app):
            await here.app.parked.discard(item.id, **WHO)
        await here.rest()
        everything = (await here.app.parked.discarded()).items
        assert [each.kind for each in everything] == ["event"] * 3 + ["step"] * 2 + ["command"]
        found: list[Discarded] = []
        after = ""
        for _ in everything:
            page = await here.app.parked.discarded(limit=1, after=after)
            found, after = [*found, *page.items], page.next
        assert (found, after) == (everything, "")


@pytest.mark.parametrize("kind", ["event", "step", "timeout"])
async def test_events_are_facts_and_never_edited(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do instead."""
    NOT_FOLDED.add(5)
    NOT_REACTED_TO.add(6)
    here = Works("memory:")
    async with here.app:
        runner = here.app.partition().process_worker._runners[0]

        def refuse(_: object) -> None:
            raise TypeError("this cannot be appended")

        monkeypatch.setattr(runner.sender, "_fired", refuse)
        await here.work(ONE, 5)
        await here.work(TWO, 6)
        here.clock.advance(48 * AN_HOUR)
        runner.sender.wake()
        await here.rest()
        item = await here.the(kind)
        with pytest.raises(ConfigurationError, match="never edited"):
            await here.app.parked.retry(item.id, edited={"n": 7}, **WHO)
        assert await here.by_hand() == []
        assert not item.retries
        await here.app.parked.discard(item.id, **WHO)
        await here.rest()
        assert (await here.app.parked.list(kind=kind)).items == []


async def test_nothing_is_done_without_who_and_why() -> None:
    """Neither a retry nor a discard."""
    NOT_FOLDED.add(5)
    here = Works("memory:")
    async with here.app:
        await here.work(ONE, 5)
        item = await here.the("event")
        for actor, reason in (("ann", ""), ("ann", "two\nlines"), ("", "why"), (None, "why")):
            with pytest.raises(InvalidMessage):
                await here.app.parked.retry(item.id, actor=actor, reason=reason)  # type: ignore[arg-type]
            with pytest.raises(InvalidMessage):
                await here.app.parked.discard(item.id, actor=actor, reason=reason)  # type: ignore[arg-type]
        assert await here.the("event") == item


async def test_what_is_not_parked_is_told() -> None:
    """Whatever the id looks like."""
    here = Works("memory:")
    async with here.app:
        await here.work(ONE, 5)
        for wrong in ("", "event", "event-1-00000000", "command-99-00000000", "keys-1-00000000", "step-9-x"):
            with pytest.raises(ConfigurationError):
                await here.app.parked.show(wrong)


# ── subscribers ──────────────────────────────────────────────────────────────


class Heard:
    """What a subscriber was told, and what it fails with."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.fails: dict[int, Exception] = {}


def telling(heard: Heard) -> BoundedContext:
    context = works()

    @context.subscriber
    async def tell(events: Sequence[tuple[Worked, EventContext]]) -> None:
        for event, _ in events:
            if event.n in heard.fails:
                raise heard.fails[event.n]
            heard.numbers.append(event.n)

    return context


async def until(app: Application, done: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that the read store is written for."""
    seen = 0
    while not await done():
        seen = await app.partition().read_store.wait_for_change(seen, 5)


async def are_deliveries_listed(app: Application, expected: bool) -> bool:
    return bool((await app.parked.list(kind="delivery")).items) is expected


async def delivery_that_fails(app: Application) -> ParkedItem:
    """The one of three that a subscriber does not take, once it is listed."""
    for n in (5, 6, 7):
        await app.execute(Work(job=ONE, n=n))
    await until(app, lambda: are_deliveries_listed(app, True))
    (item,) = (await app.parked.list(kind="delivery")).items
    return item


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(subscriber, "BACKOFF_MAX_S", 0.01)


@pytest.mark.usefixtures("_at_once")
async def test_an_event_that_a_subscriber_keeps_failing_to_take_is_listed(store_url: str) -> None:
    """The very event, with those before it delivered; it goes when the subscriber takes it."""
    heard = Heard()
    heard.fails[6] = ConnectionError("nobody answers")
    async with Application(telling(heard), store=store_url) as app:
        item = await delivery_that_fails(app)
        shown = await app.parked.show(item.id)
        assert (shown.type, shown.name, shown.data["n"]) == ("works.Worked", "works.tell", 6)
        assert shown.error.startswith("ConnectionError: nobody answers")
        assert "raise heard.fails[event.n]" in shown.trace
        assert shown.attempts >= subscriber.DELIVERY_ATTEMPTS_MAX
        assert (heard.numbers[0], 7 in heard.numbers) == (5, False)
        (status,) = (await app.status()).subscribers
        assert (status.blocked, status.stopped.partition(" (")[0]) == (1, "ConnectionError: nobody answers")
        if store_url != "memory:":
            async with Application(telling(heard), store=store_url, projecting=False) as elsewhere:
                (seen,) = (await elsewhere.status()).subscribers
                assert seen.stopped == status.stopped
        with pytest.raises(ConfigurationError, match="again and again by itself"):
            await app.parked.retry(item.id, **WHO)
        heard.fails.clear()

        await until(app, lambda: are_deliveries_listed(app, False))
        await until(app, lambda: delivered(app, 3))
        assert heard.numbers[-2:] == [6, 7]


async def delivered(app: Application, position: int) -> bool:
    (status,) = (await app.status()).subscribers
    return status.checkpoint >= position


@pytest.mark.usefixtures("_at_once")
async def test_a_subscriber_goes_on_behind_an_event_that_is_discarded(store_url: str) -> None:
    """By whoever: the process that delivers notices."""
    heard = Heard()
    heard.fails[6] = ValueError("no such address")
    async with Application(telling(heard), store=store_url) as app:
        item = await delivery_that_fails(app)
        await app.parked.discard(item.id, **WHO)
        await until(app, lambda: delivered(app, 3))
        assert heard.numbers[-1] == 7
        assert 6 not in heard.numbers
        assert await are_deliveries_listed(app, False)
        (told,) = (await app.parked.discarded()).items
        assert (told.kind, told.name, told.position, told.by.actor) == ("delivery", "works.tell", item.position, "ann")


@pytest.mark.usefixtures("_at_once")
async def test_what_is_only_not_possible_now_is_not_listed() -> None:
    """However often it fails: nobody has to look at it."""
    heard, tries = Heard(), 0

    class Away(StoreUnavailable):
        def __init__(self) -> None:
            nonlocal tries
            tries += 1

    context = works()
    enough = asyncio.Event()

    @context.subscriber
    async def tell(events: Sequence[tuple[Worked, EventContext]]) -> None:
        if tries <= 2 * subscriber.DELIVERY_ATTEMPTS_MAX:
            raise Away
        heard.numbers += [event.n for event, _ in events]
        enough.set()

    async with Application(context, store="memory:") as app:
        await app.execute(Work(job=ONE, n=5))
        await enough.wait()
        assert heard.numbers == [5]
        assert (await app.parked.list(kind="delivery")).items == []


# ── elsewhere ────────────────────────────────────────────────────────────────


def test_without_an_event_loop_it_is_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The calls block."""
    caplog.set_level(logging.CRITICAL)
    NOT_FOLDED.add(5)
    with SyncApplication(works(), store=f"sqlite:{tmp_path}/works.db") as app:
        app.execute(Work(job=ONE, n=5))
        app.projected()
        (item,) = app.parked().list(kind="event").items
        assert "nobody folds" in app.parked().show(item.id).trace
        still = app.parked().retry(item.id, **WHO).still
        assert still is not None
        assert still.id == item.id
        assert app.parked().discard(item.id, **WHO).still is None
        assert [each.by.reason for each in app.parked().discarded().items] == ["by phone"]
