"""The schemas of the code beside those by which events are stored (rule 20).

The store keeps, for each type and version, every schema that came, in order. So three things can be told apart: code
that is as new as what is stored; newer code, whose schema reads all of them and joins them; and older code that runs
beside newer code, whose schema is among them and not the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from diptych.errors import NewerHistory, NotGranted, SchemaChanged, TagsChanged
from diptych.event_store.event_store import EventStore, StoredSchema, StoredType, TypeFacts
from diptych.event_store.position import START
from diptych.messages.codec import encode
from diptych.messages.registry import EventType, EventTypes
from diptych.messages.schema import Described, described, differences
from diptych.messages.upcaster import skeleton

__all__ = ["CodedSchemas"]

SCHEMAS_MAX = 64
"""Schemas that are kept of one type and version; the oldest are forgotten, and code that has those is refused."""
SETTLE_ATTEMPTS_MAX = 10
"""How often facts are compared with the code again because another process replaced them meanwhile."""


class CodedSchemas:
    """What the event classes of an application are by their code."""

    def __init__(self, types: EventTypes) -> None:
        self._types = types
        self._described: dict[type, Described] = {}

    def as_stored(self) -> list[StoredType]:
        """Every type and version, as it is registered before its first event; but for those that others store."""
        own = [found for found in self._types if not found.foreign]
        return [StoredType(found.name, found.version, found.tag_names, self._first_facts(found)) for found in own]

    async def settle(self, store: EventStore, held: Sequence[StoredType]) -> None:
        """Compare the code with what is stored of its types, and make known to the store what is new.

        Of types that were stored before there were facts, the code's become theirs, as from now on. Whoever may not
        write leaves that to others.

        Raises:
            SchemaChanged: one does not fit.
            NewerHistory: it is of newer code, and this one does not read it.
            TagsChanged: other fields give the tags.
        """
        for _ in range(SETTLE_ATTEMPTS_MAX):
            found = [(stored, self.check(stored)) for stored in held]
            changes = [(stored, facts) for stored, facts in found if facts is not None]
            if not changes:
                return
            since = (await store.head()).position
            try:
                await store.keep_facts(
                    [stored for stored, _ in changes], [_as_from(since, facts) for _, facts in changes]
                )
            except NotGranted:
                return
            held = await store.stored_types()

    def check(self, stored: StoredType) -> TypeFacts | None:
        """Compare one type and version with the code; what its facts come to be, None where they stay.

        Raises:
            SchemaChanged: it does not fit.
            NewerHistory: it is of newer code, and this one does not read it.
            TagsChanged: other fields give the tags.
        """
        is_known = self.check_schema(stored)
        known = self._types.stored_as(stored.name)
        if known is None or known.version != stored.version:
            return None
        if stored.facts is None:
            return None if known.foreign else self._first_facts(known)
        coded = self._of(known)
        if self._places_now(stored.facts.tag_fields) != coded.tag_fields:
            raise TagsChanged(stored.name, stored.version, stored.facts.tag_fields, coded.tag_fields)
        if is_known or known.foreign:
            return None
        after = (*stored.facts.schemas, StoredSchema(coded.schema, START))
        return TypeFacts(after[-SCHEMAS_MAX:], stored.facts.tag_fields)

    def check_schema(self, stored: StoredType) -> bool:
        """Compare the schema of one type and version alone; whether it is among those that are kept.

        Raises:
            SchemaChanged: it does not fit.
            NewerHistory: it is of newer code, and this one does not read it.
        """
        known = self._types.stored_as(stored.name)
        if known is None or known.version != stored.version or stored.facts is None:
            return False
        schemas = [found.schema for found in stored.facts.schemas]
        schema = self._of(known).schema
        if schema in schemas and not known.foreign:
            self._check_newer(known, stored, stored.facts.schemas[schemas.index(schema) + 1 :])
            return True
        self._check_older(known, stored)
        return False

    def tagged_now(self, stored: StoredType) -> StoredType:
        """A type and version whose events were tagged anew with this code: each with the tags of all its parts."""
        known = self._types.stored_as(stored.name)
        assert known is not None, "its events were read"
        if known.upcasters.split(stored.version) is None:
            names, places = known.tag_names, self._of(known).tag_fields
        else:
            parts = self._types.parts_of(known, stored.version)
            names = tuple(sorted({name for part in parts for name in part.tag_names}))
            places = tuple(sorted({place for part in parts for place in self._of(part).tag_fields}))
        return StoredType(stored.name, stored.version, names, stored.facts and replace(stored.facts, tag_fields=places))

    def _of(self, known: EventType) -> Described:
        if known.cls not in self._described:
            self._described[known.cls] = described(known.cls)
        return self._described[known.cls]

    def _first_facts(self, known: EventType) -> TypeFacts:
        coded = self._of(known)
        return TypeFacts((StoredSchema(coded.schema, START),), coded.tag_fields)

    def _check_older(self, known: EventType, stored: StoredType) -> None:
        """Make sure that the code's schema, a new one, reads what is stored with each of those that are kept.

        Where events may be stored with others as well, the last one is what is known of them: it reads those, too.
        Of what another context stores it need not read each field.
        """
        assert stored.facts is not None
        schema, kept = self._of(known).schema, [found.schema for found in reversed(stored.facts.schemas)]
        lacks = stored.facts.schemas[0].since > START or len(kept) == SCHEMAS_MAX
        some = known.foreign
        found = [changes for each in kept if (changes := differences(schema, each, loses=some, lacks=lacks))]
        if found:
            changes = differences(schema, kept[0], loses=some) or found[0]
            written = skeleton(known.cls, known.context, known.version, encode(dict.fromkeys(kept[0]["fields"])))
            raise SchemaChanged(stored.name, stored.version, changes, written)

    def _check_newer(self, known: EventType, stored: StoredType, newer: Iterable[StoredSchema]) -> None:
        """Make sure that the code's schema, which newer ones follow, reads what is stored with them."""
        schema = self._of(known).schema
        for later in newer:
            changes = differences(schema, later.schema, loses=True, lacks=False)
            if changes:
                raise NewerHistory(
                    stored.name,
                    stored.version,
                    later.since,
                    f"newer code stores it so that this one does not read it ({'; '.join(changes)}): run that one",
                )

    def _places_now(self, places: Iterable[str]) -> tuple[str, ...]:
        """Places of tags, each with the name that the identity has now."""
        split = [place.rpartition(": ") for place in places]
        return tuple(sorted(f"{path}: {self._types.tag_names_now([name])[0]}" for path, _, name in split))


def _as_from(since: int, facts: TypeFacts) -> TypeFacts:
    """With the last schema as from this position on."""
    *before, last = facts.schemas
    return replace(facts, schemas=(*before, replace(last, since=since)))
