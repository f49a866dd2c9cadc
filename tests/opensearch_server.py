"""An OpenSearch for the tests: a server that speaks its API and keeps everything in memory, or the one that is given.

`DIPTYCH_TEST_OPENSEARCH` names one to be used instead, `opensearch+http://localhost:9200`. Each store has a prefix of
its own.
"""

from __future__ import annotations

import atexit
import functools
import os

from diptych.messages.unique_id import unique_id

__all__ = ["new_read_store"]


@functools.cache
def _server() -> str:
    """One for each process of tests, which ends with it."""
    given = os.environ.get("DIPTYCH_TEST_OPENSEARCH")
    if given:
        return given
    from osmem_server import OsmemServer  # type: ignore[import-untyped]

    server = OsmemServer.start(japanese=False)
    atexit.register(server.close)
    return f"opensearch+{server.url}"


def new_read_store() -> str:
    """The URL of a read store that is empty."""
    return f"{_server()}?prefix=t{unique_id()}"
