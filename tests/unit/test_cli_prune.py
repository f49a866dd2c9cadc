"""`diptych prune`: what it drops, asks, and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import STORE, Project, Terminal, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context and its store: three events, of which nothing folds the last."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        made.enrol("python", "ruby")
        made.audit("python")
        yield made


def data(project: Project) -> list[object]:
    lines = project.run("events", "--json").out.splitlines()
    return [json.loads(line)["data"] for line in lines]


def test_it_prunes_what_nothing_folds(project: Project) -> None:
    """What would be done with --dry-run; and it is done with --yes, after which there is nothing left to do."""
    before = data(project)
    code, out, err = project.run("prune", "Audited", "--before", "2999-01-01", "--dry-run")
    assert (code, out, err) == (0, "1 event of school.Audited would be pruned, up to position 3.\n", "")
    assert data(project) == before
    code, out, err = project.run("prune", "school.Audited", "--before", "2999-01-01T12:00+01:00", "--yes", "--json")
    assert (code, json.loads(out), err) == (0, {"until": 3, "pruned": {"school.Audited": 1}, "states": 0}, "")
    assert data(project) == [*before[:2], None]
    assert project.run("events").out.splitlines()[-1].endswith("(pruned)")
    assert project.run("schema", "check").code == 0
    out = project.run("prune", "Audited", "--before", "2999-01-01", "--yes").out
    assert out == "0 events of school.Audited are pruned, up to position 3.\n"


def test_young_events_stay(project: Project) -> None:
    """What was recorded a moment ago is not a day old."""
    out = project.run("prune", "Audited", "--older-than-days", "1", "--yes").out
    assert out == "0 events of school.Audited are pruned, up to position 0.\n"


def test_it_is_refused_where_something_folds_them(project: Project) -> None:
    """The error names it, and nothing was changed."""
    code, out, err = project.run("prune", "Enrolled", "--before", "2999-01-01", "--yes")
    assert (code, out) == (1, "")
    assert "the projection into school.Seats" in err
    assert None not in data(project)


@pytest.mark.parametrize(("answer", "pruned"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_it_asks(project: Project, monkeypatch: pytest.MonkeyPatch, answer: str, *, pruned: bool) -> None:
    """On a terminal, with what it is about to drop; anything but yes leaves it."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, out, _ = project.run("prune", "Audited", "--before", "2999-01-01")
    assert "Drop the data of 1 event of school.Audited, up to position 3, for good? [y/N]" in " ".join(out.split())
    assert (code == 0, None in data(project)) == (pruned, pruned)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say how old"),
        (("--before", "2999-01-01", "--older-than-days", "2"), "say how old"),
        (("--before", "soon"), "'soon' is no time"),
        (("--before", "2026-01-01T12:00"), "has no time zone"),
        (("--older-than-days", "0"), "older-than-days"),
        (("--before", "2999-01-01"), "answer on a terminal, or give --yes or --dry-run"),
    ],
)
def test_what_is_not_said_is_asked_for(project: Project, arguments: tuple[str, ...], told: str) -> None:
    """Exit code 2; nothing is opened."""
    code, out, err = project.run("prune", "Audited", *arguments)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_an_event_that_is_not_there_is_told_with_those_that_are(project: Project) -> None:
    """With the names that are close."""
    code, _, err = project.run("prune", "Audit", "--before", "2999-01-01", "--yes")
    assert code == 1
    assert "did you mean school.Audited?" in err
