"""What README and docs say is true: their code runs, prints what they say, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from cyclopts.exceptions import CycloptsError

from diptych.entrypoints.cli.app import command_line
from tests.examples.pages import ROOT, Page, pages, printed

PAGES = pages()
PROGRAMS = [page for page in PAGES if page.program]
FIRST_PROGRAM = ROOT / "tests" / "typing" / "first_program.py"
FIRST_PROGRAM_LINES_MAX = 25
GUARANTEES = [page for page in PAGES if re.search(r"guarantees/g\d+-", page.name)]
BUILT = set(range(1, 14))
"""The guarantees that this version gives; G5 within one process."""
TEST_NAMES = {
    name
    for folder in ("tests", "src/diptych/testing/contracts")
    for path in (ROOT / folder).rglob("*.py")
    for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}
MACHINES = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|Users)/")


def named(found: list[Page]) -> list[object]:
    return [pytest.param(page, id=page.name) for page in found]


def page(name: str) -> Page:
    return Page(ROOT / name)


# ── code ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", named(PROGRAMS))
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page: Page, tmp_path: Path) -> None:
    """All its blocks, in order, as one program in an empty folder."""
    output = printed(page, tmp_path)
    assert len(output) == len(page.program)
    for block, actual in zip(page.program, output, strict=True):
        if block.prints is not None:
            assert actual == block.prints, f"{page.name}, the block at line {block.line}"


FIND = """
import gc
from diptych import BoundedContext
from diptych.application.checks import findings
from diptych.application.model import application_model
from diptych.errors import ConfigurationError

# A page shows one thing after another: what it says of a fold is to be sound, and not what is still to come.
looked_at = 0
for context in [found for found in gc.get_objects() if isinstance(found, BoundedContext)]:
    try:
        model = application_model([context])
    except ConfigurationError:
        continue  # it needs the others of its page
    looked_at += len(model.parts)
    for finding in findings(model):
        if "without" not in finding.code:
            print(finding)
print("looked at", looked_at)
"""


@pytest.mark.parametrize("page", named([page for page in PROGRAMS if "BoundedContext(" in page.text]))
def test_folds_and_deciders_of_a_page_are_what_checks_demand(page: Page, tmp_path: Path) -> None:
    """None of them names the clock, chance or I/O, or leaves an event out."""
    *_, checked = printed(page, tmp_path, FIND)
    found, looked_at = checked.splitlines()[:-1], int(checked.split()[-1])
    assert found == []
    assert looked_at > 0 or "TYPE_CHECKING" in page.text  # there a context that does not compile is what is shown


def test_there_is_code_and_output_to_be_run() -> None:
    """So that the test above is not passed by pages without any."""
    blocks = [block for page in PROGRAMS for block in page.program]
    assert len(PROGRAMS) >= 10
    assert sum(block.prints is not None for block in blocks) >= 15


@pytest.mark.parametrize("page", named([page for page in PAGES if any(block.skipped for block in page.blocks)]))
def test_code_that_is_not_run_is_python_all_the_same(page: Page) -> None:
    """A fragment parses, and says why it is not run."""
    for block in page.blocks:
        if block.skipped and block.language == "python":
            ast.parse(block.text)


def commands() -> list[tuple[str, str]]:
    """Every `diptych …` line of the docs, with its page."""
    return [
        (page.name, line.replace("\\\n", " "))
        for page in PAGES
        for block in page.blocks
        if block.language in ("sh", "console")
        for line in re.findall(r"^(?:\$ )?diptych ((?:.*\\\n)*.*)$", block.text, re.MULTILINE)
    ]


def test_command_lines_in_the_docs_are_ones() -> None:
    """Each names a command, with options and arguments that it takes."""
    found = commands()
    assert len(found) >= 8
    for where, line in found:
        try:
            command_line().parse_args(shlex.split(line, comments=True), print_error=False)
        except CycloptsError as error:
            raise AssertionError(f"{where}: diptych {line}: {error}") from error


# ── README ───────────────────────────────────────────────────────────────────


def test_the_first_program_is_short_and_says_what_it_prints() -> None:
    """At most 25 lines, from the imports to the printed query; its output stands right behind it."""
    first = page("README.md").program[0]
    lines = [line for line in first.text.splitlines() if line.strip()]
    assert len(lines) <= FIRST_PROGRAM_LINES_MAX
    assert lines[0].startswith("from diptych import")
    assert "app.query(" in lines[-1]
    assert first.prints


def test_the_first_program_is_the_one_that_the_type_checkers_accept() -> None:
    """README's is that of `tests/typing`, which mypy and basedpyright check strictly, laid out more tightly."""
    typed = ast.parse(FIRST_PROGRAM.read_text(encoding="utf-8"))
    *rest, main = typed.body[1:]
    assert isinstance(main, ast.If)
    expected = ast.Module([*rest, *main.body], type_ignores=[])
    assert ast.unparse(ast.parse(page("README.md").program[0].text)) == ast.unparse(expected)


