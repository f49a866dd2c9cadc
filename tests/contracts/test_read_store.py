"""The contract of read stores, for both adapters, and what each says beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.adapters.memory import read_store as memory
from diptych.adapters.sqlite import read_store as sqlite
from diptych.testing.contracts.read_store import ReadStoreContract

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.read_side.read_store import ReadStore


class TestMemoryReadStore(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return memory.connect("memory:")


class TestSqliteReadStore(ReadStoreContract):
    def connect(self, folder: Path) -> ReadStore:
        return sqlite.connect(f"sqlite:{folder / 'read.db'}")
