"""`diptych copy`: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.event_store import copying
from tests.cli_project import STORE, Project, project_in
from tests.postgres_server import (
    as_role,
    in_thread,
    new_database,
    new_granted_store,
    new_store,
    run,
    with_parameter,
)

COPY = "sqlite:copy.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with three events and their outcomes."""
    with project_in(tmp_path, monkeypatch) as made:
        made.enrol("python", "sql", "python")
        yield made


def by_hand(file: str, statement: str) -> None:
    """Run a statement in somebody's shell."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(statement)
    connection.close()


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2]


def test_a_copy_is_told_and_verified(project: Project) -> None:
    """Where from and to, which history, how much; one digest for both; and what has to be stopped."""
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY)
    assert (code, err) == (0, "")
    assert out.startswith("from     sqlite:school.db\nto       sqlite:copy.db\nhistory  ")
    assert out.count("sha256:") == 1
    assert "copied   3 events in " in out
    assert "Both hold the same 3 events and 3 kept outcomes." in out
    assert "stop it first" in out
    status = [json.loads(project.run("status", "--store", store, "--json").out) for store in (STORE, COPY)]
    assert status[0] == status[1]
    events = [project.run("events", "--store", store, "--json").out for store in (STORE, COPY)]
    assert events[0] == events[1] != ""


def test_a_copy_goes_on_where_it_was(project: Project) -> None:
    """Run again it copies what has come since, and nothing twice; machines hear it as JSON."""
    assert project.run("copy", "--from", STORE, "--to", COPY).code == 0
    project.enrol("chess")
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["copied_events"], report["position"], report["source_position"]) == (1, 4, 4)
    assert report["source_digest"] == report["target_digest"]
    assert report["difference"] is None


def test_it_goes_to_a_server_and_back(project: Project) -> None:
    """Through PostgreSQL into another file: the digest is that of the first."""
    server = in_thread(new_store())
    reports = [
        json.loads(project.run("copy", "--from", source, "--to", target, "--json").out)
        for source, target in ((STORE, server), (server, COPY))
    ]
    assert reports[0]["target_digest"] == reports[1]["target_digest"] == reports[0]["source_digest"]
    assert project.run("copy", "--from", STORE, "--to", COPY, "--verify").code == 0


def test_a_source_that_is_in_use_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source was ahead at the end the target is not all of it: no script goes on from there."""
    monkeypatch.setattr(copying, "PASSES_MAX", 0)  # as if it had gone on during every one of them
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY)
    assert code == 1
    assert "the source has gone on to position 3, the target holds it up to 0: commands still run there" in err
    assert "Stop them, and run this again" in err
    assert "stop it first" not in out


# ── verify ───────────────────────────────────────────────────────────────────


def test_verify_copies_nothing(project: Project) -> None:
    """A target that is behind differs, and stays behind."""
    project.run("copy", "--from", STORE, "--to", COPY)
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY, "--verify")
    assert (code, err) == (0, "")
    assert "copied" not in out
    project.enrol("chess")
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY, "--verify")
    assert code == 1
    assert "the target lacks events from position 4" in err
    assert json.loads(project.run("status", "--store", COPY, "--json").out)["head"] == 3


def test_verify_makes_no_target(project: Project) -> None:
    """There is nothing to compare with."""
    code, _, err = project.run("copy", "--from", STORE, "--to", COPY, "--verify")
    assert code == 1
    assert "there is no store at copy.db" in err
    assert not project.folder.joinpath("copy.db").exists()


def test_one_changed_byte_is_told(project: Project) -> None:
    """In whichever store, after whatever copied it: both digests are shown, and what differs first."""
    server = in_thread(new_store())
    assert project.run("copy", "--from", STORE, "--to", server).code == 0
    schema = schema_of(server)
    changed = f'UPDATE "{schema}".events SET data = set_byte(data, 2, get_byte(data, 2) # 1) WHERE position = 2'
    in_thread(run(server, changed))
    for arguments in ((), ("--verify",)):
        code, out, err = project.run("copy", "--from", STORE, "--to", server, *arguments)
        assert code == 1
        assert out.count("sha256:") == 2
        assert "source and target differ up to position 3: the event at position 2 differs in data" in err
        assert "Both hold" not in out
    code, out, _ = project.run("copy", "--from", STORE, "--to", server, "--json")
    report = json.loads(out)
    assert code == 1
    assert report["source_digest"] != report["target_digest"]
    assert report["difference"] == "the event at position 2 differs in data"


