"""The files of `examples/deploy`, as its tests read them."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.examples.pages import ROOT

__all__ = [
    "DEPLOY",
    "UNITS",
    "Unit",
    "compose",
    "image_environment",
    "image_steps",
    "interpolated",
    "script_lines",
    "units",
    "variables",
]

DEPLOY = ROOT / "examples" / "deploy"
UNITS = DEPLOY / "systemd"

_VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")


def compose() -> dict[str, Any]:
    """What `compose.yaml` says, anchors resolved. The parser is one that schemathesis brings."""
    found: dict[str, Any] = import_module("yaml").safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def variables() -> set[str]:
    """The names that `compose.yaml` takes from outside; each must be there."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    found = set(_VARIABLE.findall(text))
    assert text.count("${") == len(_VARIABLE.findall(text)), "a variable without ':?' would be empty in silence"
    return found


def interpolated(environment: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """A service's environment with these passwords."""
    return {name: _VARIABLE.sub(lambda found: values[found[1]], text) for name, text in environment.items()}


def image_steps() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile, in order: ("FROM", "python:3.13-slim AS wheels")."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    plain = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, plain.splitlines()):
        instruction, _, rest = line.partition(" ")
        yield instruction, " ".join(rest.split())


def image_environment() -> dict[str, str]:
    """What the image sets."""
    found: dict[str, str] = {}
    for instruction, rest in image_steps():
        if instruction == "ENV":
            found |= dict(part.split("=", 1) for part in shlex.split(rest))
    return found


def script_lines(name: str) -> list[str]:
    """The lines of a script that run something."""
    lines = (DEPLOY / "scripts" / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Unit(NamedTuple):
    """A systemd unit.

    Attributes:
        name: of its file.
        sections: its keys and their last values, by section.
    """

    name: str
    sections: Mapping[str, Mapping[str, str]]

    @property
    def service(self) -> Mapping[str, str]:
        """The keys of `[Service]`."""
        return self.sections["Service"]

    @property
    def environment(self) -> dict[str, str]:
        """What the example of its environment file sets."""
        path = UNITS / Path(self.service["EnvironmentFile"]).name
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def command(self, instance: str) -> list[str]:
        """Its command line, for an instance."""
        return shlex.split(self.service["ExecStart"].replace("%i", instance))


def units() -> list[Unit]:
    """Those of the example."""
    found: list[Unit] = []
    for path in sorted(UNITS.glob("*.service")):
        parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys are in mixed case
        parser.read(path, encoding="utf-8")
        found.append(Unit(path.name, {name: dict(parser[name]) for name in parser.sections()}))
    return found
