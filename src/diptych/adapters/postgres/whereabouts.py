"""Where a store is, whatever its URL says: another host name, port or parameter may lead to the same place."""

from __future__ import annotations

from diptych.adapters.postgres.connection import DRIVER_ERRORS, STATEMENT_S_MAX, connect, failure, parse_url
from diptych.errors import ConfigurationError

__all__ = ["whereabouts"]

_STATEMENT = """
SELECT s.system_identifier, d.oid::bigint, n.oid::bigint
FROM pg_catalog.pg_control_system() AS s, pg_catalog.pg_database AS d, pg_catalog.pg_namespace AS n
WHERE d.datname = pg_catalog.current_database() AND n.nspname = $1
"""


async def whereabouts(url: str) -> str:
    """The identifier that a server shares with its standbys alone, and the numbers of the database and the schema.

    Raises:
        StoreUnavailable: the server cannot be reached, or refuses.
        ConfigurationError: the URL cannot be read, or its schema is not there.
    """
    where = parse_url(url)
    link = await connect(where, read_only=True)
    try:
        row = await link.fetchrow(_STATEMENT, where.schema, timeout=STATEMENT_S_MAX)
    except DRIVER_ERRORS as error:
        raise (failure(where, error) or error) from error
    finally:
        link.terminate()
    if row is None:
        raise ConfigurationError(f"{where.shown} has no schema {where.schema}")
    return "postgresql:" + ":".join(map(str, row))
