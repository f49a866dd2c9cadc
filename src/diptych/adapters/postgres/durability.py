"""What commits survive on a server, as it is set now: a standby that confirms them outlives the server's machine."""

from __future__ import annotations

from diptych.adapters.postgres.connection import DRIVER_ERRORS, connect, failure, parse_url

__all__ = ["commits_survive"]

_STATEMENT = """
SELECT current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') <> 'local',
    count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
FROM pg_catalog.pg_stat_replication
"""


async def commits_survive(url: str) -> str:
    """What an acknowledged commit survives, in words (rule 18).

    Raises:
        StoreUnavailable: the server cannot be reached, or refuses.
        ConfigurationError: the URL cannot be read.
    """
    where = parse_url(url)
    link = await connect(where, read_only=True)
    try:
        ((confirmed, standbys, sees_standbys),) = await link.fetch(_STATEMENT)
    except DRIVER_ERRORS as error:
        raise (failure(where, error) or error) from error
    finally:
        link.terminate()
    if not confirmed:
        return "a crash, not the loss of the server's machine: set synchronous_standby_names"
    if not sees_standbys:
        return (
            "the loss of the server's machine, as it is set; whether a synchronous standby is connected this user "
            "may not see: grant it pg_read_all_stats"
        )
    if not standbys:
        return "the loss of the server's machine; but no synchronous standby is connected, so that commits wait for one"
    return "the loss of the server's machine: a synchronous standby confirms them"
