"""The command line as a process: signals, exit codes, and several processes on one store."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any

import pytest

import diptych
from tests.cli_project import STORE, Project, project_in

INTERRUPTED, TERMINATED = 130, 143
EXIT_WAIT_S = 60.0
"""A process that is still there has failed."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context and its store."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        yield made


@contextmanager
def running(project: Project, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command line as a process, ended with the test whatever happens."""
    process = project.start(*arguments, **environment)
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(project: Project, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`diptych run`, with the address at which it answers."""
    with running(project, "run", *arguments, **environment) as process:
        assert process.stderr is not None
        yield process, address(process.stderr)


def address(told: IO[str]) -> str:
    """Where it is served, by what the process said of it."""
    for line in told:
        if found := re.search(r"http://([\w.:]+)", line):
            return found[1]
    raise AssertionError("it ended before it served")


def ended(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """The exit code after a signal, and what else was said on stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=EXIT_WAIT_S)
    return process.returncode, err


def ask(where: str, method: str, path: str, body: object = None, *, token: str | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer over HTTP."""
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Consistency-Token": token})
    with closing(HTTPConnection(where, timeout=EXIT_WAIT_S)) as connection:
        connection.request(method, path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


# ── run ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)])
def test_a_server_answers_and_stops_on_a_signal(project: Project, number: signal.Signals, code: int) -> None:
    """What it acknowledged is in the store; it says nothing more, and leaves no traceback."""
    with serving(project, "--port", "0") as (process, where):
        assert ask(where, "GET", "/health/ready") == (200, {"ready": True})
        status, receipt = ask(where, "POST", "/commands/Enrol", {"course": "python"})
        assert (status, receipt["position"]) == (200, 1)
        assert ended(process, number) == (code, "")
    assert project.taken("python") == 1


def test_a_server_stops_with_connections_open(project: Project) -> None:
    """An idle one, and one in the middle of a request that never goes on, keep nobody waiting past the limit."""
    with serving(project, "--port", "0") as (process, where):
        host, _, port = where.partition(":")
        with closing(HTTPConnection(where)) as idle, socket.create_connection((host, int(port))) as half:
            idle.request("GET", "/health/live")
            assert idle.getresponse().read()
            half.sendall(
                b"POST /commands/Enrol HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
            )
            assert half.recv(100).startswith(b"HTTP/1.1 100")  # it is being handled, and waits for its body
            code, err = ended(process, signal.SIGTERM)
    assert code == 0
    assert "Cancel 1 running task(s)" in err
    assert "Traceback" not in err


def test_a_server_takes_its_settings_from_every_layer(project: Project) -> None:
    """A flag goes before the environment, that before the file, that before the default."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        project.settings(f'app = ["{project.context}"]\nstore = "{STORE}"\nhost = "localhost"\nport = {port}\n')
        environment = {"DIPTYCH_HOST": "127.0.0.1"}
        with running(project, "run", **environment) as process:
            _, err = process.communicate(timeout=EXIT_WAIT_S)
        assert process.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in err  # the port of the file, the host of the environment
        with serving(project, "--host", "127.0.0.2", DIPTYCH_PORT="0", **environment) as (process, where):
            assert where.partition(":")[0] == "127.0.0.2"  # the flag's host, the environment's port
            assert where.partition(":")[2] != str(port)
            assert ended(process, signal.SIGTERM) == (0, "")


def test_a_server_logs_json_lines(project: Project) -> None:
    """Each line on stderr is an object, from the first to the last."""
    with serving_json(project) as (process, first):
        assert (first["level"], first["logger"]) == ("info", "diptych.cli")
        assert first["url"].startswith("http://127.0.0.1:")
        assert ended(process, signal.SIGTERM) == (0, "")


@contextmanager
def serving_json(project: Project) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    with running(project, "run", "--port", "0", DIPTYCH_LOG_FORMAT="json") as process:
        assert process.stderr is not None
        yield process, json.loads(process.stderr.readline())


def test_a_server_in_memory_says_that_nothing_is_kept(project: Project) -> None:
    """Once, when it starts."""
    project.settings(f'app = ["{project.context}"]\n')
    with running(project, "run", "--port", "0") as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "warning no store was given: events are kept in memory" in first
        assert address(process.stderr)
        assert ended(process, signal.SIGTERM) == (0, "")


def test_a_worker_keeps_the_read_models_of_an_api(project: Project) -> None:
    """Each does its part in a process of its own; the worker serves its health and nothing else."""
    with serving(project, "--port", "0", "--role", "api") as (_, api):
        _, receipt = ask(api, "POST", "/commands/Enrol", {"course": "python"})
        assert ask(api, "POST", "/queries/SeatsOf", {"course": "python"}) == (200, None)
        with serving(project, "--port", "0", "--role", "worker") as (worker, where):
            assert ask(where, "GET", "/health/live") == (200, {"live": True})
            assert ask(where, "POST", "/commands/Enrol", {"course": "python"})[0] == 404
            assert ask(where, "GET", "/openapi.json")[0] == 404
            status, seats = ask(api, "POST", "/queries/SeatsOf", {"course": "python"}, token=receipt["token"])
            assert (status, seats["taken"]) == (200, 1)
            assert ask(where, "GET", "/health/ready") == (200, {"ready": True})
            assert ended(worker, signal.SIGTERM) == (0, "")


def test_servers_have_what_is_in_memory_without_a_worker(project: Project) -> None:
    """Each folds its own, also where it leaves the other read models to a worker that is not there."""
    options = ("--port", "0", "--role", "api", "--processes", "2", "--read-stores", "Seats=memory:")
    with serving(project, *options) as (parent, where):
        for taken in range(1, 5):
            _, receipt = ask(where, "POST", "/commands/Enrol", {"course": "python"})
            status, seats = ask(where, "POST", "/queries/SeatsOf", {"course": "python"}, token=receipt["token"])
            assert (status, seats["taken"]) == (200, taken)
        assert ended(parent, signal.SIGTERM) == (0, "")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a process has started, by the system's account."""
    return [int(found) for found in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")


@linux_only
def test_several_processes_serve_one_address_and_are_replaced_when_they_die(project: Project) -> None:
    """Whichever takes a connection; one that is killed is replaced, and a signal to the parent ends all of them."""
    with serving(project, "--port", "0", "--processes", "2") as (parent, where):
        receipt: dict[str, Any] = {}
        for position in range(1, 9):
            status, receipt = ask(where, "POST", "/commands/Enrol", {"course": "python"})
            assert (status, receipt["position"]) == (200, position)
        status, seats = ask(where, "POST", "/queries/SeatsOf", {"course": "python"}, token=receipt["token"])
        assert (status, seats["taken"]) == (200, 8)
        before = children(parent)
        os.kill(before[0], signal.SIGKILL)
        assert parent.stderr is not None
        assert "a server ended with exit code -9; another one is started" in parent.stderr.readline()
        assert "it is replaced" in parent.stderr.readline()
        now = children(parent)
        assert len(now) == 2
        assert before[1] in now
        assert before[0] not in now
        assert ask(where, "POST", "/commands/Enrol", {"course": "python"})[0] == 200
        assert ended(parent, signal.SIGTERM) == (0, "")  # they write to the same stderr: it ended with the last of them


@linux_only
def test_servers_end_with_the_process_that_started_them(project: Project) -> None:
    """Also where that is killed and can tell them nothing: what they write to comes to its end."""
    with serving(project, "--port", "0", "--processes", "2") as (parent, where):
        assert ask(where, "GET", "/health/live")[0] == 200
        assert len(children(parent)) == 2
        parent.kill()
        parent.communicate(timeout=EXIT_WAIT_S)


@linux_only
def test_nobody_sees_the_stores_of_servers_in_the_list_of_processes(project: Project) -> None:
    """A store's URL may hold a password: where the parent was not told on its command line, neither are they."""
    project.settings(f'app = ["{project.context}"]\n')
    secrets = {"DIPTYCH_STORE": "sqlite:hunter2.db", "DIPTYCH_READ_STORE": "sqlite:hunter2.read.db"}
    with serving(project, "--port", "0", "--processes", "2", **secrets) as (parent, where):
        assert ask(where, "POST", "/commands/Enrol", {"course": "python"})[0] == 200
        shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children(parent)]
        assert ended(parent, signal.SIGTERM) == (0, "")
    assert len(shown) == 2
    assert "hunter2" not in "".join(shown)
    assert (project.folder / "hunter2.read.db").exists()


@linux_only
def test_a_server_that_cannot_be_replaced_yet_is_tried_again(project: Project) -> None:
    """The others go on, and what was in the way may go: here the module is away for a while."""
    source = project.folder / f"{project.module}.py"
    with serving(project, "--port", "0", "--processes", "2") as (parent, where):
        assert parent.stderr is not None
        away = source.rename(project.folder / "away.txt")
        os.kill(children(parent)[0], signal.SIGKILL)
        while "it is tried again in" not in parent.stderr.readline():
            assert parent.poll() is None
        assert ask(where, "POST", "/commands/Enrol", {"course": "python"})[0] == 200
        away.rename(source)
        while "it is replaced" not in parent.stderr.readline():
            assert parent.poll() is None
        assert len(children(parent)) == 2
        parent.terminate()
        assert parent.wait(EXIT_WAIT_S) == 0


def test_servers_that_cannot_start_are_not_started_for_ever(project: Project) -> None:
    """What is wrong is told by them; the parent ends as well."""
    with running(project, "run", "school:nothing", "--port", "0", "--processes", "2") as process:
        _, err = process.communicate(timeout=EXIT_WAIT_S)
    assert process.returncode == 1
    assert "error: no module is named 'school'" in err
    assert "error: a server ended with exit code 1 before it could serve" in err


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_needs_a_store_that_others_see(project: Project, role: str) -> None:
    """In memory there is nobody to share the work with."""
    result = project.run("run", "school:school", "--role", role, "--store", "memory:")
    assert result.code == 1
    assert f"error: --role {role} shares its stores with other processes: say which with --store" in result.err


def test_other_commands_work_beside_a_server(project: Project) -> None:
    """Status, events and rebuild see what it does, and the server goes on."""
    with serving(project, "--port", "0") as (process, where):
        assert ask(where, "POST", "/commands/Enrol", {"course": "python"})[0] == 200
        assert json.loads(project.run("status", "--json").out)["head"] == 1
        assert len(project.run("events").out.splitlines()) == 1
        assert ask(where, "POST", "/commands/Enrol", {"course": "ruby"})[0] == 200
        assert len(project.run("events").out.splitlines()) == 2
        assert ended(process, signal.SIGTERM) == (0, "")


# ── events --follow ──────────────────────────────────────────────────────────


def test_following_shows_what_other_processes_append(project: Project) -> None:
    """Until Ctrl-C, which is no error to be told of."""
    project.enrol("python")
    with running(project, "events", "--follow", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["position"] == 1
        project.enrol("ruby")
        second = json.loads(process.stdout.readline())
        assert (second["position"], second["data"]) == (2, {"course": "ruby"})
        assert ended(process, signal.SIGINT) == (INTERRUPTED, "")


def test_following_ends_at_its_limit(project: Project) -> None:
    """With the last event asked for, and exit code 0."""
    project.enrol("python")
    with running(project, "events", "--follow", "--json", "--limit", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        project.enrol("ruby", "perl")
        rest, err = process.communicate(timeout=EXIT_WAIT_S)
    assert (len(rest.splitlines()), err, process.returncode) == (1, "", 0)


def test_following_waits_for_a_type_that_does_not_exist_yet(project: Project) -> None:
    """A qualified name is taken as it is; its first event is shown like any other."""
    project.enrol("python")
    types = ("--type", "Enrolled", "--type", "school.Audited")
    with running(project, "events", "--follow", "--json", *types, "--limit", "2") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "school.Enrolled"
        project.audit("python")
        out, err = process.communicate(timeout=EXIT_WAIT_S)
    assert json.loads(out)["type"] == "school.Audited"
    assert err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_the_exit_code_says_which_signal_ended_it(project: Project, number: signal.Signals, code: int) -> None:
    """128 and the signal's number, as shells have it."""
    project.enrol("python")
    with running(project, "events", "--follow") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert ended(process, number) == (code, "")


def test_a_reader_who_leaves_is_no_error(project: Project) -> None:
    """`diptych events | head` says nothing on stderr."""
    project.enrol(*(f"course-{number}" * 30 for number in range(400)))
    with running(project, "events") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(EXIT_WAIT_S) == 141


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["status", "--store", STORE]])
def test_a_reader_who_has_left_is_no_error(project: Project, arguments: list[str]) -> None:
    """`diptych --help | true` says nothing on stderr, whoever writes the screen."""
    project.enrol("python")
    reading, writing = os.pipe()
    os.close(reading)
    source = Path(diptych.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-m", "diptych", *arguments],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (ended.stderr, ended.returncode) == (b"", 141)


# ── demo ─────────────────────────────────────────────────────────────────────


def test_an_interrupted_demo_removes_its_folder(project: Project, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the import leaves nothing behind, and says nothing."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with running(project, "demo", "--orders", "1000000", "--verbose", TMPDIR=str(temporary)) as process:
        assert process.stderr is not None
        store = next(found[1] for line in process.stderr if (found := re.search(r"into (sqlite:\S+)", line)))
        with running(project, "events", "--follow", "--limit", "1", "--store", store) as first:
            assert first.wait(EXIT_WAIT_S) == 0
        code, err = ended(process, signal.SIGINT)
    assert code == INTERRUPTED
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []


def test_a_demo_that_serves_answers_over_http_until_it_is_stopped(project: Project) -> None:
    """The JSON is the only thing on stdout."""
    with running(project, "demo", "--orders", "5", "--serve", "--json", "--port", "0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        result = json.loads(process.stdout.readline())
        status, summary = ask(address(process.stderr), "GET", "/queries/ImportSummary")
        assert (status, summary["orders"], result["orders"]) == (200, 5, 5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=EXIT_WAIT_S)
        assert (process.returncode, out, err) == (INTERRUPTED, "", "")


# ── the limit ────────────────────────────────────────────────────────────────

STUBBORN = """
import asyncio, sys
from diptych.entrypoints.cli import signals

signals.STOP_S_MAX = float(sys.argv[1])

async def stubborn():
    print("running", flush=True)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("asked to stop", flush=True)

signals.run_async(stubborn)
"""


@contextmanager
def stubborn(stop_s_max: float) -> Iterator[subprocess.Popen[str]]:
    """Work that does not stop when it is asked to, under way."""
    program = [sys.executable, "-c", STUBBORN, str(stop_s_max)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield process
        finally:
            process.kill()


def test_what_does_not_stop_is_ended_at_the_limit() -> None:
    """A supervisor waits for so long and no longer."""
    with stubborn(0.1) as process:
        code, err = ended(process, signal.SIGTERM)
    assert code == TERMINATED
    assert err == "ended at once: stopping took more than 0.1 s; what was acknowledged is kept\n"


def test_a_second_signal_ends_it_at_once() -> None:
    """Ctrl-C twice is for who does not want to wait."""
    with stubborn(3_600) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked to stop\n"
        code, err = ended(process, signal.SIGINT)
    assert code == INTERRUPTED
    assert err == "ended at once: a second signal came; what was acknowledged is kept\n"
