"""What the store holds of which event type, and whether the code reads it: every event is decoded, none guessed at.

The schemas that the store keeps are compared as well, as they are when an application opens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from diptych.errors import HistoryPruned, InvalidMessage, NewerHistory, SchemaChanged, TagsChanged, UnreadableEvent
from diptych.event_store.coded_schemas import CodedSchemas
from diptych.event_store.digest import Moved
from diptych.event_store.event_store import EventStore, StoredType
from diptych.event_store.history import History
from diptych.event_store.pages import event_pages
from diptych.event_store.position import START, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode
from diptych.messages.schema import schema_fingerprint

__all__ = [
    "Break",
    "CheckedSchema",
    "HeldType",
    "IgnoredField",
    "LackingModel",
    "SplitType",
    "check_schema",
    "held_types",
]


class HeldType(msgspec.Struct, frozen=True):
    """An event type and version that the store holds events of.

    Attributes:
        type: the stored name.
        events: how many.
        first: the position of the first one.
        last: that of the last one.
        tags: the tag names that it was registered with.
        fingerprint: of its last schema and the places that give tags; empty where none is kept.
        since: the position from which on it is that schema's; None where none is kept.
    """

    type: str
    version: int
    events: int
    first: Position
    last: Position
    tags: tuple[str, ...] = ()
    fingerprint: str = ""
    since: Position | None = None


class Break(msgspec.Struct, frozen=True):
    """Events of one type and version that the code does not read, for one reason.

    Attributes:
        events: how many.
        position: of the first one.
        reason: what breaks, and what to do.
        skeleton: the upcaster that would read them, to be filled in; empty where none would.
    """

    type: str
    version: int
    events: int
    position: Position
    reason: str
    skeleton: str


class IgnoredField(msgspec.Struct, frozen=True):
    """A field that stored events have and that nothing reads: it was removed, or renamed without an upcaster."""

    type: str
    version: int
    field: str
    events: int
    position: Position


class SplitType(msgspec.Struct, frozen=True):
    """Events of one type and version that upcasters split.

    Attributes:
        events: how many are stored.
        parts: how many events of which type they are read as, by its stored name of now.
        none: how many of them are read as nothing at all.
    """

    type: str
    version: int
    events: int
    parts: dict[str, int]
    none: int


class LackingModel(msgspec.Struct, frozen=True):
    """A decision model that does not fold all events that newer code's does, as the store keeps it.

    Attributes:
        model: its name, qualified by context.
        version: that is kept of it, which a class that leaves them out on purpose has to pass.
        types: stored names of the events that it does not fold, in order.
        stored: whether there is any such event: where there is, commands that are decided on it end in NewerHistory.
    """

    model: str
    version: int
    types: list[str]
    stored: bool


class CheckedSchema(msgspec.Struct, frozen=True):
    """What became of a comparison of the code with all that is stored.

    Attributes:
        events: how many were looked at.
        types: of how many types and versions they are.
        breaks: what the code does not read; empty where all is well.
        ignored: what it reads without looking.
        split: what it reads as several events, or as none.
        lacking: its models that do not fold all that is kept of them.
    """

    events: int
    types: int
    breaks: list[Break]
    ignored: list[IgnoredField]
    split: list[SplitType]
    lacking: list[LackingModel] = []


async def held_types(store: EventStore, moved: Moved) -> list[HeldType]:
    """Every type and version that events are stored of, by name and version. Reads the whole history."""
    types = {(type.name, type.version): type for type in await store.stored_types()}
    found: dict[tuple[str, int], HeldType] = {}
    end = (await store.head()).position
    async for page in event_pages(store, START, end):
        for event in page:
            key, at = (event.type, event.version), event.position
            before = found.get(key)
            first, events = (at, 0) if before is None else (before.first, before.events)
            found[key] = HeldType(event.type, event.version, events + 1, first, at)
        moved(page[-1].position, end)
    return [_with_facts(found[key], types.get(key)) for key in sorted(found)]


def _with_facts(held: HeldType, stored: StoredType | None) -> HeldType:
    if stored is None or stored.facts is None:
        return held if stored is None else msgspec.structs.replace(held, tags=stored.tag_names)
    last = stored.facts.schemas[-1]
    fingerprint = schema_fingerprint(last.schema, stored.facts.tag_fields)
    return msgspec.structs.replace(held, tags=stored.tag_names, fingerprint=fingerprint, since=last.since)


async def check_schema(store: EventStore, history: History, contexts: Collection[str], moved: Moved) -> CheckedSchema:
    """Read every event with the code, as a fold of it would, and tell what it does not read.

    Args:
        store: where.
        history: reads with the event classes of the code.
        contexts: whose events the code has to know; those of others are none of its business.
        moved: told how far it is.
    """
    check, schemas = _Check(history, contexts), CodedSchemas(history.types)
    end = (await store.head()).position
    for stored in await store.stored_types():
        try:
            history.check_tags(stored)
            schemas.check(stored)
        except (TagsChanged, NewerHistory) as error:
            check.changed[stored.name, stored.version] = (str(error), "")
        except SchemaChanged as error:
            check.changed[stored.name, stored.version] = (str(error).partition("\n")[0], error.skeleton)
    async for page in event_pages(store, START, end):
        for event in page:
            check.look_at(event)
        moved(page[-1].position, end)
    return CheckedSchema(
        events=end,
        types=len(check.seen),
        breaks=list(check.breaks.values()),
        ignored=list(check.ignored.values()),
        split=list(check.split.values()),
    )


class _Check:
    """What was found so far.

    Attributes:
        changed: why the code does not fit what is stored of a type and version, where it does not; and the skeleton of
            the upcaster.
    """

    def __init__(self, history: History, contexts: Collection[str]) -> None:
        self.changed: dict[tuple[str, int], tuple[str, str]] = {}
        self.seen: set[tuple[str, int]] = set()
        self.breaks: dict[tuple[str, int, str], Break] = {}
        self.ignored: dict[tuple[str, int, str], IgnoredField] = {}
        self.split: dict[tuple[str, int], SplitType] = {}
        self._history = history
        self._contexts = contexts

    def look_at(self, recorded: RecordedEvent) -> None:
        known = self._history.types.stored_as(recorded.type)
        self.seen.add((recorded.type, recorded.version))
        if known is None and recorded.type.partition(".")[0] not in self._contexts:
            return
        try:
            parts = self._history.parts(recorded)
        except HistoryPruned:
            return
        except UnreadableEvent as error:
            self._breaks(recorded, error.reason, error.skeleton)
            return
        changed = self.changed.get((recorded.type, recorded.version))
        if changed is not None:
            self._breaks(recorded, *changed)
            return
        if self._history.splits(recorded):
            self._note_split(recorded, [self._history.types.of(type(event)).name for event in parts])
        elif known is not None and known.version == recorded.version:
            self._note_ignored(recorded, known.fields)

    def _note_split(self, recorded: RecordedEvent, names: Collection[str]) -> None:
        key = (recorded.type, recorded.version)
        before = self.split.get(key) or SplitType(*key, events=0, parts={}, none=0)
        parts = dict(before.parts)
        for name in names:
            parts[name] = parts.get(name, 0) + 1
        self.split[key] = SplitType(*key, before.events + 1, parts, before.none + (not names))

    def _breaks(self, recorded: RecordedEvent, reason: str, skeleton: str = "") -> None:
        """One for each skeleton of a type and version: reasons name positions, so each would be one of its own."""
        key = (recorded.type, recorded.version, skeleton)
        before = self.breaks.get(key)
        if before is None:
            self.breaks[key] = Break(recorded.type, recorded.version, 1, recorded.position, reason, skeleton)
        else:
            self.breaks[key] = msgspec.structs.replace(before, events=before.events + 1)

    def _note_ignored(self, recorded: RecordedEvent, fields: Collection[str]) -> None:
        try:
            names = decode(recorded.data, dict[str, Any]).keys() - fields
        except InvalidMessage:  # an array: it was read, and has no names
            return
        for name in names:
            key = (recorded.type, recorded.version, name)
            before = self.ignored.get(key)
            events, position = (0, recorded.position) if before is None else (before.events, before.position)
            self.ignored[key] = IgnoredField(recorded.type, recorded.version, name, events + 1, position)
