"""What a switch replaces is kept and gone back to; what opening does about changed code; and how fast builds go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from diptych import Application, BoundedContext, Command, Event, EventContext, Identity, Key, Query, ReadModel
from diptych.application import registration
from diptych.errors import ConfigurationError, NotFresh, StoreUnavailable
from diptych.event_store.position import Position
from diptych.read_side import changed_code, projector, rebuild
from diptych.read_side.comparison import Comparison
from diptych.read_side.leases import Leases
from diptych.read_side.projection import Projection
from diptych.read_side.read_store import Discard, SliceWrite
from diptych.read_side.rebuild_policy import RebuildPolicy, Throttle
from diptych.read_side.slice import Slice
from tests.parking import discard

pytestmark = pytest.mark.anyio

WAIT_S = 60.0
KEPT_URLS = ["sqlite", "postgres"]
on_disk = pytest.mark.parametrize("store_url", KEPT_URLS, indirect=True)
POISONED = 13
"""A version of the code that chokes on the first event."""
KEEPING = RebuildPolicy(keep_s=3_600)


class PurseId(Identity): ...


class Fill(Command):
    purse: PurseId


class Filled(Event):
    purse: PurseId


class Purse(ReadModel):
    purse: Key[PurseId]
    coins: int = 0


class PurseOf(Query[Purse | None]):
    purse: PurseId


class Purses(Query[list[Purse]]): ...


MINE = PurseId("mine")


def purses(coins: int, delivered: list[int] | None = None) -> BoundedContext:
    """Each filling puts so many coins into a purse, by code of that version."""
    context = BoundedContext("purses")

    @context.command_handler
    def fill(command: Fill) -> Filled:
        return Filled(purse=command.purse)

    @context.projection(version=coins)
    def purse(row: Purse, event: Filled) -> Purse:
        if coins == POISONED and not row.coins:
            raise ValueError("poisoned")
        return Purse(purse=row.purse, coins=row.coins + coins)

    if delivered is not None:

        @context.subscriber
        async def tell(events: Sequence[tuple[Filled, EventContext]]) -> None:
            delivered.extend(about.position for _, about in events)

    return context


def opened(store_url: str, coins: int, policy: RebuildPolicy = KEEPING, *, projecting: bool = True) -> Application:
    return Application(purses(coins), store=store_url, projecting=projecting, rebuilding=policy)


async def filled(app: Application, times: int = 1) -> None:
    for _ in range(times):
        await app.execute(Fill(purse=MINE))
    await app.projected()


async def coins(app: Application) -> int:
    found = await app.query(PurseOf(purse=MINE), freshness="latest", wait_s=WAIT_S)
    return 0 if found is None else found.coins


async def builds(app: Application) -> dict[int, str]:
    """What there is of the read model, by number."""
    found = await app.partition().read_store.generations()
    names = {each.number: "live" if each.live else "built" if each.under_way else "kept" for each in found}
    return {each.number: names[each.number] for each in found if each.table is not None}


async def everything_delivered(app: Application) -> None:
    store, seen = app.partition().read_store, 0
    while (status := await app.status()).subscribers[0].checkpoint < status.head:
        seen = await store.wait_for_change(seen, WAIT_S)


def one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Each event is a batch, however slow that is."""
    patch.setattr(projector, "BATCH_EVENTS_MAX", 1)
    patch.setattr(projector, "BATCH_EVENTS_MIN", 1)


# ── kept, and gone back to ───────────────────────────────────────────────────


