"""Golden files of events: what was stored once, kept beside the tests, and what the code of now reads of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.clock import SystemClock
from diptych.errors import InvalidMessage, UnreadableEvent
from diptych.event_store.history import History
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode, encode, to_plain
from diptych.messages.event import Event
from diptych.messages.unique_id import unique_bytes
from diptych.testing.difference import mapping_difference

__all__ = ["check_golden_events"]


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    """One of the events that a stored one has become: the stored name of its type now, and the fields of its class."""

    type: str
    read: dict[str, Any]


class _Golden(msgspec.Struct, forbid_unknown_fields=True):
    """One golden file.

    Attributes:
        stored: the data, as it was stored; never to be changed.
        tags: with which it was stored.
        read: the fields that the class of now has of it; or, where an upcaster splits it, its parts in order.
    """

    type: str
    version: int
    stored: dict[str, Any]
    tags: tuple[str, ...]
    read: dict[str, Any] | list[_Part]


def check_golden_events(
    *contexts: BoundedContext, folder: str | Path, examples: Iterable[Event] = (), update: bool = False
) -> None:
    """Read every golden file with the code of now, and compare; so a change of an event class does not go unnoticed.

    There has to be a file for each version that an upcaster leads away from, and one for each of the examples. So keep
    an example of every event in the test: before a class changes, its files are there already.

    Args:
        contexts: whose events and upcasters.
        folder: holds the files, `*.json`; to be committed.
        examples: events of now.
        update: writes the files that are missing for the examples, and what is read now where that is another. What
            was stored is never written anew. To be looked at before it is committed.

    Raises:
        AssertionError: a file is missing, is read as something else than before, or cannot be read at all; with how.
    """
    __tracebackhide__ = True
    for context in contexts:
        context.load()
    history = History(registration.event_types(contexts))
    place = Path(folder)
    known = {path: _loaded(path) for path in sorted(place.glob("*.json"))}
    for path, golden in known.items():
        _check(path, golden, history, update=update)
    for event in examples:
        _check_example(place, known, _golden(event, history), update=update)
    _check_upcasters(known.values(), history, place)


def _loaded(path: Path) -> _Golden:
    __tracebackhide__ = True
    try:
        return decode(path.read_bytes(), _Golden)
    except InvalidMessage as error:
        raise AssertionError(f"{path} is no golden file: {error}") from error


def _check(path: Path, golden: _Golden, history: History, *, update: bool) -> None:
    __tracebackhide__ = True
    recorded = RecordedEvent(
        position=Position(1),
        event_id=unique_bytes(),
        type=golden.type,
        version=golden.version,
        data=encode(golden.stored),
        tags=golden.tags,
        metadata=b"{}",
        recorded_at=SystemClock().now(),
    )
    try:
        read = _read(path, golden, history, recorded)
    except UnreadableEvent as error:
        raise AssertionError(
            f"{path}, a stored {golden.type} (version {golden.version}): {error.reason}\n{error.skeleton}"
        ) from error
    if read != golden.read and not update:
        told = _difference(f"{path} is read otherwise than before", golden.read, read)
        raise AssertionError(f"{told}\nIf that is meant, call this once with update=True")
    if read != golden.read:
        _write(path, msgspec.structs.replace(golden, read=read))


def _read(path: Path, golden: _Golden, history: History, recorded: RecordedEvent) -> dict[str, Any] | list[_Part]:
    __tracebackhide__ = True
    if history.splits(recorded):
        return [_Part(history.types.of(type(event)).name, to_plain(event)) for event in history.parts(recorded)]
    event = history.event(recorded)
    stored, tags = history.types.tags_now(golden.tags), set(history.types.of(type(event)).tags(event))
    if stored != tags:
        raise AssertionError(f"{path}: it is stored with the tags {sorted(stored)}, and read with {sorted(tags)}")
    found: dict[str, Any] = to_plain(event)
    return found


def _difference(title: str, before: dict[str, Any] | list[_Part], now: dict[str, Any] | list[_Part]) -> str:
    if isinstance(before, list) or isinstance(now, list):
        parts = [
            [(part.type, part.read) for part in read] if isinstance(read, list) else read for read in (before, now)
        ]
        return f"{title} (- expected, + actual):\n  - {parts[0]}\n  + {parts[1]}"
    return mapping_difference(title, before, now) or f"{title}: there are {sorted(now.keys() - before.keys())} too"


def _golden(event: Event, history: History) -> _Golden:
    found = history.types.of(type(event))
    data, settled = found.codec.settle(event)
    stored = decode(data, dict[str, Any])
    return _Golden(found.name, found.version, stored, found.tags(settled), stored)


def _check_example(place: Path, known: dict[Path, _Golden], golden: _Golden, *, update: bool) -> None:
    __tracebackhide__ = True
    alike = [each for each in known.values() if (each.type, each.version) == (golden.type, golden.version)]
    if any((each.stored, each.tags) == (golden.stored, golden.tags) for each in alike):
        return
    number = f"-{len(alike) + 1}" if alike else ""
    path = place / f"{golden.type}.v{golden.version}{number}.json"
    if not update:
        raise AssertionError(
            f"{path} is missing: no golden file has this example of {golden.type} (version {golden.version}). If its "
            "fields have changed, should its version be raised? Then call this once with update=True"
        )
    known[path] = golden
    _write(path, golden)


def _write(path: Path, golden: _Golden) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(encode(golden), indent=2) + b"\n")


def _check_upcasters(known: Iterable[_Golden], history: History, place: Path) -> None:
    __tracebackhide__ = True
    there = {(golden.type, golden.version) for golden in known}
    for found in history.types:
        names: Sequence[str] = (found.name, *found.formerly)
        for step in found.upcasters:
            if not any((name, step.from_version) in there for name in names):
                raise AssertionError(
                    f"no golden file in {place} tries the upcaster {step.name}: write one of {' or '.join(names)} "
                    f"(version {step.from_version}), with its type, version, stored, tags and read"
                )
