"""Commands beside a process of older code, whatever comes when: a move that was taken was covered where it stands."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import Application, Receipt
from diptych.application.registration import event_types
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.history import History
from tests.renamed_bank import MAIN, STORED, WAYS, AccountId, Balance, BalanceOf, Move, Moved, bank, store_as_older_code

ACCOUNTS = [AccountId("ada"), AccountId("bob"), AccountId("cyd")]
pairs = st.permutations(ACCOUNTS).map(lambda found: found[:2])
moves = st.tuples(st.sampled_from(WAYS), pairs, st.integers(1, 150), st.booleans())
of_older_code = st.tuples(st.sampled_from(sorted(STORED)), pairs)
rounds = st.lists(st.lists(st.one_of(moves, of_older_code), max_size=8), max_size=5)


async def run(app: Application, steps: list[list[Any]]) -> None:
    """Each round at once; some moves on the basis of the last receipt."""
    basis: Receipt | None = None
    for step in steps:
        doing: list[Any] = []
        for way, (source, target), *rest in step:
            if isinstance(way, str):
                doing.append(store_as_older_code(app.partition(), way, source, target))
                continue
            cents, based = rest
            move: Move = way(branch=MAIN, source=source, target=target, cents=cents)
            doing.append(app.execute(move, based_on=basis if based else None))
        for outcome in await asyncio.gather(*doing, return_exceptions=True):
            basis = outcome if isinstance(outcome, Receipt) else basis


@settings(max_examples=60, deadline=None)
@given(steps=rounds)
def test_g3_a_decision_over_former_names_equals_a_serial_execution(steps: list[list[Any]]) -> None:
    """No move of this code takes what an account has not, counting what older code has stored before it."""
    history = History(event_types([bank()]))

    async def check() -> None:
        async with Application(bank(slices=2)) as app:
            await run(app, steps)
            balances = dict.fromkeys(ACCOUNTS, 100)
            async for recorded in app.events(ALL_EVENTS):
                moved = history.event(recorded)
                assert isinstance(moved, Moved)
                mine = recorded.type == "bank.Moved" and "branch:main" in recorded.tags
                assert not mine or balances[moved.source] >= moved.cents, recorded
                balances[moved.source] -= moved.cents
                balances[moved.target] += moved.cents
            for account, cents in balances.items():
                shown = await app.query(BalanceOf(branch=MAIN, account=account), freshness="latest")
                assert (shown or Balance(account=account)).cents == cents

    asyncio.run(check())
