"""`diptych scheduled`: commands in time on the command line."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from diptych import Application
from tests.cli_project import STORE, Project, project_in
from tests.reminders import Gate, NoteId, Remind, Slow, reminders


async def schedule() -> None:
    """One that waits, one that was given up, and one that is done."""
    gate = Gate()
    gate.open.set()
    async with Application(reminders(), store=STORE, services={Gate: gate}) as app:
        await app.schedule(Remind(note=NoteId("waits")), after=timedelta(days=1), command_id="waits", priority=3)
        await app.schedule(Slow(note=NoteId("fail")), command_id="fails")
        await app.schedule(Remind(note=NoteId("done")), command_id="done")
        await app.partition().process_worker.at_rest()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("diptych.process_managers.sender.SEND_ATTEMPTS_MAX", 1)
    with project_in(tmp_path, monkeypatch) as made:
        source = "from tests.reminders import reminders\n\nnotes = reminders(slow=False)\n"
        (tmp_path / f"{made.module}.py").write_text(source, encoding="utf-8")
        made.settings(f'app = ["{made.module}:notes"]\nstore = "{STORE}"\n')
        asyncio.run(schedule())
        yield made


def test_what_waits_is_listed(project: Project) -> None:
    """All of it, what was given up, or what is behind an id; as a table, or as JSON."""
    out = project.run("scheduled", "list").out
    assert "reminders.Remind" in out
    assert "RuntimeError: out of order" in out
    listed = [json.loads(line) for line in project.run("scheduled", "list", "--json").out.splitlines()]
    assert [(each["command_id"], each["state"], each["priority"]) for each in listed] == [
        ("fails", "failed", 0),
        ("waits", "accepted", 3),
    ]
    (failed,) = [json.loads(line) for line in project.run("scheduled", "list", "--failed", "--json").out.splitlines()]
    assert failed == listed[0]
    (behind,) = project.run("scheduled", "list", "--after", "fails", "--json").out.splitlines()
    assert json.loads(behind) == listed[1]
    assert "Nothing waits." in project.run("scheduled", "list", "--after", "z").out


def test_one_is_shown(project: Project) -> None:
    """What it says, or what became of it; of what is not known, the error says so."""
    out = project.run("scheduled", "show", "waits").out
    assert "accepted" in out
    assert '{"note":"waits","text":""}' in out
    assert "It took effect at position 1." in project.run("scheduled", "show", "done").out
    assert json.loads(project.run("scheduled", "show", "done", "--json").out)["state"] == "done"
    code, _, err = project.run("scheduled", "show", "never")
    assert code == 1
    assert "no command was scheduled or executed as 'never' here" in err


def test_one_is_cancelled(project: Project) -> None:
    """With who did it and why; what took effect before is not."""
    for _ in range(2):
        code, out, err = project.run("scheduled", "cancel", "waits", "--reason", "by phone")
        assert (code, out, err) == (0, "waits is cancelled.\n", "")
    shown = json.loads(project.run("scheduled", "show", "waits", "--json").out)
    assert shown["facts"] == {"by": getpass.getuser(), "reason": "by phone"}
    code, _, err = project.run("scheduled", "cancel", "done")
    assert code == 1
    assert "done was done before: nothing is changed" in err


def test_one_is_tried_again(project: Project) -> None:
    """What was given up waits again; status told of it, and does not any more."""
    out = project.run("status").out
    assert "Scheduled commands: 1 wait, 1 were given up" in out
    assert "see diptych parked list --kind scheduled" in out
    (item,) = map(json.loads, project.run("parked", "list", "--json").out.splitlines())
    assert (item["id"], item["kind"], item["key"]) == ("scheduled-fails", "scheduled", "fails")
    done = project.run("parked", "retry", item["id"], "--reason", "there is paper")
    assert done.out == "scheduled-fails is tried again, as command fails.\n"
    assert json.loads(project.run("status", "--json").out)["scheduled"] == {"waiting": 2, "failed": 0, "stopped": ""}
