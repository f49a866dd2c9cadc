"""Slices of a projection: which one a row belongs to, and how their number changes (rule 37). Pure functions.

A key belongs to one of `SLICES_MAX` for good; those that a projection is split into are groups of them. So
what one grouping shows of a key can be compared with what another one does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from zlib import crc32

from msgspec.structs import replace

from diptych.event_store.position import Position
from diptych.read_side.read_store import Generation

__all__ = ["SLICES_MAX", "found_again", "kept", "reaches", "slice_of", "split", "taken_up", "whole"]

SLICES_MAX = 256
"""Into how many slices a projection can be split: `partitions=` is 1 to this."""


def slice_of(key: str, slices: int) -> int:
    """The slice, from 0, that a key (a JSON array) belongs to: the same in every process, version and store."""
    return crc32(key.encode()) % SLICES_MAX * slices // SLICES_MAX


def whole(first: Generation, slices: int) -> list[Generation]:
    """All slices of a generation that are where the first one is."""
    return [replace(first, slice=number, slices=slices) for number in range(slices)]


def split(slices: Sequence[Generation], into: int | None) -> list[Generation]:
    """The slices of a generation after it was asked to have another number; see `ReadStore.split`.

    Args:
        slices: all that it has, in order.
        into: how many it is to have; None: as many as it was asked to have before.
    """
    first = slices[0]
    into = into or first.slices_next or first.slices
    if into == first.slices:
        return [replace(each, barrier=None, slices_next=0) for each in slices]
    if len({each.checkpoint for each in slices}) == 1:
        epoch = max(each.epoch for each in slices) + 1
        return whole(replace(first, epoch=epoch, stopped="", barrier=None, slices_next=0), into)
    if any(each.stopped for each in slices):  # it would hold up all the others: they go on, and are asked again
        return [replace(each, barrier=None, slices_next=0) for each in slices]
    if first.slices_next == into:  # asked before: who has come there waits for the others
        return list(slices)
    barrier = max(each.checkpoint.position for each in slices)
    return [replace(each, epoch=each.epoch + 1, barrier=barrier, slices_next=into) for each in slices]


def kept(slices: Sequence[Generation], until: dt.datetime) -> list[Generation]:
    """The slices of a generation that answers no more, and is kept; whoever writes to it is to learn of that."""
    return [replace(each, live=False, kept_until=until, epoch=each.epoch + 1) for each in slices]


def taken_up(slices: Sequence[Generation]) -> list[Generation]:
    """The slices of a generation that was kept, and is to answer again once it has caught up."""
    return [replace(each, kept_until=None, epoch=each.epoch + 1) for each in slices]


def found_again(builds: Mapping[int, Sequence[Generation]], fingerprint: str) -> Sequence[Generation]:
    """The generation of some code among all those of a name, by number: the live one, or else the newest; or none."""
    same = [slices for slices in builds.values() if slices[0].fingerprint == fingerprint]
    return max(same, key=lambda slices: (slices[0].live, slices[0].number), default=())


def reaches(chosen: Sequence[Generation], live: Sequence[Generation]) -> bool:
    """Whether every key shows at least as much of the history in one generation as in another.

    Args:
        chosen: all slices of the one, in order.
        live: all slices of the other, in order; may be empty.
    """
    pairs = ((_position(chosen, n), _position(live, n)) for n in range(SLICES_MAX)) if live else ()
    return all(mine >= theirs for mine, theirs in pairs)


def _position(slices: Sequence[Generation], logical: int) -> Position:
    return slices[logical * len(slices) // SLICES_MAX].checkpoint.position
