"""How the command line logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from diptych.entrypoints.cli import logs
from diptych.entrypoints.cli.logs import PROBLEMS_KEPT_MAX, JsonFormatter, OncePerProblem
from tests.cli_project import Project, project_in


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def record(message: str, *arguments: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("diptych.projector", level, __file__, 1, message, arguments, None)


def test_a_json_line_holds_time_level_logger_message_and_extras() -> None:
    """What is no JSON by itself is told as Python shows it."""
    made = record("behind by %d", 7)
    made.url, made.cause = "http://localhost", object
    told = json.loads(JsonFormatter().format(made))
    assert datetime.fromisoformat(told.pop("time")).tzinfo is not None
    assert told == {
        "level": "warning",
        "logger": "diptych.projector",
        "message": "behind by 7",
        "url": "http://localhost",
        "cause": "<class 'object'>",
    }


def test_a_json_line_holds_the_traceback_on_one_line() -> None:
    """A log of JSON lines has one line for each record, whatever it tells."""
    try:
        raise ValueError("no\nroom")
    except ValueError as error:
        made = logging.LogRecord("x", logging.ERROR, __file__, 1, "it failed", (), (type(error), error, None))
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: no\nroom" in json.loads(line)["exception"]


def test_a_problem_is_told_once_and_then_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements do not make another problem, other facts do."""
    now = 100.0
    monkeypatch.setattr("diptych.entrypoints.cli.logs.time.monotonic", lambda: now)
    once = OncePerProblem()
    assert once.filter(record("waits %.2f s: %s", 0.05, "locked"))
    assert not once.filter(record("waits %.2f s: %s", 0.1, "locked"))
    assert not once.filter(record("waits %.2f s: %s", 0.2, "locked"))
    assert once.filter(record("waits %.2f s: %s", 0.2, "disk full"))
    now += logs.REPEAT_SILENCE_S
    again = record("waits %.2f s: %s", 0.4, "locked")
    assert once.filter(again)
    assert again.getMessage() == "waits 0.40 s: locked (2 times more since it was told last)"
    assert not once.filter(record("waits %.2f s: %s", 0.4, "locked"))


def test_what_is_no_problem_is_always_told() -> None:
    """Information repeats as often as it is given."""
    once = OncePerProblem()
    assert all(once.filter(record("served", level=logging.INFO)) for _ in range(3))


def test_work_that_was_cancelled_is_no_problem() -> None:
    """Servers log what they cancel when they stop as if it had failed."""
    made = record("Exception in ASGI application", level=logging.ERROR)
    made.exc_info = (asyncio.CancelledError, asyncio.CancelledError(), None)
    assert not OncePerProblem().filter(made)


def test_the_memory_of_problems_is_bounded() -> None:
    """Past the limit the one not seen for longest is forgotten, and told again."""
    once = OncePerProblem()
    for number in range(PROBLEMS_KEPT_MAX + 1):
        assert once.filter(record("blocked %d", number))
    assert once.filter(record("blocked %d", 0))
    assert not once.filter(record("blocked %d", PROBLEMS_KEPT_MAX))


def test_logs_are_quiet_unless_verbose_and_go_to_stderr(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are told by default, everything with --verbose; a second call replaces the first."""
    del project  # puts logging back
    log = logging.getLogger("diptych.projector")
    for verbose, told in (False, ["warning"]), (True, ["info", "warning"]), (False, ["warning"]):
        logs.configure(verbose=verbose, form="json")
        log.info("a batch")
        log.warning("a problem")
        out, err = capsys.readouterr()
        assert out == ""
        assert [json.loads(line)["level"] for line in err.splitlines()] == told


def test_text_logs_have_time_level_and_message(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there are no control codes."""
    del project
    logs.configure(verbose=False, form="text")
    logging.getLogger("diptych.projector").error("[bold]rows[/bold] are %s", "gone")
    err = capsys.readouterr().err
    assert err.endswith(" error   [bold]rows[/bold] are gone\n")
    assert "\x1b" not in err
