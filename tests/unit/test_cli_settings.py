"""Where the command line's settings come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.entrypoints.cli.settings import Settings
from tests.cli_project import Project, project_in

FLAG, ENVIRONMENT, FILE = "sqlite:flag.db", "sqlite:environment.db", "sqlite:file.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def test_a_flag_comes_before_the_environment_and_that_before_the_file(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is used where none above it says anything."""
    for store in (FLAG, ENVIRONMENT, FILE):
        project.enrol("python", store=store)
    project.settings(f'store = "{FILE}"')
    assert FILE in project.run("status").out
    monkeypatch.setenv("DIPTYCH_STORE", ENVIRONMENT)
    assert ENVIRONMENT in project.run("status").out
    assert FLAG in project.run("status", "--store", FLAG).out


def test_the_application_is_found_in_every_layer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gives a name or a list of them, the environment names between spaces, the flag goes first."""
    project.enrol("python")
    stores = ("--store", "sqlite:school.db")
    project.settings(f'app = "{project.context}"')
    assert "school.Seats" in project.run("status", *stores).out
    project.settings(f'app = ["{project.context}"]')
    assert "school.Seats" in project.run("status", *stores).out
    monkeypatch.setenv("DIPTYCH_APP", f"{project.context} {project.module}:missing")
    assert "has no 'missing'" in project.run("status", *stores).err
    assert "school.Seats" in project.run("status", project.context, *stores).out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('stroe = "sqlite:x.db"', "diptych.toml has an unknown key 'stroe'; did you mean 'store'?"),
        (
            "colour = 1",
            (
                "unknown key 'colour'; there are app, partition_by, partition, store, read_store, read_stores, "
                "read_replica, replica_policy, host, port, role, processes, jwks, issuer, audience, "
                "without_authentication, on_changed, rebuild_rate, keep, log_format, inline"
            ),
        ),
        ("port = 'http'", "diptych.toml: expected `int`, got `str` at port"),
        ("port = 70000", "diptych.toml: expected `int` <= 65535 at port"),
        ("log_format = 'xml'", "diptych.toml: invalid enum value 'xml' at log_format"),
        ("store = ", "diptych.toml is no TOML: Invalid value (at end of document)"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(project: Project, text: str, told: str) -> None:
    """Unknown keys, wrong values and broken TOML are one clear error each."""
    project.settings(text)
    code, out, err = project.run("status", "--store", "sqlite:school.db")
    assert (code, out) == (1, "")
    assert told in err
    assert "Traceback" not in err


def test_replicas_are_parted_where_a_url_begins() -> None:
    """A comma between hosts, whose ports look like the scheme of a URL, parts nothing."""
    one, other = "postgresql://u@r1:5432,r2:5433/db", "postgres://r3,r4/db"
    assert Settings(read_replica=f"{one}, {other}").read_replicas == (one, other)
    assert Settings(read_replica=one).read_replicas == (one,)
    assert Settings().read_replicas == ()


def test_a_wrong_value_in_the_environment_names_the_variable(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a usage error, like a wrong flag."""
    monkeypatch.setenv("DIPTYCH_PORT", "http")
    code, _, err = project.run("run", project.context)
    assert code == 2
    assert "DIPTYCH_PORT" in err


def test_a_misspelt_variable_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is close to a setting is warned of; others with the prefix are left alone."""
    project.enrol("python")
    monkeypatch.setenv("DIPTYCH_STROE", "sqlite:other.db")
    monkeypatch.setenv("DIPTYCH_HOMEPAGE_OF_TEAM", "x")
    err = project.run("status", "--store", "sqlite:school.db").err
    assert "DIPTYCH_STROE is not read; did you mean DIPTYCH_STORE?" in err
    assert "HOMEPAGE" not in err
