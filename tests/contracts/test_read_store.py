"""The contract of read stores, for every adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from diptych.adapters.memory import read_store as memory
from diptych.adapters.postgres import read_store as postgres
from diptych.adapters.sqlite import read_store as sqlite
from diptych.testing.contracts.read_store import ReadStoreContract
from tests.postgres_server import as_role, in_thread, new_granted_read_store, new_read_store, with_parameter

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.read_side.read_store import ReadStore


class TestMemoryReadStore(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return memory.connect("memory:")


class TestSqliteReadStore(ReadStoreContract):
    leases_are_locks = True

    def connect(self, folder: Path) -> ReadStore:
        return sqlite.connect(f"sqlite:{folder / 'read.db'}")


class TestPostgresReadStore(ReadStoreContract):
    @pytest.fixture(autouse=True)
    def make_schema(self) -> None:
        self.url = in_thread(new_read_store())

    def connect(self, folder: Path) -> ReadStore:
        return postgres.connect(self.url)


class TestPostgresReadStoreBehindAPooler(TestPostgresReadStore):
    """With `pgbouncer=true` no statement is prepared for later, nothing is set, and nobody listens."""

    def connect(self, folder: Path) -> ReadStore:
        return postgres.connect(with_parameter(self.url, "pgbouncer", "true"))


class TestPostgresReadStoreAsProjector(TestPostgresReadStore):
    """A user in the projector's role does all that a read store has to."""

    @pytest.fixture(autouse=True)
    def make_schema(self) -> None:
        self.url = as_role(in_thread(new_granted_read_store()), "projector")
