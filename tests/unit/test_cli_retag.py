"""`diptych retag`: what it asks, says and does, in a project whose identities have other tags in its next release."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych import SyncApplication
from diptych.errors import TagsChanged
from tests.cli_project import STORE, Project, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with three events of two types, whose settings name the store and the context of its next release."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        made.enrol("python", "ruby")
        made.audit("python")
        source = (made.folder / f"{made.module}.py").read_text()
        renamed = source.replace("class CourseId(Identity): ...", 'class CourseId(Identity, tag="lesson"): ...')
        assert renamed != source
        (made.folder / f"{made.module}_later.py").write_text(renamed)
        made.settings(f'app = ["{made.module}_later:school"]\nstore = "{STORE}"\n')
        yield made


def tags(project: Project) -> list[list[str]]:
    return [json.loads(line)["tags"] for line in project.run("events", "--json").out.splitlines()]


def enrol_later(project: Project) -> None:
    later = importlib.import_module(f"{project.module}_later")
    with SyncApplication(later.school, store=STORE) as app:
        app.execute(later.Enrol(course="python"))


def test_events_are_tagged_anew_after_a_yes(project: Project) -> None:
    """It shows what it will do, does it, and says what to do next; then there is nothing left to do."""
    with pytest.raises(TagsChanged, match="diptych retag"):
        enrol_later(project)
    code, out, err = project.run("retag", "--yes")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["school.Audited", "1", "1", "1"] in lines
    assert ["school.Enrolled", "1", "2", "2"] in lines
    assert out.endswith("3 of 3 events were tagged anew. Start with this code again what has the store open.\n")
    assert tags(project) == [["lesson:python"], ["lesson:ruby"], ["lesson:python"]]
    enrol_later(project)
    code, out, err = project.run("retag", "--yes")
    assert (code, out, err) == (0, "All stored events of these contexts are tagged as the code tags them.\n", "")


def test_a_dry_run_counts_and_changes_nothing(project: Project) -> None:
    """For people and machines; of one type where one is named."""
    before = tags(project)
    code, out, err = project.run("retag", "--dry-run")
    assert (code, err) == (0, "")
    assert ["school.Enrolled", "1", "2", "2"] in [line.split() for line in out.splitlines()]
    code, out, err = project.run("retag", "--dry-run", "--json", "--type", "Enrolled")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "done": False,
        "types": [{"type": "school.Enrolled", "version": 1, "events": 2, "retagged": 2}],
        "models": [],
        "processes": [],
    }
    assert tags(project) == before


def test_one_type_at_a_time(project: Project) -> None:
    """The application opens when all are done."""
    found = json.loads(project.run("retag", "--yes", "--json", "--type", "school.Enrolled").out)
    assert found["done"] is True
    assert tags(project) == [["lesson:python"], ["lesson:ruby"], ["course:python"]]
    with pytest.raises(TagsChanged, match=r"school\.Audited"):
        enrol_later(project)
    assert project.run("retag", "--yes", "--type", "Audited", "--type", "Enrolled").code == 0
    enrol_later(project)


def test_it_does_not_begin_unasked(project: Project) -> None:
    """Where nobody can answer, it is to be said beforehand."""
    for arguments in ([], ["--json"]):
        code, out, err = project.run("retag", *arguments)
        assert (code, out) == (2, "")
        assert "--yes" in err
    assert tags(project)[0] == ["course:python"]


def test_an_answer_that_is_no_yes_changes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it asks."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code in (("n", 1), ("", 1), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda answer=answer: answer)
        assert tags(project)[0] == ["course:python"]
        found = project.run("retag")
        assert found.code == code
        assert ("Nothing was changed." in found.out) is (code == 1)
    assert tags(project)[0] == ["lesson:python"]


def test_a_type_that_is_not_stored_is_told(project: Project) -> None:
    """And nothing is begun."""
    code, _, err = project.run("retag", "--yes", "--type", "Enroled")
    assert code == 1
    assert "no event is stored of the type 'Enroled'" in err
