"""Fair shares: which worker is to hold which generation. Pure functions, for every read store that keeps leases.

Everybody who asks computes the same shares from the same facts, so that nobody has to be in charge. A generation stays
where it is unless its holder has two more than somebody else who wants it: what is balanced does not move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from diptych.read_side.read_store import LeaseKey

__all__ = ["Deal", "deal", "shares"]


class Deal(NamedTuple):
    """What one worker is to do about its leases.

    Attributes:
        kept: it holds them and goes on, the surplus included.
        taken: nobody holds them, and they are of its share.
        given_up: it holds them, and wants them no more.
        surplus: it holds them, and they are of somebody else's share.
    """

    kept: frozenset[LeaseKey]
    taken: frozenset[LeaseKey]
    given_up: frozenset[LeaseKey]
    surplus: frozenset[LeaseKey]


def deal(worker: str, wants: Mapping[str, Collection[LeaseKey]], last_holders: Mapping[LeaseKey, str | None]) -> Deal:
    """What a worker is to do about its leases.

    Args:
        worker: who asks.
        wants: of every live worker, the one who asks included.
        last_holders: every generation that there is, with who holds it, or held it last without releasing it.
    """
    there = {name: frozenset(wanted) & last_holders.keys() for name, wanted in wants.items()}
    held = {key: name for key, name in last_holders.items() if name is not None and key in there.get(name, ())}
    mine = frozenset(key for key, name in last_holders.items() if name == worker)
    kept = mine & there[worker]
    share = frozenset(key for key, name in shares(there, held).items() if name == worker)
    return Deal(kept, share - held.keys(), mine - kept, kept - share)


def shares(wants: Mapping[str, Collection[LeaseKey]], held: Mapping[LeaseKey, str]) -> dict[LeaseKey, str]:
    """Who is to hold each generation that anybody wants.

    Workers that want the same get the same number, give or take one. As few change hands as that allows.

    Args:
        wants: of every live worker.
        held: who holds what; each is a live worker that wants it.
    """
    wanting: dict[LeaseKey, list[str]] = {}
    for name in sorted(wants):
        for key in wants[name]:
            wanting.setdefault(key, []).append(name)
    shared, loads = dict(held), Counter(held.values())
    for key in sorted(wanting.keys() - held.keys(), key=lambda key: (len(wanting[key]), key)):
        shared[key] = _lightest(wanting[key], loads)
        loads[shared[key]] += 1
    while moving := _to_move(wanting, shared, loads):  # it ends: each move lowers the sum of the squared loads
        loads[shared[moving]] -= 1
        shared[moving] = _lightest(wanting[moving], loads)
        loads[shared[moving]] += 1
    return shared


def _to_move(
    wanting: Mapping[LeaseKey, list[str]], shared: Mapping[LeaseKey, str], loads: Mapping[str, int]
) -> LeaseKey | None:
    """The first of those that the greatest imbalance is about; None where all are balanced."""
    gains = {key: loads[name] - loads[_lightest(wanting[key], loads)] for key, name in shared.items()}
    key = min(gains, key=lambda key: (-gains[key], key), default=None)
    return None if key is None or gains[key] < 2 else key


def _lightest(names: list[str], loads: Mapping[str, int]) -> str:
    return min(names, key=lambda name: loads[name])
