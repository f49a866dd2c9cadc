"""Read models in stores of their own, on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.entrypoints.cli.processes import _stores  # pyright: ignore[reportPrivateUsage]
from diptych.entrypoints.cli.settings import Sent, Settings, by_read_model
from diptych.errors import ConfigurationError
from tests.cli_project import STORE, Project, project_in

SENT = "sqlite:seats.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with three events, whose settings send its read model to a file."""
    monkeypatch.setenv("COLUMNS", "200")
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n[read_stores]\nSeats = "{SENT}"\n')
        made.enrol("python", "python", "ruby")
        yield made


def where(project: Project, *arguments: str) -> list[tuple[str, bool]]:
    """Where status finds the read model, and whether there is anything."""
    told = json.loads(project.run("status", "--json", *arguments).out)["projections"]
    return [(each["store"], each["live"]) for each in told]


def test_the_file_the_environment_and_a_flag_say_where(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag before the environment before the file; each tells of all of them."""
    assert where(project) == [(SENT, False)]
    assert project.run("rebuild", "Seats").code == 0
    assert where(project) == [(SENT, True)]
    monkeypatch.setenv("DIPTYCH_READ_STORES", "Seats=sqlite:one.db Seats=sqlite:two.db")
    assert where(project) == [("sqlite:one.db", False), ("sqlite:two.db", False)]
    assert where(project, "--read-stores", f"Seats={SENT}", "--read-stores", "Seats=memory:") == [(SENT, True)]
    code, _, err = project.run("status", "--read-stores", "Rooms=memory:")
    assert (code, "feeds 'Rooms'; there are school.Seats" in err) == (1, True)


def test_a_rebuild_is_done_in_every_store(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is in the memory of servers, which build it themselves."""
    monkeypatch.setenv("DIPTYCH_READ_STORES", "Seats=sqlite:one.db Seats=sqlite:two.db Seats=memory:")
    code, out, _ = project.run("rebuild", "all")
    assert (code, "school.Seats is rebuilt up to position 3" in out) == (0, True)
    assert where(project) == [("sqlite:one.db", True), ("sqlite:two.db", True)]
    monkeypatch.setenv("DIPTYCH_READ_STORES", "Seats=memory:")
    out = project.run("status").out
    assert "in the memory of each process" in out
    assert "not live" not in out
    for back in ([], ["--back"]):
        code, _, err = project.run("rebuild", "Seats", *back)
        assert (code, "school.Seats is in the memory of each process" in err) == (1, True)
    assert "memory of each process" in project.run("parked", "list").err


def test_a_read_store_in_memory_is_that_of_each_process(project: Project) -> None:
    """Where all read models are, too: nobody is told that what he has built here answers anywhere."""
    project.settings(f'app = ["{project.context}"]\nstore = "{STORE}"\nread_store = "memory:"\n')
    assert "in the memory of each process" in project.run("status").out
    code, out, err = project.run("rebuild", "Seats")
    assert (code, out, "school.Seats is in the memory of each process" in err) == (1, "", True)
    code, out, _ = project.run("rebuild", "all")
    assert (code, "in the memory of each process" in out) == (0, True)
    assert "memory of each process" in project.run("parked", "list").err


def test_every_store_is_migrated(project: Project) -> None:
    """Each tells that it needs none, or prints its script; what is in memory has no tables."""
    out = project.run("migrate", "--read-stores", "Seats=sqlite:one.db", "--read-stores", "Seats=memory:").out
    assert out.splitlines() == [
        "event store: makes its own tables when it is opened",
        "read store: makes its own tables when it is opened",
        "read store: makes its own tables when it is opened",
    ]
    rows = "Seats=postgresql://nobody@localhost/school?schema=rows"
    out = project.run("migrate", "--sql", "--grants", "--read-stores", rows).out
    assert 'CREATE TABLE "rows".diptych_generations' in out
    assert 'GRANT SELECT ON "rows".diptych_generations' in out


@pytest.mark.parametrize("text", ["Seats", "=memory:", "Seats=", "sqlite:x.db", "sqlite:x=y.db"])
def test_a_read_model_and_its_store_are_both_named(project: Project, text: str) -> None:
    """A URL alone is none of what goes there."""
    code, _, err = project.run("status", "--read-stores", text)
    assert (code, "READ_MODEL=URL" in err) == (1, True)


def test_servers_are_told_what_the_process_was_told_that_starts_them() -> None:
    """In their environment; what that cannot hold they read from the file, as it was."""
    flags = by_read_model(["Seats=sqlite:one.db", "Seats=memory:", "school.Rooms=memory:"])
    told = {"DIPTYCH_READ_STORES": "Seats=sqlite:one.db Seats=memory: school.Rooms=memory:"}
    assert _stores(Settings(read_stores={**flags})) == told
    assert _stores(Settings(read_stores={"Seats": "memory:", "Rooms": {"fr": "memory:"}})) == {}
    assert _stores(Settings(read_stores={"Seats": "sqlite:my seats.db"})) == {}
    with pytest.raises(ConfigurationError, match=r"blank"):
        by_read_model(["Seats=sqlite:my seats.db"])


def test_partitions_have_their_own() -> None:
    """As tables, of which those of one partition are looked into."""
    fees: Sent = {"fr": "sqlite:fees.fr.db", "de": ["sqlite:fees.de.db", "memory:"]}
    settings = Settings(
        store={"fr": "sqlite:fr.db", "de": "sqlite:de.db"}, read_stores={"Fees": fees, "Hot": "memory:"}
    )
    one, other = settings.each()
    assert one.looked_into().sent == ("sqlite:fees.fr.db", "memory:")
    assert other.narrowed().read_stores == {"Fees": {"de": ["sqlite:fees.de.db", "memory:"]}, "Hot": "memory:"}