@pytest.mark.parametrize("arguments", [(), ("--verify",)])
def test_what_differs_is_named_where_a_type_is_not_held(project: Project, arguments: tuple[str, ...]) -> None:
    """A server that does not know which types it has events of differs, in this direction as well."""
    server = in_thread(new_store())
    assert project.run("copy", "--from", STORE, "--to", server).code == 0
    in_thread(run(server, f'UPDATE "{schema_of(server)}".event_versions SET held = false'))
    code, _, err = project.run("copy", "--from", STORE, "--to", server, *arguments)
    assert code == 1
    assert "only the source knows that it holds events of the event type school.Enrolled (version 1)" in err


# ── what is refused ──────────────────────────────────────────────────────────


def test_another_history_is_refused(project: Project) -> None:
    """A target that is not empty is left as it is, and the error says what is there."""
    project.enrol("python", store=COPY)
    before = project.run("events", "--store", COPY, "--json").out
    code, out, err = project.run("copy", "--from", STORE, "--to", COPY)
    assert (code, out) == (1, "")
    assert "the target belongs to another history: it holds the history" in err
    assert "with 1 events" in err
    assert "Nothing was changed" in err
    assert project.run("events", "--store", COPY, "--json").out == before


@pytest.mark.parametrize("arguments", [(), ("--verify",)])
def test_a_copy_in_use_is_refused(project: Project, arguments: tuple[str, ...]) -> None:
    """Once commands were run on it, the history goes on there, or has forked; to verify is to hear of it as well."""
    project.run("copy", "--from", STORE, "--to", COPY)
    project.enrol("chess", store=COPY)
    code, _, err = project.run("copy", "--from", STORE, "--to", COPY, *arguments)
    assert code == 1
    assert "it has come to position 4, the source only to 3: commands were run on it" in err
    project.enrol("go")
    code, _, err = project.run("copy", "--from", STORE, "--to", COPY, *arguments)
    assert code == 1
    assert "it has another event at position 4 than the source" in err


@pytest.mark.parametrize("other", ["sqlite:school.db", "sqlite:./school.db", "sqlite:sub/../school.db"])
def test_one_store_is_no_copy(project: Project, other: str) -> None:
    """However its path is written."""
    project.folder.joinpath("sub").mkdir()
    code, _, err = project.run("copy", "--from", STORE, "--to", other)
    assert (code, err) == (2, "error: --from and --to name the same store\n")


def test_one_file_is_no_copy(project: Project) -> None:
    """Whichever of its names is given."""
    project.folder.joinpath("linked.db").hardlink_to("school.db")
    code, _, err = project.run("copy", "--from", STORE, "--to", "sqlite:linked.db")
    assert (code, err) == (2, "error: --from and --to name the same store\n")


@pytest.mark.parametrize("arguments", [(), ("--verify",)])
def test_one_store_on_a_server_is_no_copy(project: Project, arguments: tuple[str, ...]) -> None:
    """The server is asked which it is: a parameter makes another URL of it, but no other store."""
    server = in_thread(new_store())
    assert project.run("copy", "--from", STORE, "--to", server).code == 0
    other = with_parameter(server, "application_name", "other")
    code, out, err = project.run("copy", "--from", server, "--to", other, *arguments)
    assert (code, out, err) == (2, "", "error: --from and --to name the same store\n")


def test_two_schemas_of_a_database_are_two_stores(project: Project) -> None:
    """They share a server, and nothing else."""
    one, other = in_thread(new_store()), in_thread(new_store())
    for flags in (("--from", STORE, "--to", one), ("--from", one, "--to", other)):
        assert project.run("copy", *flags).code == 0