def test_the_readme_has_one_test_command() -> None:
    """`.ci/run` reads it there: set-up and tests on one line, which ends with the tests."""
    lines = [line for block in page("README.md").blocks for line in block.text.splitlines()]
    found = [line for line in lines if ".venv/bin/pytest" in line]
    assert len(found) == 1
    assert found[0].endswith(" && .venv/bin/pytest")


# ── links and names ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_to_pages_and_headings_that_exist(page: Page) -> None:
    """Those within the repository; others only have to be addresses."""
    for link in page.links:
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page.name} links to {link}"
        assert path.is_relative_to(ROOT), f"{page.name} links out of the repository: {link}"
        if anchor:
            assert anchor in Page(path).anchors, f"{page.name} links to {link}"


def test_every_page_of_the_docs_can_be_found() -> None:
    """From README, by links alone."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for link in Page(path).links if path.suffix == ".md" else ():
            target = (path.parent / link.partition("#")[0]).resolve()
            if target.is_dir():
                waiting.extend(target.glob("*.md"))
            elif "://" not in link and target.exists():
                waiting.append(target)
    missing = [page.name for page in PAGES if page.path not in reached and page.name.startswith("docs/")]
    assert missing == []


@pytest.mark.parametrize("page", named(PAGES))
def test_pages_name_nobodys_machine(page: Page) -> None:
    """No absolute path of whoever wrote it."""
    assert not MACHINES.search(page.text)


def test_paths_of_code_that_pages_name_exist() -> None:
    """`write_side/command_bus.py` in prose is a file below `src/diptych`, or below the root."""
    found = [
        (page.name, path)
        for page in PAGES
        if page.name.startswith(("docs/explanation", "docs/reference", "docs/decisions", "ARCHITECTURE"))
        for path in re.findall(r"`([\w./]+/\w+\.py)`", page.prose)
    ]
    assert len(found) >= 40
    missing = [
        (where, path) for where, path in found if not ((ROOT / "src/diptych" / path).exists() or (ROOT / path).exists())
    ]
    assert missing == []


# ── guarantees ───────────────────────────────────────────────────────────────


def test_every_guarantee_that_is_built_has_a_page() -> None:
    """And one that is not built has none, since a page is a promise."""
    assert {int(re.findall(r"guarantees/g(\d+)-", page.name)[0]) for page in GUARANTEES} == BUILT


@pytest.mark.parametrize("page", named(GUARANTEES))
def test_a_guarantee_names_tests_that_exist(page: Page) -> None:
    """The page says the rule, how it is kept, what it does not cover, and which tests break when it is broken."""
    text = page.text
    for heading in ("## The rule", "## How it is kept", "## What it does not cover", "## Tests"):
        assert heading in text, f"{page.name} lacks {heading!r}"
    tests = re.findall(r"`(test_\w+)`", text.partition("## Tests")[2])
    assert tests, f"{page.name} names no test"
    assert [name for name in tests if name not in TEST_NAMES] == []


@pytest.mark.parametrize("page", named(GUARANTEES))
def test_a_guarantee_names_a_test_that_has_its_number(page: Page) -> None:
    """Where there are such tests, as `test_g3_…`, at least one of them stands on the page of G3."""
    number = re.findall(r"guarantees/g(\d+)-", page.name)[0]
    numbered = {name for name in TEST_NAMES if name.startswith(f"test_g{number}_")}
    assert not numbered or numbered & set(re.findall(r"`(test_\w+)`", page.text))
