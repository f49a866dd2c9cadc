"""Commands that are executed later: accepted, due, cancelled, expired, given up, each to an effect once."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from diptych import Application, Command, CommandContext, Receipt, Rejected, SyncApplication
from diptych.clock import SystemClock
from diptych.errors import CommandIdReused, ConfigurationError, Forbidden, InvalidMessage, Overloaded, StoreUnavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.process_managers import scheduled_commands, scheduler, sender
from diptych.process_managers.process_store import PRIORITY_MAX, PRIORITY_MIN
from diptych.process_managers.process_worker import ScheduledStatus
from diptych.process_managers.scheduled_commands import CommandStatus
from diptych.security import Actor
from diptych.testing import InMemoryApplication, ManualClock
from diptych.write_side.command_bus import NextCommand
from tests.reminders import Gate, Note, Noted, NoteId, Remind, Reminded, Slow, Sneak, reminders

pytestmark = pytest.mark.anyio

ONE, TWO = NoteId("one"), NoteId("two")
HOUR = timedelta(hours=1)


def in_memory(gate: Gate | None = None, **settings: Any) -> InMemoryApplication:
    return InMemoryApplication(reminders(), services={Gate: gate or Gate()}, **settings)


def application(store: str, gate: Gate | None = None, **settings: Any) -> Application:
    return Application(reminders(), store=store, services={Gate: gate or Gate()}, **settings)


async def at_rest(app: Application) -> None:
    """All that is due is executed."""
    await app.partition().process_worker.at_rest()


async def happened(app: Application) -> list[str]:
    """The notes of all events, in order."""
    return [recorded.tags[0].partition(":")[2] async for recorded in app.events(ALL_EVENTS)]


async def status(app: Application, command_id: str) -> CommandStatus:
    found = await app.scheduled.status(command_id)
    assert found is not None
    return found


# ── when ─────────────────────────────────────────────────────────────────────


async def test_a_command_is_executed_when_it_is_due() -> None:
    """Not a moment before, and once; at a time, after a time, or at once where none is given."""
    async with in_memory() as app:
        after = await app.schedule(Remind(note=ONE), after=HOUR)
        at = await app.schedule(Remind(note=TWO), at=app.clock.now() + 2 * HOUR)
        now = await app.schedule(Remind(note=NoteId("now")))
        past = await app.schedule(Remind(note=NoteId("past")), at=app.clock.now() - HOUR)
        assert (after.due_at, at.due_at) == (app.clock.now() + HOUR, app.clock.now() + 2 * HOUR)
        assert await happened(app) == ["now", "past"]
        await app.advance(HOUR - timedelta(microseconds=1))
        assert len(await happened(app)) == 2
        await app.advance(timedelta(microseconds=1))
        assert await happened(app) == ["now", "past", "one"]
        await app.advance(3 * HOUR)
        assert await happened(app) == ["now", "past", "one", "two"]
        for accepted in (after, at, now, past):
            assert (await status(app, accepted.command_id)).state == "done"
        assert await app.scheduled.list() == []


async def test_a_time_in_another_zone_is_the_same_moment() -> None:
    """What is told of it is in UTC."""
    async with in_memory() as app:
        at = datetime.fromisoformat("2030-01-01T02:00:00+02:00")
        accepted = await app.schedule(Remind(note=ONE), at=at, expires_at=at + HOUR)
        assert (accepted.due_at, accepted.expires_at) == (datetime(2030, 1, 1, tzinfo=UTC), at + HOUR)
        assert accepted.due_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ({"at": datetime(2030, 1, 1)}, "no time zone"),  # noqa: DTZ001 — that it is naive is the point
        ({"expires_at": datetime(2030, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "after": HOUR}, "give one of them"),
        ({"expires_at": datetime(2030, 1, 1, tzinfo=UTC), "expires_after": HOUR}, "give one of them"),
        ({"after": timedelta.max}, "no time that a clock shows"),
        ({"expires_after": timedelta.max}, "no time that a clock shows"),
        ({"after": HOUR, "expires_at": datetime(2024, 1, 1, 0, 30, tzinfo=UTC)}, "expire before it is due"),
        ({"after": -HOUR, "expires_after": timedelta(0)}, "expire before it is due"),
        ({"priority": PRIORITY_MAX + 1}, "it is -9 to 9"),
        ({"priority": PRIORITY_MIN - 1}, "it is -9 to 9"),
        ({"command_id": ""}, "1 to 128 printable characters"),
    ],
)
async def test_what_makes_no_sense_is_refused(when: dict[str, Any], says: str) -> None:
    """Before anything is kept."""
    async with in_memory() as app:
        with pytest.raises(InvalidMessage, match=says):
            await app.schedule(Remind(note=ONE), **when)
        assert await app.scheduled.list() == []


async def test_a_command_is_checked_before_it_is_accepted() -> None:
    """Its type, its fields and its size, as `execute` would."""
    async with in_memory() as app:
        with pytest.raises(InvalidMessage, match="text"):
            await app.schedule(Remind(note=ONE, text=3))  # type: ignore[arg-type]
        with pytest.raises(InvalidMessage, match="at most 1048576 bytes"):
            await app.schedule(Remind(note=ONE, text="x" * (1 << 20)))
        assert await app.scheduled.list() == []


async def test_of_what_is_due_the_higher_priority_goes_first(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what was due first; whichever process has accepted it."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    monkeypatch.setattr(sender, "SENDING_MAX", 1)
    async with application(store_url, projecting=False) as app:
        now = SystemClock().now()
        for n, priority in enumerate((0, -9, 3, 9, 0)):
            await app.schedule(Remind(note=NoteId(f"{priority} {n}")), at=now - n * HOUR, priority=priority)
        assert [found.priority for found in await app.scheduled.list()] == [0, -9, 3, 9, 0]
        assert await happened(app) == []
    async with application(store_url) as app:
        await at_rest(app)
        assert await happened(app) == ["9 3", "3 2", "0 4", "0 0", "-9 1"]


# ── once ─────────────────────────────────────────────────────────────────────


async def test_g4_one_id_is_one_command(store_url: str) -> None:
    """Accepted again it is the same one, waiting or executed; another one under its id is refused."""
    async with application(store_url) as app:
        first = await app.schedule(Remind(note=ONE), after=HOUR, command_id="a", priority=2)
        assert await app.schedule(Remind(note=ONE), command_id="a") == first
        with pytest.raises(CommandIdReused):
            await app.schedule(Remind(note=TWO), command_id="a")
        assert len(await app.scheduled.list()) == 1
        receipt = await app.execute(Remind(note=TWO), command_id="b")
        await app.schedule(Remind(note=TWO), command_id="b")
        with pytest.raises(CommandIdReused):
            await app.schedule(Remind(note=ONE), command_id="b")
        assert (await status(app, "b")).receipt == receipt
        assert len(await app.scheduled.list()) == 1
        assert await happened(app) == ["two"]


async def test_g4_what_was_executed_by_hand_meanwhile_is_not_executed_again() -> None:
    """The outcome under its id is the one that there is; of another command, it waits for somebody."""
    async with in_memory() as app:
        await app.schedule(Remind(note=ONE), after=HOUR, command_id="a")
        await app.execute(Remind(note=ONE), command_id="a")
        await app.schedule(Remind(note=ONE), after=HOUR, command_id="b")
        await app.execute(Remind(note=TWO), command_id="b")
        assert (await status(app, "a")).state == "done"
        assert (await status(app, "b")).state == "accepted"
        with pytest.raises(AssertionError, match="CommandIdReused"):
            await app.advance(HOUR)
        assert (await status(app, "b")).state == "failed"
        assert await happened(app) == ["one", "two"]


async def test_many_are_accepted_together(store_url: str) -> None:
    """As many as come at one moment; each is executed once, and has the outcome of its own."""
    async with application(store_url) as app:
        notes = [NoteId(f"{n:03}") for n in range(50)]
        accepted = await asyncio.gather(*(app.schedule(Remind(note=note)) for note in notes))
        assert len({each.command_id for each in accepted}) == len(notes)
        await at_rest(app)
        assert sorted(await happened(app)) == sorted(notes)
        found = [await status(app, each.command_id) for each in accepted]
        assert [each.receipt and each.receipt.events for each in found] == [(Reminded(note=note),) for note in notes]


# ── what becomes of it ───────────────────────────────────────────────────────


async def test_the_status_tells_how_far_it_is(store_url: str) -> None:
    """Accepted, running, done with the receipt; of what nobody knows, nothing."""
    gate = Gate()
    async with application(store_url, gate) as app:
        accepted = await app.schedule(Slow(note=ONE), after=HOUR, actor="ada", command_id="later")
        later = await status(app, "later")
        assert (later.state, later.command, later.data) == ("accepted", "reminders.Slow", {"note": "one"})
        assert (later.due_at, later.actor, later.attempts) == (accepted.due_at, "ada", 0)
        await app.schedule(Slow(note=TWO), command_id="now")
        await gate.arrived.wait()
        assert (await status(app, "now")).state == "running"
        gate.open.set()
        await at_rest(app)
        done = await status(app, "now")
        assert (done.state, done.receipt) == ("done", await app.execute(Slow(note=TWO), command_id="now"))
        for unknown in ("never", "", "\0", "x" * 129):
            assert await app.scheduled.status(unknown) is None
        assert (await app.status()).scheduled.waiting == 1


async def test_a_rejection_is_kept_and_told(store_url: str) -> None:
    """That of the domain, and that of a middleware, which nobody else would keep."""

    async def doorman(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if command == Remind(note=TWO) and not context.dry_run:
            raise Rejected("closed", hour=22)
        return await proceed(command, context)

    async with application(store_url, command_middleware=[doorman]) as app:
        for note, text in ((ONE, "no"), (TWO, "")):
            await app.schedule(Remind(note=note, text=text), command_id=note)
        await at_rest(app)
        one, two = await status(app, ONE), await status(app, TWO)
        assert (one.state, one.code, one.facts) == ("rejected", "not-now", {"note": "one"})
        assert (two.state, two.code, two.facts) == ("rejected", "closed", {"hour": 22})
        assert await app.scheduled.list() == []
        with pytest.raises(Rejected, match="not-now"):
            await app.execute(Remind(note=ONE, text="no"), command_id=ONE)


async def test_what_was_executed_before_it_is_removed_is_told_as_done(store_url: str) -> None:
    """The outcome counts, and not that it is still there to be executed."""
    async with application(store_url, projecting=False) as app:
        await app.schedule(Remind(note=ONE), command_id="a")
        await app.execute(Remind(note=ONE), command_id="a")
        found = await status(app, "a")
        assert (found.state, found.command) == ("done", "reminders.Remind")
        assert len(await app.scheduled.list()) == 1


# ── cancelled, expired ───────────────────────────────────────────────────────


async def test_what_waits_is_cancelled(store_url: str) -> None:
    """For good: under that id it is rejected, whoever executes it. Who did it and why is kept."""
    async with application(store_url) as app:
        await app.schedule(Remind(note=ONE), after=HOUR, command_id="a")
        for _ in range(2):
            found = await app.scheduled.cancel("a", reason="by phone", actor="bob")
            assert found is not None
            assert (found.state, found.code, found.facts) == (
                "rejected",
                "cancelled",
                {"by": "bob", "reason": "by phone"},
            )
        assert await app.scheduled.list() == []
        with pytest.raises(Rejected, match="cancelled"):
            await app.execute(Remind(note=ONE), command_id="a")
        await app.schedule(Remind(note=ONE), command_id="a")
        await at_rest(app)
        assert await happened(app) == []
        assert await app.scheduled.cancel("never") is None


async def test_what_took_effect_is_not_cancelled(store_url: str) -> None:
    """The answer says what became of it, also where it is only still to be removed."""
    async with application(store_url, projecting=False) as app:
        await app.schedule(Remind(note=ONE), command_id="a")
        receipt = await app.execute(Remind(note=ONE), command_id="a")
        for _ in range(2):
            found = await app.scheduled.cancel("a")
            assert found is not None
            assert (found.state, found.receipt) == ("done", receipt)
        assert await app.scheduled.list() == []


async def test_what_is_being_executed_may_be_cancelled(store_url: str) -> None:
    """It was first: what the handler decides then is not done, and nothing waits any more."""
    gate = Gate()
    async with application(store_url, gate) as app:
        await app.schedule(Slow(note=ONE), command_id="a")
        await gate.arrived.wait()
        found = await app.scheduled.cancel("a")
        assert found is not None
        assert (found.state, found.code) == ("rejected", "cancelled")
        gate.open.set()
        await at_rest(app)
        assert (await status(app, "a")).code == "cancelled"
        assert (await happened(app), await app.scheduled.list()) == ([], [])


async def test_what_has_expired_is_not_executed() -> None:
    """It is rejected, with the time; at the last moment it is executed."""
    gate = Gate()
    async with in_memory(gate) as app:
        moment = timedelta(microseconds=1)
        late = await app.schedule(Remind(note=ONE), after=HOUR, expires_after=HOUR)
        await app.schedule(Remind(note=TWO), after=HOUR, expires_at=app.clock.now() + 2 * HOUR + moment)
        assert late.expires_at == app.clock.now() + 2 * HOUR
        await app.advance(2 * HOUR)
        found = await status(app, late.command_id)
        assert (found.state, found.code) == ("rejected", "expired")
        assert found.facts == {"expires_at": "2024-01-01T02:00:00Z"}
        assert await happened(app) == ["two"]


async def test_what_took_effect_does_not_expire() -> None:
    """A worker that found it due, and died before it noted that it was done, changes nothing by its successor."""
    async with in_memory(reacting=True) as app:
        await app.schedule(Remind(note=ONE), after=HOUR, expires_after=HOUR, command_id="a")
        await app.execute(Remind(note=ONE), command_id="a")
        await app.advance(3 * HOUR)
        assert (await status(app, "a")).state == "done"
        assert (await happened(app), await app.scheduled.list()) == (["one"], [])


# ── what fails ───────────────────────────────────────────────────────────────


async def test_what_fails_too_often_waits_for_somebody(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed, health tells of it, and tried again it is done; what is well is left as it is."""
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(sender, "SEND_BACKOFF_FIRST_S", 0.0)
    gate = Gate()
    gate.open.set()
    async with application(store_url, gate) as app:
        await app.schedule(Remind(note=ONE), after=HOUR, command_id="b")
        await app.schedule(Slow(note=NoteId("fail")), command_id="a")
        await at_rest(app)
        (found,) = await app.scheduled.list(failed=True)
        assert found == await status(app, "a")
        assert (found.state, found.attempts, gate.tried["fail"]) == ("failed", 2, 2)
        assert "RuntimeError: out of order" in found.failure
        health = await app.health()
        assert (health.ready, health.impaired) == (True, ("scheduled commands were given up, the first is 'a'",))
        assert (await app.status()).scheduled.failed == 1
        gate.mended = True
        await app.parked.retry("scheduled-a", actor="ann", reason="the printer has paper")
        for command_id in ("b", "never"):
            with pytest.raises(ConfigurationError, match="nothing is parked as"):
                await app.parked.retry(f"scheduled-{command_id}", actor="ann", reason="why not")
        await at_rest(app)
        assert (await status(app, "a")).state == "done"
        assert (await status(app, "b")).due_at is not None
        assert (await happened(app), (await app.health()).impaired) == (["fail"], ())