@on_disk
async def test_both_codes_answer_from_rows_of_their_own_after_the_switch(store_url: str) -> None:
    """During a rolling deployment: the old process goes on folding, and answering, as long as its rows are kept."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as old:
        await filled(old, 2)
        async with opened(store_url, 10) as new:
            await new.projected()
            assert await builds(new) == {1: "kept", 2: "live"}
            for times in (3, 4):
                receipt = await new.execute(Fill(purse=MINE))
                shown = [await app.query(PurseOf(purse=MINE), after=receipt, wait_s=WAIT_S) for app in (old, new, old)]
                assert [row and row.coins for row in shown] == [times, 10 * times, times]
            assert [row.coins for row in await old.query(Purses())] == [4]
            overlaid = await old.query(PurseOf(purse=MINE), freshness="overlay")
            assert overlaid is not None
            assert overlaid.coins == 4
            await old.projected()
            assert (await old.health()).ready
            assert await builds(new) == {1: "kept", 2: "live"}, "what is kept does not switch by itself"


@on_disk
async def test_going_back_to_rows_that_old_processes_fold_on(store_url: str) -> None:
    """The old rows answer at once; the new ones are kept, and the new process goes on answering from them."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as old:
        await filled(old, 2)
        async with opened(store_url, 10) as new:
            await new.projected()
            await filled(new, 1)
            assert await new.rebuilds.back("Purse") == 3
            assert await builds(new) == {1: "live", 2: "kept"}
            assert (await coins(old), await coins(new)) == (3, 30)
            await filled(new, 1)
            assert (await coins(old), await coins(new)) == (4, 40)


@on_disk
async def test_old_code_that_is_started_again_goes_on_with_its_kept_rows(store_url: str) -> None:
    """Nobody folded them meanwhile: they go on from where they are, and answer when they have caught up."""
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        async with opened(store_url, 10) as new:
            await filled(new, 1)
            assert await coins(new) == 30
        async with opened(store_url, 1) as old:
            assert await coins(old) == 3
            assert await builds(old) == {1: "live", 2: "kept"}
        async with opened(store_url, 10) as new:
            assert await coins(new) == 30
            assert await builds(new) == {1: "kept", 2: "live"}


