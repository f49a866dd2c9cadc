"""Processes that share an event store's file, and processes that die while they write to it (G1, G2, G11, rule 16)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.clock import SystemClock
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.position import Position
from diptych.event_store.recorded_event import RecordedEvent

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = """
import asyncio, os, signal, sys
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.clock import SystemClock
from diptych.event_store.event_store import Appended, ModelState
from diptych.testing.contracts.event_store_case import commit, condition, event

def say(text):
    print(text, flush=True)

async def main():
    store = SqliteEventStore(sys.argv[1], SystemClock())
    await store.open()
"""

APPEND_FOR_EVER = """
    number = int(sys.argv[2])
    while True:
        batch = [commit(event("A", f"tag:{number}"), event("B"), command_id=f"{number}-{i}") for i in range(5)]
        await store.append(batch)
        say(number)
        number += 1
"""

DIE_AT_STATEMENT = """
    left = int(sys.argv[2])
    def count(statement):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    globals()["left"] = left
    store._writer._connection.set_trace_callback(count)
    batch = [
        commit(
            event("New", f"tag:{i}", "tag:all"), event("Newer"), command_id=f"c-{i}",
            states=[ModelState("shop.Product", str(i), "a", b"{}")],
        )
        for i in range(3)
    ]
    await store.append(batch)
    say("acknowledged")
"""

RACE = """
    say("ready")
    sys.stdin.readline()
    for number in range(int(sys.argv[2])):
        tag = f"round:{number}"
        (result,) = await store.append([commit(event("Won", tag), conditions=[condition(0, tags={tag})])])
        say("won" if isinstance(result, Appended) else "lost")
"""

HAMMER = """
    say("ready")
    sys.stdin.readline()
    asyncio.get_running_loop().add_reader(0, lambda: stop.set())
    stop = asyncio.Event()
    while not stop.is_set():
        await store.append([commit(event("Hammered"))])
        await asyncio.sleep(0)
    say("stopped")
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Run the program in a process of its own, talking through pipes."""
    source = f"{PREAMBLE}{program}\nasyncio.run(main())\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def hear(process: subprocess.Popen[str]) -> str:
    """The next line of a process; empty once it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    """Let a process that reads a line go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> list[str]:
    """Wait for a process to end; what it said last."""
    said, _ = process.communicate(timeout=60)
    return said.split()


async def whole_history(path: Path) -> list[RecordedEvent]:
    """Open the file, and read every event: contiguous, and findable by tag, type and command id alike."""
    store = SqliteEventStore(str(path), SystemClock())
    await store.open()
    events = (await store.read(ALL_EVENTS, Position(0), 1_000_000)).events
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    await store.close()
    return events


async def kept(path: Path, command_ids: list[str]) -> list[bool]:
    store = SqliteEventStore(str(path), SystemClock())
    await store.open()
    found = [await store.outcome(command_id) is not None for command_id in command_ids]
    await store.close()
    return found


async def kept_states(path: Path, keys: list[str]) -> list[bool]:
    store = SqliteEventStore(str(path), SystemClock())
    await store.open()
    found = [await store.model_state("shop.Product", key) is not None for key in keys]
    await store.close()
    return found


def test_kill_9_loses_nothing_acknowledged_and_leaves_no_half_batch(tmp_path: Path) -> None:
    """Killed again and again while it appends: what it acknowledged is there, contiguous, in whole batches."""
    path = tmp_path / "events.db"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    number = 0
    for _ in range(5):
        process = start(APPEND_FOR_EVER, path, number)
        acknowledged = [int(hear(process)) for _ in range(chance.randrange(1, 40))]
        process.send_signal(signal.SIGKILL)
        acknowledged += map(int, end(process))
        number = acknowledged[-1] + 2  # one batch may have become durable without being acknowledged
        events = asyncio.run(whole_history(path))
        assert len(events) % 10 == 0
        stored = {tag for event in events for tag in event.tags}
        assert stored >= {f"tag:{batch}" for batch in acknowledged}
        ids = [f"{batch}-{index}" for batch in acknowledged for index in range(5)]
        assert all(asyncio.run(kept(path, ids)))


def test_a_crash_at_any_statement_leaves_all_of_a_batch_or_nothing(tmp_path: Path) -> None:
    """Killed before its first, second, third … statement, until it gets through: all is there, or nothing."""
    for crash_at in range(1, 100):
        path = tmp_path / f"{crash_at}.db"
        said = end(start(DIE_AT_STATEMENT, path, crash_at))
        events = asyncio.run(whole_history(path))
        outcomes = asyncio.run(kept(path, ["c-0", "c-1", "c-2"]))
        states = asyncio.run(kept_states(path, ["0", "1", "2"]))
        assert (len(events), outcomes, states) in [(0, [False] * 3, [False] * 3), (6, [True] * 3, [True] * 3)]
        if said:
            assert said == ["acknowledged"]
            assert len(events) == 6
            assert crash_at > 5, "the crashes came too early to hit anything"
            return
    pytest.fail("the batch never got through")


def test_of_two_processes_one_wins_each_round(tmp_path: Path) -> None:
    """Two processes that append under the same condition, round for round: exactly one wins each, both get through."""
    path, rounds = tmp_path / "events.db", 60
    racers = [start(RACE, path, rounds) for _ in range(2)]
    assert [hear(racer) for racer in racers] == ["ready", "ready"]
    for racer in racers:
        tell(racer)
    said = [end(racer) for racer in racers]
    assert [len(results) for results in said] == [rounds, rounds]
    assert [sorted(both) for both in zip(*said, strict=True)] == [["lost", "won"]] * rounds
    assert len(asyncio.run(whole_history(path))) == rounds


def test_a_process_that_never_pauses_does_not_starve_another(tmp_path: Path) -> None:
    """While one process appends without a pause, another gets every one of its appends done."""
    path, rounds = tmp_path / "events.db", 100
    hammer = start(HAMMER, path)
    assert hear(hammer) == "ready"
    tell(hammer)
    racer = start(RACE, path, rounds)
    assert hear(racer) == "ready"
    tell(racer)
    assert end(racer) == ["won"] * rounds
    tell(hammer)
    assert end(hammer) == ["stopped"]
    types = [event.type for event in asyncio.run(whole_history(path))]
    between = types[types.index("Won") : len(types) - types[::-1].index("Won")]
    assert "Hammered" in between, "the two never competed"
