"""Processes that accept, execute and cancel commands in time, killed at any instant: each takes effect once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import diptych.process_managers.process_leases
from tests.faults import reminding

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

KILLS = 12
LINES_MAX = 40
"""What a process is let say at most before it is killed."""
WAIT_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An event store that outlives its processes."""
    if request.param == "postgres":
        from tests.postgres_server import in_thread, new_stores

        return in_thread(new_stores())
    return f"sqlite:{tmp_path}/events.db"


def until_killed(url: str, life: int, lines: int) -> list[str]:
    """All that a process says until it is killed, after so many lines."""
    sources = os.pathsep.join([str(Path(diptych.__file__).parents[1]), str(ROOT)])
    command = [sys.executable, "-m", "tests.faults.reminding", url, str(life)]
    environment = {**os.environ, "PYTHONPATH": sources}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        try:
            said = [process.stdout.readline() for _ in range(lines)]
        finally:
            process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
        assert all(said), f"it has ended by itself: {said}"
        return [line.strip() for line in [*said, *rest] if line.endswith("\n")]


@pytest.mark.timeout(240)
async def test_g4_g10_kill_9_at_any_instant_doubles_and_loses_no_scheduled_command(
    kept_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was acknowledged happens once, unless it was cancelled, and then never; what was not, at most once."""
    monkeypatch.setattr(diptych.process_managers.process_leases, "LEASE_S", 0.6)
    seed = random.randrange(1 << 32)
    with capfd.disabled():
        print(f"seed {seed}")
    chance = random.Random(seed)
    said: list[str] = []
    for life in range(KILLS):
        said += await asyncio.to_thread(until_killed, kept_url, life, chance.randrange(2, LINES_MAX))
    told = [(what, name) for what, _, name in (line.partition(" ") for line in said)]
    accepted = {name for what, name in told if what == "accepted"}
    cancelled = {name for what, name in told if what == "cancelled"}
    done = {name for what, name in told if what == "done"}
    assert len(accepted) > KILLS
    assert cancelled
    happened = await reminding.executed(kept_url, WAIT_S)
    assert max(happened.values()) == 1
    assert cancelled.isdisjoint(happened)
    assert done <= happened.keys()
    # The first of those that came together may have been cancelled by a process that did not live to say so.
    lost = accepted - happened.keys() - cancelled
    assert {name for name in lost if not name.endswith(".0")} == set()
    assert len(lost) <= KILLS
