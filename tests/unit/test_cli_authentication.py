"""Where `diptych run` lets others in: on this machine, with tokens, or on purpose."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from diptych import Application
from diptych.entrypoints.cli.http_server import authenticator
from diptych.entrypoints.cli.http_server import serve as serve_settled
from diptych.entrypoints.cli.processes import _arguments
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.http.authenticator import TrustEveryone
from diptych.entrypoints.http.json_web_tokens import JsonWebTokens
from diptych.entrypoints.http.server import listen, serve
from diptych.errors import ConfigurationError
from tests.cli_project import Project, project_in
from tests.tokens import AUDIENCE, ISSUER, Issuer
from tests.unit.test_http_authentication import library

OTHERS = ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1"]  # noqa: S104 — what is to be refused
SERVED_S = 20.0
"""A server that is still there has not been refused."""
TOKENS = {"jwks": "keys.json", "issuer": ISSUER, "audience": AUDIENCE}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with project_in(tmp_path, monkeypatch) as made:
        (tmp_path / "keys.json").write_text(Issuer().key_set())
        yield made


@contextmanager
def taken(host: str) -> Iterator[str]:
    """A port that is taken there, so that a server which should not be there ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as listening:
        if host in ("0.0.0.0", "::"):  # noqa: S104 — the others are nobody's here
            listening.bind((host, 0))
            listening.listen()
        yield str(listening.getsockname()[1] or 1)


@pytest.mark.parametrize("host", OTHERS)
@pytest.mark.parametrize("command", [("run",), ("run", "--processes", "2"), ("run", "--role", "api")])
def test_others_are_not_served_by_who_knows_nobody(project: Project, host: str, command: tuple[str, ...]) -> None:
    """Whatever names all addresses, or another than loopback; the flag that would allow it is named."""
    with taken(host) as port:
        code, out, err = project.run(
            *command, project.context, "--store", "sqlite:x.db", "--port", port, "--host", host
        )
    assert (code, out) == (1, "")
    assert "--without-authentication" in err
    assert "--jwks" in err
    assert "Traceback" not in err


def test_the_demo_is_for_this_machine_as_well(project: Project) -> None:
    """It is served by the same server."""
    with taken("0.0.0.0") as port:  # noqa: S104
        code, _, err = project.run("demo", "--orders", "1", "--serve", "--host", "0.0.0.0", "--port", port)  # noqa: S104
    assert code == 1
    assert "--without-authentication" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.10"])
def test_loopback_is_for_everyone_on_this_machine(host: str) -> None:
    """By whatever name."""
    listen(host, 0).close()


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])  # noqa: S104 — what is to be refused
async def test_a_socket_that_listens_already_is_looked_at(host: str) -> None:
    """In Python, too; and a server of health alone is for anyone."""
    async with Application(library) as app, asyncio.timeout(SERVED_S):
        with pytest.raises(ConfigurationError, match="nothing says who may send commands"):
            await serve(app, host=host, port=0)
        with pytest.raises(ConfigurationError, match="nothing says who may send commands"):
            await serve(app, host="127.0.0.1", port=0, listening=listen("0.0.0.0", 0, for_anyone=True))  # noqa: S104


@pytest.mark.anyio
@pytest.mark.parametrize(
    "given",
    [
        {"jwks": "keys.json"},
        {"issuer": ISSUER},
        {"jwks": "keys.json", "issuer": ISSUER},
        {"issuer": ISSUER, "audience": AUDIENCE},
        {**TOKENS, "audience": ""},
        {**TOKENS, "jwks": "missing.json"},
        {**TOKENS, "jwks": "http://issuer.example/keys"},
        {**TOKENS, "without_authentication": True},
        {"issuer": ISSUER, "without_authentication": True},
    ],
    ids=range(9),
)
async def test_settings_that_do_not_fit_each_other_are_refused(project: Project, given: dict[str, object]) -> None:
    """Half of what tokens are verified by, keys that are not there, and with as well as without."""
    with pytest.raises(ConfigurationError):
        await authenticator(Settings(**given))  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_settings_say_who_is_let_in(project: Project) -> None:
    """Those with tokens, everyone, or nobody who would be known."""
    assert isinstance(await authenticator(Settings(**TOKENS)), JsonWebTokens)  # type: ignore[arg-type]
    assert isinstance(await authenticator(Settings(without_authentication=True)), TrustEveryone)
    assert await authenticator(Settings()) is None


def test_settings_come_from_every_layer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag, environment and file: what is wrong with them shows that each is read."""
    run = ("run", project.context, "--port", "0")
    assert "--issuer and --audience is missing" in project.run(*run, "--jwks", "keys.json").err
    monkeypatch.setenv("DIPTYCH_ISSUER", ISSUER)
    assert "--audience is missing" in project.run(*run, "--jwks", "keys.json").err
    project.settings(f'jwks = "missing.json"\naudience = "{AUDIENCE}"')
    assert "the keys at missing.json cannot be had" in project.run(*run).err
    monkeypatch.setenv("DIPTYCH_WITHOUT_AUTHENTICATION", "true")
    assert "--without-authentication does without" in project.run(*run).err


def test_servers_that_are_started_know_who_is_let_in() -> None:
    """Each of several processes is told what the first one was."""
    told = _arguments(Settings(app=("x:y",), **TOKENS), verbose=False)  # type: ignore[arg-type]
    for name, value in TOKENS.items():
        assert told[told.index(f"--{name}") + 1] == value
    assert "--without-authentication" not in told
    assert "--without-authentication" in _arguments(Settings(without_authentication=True), verbose=False)


@pytest.mark.anyio
async def test_commands_that_nobody_may_send_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where scopes are required, and nobody has any."""
    async with Application(library) as app:
        with caplog.at_level(logging.WARNING, "diptych.cli"), pytest.raises(ConfigurationError):
            await serve_settled(app, host="192.0.2.1", port=0)
    assert [record.getMessage() for record in caplog.records if "Lend" in record.getMessage()]
    assert not [record for record in caplog.records if "Look" in record.getMessage()]
