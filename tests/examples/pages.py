"""The project's pages, as its tests read them: links, headings, code blocks and what they are said to print.

A ```` ```python ```` block is run, all of a page in order, as one program in an empty folder. A ```` ```text ```` block
right after one, with at most a sentence between, is what that block prints. A comment before a block says otherwise:

    <!-- not run: why -->
    <!-- file: school.py -->    the block is a file in that folder, which later blocks may import
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Block", "Page", "pages", "printed"]

ROOT = Path(__file__).parents[2]
PAGE_RUN_S = 60
"""Seconds that the program of one page may take, on a machine that is busy with other tests."""
WORDS_BETWEEN_MAX = 40
"""Words between a block and what it prints; more of them, and the text block is something else."""

_END_OF_BLOCK = "\x1e"
_MARK = re.compile(r"<!-- (not run|file): (.+?) -->\s*$")
_LINK = re.compile(r"(?<!!)\[(?:[^\][]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: the word after the fence; may be empty.
        line: of the page, of its first line of text.
        skipped: the reason why it is not run; empty where it is.
        file: the file that it is; empty where it is none.
        prints: what it is said to print; None where nothing is said.
    """

    language: str
    text: str
    line: int
    skipped: str = ""
    file: str = ""
    prints: str | None = None


class Page(NamedTuple):
    """A page of the project."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """All but fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        """Where its links lead, in order."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The headings, as links name them."""
        headings = re.findall(r"^#+ +(.+?)\s*$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def blocks(self) -> list[Block]:
        """The fenced blocks, in order."""
        text, found = self.text, list[Block]()
        before = 0
        for match in _FENCE.finditer(text):
            between = text[before : match.start()]
            indent = len(match["indent"])
            body = "".join(line[indent:] for line in match["text"].splitlines(keepends=True))
            if match["language"] == "text" and found and found[-1].language == "python" and _is_close(between):
                found[-1] = found[-1]._replace(prints=body)
            else:
                mark = _MARK.search(between)
                kind, told = (mark[1], mark[2]) if mark else ("", "")
                line = text.count("\n", 0, match.start("text")) + 1
                skipped, file = told if kind == "not run" else "", told if kind == "file" else ""
                found.append(Block(match["language"], body, line, skipped, file))
            before = match.end()
        return found

    @property
    def program(self) -> list[Block]:
        """The blocks that are run, files included, in order."""
        return [block for block in self.blocks if block.language == "python" and not block.skipped]


def _is_close(between: str) -> bool:
    return len(between.split()) <= WORDS_BETWEEN_MAX and not re.search(r"^#", between, re.MULTILINE)


def pages() -> list[Page]:
    """Every page of the project: those at its root, the docs, and those beside examples and benchmarks."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
    return [Page(path) for path in sorted(found)]


def printed(page: Page, folder: Path, then: str = "") -> list[str]:
    """Run a page's program in a process of its own; what each of its blocks printed, and what `then` did behind them.

    Raises:
        AssertionError: it failed; with the traceback, whose line numbers are the page's.
    """
    source: list[str] = []
    for block in page.program:
        if block.file:
            source.append(f"open({block.file!r}, 'w', encoding='utf-8').write({block.text!r})\n")
        else:
            lines = sum(part.count("\n") for part in source)
            source.append("\n" * (block.line - lines - 1) + block.text)
        source.append(f"print({_END_OF_BLOCK!r})\n")
    if then:
        source.append(f"{then}\nprint({_END_OF_BLOCK!r})\n")
    program = folder / f"{page.path.stem.replace('-', '_').lower()}_page.py"
    program.write_text("".join(source), encoding="utf-8")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples"), str(folder)])
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=PAGE_RUN_S,
        check=False,
    )
    assert ran.returncode == 0, f"{page.name}:\n{ran.stderr}"
    return ran.stdout.split(f"{_END_OF_BLOCK}\n")[:-1]
