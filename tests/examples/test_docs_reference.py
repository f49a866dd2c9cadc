"""The reference names everything that it is the reference of, with the values of now."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import diptych
from diptych import errors
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.http.problems import problem_types
from tests.examples.pages import ROOT, Page

PACKAGE = Path(diptych.__file__).parent
LIMITS = Page(ROOT / "docs/reference/limits.md")
LIMIT_NAME = re.compile(
    r"[A-Z][A-Z0-9_]*_(?:MAX|MIN|S|EVENTS|ROWS|PAGES|KIB|STATEMENTS|THREADS|CHECKS|CACHED|SIZE|EVERY)"
)
ROW = re.compile(
    r"^\| `(?P<name>[A-Z0-9_]+)` \| (?P<value>[^|]+) \| (?P<unit>[^|]+) \| `(?P<path>[^`]+)` \| (?P<past>[^|]+) \|$",
    re.MULTILINE,
)


class Limit(NamedTuple):
    """A limit of the code, or of the page."""

    path: str
    name: str
    value: float


def coded() -> Iterator[Limit]:
    """Every limit at the top of a module of the package, but for those of the contract suites."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("_examples/", "testing/contracts/")):
            continue
        for constant in constants(ast.parse(path.read_text(encoding="utf-8"))):
            if LIMIT_NAME.fullmatch(constant):
                value = getattr(import_module("diptych." + name.removesuffix(".py").replace("/", ".")), constant)
                if isinstance(value, int | float):
                    yield Limit(name, constant, value)


def constants(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def told() -> list[Limit]:
    """Every row of the page."""
    return [Limit(row["path"], row["name"], number(row["value"])) for row in ROW.finditer(LIMITS.text)]


def number(text: str) -> float:
    plain = text.strip().replace(",", "")
    return float(plain) if "." in plain else int(plain)


def test_every_limit_is_in_the_docs_with_its_value() -> None:
    """Name, value and place of each are those of the code, and the page has none that the code has not."""
    found, shown = set(coded()), told()
    assert len(found) > 60
    assert len(shown) == len(set(shown))
    assert sorted(found - set(shown)) == []
    assert sorted(set(shown) - found) == []


def test_every_error_is_in_the_docs() -> None:
    """The tree on the page is that of `errors.py`, drawn alike."""
    page = Page(ROOT / "docs/reference/errors.md")
    tree = (inspect.getdoc(errors) or "").split("\n\n")[1]
    assert tree.startswith("DiptychError")
    assert tree in [block.text.rstrip() for block in page.blocks]
    rows = set(re.findall(r"^\| `(\w+)` \|", page.text, re.MULTILINE))
    raised = {
        name for name in errors.__all__ if name not in ("DiptychError", "MessageError", "HistoryError", "Unavailable")
    }
    raised |= {"ContextChanged", "Rejected"}  # which hold events, and so live further in
    assert sorted(raised - rows) == []
    assert sorted(rows - raised) == []


def test_every_problem_is_in_the_docs() -> None:
    """With its status, its members and its `Retry-After`."""
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) \| ([^|]*) \| ([^|]*) \|", Page(ROOT / "docs/reference/http.md").text, re.MULTILINE
    )
    shown = {
        (name, int(status), tuple(re.findall(r"`(\w+)`", members)), retry.strip())
        for name, status, members, retry in rows
    }
    known = {
        (type.name, type.status, type.members, str(type.retry_after_s or ""))
        for types in problem_types().values()
        for type in types
    }
    assert sorted(known - shown) == []
    assert sorted(shown - known) == []


def test_every_setting_is_in_the_docs() -> None:
    """As the key of the file and as the variable; what is a list, or goes with a table, is in the file alone."""
    text = Page(ROOT / "docs/reference/cli.md").text
    for name in Settings.__struct_fields__:
        variable = "–" if name in {"partition_by", "inline"} else f"`DIPTYCH_{name.upper()}`"
        assert f"| `{name}` | {variable} |" in text


def test_every_name_of_the_facade_is_in_the_docs() -> None:
    """What a user can import is told somewhere."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [name for name in diptych.__all__ if not re.search(rf"\b{name}\b", text)] == []
