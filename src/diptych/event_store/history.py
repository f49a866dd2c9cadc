"""The history as events: what the store holds as bytes, read back as the classes of this application."""

from __future__ import annotations

from collections.abc import Collection

from diptych.errors import InvalidMessage, TagsChanged, UnreadableEvent
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import EventStore, StoredType
from diptych.event_store.position import START
from diptych.event_store.recorded_event import RecordedEvent
from diptych.messages.codec import decode
from diptych.messages.envelope import Envelope, event_context
from diptych.messages.event import Event, EventContext
from diptych.messages.registry import EventTypes

__all__ = ["History"]

FIRST_PAGE_EVENTS = 100
"""Events read at once while the first one of an unknown type is looked for."""


class History:
    """Reads recorded events with the event classes of an application."""

    def __init__(self, types: EventTypes) -> None:
        self.types = types

    def event(self, recorded: RecordedEvent) -> Event:
        """The event as an instance of its class.

        Raises:
            UnreadableEvent: no class is stored under that name and version, or its fields no longer fit.
        """
        found = self.types.stored_as(recorded.type)
        if found is None:
            raise self._unreadable(
                recorded,
                "this application has no event of that name. If the class was renamed, keep its stored name with "
                f'class NewName(Event, stored_as="{recorded.type}"); if it was removed, bring it back',
            )
        if found.version != recorded.version:
            raise self._unreadable(
                recorded, f"{found.cls.__name__} is version {found.version} here, and nothing upcasts one to the other"
            )
        try:
            event: Event = found.codec.decode(recorded.data)
        except InvalidMessage as error:
            raise self._unreadable(
                recorded, f"{error}. Give new fields a default, and keep the fields that stored events have"
            ) from error
        return event

    def context(self, recorded: RecordedEvent) -> EventContext:
        """What is known of a recorded event beside its fields."""
        envelope = decode(recorded.metadata, Envelope)
        return event_context(recorded.position, recorded.event_id, recorded.recorded_at, envelope)

    def _unreadable(self, recorded: RecordedEvent, reason: str) -> UnreadableEvent:
        return UnreadableEvent(recorded.type, recorded.version, recorded.position, reason)

    async def register(self, store: EventStore, contexts: Collection[str]) -> None:
        """Make the coded event types facts where they are new, and compare them with those that are.

        Raises:
            TagsChanged: events are stored of a type that the code would tag otherwise.
            UnreadableEvent: events are stored of a type of these contexts that the code does not know. A fold would
                leave them out silently.
        """
        coded = {
            (found.name, found.version): StoredType(found.name, found.version, found.tag_names) for found in self.types
        }
        await store.register_types(list(coded.values()))  # first: it fills in what a failover has lost, and no more
        for stored in await store.stored_types():
            known = coded.get((stored.name, stored.version))
            if known is not None and known.tag_names != stored.tag_names:
                raise TagsChanged(stored.name, stored.version, stored.tag_names, known.tag_names)
            if known is None and (stored.name.partition(".")[0] in contexts or self.types.stored_as(stored.name)):
                await self._refuse(store, stored)

    async def _refuse(self, store: EventStore, stored: StoredType) -> None:
        query = EventQuery((QueryItem(types=frozenset((stored.name,))),))
        after, more = START, True
        while more:
            found = await store.read(query, after, FIRST_PAGE_EVENTS)
            for recorded in found.events:
                if recorded.version == stored.version:
                    self.event(recorded)
                    raise self._unreadable(recorded, "the code does not know this version")
            after, more = found.through, found.more
