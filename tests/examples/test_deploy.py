"""The files of `examples/deploy` fit each other and the code: commands, settings, limits, names.

Docker is not needed, and not tried; what the files start is, in `test_deploy_servers.py`.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from cyclopts.exceptions import CycloptsError

from diptych.adapters.postgres import process_store
from diptych.adapters.postgres.connection import parse_url
from diptych.adapters.postgres.event_store import APPEND_CONNECTIONS, READ_CONNECTIONS_MAX
from diptych.adapters.postgres.migrations import MIGRATE_S_MAX
from diptych.adapters.postgres.read_store import WRITE_CONNECTIONS_MAX
from diptych.adapters.postgres.replica import LOOK_CONNECTIONS_MAX
from diptych.entrypoints.cli.app import command_line
from diptych.entrypoints.cli.settings import ENVIRONMENT_PREFIX, Settings
from diptych.entrypoints.cli.signals import STOP_S_MAX
from diptych.entrypoints.http.health import READY_WAIT_S
from diptych.entrypoints.http.server import CONNECTIONS_MAX
from diptych.read_side.query_source import ReplicaPolicy
from diptych.read_side.snapshot_turns import SNAPSHOTS_MAX
from tests.examples.deployment import (
    DEPLOY,
    UNITS,
    Unit,
    compose,
    image_environment,
    image_steps,
    interpolated,
    script_lines,
    units,
    variables,
)
from tests.examples.pages import ROOT, Page

GUIDE = Page(ROOT / "docs/guides/from-one-file-to-many-machines.md")
README = Page(DEPLOY / "README.md")
SERVICES: dict[str, Any] = compose()["services"]
SERVERS = [name for name in SERVICES if name.startswith(("api", "worker"))]
OURS = [*SERVERS, "migrate"]
SETTINGS = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.__struct_fields__}
LISTENING = 1
"""Connections of one store that listen for notifications."""
EVENT_STORE = READ_CONNECTIONS_MAX + APPEND_CONNECTIONS + LISTENING
WAITING = process_store.CONNECTIONS_MAX
READ_STORE = SNAPSHOTS_MAX + WRITE_CONNECTIONS_MAX + LISTENING
HARDENING = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "SystemCallFilter": "@system-service",
}


def named(found: list[Unit]) -> list[object]:
    return [pytest.param(unit, id=unit.name) for unit in found]


def seconds(text: str) -> float:
    """A span of time as compose and systemd write it."""
    units_s = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600}
    return sum(int(number) * units_s[unit] for number, unit in re.findall(r"(\d+)\s*([a-z]*)", text))


# ── command lines and settings ───────────────────────────────────────────────


def command_lines() -> list[tuple[str, list[str]]]:
    """Every command line of `diptych` in the files, with its place."""
    image = dict(image_steps())
    entrypoint, default = _listed(image["ENTRYPOINT"]), _listed(image["CMD"])
    found = [("Dockerfile", entrypoint + default)]
    found += [(name, entrypoint + SERVICES[name]["command"]) for name in SERVERS]
    found += [(unit.name, ["diptych", *unit.command("8001")[1:]]) for unit in units()]
    found += [("migrate.sh", _command(line)) for line in script_lines("migrate.sh") if line.startswith("diptych ")]
    return found


def _listed(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


def _command(line: str) -> list[str]:
    return shlex.split(line.partition(">")[0])


def test_every_command_line_is_one() -> None:
    """Options that there are not, or are no more, are told here and not by a container that ends."""
    found = command_lines()
    assert len(found) == 1 + len(SERVERS) + len(units()) + 2
    for where, (program, *arguments) in found:
        assert program == "diptych", where
        try:
            command_line().parse_args(arguments, print_error=False)
        except CycloptsError as error:
            raise AssertionError(f"{where}: diptych {' '.join(arguments)}: {error}") from error


def test_every_variable_is_a_setting() -> None:
    """What begins like ours is read, and each process is told its stores."""
    values = dict.fromkeys(variables(), "secret")
    told = {name: interpolated(SERVICES[name]["environment"], values) for name in OURS}
    told |= {unit.name: unit.environment for unit in units()} | {"Dockerfile": image_environment()}
    for where, environment in told.items():
        ours = {name for name in environment if name.startswith(ENVIRONMENT_PREFIX)}
        assert ours, where
        assert sorted(ours - SETTINGS) == [], where
        if where != "Dockerfile":
            assert parse_url(environment["DIPTYCH_STORE"]).schema == "diptych", where
        if "DIPTYCH_READ_STORE" in environment:
            assert parse_url(environment["DIPTYCH_READ_STORE"]).schema == "diptych_read", where


def test_processes_connect_as_whom_the_scripts_make() -> None:
    """In the roles of `diptych migrate --grants`: the writer's for commands, the reader's for queries."""
    made = set(re.findall(r"CREATE ROLE (\w+) LOGIN", " ".join(script_lines("primary.sh"))))
    granted = {
        user: roles for roles, user in re.findall(r"GRANT ([\w, ]+) TO (\w+);", " ".join(script_lines("grants.sh")))
    }
    assert made == {"shop_owner", "shop_replication"}
    assert granted == {
        "shop_commands": "shop_writer",
        "shop_queries": "shop_reader",
        "shop_worker": "shop_projector, shop_writer",
    }
    values = dict.fromkeys(variables(), "secret")
    told = {name: interpolated(SERVICES[name]["environment"], values) for name in OURS}
    told |= {unit.name: unit.environment for unit in units()}
    for where, environment in told.items():
        stores = parse_url(environment["DIPTYCH_STORE"]), parse_url(environment.get("DIPTYCH_READ_STORE", "x://y/z"))
        expected = {
            "api": ("shop_commands", "shop_queries"),
            "worker": ("shop_worker", "shop_worker"),
            "migrate": ("shop_owner", stores[1].user),
        }
        role = next(role for role in expected if role in where)
        assert (stores[0].user, stores[1].user) == expected[role], where


def test_queries_are_asked_on_the_replica_as_the_reader() -> None:
    """By APIs alone; the schema of the read models is left out of a replica's URL."""
    values = dict.fromkeys(variables(), "secret")
    told = {name: interpolated(SERVICES[name]["environment"], values) for name in SERVERS}
    told |= {unit.name: unit.environment for unit in units()}
    asking = {where for where, environment in told.items() if "DIPTYCH_READ_REPLICA" in environment}
    assert asking == {"api-1", "api-2", "diptych-api@.service"}
    for where in asking:
        url = told[where]["DIPTYCH_READ_REPLICA"]
        assert (parse_url(url).user, "schema=" in url) == ("shop_queries", False)
        assert told[where]["DIPTYCH_REPLICA_POLICY"] in get_args(ReplicaPolicy)
    assert "@replica/" in told["api-1"]["DIPTYCH_READ_REPLICA"]


