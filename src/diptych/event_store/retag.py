"""Stored events tagged anew, as the code of today tags them: `diptych retag`.

Every event of the types named is decoded, upcast where it is of an older version, and tagged as if it were appended
now. What has those tags already is left as it is; so work that was cut off is done again from the beginning, and comes
to the same. What is decided meanwhile cannot be wrong, since nobody decides: `event_store/tagging.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from diptych.errors import ConfigurationError, HistoryPruned, Retagged, TagsChanged, Unstorable
from diptych.event_store.coded_schemas import CodedSchemas
from diptych.event_store.digest import Moved
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import Commit, EventStore, StoredType
from diptych.event_store.history import History
from diptych.event_store.pages import event_pages
from diptych.event_store.position import START
from diptych.event_store.recorded_event import NewEvent, RecordedEvent
from diptych.event_store.refusal import refusal
from diptych.event_store.tagging import Tagging

__all__ = ["RetaggedType", "Retagging", "plan_retag"]

BEGINNINGS_MAX = 10
"""How often the work is begun because another type or version came to be stored just before."""


class RetaggedType(msgspec.Struct, frozen=True):
    """What became, or would become, of the events of one type and version.

    Attributes:
        events: how many there are.
        retagged: how many of them have other tags now, or would have.
    """

    type: str
    version: int
    events: int
    retagged: int


async def plan_retag(store: EventStore, history: History, types: Collection[str] = ()) -> Retagging:
    """Which stored types and versions are to be tagged anew.

    Args:
        store: where; it is open, and no application needs to be able to open it.
        history: reads with the code that is to tag them.
        types: their names, stored or of the class; by default all that the code would tag otherwise. What is named is
            tagged anew even where no difference is known of.

    Raises:
        ConfigurationError: a type that is named, or that is being tagged anew, is not stored, or not known to the code.
        SchemaChanged: the code does not fit what is stored; likewise NewerHistory.
    """
    tagging, schemas = await store.tagging(), CodedSchemas(history.types)
    held = await store.stored_types()
    unknown = set(types) - {name for stored in held for name in _names(history, stored)}
    if unknown:
        raise ConfigurationError(f"no event is stored of the type {min(unknown)!r}: diptych schema show lists them")
    found = [stored for stored in held if _is_wanted(history, schemas, stored, types, tagging)]
    for stored in found:
        schemas.check_schema(stored)  # a field of another name would be read as its default, and its tags be lost
        if history.types.stored_as(stored.name) is None:
            raise ConfigurationError(
                f"events of {stored.name} are to be tagged anew, and the code named here does not know them: name the "
                "context that has them as well"
            )
    return Retagging(store, history, schemas, found, types, tagging)


def _names(history: History, stored: StoredType) -> set[str]:
    """What a stored type may be called."""
    known = history.types.stored_as(stored.name)
    return {stored.name} if known is None else {stored.name, known.name, known.cls.__name__}


def _is_wanted(
    history: History, schemas: CodedSchemas, stored: StoredType, types: Collection[str], tagging: Tagging
) -> bool:
    if (stored.name, stored.version) in tagging.unfinished:
        return True
    if types:
        return not _names(history, stored).isdisjoint(types)
    return _is_tagged_otherwise(history, schemas, stored)


def _is_tagged_otherwise(history: History, schemas: CodedSchemas, stored: StoredType) -> bool:
    try:
        history.check_tags(stored)
        schemas.check(stored)
    except TagsChanged:
        return True
    return False


class Retagging:
    """The work, planned; nothing is done yet.

    Attributes:
        types: the types and versions whose events are to be tagged anew; may be none.
        resumed: whether such work was begun before, and left.
    """

    def __init__(
        self,
        store: EventStore,
        history: History,
        schemas: CodedSchemas,
        types: Sequence[StoredType],
        named: Collection[str],
        tagging: Tagging,
    ) -> None:
        self.types = types
        self.resumed = bool(tagging.unfinished)
        self._store = store
        self._history = history
        self._schemas = schemas
        self._named = named
        self._tagging = tagging

    async def counted(self, moved: Moved) -> list[RetaggedType]:
        """What would become of the events, by type and version; nothing is changed.

        Raises:
            UnreadableEvent: one cannot be read with the code.
            HistoryPruned: one has no data any more, so that nobody can tell how it is to be tagged.
            Unstorable: one would have tags that no store takes.
        """
        await self._check_whole()
        return await self._through(None, moved)

    async def run(self, unaffected: Collection[str], moved: Moved) -> list[RetaggedType]:
        """Tag the events anew. Cut off at any time, it may be planned and run again.

        From its beginning on, nobody who has the store open appends anything any more; and until it is done, no
        application is opened.

        Args:
            unaffected: the decision models whose kept states may stay.
            moved: told how far it is.

        Raises:
            Retagged: somebody else is at it.
            HistoryPruned: an event has no data any more, so that nobody can tell how it is to be tagged; nothing was
                done.
            NotGranted: this is for the owner of the store.
        """
        for _ in range(BEGINNINGS_MAX):
            await self._check_whole()  # as long as it can be left: nobody prunes once it is begun
            kinds = [(stored.name, stored.version) for stored in self.types]
            begun = await self._store.begin_retag(kinds, self._tagging)
            again = await plan_retag(self._store, self._history, self._named)
            if again.types == self.types:
                break
            self.types, self._tagging = again.types, begun  # events of one more came before nobody could append
        else:
            raise Retagged("others are tagging these events anew; nothing was done")
        done = await self._through(begun, moved)
        tagged = [self._schemas.tagged_now(stored) for stored in self.types]
        await self._store.end_retag(begun, tagged, unaffected)
        return done

    async def _check_whole(self) -> None:
        kinds, horizons = {(stored.name, stored.version) for stored in self.types}, await self._store.horizons()
        for name in sorted({name for name, _ in kinds} & horizons.keys()):
            query = EventQuery((QueryItem(types=frozenset((name,))),))
            async for page in event_pages(self._store, START, horizons[name], query):
                for event in page:
                    if not event.data and (event.type, event.version) in kinds:
                        raise HistoryPruned(
                            event.type,
                            event.version,
                            event.position,
                            "its data were dropped by `diptych prune`, so that nobody can tell which tags it would "
                            "have now. Nothing was changed: let the code tag such events as they are tagged, or "
                            "restore a backup",
                        )

    async def _through(self, begun: Tagging | None, moved: Moved) -> list[RetaggedType]:
        """All events once; with what was begun, what differs is written."""
        found = {(stored.name, stored.version): [0, 0] for stored in self.types}
        end = (await self._store.head()).position
        query = EventQuery((QueryItem(types=frozenset(stored.name for stored in self.types)),))
        async for page in event_pages(self._store, START, end, query):
            changes: list[tuple[RecordedEvent, tuple[str, ...]]] = []
            for event in page:
                counts = found.get((event.type, event.version))
                if counts is None:
                    continue
                tags = self._tags(event)
                changed = set(tags) != set(event.tags)
                counts[0] += 1
                counts[1] += changed
                if changed:
                    changes.append((event, tags))
            if begun is not None and changes:
                await self._store.write_tags(begun, changes)
            moved(page[-1].position, end)
        return [RetaggedType(*key, *found[key]) for key in sorted(found)]

    def _tags(self, event: RecordedEvent) -> tuple[str, ...]:
        tags = self._history.tags(event)
        as_new = NewEvent(event.event_id, event.type, event.version, event.data, tags, event.metadata)
        if reason := refusal(Commit((as_new,))):
            raise Unstorable("diptych retag", event.type, f"at position {event.position}: {reason}")
        return tags
