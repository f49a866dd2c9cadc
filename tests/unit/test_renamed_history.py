"""A history under former names, on every way to a decision: bound models, stale screens, dry runs, slices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from diptych import (
    Application,
    BoundedContext,
    ContextChanged,
    Event,
    Identity,
    Key,
    Query,
    ReadModel,
    Receipt,
    Rejected,
    replace,
)
from diptych.errors import UnreadableEvent
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import ReadResult
from diptych.messages.codec import decode
from diptych.testing import scenario
from tests.renamed_bank import (
    ADA,
    BOB,
    MAIN,
    STORED,
    WAYS,
    Balance,
    BalanceOf,
    BranchId,
    Move,
    MoveBound,
    Moved,
    MoveMapped,
    MoveOutside,
    bank,
    store_as_older_code,
)

pytestmark = pytest.mark.anyio

SLICES = 4


# ── decisions ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", STORED)
async def test_g3_a_move_of_older_code_is_noticed_however_models_are_bound(
    store_url: str, names: str, way: type[Move]
) -> None:
    """By field, by mapping, or by a handler that runs before: no decision stands on a balance from before."""
    async with Application(bank(), store=store_url) as app:
        await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=10))
        await store_as_older_code(app.partition(), names)
        with pytest.raises(Rejected) as rejected:
            await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=50))
        await app.execute(way(branch=MAIN, source=BOB, target=ADA, cents=180))
        assert rejected.value.facts == {"cents": 20}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", STORED)
async def test_a_stale_screen_is_refused_where_the_change_has_former_names(
    store_url: str, names: str, way: type[Move]
) -> None:
    """And what has changed is told as code of now would have stored it, so that whoever hears of it can read it."""
    async with Application(bank(), store=store_url) as app:
        first = await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=10))
        await store_as_older_code(app.partition(), names)
        with pytest.raises(ContextChanged, match=r"bank\.Moved at position 2; nothing") as changed:
            await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=5), based_on=first)
        (told,) = changed.value.events
        seen = await app.answer(BalanceOf(branch=MAIN, account=ADA), freshness="latest")
        receipt = await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=5), based_on=seen)
    assert (told.position, told.type, told.version) == (2, "bank.Moved", 2)
    assert decode(told.data, Moved) == Moved(branch=MAIN, source=ADA, target=BOB, cents=70)
    assert sorted(told.tags) == ["account:ada", "account:bob", "branch:main"]
    assert receipt.position == 3


@pytest.mark.parametrize("names", STORED)
async def test_the_append_section_refuses_a_stale_screen_too(
    store_url: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes after the look for changes, and before the models are folded: only its condition finds it."""
    async with Application(bank(), store=store_url, projecting=False) as app:
        first = await app.execute(MoveOutside(branch=MAIN, source=ADA, target=BOB, cents=10))
        store = app.partition().store
        read, coming = store.read, [names]

        async def read_and_change(*wanted: Any, **options: Any) -> ReadResult:
            found = await read(*wanted, **options)
            while coming:
                await store_as_older_code(app.partition(), coming.pop())
            return found

        monkeypatch.setattr(store, "read", read_and_change)
        with pytest.raises(ContextChanged, match="position 2; nothing"):
            await app.execute(MoveOutside(branch=MAIN, source=BOB, target=ADA, cents=5), based_on=first)
        assert len([event async for event in app.events(ALL_EVENTS)]) == 2


@pytest.mark.parametrize("way", [MoveBound, MoveMapped])
@pytest.mark.parametrize("names", STORED)
async def test_a_dry_run_decides_over_former_names(store_url: str, names: str, way: type[Move]) -> None:
    """What would come of a command is judged at the head, whatever the history calls it; also on a stale screen."""
    async with Application(bank(), store=store_url) as app:
        first = await app.execute(way(branch=MAIN, source=ADA, target=BOB, cents=10))
        assert await app.can(way(branch=MAIN, source=ADA, target=BOB, cents=50))
        await store_as_older_code(app.partition(), names)
        verdict = await app.can(way(branch=MAIN, source=ADA, target=BOB, cents=50))
        assert verdict.rejected is not None
        assert verdict.rejected.facts == {"cents": 20}
        assert await app.can(way(branch=MAIN, source=ADA, target=BOB, cents=20))
        with pytest.raises(ContextChanged):
            await app.can(way(branch=MAIN, source=ADA, target=BOB, cents=20), based_on=first)
        assert len([event async for event in app.events(ALL_EVENTS)]) == 2


async def test_moves_in_one_batch_go_on_from_former_names(store_url: str) -> None:
    """Commands that share a batch decide on what older code has stored, and on each other's pending events."""
    async with Application(bank(), store=store_url) as app:
        await store_as_older_code(app.partition(), "all of it")
        moves = [way(branch=MAIN, source=ADA, target=BOB, cents=10) for way in WAYS for _ in range(5)]
        outcomes = await asyncio.gather(*map(app.execute, moves), return_exceptions=True)
        shown = await app.query(BalanceOf(branch=MAIN, account=ADA), freshness="latest")
    assert [isinstance(outcome, Receipt) for outcome in outcomes].count(True) == 3
    assert shown == Balance(account=ADA, cents=0)


