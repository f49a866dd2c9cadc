"""`diptych history`: how one row came to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.entrypoints.cli import history
from tests.cli_project import STORE, Project, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context and its store: two events of one course, between them another one's."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        made.enrol("python", "ruby", "python")
        yield made


def test_it_tells_each_event_of_the_row(project: Project) -> None:
    """Position, time, name and effect, and below it each field that changed; no other row's events."""
    code, out, err = project.run("history", "Seats", "python")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 4)
    assert lines[0].split()[0] == "1"
    assert lines[0].endswith("Z  school.Enrolled  created")
    assert lines[1].split() == ["taken:", "1"]
    assert lines[2].split()[0] == "3"
    assert lines[2].endswith("Z  school.Enrolled  changed")
    assert lines[3].split() == ["taken:", "1", "→", "2"]


def test_a_line_of_json_is_all_of_it(project: Project) -> None:
    """One object a line: the row before, the row after, and what differs."""
    code, out, _ = project.run("history", "school.Seats", '["python"]', "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 0
    assert (first["before"], first["after"]) == (None, {"course": "python", "taken": 1})
    assert (second["position"], second["event"], second["effect"]) == (3, "school.Enrolled", "changed")
    assert second["changes"] == [{"field": "taken", "before": 1, "after": 2}]


def test_it_can_be_cut_to_some(project: Project) -> None:
    """The first of them, or those behind a position, which are folded on what was before."""
    assert len(project.run("history", "Seats", "python", "--json", "--limit", "1").out.splitlines()) == 1
    (line,) = project.run("history", "Seats", "python", "--json", "--after", "1").out.splitlines()
    assert json.loads(line)["after"] == {"course": "python", "taken": 2}


def test_what_is_left_out_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocked event with the reason, and what waits behind it; once it is discarded, that."""
    monkeypatch.setenv("UNFOLDABLE", "go")
    project.enrol("go", "go")
    out = project.run("history", "Seats", "go").out
    assert [line.split()[-1] for line in out.splitlines() if "Enrolled" in line] == ["blocked", "waiting"]
    assert "no such room" in out
    item = json.loads(project.run("parked", "list", "--json").out.splitlines()[0])["id"]
    monkeypatch.delenv("UNFOLDABLE")
    assert project.run("parked", "discard", item, "--reason", "closed", "--yes").code == 0
    out = project.run("history", "Seats", "go").out
    assert [line.split()[-1] for line in out.splitlines() if "Enrolled" in line] == ["discarded", "created"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("Seat", "python"), 1, "did you mean school.Seats?"),
        (("Seats", "perl"), 1, "no event concerns a row of school.Seats with the key perl"),
        (("Seats", "python", "--after", "3"), 1, "no event after position 3"),
        (("Seats", '["python", "2026"]'), 2, "the key of Seats is (course)"),
        (("Seats", "[7]"), 2, "is no key of Seats (course)"),
    ],
)
def test_what_is_not_there_is_told(project: Project, arguments: tuple[str, ...], code: int, told: str) -> None:
    """A read model with names that are close; a row that never was, and a key that is none."""
    found = project.run("history", *arguments)
    assert (found.code, found.out) == (code, "")
    assert told in " ".join(found.err.split())


def test_a_long_value_is_shown_where_it_differs() -> None:
    """So much of both, from a little before the first difference; short ones whole."""
    long, longer = "a" * 500, "a" * 500 + "b" * 500
    shown = history._short(longer, long)
    assert shown == "…" + "a" * 20 + "b" * 180 + "…"
    assert history._short(long, longer) == "…" + "a" * 21
    assert history._short("short", longer) == "short"
    assert history._short(long, "x") == "a" * 200 + "…"
