"""What all tests share."""

from __future__ import annotations

import gc
import math
import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.tenants import Places

if TYPE_CHECKING:
    from pathlib import Path

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs that tests start are compiled once, not at each start

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # how long an example takes is what the machine has to do beside it

WORKERS_PER_CORE = 2.5
"""Processes of tests for each core: many tests wait for servers, disks and programs that they have started."""
WORKERS_MAX = 8
"""Processes of tests at most: each one has a PostgreSQL of its own."""


def pytest_xdist_auto_num_workers() -> int:
    """What `--numprocesses=auto` stands for."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(math.ceil(cores * WORKERS_PER_CORE), WORKERS_MAX)


LONG_ONES = {"test_openapi.py", "test_shop_on_postgres.py", "test_shop_real_invoices.py"}
"""Files whose tests take longest: they come first, so that none of them is still running when all others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.name not in LONG_ONES)


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the garbage collector's rounds: it stays until the end anyway."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let go of it, or the interpreter cannot free it at its end, and DuckDB's binding reports it as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone."""
    return "asyncio"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An event store's URL: every behaviour holds on every store. What is read from is beside it."""
    if request.param == "postgres":
        from tests.postgres_server import in_thread, new_stores

        return in_thread(new_stores())
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/events.db"


KEPT = ["sqlite", "postgres"]
"""Where partitions outlive an application."""


@pytest.fixture(params=["memory", *KEPT])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """Where the partitions of an application are kept: in one database, or one folder."""
    return Places(request.param, tmp_path)


@pytest.fixture(params=KEPT)
def kept_places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """The same, where a second application finds them."""
    return Places(request.param, tmp_path)
