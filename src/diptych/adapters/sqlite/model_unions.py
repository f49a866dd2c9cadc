"""Which events decision models fold, in one SQLite file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from diptych.event_store.model_unions import ModelUnion, ModelUnions, new_mark

if TYPE_CHECKING:
    import sqlite3

__all__ = ["keep_models", "stored_models"]

_types_decoder = msgspec.json.Decoder(tuple[str, ...])


def stored_models(connection: sqlite3.Connection) -> ModelUnions:
    """What is kept, by name, and its mark: one statement, so that they are of one moment."""
    rows = connection.execute(
        "SELECT h.models, m.model, m.version, m.types FROM history AS h LEFT JOIN model_unions AS m ORDER BY m.model"
    ).fetchall()
    kept = [ModelUnion(name, version, _types_decoder.decode(types)) for _, name, version, types in rows if name]
    return ModelUnions(rows[0][0], tuple(kept))


def keep_models(connection: sqlite3.Connection, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
    """Keep these, inside a write transaction, where the mark is still that one."""
    if connection.execute("SELECT models FROM history").fetchone()[0] != instead_of:
        return False
    connection.executemany(
        "INSERT OR REPLACE INTO model_unions (model, version, types) VALUES (?, ?, ?)",
        [(model.name, model.version, msgspec.json.encode(model.types)) for model in models],
    )
    connection.execute("UPDATE history SET models = ?", (new_mark(),))
    return True
