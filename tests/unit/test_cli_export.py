"""`diptych export`: the history of a project, its read models, and events of one type as Parquet files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from diptych.entrypoints.cli.signals import INTERRUPTED
from tests.cli_project import STORE, Project, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with three events of two types."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        made.enrol("python", "ruby")
        made.audit("python")
        yield made


def positions(path: Path) -> list[Any]:
    with duckdb.connect(":memory:") as connection:
        return connection.read_parquet(str(path)).project("position, type, data ->> 'course'").fetchall()


def test_the_history_is_written_to_a_file(project: Project) -> None:
    """It says how much, and up to where; another export takes the file's place."""
    code, out, err = project.run("export", "--parquet", "school.parquet")
    assert (code, err) == (0, "")
    assert out == "3 events up to position 3 are in school.parquet.\n"
    assert positions(project.folder / "school.parquet") == [
        (1, "school.Enrolled", "python"),
        (2, "school.Enrolled", "ruby"),
        (3, "school.Audited", "python"),
    ]
    code, out, _ = project.run("export", "--parquet", "school.parquet", "--after", "1", "--type", "Enrolled", "--json")
    assert (code, json.loads(out)) == (0, {"file": "school.parquet", "events": 1, "after": 1, "through": 3})
    assert positions(project.folder / "school.parquet") == [(2, "school.Enrolled", "ruby")]


def rows(path: Path) -> list[Any]:
    with duckdb.connect(":memory:") as connection:
        return connection.read_parquet(str(path)).order("ALL").fetchall()


def test_a_read_model_is_written_to_a_file(project: Project) -> None:
    """As of one position, which the file and the command tell; another export takes the file's place."""
    target = project.folder / "seats.parquet"
    code, out, err = project.run("export", "--parquet", "seats.parquet", "--model", "Seats")
    assert (code, err) == (0, "")
    assert out == "2 rows of school.Seats as of position 3 are in seats.parquet.\n"
    assert rows(target) == [("python", 1), ("ruby", 1)]
    project.enrol("python")
    code, out, _ = project.run("export", "--parquet", "seats.parquet", "--model", "school.Seats", "--json")
    told = json.loads(out)
    with duckdb.connect(":memory:") as connection:
        found = connection.execute(f"SELECT key, value FROM parquet_kv_metadata('{target}')").fetchall()
    metadata = {key.decode(): value.decode() for key, value in found}
    assert told.pop("token") == metadata["diptych.token"]
    assert (code, told) == (
        0,
        {"file": "seats.parquet", "read_model": "school.Seats", "rows": 2, "position": 4, "incomplete": False},
    )
    assert (metadata["diptych.position"], rows(target)) == ("4", [("python", 2), ("ruby", 1)])


def test_rows_that_lack_events_are_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that there are."""
    monkeypatch.setenv("UNFOLDABLE", "perl")
    project.enrol("perl", "python")
    code, out, _ = project.run("export", "--parquet", "seats.parquet", "--model", "Seats")
    assert (code, len(rows(project.folder / "seats.parquet"))) == (0, 2)
    assert "Events of blocked keys are missing from them" in out


def test_events_of_one_type_are_written_to_a_file(project: Project) -> None:
    """With a column for each field."""
    target = project.folder / "enrolled.parquet"
    code, out, err = project.run("export", "--parquet", "enrolled.parquet", "--event", "Enrolled")
    assert (code, err) == (0, "")
    assert out == "2 events of school.Enrolled up to position 3 are in enrolled.parquet.\n"
    assert [(row[0], row[-1]) for row in rows(target)] == [(1, "python"), (2, "ruby")]
    code, out, _ = project.run("export", "--parquet", str(target), "--event", "Enrolled", "--after", "1", "--json")
    assert (code, [row[-1] for row in rows(target)]) == (0, ["ruby"])
    assert json.loads(out) == {
        "file": str(target),
        "event": "school.Enrolled",
        "rows": 1,
        "position": 3,
        "after": 1,
        "pruned": 0,
    }


def test_ctrl_c_leaves_the_file_of_before(project: Project) -> None:
    """In the middle of it: no half file, and nothing beside it."""
    target, gate = project.folder / "seats.parquet", project.folder / "gate"
    assert project.run("export", "--parquet", "seats.parquet", "--model", "Seats").code == 0
    before = target.read_bytes()
    os.mkfifo(gate)
    source = project.folder / "held.py"
    source.write_text(_HELD.format(module=project.module))
    arguments = ("export", "held:school", "--parquet", "seats.parquet", "--event", "Enrolled")
    exporting = project.start(*arguments)
    with gate.open("w"):  # when the other side reads, too
        exporting.send_signal(signal.SIGINT)
        assert exporting.stderr is not None
    _, err = exporting.communicate(timeout=60)
    assert exporting.returncode == INTERRUPTED, err
    assert target.read_bytes() == before
    assert not list(project.folder.glob("*.exporting*"))


_HELD = """
from {module} import school, Enrolled
from diptych.event_store.history import History

matching = History.matching

def held(history, recorded, wanted):
    if recorded.position == 1:
        with open("gate") as gate:
            gate.read()
    return matching(history, recorded, wanted)

History.matching = held
"""
"""The project, in which the first event is read when somebody has opened and closed a gate."""


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--parquet", "missing/school.parquet"], 2, "there is no folder missing"),
        (["--parquet", "."], 2, "is a folder"),
        (["--parquet", "s.parquet", "--type", "Enroled"], 1, "did you mean school.Enrolled?"),
        (["--parquet", "s.parquet", "--store", "sqlite:other.db"], 1, "there is no store at other.db"),
        (["--parquet", "s.parquet", "--store", "duckdb:school.duckdb"], 1, "no events"),
        (["--parquet", "s.parquet", "--model", "Seat"], 1, "did you mean school.Seats?"),
        (["--parquet", "s.parquet", "--event", "Enroled"], 1, "did you mean school.Enrolled?"),
        (["--parquet", "s.parquet", "--event", "Enrolled", "--model", "Seats"], 2, "give one of them"),
        (["--parquet", "s.parquet", "--event", "Enrolled", "--type", "Audited"], 2, "leave it out"),
        (["--parquet", "s.parquet", "--model", "Seats", "--after", "1"], 2, "as it is now"),
        (["--parquet", "s.parquet", "--decimals", "text"], 2, "--decimals is for --model and --event"),
    ],
)
def test_what_cannot_be_exported_is_told(project: Project, arguments: list[str], code: int, reason: str) -> None:
    """And nothing is written."""
    found, out, err = project.run("export", *arguments)
    assert (found, out) == (code, "")
    assert reason in " ".join(err.split())
    assert not list(project.folder.glob("*.parquet*"))
