"""`diptych rebuild`: what it builds, compares, shows, asks and leaves alone."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import STORE, Project, Terminal, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with a course that is taken twice, and one once; and changed code, in which each counts ten."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'store = "{STORE}"\n')
        made.enrol("python", "python", "ruby")
        source = (tmp_path / f"{made.module}.py").read_text()
        (tmp_path / f"changed_{made.module}.py").write_text(source.replace("row.taken + 1", "row.taken + 10"))
        yield made


def changed(project: Project) -> str:
    return f"changed_{project.context}"


def seats(project: Project, context: str) -> str:
    """What status says of the rows of some code."""
    (told,) = json.loads(project.run("status", context, "--json").out)["projections"]
    return "other code" if told["other_code"] else "live" if told["live"] else "none"


def test_it_shows_what_a_changed_projection_does_to_the_rows(project: Project) -> None:
    """With --dry-run nothing else is done; as JSON, and for people."""
    code, out, err = project.run("rebuild", "changed", changed(project), "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "school.Seats, 2 rows at position 3: 2 changed.",
        '  ~ course "python": taken 2 → 20',
        '  ~ course "ruby": taken 1 → 10',
        "school.Seats is as it was.",
    ]
    code, out, _ = project.run("rebuild", "Seats", changed(project), "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["rows"], found["changed"], found["added"]) == (0, 2, 2, 0)
    assert found["samples"][1] == {"before": {"course": "ruby", "taken": 1}, "after": {"course": "ruby", "taken": 10}}
    assert (seats(project, project.context), seats(project, changed(project))) == ("live", "other code")


@pytest.mark.parametrize(("answer", "switched"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_it_asks_before_it_switches(
    project: Project, monkeypatch: pytest.MonkeyPatch, answer: str, *, switched: bool
) -> None:
    """On a terminal, with what differs; anything but yes leaves the rows that answer."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, out, err = project.run("rebuild", "changed", changed(project), "--diff")
    assert "Switch to the new rows of school.Seats? [y/N]" in out
    assert ("is rebuilt up to position 3" in out, code == 0) == (switched, switched)
    assert "of other code than this" in err
    assert seats(project, changed(project)) == ("live" if switched else "other code")


def test_with_yes_it_shows_and_switches(project: Project) -> None:
    """Whoever does not sit there has said so."""
    code, out, _ = project.run("rebuild", "changed", changed(project), "--diff", "--yes")
    assert code == 0
    assert "taken 2 → 20" in out
    assert seats(project, changed(project)) == "live"
    code, out, _ = project.run("rebuild", "changed", changed(project))
    assert (code, out) == (0, "The rows of every read model are of this code: there is nothing to rebuild.\n")


def test_all_are_rebuilt_and_the_same_rows_say_so(project: Project) -> None:
    """Rows that are as they should be differ nowhere."""
    code, out, _ = project.run("rebuild", "all", project.context, "--diff", "--yes")
    assert code == 0
    assert out.splitlines()[0] == "school.Seats, 2 rows at position 3: no row differs."
    assert "is rebuilt up to position 3" in out


def test_several_are_rebuilt_by_name_and_none_where_one_is_unknown(project: Project, tmp_path: Path) -> None:
    """In the order of their names on the command line, each once."""
    source = (tmp_path / f"{project.module}.py").read_text()
    more = "class Visits(ReadModel):\n    course: Key[CourseId]\n    times: int = 0\n\n\n@school.projection\n"
    more += "def visits(row: Visits, event: Enrolled) -> Visits:\n    return replace(row, times=row.times + 1)\n"
    (tmp_path / f"more_{project.module}.py").write_text(source + "\n\n" + more)
    context = f"more_{project.context}"
    code, out, _ = project.run("rebuild", "Visits,school.Seats,Visits", context)
    assert (code, [line.partition(" ")[0] for line in out.splitlines()]) == (0, ["school.Visits", "school.Seats"])
    code, out, err = project.run("rebuild", "Visits,Rooms", context)
    assert (code, out, "no read model is named 'Rooms'" in err) == (1, "", True)
    assert project.run("rebuild", "Visits,Seats", context, "--back").code == 2


def test_it_does_not_ask_where_nobody_sits(project: Project) -> None:
    """It says what to give instead, and builds nothing."""
    code, out, err = project.run("rebuild", "Seats", project.context, "--diff")
    assert (code, out) == (2, "")
    assert "give --yes or --dry-run" in err


class Gone(Terminal):
    """Somebody who ends the command instead of answering."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # as of io.StringIO
        signal.raise_signal(signal.SIGINT)
        return super().readline(-1 if size is None else size)


@pytest.mark.parametrize(("terminal", "expected"), [(Gone("y\n"), 130), (Terminal(""), 1)])
def test_no_answer_is_no_yes(
    project: Project, monkeypatch: pytest.MonkeyPatch, terminal: Terminal, expected: int
) -> None:
    """Ctrl-C ends the command at once, the end of the input is a no; what was built is dropped."""
    monkeypatch.setattr(sys, "stdin", terminal)
    code, _, err = project.run("rebuild", "changed", changed(project), "--diff")
    assert code == expected
    assert "unexpected" not in err
    assert (seats(project, project.context), seats(project, changed(project))) == ("live", "other code")


def test_as_json_stdout_is_json(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is for people is on stderr then, the question included."""
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, err = project.run("rebuild", "changed", changed(project), "--diff", "--json")
    assert (code, [json.loads(line)["changed"] for line in out.splitlines()]) == (0, [2])
    assert "[y/N]" in err
    assert "is rebuilt up to position 3" in err
    code, out, err = project.run("rebuild", "changed", changed(project), "--diff", "--json", "--yes")
    assert (code, out) == (0, "")
    assert "nothing to rebuild" in err


def test_it_goes_back_to_the_rows_of_before(project: Project) -> None:
    """By the old code, and by the new code."""
    assert "is kept until" not in project.run("status", project.context).out
    assert project.run("rebuild", "Seats", changed(project), "--rebuild-rate", "1000000").code == 0
    told = " ".join(project.run("status", changed(project)).out.split())
    assert re.search(r"What school.Seats answered from before is kept until [0-9: -]{19} UTC, at position 3", told)
    code, out, _ = project.run("rebuild", "Seats", project.context, "--back")
    assert (code, out) == (0, "school.Seats answers from the rows of before, up to position 3.\n")
    assert (seats(project, project.context), seats(project, changed(project))) == ("live", "other code")
    code, out, err = project.run("rebuild", "Seats", changed(project), "--back")
    assert (code, err) == (0, "")
    assert seats(project, changed(project)) == "live"


def test_there_is_nothing_to_go_back_to(project: Project) -> None:
    """Nothing was replaced, or it was dropped at once."""
    assert project.run("rebuild", "Seats", changed(project), "--keep", "0").code == 0
    code, _, err = project.run("rebuild", "Seats", changed(project), "--back")
    assert (code, "no rows of school.Seats are kept" in err) == (1, True)


@pytest.mark.parametrize("other", ["--diff", "--dry-run", "--json"])
def test_going_back_builds_nothing_that_could_be_compared(project: Project, other: str) -> None:
    """It is refused before anything is opened."""
    code, _, err = project.run("rebuild", "Seats", changed(project), "--back", other)
    assert (code, "--back takes one read model" in err) == (2, True)
