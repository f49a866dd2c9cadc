"""Both type checkers over this folder, strict; and what they have checked, run."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from diptych.testing import InMemoryApplication
from tests.typing.hard_cases import Gateway, Stripe, bank

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FIRST_PROGRAM = FOLDER / "first_program.py"
FIRST_PROGRAM_LINES_MAX = 25
VERSIONS = ("3.11", "3.13")
"""The oldest one supported, and the one in which classes have `__replace__`."""
CHECK_S = 100
"""Seconds that one run of a checker may take, on a machine that is busy with other tests."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python program of this environment, from the root of the repository."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=CHECK_S, check=False
    )


@pytest.mark.xdist_group("type checkers")
@pytest.mark.parametrize("version", VERSIONS)
def test_mypy_accepts_what_is_right_and_refuses_what_is_wrong(version: str, tmp_path: Path) -> None:
    """Strict, with the project's settings: types are as asserted, and no ignored error is missing."""
    assert find_spec("mypy"), "mypy is part of the dev extra"
    found = run("-m", "mypy", "--python-version", version, "--cache-dir", str(tmp_path), "tests/typing")
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"in {len(list(FOLDER.glob('*.py')))} source files" in found.stdout


@pytest.mark.xdist_group("type checkers")
@pytest.mark.parametrize("version", VERSIONS)
def test_basedpyright_accepts_what_is_right_and_refuses_what_is_wrong(version: str) -> None:
    """Strict, with the project's settings: types are as asserted, and no ignored error is missing."""
    assert find_spec("basedpyright"), "basedpyright is part of the dev extra"
    arguments = ["--pythonpath", sys.executable, "--pythonversion", version, "--stats", "tests/typing"]
    found = run("-m", "basedpyright", *arguments)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.xdist_group("type checkers")
@pytest.mark.parametrize("module", ["mypy", "basedpyright"])
def test_a_wrong_type_is_seen(module: str, tmp_path: Path) -> None:
    """The checkers do find something in a program on Diptych that asserts a wrong type."""
    program = tmp_path / "wrong.py"
    program.write_text(
        FIRST_PROGRAM.read_text()
        + "\n\ndef wrong(app: SyncApplication) -> None:\n"
        + '    count: int = app.query(SeatsOf(course=CourseId("python"))) or 0\n'
        + "    print(count)\n"
    )
    options = {"mypy": ["--strict", "--cache-dir", str(tmp_path)], "basedpyright": ["--pythonpath", sys.executable]}
    found = run("-m", module, *options[module], str(program))
    assert found.returncode == 1, found.stdout + found.stderr
    assert "1 error" in found.stdout


def test_the_first_program_runs() -> None:
    """It goes from a command to an answer, and its answer is the expected one."""
    found = run(str(FIRST_PROGRAM))
    assert found.returncode == 0, found.stderr
    assert found.stdout == "Seats(course='python', taken=1)\n"


def test_the_first_program_is_short() -> None:
    """At most 25 lines from the command to the query, blank ones aside."""
    lines = [line for line in FIRST_PROGRAM.read_text().splitlines() if line.strip()]
    first = next(index for index, line in enumerate(lines) if line.startswith("class Enrol("))
    last = next(index for index, line in enumerate(lines) if "app.query(" in line)
    assert last - first + 1 <= FIRST_PROGRAM_LINES_MAX


@pytest.mark.anyio
async def test_the_hard_cases_compile() -> None:
    """What the checkers accept, an application accepts: every signature is bound when it opens."""
    async with InMemoryApplication(bank, services={Gateway: Stripe()}) as app:
        assert {"Transfer", "Checkout", "PayTwice", "AddContact"} <= set(app.commands.names.values())
        assert {"SalesOf", "WithUnits", "Search", "Best", "UnitsSold"} <= set(app.queries.names.values())
