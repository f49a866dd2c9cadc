"""The wait for a command's own write without Diptych: what asyncpg, PostgreSQL and two coroutines cost by themselves.

One connection appends, durably. A coroutine that is woken then reads the event, loads both rows, folds, and writes rows
and checkpoint with one durable statement; whoever asked is woken, and reads checkpoint and row with one statement.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from benchmarks.bank import AccountId, Activity, Balance, Credit, Credited, activity, balance
from benchmarks.bare_postgres import BareLoop
from benchmarks.measure import Turn

if TYPE_CHECKING:
    Link = asyncpg.Connection[asyncpg.Record]

ROW_TABLES = """
CREATE TABLE bare.checkpoint (one int PRIMARY KEY, position bigint NOT NULL);
INSERT INTO bare.checkpoint VALUES (1, 0);
CREATE TABLE bare.balance (account text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE bare.activity (account text PRIMARY KEY, entries bigint NOT NULL, largest bigint NOT NULL);
"""
"""Run once in a database, behind the tables of `bare_postgres`."""
_READ = "SELECT position, data FROM bare.events WHERE type = 1 AND position > $1 ORDER BY position LIMIT 1"
_ROWS = """
SELECT b.balance, a.entries, a.largest FROM (VALUES ($1::text)) AS k (account)
LEFT JOIN bare.balance AS b USING (account) LEFT JOIN bare.activity AS a USING (account)"""
_WRITE = """
WITH moved AS (UPDATE bare.checkpoint SET position = $1 WHERE one = 1 AND position = $2 RETURNING position),
shown AS (
  INSERT INTO bare.balance SELECT $3, $4 FROM moved ON CONFLICT (account) DO UPDATE SET balance = excluded.balance)
INSERT INTO bare.activity SELECT $3, $5, $6 FROM moved
ON CONFLICT (account) DO UPDATE SET entries = excluded.entries, largest = excluded.largest"""
_ASK = """
SELECT c.position, b.balance FROM bare.checkpoint AS c LEFT JOIN bare.balance AS b ON b.account = $1 WHERE c.one = 1"""


class BareProjector:
    """Follows the events, one at a time, on a connection of its own."""

    def __init__(self, link: Link, position: int) -> None:
        self.appended = asyncio.Event()
        self.written = asyncio.Event()
        self._link = link
        self._position = position
        self._decode = msgspec.json.Decoder(Credited).decode

    async def follow(self) -> None:
        """Fold whatever is appended, until it is cancelled."""
        while True:
            await self.appended.wait()
            self.appended.clear()
            await self._fold(*(await self._link.fetch(_READ, self._position))[0])
            self.written.set()

    async def _fold(self, position: int, data: bytes) -> None:
        event = self._decode(data)
        ((held, entries, largest),) = await self._link.fetch(_ROWS, str(event.account))
        shown = balance(Balance(account=event.account, balance=held or 0), event)
        counted = activity(Activity(account=event.account, entries=entries or 0, largest=largest or 0), event)
        rows = (str(event.account), shown.balance, counted.entries, counted.largest)
        await self._link.execute(_WRITE, position, self._position, *rows)
        self._position = position


async def bare_waits(url: str, accounts: int, seconds: float) -> Turn:
    """One caller: a command, and the row that shows it. What is timed is from the one to the other."""
    appending, projecting, asking = [await asyncpg.connect(url) for _ in range(3)]
    loop, answers = BareLoop(appending, cached=True), list[float]()
    head = await asking.fetchval("SELECT position FROM bare.head")
    await asking.execute("UPDATE bare.checkpoint SET position = $1", head)  # other sides append as well
    projector = BareProjector(projecting, head)
    following, begun = asyncio.create_task(projector.follow()), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        account = AccountId(f"a{len(answers) % accounts}")
        await loop.execute([Credit(account=account, amount=1)])
        written = time.perf_counter()
        head += 1
        projector.appended.set()
        await projector.written.wait()
        projector.written.clear()
        ((position, held),) = await asking.fetch(_ASK, str(account))
        assert position == head
        Balance(account=account, balance=held)
        answers.append(time.perf_counter() - written)
    following.cancel()
    await asyncio.wait([following])
    for link in (appending, projecting, asking):
        await link.close()
    return Turn(len(answers), sum(answers), answers)
