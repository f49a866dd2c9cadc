"""What is kept of commands in PostgreSQL: the statements that read it, and their rows as outcomes."""

from __future__ import annotations

from diptych.event_store.event_store import KeptOutcome
from diptych.event_store.position import NOWHERE, Place, Position

__all__ = ["kept_outcome", "select_outcome", "select_outcomes", "select_page"]


def select_outcome(schema: str) -> str:
    """What is kept under the command id `$1`, if anything is."""
    return _select(schema, f"SELECT * FROM {schema}.outcomes WHERE command_id = $1")


def select_outcomes(schema: str) -> str:
    """What is kept under the command ids `$1`, in any order."""
    one = f"SELECT * FROM {schema}.outcomes AS x WHERE x.command_id = u.command_id LIMIT 1"
    return _select(schema, f"SELECT k.* FROM unnest($1::text[]) AS u (command_id) CROSS JOIN LATERAL ({one}) AS k")


def select_page(schema: str) -> str:
    """What is kept under the first `$2` command ids behind `$1`, in the order of their code points."""
    page = f"SELECT * FROM {schema}.outcomes WHERE command_id > $1 ORDER BY command_id LIMIT $2"
    return f"{_select(schema, page)} ORDER BY o.command_id"


def _select(schema: str, outcomes: str) -> str:
    """The arguments of `kept_outcome`, but for its first, of each row of the table that is asked for."""
    return (
        "SELECT o.command_id, o.payload_hash, o.position, o.event_count, o.rejection, e.event_id "
        f"FROM ({outcomes}) AS o LEFT JOIN {schema}.events AS e ON e.position = o.position"
    )


def kept_outcome(
    history_id: bytes,
    command_id: str,
    payload_hash: bytes,
    position: int,
    event_count: int,
    rejection: bytes | None,
    event_id: bytes | None,
) -> KeptOutcome:
    """One row of these statements; `event_id` is None where it was judged before the first event."""
    place = Place(history_id, Position(position), NOWHERE if event_id is None else event_id)
    return KeptOutcome(command_id, payload_hash, place, event_count, rejection)
