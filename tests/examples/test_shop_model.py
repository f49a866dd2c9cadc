"""The shop as it is written: nothing is wrong with it, and its picture in the docs is the one of now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.pages import ROOT

CONTEXTS = ("shop:shop", "shop.stock:stock", "shop.accounts:accounts", "shop.ordering:ordering")
PICTURE = "docs/guides/shop-model.svg"


def diptych(folder: Path, *arguments: str, seed: str = "0") -> str:
    """What a command line prints that ends well, in a process that knows no other application."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples")])
    ran = subprocess.run(
        [sys.executable, "-m", "diptych", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONUTF8": "1", "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return ran.stdout


@pytest.mark.parametrize(
    "contexts", [CONTEXTS, ("shop:shop",), ("shop.stock:stock",), ("shop.accounts:accounts",)], ids=" ".join
)
def test_nothing_is_found_in_the_shop(tmp_path: Path, contexts: tuple[str, ...]) -> None:
    """All of its contexts together, and those that stand alone."""
    assert diptych(tmp_path, "check", *contexts, "--strict").endswith(": all is well\n")


def test_nothing_is_found_in_the_steps_to_adopt_it(tmp_path: Path) -> None:
    """With all steps imported, as its main program has them in the end."""
    steps = sorted(path.stem for path in (ROOT / "examples/adopt").glob("step_[1-9]*.py"))
    assert len(steps) == 4
    imported = "".join(f"import adopt.{step}\n" for step in steps)
    (tmp_path / "adopted.py").write_text(f"{imported}from adopt.step_1_command import shop\n")
    assert diptych(tmp_path, "check", "adopted:shop", "--strict").endswith(": all is well\n")


def test_the_picture_in_the_docs_is_that_of_the_shop(tmp_path: Path) -> None:
    """Made anew it is the same, whatever the hashes of this process."""
    drawn = (ROOT / PICTURE).read_text(encoding="utf-8")
    remedy = f"draw it anew: diptych model {' '.join(CONTEXTS)} --output {PICTURE}"
    assert diptych(tmp_path, "model", *CONTEXTS) == drawn, remedy
    assert diptych(tmp_path, "model", *CONTEXTS, seed="1") == drawn, "it depends on hashes"