def test_who_may_not_read_outcomes_copies_nothing(project: Project) -> None:
    """A source opened as a reader is refused before its events are copied: the target would look whole."""
    server = in_thread(new_granted_store())
    assert project.run("copy", "--from", STORE, "--to", server).code == 0
    code, _, err = project.run("copy", "--from", as_role(server, "reader"), "--to", COPY)
    assert code == 1
    assert "permission denied for table outcomes" in err
    status = json.loads(project.run("status", "--store", COPY, "--json").out)
    source = json.loads(project.run("status", "--store", STORE, "--json").out)
    assert status["head"] == 0
    assert status["history_id"] != source["history_id"]


def test_one_server_is_no_copy(project: Project) -> None:
    """However the URL is written, nothing is connected to."""
    urls = ("postgresql://user:secret@nowhere.invalid/school", "postgres://user@nowhere.invalid/school")
    code, _, err = project.run("copy", "--from", urls[0], "--to", urls[1])
    assert (code, err) == (2, "error: --from and --to name the same store\n")


@pytest.mark.parametrize("flags", [("--from", "memory:", "--to", COPY), ("--from", STORE, "--to", "memory:")])
def test_memory_is_no_store_to_copy(project: Project, flags: tuple[str, ...]) -> None:
    """It would end with the command."""
    code, _, err = project.run("copy", *flags)
    assert code == 2
    assert "memory: ends with its process" in err


def test_a_source_that_is_not_there_is_not_made(project: Project) -> None:
    """A misspelt path is no empty history."""
    code, _, err = project.run("copy", "--from", "sqlite:schol.db", "--to", COPY)
    assert code == 1
    assert "there is no store at schol.db; did you mean school.db?" in err
    assert not project.folder.joinpath("schol.db").exists()
    assert not project.folder.joinpath("copy.db").exists()


def test_a_newer_store_is_refused(project: Project) -> None:
    """On either side, a file or a server: nothing was read or changed."""
    shutil.copy("school.db", "newer.db")
    by_hand("newer.db", "PRAGMA user_version = 99")
    for flags in (("--from", "sqlite:newer.db", "--to", COPY), ("--from", STORE, "--to", "sqlite:newer.db")):
        code, _, err = project.run("copy", *flags)
        assert code == 1
        assert "newer.db has schema version 99" in err
    server = in_thread(new_store())
    newer = f"INSERT INTO \"{schema_of(server)}\".migrations (store, number, name) VALUES ('event store', 99, 'x')"
    in_thread(run(server, newer))
    code, _, err = project.run("copy", "--from", STORE, "--to", server)
    assert code == 1
    assert "has schema version 99" in err


def test_a_server_without_tables_is_told_how_to_get_them(project: Project) -> None:
    """As everywhere."""
    server = with_parameter(in_thread(new_database()), "schema", "school")
    code, _, err = project.run("copy", "--from", STORE, "--to", server)
    assert code == 1
    assert "run diptych migrate --store" in err


def test_passwords_are_not_shown(project: Project) -> None:
    """Neither in results nor in errors."""
    server = with_parameter(in_thread(new_store()), "password", "hunter2")
    for flags in (
        ("--from", STORE, "--to", server),
        ("--from", server, "--to", COPY),
        ("--from", COPY, "--to", server),
    ):
        for json_too in ((), ("--json",)):
            code, out, err = project.run("copy", *flags, *json_too)
            assert code == 0
            assert "hunter2" not in out + err
    project.enrol("other", store="sqlite:other.db")
    code, out, err = project.run("copy", "--from", "sqlite:other.db", "--to", server)
    assert code == 1
    assert "hunter2" not in out + err


def test_the_stores_come_from_the_environment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line is seen by everybody on the machine; a URL may hold a password."""
    monkeypatch.setenv("DIPTYCH_COPY_FROM", STORE)
    monkeypatch.setenv("DIPTYCH_COPY_TO", COPY)
    code, out, err = project.run("copy")
    assert (code, err) == (0, "")
    assert "sqlite:copy.db" in out


def test_both_stores_have_to_be_named(project: Project) -> None:
    """There is no default that would not be a guess."""
    code, _, err = project.run("copy", "--from", STORE)
    assert code == 2
    assert "--to" in err
