"""The wheel, built and unpacked: it alone runs `diptych demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_S_MAX = 60
"""Seconds for building, or for one command line."""


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The folder with what the wheel holds."""
    built = _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    folder = tmp_path / "installed" / "here"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_alone_runs_the_demo(unpacked: Path, tmp_path: Path) -> None:
    """Nothing of the checkout is needed: the package and the shop both come from the wheel."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    find = (
        "import diptych; from diptych.entrypoints.cli.shop_location import make_shop_importable;"
        "print(diptych.__file__); print(make_shop_importable())"
    )
    found = _run("-c", find, cwd=elsewhere, path=unpacked)
    package = unpacked / "diptych"
    assert found.stdout.split() == [str(package / "__init__.py"), str(package / "_examples")], found.stderr
    done = _run("-m", "diptych", "demo", "--orders", "20", "--json", cwd=elsewhere, path=unpacked)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["orders"], result["verified"]) == (20, True)
    assert list(elsewhere.iterdir()) == []


def test_the_wheel_is_typed_and_has_its_command_and_no_tests(unpacked: Path) -> None:
    """What type checkers and installers look for is there, and nothing that only the checkout needs."""
    assert (unpacked / "diptych/py.typed").is_file()
    (entry_points,) = unpacked.glob("diptych-*.dist-info/entry_points.txt")
    assert "diptych = diptych.entrypoints.cli:main" in entry_points.read_text()
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"diptych"}


def _run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DIPTYCH_", "PYTHONPATH"))}
    environment = inherited if path is None else {**inherited, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S_MAX,
    )