def test_no_secret_is_in_the_files() -> None:
    """Passwords come from outside, and what stands in their place in an example says so."""
    assert {name for name in variables() if not name.endswith("_PASSWORD")} == set()
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), name
            assert not re.search(r"://\w+:(?!\$\{)", value), name
    for unit in units():
        for value in unit.environment.values():
            assert set(re.findall(r"://\w+:([^@]*)@", value)) <= {"CHANGE-ME"}
    assert "examples/deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_readme_makes_every_password() -> None:
    """Those that `compose.yaml` asks for, and no other."""
    (loop,) = re.findall(r"for name in ([A-Z ]+); do", README.text)
    assert {f"{name}_PASSWORD" for name in loop.split()} == variables()


# ── compose ──────────────────────────────────────────────────────────────────


def test_what_a_service_needs_is_there() -> None:
    """Services, conditions, networks, volumes and mounted files, which can be executed."""
    whole = compose()
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], name
            if wanted["condition"] == "service_completed_successfully":
                assert "restart" not in SERVICES[other], name
        assert set(service["networks"]) <= {*whole["networks"], "default"}, name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert os.access(DEPLOY / source, os.X_OK), mount
            else:
                assert source in whole["volumes"], mount
        mounted = {mount.split(":")[1] for mount in service.get("volumes", ())}
        assert set(service.get("entrypoint", ())) <= mounted, name


