"""Unique ids: UUIDv7, ordered within a process, distinct everywhere."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych.messages import unique_id as module
from diptych.messages.unique_id import unique_bytes, unique_id

WAIT_S = 10.0
"""Seconds after which a forked process is given up."""


def test_ids_are_version_7() -> None:
    """Version and variant bits as in RFC 9562, the time in milliseconds in front."""
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(bytes=unique_bytes()) for _ in range(1_000)]
    assert {(found.version, found.variant) for found in made} == {(7, uuid.RFC_4122)}
    assert before - 1 <= made[0].int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_text_and_bytes_say_the_same() -> None:
    """The text form is the usual one, and sorts like the bytes."""
    made = [unique_id() for _ in range(1_000)]
    assert made == sorted(made)
    assert [str(uuid.UUID(text)) for text in made] == made
    assert [uuid.UUID(text).bytes for text in made] == sorted(uuid.UUID(text).bytes for text in made)


def test_ids_are_in_order_though_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is greater than every earlier one of the process."""
    start = time.time_ns()
    times = iter([start, start, start - 10**9, start - 10**12, start + 10, start])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    made = [unique_bytes() for _ in range(6)]
    assert made == sorted(set(made))


def test_threads_get_distinct_ids_in_order() -> None:
    """Many at once: none twice, and each thread's own in order."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [unique_bytes() for _ in range(2_000)], range(8)))
    assert len({found for thread in made for found in thread}) == 16_000
    assert all(thread == sorted(thread) for thread in made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # 3.12 warns of forking with threads: meant here
def test_a_forked_process_draws_its_own() -> None:
    """Random bytes drawn ahead are not used twice, and a lock that another thread held meanwhile holds nobody up."""
    unique_bytes()  # the pool is filled
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with module._lock:
            held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, b"".join(unique_bytes()[8:] for _ in range(50)))
        finally:
            os._exit(0)
    go_on.set()
    thread.join()
    os.close(write)
    ready, _, _ = select.select([read], [], [], WAIT_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        randoms = pipe.read()
    os.waitpid(child, 0)
    theirs = {randoms[start : start + 8] for start in range(0, len(randoms), 8)}
    mine = {unique_bytes()[8:] for _ in range(300)}
    assert len(theirs) == 50
    assert not theirs & mine
