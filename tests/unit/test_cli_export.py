"""`diptych export`: the history of a project as a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

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


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--parquet", "missing/school.parquet"], 2, "there is no folder missing"),
        (["--parquet", "."], 2, "is a folder"),
        (["--parquet", "s.parquet", "--type", "Enroled"], 1, "did you mean school.Enrolled?"),
        (["--parquet", "s.parquet", "--store", "sqlite:other.db"], 1, "there is no store at other.db"),
        (["--parquet", "s.parquet", "--store", "duckdb:school.duckdb"], 1, "no events"),
    ],
)
def test_what_cannot_be_exported_is_told(project: Project, arguments: list[str], code: int, reason: str) -> None:
    """And nothing is written."""
    found, out, err = project.run("export", *arguments)
    assert (found, out) == (code, "")
    assert reason in " ".join(err.split())
    assert not list(project.folder.glob("*.parquet*"))