def test_there_are_two_of_each_and_the_databases_are_not_reached_from_outside() -> None:
    """A primary and a replica, two APIs, two workers; only APIs have ports, on this machine alone."""
    assert sorted(SERVERS) == ["api-1", "api-2", "worker-1", "worker-2"]
    assert compose()["networks"]["data"]["internal"] is True
    outside = {name for name, service in SERVICES.items() if service["networks"] != ["data"]}
    assert outside == {name for name, service in SERVICES.items() if "ports" in service} == {"api-1", "api-2"}
    published = [port for name in sorted(outside) for port in SERVICES[name]["ports"]]
    assert len({port.rpartition(":")[0] for port in published}) == 2
    port = image_environment()["DIPTYCH_PORT"]
    assert all(found.startswith("127.0.0.1:") and found.endswith(f":{port}") for found in published)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_time_to_stop_and_says_how_it_is(name: str) -> None:
    """More than our own limits: of stopping, of health, of connections."""
    service = SERVICES[name]
    assert seconds(service["stop_grace_period"]) > STOP_S_MAX
    assert service["ulimits"]["nofile"] > CONNECTIONS_MAX
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    (url, wait_s) = re.findall(r'urlopen\("([^"]+)", timeout=(\d+)\)', check["test"][-1])[0]
    assert seconds(check["timeout"]) > float(wait_s) > READY_WAIT_S
    port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/.*)", url)[0]
    assert port == image_environment()["DIPTYCH_PORT"]
    assert path == "/health/ready"
    ast.parse(check["test"][-1])


def test_the_replica_can_take_over() -> None:
    """A standby with fewer connections does not start; both have the slot and the log that replication needs."""
    primary, replica = SERVICES["primary"], SERVICES["replica"]
    assert primary["command"] == replica["command"]
    assert primary["image"] == replica["image"] == SERVICES["grants"]["image"] == "postgres:18"
    assert "wal_level=replica" in primary["command"]
    (slot,) = re.findall(r"--slot=(\w+)", " ".join(script_lines("replica.sh")))
    assert f"pg_create_physical_replication_slot('{slot}')" in " ".join(script_lines("primary.sh"))


# ── connections ──────────────────────────────────────────────────────────────


def connections_max() -> int:
    (found,) = [text for text in SERVICES["primary"]["command"] if text.startswith("max_connections=")]
    return int(found.partition("=")[2])