async def test_a_retried_command_has_its_receipt_told_in_names_of_now(store_url: str) -> None:
    """Its outcome was kept by older code; nothing is decided again, whatever has come meanwhile."""
    old = BoundedContext("bank")

    class AcctId(Identity, tag="acct"): ...

    class OfficeId(Identity, tag="office"): ...

    class Transferred(Event):
        branch: OfficeId
        source: AcctId
        target: AcctId
        euros: str

    @old.command_handler
    def move(command: MoveBound) -> Transferred:
        source, target = AcctId(command.source), AcctId(command.target)
        return Transferred(branch=OfficeId(command.branch), source=source, target=target, euros="0.70")

    command = MoveBound(branch=MAIN, source=ADA, target=BOB, cents=70)
    async with Application(old, store=store_url) as app:
        first = await app.execute(command, command_id="move-1")
        if store_url == "memory:":  # it ends with its application
            return
    async with Application(bank(), store=store_url) as app:
        again = await app.execute(command, command_id="move-1", based_on=first)
        assert len([event async for event in app.events(ALL_EVENTS)]) == 1
    assert (again.position, again.events) == (1, (Moved(branch=MAIN, source=ADA, target=BOB, cents=70),))


# ── rows, and partitions ─────────────────────────────────────────────────────


@pytest.mark.parametrize("names", STORED)
async def test_rows_in_slices_have_it_each_once(store_url: str, names: str) -> None:
    """Each slice folds its own side of what was stored under former names; rebuilt it is the same."""
    async with Application(bank(slices=SLICES), store=store_url) as app:
        await store_as_older_code(app.partition(), names)
        await app.execute(MoveBound(branch=MAIN, source=BOB, target=ADA, cents=20))
        for _ in range(2):
            rows = [await app.query(BalanceOf(branch=MAIN, account=who), freshness="latest") for who in (ADA, BOB)]
            assert rows == [Balance(account=ADA, cents=50), Balance(account=BOB, cents=150)]
            await app.rebuilds.rebuild("bank.Balance")
        assert (await app.rebuilds.compare("bank.Balance")).same


@pytest.mark.parametrize("names", STORED)
async def test_partitions_have_their_own_former_names(names: str) -> None:
    """By identity, one that was renamed itself; what is stored in one partition is nothing to the other."""
    store = {"main": "memory:", "side": "memory:"}
    side = BranchId("side")
    async with Application(bank(), store=store, partition_by=BranchId) as app:
        await store_as_older_code(app.partition("main"), names)
        with pytest.raises(Rejected):
            await app.execute(MoveMapped(branch=MAIN, source=ADA, target=BOB, cents=31))
        await app.execute(MoveMapped(branch=side, source=ADA, target=BOB, cents=31))
        rows = [await app.query(BalanceOf(branch=branch, account=ADA), freshness="latest") for branch in (MAIN, side)]
    assert rows == [Balance(account=ADA, cents=30), Balance(account=ADA, cents=69)]


@pytest.mark.parametrize("names", STORED)
async def test_partitions_by_context_have_their_own_former_names(names: str) -> None:
    """A context that is a partition knows what its events and their identities were called."""

    class Opened(Event):
        desk: str

    other = BoundedContext("desk", events=[Opened])
    async with Application(bank(), other, store={"bank": "memory:", "desk": "memory:"}, partition_by="context") as app:
        await store_as_older_code(app.partition("bank"), names)
        with pytest.raises(Rejected):
            await app.execute(MoveBound(branch=MAIN, source=ADA, target=BOB, cents=31))
        shown = await app.query(BalanceOf(branch=MAIN, account=ADA), freshness="latest")
    assert shown == Balance(account=ADA, cents=30)


@pytest.mark.parametrize("names", STORED)
async def test_rows_across_partitions_have_it(names: str) -> None:
    """The merged log is asked by what is stored, too."""
    context = bank()

    class Total(ReadModel):
        one: Key[str]
        cents: int = 0

    class TotalMoved(Query[Total | None]):
        one: str

    @context.projection(commutative=True, key=lambda event: "all")
    def totals(row: Total, event: Moved) -> Total:
        return replace(row, cents=row.cents + event.cents)

    store = {"main": "memory:", "side": "memory:", "*": "memory:"}
    async with Application(context, store=store, partition_by=BranchId) as app:
        await store_as_older_code(app.partition("main"), names)
        receipt = await app.execute(MoveBound(branch=BranchId("side"), source=ADA, target=BOB, cents=5))
        await app.projected()
        assert await app.query(TotalMoved(one="all"), after=receipt) == Total(one="all", cents=75)


def test_a_scenario_has_an_upcast_and_renamed_event_as_any_other() -> None:
    """What is given is of now; models are folded twice, and the same is seen."""
    given = scenario(bank()).given(Moved(branch=MAIN, source=ADA, target=BOB, cents=70))
    given.when(MoveBound(branch=MAIN, source=ADA, target=BOB, cents=31)).then_rejected("not-enough", cents=30)
    given.then_row(Balance(account=ADA, cents=30))


# ── what an upcaster must not do ─────────────────────────


async def test_an_upcaster_that_changes_an_identity_is_refused(store_url: str) -> None:
    """The tags stay as they are stored: a decision on the new identity would never see the event (rule 20)."""
    context = bank()
    context.upcasters.clear()

    @context.upcaster(Moved, from_version=1)
    def to_carol(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**stored, "cents": 70, "target": "carol"}

    async with Application(context, store=store_url) as app:
        await store_as_older_code(app.partition(), "all of it")
        with pytest.raises(UnreadableEvent, match=r"'acct:bob'.*'account:carol'.*keep the identities"):
            await app.execute(MoveBound(branch=MAIN, source=ADA, target=BOB, cents=1))
