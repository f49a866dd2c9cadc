"""What the command line says of itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import Project, project_in

COMMANDS = [
    ("demo",),
    ("run",),
    ("check",),
    ("model",),
    ("status",),
    ("events",),
    ("parked", "list"),
    ("parked", "show"),
    ("parked", "retry"),
    ("parked", "discard"),
    ("parked", "discarded"),
    ("processes", "list"),
    ("processes", "show"),
    ("processes", "retry"),
    ("processes", "close"),
    ("scheduled", "list"),
    ("scheduled", "show"),
    ("scheduled", "cancel"),
    ("rebuild",),
    ("copy",),
    ("schema", "show"),
    ("schema", "check"),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setenv("COLUMNS", "80")
    with project_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(project: Project, command: tuple[str, ...]) -> None:
    """It shows how to call it, in 80 columns and without control codes."""
    code, out, err = project.run(*command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: diptych {' '.join(command)}" in out
    assert f"  diptych {' '.join(command)}" in out[out.index("Example") :]
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_without_a_command_it_shows_what_there_is(project: Project) -> None:
    """The same as --help."""
    code, out, _ = project.run()
    assert code == 0
    assert out == project.run("--help").out
    assert all(command[0] in out for command in COMMANDS)


def test_the_version_is_told(project: Project) -> None:
    """On stdout, with the name."""
    code, out, _ = project.run("--version")
    assert code == 0
    assert out.startswith("diptych")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rnu",), 'unknown command "rnu". Did you mean "run"?'),
        (("events", "--folow"), "--follow"),
        (("events", "--limit", "0"), "It must be 1 or more."),
        (("events", "--after", "-1"), "It must be 0 or more."),
        (("run", "--port", "65536"), "It must be 0 to 65535."),
        (("run", "--log-format", "xml"), '"text", "json"'),
        (("rebuild",), "READ_MODEL"),
        (("events", "--tag", "python"), "'python' is no tag: write it as name:value"),
        (("parked", "retry", "event-1-00000000"), "--reason"),
        (("parked", "retry", "x", "--reason", "y", "--fields", "5"), "'5' are no fields: write a JSON object"),
        (("parked", "discard", "event-1-00000000", "--reason", "sold"), "give --yes"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(project: Project, arguments: tuple[str, ...], told: str) -> None:
    """Exit code 2, one line on stderr in the form of every other error, nothing on stdout."""
    code, out, err = project.run(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_help_imports_neither_stores_nor_http_nor_the_shop() -> None:
    """A command line that imports everything starts slowly."""
    program = (
        "import sys\nfrom diptych.entrypoints.cli.app import run_command_line\n"
        "run_command_line(['--help'])\nrun_command_line(['demo', '--help'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "diptych.entrypoints.cli.demo" in loaded
    assert not loaded & {"sqlite3", "starlette", "uvicorn", "uvloop", "shop", "rich.progress", "diptych.adapters"}