@on_disk
async def test_rows_that_nobody_can_fold_on_are_not_gone_back_to(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show less than those that answer; the error says what to start, and the rows of now stay."""
    monkeypatch.setattr(rebuild, "BACK_WAIT_S", 0.0)
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        async with opened(store_url, 10) as new:
            await filled(new, 1)
            with pytest.raises(StoreUnavailable, match="the kept rows are at position 2, those that answer at 3"):
                await new.rebuilds.back("Purse")
            assert await coins(new) == 30
            (told,) = (await new.status()).projections
            assert told.kept_until is not None
            assert told.kept_until.utcoffset() == timedelta(0)
            assert (told.checkpoint, told.kept_checkpoint) == (3, 2)
        async with opened(store_url, 1, projecting=False) as by_hand:
            assert await by_hand.query(PurseOf(purse=MINE)) == Purse(purse=MINE, coins=2)
            assert await by_hand.query(PurseOf(purse=MINE), freshness="overlay") == Purse(purse=MINE, coins=3)
            assert await by_hand.rebuilds.back("Purse") == 3
            assert await coins(by_hand) == 3


async def test_going_back_from_a_rebuild_of_the_same_code(store_url: str) -> None:
    """The rows of before catch up first; that works both ways, and in memory as well."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as app:
        await filled(app, 2)
        await app.rebuilds.rebuild("Purse")
        await filled(app, 1)
        assert await builds(app) == {1: "kept", 2: "live"}
        assert await app.rebuilds.back("Purse") == 3
        assert await builds(app) == {1: "live", 2: "kept"}
        await filled(app, 1)
        assert await app.rebuilds.back("purses.Purse") == 4
        assert await coins(app) == 4


async def test_there_is_nothing_to_go_back_to(store_url: str) -> None:
    """Nothing was replaced, or it was not to be kept."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1, RebuildPolicy(keep_s=0)) as app:
        await filled(app, 1)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="no rows of purses.Purse are kept"):
                await app.rebuilds.back("Purse")
            await app.rebuilds.rebuild("Purse")


async def test_what_was_kept_is_dropped_when_its_time_is_over(store_url: str) -> None:
    """By whoever projects, as soon as it has nothing else to do."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1, RebuildPolicy(keep_s=0.000_001)) as app:
        await filled(app, 1)
        await app.rebuilds.rebuild("Purse")
        app.partition().projector._look_for_overdue_at = 0.0
        receipt = await app.execute(Fill(purse=MINE))
        assert await app.query(PurseOf(purse=MINE), after=receipt) == Purse(purse=MINE, coins=2)
        store, seen = app.partition().read_store, 0
        while await builds(app) != {2: "live"}:
            seen = await store.wait_for_change(seen, WAIT_S)


@on_disk
async def test_a_discard_ends_what_is_kept(store_url: str) -> None:
    """The rows of before may have the event in them that is left out from now on."""
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        async with opened(store_url, POISONED) as new:
            await new.projected()
            assert await builds(new) == {1: "kept", 2: "live"}
            await discard(new, '["mine"]')
            assert await builds(new) == {2: "live"}


async def test_a_discard_is_left_out_of_a_build_that_has_not_come_to_it(store_url: str) -> None:
    """Also where that is under way, by code that would fold the event; what it lacks of the decision it loads then."""
    async with asyncio.timeout(WAIT_S), opened(store_url, POISONED) as app:
        await filled(app)
        await app.execute(Fill(purse=PurseId("hers")))
        await app.projected()
        projector = app.partition().projector
        projection = next(iter(purses_compiled(10)))
        made = await projector.generations.create(projection, live=False, anew=True)
        (build,) = [Slice(projection, each, target=rebuild.NEVER) for each in made]
        await projector.loaded(build)
        await projector.advance([build], Position(1))
        await discard(app, '["hers"]')
        while build.position < 2:
            await projector.advance([build])
        async with app.partition().read_store.snapshot() as snapshot:
            rows = await snapshot.get_many(projection.name, [("mine",), ("hers",)], made[0].number)
        assert list(rows) == [("mine",)]


def purses_compiled(coins: int) -> Sequence[Projection]:
    context = purses(coins)
    return registration.projections([context], registration.event_types([context]))


@on_disk
async def test_old_code_that_starts_beside_an_old_process_answers_again_at_once(store_url: str) -> None:
    """Which has the rows on lease, and nothing to write that would tell it that they are taken up."""
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as old:
        await filled(old, 2)
        async with opened(store_url, 10) as new:
            await new.projected()
            assert await builds(new) == {1: "kept", 2: "live"}
            async with opened(store_url, 1) as again:
                assert await builds(again) == {1: "live", 2: "kept"}
                await filled(again, 1)
                assert [await coins(app) for app in (old, new, again)] == [3, 30, 3]


# ── going on ─────────────────────────────────────────────────────────────────


class Stop(Exception):
    """A rebuild ends in the middle."""


async def stopped_at(app: Application, position: int) -> None:
    def stop(reached: int, _: int) -> None:
        if reached == position:
            raise Stop

    with pytest.raises(Stop):
        await app.rebuilds.rebuild("Purse", stop)


async def test_a_rebuild_goes_on_where_an_earlier_one_has_stopped(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is of the same code; not where an event was discarded that it had passed."""
    one_by_one(monkeypatch)
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as app:
        await filled(app, 4)
        await stopped_at(app, 3)
        assert await builds(app) == {1: "live", 2: "built"}
        reached: list[int] = []
        assert await app.rebuilds.rebuild("Purse", lambda position, _: reached.append(position)) == 4
        assert (reached, await builds(app)) == ([4], {1: "kept", 2: "live"})
        await stopped_at(app, 3)
        left_out = Discard("purses.Purse", '["mine"]', Position(3), "ann", "by phone", app.now())
        (live,) = [each for each in await app.partition().read_store.generations() if each.live]
        await app.partition().read_store.write([SliceWrite(live, live.checkpoint, discard=[left_out], by_hand=True)])
        await app.rebuilds.rebuild("Purse")
        assert await builds(app) == {2: "kept", 4: "live"}
        assert await coins(app) == 3


@on_disk
async def test_a_rebuild_drops_what_other_code_has_left(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of no use to this one."""
    one_by_one(monkeypatch)
    async with asyncio.timeout(WAIT_S), opened(store_url, 1) as app:
        await filled(app, 3)
        async with opened(store_url, 10, projecting=False) as other:
            await stopped_at(other, 2)
        assert await builds(app) == {1: "live", 2: "built"}
        await app.rebuilds.rebuild("Purse")
        assert await builds(app) == {1: "kept", 3: "live"}


# ── opening with changed code ────────────────────────────────────────────────


@on_disk
async def test_the_old_rows_answer_in_the_new_process_where_that_is_asked_for(store_url: str) -> None:
    """One that builds as slowly as this shows them meanwhile; by default its queries wait."""
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        slowly = RebuildPolicy(on_changed="serve-old", events_per_s=0.001)
        async with opened(store_url, 10, slowly, projecting=False) as new:
            answer = await new.answer(PurseOf(purse=MINE))
            assert answer.value is not None
            assert (answer.value.coins, answer.shows[0].low) == (2, 2)
            receipt = await new.execute(Fill(purse=MINE))
            with pytest.raises(NotFresh, match="of other code"):
                await new.query(PurseOf(purse=MINE), after=receipt, wait_s=0.0)
            with pytest.raises(NotFresh, match="of other code"):
                await new.query(PurseOf(purse=MINE), freshness="overlay", wait_s=0.0)
        async with opened(store_url, 10, projecting=False) as new:
            with pytest.raises(NotFresh, match="of other code"):
                await new.query(PurseOf(purse=MINE), wait_s=0.0)


@on_disk
async def test_opening_waits_until_the_new_rows_answer(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """And tells how far they are."""
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        async with opened(store_url, 10, RebuildPolicy(on_changed="wait")) as new:
            assert (await new.answer(PurseOf(purse=MINE), wait_s=0.0)).value == Purse(purse=MINE, coins=20)
    assert "opening waits for purses.Purse" in caplog.text


@on_disk
async def test_opening_waits_for_nothing_that_is_not_built_any_more(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no leases folds nothing, for whatever reason: it does not open, and says why."""
    opening = iter([True])

    async def renew(_: Leases) -> None:
        if not next(opening, False):
            raise RuntimeError("the renewal is broken")

    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        monkeypatch.setattr(Leases, "renew", renew)
        new = opened(store_url, 10, RebuildPolicy(on_changed="wait"))
        with pytest.raises(StoreUnavailable, match=r"purses\.Purse cannot be built: .*the renewal is broken"):
            await new.open()


@on_disk
async def test_opening_that_waits_can_be_given_up(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, as by Ctrl-C, it leaves nothing open; what was built is gone on with by the next."""
    looked = asyncio.Event()
    monkeypatch.setattr(changed_code._log, "warning", lambda *_: looked.set())
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 2)
        waiting = opened(store_url, 10, RebuildPolicy(on_changed="wait"), projecting=False)  # nobody builds
        opening = asyncio.create_task(waiting.open())
        await looked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with opened(store_url, 10) as new:
            assert await coins(new) == 20


@on_disk
async def test_opening_is_refused_until_somebody_has_built_the_new_rows(store_url: str) -> None:
    """The error names them and the command, and nothing is begun; what was never built is no reason."""
    refusing = RebuildPolicy(on_changed="refuse")
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1, refusing) as old:
            await filled(old, 2)
        with pytest.raises(ConfigurationError, match=r"the rows of purses\.Purse are of other code.*rebuild changed"):
            await opened(store_url, 10, refusing).open()
        async with opened(store_url, 10, projecting=False) as by_hand:
            assert await builds(by_hand) == {1: "live"}
            await by_hand.rebuilds.rebuild("Purse")
        async with opened(store_url, 10, refusing) as new:
            assert await coins(new) == 20


@pytest.mark.parametrize(
    "wrong",
    [{"on_changed": "hope"}, {"keep_s": -1}, {"keep_s": 1e9}, {"events_per_s": 0}, {"events_per_s": float("inf")}],
)
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """The error says what it may be."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RebuildPolicy(**wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ── how fast, and beside what ────────────────────────────────────────────────


def test_a_build_is_held_to_its_rate() -> None:
    """After so many events it waits for as long as they should have taken; what was too slow is not made up for."""
    now = [100.0]
    throttle = Throttle(50.0, lambda: now[0])
    assert throttle.due_in_s == 0
    throttle.note(100)
    assert throttle.due_in_s == 2
    now[0] += 1.5
    assert throttle.due_in_s == 0.5
    now[0] += 10
    throttle.note(25)
    assert throttle.due_in_s == 0.5
    assert Throttle(None).due_in_s == 0


@on_disk
async def test_what_answers_does_not_wait_for_a_slow_build(store_url: str) -> None:
    """A changed read model, held to next to nothing, is far behind; another one of the same process keeps up."""

    class Count(ReadModel):
        purse: Key[PurseId]
        events: int = 0

    def counting(coins: int) -> BoundedContext:
        context = purses(coins)

        @context.projection
        def count(row: Count, event: Filled) -> Count:
            return Count(purse=row.purse, events=row.events + 1)

        return context

    class CountOf(Query[Count | None]):
        purse: PurseId

    async with asyncio.timeout(WAIT_S):
        async with Application(counting(1), store=store_url) as app:
            await filled(app, 3)
        slowly = RebuildPolicy(events_per_s=0.001)
        async with Application(counting(10), store=store_url, rebuilding=slowly) as app:
            for events in range(4, 8):
                receipt = await app.execute(Fill(purse=MINE))
                counted = await app.query(CountOf(purse=MINE), after=receipt, wait_s=WAIT_S)
                assert counted is not None
                assert counted.events == events


# ── side effects ─────────────────────────────────────────────────────────────


@on_disk
async def test_no_rebuild_delivers_to_a_subscriber_again(store_url: str) -> None:
    """Neither changed code, nor a rebuild by hand, nor going back: each event is delivered once, in its order."""
    delivered: list[int] = []
    async with asyncio.timeout(WAIT_S):
        for times in (1, 10, 1):
            app = Application(purses(times, delivered), store=store_url, rebuilding=KEEPING)
            async with app:
                await filled(app, 2)
                await app.rebuilds.rebuild("Purse")
                await app.rebuilds.back("Purse")
                await everything_delivered(app)
    assert delivered == list(range(1, 7))


@on_disk
async def test_a_rebuild_of_what_this_process_builds_already_waits_for_it(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one switches by itself, and would drop another one that is built beside it. Compared, it is the same."""
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 10)
        told: list[tuple[int, int]] = []
        # What is built by itself waits until it is waited for.
        monkeypatch.setattr(Throttle, "due_in_s", property(lambda _: 0.0 if told else 0.01))
        async with opened(store_url, 10) as app:
            assert await app.rebuilds.rebuild("Purse", lambda done, total: told.append((done, total))) == 10
            assert await builds(app) == {1: "kept", 2: "live"}
            assert (await app.status()).projections[0].stopped == ""
        assert told == sorted(told)
        assert {total for _, total in told} == {10}
        async with opened(store_url, 20) as app:
            approved: list[Comparison] = []

            def approve(found: Comparison) -> bool:
                approved.append(found)
                return True

            await app.rebuilds.rebuild("Purse", approve=approve)
            assert [(found.rows, found.same) for found in approved] == [(1, True)]
        async with opened(store_url, 30) as app:
            assert (await app.rebuilds.compare("Purse")).same


@on_disk
async def test_where_opening_waits_for_the_new_rows_nothing_is_delivered_before(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a build that stands still in the middle; once the rows answer, all of it is, once."""
    delivered: list[int] = []
    async with asyncio.timeout(WAIT_S):
        async with opened(store_url, 1) as old:
            await filled(old, 3)
        with monkeypatch.context() as patch:
            one_by_one(patch)
            slowly = RebuildPolicy(on_changed="wait", events_per_s=0.001)
            opening = asyncio.create_task(Application(purses(10, delivered), store=store_url, rebuilding=slowly).open())
            async with opened(store_url, 10, projecting=False) as looking:
                store, seen = looking.partition().read_store, 0
                while not any(each.under_way and each.checkpoint.position for each in await store.generations()):
                    seen = await store.wait_for_change(seen, WAIT_S)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        assert delivered == []
        waiting = RebuildPolicy(on_changed="wait")
        async with Application(purses(10, delivered), store=store_url, rebuilding=waiting) as app:
            await everything_delivered(app)
    assert delivered == [1, 2, 3]
