"""What is public, and where it lives."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import diptych

PACKAGE = Path(diptych.__file__).parent
FACADE_NAMES_MAX = 40
NOT_LOADED = (
    "diptych.adapters",
    "diptych.entrypoints",
    "diptych.testing",
    "cyclopts",
    "httptools",
    "jwt",
    "rich",
    "sqlalchemy",
    "sqlite3",
    "starlette",
    "uvicorn",
    "uvloop",
)


def module_names() -> list[str]:
    """Every module of the package but the façade, programs (`__main__`) and examples that travel with the wheel."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    parts = [path.parts[:-1] if path.name == "__init__" else path.parts for path in paths]
    return [".".join(("diptych", *part)) for part in parts if part and "__main__" not in part and part[0][0] != "_"]


def public(module: ModuleType) -> list[str]:
    names: list[str] = getattr(module, "__all__", [])
    return names


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Each (module, name) of a `from diptych.… import …` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diptych."):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", module_names())
def test_all_tells_what_a_module_gives(name: str) -> None:
    """Every name in `__all__` exists, once; a module with public classes or functions has one."""
    module = importlib.import_module(name)
    listed = public(module)
    assert len(set(listed)) == len(listed)
    assert [found for found in listed if not hasattr(module, found)] == []
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).read_text()).body
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    defined = [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert listed or not defined, f"{name} defines {defined} and has no __all__"


def test_what_others_import_is_public() -> None:
    """A class or function that another module of the package imports is in its home's `__all__`."""
    hidden = set[str]()
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        for module_name, name in imported(path):
            module = importlib.import_module(module_name)
            is_submodule = isinstance(getattr(module, name, module), ModuleType)
            if is_submodule or name.isupper():  # limits are read where they apply
                continue
            seen += 1
            if name not in public(module):
                hidden.add(f"{module_name}.{name}, imported by {path.relative_to(PACKAGE)}")
    assert seen > 100
    assert hidden == set()


def test_the_facade_is_small() -> None:
    """At most 41 names, sorted, each once."""
    names = diptych.__all__
    assert len(names) <= FACADE_NAMES_MAX
    assert list(names) == sorted(set(names))


@pytest.mark.parametrize("name", diptych.__all__)
def test_each_name_of_the_facade_has_one_home(name: str) -> None:
    """It is public in exactly one module, from which the façade has it."""
    homes = [
        module
        for module in map(importlib.import_module, module_names())
        if name in public(module) and getattr(module, name) is getattr(diptych, name)
    ]
    assert len(homes) == 1, [home.__name__ for home in homes]


def in_a_fresh_interpreter(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_the_facade_loads_the_core_alone() -> None:
    """No adapter, entry point or testing kit, and nothing that only they need."""
    found = in_a_fresh_interpreter("import diptych, sys; print('\\n'.join(sys.modules))")
    assert found.returncode == 0, found.stderr
    loaded = found.stdout.splitlines()
    assert "diptych.application.application" in loaded
    unwanted = [name for name in loaded for banned in NOT_LOADED if name == banned or name.startswith(f"{banned}.")]
    assert unwanted == []


def test_importing_the_facade_does_nothing() -> None:
    """No output, thread, log handler, signal handler, warning filter, environment or working directory changes."""
    state = (
        "(threading.active_count(), logging.root.handlers[:], logging.root.level, [signal.getsignal(s) for s in "
        "signal.valid_signals()], sys.excepthook, warnings.filters[:], dict(os.environ), os.getcwd(), sys.path[:])"
    )
    program = (
        "import asyncio, logging, msgspec, os, signal, sys, threading, warnings\n"
        f"before = {state}\nimport diptych\nassert {state} == before"
    )
    found = in_a_fresh_interpreter(program)
    assert found.returncode == 0, found.stderr
    assert found.stdout + found.stderr == ""
