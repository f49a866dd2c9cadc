"""What is stored of event types in PostgreSQL: read, registered where it is new, and replaced.

Registering what the store knows already would write nothing, and is left out: so a process that may not write opens an
application all the same, unless its code has types that are new here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from diptych.adapters.postgres.event_rows import decode_tags
from diptych.adapters.postgres.register import Register
from diptych.errors import NotGranted
from diptych.event_store.event_store import StoredType, TypeFacts
from diptych.event_store.stored_facts import decode_facts, encode_facts

if TYPE_CHECKING:
    import asyncpg

__all__ = ["TypeRegister", "keep_statement", "kept_first", "register_statement"]


class TypeRegister(Register):
    """The event types of one schema."""

    async def stored(self) -> list[StoredType]:
        """Those that events are stored of, by name and version."""
        rows = await self._fetch(
            f"SELECT t.name, v.version, v.tag_names, v.facts FROM {self._schema}.event_versions AS v "
            f"JOIN {self._schema}.event_types AS t ON t.id = v.type WHERE v.held ORDER BY t.name, v.version"
        )
        return [
            StoredType(name, version, decode_tags(tags) if tags else (), decode_facts(facts))
            for name, version, tags, facts in rows
        ]

    async def register(self, types: Sequence[StoredType]) -> None:
        """Remember those that are new; see `EventStore.register_types`."""
        known = await self._fetch(_select_known(self._schema), [type.name for type in types])
        new, described_anew = _unknown(types, known)
        if new:
            await self._register(new)
        if described_anew:
            with suppress(NotGranted):  # no event holds to these yet, so that it can be left to who may append one
                await self._write(keep_statement(self._schema), *kept_first(described_anew))

    async def _register(self, new: Sequence[StoredType]) -> None:
        names, versions = [type.name for type in new], [type.version for type in new]
        tag_names = [msgspec.json.encode(type.tag_names) for type in new]
        try:
            await self._write(register_statement(self._schema), names, versions, tag_names)
            await self._write(keep_statement(self._schema), *kept_first(new))
        except NotGranted as error:
            raise _not_registrable(error, new) from error

    async def keep(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        """Replace the facts of those that are still as before."""
        names, versions = [type.name for type in before], [type.version for type in before]
        known, new = [encode_facts(type.facts) for type in before], [encode_facts(facts) for facts in after]
        await self._write(keep_statement(self._schema), names, versions, known, new)


def _select_known(schema: str) -> str:
    """Selects what is known of the types named in parameter 1, an array."""
    return (
        f"SELECT t.name, v.version, v.tag_names, v.facts, v.held FROM {schema}.event_versions AS v "
        f"JOIN {schema}.event_types AS t ON t.id = v.type WHERE t.name = ANY($1::text[])"
    )


def register_statement(schema: str) -> str:
    """The call that registers types: their names, versions and tag names, and the wait for the lock in milliseconds."""
    return f"SELECT {schema}.register_types($1::text[], $2::integer[], $3::bytea[], $4::integer)"


def _unknown(types: Sequence[StoredType], known: Iterable[asyncpg.Record]) -> tuple[list[StoredType], list[StoredType]]:
    """Those of which registering would change what is stored: what no event holds to yet may still change.

    And those, of which no event is stored, whose facts alone would be others.
    """
    found = {(row["name"], row["version"]): row for row in known}
    new: list[StoredType] = []
    described_anew: list[StoredType] = []
    for type in types:
        row = found.get((type.name, type.version))
        named = msgspec.json.encode(type.tag_names)
        if row is None or row["tag_names"] is None or (row["tag_names"] != named and not row["held"]):
            new.append(type)
        elif not row["held"] and row["facts"] != encode_facts(type.facts):
            described_anew.append(type)
    return new, described_anew


def keep_statement(schema: str) -> str:
    """The call that keeps facts of types: names, versions, facts before and after, and the wait in milliseconds."""
    return f"SELECT {schema}.keep_facts($1::text[], $2::integer[], $3::bytea[], $4::bytea[], $5::integer)"


def kept_first(types: Sequence[StoredType]) -> tuple[list[str], list[int], list[bytes], list[bytes | None]]:
    """The arguments of `keep_statement` but the last, for types that no event is stored of, and for those alone."""
    never = [b"" for _ in types]  # the facts of no type
    facts = [encode_facts(type.facts) for type in types]
    return [type.name for type in types], [type.version for type in types], never, facts


def _not_registrable(refused: NotGranted, new: Sequence[StoredType]) -> NotGranted:
    """The refusal, with the types it is about and who has to come first."""
    names = ", ".join(sorted({type.name for type in new}))
    return NotGranted(
        refused.where,
        refused.role,
        f"{refused.refused} (event types that are new here: {names})",
        "first open the application once as a user in the writer's role, such as with diptych run --role api; "
        "`diptych migrate --grants` prints the roles",
    )
