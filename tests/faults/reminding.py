"""Reminders that are accepted for later, executed and cancelled by one process, which is killed in the crash tests.

No handler here looks at anything: a command that is executed twice leaves its event twice. On stdout the process says
what was acknowledged to it, once it was.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from datetime import timedelta

from diptych import Application
from diptych.event_store.event_query import ALL_EVENTS
from tests.faults.ordering import say, soon_taken_over
from tests.reminders import NoteId, Remind, reminders

TOGETHER = 4
"""Reminders that are accepted at one moment; the first of them is cancelled as soon as it was."""
ROUNDS_MAX = 200
"""After which a process that nobody kills ends."""
SOON_MS = 15
"""Milliseconds after which the last of them is due."""

notes = reminders(slow=False)


async def executed(url: str, wait_s: float) -> Counter[str]:
    """Have all that waits executed here; how often each reminder happened."""
    async with Application(notes, store=url) as app, asyncio.timeout(wait_s):
        while (await app.status()).scheduled.waiting:
            await app.partition().process_worker.at_rest()
            await app.partition().store.wait_for_events((await app.partition().store.head()).position, 0.05)
        assert await app.scheduled.list() == []
        return Counter([recorded.tags[0].partition(":")[2] async for recorded in app.events(ALL_EVENTS)])


async def accept(app: Application, name: str, after_ms: int) -> None:
    """Have a reminder accepted, and say so."""
    await app.schedule(Remind(note=NoteId(name)), after=timedelta(milliseconds=after_ms), command_id=name)
    say(f"accepted {name}")


async def run(url: str, life: str) -> None:
    """Accept, execute and cancel, until this process is ended."""
    chance = random.Random(life)
    async with Application(notes, store=url) as app:
        say("open")
        for number in range(ROUNDS_MAX):
            names = [f"{life}.{number}.{n}" for n in range(TOGETHER)]
            await asyncio.gather(*(accept(app, name, chance.randrange(SOON_MS)) for name in names))
            found = await app.scheduled.cancel(names[0])
            assert found is not None
            say(f"{found.code or found.state} {names[0]}")


if __name__ == "__main__":
    soon_taken_over()
    asyncio.run(run(sys.argv[1], sys.argv[2]))
