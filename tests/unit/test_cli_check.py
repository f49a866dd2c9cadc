"""`diptych check`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import STORE, Project, project_in

UNFOLDABLE = 'event.course == os.environ.get("UNFOLDABLE")'
"""What makes the project's projection impure."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose event `Audited` nobody reads."""
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def changed(project: Project, name: str, added: str = "", old: str = "", new: str = "") -> str:
    """The project's context with a pure projection, something changed, lines added; its name for the command line."""
    source = (project.folder / f"{project.module}.py").read_text()
    assert UNFOLDABLE in source
    assert old in source
    path = project.folder / f"{project.module}_{name}.py"
    path.write_text(source.replace(UNFOLDABLE, "not event.course").replace(old or "\0", new) + added)
    return f"{path.stem}:school"


def sound(project: Project, added: str = "") -> str:
    """The same with nothing to be found."""
    return changed(project, "sound", f"\n\nschool.events = (Audited,)\n{added}")


def test_all_is_well_where_nothing_is_found(project: Project) -> None:
    """One line that tells what was looked at; nothing at all for machines."""
    app = sound(project)
    assert project.run("check", app) == (
        0,
        "2 commands, 2 events, 1 query, 1 read model: all is well\n",
        "",
    )
    assert project.run("check", app, "--json", "--strict") == (0, "", "")


def test_findings_are_told_with_place_code_and_remedy(project: Project) -> None:
    """An error ends in exit code 1."""
    code, out, err = project.run("check", project.context)
    assert (code, err) == (1, "")
    line = next(
        number
        for number, text in enumerate((project.folder / f"{project.module}.py").read_text().splitlines(), 1)
        if "os.environ" in text
    )
    first, remedy, *rest = out.splitlines()[2:]
    assert first == (
        f"{project.module}.py:{line}: error: seats names os.environ, which reaches out of the process [reaches-outside]"
    )
    assert remedy.startswith("    let a subscriber do it")
    assert rest == ["2 commands, 2 events, 1 query, 1 read model: 1 error and 1 warning"]


def test_warnings_fail_only_where_it_is_strict(project: Project) -> None:
    """For a pipeline that wants none."""
    app = changed(project, "warned")
    code, out, _ = project.run("check", app)
    assert code == 0
    assert out.endswith(": 1 warning\n")
    assert "warning: Audited is stored, and no decision model" in out
    assert project.run("check", app, "--strict").code == 1


def test_json_has_an_object_for_each_finding(project: Project) -> None:
    """One a line; paths are from the working directory on."""
    code, out, err = project.run("check", project.context, "--json")
    assert (code, err) == (1, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["code"] for each in found] == ["event-without-reader", "reaches-outside"]
    assert [each["severity"] for each in found] == ["warning", "error"]
    assert {each["file"] for each in found} == {f"{project.module}.py"}
    assert all(each.keys() == {"code", "severity", "file", "line", "problem", "remedy"} for each in found)


def test_services_are_not_needed(project: Project) -> None:
    """Who offers them, is known when the application runs."""
    added = """

class Mailer: ...


class Greet(Command):
    course: CourseId


@school.command_handler
async def greet(command: Greet, mailer: Mailer) -> Enrolled:
    return Enrolled(course=command.course)
"""
    app = sound(project, added)
    assert project.run("check", app).code == 0
    project.enrol("python")
    assert "no services to give" in project.run("status", app, "--store", STORE).err


def test_what_does_not_compile_is_told_as_a_finding(project: Project) -> None:
    """At its place, and that there may be more."""
    again = "\n\n@school.command_handler\ndef again(command: Enrol) -> Enrolled:\n    raise NotImplementedError\n"
    code, out, err = project.run("check", changed(project, "again", again))
    assert (code, err) == (1, "")
    assert "error: Enrol has two handlers" in out
    assert out.endswith("1 error\n")


def test_a_store_that_is_set_is_read_with_the_code(project: Project) -> None:
    """As by `schema check`, which it is; for people and for machines."""
    project.settings(f'store = "{STORE}"\n')
    app = sound(project)
    project.enrol("python")
    assert project.run("check", app).out.splitlines() == [
        "1 events of 1 types and versions: all can be read",
        "2 commands, 2 events, 1 query, 1 read model: all is well",
    ]
    version = ("class Enrolled(Event):", "class Enrolled(Event, version=2):")
    later = changed(project, "later", "\n\nschool.events = (Audited,)\n", *version)
    code, out, err = project.run("check", later)
    assert (code, err) == (1, "")
    assert "@school.upcaster(Enrolled, from_version=1)" in out
    assert out.endswith("1 error\n")
    (found,) = map(json.loads, project.run("check", later, "--json").out.splitlines())
    assert (found["code"], found["severity"], found["file"]) == ("events-unreadable", "error", "")
    assert found["problem"] == "1 events of school.Enrolled (version 1) cannot be read, from position 1 on"


def test_a_store_that_is_not_there_is_an_error(project: Project) -> None:
    """It was asked for, and none is made."""
    code, _, err = project.run("check", sound(project), "--store", STORE)
    assert code == 1
    assert "there is no store at school.db" in err
    assert not (project.folder / "school.db").exists()
