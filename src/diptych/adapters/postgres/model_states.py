"""States of decision models in PostgreSQL, and events that have no data any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.adapters.postgres.connection import transaction
from diptych.event_store.event_store import Pruned
from diptych.event_store.position import NOWHERE, Place, Position
from diptych.event_store.restoring import check_folded
from diptych.event_store.tagging import check_tagging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.adapters.postgres.connection import Link
    from diptych.event_store.event_store import StoredState

__all__ = ["keep_states", "prune", "select_horizons", "select_page", "select_state", "wait_for_pruning"]


def select_state(schema: str) -> str:
    """What is kept of the decision model `$1` under the key `$2`."""
    return f"SELECT fold, data, position FROM {schema}.model_states WHERE model = $1 AND key = $2"


def select_page(schema: str) -> str:
    """What is kept of the first `$3` decision models behind `$1` and `$2`."""
    return (
        f"SELECT model, key, fold, data, position FROM {schema}.model_states WHERE (model, key) > ($1, $2) "
        "ORDER BY model, key LIMIT $3"
    )


def select_horizons(schema: str) -> str:
    """Up to where events have no data any more, by stored type."""
    return f"SELECT type, position FROM {schema}.horizons"


async def _keep_retag_out(link: Link, schema: str, table: str, tagging: bytes) -> None:
    """Until the transaction, which writes to the table, ends, nobody begins to tag events anew. No append waits.

    Raises:
        Retagged: the id of the tagging is another one.
    """
    await link.execute(f"LOCK TABLE {schema}.{table} IN ROW EXCLUSIVE MODE")
    row = await link.fetchrow(f"SELECT tagging FROM {schema}.history WHERE one = 1")
    assert row is not None, "the schema has no row of history: the store is damaged"
    check_tagging(row["tagging"], tagging)


async def wait_for_pruning(link: Link, schema: str) -> None:
    """Until the transaction ends, nobody prunes, or keeps states but by a commit; whoever is at it ends first."""
    await link.execute(f"LOCK TABLE {schema}.horizons, {schema}.model_states IN SHARE ROW EXCLUSIVE MODE")


async def keep_states(link: Link, schema: str, states: Sequence[StoredState], at: Place, tagging: bytes) -> None:
    """Keep these where nothing as late of the same fold is kept, in a transaction of its own.

    Raises:
        HistoryDiverged: the schema has another event where they were folded up to, or none.
        Retagged: the id of the tagging is another one.
    """
    async with transaction(link):
        await _keep_retag_out(link, schema, "model_states", tagging)
        row = await link.fetchrow(
            f"SELECT h.history_id, e.event_id FROM {schema}.history AS h "
            f"LEFT JOIN {schema}.events AS e ON e.position = $1 WHERE h.one = 1",
            at.position,
        )
        assert row is not None, "the schema has no row of history: the store is damaged"
        event_id = NOWHERE if at.position == 0 else row["event_id"]
        check_folded(at, Place(row["history_id"], at.position, event_id) if event_id else None)
        await link.execute(
            f"INSERT INTO {schema}.model_states AS kept (model, key, fold, data, position) "
            "SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[]) "
            "AS u (model, key, fold, data, position) ORDER BY model, key "
            "ON CONFLICT (model, key) DO UPDATE SET fold = excluded.fold, data = excluded.data, "
            "position = excluded.position WHERE kept.position < excluded.position OR kept.fold <> excluded.fold",
            [state.model for state in states],
            [state.key for state in states],
            [state.fold for state in states],
            [state.data for state in states],
            [state.position for state in states],
        )


async def prune(link: Link, schema: str, type: str, after: int, until: int, limit: int, *, tagging: bytes) -> Pruned:
    """Drop the data of a type's events, in a transaction of its own.

    Raises:
        Retagged: the id of the tagging is another one.
    """
    async with transaction(link):
        await _keep_retag_out(link, schema, "horizons", tagging)
        return await _prune(link, schema, type, after, until, limit)


async def _prune(link: Link, schema: str, type: str, after: int, until: int, limit: int) -> Pruned:
    row = await link.fetchrow(
        f"WITH horizon AS (INSERT INTO {schema}.horizons AS h (type, position) VALUES ($1, $3) "
        "ON CONFLICT (type) DO UPDATE SET position = greatest(h.position, excluded.position)), "
        f"page AS (SELECT e.position FROM {schema}.events AS e WHERE e.type = "
        f"(SELECT t.id FROM {schema}.event_types AS t WHERE t.name = $1) "
        "AND e.position > $2 AND e.position <= $3 ORDER BY e.position LIMIT $4), "
        f"pruned AS (UPDATE {schema}.events AS e SET data = '' FROM page "
        "WHERE e.position = page.position AND e.data <> '' RETURNING 1) "
        "SELECT max(position) AS last, count(*) AS looked_at, (SELECT count(*) FROM pruned) AS events FROM page",
        type,
        after,
        until,
        limit,
    )
    assert row is not None, "aggregates are one row"
    return Pruned(Position(row["last"] if row["looked_at"] == limit else until), row["events"])
