"""Fair shares of leases: whoever comes and goes, everything is held by one, evenly, and settles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.adapters.memory.read_store import MemoryReadStore
from diptych.read_side.lease_shares import deal, shares
from diptych.read_side.read_store import LeaseKey
from diptych.testing.contracts.read_store_cases import place

WORKERS = "abcde"
KEYS: list[LeaseKey] = [(f"school.n{n}", 1, 0) for n in range(9)]
LEASE_S, RENEW_S = 10.0, 3.0
ROUNDS = 12
"""Of renewals, after which everything has settled: the dead are forgotten, and what was theirs is shared out."""

some_keys = st.frozensets(st.sampled_from(KEYS))
wants_of_all = st.dictionaries(st.sampled_from(WORKERS), some_keys, min_size=1)
last_holders_of_all = st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(WORKERS))


def held_of(wants: Mapping[str, frozenset[LeaseKey]], holders: Mapping[LeaseKey, str | None]) -> dict[LeaseKey, str]:
    return {key: name for key, name in holders.items() if name is not None and key in wants.get(name, ())}


@given(wants_of_all, last_holders_of_all)
def test_everything_wanted_has_one_who_wants_it(
    wants: dict[str, frozenset[LeaseKey]], holders: dict[LeaseKey, str | None]
) -> None:
    """And nothing else is shared out."""
    shared = shares(wants, held_of(wants, holders))
    assert shared.keys() == frozenset[LeaseKey]().union(*wants.values())
    assert all(key in wants[name] for key, name in shared.items())


@given(wants_of_all, last_holders_of_all)
def test_nobody_has_two_more_than_another_who_wants_it(
    wants: dict[str, frozenset[LeaseKey]], holders: dict[LeaseKey, str | None]
) -> None:
    """So that those who want the same have the same number, give or take one."""
    shared = shares(wants, held_of(wants, holders))
    loads = Counter(shared.values())
    for key, name in shared.items():
        assert all(loads[name] - loads[other] < 2 for other in wants if key in wants[other])


@given(wants_of_all, last_holders_of_all)
def test_what_is_balanced_stays_where_it_is(
    wants: dict[str, frozenset[LeaseKey]], holders: dict[LeaseKey, str | None]
) -> None:
    """Shares shared out again are the same."""
    shared = shares(wants, held_of(wants, holders))
    assert shares(wants, shared) == shared


@settings(max_examples=500)
@given(st.integers(1, 5), st.lists(st.sampled_from("aaaabbbcde"), min_size=len(KEYS), max_size=len(KEYS)))
def test_no_more_changes_hands_than_has_to(count: int, holders: list[str]) -> None:
    """Where all want the same, a holder loses only what is past its even share."""
    wants = dict.fromkeys(WORKERS[:count], frozenset(KEYS))
    held = held_of(wants, dict(zip(KEYS, holders, strict=True)))
    shared = shares(wants, held)
    before, after = Counter(held.values()), Counter(shared.values())
    for name in wants:
        moved = sum(shared[key] != name for key in held if held[key] == name)
        assert moved == max(0, before[name] - after[name])
        assert moved <= max(0, before[name] - len(KEYS) // count)
        assert after[name] <= ceil(len(KEYS) / count)


@given(wants_of_all, last_holders_of_all)
def test_a_deal_takes_nothing_from_the_living(
    wants: dict[str, frozenset[LeaseKey]], holders: dict[LeaseKey, str | None]
) -> None:
    """What is taken was nobody's; what is kept or given up was the worker's; only what is there is dealt."""
    held = held_of(wants, holders)
    for worker, wanted in wants.items():
        dealt = deal(worker, wants, holders)
        mine = {key for key, name in holders.items() if name == worker}
        assert dealt.taken <= wanted & (holders.keys() - held.keys())
        assert dealt.kept | dealt.given_up == mine
        assert dealt.kept == mine & wanted
        assert dealt.surplus <= dealt.kept


@given(wants_of_all, last_holders_of_all)
def test_everybody_finds_the_same_shares(
    wants: dict[str, frozenset[LeaseKey]], holders: dict[LeaseKey, str | None]
) -> None:
    """In whatever order a store gave them the facts."""
    held = held_of(wants, holders)
    assert shares(dict(reversed(wants.items())), dict(reversed(held.items()))) == shares(wants, held)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(WORKERS), st.sampled_from(["comes", "dies", "leaves"]), st.integers(1, 9)),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_whoever_comes_and_goes_everything_settles(events: list[tuple[str, str, int]], chance: object) -> None:
    """At no time are there two live holders; soon after the last change every one has its share, and keeps it."""

    async def run() -> None:
        now = [0.0]
        store = MemoryReadStore(lambda: now[0])
        await store.open()
        for name, *_ in KEYS:
            await store.create_generation(name, "1", None, place(0), live=True)
        wants: dict[str, list[LeaseKey]] = {}

        async def renewed() -> dict[str, set[LeaseKey]]:
            held: dict[str, set[LeaseKey]] = {}
            for worker in sorted(wants, key=lambda _: chance.random()):  # type: ignore[attr-defined]
                leased = await store.lease(worker, wants[worker], LEASE_S)
                await store.release(worker, leased.surplus)
                held[worker] = leased.epochs.keys() - leased.surplus
                others = [key for other, keys in held.items() if other != worker for key in keys]
                assert held[worker].isdisjoint(others)
            return held

        for worker, what, count in events:
            if what == "comes":
                wants.setdefault(worker, KEYS[:count])
            elif wants.pop(worker, None) is not None and what == "leaves":
                await store.release(worker)
            await renewed()
            now[0] += RENEW_S
        settled: dict[str, set[LeaseKey]] = {}
        for _ in range(ROUNDS):
            settled = await renewed()
            now[0] += RENEW_S
        assert await renewed() == settled
        wanted = {key for keys in wants.values() for key in keys}
        assert sorted(key for keys in settled.values() for key in keys) == sorted(wanted)
        await store.close()

    asyncio.run(run())
