"""`diptych processes`: instances on the command line."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych import Application
from diptych.event_store.event_query import ALL_EVENTS
from diptych.testing import ManualClock
from tests.cli_project import STORE, Project, project_in
from tests.transferring import Request, TransferId, banking


async def react(*transfers: str) -> list[str]:
    """Have transfers requested, and a worker react until it is at rest; the names of all events."""
    async with Application(banking(), store=STORE, clock=ManualClock()) as app:
        for transfer in transfers:
            await app.execute(Request(transfer=TransferId(transfer), to="broken" if transfer == "stuck" else "open"))
        await app.partition().process_worker.at_rest()
        return [recorded.type async for recorded in app.events(ALL_EVENTS)]


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A bank with one transfer that waits, and one whose deposit fails and is given up at once."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("diptych.process_managers.sender.SEND_ATTEMPTS_MAX", 1)
    with project_in(tmp_path, monkeypatch) as project:
        source = "from tests.transferring import banking\n\nbank = banking()\n"
        (tmp_path / f"{project.module}.py").write_text(source, encoding="utf-8")
        project.settings(f'app = ["{project.module}:bank"]\nstore = "{STORE}"\n')
        asyncio.run(react("fine", "stuck"))
        yield project


def test_instances_are_listed(bank: Project) -> None:
    """All that run, or those that are stuck; as a table, or as JSON."""
    out = bank.run("processes", "list").out
    assert "bank.Transferring" in out
    assert "fine" in out
    listed = [json.loads(line) for line in bank.run("processes", "list", "--stuck", "--json").out.splitlines()]
    assert [(each["id"], each["state"]) for each in listed] == [("stuck", {"transfer": "stuck", "deposits": 0})]
    code, _, err = bank.run("processes", "list", "--process", "Nobody")
    assert code == 1
    assert "no process 'Nobody'" in err


def test_an_instance_is_shown(bank: Project) -> None:
    """Its events, what waits, and why it does."""
    out = bank.run("processes", "show", "Transferring", "stuck").out
    assert "bank.Requested" in out
    assert "bank.DepositOverdue" in out
    assert "given up" in out
    assert "the machine is broken" in out
    shown = json.loads(bank.run("processes", "show", "Transferring", "stuck", "--json").out)
    assert [command["name"] for command in shown["commands"]] == ["bank.Deposit"]
    code, _, err = bank.run("processes", "show", "Transferring", "none")
    assert code == 1
    assert "bank.Transferring has no instance 'none'" in err


def test_status_tells_of_what_is_stuck(bank: Project) -> None:
    """Beside the projections, and where to look."""
    out = bank.run("status").out
    assert "bank.Transferring" in out
    assert "Some instances of processes are stuck: see diptych processes list --stuck" in out
    (process,) = json.loads(bank.run("status", "--json").out)["processes"]
    assert process["count"] == {"running": 2, "blocked": 0, "waiting": 2, "dead": 1}


def test_an_instance_is_retried_and_closed(bank: Project) -> None:
    """By an event that says who, and why; the worker does the rest."""
    code, out, err = bank.run("processes", "retry", "Transferring", "stuck", "--reason", "mended")
    assert (code, err) == (0, "")
    assert "Transferring stuck is tried again, says the event at position 4." in out
    code, out, _ = bank.run("processes", "close", "Transferring", "fine", "--reason", "by phone")
    assert code == 0
    assert "Transferring fine is closed" in out
    happened = asyncio.run(react())
    assert happened[3:] == ["bank.Transferring.InstanceRetried", "bank.Transferring.InstanceClosed"]
    assert getpass.getuser() in bank.run("events", "--json").out
    listed = [json.loads(line) for line in bank.run("processes", "list", "--ended", "--json").out.splitlines()]
    assert [(each["id"], each["failure"]) for each in listed if each["ended"]] == [("fine", "closed by hand: by phone")]


def test_an_instance_is_given_a_command_by_hand(bank: Project) -> None:
    """It sends it as if it had reacted with it, and the event says who had it do so, and why."""
    fields = '{"transfer": "fine", "because": "by phone"}'
    code, out, err = bank.run("processes", "send", "Transferring", "fine", "Refund", fields, "--reason", "goodwill")
    assert (code, err) == (0, "")
    assert "Transferring fine sends Refund, says the event at position 4." in out
    assert asyncio.run(react())[3:] == ["bank.Transferring.CommandGiven", "bank.Refunded"]
    given = json.loads(bank.run("events", "--json", "--after", "3", "--limit", "1").out)
    assert (given["data"]["reason"], given["metadata"]["actor"]) == ("goodwill", getpass.getuser())


@pytest.mark.parametrize(
    ("command", "fields", "told"),
    [
        ("Refunds", "{}", "Refund"),
        ("Refund", "{", "JSON"),
        ("Refund", '{"transfer": 5, "because": "x"}', "transfer"),
        ("Refund", '{"transfer": "fine"}', "because"),
    ],
)
def test_a_command_that_is_none_is_told_what_is_wrong(bank: Project, command: str, fields: str, told: str) -> None:
    """And nothing is stored."""
    code, out, err = bank.run("processes", "send", "Transferring", "fine", command, fields)
    assert (code, out) == (2 if told == "JSON" else 1, "")
    assert told in err
    assert len(asyncio.run(react())) == 3


def test_instances_come_in_pages(bank: Project) -> None:
    """Each page goes on behind the last one of the page before."""

    async def pages() -> list[str]:
        async with Application(banking(), store=STORE, clock=ManualClock(), projecting=False) as app:
            found = [await app.processes.list(limit=1)]
            while page := await app.processes.list(limit=1, after=found[-1][-1]):
                found.append(page)
            return [each.id for page in found for each in page]

    assert asyncio.run(pages()) == ["fine", "stuck"]
