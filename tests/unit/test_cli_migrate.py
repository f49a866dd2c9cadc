"""`diptych migrate`: tables on a server, made once, by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.adapters.postgres.connection import parse_url
from tests.cli_project import Project, project_in
from tests.postgres_server import as_role, in_thread, new_database, new_granted_store, new_store, run, with_parameter


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
    assert out.count("BEGIN;") == out.count("COMMIT;") == 3
    assert 'CREATE SCHEMA IF NOT EXISTS "s";' in out
    assert 'CREATE SCHEMA IF NOT EXISTS "s_read";' in out


GRANTED = "postgresql://nobody@nowhere.invalid/school?schema=s"


def test_the_roles_can_be_printed(project: Project) -> None:
    """Who may do what in each store, in roles named after the schema of the events; nothing is connected to."""
    code, out, _ = project.run("migrate", "--grants", "--store", GRANTED)
    assert code == 0
    assert out.count("BEGIN;") == out.count("COMMIT;") == 3
    assert "CREATE TABLE" not in out
    events, rows = out.split("-- read store:")
    assert 'GRANT EXECUTE ON FUNCTION "s".append TO "s_writer";' in events
    assert 'GRANT SELECT ON "s".events TO "s_projector";' in events
    assert 'GRANT SELECT ON "s_read".diptych_generations TO "s_reader";' in rows
    assert 'GRANT CREATE ON SCHEMA "s_read" TO "s_projector";' in rows
    assert "_writer" not in rows


def test_roles_are_named_as_asked(project: Project) -> None:
    """Roles belong to the server: applications that share one, and a schema's name, tell theirs apart so."""
    code, out, _ = project.run("migrate", "--grants", "--role-prefix", "till", "--store", GRANTED)
    assert code == 0
    assert '"till_writer"' in out
    assert '"till_projector"' in out
    assert '"s_writer"' not in out
    code, out, err = project.run("migrate", "--grants", "--role-prefix", 'a"b', "--store", GRANTED)
    assert (code, out) == (1, "")
    assert "the roles' prefix=a\"b" in err
    code, out, err = project.run("migrate", "--role-prefix", "till", "--store", GRANTED)
    assert (code, out) == (2, "")
    assert "--grants" in err


def test_tables_and_roles_are_printed_together(project: Project) -> None:
    """As one script: what makes the tables stands first."""
    code, out, _ = project.run("migrate", "--sql", "--grants", "--store", GRANTED)
    assert code == 0
    assert 0 <= out.index('CREATE TABLE "s_read".diptych_generations') < out.index("CREATE ROLE %I")


def test_a_store_without_roles_is_said_to_have_none(project: Project) -> None:
    """Each URL prints what belongs to it: of events in a file, and rows on a server, the latter's."""
    code, out, _ = project.run("migrate", "--grants", "--store", "sqlite:school.db", "--read-store", GRANTED)
    assert code == 0
    assert out.startswith("-- event store: has no roles")
    assert 'GRANT SELECT ON "s".diptych_generations TO "s_reader";' in out
    code, out, _ = project.run("migrate", "--grants", "--store", GRANTED, "--read-store", "sqlite:school.db")
    assert code == 0
    assert out.rstrip().splitlines()[-1].startswith("-- read store: has no roles")


def test_stores_in_one_schema_have_no_roles(project: Project) -> None:
    """Whoever connects to which: what a projector makes is not beside the events."""
    code, out, err = project.run(
        "migrate", "--grants", "--store", GRANTED, "--read-store", GRANTED.replace("nobody", "b")
    )
    assert (code, out) == (1, "")
    assert "Give read models a schema of their own" in err
    apart = (GRANTED.replace("/school", "/rows"), f"{GRANTED}&port=1", GRANTED.replace("=s", "=rows"))
    for other in apart:
        assert project.run("migrate", "--grants", "--store", GRANTED, "--read-store", other).code == 0


def test_a_read_store_without_tables_is_told_how_to_get_them(project: Project) -> None:
    """The flag is the one that makes a read store, not events where the rows are to be."""
    store = in_thread(new_store())
    code, _, err = project.run("run", project.context, "--store", store)
    assert code == 1
    assert "holds no read store yet: run diptych migrate --store … --read-store 'postgresql:" in err


def test_a_user_in_a_role_who_migrates_is_told_who_may(project: Project) -> None:
    """No role that `--grants` prints may, so that none is sent there."""
    store = in_thread(new_granted_store())
    in_thread(run(store, f"DELETE FROM {parse_url(store).quoted_schema}.migrations WHERE number = 4"))
    code, _, err = project.run("migrate", "--store", as_role(store, "writer"))
    assert code == 1
    assert "permission denied" in err
    assert "this is the owner's to do" in err


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
