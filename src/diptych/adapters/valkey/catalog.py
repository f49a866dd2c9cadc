"""The catalog: which generations there are, how far they are, and who has them on lease.

It is read whole, what is to change is told in Python, as on any other store, and a script changes it if it is still as
it was read (`CHANGE`). Writes of rows do not touch what such a change rests on, so that they rarely are in its way.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from diptych.adapters.valkey.framing import Taken, frames
from diptych.adapters.valkey.rows import table_rows
from diptych.event_store.position import Place, Position
from diptych.event_store.timestamp import moment, to_microseconds
from diptych.read_side.lease_shares import deal
from diptych.read_side.partitions import kept, reaches, split, taken_up, whole
from diptych.read_side.read_store import Generation, Leased, LeaseKey, Table

__all__ = [
    "Catalog",
    "Change",
    "build_name",
    "creation",
    "drop",
    "lease",
    "overdue",
    "place_text",
    "release",
    "rest_text",
    "slices_of",
    "splitting",
    "switch",
    "taking_up",
]

TABLES_CACHED = 256
"""Forms of tables that are kept at hand."""

_encode = msgspec.json.encode


class _Form(msgspec.Struct, array_like=True, frozen=True):
    """What does not change about a generation."""

    name: str
    number: int
    slices: int
    table: Table | None


class _Worker(msgspec.Struct, array_like=True, frozen=True):
    """Somebody who asks for leases: until when, and for which."""

    until_us: int
    wanted: list[LeaseKey]


class Change(NamedTuple):
    """A change of the catalog.

    Attributes:
        held: what else has to be as it was read: the name behind the prefix, a field, its text.
        steps: what is done, in the words of the script.
        tell: whether who waits for a change is woken.
    """

    held: Sequence[tuple[bytes, bytes, bytes | None]] = ()
    steps: Sequence[tuple[bytes | None, ...]] = ()
    tell: bool = True

    def arguments(self, version: bytes, origin: bytes) -> Iterable[bytes | None]:
        """For the script `CHANGE`."""
        yield from (origin, b"1" if self.tell else b"0", version, b"%d" % len(self.held))
        yield from itertools.chain.from_iterable(self.held)
        yield b"%d" % len(self.steps)
        yield from itertools.chain.from_iterable(self.steps)


class Catalog:
    """What there was when it was read.

    Attributes:
        now_us: the server's time.
        version: goes up with each change.
        run: which run of which server was known last; see `lease`.
        numbers: the last number of each name.
        builds: the slices of each generation, in order.
    """

    def __init__(self, given: Iterable[bytes | None]) -> None:
        taken = Taken(given)
        self.now_us = taken.number()
        self.version = taken.text()
        self.run = taken.maybe()
        self.numbers = {name.decode(): int(number) for name, number in taken.mapping().items()}
        self.holders = {_lease_key(key): holder.decode() for key, holder in taken.mapping().items()}
        self._workers = taken.mapping()
        self.builds: dict[tuple[str, int], list[Generation]] = {}
        for name in taken:
            live, kept_one, fields = taken.maybe(), taken.maybe(), taken.mapping()
            slices = slices_of(fields, live, kept_one)
            if slices:
                self.builds[(name or b"").decode(), slices[0].number] = slices

    def of(self, name: str) -> dict[int, list[Generation]]:
        """The generations of a name."""
        return {number: slices for (of, number), slices in self.builds.items() if of == name}

    def live(self, name: str) -> list[Generation] | None:
        """The slices of the one that answers queries."""
        return next((slices for slices in self.of(name).values() if slices[0].live), None)

    @property
    def slices(self) -> dict[LeaseKey, Generation]:
        """All slices of all generations, by name, number and slice."""
        return {slice.lease_key: slice for _, slices in sorted(self.builds.items()) for slice in slices}

    def workers(self, but: str) -> dict[str, _Worker]:
        """Everybody else who asks for leases."""
        found = {name.decode(): msgspec.json.decode(text, type=_Worker) for name, text in self._workers.items()}
        return {name: worker for name, worker in found.items() if name != but}


# ── generations as they are stored ───────────────────────────────────────────


def build_name(name: str, number: int) -> bytes:
    """What a generation's keys are named by."""
    return f"{name}:{number}".encode()


def place_text(place: Place) -> bytes:
    """A place, as it is stored and compared."""
    return b"%b %d %b" % (place.history_id.hex().encode(), place.position, place.event_id.hex().encode())


def rest_text(slice: Generation) -> bytes:
    """What else a write changes of a slice."""
    at = slice.recorded_at
    return _encode((slice.stopped, None if at is None else to_microseconds(at)))


def slices_of(fields: Mapping[bytes, bytes], live: bytes | None, kept_one: bytes | None) -> list[Generation]:
    """The slices of a generation.

    Args:
        fields: of its hash; none where it is gone.
        live: the number of the one of this name that answers.
        kept_one: that of the one that is kept, and until when.
    """
    if b"form" not in fields:
        return []
    form = _form(fields[b"form"])
    is_live = live == b"%d" % form.number
    kept_until = None if kept_one is None else _kept_until(kept_one, form.number)
    return [_slice(form, number, fields, live=is_live, kept_until=kept_until) for number in range(form.slices)]