def test_the_connections_of_all_servers_fit() -> None:
    """Also while each is replaced by a new one beside it, one at a time, and an administrator looks."""
    each = EVENT_STORE + WAITING + READ_STORE
    reserved = 3  # superuser_reserved_connections
    assert (len(SERVERS) + 1) * each + reserved < connections_max()
    assert f"open {each} at most each here" in (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


def test_the_guide_counts_connections_as_the_code_does() -> None:
    """By constant, and in all."""
    budget = GUIDE.text.partition("## Connection budget")[2].partition("\n## ")[0]
    for name, value in {
        "READ_CONNECTIONS_MAX": READ_CONNECTIONS_MAX,
        "APPEND_CONNECTIONS": APPEND_CONNECTIONS,
        "SNAPSHOTS_MAX": SNAPSHOTS_MAX,
        "WRITE_CONNECTIONS_MAX": WRITE_CONNECTIONS_MAX,
    }.items():
        assert f"`{name}` {value}" in budget
    assert f"| events | {EVENT_STORE} |" in budget
    assert f"| read models | {READ_STORE} |" in budget
    assert f"| what waits | {WAITING} |" in budget
    assert f"| all | {EVENT_STORE + WAITING + READ_STORE} |" in budget
    assert f"| each replica | {SNAPSHOTS_MAX + LOOK_CONNECTIONS_MAX} |" in budget
    assert f"`LOOK_CONNECTIONS_MAX` {LOOK_CONNECTIONS_MAX}" in budget


# ── the image ────────────────────────────────────────────────────────────────


def test_the_image_is_made_of_what_is_there() -> None:
    """It copies files of the repository that its .dockerignore lets in; what it installs is what the wheel offers."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    steps = list(image_steps())
    copied = [part for instruction, rest in steps if instruction == "COPY" for part in rest.split()[:-1]]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    assert (DEPLOY / SERVICES["api-1"]["build"]["context"]).resolve() == ROOT
    assert ROOT / SERVICES["api-1"]["build"]["dockerfile"] == DEPLOY / "Dockerfile"
    assert "diptych[postgres]" in "".join(rest for instruction, rest in steps if instruction == "RUN")


def test_the_image_is_small_and_runs_as_nobody_in_particular() -> None:
    """A slim Python that we support, no cache of packages, no root, no shell before the server."""
    steps = list(image_steps())
    assert {rest.split()[0] for instruction, rest in steps if instruction == "FROM"} == {"python:3.13-slim"}
    installs = [rest for instruction, rest in steps if instruction == "RUN" and "pip " in rest]
    assert len(installs) == 2
    assert all("--no-cache-dir" in rest for rest in installs)
    assert dict(steps)["USER"] == "shop"
    assert dict(steps)["ENTRYPOINT"] == '["diptych"]'
    assert image_environment()["DIPTYCH_HOST"] == "0.0.0.0"  # noqa: S104 — of the container


def test_every_server_says_who_may_send_commands() -> None:
    """Containers are reached at all their addresses: a worker serves health alone, an API says that others know."""
    for name in SERVERS:
        command = SERVICES[name]["command"]
        assert ("worker" in command) != ("--without-authentication" in command), name
    for unit in units():
        if "@" in unit.name:
            assert unit.environment["DIPTYCH_HOST"] == "127.0.0.1"
            assert "--without-authentication" not in unit.command("8001")


# ── systemd ──────────────────────────────────────────────────────────────────


def test_there_are_units_for_both_roles_and_the_migration() -> None:
    """Of APIs and workers, as many instances as wanted."""
    assert [unit.name for unit in units()] == [
        "diptych-api@.service",
        "diptych-migrate.service",
        "diptych-worker@.service",
    ]


@pytest.mark.parametrize("unit", named(units()))
def test_a_unit_has_what_it_needs(unit: Unit) -> None:
    """Its environment from a file, no more rights than it needs, and a description."""
    assert unit.sections["Unit"]["Description"]
    assert HARDENING.items() <= unit.service.items()
    assert unit.command("8001")[0] == "/opt/shop/venv/bin/diptych"
    assert unit.environment


@pytest.mark.parametrize("unit", named([unit for unit in units() if "@" in unit.name]))
def test_a_server_is_kept_running_and_stopped_in_order(unit: Unit) -> None:
    """It is started again whatever happened, but for a wrong command line; stopping has more time than it needs."""
    service = unit.service
    assert (service["Type"], service["Restart"], service["KillMode"]) == ("exec", "always", "mixed")
    assert service["RestartPreventExitStatus"] == "2"
    assert seconds(service["TimeoutStopSec"]) > STOP_S_MAX
    assert unit.sections["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit.sections["Install"]["WantedBy"] == "multi-user.target"
    assert unit.command("8001")[-2:] == ["--port", "8001"]
    assert int(service.get("LimitNOFILE", CONNECTIONS_MAX + 1)) > CONNECTIONS_MAX
    assert ("LimitNOFILE" in service) == ("api" in unit.name)


def test_a_migration_has_as_long_as_it_may_take() -> None:
    """An hour for each store; it is started once and ends."""
    (unit,) = [unit for unit in units() if "migrate" in unit.name]
    assert unit.service["Type"] == "oneshot"
    assert seconds(unit.service["TimeoutStartSec"]) > 2 * MIGRATE_S_MAX
    assert "Restart" not in unit.service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize("unit", named(units()))
def test_systemd_accepts_a_unit(unit: Unit, tmp_path: Path) -> None:
    """It knows every key and value; the command is one that is here."""
    text = (UNITS / unit.name).read_text(encoding="utf-8").replace("/opt/shop/venv/bin/diptych", sys.executable)
    path = tmp_path / unit.name.replace("@", "@8001")
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name.partition("@")[0] in line]
    assert (done.returncode, complaints) == (0, [])
