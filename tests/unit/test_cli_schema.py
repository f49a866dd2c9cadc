"""`diptych schema`: what a store holds, and whether the code of a project reads it."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych import SyncApplication
from tests.cli_project import STORE, Project, project_in

_LATER = itertools.count()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context and its store, which holds three events of two types."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        made.enrol("python", "ruby")
        made.audit("python")
        yield made


def later(project: Project, old: str, new: str) -> str:
    """The project's context as a later release has it; its name for the command line."""
    name = f"{project.module}_later{next(_LATER)}"
    source = (project.folder / f"{project.module}.py").read_text()
    assert old in source
    (project.folder / f"{name}.py").write_text(source.replace(old, new))
    return f"{name}:school"


def test_show_lists_what_the_store_holds(project: Project) -> None:
    """As a table, and as one JSON object a line; without any code."""
    code, out, err = project.run("schema", "show")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["school.Audited", "course", "1", "1", "3", "3"] in lines
    assert ["school.Enrolled", "course", "1", "2", "1", "2"] in lines
    listed = [json.loads(line) for line in project.run("schema", "show", "--json").out.splitlines()]
    (fingerprint,) = {each.pop("fingerprint") for each in listed}  # their fields are the same
    assert len(fingerprint) == 32
    assert listed == [
        {"type": "school.Audited", "version": 1, "events": 1, "first": 3, "last": 3, "tags": ["course"], "since": 0},
        {"type": "school.Enrolled", "version": 1, "events": 2, "first": 1, "last": 2, "tags": ["course"], "since": 0},
    ]


def splitting(project: Project, name: str, into: str) -> str:
    """The project's context as a later release has it, in which an event is split; its name for the command line."""
    source = (project.folder / f"{project.module}.py").read_text()
    upcaster = (
        f"@school.upcaster(Audited, from_version=1, into={into})\ndef split(stored):\n    yield Audited, stored\n"
    )
    later = source.replace("class Audited(Event):", "class Audited(Event, version=2):")
    (project.folder / f"{project.module}_{name}.py").write_text(f"{later}\n\n{upcaster}")
    return f"{project.module}_{name}:school"


def test_show_tells_what_code_reads_as_several_or_none(project: Project) -> None:
    """With code, which may split what is stored; what stays one event needs no word."""
    app = splitting(project, "several", "{Audited: 2, Enrolled: 1}")
    lines = [json.loads(line) for line in project.run("schema", "show", app, "--json").out.splitlines()]
    assert [(line["type"], line.get("read_as")) for line in lines] == [
        ("school.Audited", ["school.Audited", "school.Enrolled"]),
        ("school.Enrolled", None),
    ]
    code, out, err = project.run("schema", "show", app)
    assert (code, err) == (0, "")
    assert "school.Audited, school.Enrolled" in " ".join(out.split())
    assert "nothing" in project.run("schema", "show", splitting(project, "none", "{}")).out
    assert "read as" not in project.run("schema", "show").out


def test_check_passes_where_the_code_reads_everything(project: Project) -> None:
    """Exit code 0, for people and for machines."""
    assert project.run("schema", "check") == (0, "3 events of 2 types and versions: all can be read\n", "")
    code, out, err = project.run("schema", "check", "--json")
    assert (code, json.loads(out), err) == (
        0,
        {"events": 3, "types": 2, "breaks": [], "ignored": [], "split": [], "lacking": []},
        "",
    )


def test_check_fails_with_what_breaks_and_what_to_write(project: Project) -> None:
    """Exit code 1; the skeleton of the upcaster stands by itself, to be copied."""
    changed = later(project, "class Enrolled(Event):", "class Enrolled(Event, version=2):\n    seat: int")
    code, out, err = project.run("schema", "check", changed)
    assert (code, err) == (1, "")
    assert "school.Enrolled (version 1): 2 events cannot be read, from position 1 on\n" in out
    assert (
        "\n@school.upcaster(Enrolled, from_version=1)\n"
        "def enrolled_from_1(stored: Mapping[str, Any]) -> Mapping[str, Any]:\n"
        '    return {**stored, "seat": ...}  # as version 2 has them\n'
    ) in out
    assert out.endswith("3 events of 2 types and versions: 2 cannot be read\n")
    (found,) = json.loads(project.run("schema", "check", changed, "--json").out)["breaks"]
    assert (found["type"], found["version"], found["events"], found["position"]) == ("school.Enrolled", 1, 2, 1)