def _kept_until(kept_one: bytes, number: int) -> dt.datetime | None:
    kept_number, until_us = map(int, kept_one.split())
    return moment(until_us) if kept_number == number else None


def _slice(
    form: _Form, number: int, fields: Mapping[bytes, bytes], *, live: bool, kept_until: dt.datetime | None
) -> Generation:
    history_id, position, event_id = fields[b"%d.at" % number].split()
    stopped, recorded_us = msgspec.json.decode(fields[b"%d.rest" % number], type=tuple[str, int | None])
    barrier, slices_next = msgspec.json.decode(fields[b"%d.barrier" % number], type=tuple[int | None, int])
    return Generation(
        form.name,
        form.number,
        fields[b"fingerprint"].decode(),
        form.table,
        live,
        Place(bytes.fromhex(history_id.decode()), Position(int(position)), bytes.fromhex(event_id.decode())),
        int(fields[b"%d.epoch" % number]),
        stopped,
        None if recorded_us is None else moment(recorded_us),
        number,
        form.slices,
        None if barrier is None else Position(barrier),
        slices_next,
        kept_until,
    )


@lru_cache(TABLES_CACHED)
def _form(text: bytes) -> _Form:
    return msgspec.json.decode(text, type=_Form)


def _stored(slices: Sequence[Generation]) -> dict[bytes, bytes]:
    """The fields of a generation's hash."""
    first = slices[0]
    fields = {
        b"form": _encode(_Form(first.name, first.number, first.slices, first.table)),
        b"fingerprint": first.fingerprint.encode(),
    }
    for slice in slices:
        fields |= {
            b"%d.at" % slice.slice: place_text(slice.checkpoint),
            b"%d.epoch" % slice.slice: b"%d" % slice.epoch,
            b"%d.rest" % slice.slice: rest_text(slice),
            b"%d.barrier" % slice.slice: _encode((slice.barrier, slice.slices_next)),
        }
    return fields


def _as_read(slices: Sequence[Generation]) -> list[tuple[bytes, bytes, bytes | None]]:
    """That slices are where they were."""
    name = b":build:" + build_name(slices[0].name, slices[0].number)
    return [
        held
        for slice in slices
        for held in (
            (name, b"%d.at" % slice.slice, place_text(slice.checkpoint)),
            (name, b"%d.epoch" % slice.slice, b"%d" % slice.epoch),
            (name, b"%d.rest" % slice.slice, rest_text(slice)),
        )
    ]


def _sets(build: bytes, fields: Mapping[bytes, bytes | None]) -> list[tuple[bytes | None, ...]]:
    return [(b"set", build, b"build", field, text) for field, text in fields.items()]


# ── changes ──────────────────────────────────────────────────────────────────


def creation(
    catalog: Catalog, name: str, fingerprint: str, table: Table | None, checkpoint: Place, *, live: bool, slices: int
) -> tuple[list[Generation], Change]:
    """A new generation."""
    number = catalog.numbers.get(name, 0) + 1
    made = whole(Generation(name, number, fingerprint, table, live, checkpoint), slices)
    build = build_name(name, number)
    indexes = [] if table is None else table_rows(table).indexes
    steps: list[tuple[bytes | None, ...]] = [
        (b"plain", b"numbers", name.encode(), b"%d" % number),
        (b"plain", b"builds", build, name.encode()),
        (b"plain", b"indexes", build, frames(indexes)),
        *_sets(build, _stored(made)),
    ]
    if live:
        steps.append(_live(name, number))
    return made, Change((), steps)


def taking_up(slices: Sequence[Generation]) -> tuple[list[Generation], Change]:
    """That one that was kept is being built again."""
    again = taken_up(slices)
    return again, Change(_as_read(slices), [_kept(slices[0].name, None), *_changing(slices, again)])


def switch(catalog: Catalog, name: str, number: int, keep_s: float) -> tuple[bool, Change | None]:
    """That a generation answers queries, what did is kept, and all others go: whether it answers, and what changes."""
    builds = catalog.of(name)
    chosen, current = builds.pop(number, None), catalog.live(name)
    if chosen is None or chosen[0].live:
        return chosen is not None, None
    if current and not reaches(chosen, current):
        return False, None
    steps: list[tuple[bytes | None, ...]] = []
    kept_one = None
    if current and keep_s > 0:
        until = moment(catalog.now_us + round(keep_s * 1_000_000))
        kept_one = b"%d %d" % (current[0].number, to_microseconds(until))
        steps += _changing(current, kept(current, until))
        del builds[current[0].number]
    for slices in builds.values():
        steps += _dropping(catalog, slices)
    steps += [_live(name, number), _kept(name, kept_one)]
    return True, Change([*_as_read(chosen), *(_as_read(current) if current else ())], steps)


