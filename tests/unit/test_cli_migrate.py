"""`diptych migrate`: tables on a server, made once, by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import Project, project_in
from tests.postgres_server import in_thread, new_database, with_parameter


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\n')
        yield made


def test_what_is_missing_is_made_and_said(project: Project) -> None:
    """Before it, an application does not start and says what to do; after it, it runs; again, nothing is missing."""
    store = ("--store", with_parameter(in_thread(new_database()), "schema", "school"))
    code, out, err = project.run("status", *store)
    assert (code, out) == (1, "")
    assert "holds no event store yet: run diptych migrate --store" in err
    code, out, err = project.run("migrate", *store)
    assert (code, err) == (0, "")
    assert out.startswith("event store: migrated: 1 tables")
    assert "\nread store: migrated: 1 " in out
    assert project.run("status", *store).code == 0
    again = project.run("migrate", *store)
    assert (again.code, again.out) == (0, "event store: nothing was missing\nread store: nothing was missing\n")


def test_status_does_not_show_the_password(project: Project) -> None:
    """What a terminal shows may be read, or pasted, by others."""
    store = with_parameter(with_parameter(in_thread(new_database()), "schema", "school"), "password", "hunter2")
    assert project.run("migrate", "--store", store).code == 0
    code, out, err = project.run("status", "--store", store)
    assert (code, err) == (0, "")
    assert "schema=school" in out
    assert "hunter2" not in out


def test_the_statements_can_be_printed(project: Project) -> None:
    """For whoever runs them by hand; nothing is connected to."""
    code, out, _ = project.run("migrate", "--sql", "--store", "postgresql://nobody@nowhere.invalid/school?schema=s")
    assert code == 0
    assert out.count("BEGIN;") == out.count("COMMIT;") == 2
    assert 'CREATE SCHEMA IF NOT EXISTS "s";' in out
    assert 'CREATE SCHEMA IF NOT EXISTS "s_read";' in out


def test_files_need_none(project: Project) -> None:
    """They are made and upgraded when they are opened, and this opens none."""
    code, out, _ = project.run("migrate", "--store", "sqlite:school.db")
    assert code == 0
    assert out.count("makes its own tables when it is opened") == 2
    assert not project.folder.joinpath("school.db").exists()


def test_a_store_has_to_be_named(project: Project) -> None:
    """There is no default server."""
    code, out, err = project.run("migrate")
    assert (code, out) == (1, "")
    assert err.startswith("error: which store? Say --store postgresql://user@host/database")
