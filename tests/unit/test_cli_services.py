"""Contexts whose handlers take services, on a command line that has none to give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_project import Project, project_in

_SOURCE = """
from collections.abc import Sequence

from diptych import BoundedContext, Command, Event, EventContext, Query, Reader

shop = BoundedContext("shop")


class Gateway: ...


class Pay(Command): ...


class Paid(Event): ...


class Balance(Query[int]): ...
"""
_TAKERS = {
    "pay": "@shop.command_handler\nasync def pay(command: Pay, gateway: Gateway) -> Paid: return Paid()",
    "balance": "@shop.query_handler\nasync def balance(query: Balance, gateway: Gateway) -> int: return 0",
    "mail": "@shop.subscriber\nasync def mail(events: Sequence[tuple[Paid, EventContext]], gateway: Gateway): ...",
}
REMEDY = (
    "The command line has no services to give: make the ASGI application yourself, http_app(Application(..., "
    "services={...})), and run it with uvicorn"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("taker", list(_TAKERS))
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_context_that_needs_services_is_told_how_to_be_served(project: Project, command: str, taker: str) -> None:
    """`services=` is for Python: no option could say it, so the error says what to do instead."""
    module = f"{project.module}_{command}_{taker}"
    (project.folder / f"{module}.py").write_text(f"{_SOURCE}\n\n{_TAKERS[taker]}\n")
    project.enrol("python", store="sqlite:shop.db")
    code, out, err = project.run(command, f"{module}:shop", "--store", "sqlite:shop.db")
    assert (code, out) == (1, "")
    assert f"error: {module}.{taker}: parameter `gateway` " in err
    assert "pass it as Application(services={Gateway: ...}). " in err
    assert REMEDY in err
