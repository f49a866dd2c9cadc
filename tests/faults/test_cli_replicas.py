"""`diptych run --read-replica`: servers as processes that ask their queries on a real standby."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_project import Project, project_in
from tests.faults.test_cli_signals import ask, children, linux_only, serving
from tests.postgres_server import in_thread, new_stores, with_parameter
from tests.postgres_standby import NAME, SKIPPED, Standby, the_standby

pytestmark = pytest.mark.skipif(bool(SKIPPED), reason=SKIPPED)

APP = "tests.faults.replicated:warehouse"
ROOT = Path(__file__).parents[2]
PATHS = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
QUERY = "/queries/StockOf?sku=pens"


@pytest.fixture
def standby() -> Standby:
    return the_standby()


@pytest.fixture
def store(standby: Standby) -> str:
    """Stores that the standby has as well."""
    made = in_thread(new_stores())
    in_thread(standby.caught_up())
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def received(where: str) -> tuple[int, Any]:
    """Receive a unit, and ask for it with the token."""
    status, receipt = ask(where, "POST", "/commands/Receive", {"sku": "pens"})
    assert status == 200
    return ask(where, "GET", QUERY, token=receipt["token"])


def test_a_server_asks_its_queries_on_the_replica(project: Project, standby: Standby, store: str) -> None:
    """The flag names it; a token is waited for there; a killed one is told, and the primary answers."""
    replica = standby.url_of(store)
    options = ("--store", store, "--read-replica", replica, "--port", "0")
    with serving(project, APP, *options, **PATHS) as (_, where):
        assert received(where) == (200, {"units": 1, "server": NAME})
        assert ask(where, "GET", QUERY) == (200, {"units": 1, "server": NAME})
        assert ask(where, "GET", "/health/ready") == (200, {"ready": True})
        standby.kill()
        try:
            assert received(where) == (200, {"units": 2, "server": ""})
            status, health = ask(where, "GET", "/health/ready")
            assert (status, health["ready"], len(health["impaired"])) == (200, True, 1)
        finally:
            standby.start()


def test_the_policy_and_the_replica_come_from_every_layer(project: Project, standby: Standby, store: str) -> None:
    """The file's replicas, with the environment's policy: what the replica does not show, the primary answers."""
    replica = standby.url_of(store)
    project.settings(f'app = ["{APP}"]\nstore = "{store}"\nread_replica = "{replica}, {replica}"\n')
    with serving(project, "--port", "0", **PATHS, DIPTYCH_REPLICA_POLICY="primary") as (_, where):
        status, receipt = ask(where, "POST", "/commands/Receive", {"sku": "pens"})
        ask(where, "GET", QUERY, token=receipt["token"])
        in_thread(paused_and_asked(standby, where))
        process = project.start("status", "--json", **PATHS)
        out, err = process.communicate()
        assert (process.returncode, err, status) == (0, "", 200)
        told = json.loads(out)["replicas"]
        assert [each["left_out"] for each in told] == ["", ""]
        out, _ = project.start("status", **PATHS, COLUMNS="300").communicate()
        assert len(re.findall(r"^postgresql://.* asked +\d+ +[\d.]+ s$", out, re.MULTILINE)) == 2


async def paused_and_asked(standby: Standby, where: str) -> None:
    async with standby.paused():
        assert received(where) == (200, {"units": 2, "server": ""})
        assert ask(where, "GET", QUERY) == (200, {"units": 1, "server": NAME})


@linux_only
def test_several_processes_are_told_of_the_replica_and_nobody_else(
    project: Project, standby: Standby, store: str
) -> None:
    """Each server that is started asks there; its URL, which may hold a password, is in no list of processes."""
    replica = with_parameter(standby.url_of(store), "password", "hunter2")
    options = ("--store", store, "--read-replica", replica, "--processes", "2", "--port", "0")
    with serving(project, APP, *options, **PATHS) as (parent, where):
        shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children(parent)]
        assert len(shown) == 2
        assert all("--replica-policy" in line and "hunter2" not in line for line in shown)
        assert received(where) == (200, {"units": 1, "server": NAME})
        assert received(where) == (200, {"units": 2, "server": NAME})


def test_replicas_without_postgresql_are_refused(project: Project) -> None:
    """One line says why, and what to do."""
    code, out, err = project.run(
        "run", project.context, "--store", "sqlite:a.db", "--read-replica", "postgresql://u:hunter2@h/d"
    )
    assert (code, out) == (1, "")
    assert "read models in sqlite: have no replicas: leave them out" in err
    assert "hunter2" not in err
