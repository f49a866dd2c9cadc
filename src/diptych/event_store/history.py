"""The history as events: what the store holds as bytes, read back as the classes of this application."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from diptych.errors import ConfigurationError, HistoryPruned, InvalidMessage, NewerHistory, TagsChanged, UnreadableEvent
from diptych.event_store.coded_schemas import CodedSchemas
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import EventStore, StoredType
from diptych.event_store.position import START
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import retagged
from diptych.messages.codec import decode, encode
from diptych.messages.envelope import Envelope, event_context
from diptych.messages.event import Event, EventContext
from diptych.messages.registry import EventType, EventTypes
from diptych.messages.upcaster import UpcastFailed, skeleton, split_apart, stored_fields

__all__ = ["History"]

FIRST_PAGE_EVENTS = 100
"""Events read at once while the first one of an unknown type is looked for."""
EVENT_PARTS_MAX = 1_000
"""Events that one stored event may have become."""


class History:
    """Reads recorded events with the event classes of an application."""

    def __init__(self, types: EventTypes) -> None:
        self.types = types

    def parts(self, recorded: RecordedEvent) -> Sequence[Event]:
        """What is stored as one event, as code of now reads it: one, or several in order, or none. See `event`.

        Raises:
            UnreadableEvent: see `event`; or a part has a tag that the stored event has not, or there are too many.
        """
        found = self._splitting(recorded)
        if found is None or found.upcasters.missing(recorded.version) is not None:
            return (self.event(recorded),)
        stored, parts = self.types.tags_now(recorded.tags), self._split(found, recorded)
        for event in parts:
            self._check_part(recorded, event, stored)
        return parts

    def splits(self, recorded: RecordedEvent) -> bool:
        """Whether what is stored may be several events now, or none."""
        return self._splitting(recorded) is not None

    def matching(self, recorded: RecordedEvent, wanted: QueryItem | EventQuery) -> list[tuple[int, Event]]:
        """The parts of a recorded event that are meant by names and tags of now, each with its ordinal among all.

        Raises:
            UnreadableEvent: see `parts`.
        """
        found = [(ordinal, event, self.types.of(type(event))) for ordinal, event in enumerate(self.parts(recorded))]
        return [(ordinal, event) for ordinal, event, of in found if wanted.matches(of.name, of.tags(event))]

    def holds(self, wanted: EventQuery) -> Callable[[RecordedEvent], bool] | None:
        """Tells of what is stored whether a query, by names of now, means it or a part of it.

        None where nothing else is found by `stored_query`: none of the types that it names may be a part.

        Raises, when asked:
            UnreadableEvent: see `parts`.
        """
        types = self.types
        if not any(types.split_names(name) for item in wanted.items for name in item.types):
            return None

        def is_meant(recorded: RecordedEvent) -> bool:
            found, tags = types.stored_as(recorded.type), types.tags_now(recorded.tags)
            if wanted.matches(recorded.type if found is None else found.name, tags):
                return True
            if not recorded.data:
                return True  # which parts it had nobody can tell any more
            return found is not None and bool(self.matching(recorded, wanted))

        return is_meant

    def tags(self, recorded: RecordedEvent) -> tuple[str, ...]:
        """The tags that code of now gives a recorded event, whatever it is tagged with: those of all its parts.

        Raises:
            UnreadableEvent: see `event`.
        """
        found = self._splitting(recorded)
        if found is None or found.upcasters.missing(recorded.version) is not None:
            parts = [self.event(recorded, tagged_alike=False)]
        else:
            parts = self._split(found, recorded)
        return tuple(dict.fromkeys(tag for event in parts for tag in self.types.of(type(event)).tags(event)))

    def check_tagged(self, recorded: RecordedEvent, event: Event) -> None:
        """Make sure that a recorded event, which is read as one, is tagged as this code would tag it.

        Raises:
            UnreadableEvent: it was tagged anew since this process opened the store.
        """
        tags = self.types.of(type(event)).tags(event)
        if self.types.tags_now(recorded.tags) != set(tags):
            raise self._unreadable(
                recorded,
                f"it is tagged {list(recorded.tags)}, and this code would tag it {list(tags)}: it was tagged anew "
                "(diptych retag). Start the process again, with the code that tags it so",
            )

    def _splitting(self, recorded: RecordedEvent) -> EventType | None:
        """Its type, where an event of its version may be several now, or none."""
        found = self.types.stored_as(recorded.type) if recorded.type in self.types.splitting else None
        return None if found is None or found.upcasters.split(recorded.version) is None else found

    def event(self, recorded: RecordedEvent, *, tagged_alike: bool = True) -> Event:
        """The event as an instance of its class, upcast where it was stored as an older version.

        One that may be several now, or none, is read by `parts`.

        Args:
            recorded: as it is stored.
            tagged_alike: whether what is upcast has to have the tags that are stored.

        Raises:
            UnreadableEvent: no class is stored under that name, nothing upcasts that version, an upcaster fails or
                changes an identity, or its fields do not fit.
            NewerHistory: its version is newer than that of the class.
            HistoryPruned: its data were dropped.
        """
        found = self.types.stored_as(recorded.type)
        if found is None:
            raise self._unreadable(
                recorded,
                "this application has no event of that name. If the class was renamed, say what it was, "
                f'class NewName(Event, formerly=["{recorded.type}"]), or keep its stored name, stored_as='
                f'"{recorded.type}"; if it was removed, bring it back',
            )
        if found.version != recorded.version:
            return self._upcast(found, recorded, tagged_alike=tagged_alike)
        try:
            event: Event = found.codec.decode(recorded.data)
        except InvalidMessage as error:
            _check_whole(recorded)
            following = found.version + 1
            raise self._unreadable(
                recorded,
                f"{error}. Give new fields a default, and keep the fields that stored events have; or say class "
                f"{found.cls.__name__}(Event, version={following}) and write an upcaster",
                skeleton(found.cls, found.context, found.version, recorded.data),
            ) from error
        return event

    def _upcast(self, found: EventType, recorded: RecordedEvent, *, tagged_alike: bool) -> Event:
        _check_whole(recorded)
        name = found.cls.__name__
        is_here = f"{name} is version {found.version} here"
        if recorded.version > found.version:
            newer = f"{is_here}: newer code has stored it, run that one"
            if recorded.type == found.name:
                raise NewerHistory(recorded.type, recorded.version, recorded.position, newer)
            renamed = f"; over a rename versions go on: say version={recorded.version} or higher"
            raise self._unreadable(recorded, newer + renamed)
        missing = found.upcasters.missing(recorded.version)
        if missing is None and found.upcasters.split(recorded.version) is not None:
            raise self._unreadable(recorded, f"{is_here}, and this is read in parts, of which there may be any number")
        try:
            data = found.upcasters.upcast(recorded.version, recorded.data, missing or found.version)
            if missing is not None:
                raise self._unreadable(
                    recorded,
                    f"{is_here}, and nothing upcasts version {missing} to the next: write an upcaster",
                    skeleton(found.cls, found.context, missing, data),
                )
            event: Event = found.codec.decode(data)
            tags = found.tags(event)
        except UpcastFailed as error:
            raise self._unreadable(recorded, str(error)) from error
        except InvalidMessage as error:
            names = _names(found, recorded.version)
            raise self._unreadable(recorded, f"{is_here}, and what {names} made of it is none: {error}") from error
        if tagged_alike and self.types.tags_now(recorded.tags) != set(tags):  # decisions on what it names would miss it
            raise self._unreadable(
                recorded,
                f"it is tagged {list(recorded.tags)}, and upcast it would be tagged {list(tags)}: let the upcaster "
                "keep the identities as they are",
            )
        return event

    def _split(self, found: EventType, recorded: RecordedEvent) -> list[Event]:
        _check_whole(recorded)
        parts: list[Event] = []
        try:
            for of, fields in self._led(found, recorded.version, stored_fields(recorded.data)):
                if len(parts) == EVENT_PARTS_MAX:
                    raise self._unreadable(recorded, f"it becomes more events than EVENT_PARTS_MAX={EVENT_PARTS_MAX}")
                parts.append(self._part(found, recorded, of, fields))
        except UpcastFailed as error:
            raise self._unreadable(recorded, str(error)) from error
        return parts

    def _led(
        self, found: EventType, version: int, stored: Mapping[str, Any]
    ) -> Iterator[tuple[EventType, Mapping[str, Any]]]:
        """The parts of an event, each with the fields that its type has now; nothing on the way is missing."""
        split = found.upcasters.split(version)
        if split is None or split.into is None:
            yield found, found.upcasters.lead(version, stored, found.version)
            return
        for cls, fields in split_apart(split, found.upcasters.lead(version, stored, split.from_version)):
            yield from self._led(self.types.of(cls), split.into[cls], fields)

    def _part(self, found: EventType, recorded: RecordedEvent, of: EventType, fields: Mapping[str, Any]) -> Event:
        try:
            event: Event = of.codec.decode(encode(fields))
            of.tags(event)
        except InvalidMessage as error:
            made = f"what {_names(found, recorded.version)} made of it is no {of.cls.__name__} (version {of.version})"
            raise self._unreadable(recorded, f"{made}: {error}") from error
        return event

    def _check_part(self, recorded: RecordedEvent, event: Event, stored: Collection[str]) -> None:
        """Make sure that whoever asks for an event by a tag finds what it is stored in (rule 20)."""
        lacking = [tag for tag in self.types.of(type(event)).tags(event) if tag not in stored]
        if lacking:
            raise self._unreadable(
                recorded,
                f"it is tagged {sorted(stored)}, and its part {type(event).__name__} would be tagged {lacking} as "
                "well, by which nobody would find it: keep the identities as they are, mark the field Untagged, or "
                "tag what is stored anew, with `diptych retag`",
            )

    def as_now(self, recorded: RecordedEvent) -> list[RecordedEvent]:
        """The parts of a recorded event as code of now would have stored them: their types, versions, fields and tags.

        One that has no data any more is given as it is.

        Raises:
            UnreadableEvent: see `parts`.
        """
        if not recorded.data:
            known, tags = self.types.stored_as(recorded.type), self.types.tags_now(recorded.tags)
            return [replace(recorded, type=known.name if known else recorded.type, tags=tuple(sorted(tags)))]
        if self._splitting(recorded) is not None:
            parts = self.parts(recorded)
            return [self._as_stored(recorded, event, self.types.of(type(event)).tags(event)) for event in parts]
        event = self.event(recorded)
        found, tags = self.types.of(type(event)), self.types.tags_now(recorded.tags)
        if (found.name, found.version) == (recorded.type, recorded.version) and tags == set(recorded.tags):
            return [recorded]
        return [self._as_stored(recorded, event, tags)]

    def _as_stored(self, recorded: RecordedEvent, event: Event, tags: Collection[str]) -> RecordedEvent:
        found = self.types.of(type(event))
        return replace(recorded, type=found.name, version=found.version, data=encode(event), tags=tuple(sorted(tags)))

    def context(self, recorded: RecordedEvent, ordinal: int = 0) -> EventContext:
        """What is known of a recorded event beside its fields; of which part of it, where it has several."""
        envelope = decode(recorded.metadata, Envelope)
        return event_context(recorded.position, recorded.event_id, recorded.recorded_at, envelope, ordinal)

    def _unreadable(self, recorded: RecordedEvent, reason: str, skeleton: str = "") -> UnreadableEvent:
        return UnreadableEvent(recorded.type, recorded.version, recorded.position, reason, skeleton)

    async def register(self, store: EventStore, contexts: Collection[str]) -> None:
        """Make the coded event types facts where they are new, and compare them with those that are.

        Raises:
            TagsChanged: events are stored of a type that the code would tag otherwise.
            SchemaChanged: events are stored of a type and version whose schema is another one in the code.
            NewerHistory: newer code has stored them, with a schema that this one does not read.
            Retagged: stored events are being tagged anew.
            UnreadableEvent: events are stored of a type of these contexts that the code does not know. A fold would
                leave them out silently.
            ConfigurationError: an event is only folded here, and stored by a context that is not here. So would that.
        """
        if (await store.tagging()).unfinished:
            raise retagged()
        schemas = CodedSchemas(self.types)
        await store.register_types(schemas.as_stored())  # first: it fills in what a failover has lost, and no more
        held = await store.stored_types()
        self._check_owners({stored.name for stored in held})
        for stored in held:
            known = self.types.stored_as(stored.name)
            if known is None:
                if stored.name.partition(".")[0] in contexts:
                    await self._refuse(store, stored)
            elif known.upcasters.missing(stored.version) is not None:
                await self._refuse(store, stored)
            self.check_tags(stored)
        await schemas.settle(store, held)

    def _check_owners(self, held: Collection[str]) -> None:
        """Make sure that an event that no context here publishes has not been stored by another one.

        Raises:
            ConfigurationError: it has: what is folded here would be none of it.
        """
        elsewhere = {name.partition(".")[2]: name for name in held if self.types.stored_as(name) is None}
        for found in self.types:
            stored = elsewhere.get(found.cls.__name__)
            if stored is not None and found.guessed and found.name not in held:
                owner = stored.partition(".")[0]
                raise ConfigurationError(
                    f"{found.cls.__name__} is only folded here, as {found.name!r}, of which nothing is stored; but "
                    f"{stored!r} is. Open the context {owner!r} as well, or say whose it is: class "
                    f'{found.cls.__name__}(Event, stored_as="{stored}"), or stored_as="{found.name}" if they differ'
                )

    def check_tags(self, stored: StoredType) -> None:
        """Make sure that the code gives events of a stored type tags of the same names as those that are stored.

        Where they are several now, that it tags none of the parts with what they are not found by.

        Raises:
            TagsChanged: it would tag them otherwise.
        """
        known = self.types.stored_as(stored.name)
        if known is None:
            return
        names = self.types.tag_names_now(stored.tag_names)
        if known.upcasters.split(stored.version) is None:
            if known.tag_names != names:
                raise TagsChanged(stored.name, stored.version, stored.tag_names, known.tag_names)
            return
        for part in self.types.parts_of(known, stored.version):
            if not set(part.tag_names) <= set(names):
                raise TagsChanged(stored.name, stored.version, stored.tag_names, part.tag_names, part=part.name)

    async def _refuse(self, store: EventStore, stored: StoredType) -> None:
        query = EventQuery((QueryItem(types=frozenset((stored.name,))),))
        after, more = START, True
        while more:
            found = await store.read(query, after, FIRST_PAGE_EVENTS)
            for recorded in found.events:
                if recorded.version == stored.version:
                    self.parts(recorded)
                    raise self._unreadable(recorded, "the code does not know this version")
            after, more = found.through, found.more


def _names(found: EventType, version: int) -> str:
    """The upcasters that an event of this version has been through, for messages."""
    return ", ".join(step.name for step in found.upcasters if step.from_version >= version)


def _check_whole(recorded: RecordedEvent) -> None:
    if not recorded.data:
        raise HistoryPruned(
            recorded.type,
            recorded.version,
            recorded.position,
            "its data were dropped by `diptych prune`, which left position, type and tags. What folds it has to have "
            "its state from before: a state-stored model, rows that are not built anew; or a backup is to be restored",
        )