async def test_what_is_not_available_is_tried_again_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it takes: that is not its fault."""
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 1)
    monkeypatch.setattr(sender, "SEND_BACKOFF_FIRST_S", 0.0)
    left = [1, 2, 3]

    async def sometimes(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if left and not context.dry_run:
            left.pop()
            raise StoreUnavailable("the store is being moved")
        return await proceed(command, context)

    async with application("memory:", command_middleware=[sometimes]) as app:
        await app.schedule(Remind(note=ONE))
        await at_rest(app)
        assert (left, await happened(app)) == ([], ["one"])


async def test_a_failure_is_met_in_the_test_that_scheduled_it() -> None:
    """As with every fold that fails."""
    gate = Gate()
    gate.open.set()
    async with in_memory(gate) as app:
        with pytest.raises(
            AssertionError, match=r"reminders.Slow, scheduled as 'a', fails: RuntimeError: out of order"
        ):
            await app.schedule(Slow(note=NoteId("fail")), command_id="a")


async def test_no_more_is_accepted_than_there_is_room_for(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit it is Overloaded; what is dead, or cancelled, takes no room. What is accepted stays."""
    monkeypatch.setattr(scheduler, "SCHEDULED_MAX", 2)
    async with application(store_url) as app:
        for command_id in ("a", "b"):
            await app.schedule(Remind(note=ONE), after=HOUR, command_id=command_id)
        for _ in range(2):
            with pytest.raises(Overloaded, match="SCHEDULED_MAX=2"):
                await app.schedule(Remind(note=ONE), after=HOUR)
        await app.scheduled.cancel("a")
        await app.schedule(Remind(note=ONE))
        await at_rest(app)
        await app.schedule(Remind(note=ONE))


