"""Peak memory while a million events are imported and projected: it stays flat."""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time

from benchmarks.bank import AccountId, Credit, bank
from benchmarks.measure import environment
from diptych import Application

EVENTS = 1_000_000
STEP = 100_000
CALLERS = 256
ACCOUNTS = 200_000


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def run(folder: str) -> None:
    """Import in steps, and print the peak after each."""
    async with Application(bank, store=f"sqlite:{folder}/diptych.db") as app:
        for step in range(0, EVENTS, STEP):
            numbers = iter(range(step, step + STEP))

            async def caller(numbers: object = numbers) -> None:
                for number in numbers:  # type: ignore[attr-defined]
                    await app.execute(Credit(account=AccountId(f"a{number % ACCOUNTS}"), amount=1))

            started = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            took = time.perf_counter() - started
            await app.projected()
            figures = {"events": step + STEP, "peak_mib": round(peak_mib(), 1), "commands_per_s": round(STEP / took)}
            print(json.dumps({"figure": "import", **figures, "environment": environment()}), flush=True)


def main() -> None:
    """Print a line per hundred thousand events."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))


if __name__ == "__main__":
    main()