def test_check_fails_where_the_schema_is_another_one(project: Project) -> None:
    """Though every event can be decoded: what is stored would be lost without a word."""
    with_note = importlib.import_module(
        later(project, "class Audited(Event):", "class Audited(Event):\n    note: str = ''").partition(":")[0]
    )
    with SyncApplication(with_note.school, store=STORE) as app:
        app.execute(with_note.Audit(course="ruby"))
    renamed = later(project, "class Audited(Event):", "class Audited(Event):\n    remark: str = ''")
    code, out, err = project.run("schema", "check", renamed)
    assert (code, err) == (1, "")
    assert "school.Audited (version 1): 2 events cannot be read, from position 3 on\n" in out
    assert "the field note is gone, and remark is new: is that what it is called now?" in out
    assert "\n@school.upcaster(Audited, from_version=1)\ndef audited_from_1(" in out


def test_check_tells_of_a_field_that_nothing_reads(project: Project) -> None:
    """It is no failure: a field may be removed."""
    with_note = later(project, "class Audited(Event):", "class Audited(Event):\n    note: str = ''")
    school = importlib.import_module(with_note.partition(":")[0])
    with SyncApplication(school.school, store=STORE) as app:
        app.execute(school.Audit(course="ruby"))
    code, out, err = project.run("schema", "check")
    assert (code, err) == (0, "")
    told = "school.Audited (version 1): nothing reads the field 'note' that 1 of its events have, from position 4 on\n"
    assert out == f"{told}4 events of 2 types and versions: all can be read\n"


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_store_that_is_not_there_is_not_made(project: Project, command: str) -> None:
    """It looks, and changes nothing."""
    code, out, err = project.run("schema", command, "--store", "sqlite:nowhere.db")
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no store at nowhere.db")
    assert not (project.folder / "nowhere.db").exists()


def test_check_needs_code(project: Project) -> None:
    """There is nothing to compare without."""
    project.settings(f'store = "{STORE}"\n')
    code, _, err = project.run("schema", "check")
    assert code == 1
    assert "which bounded context?" in err


ORDER = """

class Course(DecisionModel[CourseId]):
    enrolled: int = 0

    def evolve(self, event: Enrolled | Audited) -> "Course":
        return self


"""


def deciding(project: Project, folds: str, version: int = 1) -> str:
    """The project's context, where enrolling is decided on a model that folds these; its name for the command line."""
    source = (project.folder / f"{project.module}.py").read_text()
    model = ORDER.replace("Enrolled | Audited", folds).replace("[CourseId])", f"[CourseId], version={version})")
    source = source.replace("import BoundedContext,", "import DecisionModel, BoundedContext,")
    source = source.replace("class Audit(Command):", f"{model}class Audit(Command):")
    source = source.replace("def enrol(command: Enrol)", "def enrol(command: Enrol, course: Course)")
    name = f"{project.module}_deciding{next(_LATER)}"
    (project.folder / f"{name}.py").write_text(source)
    return f"{name}:school"


def run_once(project: Project, app: str) -> None:
    """Open the store with this code."""
    context = importlib.import_module(app.partition(":")[0]).school
    with SyncApplication(context, store=STORE):
        pass


def test_show_lists_what_models_fold(project: Project) -> None:
    """As the store keeps it, under the types."""
    run_once(project, deciding(project, "Enrolled | Audited", version=2))
    lines = [line.split() for line in project.run("schema", "show").out.splitlines()]
    assert ["school.Course", "school.Audited", "school.Enrolled", "2"] in lines
    last = json.loads(project.run("schema", "show", "--json").out.splitlines()[-1])
    assert last == {"model": "school.Course", "version": 2, "folds": ["school.Audited", "school.Enrolled"]}


def test_check_tells_of_models_that_fold_less_than_newer_code(project: Project) -> None:
    """Where there are such events it fails; a higher version says that they are left out on purpose."""
    run_once(project, deciding(project, "Enrolled | Audited"))
    less = deciding(project, "Enrolled")
    code, out, _ = project.run("schema", "check", less)
    assert code == 1
    told = "school.Course: newer code's model folds school.Audited as well, and there are such events."
    assert told in out
    assert "say version=2 in the class statement" in out
    found = json.loads(project.run("schema", "check", less, "--json").out)["lacking"]
    assert found == [{"model": "school.Course", "version": 1, "types": ["school.Audited"], "stored": True}]
    assert project.run("schema", "check", deciding(project, "Enrolled", version=2)).code == 0
    findings = [json.loads(line) for line in project.run("check", less, "--json").out.splitlines()]
    assert ("model-outgrown", "error") in [(each["code"], each["severity"]) for each in findings]


def test_check_passes_where_nothing_is_lacking_yet(project: Project) -> None:
    """It says so all the same."""
    newer = deciding(project, "Enrolled | Later")
    folder = project.folder / f"{newer.partition(':')[0]}.py"
    later = "class Later(Event):\n    course: CourseId\n\n\nclass Enrolled(Event):"
    folder.write_text(folder.read_text().replace("class Enrolled(Event):", later))
    run_once(project, newer)
    code, out, _ = project.run("schema", "check", deciding(project, "Enrolled"))
    assert code == 0
    assert "folds school.Later as well, though no such event is stored" in out