async def test_too_many_that_come_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are accepted."""
    monkeypatch.setattr(scheduler, "ADDING_MAX", 3)
    async with application("memory:") as app:
        await app.schedule(Remind(note=ONE))
        calls = [app.schedule(Remind(note=TWO), after=HOUR) for _ in range(6)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in found if isinstance(each, Overloaded)]
        assert 0 < len(refused) < 6
        assert len(await app.scheduled.list()) == 6 - len(refused)


async def test_a_store_that_fails_says_so_to_everybody_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the next ones."""
    async with application("memory:") as app:
        store = app.partition().scheduled._store
        with monkeypatch.context() as patched:

            async def fails(*_: object) -> None:
                raise StoreUnavailable("the disk is full")

            patched.setattr(store, "add", fails)
            calls = [app.schedule(Remind(note=ONE)) for _ in range(3)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in found] == [StoreUnavailable] * 3
        await app.schedule(Remind(note=TWO))
        await at_rest(app)
        assert await happened(app) == ["two"]


async def test_while_its_store_fails_the_scheduler_says_so(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health and status tell why nothing is executed; afterwards it goes on by itself."""
    monkeypatch.setattr(sender, "STORE_BACKOFF_S", 0.01)
    async with application(store_url) as app:
        await at_rest(app)
        store = app.partition().scheduled._store
        with monkeypatch.context() as patched:
            tried = asyncio.Event()

            async def fails(*_: object) -> None:
                tried.set()
                raise StoreUnavailable("the disk is gone")

            patched.setattr(store, "due", fails)
            await app.schedule(Remind(note=ONE))
            await tried.wait()
            await at_rest(app)
            health = await app.health()
            assert health.ready  # for all else
            assert "scheduled commands are not executed: StoreUnavailable: the disk is gone" in health.impaired[0]
            assert "the disk is gone" in (await app.status()).scheduled.stopped
        while (await app.status()).scheduled != ScheduledStatus():
            await app.partition().process_worker._scheduler.sender.rest(1.0)
        assert ((await app.health()).impaired, await happened(app)) == ((), ["one"])


async def test_what_was_scheduled_in_another_history_is_not_executed(tmp_path: Path) -> None:
    """Events and what waits were restored from two backups: their outcomes are not here."""
    path = tmp_path / "events.db"
    async with application(f"sqlite:{path}") as app:
        await app.schedule(Remind(note=ONE), after=timedelta(milliseconds=1))
        await app.schedule(Remind(note=TWO), after=HOUR)
        await at_rest(app)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE processes SET history_id = zeroblob(16)")
        connection.execute("UPDATE process_outgoing SET due = 0")
        connection.commit()
    async with application(f"sqlite:{path}") as app:
        before = await happened(app)
        await at_rest(app)
        assert "HistoryDiverged: what was scheduled" in (await app.status()).scheduled.stopped
        assert await happened(app) == before


# ── who may ──────────────────────────────────────────────────────────────────


async def test_whoever_may_not_do_it_now_may_not_have_it_done_later() -> None:
    """Nothing is kept of it."""
    async with in_memory() as app:
        for actor in (None, "ada", Actor("ada", frozenset({"notes:read"}))):
            with pytest.raises(Forbidden):
                await app.schedule(Note(note=ONE), after=HOUR, actor=actor)
        assert await app.scheduled.list() == []


@pytest.mark.parametrize(
    "actor", [Actor("ada", frozenset({"notes:write", "b"})), Actor("root", trusted=True), Actor("eve"), None]
)
async def test_it_is_executed_with_the_rights_that_its_sender_had(store_url: str, actor: Actor | None) -> None:
    """Neither more nor fewer; and with their name and reason."""
    async with application(store_url) as app:
        await app.schedule(Sneak(note=ONE), actor=actor, reason="as agreed", correlation_id="c", causation_id="d")
        await at_rest(app)
        (found,) = [recorded async for recorded in app.events(ALL_EVENTS)]
        who = actor or Actor()
        event = app.partition().history.event(found)
        expected = Noted(
            note=ONE,
            actor=who.name or "",
            scopes=tuple(sorted(who.scopes)),
            trusted=who.trusted,
            reason="as agreed",
        )
        assert event == expected
        context = app.partition().history.context(found)
        assert (context.actor, context.reason, context.correlation_id, context.causation_id) == (
            who.name,
            "as agreed",
            "c",
            "d",
        )


async def test_a_scope_that_is_required_since_is_missing_and_told(store_url: str) -> None:
    """It is not executed, and not tried again by itself: somebody has to decide."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    async with application(store_url, projecting=False) as app:
        await app.schedule(Note(note=ONE), actor=Actor("ada", frozenset({"notes:write"})), command_id="a")
    async with Application(reminders("notes:own"), store=store_url, services={Gate: Gate()}) as app:
        await at_rest(app)
        found = await status(app, "a")
        assert (found.state, found.attempts, await happened(app)) == ("failed", 1, [])
        assert "Note requires notes:own: ada does not have it" in found.failure


async def test_a_middleware_sees_it_when_it_is_accepted_and_when_it_is_executed() -> None:
    """First as a dry run, of which it keeps who may not; both times with the sender's name and scopes."""
    seen: list[tuple[bool, str | None, bool]] = []

    async def look(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        seen.append((context.dry_run, context.actor, "a" in context.scopes))
        if command == Remind(note=TWO):
            raise Rejected("nobody-may")
        return await proceed(command, context)

    async with in_memory(command_middleware=[look]) as app:
        await app.schedule(Remind(note=ONE), actor=Actor("ada", frozenset({"a"})))
        assert seen == [(True, "ada", True), (False, "ada", True)]
        with pytest.raises(Rejected, match="nobody-may"):
            await app.schedule(Remind(note=TWO))
        assert await happened(app) == ["one"]


# ── around it ────────────────────────────────────────────────────────────────


async def test_what_waits_is_listed_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """By id, of which those made here are in the order in which they were accepted."""
    monkeypatch.setattr(scheduled_commands, "LIST_SCHEDULED_MAX", 2)
    async with in_memory() as app:
        accepted = [await app.schedule(Remind(note=NoteId(str(n))), after=HOUR) for n in range(5)]
        seen: list[str] = []
        while page := await app.scheduled.list(after=seen[-1] if seen else None):
            assert len(page) <= 2
            seen += [found.command_id for found in page]
        assert seen == [each.command_id for each in accepted]


async def test_another_process_executes_what_this_one_accepted(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices by itself, soon; and what waits outlives both."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    monkeypatch.setattr(scheduler.ScheduledSender, "look_s", 0.01)
    async with application(store_url, projecting=False) as front:
        await front.schedule(Remind(note=ONE), command_id="a")
        async with application(store_url) as worker:
            await at_rest(worker)
            assert (await status(front, "a")).state == "done"
            await front.schedule(Remind(note=TWO), command_id="b")
            assert await worker.partition().store.wait_for_events(1, 30)  # type: ignore[arg-type]
            later = await front.schedule(Remind(note=TWO), after=HOUR)
        assert (await status(front, later.command_id)).state == "accepted"
        assert await happened(front) == ["one", "two"]


async def test_one_worker_takes_over_from_another(store_url: str) -> None:
    """When the first one closes, what it was executing is executed by the other, to an effect once."""
    if store_url == "memory:":
        pytest.skip("nothing outlives the process in memory")
    gate = Gate()
    one = application(store_url, gate)
    await one.open()
    await one.schedule(Slow(note=ONE), command_id="a")
    await gate.arrived.wait()
    async with application(store_url, gate) as other:
        await one.close()
        gate.open.set()
        await other.partition().process_worker._leases.renew()
        await at_rest(other)
        assert (await happened(other), (await status(other, "a")).state) == (["one"], "done")
        assert gate.tried["one"] == 2


def test_without_an_event_loop() -> None:
    """The same calls, which block."""
    with SyncApplication(reminders(), services={Gate: Gate()}, clock=ManualClock()) as app:
        accepted = app.schedule(Remind(note=ONE), after=HOUR, actor="ada")
        command_id = accepted.command_id
        assert [found.command_id for found in app.scheduled().list()] == [command_id]
        found = app.scheduled().status(command_id)
        assert found is not None
        assert (found.state, found.actor) == ("accepted", "ada")
        cancelled = app.scheduled().cancel(command_id, reason="no")
        assert cancelled is not None
        assert cancelled.code == "cancelled"
        with pytest.raises(ConfigurationError):
            app.scheduled("nowhere").list()
