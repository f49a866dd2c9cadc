"""How the command line finds the bounded contexts that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych import BoundedContext
from diptych.entrypoints.cli.contexts import load_contexts
from diptych.errors import ConfigurationError
from tests.cli_project import Project, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def test_contexts_are_found_by_module_and_name_each_once(project: Project) -> None:
    """The order given is kept."""
    (project.folder / f"{project.module}_two.py").write_text(
        f"from diptych import BoundedContext\nfrom {project.module} import school\n"
        "class Office:\n    rooms = BoundedContext('rooms')\n"
    )
    names = [f"{project.module}_two:Office.rooms", project.context, f"{project.module}_two:school"]
    rooms, school, again = load_contexts(names)
    assert (rooms.name, school.name) == ("rooms", "school")
    assert again is school
    assert all(isinstance(found, BoundedContext) for found in (rooms, school))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "names no module: write it as module:context"),
        (":school", "names no module: write it as module:context"),
        ("{module}", "'{module}' names a module only: write it as {module}:school"),
        ("{module}:scool", "{module} has no 'scool': write {module}:school"),
        ("{module}:Seats", "{module}:Seats is a class, no BoundedContext: write {module}:school"),
        ("{module}:school.nothing", "{module} has no 'school.nothing'"),
        ("x{module}:school", "no module is named 'x{module}'; did you mean {module}?"),
        ("package.shcool:school", "no module is named 'package.shcool'; did you mean package.school?"),
        ("zzz:school", "no module is named 'zzz'"),
        ("empty:school", "empty has no 'school': write empty:<name of a BoundedContext>; the module has none"),
        ("needy:school", "needy imports 'a_library_that_nobody_has', which is not installed here"),
        ("broken:school", "broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("unfinished:school", "unfinished cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot_be_found_is_told_with_what_could_be_meant(project: Project, name: str, told: str) -> None:
    """Close modules, the contexts of the module, and the line of the user's code that failed."""
    (project.folder / "package").mkdir()
    (project.folder / "package" / "__init__.py").touch()
    (project.folder / "package" / "school.py").touch()
    (project.folder / "empty.py").touch()
    (project.folder / "needy.py").write_text("import a_library_that_nobody_has\n")
    (project.folder / "broken.py").write_text("# first\nx = 1 / 0\n")
    (project.folder / "unfinished.py").write_text("school = (\n")
    with pytest.raises(ConfigurationError) as refused:
        load_contexts([name.format(module=project.module)])
    assert told.format(module=project.module) in str(refused.value)


def test_naming_none_says_where_they_can_be_named() -> None:
    """The argument, or the file."""
    with pytest.raises(ConfigurationError, match=r'set app = \["module:context"\] in diptych.toml'):
        load_contexts([])
