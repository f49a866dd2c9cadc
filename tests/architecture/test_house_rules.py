"""House rules that no linter knows: ports and their adapters, time and ids, limits that are read."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import diptych

PACKAGE = Path(diptych.__file__).parent
PORTS = (
    "event_store/event_store",
    "write_side/state_store",
    "read_side/read_store",
    "process_managers/process_store",
    "delivery/broker",
    "observability/observer",
)
"""Each a Protocol beside the code that uses it; an adapter's file has the same name."""
COMPLETE_ADAPTERS = ("memory", "sqlite")
"""Those that implement every port there is."""
HOMES = {"clock.py": {"datetime.now"}, "messages/unique_id.py": {"time.time_ns", "os.urandom"}}
"""Where time and chance come in."""
HIDDEN_INPUTS = {
    "date.today",
    "datetime.now",
    "datetime.today",
    "datetime.utcnow",
    "os.urandom",
    "time.time",
    "time.time_ns",
    "uuid.uuid1",
    "uuid.uuid4",
}
LIMIT = re.compile(r"[A-Z][A-Z0-9_]*_(MAX|MIN|S|MS)")


def sources() -> dict[str, ast.Module]:
    """Every file of the package by its path in it."""
    found = {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).parts[0].startswith("_examples")
    }
    assert len(found) > 50
    return found


# ── ports ────────────────────────────────────────────────────────────────────


def present_ports() -> list[str]:
    return [port for port in PORTS if (PACKAGE / f"{port}.py").exists()]


def test_the_two_first_ports_are_there() -> None:
    """So that the test below has something to look at."""
    assert {"event_store/event_store", "read_side/read_store"} <= set(present_ports())


@pytest.mark.parametrize("adapter", COMPLETE_ADAPTERS)
@pytest.mark.parametrize("port", present_ports())
def test_a_port_has_an_adapter_of_the_same_name(port: str, adapter: str) -> None:
    """A missing adapter shows in `ls`; each is found by `connect`."""
    path = PACKAGE / "adapters" / adapter / f"{Path(port).name}.py"
    assert path.exists()
    assert "connect" in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("port", present_ports())
def test_a_port_is_a_protocol(port: str) -> None:
    """The class named like the file is a `Protocol`."""
    wanted = "".join(word.title() for word in Path(port).name.split("_"))
    tree = ast.parse((PACKAGE / f"{port}.py").read_text())
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == wanted]
    assert "Protocol" in [ast.unparse(base) for base in cls.bases]


# ── time and chance ──────────────────────────────────────────────────────────


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local names to what they stand for: {"dt": "datetime", "now": "time.time"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted_names(tree: ast.Module) -> Iterator[str]:
    """What the code names, by its last two parts: "datetime.now", whatever was imported, and how."""
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            yield ".".join((*names.get(first, first).split("."), *rest)[-2:])


@pytest.mark.parametrize(
    "program",
    [
        "from datetime import datetime\ndatetime.now()",
        "import datetime as dt\ndt.datetime.now()",
        "from uuid import uuid4\nuuid4()",
        "import uuid\nmake = uuid.uuid4",
        "from time import time as clock\nclock()",
    ],
)
def test_hidden_inputs_are_found(program: str) -> None:
    """Under whatever name they were imported."""
    assert HIDDEN_INPUTS & set(dotted_names(ast.parse(program)))


def test_time_and_chance_come_from_their_homes() -> None:
    """Elsewhere the clock is injected, and ids come from `unique_id`."""
    found = {
        f"{path}: {name}"
        for path, tree in sources().items()
        for name in HIDDEN_INPUTS & set(dotted_names(tree))
        if name not in HOMES.get(path, set())
    }
    assert found == set()


def test_time_has_a_home() -> None:
    """So that the test above is not passed by an empty search."""
    assert "datetime.now" in set(dotted_names(sources()["clock.py"]))


# ── limits ───────────────────────────────────────────────────────────────────


def limits() -> dict[str, str]:
    """Every limit at the top of a module, with its path."""
    return {
        name.id: path
        for path, tree in sources().items()
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and LIMIT.fullmatch(name.id)
    }


def test_every_limit_is_read() -> None:
    """A knob that nothing reads is none."""
    read = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    )
    assert len(limits()) > 20
    assert {f"{path}: {name}" for name, path in limits().items() if not read[name]} == set()


def test_every_limit_says_what_it_limits() -> None:
    """A line of documentation stands below it (or below the pair that it is one of)."""
    silent = set[str]()
    for path, tree in sources().items():
        for node, following in pairwise([*tree.body, ast.Pass()]):
            if isinstance(node, ast.Assign) and LIMIT.fullmatch(
                ast.unparse(node.targets[0]).strip("()").split(", ")[0]
            ):
                told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if not told:
                    silent.add(f"{path}: {ast.unparse(node)}")
    assert silent == set()
