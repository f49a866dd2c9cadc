"""`diptych model`: the picture of a project, on stdout or in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import diptych
from tests.cli_project import Project, project_in

SOURCES = str(Path(diptych.__file__).parents[1])
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


def test_it_draws_what_there_is(project: Project) -> None:
    """A box for each part, with its kind; lines between them."""
    code, out, err = project.run("model", project.context)
    assert (code, err) == (0, "")
    root = ET.fromstring(out)  # noqa: S314 — we have made it
    boxes = {group[0].text: group.attrib["class"] for group in root.iter(f"{SPACE}g") if "id" in group.attrib}
    told = {" ".join(str(text).split("\n")[0].split(",")[0].split()[-1:]): kind for text, kind in boxes.items()}
    assert told == {
        "school.Enrol": "command",
        "school.Audit": "command",
        "school.Enrolled": "event",
        "school.Audited": "event",
        "school.seats": "projection",
        "school.inform": "subscriber",
        "school.Seats": "read-model",
        "school.SeatsOf": "query",
    }
    lines = [
        path.attrib["class"].split()[1]
        for path in root.iter(f"{SPACE}path")
        if path.attrib.get("class", "")[:2] == "l "
    ]
    legend = {"gives", "reaches", "feeds", "answers"}
    assert sorted(lines) == sorted(["gives", "gives", "reaches", "reaches", "feeds", "answers", *legend])


def test_it_writes_a_file(project: Project) -> None:
    """And nothing on stdout; a second time it is the same, byte for byte."""
    assert project.run("model", project.context, "--output", "model.svg") == (0, "", "")
    first = Path("model.svg").read_bytes()
    assert project.run("model", project.context, "--output", "model.svg").code == 0
    assert Path("model.svg").read_bytes() == first
    assert project.run("model", project.context).out.encode() == first


def test_it_writes_mermaid_text(project: Project) -> None:
    """For pages that draw it themselves."""
    code, out, err = project.run("model", project.context, "--mermaid")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == ["flowchart LR", '  subgraph c0["school"]', '    p0["Enrol"]:::command']
    assert '    p6[("Seats<br><small>by course</small>")]:::read_model' in lines
    assert "  p6 --> p7" in lines


def test_what_cannot_be_written_is_told(project: Project) -> None:
    """On stderr, with the reason."""
    code, out, err = project.run("model", project.context, "--output", "nowhere/model.svg")
    assert (code, out) == (1, "")
    assert err == "error: nowhere/model.svg cannot be written: No such file or directory\n"


def test_a_terminal_gets_no_picture(project: Project) -> None:
    """It could only show the text of it."""
    terminal, shown = os.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "diptych", "model", project.context],
            stdout=shown,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": SOURCES},
            text=True,
            check=False,
        )
    finally:
        os.close(shown)
        os.close(terminal)
    assert ran.returncode == 2
    assert "> model.svg or --output model.svg" in ran.stderr


def test_what_does_not_compile_cannot_be_drawn(project: Project) -> None:
    """The error says why."""
    path = project.folder / f"{project.module}_again.py"
    source = (project.folder / f"{project.module}.py").read_text()
    path.write_text(f"{source}\n\n@school.command_handler\ndef again(command: Enrol) -> Enrolled: ...\n")
    code, out, err = project.run("model", f"{path.stem}:school")
    assert (code, out) == (1, "")
    assert err.startswith("error: Enrol has two handlers")
