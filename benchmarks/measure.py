"""Measuring in turns, and saying under which circumstances."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

SECONDS = 6.0
"""Seconds that each side is measured, in all."""
ROUNDS = 3
"""Turns that the seconds are cut into."""


class Turn(NamedTuple):
    """One turn of one side.

    Attributes:
        done: so many things.
        took_s: in so many seconds.
        latencies_s: of each, where they were taken; may be empty.
    """

    done: int
    took_s: float
    latencies_s: Sequence[float] = ()

    @property
    def rate(self) -> float:
        """Things done in a second."""
        return self.done / self.took_s


Side = Callable[[float], Turn]
"""Does the work for so many seconds."""
AsyncSide = Callable[[float], Awaitable[Turn]]
"""The same on the loop of who measures."""


def in_turns(sides: dict[str, Side], seconds: float, rounds: int) -> dict[str, list[Turn]]:
    """Each side in turn, again and again: a machine that slows down slows all of them."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(side(seconds / rounds))
    return turns


async def awaited_in_turns(sides: dict[str, AsyncSide], seconds: float, rounds: int) -> dict[str, list[Turn]]:
    """As `in_turns`."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(await side(seconds / rounds))
    return turns


def report(figure: str, turns: dict[str, list[Turn]], subject: str, **facts: object) -> None:
    """One JSON line: the subject's median rate, its latencies, and its ratio to each other side.

    Of other sides whose latencies were taken as well, those too, and how many times theirs the subject's median is.
    """
    rates = {name: statistics.median(turn.rate for turn in found) for name, found in turns.items()}
    line: dict[str, object] = {"figure": figure, **facts, "per_s": round(rates[subject])}
    mine = _percentiles_ms(turns[subject])
    if mine:
        line["p50_ms"], line["p99_ms"] = mine
    for name, rate in rates.items():
        if name != subject:
            line[f"{name}_per_s"] = round(rate)
            line[f"ratio_to_{name}"] = round(rates[subject] / rate, 3)
            theirs = _percentiles_ms(turns[name])
            if mine and theirs:
                line[f"{name}_p50_ms"], line[f"{name}_p99_ms"] = theirs
                line[f"p50_in_those_of_{name}"] = round(mine[0] / theirs[0], 3)
    print(json.dumps(line | {"environment": environment()}), flush=True)


def left_out(side: str, reason: str) -> None:
    """One JSON line: what is not measured here, and why."""
    print(json.dumps({"left_out": side, "reason": reason}), flush=True)


def _percentiles_ms(turns: Sequence[Turn]) -> tuple[float, float] | None:
    latencies = sorted(latency for turn in turns for latency in turn.latencies_s)
    if not latencies:
        return None
    return round(latencies[len(latencies) // 2] * 1000, 3), round(latencies[int(len(latencies) * 0.99)] * 1000, 3)


def environment() -> dict[str, object]:
    """What a figure depends on beside the code."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "msgspec": version("msgspec"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
    }


def arguments(description: str) -> argparse.Namespace:
    """The flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured seconds of each side, in all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that the seconds are cut into")
    return parser.parse_args()
