"""Scheduled commands that were given up, in the one place for what failed: on every store."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest

from diptych import Application, Command, CommandContext, Receipt, Rejected
from diptych.application.parked import ByHand, Discarded, ParkedDetails
from diptych.errors import ConfigurationError, Forbidden, InvalidMessage, StoreUnavailable, UnknownPartition
from diptych.event_store.event_query import ALL_EVENTS
from diptych.process_managers import sender
from diptych.process_managers.given_up_commands import GivenUpCommands
from diptych.process_managers.process_store import Outgoing
from diptych.process_managers.scheduled_commands import CommandStatus
from diptych.process_managers.scheduler import SCHEDULED
from diptych.security import Actor
from diptych.testing import ManualClock
from diptych.write_side.command_bus import NextCommand
from tests.reminders import Gate, Note, NoteId, Remind, Slow, reminders

pytestmark = pytest.mark.anyio


class Who(TypedDict):
    actor: str
    reason: str


WHO: Who = {"actor": "ann", "reason": "by phone"}
FAIL, ONE = NoteId("fail"), NoteId("one")
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "SEND_ATTEMPTS_MAX", 1)


class Notes:
    """An application with its clock, in which `Slow` fails."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.gate = Gate()
        self.gate.open.set()
        self.clock = ManualClock()
        self.app = Application(
            reminders(settings.pop("scope", "notes:write")),
            store=url,
            services={Gate: self.gate},
            clock=self.clock,
            **settings,
        )

    async def rest(self) -> None:
        await self.app.partition().process_worker.at_rest()

    async def fails(self, *ids: str) -> None:
        """Have commands given up."""
        for command_id in ids:
            await self.app.schedule(Slow(note=FAIL), command_id=command_id)
        await self.rest()

    async def the(self, command_id: str) -> ParkedDetails:
        return await self.app.parked.show(f"scheduled-{command_id}")

    async def ids(self) -> list[str]:
        """What is parked, by page of one."""
        found, after = list[str](), ""
        while True:
            page = await self.app.parked.list(after=after, limit=1)
            found += [item.key for item in page.items]
            after = page.next
            if not after:
                return found

    async def status(self, command_id: str) -> CommandStatus:
        found = await self.app.scheduled.status(command_id)
        assert found is not None
        return found

    async def happened(self) -> list[str]:
        return [recorded.tags[0].partition(":")[2] async for recorded in self.app.events(ALL_EVENTS)]


async def test_what_was_given_up_is_listed_and_shown(store_url: str) -> None:
    """By id, in pages, with its fields, its stack trace and when it was accepted; what waits is not among it."""
    here = Notes(store_url)
    async with here.app:
        accepted_at = here.clock.now()
        await here.app.schedule(Remind(note=ONE), after=HOUR, command_id="waits")
        await here.fails("b", "a-7-00000000", "c")
        assert await here.ids() == ["a-7-00000000", "b", "c"]
        assert [found.key for found in (await here.app.parked.list(kind="scheduled")).items] == await here.ids()
        found = await here.the("a-7-00000000")
        assert (found.kind, found.type, found.name) == ("scheduled", "reminders.Slow", "(scheduled)")
        assert (found.attempts, found.since, found.position) == (1, accepted_at, 0)
        assert (found.data, found.retries) == ({"note": "fail"}, [])
        assert "RuntimeError: out of order" in found.error
        assert 'raise RuntimeError("out of order")' in found.trace
        for other in ("waits", "never", ""):
            with pytest.raises(ConfigurationError, match="nothing is parked as"):
                await here.the(other)


async def test_a_retry_says_who_and_why_for_good(store_url: str) -> None:
    """It is executed as if it had never been; who wanted that is shown, also after it was given up again."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        dealt = await here.app.parked.retry("scheduled-a", **WHO)
        assert (dealt.id, dealt.command_id, dealt.position, dealt.still) == ("scheduled-a", "a", 0, None)
        await here.rest()
        at = here.clock.now()
        here.clock.advance(1)
        assert (await here.the("a")).retries == [ByHand(actor="ann", reason="by phone", at=at)]
        here.gate.mended = True
        await here.app.parked.retry("scheduled-a", actor="bob", reason="there is paper")
        await here.rest()
        assert ((await here.status("a")).state, await here.ids(), await here.happened()) == ("done", [], ["fail"])
        assert here.gate.tried["fail"] == 3


async def test_g4_an_edited_command_has_an_id_of_its_own_and_takes_effect_once(store_url: str) -> None:
    """The id of before is rejected for good, and names the new one; so nobody executes both."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        dealt = await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        new = dealt.command_id
        assert new != "a"
        await here.rest()
        assert ((await here.status(new)).state, await here.happened(), await here.ids()) == ("done", ["one"], [])
        before = await here.status("a")
        assert (before.state, before.code) == ("rejected", "replaced")
        assert before.facts == {"by": "ann", "reason": "by phone", "command_id": new}
        here.gate.mended = True
        await here.app.schedule(Slow(note=FAIL), command_id="a")
        await here.rest()
        assert await here.happened() == ["one"]


