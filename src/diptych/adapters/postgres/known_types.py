"""Event types that the store knows already: registering those again would write nothing, and is left out.

So a process that may not write opens an application all the same, unless its code has types that are new here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from diptych.errors import NotGranted

if TYPE_CHECKING:
    import asyncpg

    from diptych.event_store.event_store import StoredType

__all__ = ["not_registrable", "register_statement", "select_known", "unknown"]


def select_known(schema: str) -> str:
    """Selects what is known of the types named in parameter 1, an array."""
    return (
        f"SELECT t.name, v.version, v.tag_names, v.held FROM {schema}.event_versions AS v "
        f"JOIN {schema}.event_types AS t ON t.id = v.type WHERE t.name = ANY($1::text[])"
    )


def register_statement(schema: str) -> str:
    """The call that registers types: their names, versions and tag names, and the wait for the lock in milliseconds."""
    return f"SELECT {schema}.register_types($1::text[], $2::integer[], $3::bytea[], $4::integer)"


def unknown(types: Sequence[StoredType], known: Iterable[asyncpg.Record]) -> list[StoredType]:
    """Those of which registering would change what is stored: what no event holds to yet may still change."""
    facts = {(name, version): (tag_names, held) for name, version, tag_names, held in known}
    return [type for type in types if not _stays(type, *facts.get((type.name, type.version), (None, False)))]


def _stays(type: StoredType, tag_names: bytes | None, held: bool) -> bool:  # noqa: FBT001 — a column
    return tag_names is not None and (held or tag_names == msgspec.json.encode(type.tag_names))


def not_registrable(refused: NotGranted, new: Sequence[StoredType]) -> NotGranted:
    """The refusal, with the types it is about and who has to come first."""
    names = ", ".join(sorted({type.name for type in new}))
    return NotGranted(
        refused.where,
        refused.role,
        f"{refused.refused} (event types that are new here: {names})",
        "first open the application once as a user in the writer's role, such as with diptych run --role api; "
        "`diptych migrate --grants` prints the roles",
    )
