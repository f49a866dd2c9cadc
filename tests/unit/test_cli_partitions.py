"""The command line on a store in partitions, as diptych.toml divides it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych import SyncApplication
from tests.cli_project import Project, project_in

STORES = {"python": "sqlite:python.db", "ruby": "sqlite:ruby.db"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with a partition for each of two courses; one has two events, the other one."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(
            f'app = "{made.context}"\npartition_by = "{made.module}:CourseId"\n'
            '[store]\npython = "sqlite:python.db"\nruby = "sqlite:ruby.db"\n'
        )
        enrol(made, "python", "python", "ruby")
        yield made


def enrol(project: Project, *courses: str) -> None:
    school = importlib.import_module(project.module)
    with SyncApplication(school.school, partition_by=school.CourseId, store=STORES) as app:
        for course in courses:
            app.execute(school.Enrol(course=course))
        app.projected()


def test_status_shows_every_partition_or_the_one_named(project: Project) -> None:
    """One after the other; as JSON, an object a line with its name."""
    found = [json.loads(line) for line in project.run("status", "--json").out.splitlines()]
    assert [(each["partition"], each["head"]) for each in found] == [("python", 2), ("ruby", 1)]
    (ruby,) = project.run("status", "--partition", "ruby", "--json").out.splitlines()
    assert json.loads(ruby) == found[1]
    code, out, err = project.run("status")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("partition")] == ["partition python", "partition ruby"]


def test_events_are_of_one_partition(project: Project) -> None:
    """Which one has to be said; another than there are is an error that lists them."""
    lines = project.run("events", "--partition", "python", "--json").out.splitlines()
    assert [json.loads(line)["position"] for line in lines] == [1, 2]
    code, _, err = project.run("events")
    assert code != 0
    assert "which partition? say --partition; there are python, ruby" in " ".join(err.split())
    code, _, err = project.run("events", "--partition", "perl")
    assert code != 0
    assert "there is no partition 'perl'" in " ".join(err.split())


def test_a_read_model_is_rebuilt_and_mended_in_one_partition(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other partitions are not even opened."""
    monkeypatch.setenv("UNFOLDABLE", "ruby")
    enrol(project, "ruby")
    monkeypatch.delenv("UNFOLDABLE")
    (project.folder / "python.db").rename(project.folder / "elsewhere.db")
    parked = json.loads(project.run("parked", "list", "--partition", "ruby", "--json").out)
    assert parked["key"] == '["ruby"]'
    mended = project.run("parked", "retry", parked["id"], "--partition", "ruby", "--reason", "mended")
    assert (mended.code, mended.err) == (0, "")
    rebuilt = project.run("rebuild", "Seats", "--partition", "ruby")
    assert rebuilt.code == 0
    assert "up to position 2" in rebuilt.out
    assert project.run("parked", "list", "--partition", "ruby").out == "Nothing is parked.\n"
    missing = project.run("rebuild", "Seats", "--partition", "python")
    assert missing.code != 0
    assert "python.db" in missing.err


def test_migrate_makes_every_partition(project: Project) -> None:
    """Each store is told of with its partition; one can be named."""
    out = project.run("migrate").out
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        f"partition {name}, {store}" for name in ("python", "ruby") for store in ("event store", "read store")
    ]
    assert len(project.run("migrate", "--partition", "ruby").out.splitlines()) == 2


def test_settings_that_do_not_fit_are_told(project: Project) -> None:
    """A partition of a store that has none; an identity that is none; a divided application with one store."""
    undivided = project.run("status", "--store", "sqlite:python.db", "--partition", "python")
    assert undivided.code != 0
    assert "there are none" in undivided.err
    for wrong, told in (
        (f"{project.module}:Enrol", "names no identity"),
        ("tenants", "names no identity"),
        ("nowhere:TenantId", "no module is named 'nowhere'"),
    ):
        project.settings(f'app = "{project.context}"\npartition_by = "{wrong}"\n[store]\npython = "sqlite:python.db"\n')
        code, _, err = project.run("status")
        assert code != 0
        assert told in " ".join(err.split())
    project.settings(f'app = "{project.context}"\npartition_by = "{project.module}:CourseId"\nstore = "memory:"\n')
    served = project.run("run", "--port", "0")
    assert served.code != 0
    assert "a store for each partition" in " ".join(served.err.split())
    project.settings(
        f'app = "{project.context}"\npartition_by = "{project.module}:CourseId"\n[store]\npython = "memory:"\n'
    )
    shared = project.run("run", "--processes", "2", "--port", "0")
    assert shared.code != 0
    assert "shares its stores" in shared.err