async def test_an_edited_command_that_is_given_up_tells_who_edited_it(store_url: str) -> None:
    """It is an item like any other, and can be edited once more; with the fields that it has, it stays the same one."""
    broken = [1, 2, 3]

    async def fails(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        if broken and not context.dry_run:
            broken.pop()
            raise RuntimeError("out of paper")
        return await proceed(command, context)

    here = Notes(store_url, command_middleware=[fails])
    async with here.app:
        await here.app.schedule(Remind(note=ONE), command_id="a", actor=Actor("cy"))
        await here.rest()
        edited = (await here.app.parked.retry("scheduled-a", edited={"note": "two"}, **WHO)).command_id
        await here.rest()
        same = await here.app.parked.retry(
            f"scheduled-{edited}", edited={"note": "two"}, actor="bob", reason="there is paper"
        )
        assert same.command_id == edited
        await here.rest()
        found = await here.the(edited)
        assert (sorted(each.actor or "" for each in found.retries), found.data["note"]) == (["ann", "bob"], "two")
        assert (await here.status(edited)).actor == "cy"
        last = (await here.app.parked.retry(f"scheduled-{edited}", edited={"note": "three"}, **WHO)).command_id
        await here.rest()
        assert ((await here.status(last)).state, await here.happened()) == ("done", ["three"])


@contextmanager
def pulled_plug(here: Notes, method: str) -> Generator[None]:
    """Meanwhile a method of the process store fails."""

    async def fails(*_: object) -> None:
        raise StoreUnavailable("the plug was pulled")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(here.app.partition().scheduled._store, method, fails)
        yield


async def test_an_edit_that_did_not_come_to_its_end_is_taken_up(store_url: str) -> None:
    """After a crash in the middle it is not retried as it was, which would lose it; edited again it is done once."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        with pulled_plug(here, "add"), pytest.raises(StoreUnavailable):
            await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        new = (await here.status("a")).facts["command_id"]
        cancelled = await here.app.scheduled.cancel("a")  # which is too late, and takes away nothing that is to be done
        assert cancelled is not None
        assert (cancelled.code, await here.ids()) == ("replaced", ["a"])
        with pytest.raises(ConfigurationError, match=f"to be replaced by {new}"):
            await here.app.parked.retry("scheduled-a", **WHO)
        with pytest.raises(ConfigurationError, match="with the same fields as then"):
            await here.app.parked.retry("scheduled-a", edited={"note": "two"}, **WHO)
        assert (await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)).command_id == new
        await here.rest()
        assert (await here.happened(), await here.ids()) == (["one"], [])


async def test_an_edit_that_did_not_come_to_its_end_can_be_discarded(store_url: str) -> None:
    """Both ids then have an outcome that says so."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        with pulled_plug(here, "add"), pytest.raises(StoreUnavailable):
            await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        await here.app.parked.discard("scheduled-a", **WHO)
        before = await here.status("a")
        assert (before.code, (await here.status(before.facts["command_id"])).code) == ("replaced", "discarded")
        assert (await here.ids(), len((await here.app.parked.discarded()).items)) == ([], 1)


@pytest.mark.parametrize("again", ["retried", "edited", "discarded"])
async def test_an_edit_that_came_to_all_but_its_end_is_not_done_twice(store_url: str, again: str) -> None:
    """The other command is there already, and the one of before goes as soon as somebody deals with it."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        with pulled_plug(here, "drop"), pytest.raises(StoreUnavailable):
            await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        assert await here.ids() == ["a"]
        edited = {"note": "two"} if again == "edited" else None
        parked = here.app.parked
        again_dealt_with = (
            parked.discard("scheduled-a", **WHO)
            if again == "discarded"
            else parked.retry("scheduled-a", edited=edited, **WHO)
        )
        with pytest.raises(ConfigurationError, match=r"was replaced by .* before: look at that one"):
            await again_dealt_with
        here.app.partition().process_worker._scheduler.sender.wake()
        await here.rest()
        assert (await here.happened(), await here.ids()) == (["one"], [])


async def test_of_several_who_edit_at_once_one_is_followed(store_url: str) -> None:
    """Whoever comes later is told, or finds it gone; it takes effect once."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        edits = [here.app.parked.retry("scheduled-a", edited={"note": f"n{n}"}, **WHO) for n in range(5)]
        found = await asyncio.gather(*edits, return_exceptions=True)
        assert all(isinstance(each, ConfigurationError) for each in found if isinstance(each, BaseException))
        await here.rest()
        assert (len(await here.happened()), await here.ids()) == (1, [])


async def test_the_same_edit_twice_at_once_is_one_command(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one put in is executed and gone when the second one does so: it is done once."""
    here = Notes(store_url)
    second_is_there, first_is_done = asyncio.Event(), asyncio.Event()
    async with here.app:
        await here.fails("a")
        store, begun = here.app.partition().scheduled._store, list[str]()
        put_in = store.add

        async def add(process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
            if process == SCHEDULED:
                begun.append(items[0].id)
                (second_is_there.set if len(begun) == 2 else lambda: None)()
                await (second_is_there if len(begun) == 1 else first_is_done).wait()
            return await put_in(process, items)

        monkeypatch.setattr(store, "add", add)
        retry = here.app.parked.retry
        edits = [asyncio.create_task(retry("scheduled-a", edited={"note": "one"}, **WHO)) for _ in range(2)]
        await asyncio.wait(edits, return_when=asyncio.FIRST_COMPLETED)
        await here.rest()
        assert await here.happened() == ["one"]
        first_is_done.set()
        assert {dealt.command_id for dealt in await asyncio.gather(*edits)} == set(begun)
        await here.rest()
        assert (len(set(begun)), await here.happened(), await here.ids()) == (1, ["one"], [])


async def test_an_edit_that_is_discarded_before_it_is_finished_leaves_nothing(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever edits is told; the other command is not executed, and does not wait for somebody."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        store = here.app.partition().scheduled._store
        put_in = store.add

        async def add(process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
            if process == SCHEDULED:
                await here.app.parked.discard("scheduled-a", **WHO)
            return await put_in(process, items)

        monkeypatch.setattr(store, "add", add)
        with pytest.raises(ConfigurationError, match="was discarded meanwhile"):
            await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        await here.rest()
        assert (await here.happened(), await here.ids()) == ([], [])


async def test_a_discard_that_an_edit_was_before_discards_nothing(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not finished when the discard looked, and has taken effect when it decides: that is told."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("a")
        with pulled_plug(here, "add"), pytest.raises(StoreUnavailable):
            await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        look, looks = GivenUpCommands._check_unfinished, list[str]()

        async def look_and_edit(given_up: GivenUpCommands, item: Outgoing, replaced: Rejected) -> None:
            await look(given_up, item, replaced)
            if not looks:
                looks.append(item.id)
                await here.app.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
                await here.rest()

        monkeypatch.setattr(GivenUpCommands, "_check_unfinished", look_and_edit)
        with pytest.raises(ConfigurationError, match="look at that one"):
            await here.app.parked.discard("scheduled-a", **WHO)
        assert (await here.happened(), await here.ids()) == (["one"], [])
        assert (await here.app.parked.discarded()).items == []


async def test_of_several_who_edit_a_command_whose_id_is_of_another_one_is_followed(store_url: str) -> None:
    """Though nothing can be kept under its id."""
    here = Notes(store_url)
    async with here.app:
        await here.app.schedule(Remind(note=ONE), after=HOUR, command_id="a")
        await here.app.execute(Remind(note=NoteId("other")), command_id="a")
        here.clock.advance(HOUR.total_seconds())
        here.app.partition().process_worker._scheduler.sender.wake()
        await here.rest()
        edits = [here.app.parked.retry("scheduled-a", edited={"note": f"n{n}"}, **WHO) for n in range(5)]
        await asyncio.gather(*edits, return_exceptions=True)
        await here.rest()
        assert (len(await here.happened()), await here.ids()) == (2, [])


async def test_what_took_effect_after_all_is_neither_edited_nor_discarded(store_url: str) -> None:
    """A middleware failed behind it: whoever deals with it is told, and it does not wait for ever."""
    broken = True

    async def afterwards(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        receipt = await proceed(command, context)
        if broken and not context.dry_run:
            raise RuntimeError("the log is full")
        return receipt

    here = Notes(store_url, command_middleware=[afterwards])
    async with here.app:
        await here.app.schedule(Remind(note=ONE), command_id="a")
        await here.rest()
        assert (await here.ids(), await here.happened()) == (["a"], ["one"])
        with pytest.raises(ConfigurationError, match="has taken effect after all, at position 1: retry it as it is"):
            await here.app.parked.retry("scheduled-a", edited={"text": "again"}, **WHO)
        with pytest.raises(ConfigurationError, match="nothing is discarded"):
            await here.app.parked.discard("scheduled-a", **WHO)
        assert (await here.ids(), (await here.status("a")).state) == ([], "done")


@pytest.mark.parametrize("edited", [{"note": 5}, {"nothing": "like it"}, {"note": "x" * (1 << 20)}])
async def test_wrong_fields_are_refused_before_anything_is_done(edited: dict[str, object]) -> None:
    """It waits as it did, under its id."""
    here = Notes("memory:")
    async with here.app:
        await here.fails("a")
        with pytest.raises(InvalidMessage):
            await here.app.parked.retry("scheduled-a", edited=edited, **WHO)
        assert ((await here.status("a")).state, (await here.the("a")).retries) == ("failed", [])


async def test_a_command_is_edited_with_the_scopes_that_it_was_accepted_with(tmp_path: Path) -> None:
    """Whoever edits lends it none of theirs."""
    url = f"sqlite:{tmp_path / 'notes.db'}"
    async with Notes(url, projecting=False).app as app:
        await app.schedule(Note(note=ONE), command_id="a", actor=Actor("bob", {"notes:write"}))
    here = Notes(url, scope="notes:all")
    async with here.app:
        await here.rest()
        with pytest.raises(Forbidden):
            await here.app.parked.retry("scheduled-a", edited={"note": "two"}, **WHO)
        assert await here.ids() == ["a"]


async def test_a_discard_is_the_outcome_and_says_who_and_why(store_url: str) -> None:
    """For good: executed under its id it is rejected; and it is listed among what was discarded, once."""
    here = Notes(store_url)
    async with here.app:
        await here.fails("b", "a", "c")
        for command_id in ("b", "a"):
            dealt = await here.app.parked.discard(f"scheduled-{command_id}", **WHO)
            assert (dealt.command_id, dealt.still) == (command_id, None)
        found = await here.status("a")
        assert (found.state, found.code, found.facts) == ("rejected", "discarded", {"by": "ann", "reason": "by phone"})
        assert await here.ids() == ["c"]
        expected = [
            Discarded(
                kind="scheduled",
                type="reminders.Slow",
                name="(scheduled)",
                key=command_id,
                position=0,
                by=ByHand(actor="ann", reason="by phone", at=here.clock.now()),
            )
            for command_id in ("a", "b")
        ]
        first = await here.app.parked.discarded(limit=1)
        rest = await here.app.parked.discarded(after=first.next)
        assert ([*first.items, *rest.items], rest.next) == (expected, "")
        with pytest.raises(ConfigurationError, match="nothing is parked as"):
            await here.app.parked.discard("scheduled-a", **WHO)
        assert (await here.app.status()).scheduled.failed == 1


async def test_a_command_whose_id_is_of_another_one_can_be_dealt_with(store_url: str) -> None:
    """What is kept under the id is of the other, and stays; edited or discarded, the one that waits goes."""
    here = Notes(store_url)
    async with here.app:
        for command_id in ("a", "b", "c"):
            await here.app.schedule(Remind(note=ONE), after=HOUR, expires_after=HOUR, command_id=command_id)
            await here.app.execute(Remind(note=NoteId("other")), command_id=command_id)
        here.clock.advance(
            (3 if store_url == "memory:" else 1) * HOUR.total_seconds()
        )  # expired or not: it is not lost
        here.app.partition().process_worker._scheduler.sender.wake()
        await here.rest()
        assert await here.ids() == ["a", "b", "c"]
        assert "CommandIdReused" in (await here.the("a")).error
        await here.app.parked.discard("scheduled-a", **WHO)
        new = (await here.app.parked.retry("scheduled-b", edited={"note": "two"}, **WHO)).command_id
        await here.app.parked.retry("scheduled-c", **WHO)
        await here.rest()
        assert await here.ids() == ["c"]
        assert {(await here.status(each)).state for each in "ab"} == {"done"}
        assert (await here.status(new)).state == ("rejected" if store_url == "memory:" else "done")


async def test_an_edited_command_stays_in_its_partition() -> None:
    """With fields that belong to another one it is refused, and waits as it did."""
    gate = Gate()
    gate.open.set()
    stores = {"fail": "memory:", "one": "memory:"}
    async with Application(reminders(), store=stores, partition_by=NoteId, services={Gate: gate}) as app:
        await app.schedule(Slow(note=FAIL), command_id="a")
        here = app.partition("fail")
        await here.process_worker.at_rest()
        with pytest.raises(ConfigurationError, match="belongs to another partition: schedule it there"):
            await here.parked.retry("scheduled-a", edited={"note": "one"}, **WHO)
        with pytest.raises(UnknownPartition):
            await here.parked.retry("scheduled-a", edited={"note": "nowhere"}, **WHO)
        assert [item.key for item in (await here.parked.list()).items] == ["a"]
        found = await here.scheduled.status("a")
        assert found is not None
        assert found.state == "failed"