def overdue(catalog: Catalog) -> Change | None:
    """That all go that were kept until now; None where there are none."""
    ends = [(slices[0].kept_until, slices) for slices in catalog.builds.values()]
    now = moment(catalog.now_us)
    gone = [slices for until, slices in ends if until is not None and until <= now]
    return Change((), [step for slices in gone for step in _dropping(catalog, slices)]) if gone else None


def drop(catalog: Catalog, name: str, number: int) -> Change:
    """That a generation goes."""
    slices = catalog.of(name).get(number)
    return Change() if slices is None else Change((), _dropping(catalog, slices))


def _live(name: str, number: int | None) -> tuple[bytes | None, ...]:
    return b"set", name.encode(), b"live", b"number", None if number is None else b"%d" % number


def _kept(name: str, kept_one: bytes | None) -> tuple[bytes | None, ...]:
    return b"set", name.encode(), b"live", b"kept", kept_one


def _changing(slices: Sequence[Generation], changed: Sequence[Generation]) -> list[tuple[bytes | None, ...]]:
    """What of a generation's hash is to be otherwise."""
    old, new = _stored(slices), _stored(changed)
    different = {field: new.get(field) for field in old | new if old.get(field) != new.get(field)}
    return _sets(build_name(slices[0].name, slices[0].number), different)


def _dropping(catalog: Catalog, slices: Sequence[Generation]) -> list[tuple[bytes | None, ...]]:
    first = slices[0]
    gone = [slice.lease_key for slice in slices if slice.lease_key in catalog.holders]
    steps = [(b"drop", build_name(first.name, first.number)), *(_holder(key, None) for key in gone)]
    if first.live:
        steps.append(_live(first.name, None))
    if first.kept_until is not None:
        steps.append(_kept(first.name, None))
    return steps


def splitting(catalog: Catalog, name: str, number: int, slices: int | None) -> tuple[bool, Change | None]:
    """That a generation has another number of slices: whether there is no barrier then, and what changes."""
    found = catalog.of(name).get(number)
    if found is None:
        return True, None
    changed = split(found, slices)
    done = changed[0].barrier is None
    if changed == found:
        return done, None
    steps = _changing(found, changed)
    if len(changed) != len(found):
        steps += [_holder(slice.lease_key, None) for slice in found if slice.lease_key in catalog.holders]
    return done, Change(_as_read(found), steps)


# ── leases ───────────────────────────────────────────────────────────────────


def lease(
    catalog: Catalog, worker: str, wanted: Collection[LeaseKey], ttl_s: float, run: bytes
) -> tuple[Leased, Change]:
    """Who gets what when somebody asks.

    Where the server is another one than before, or has been started anew, it may have lost what it acknowledged last.
    Nobody is to go on from what he remembers: all epochs go up, so that everybody looks where rows really are.
    """
    there = catalog.slices
    others = catalog.workers(but=worker)
    alive = {name: found for name, found in others.items() if found.until_us > catalog.now_us}
    wants: dict[str, Collection[LeaseKey]] = {name: found.wanted for name, found in alive.items()}
    wants[worker] = wanted
    last_holders = {key: catalog.holders.get(key) for key in there}
    dealt = deal(worker, wants, last_holders)
    overtaken = {key for key in dealt.taken if last_holders[key] not in (None, worker)}
    me = _Worker(catalog.now_us + round(ttl_s * 1_000_000), sorted(wanted))
    steps: list[tuple[bytes | None, ...]] = [(b"plain", b"workers", worker.encode(), _encode(me))]
    steps += [(b"plain", b"workers", name.encode(), None) for name in others.keys() - alive.keys()]
    steps += [_holder(key, worker) for key in sorted(dealt.taken)]
    steps += [_holder(key, None) for key in sorted(dealt.given_up)]
    raised = set(there) if run != catalog.run else dealt.given_up | overtaken
    steps += [_epoch(key) for key in sorted(raised)]
    steps.append((b"plain", b"store", b"run", run))
    epochs = {key: there[key].epoch + (key in raised) for key in dealt.kept | dealt.taken}
    leased = Leased(epochs, dealt.surplus, frozenset(wanted).difference(there))
    return leased, Change((), steps, tell=bool(dealt.given_up) or run != catalog.run)


def release(catalog: Catalog, worker: str, keys: Collection[LeaseKey] | None) -> Change | None:
    """That somebody gives up leases: these, or all."""
    there = catalog.slices
    mine = [key for key, holder in catalog.holders.items() if holder == worker and key in there]
    steps = [step for key in mine if keys is None or key in keys for step in (_holder(key, None), _epoch(key))]
    if keys is None:
        steps.append((b"plain", b"workers", worker.encode(), None))
    return Change((), steps) if steps else None


def _holder(key: LeaseKey, worker: str | None) -> tuple[bytes | None, ...]:
    return b"plain", b"holders", _encode(key), None if worker is None else worker.encode()


def _epoch(key: LeaseKey) -> tuple[bytes | None, ...]:
    return b"epoch", build_name(*key[:2]), b"%d.epoch" % key[2]


def _lease_key(text: bytes) -> LeaseKey:
    name, number, slice = msgspec.json.decode(text, type=tuple[str, int, int])
    return name, number, slice
