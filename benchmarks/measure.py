"""Measuring in turns, and saying under which circumstances."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Callable, Sequence
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


def in_turns(sides: dict[str, Side], seconds: float, rounds: int) -> dict[str, list[Turn]]:
    """Each side in turn, again and again: a machine that slows down slows all of them."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            turns[name].append(side(seconds / rounds))
    return turns


def report(figure: str, turns: dict[str, list[Turn]], subject: str, **facts: object) -> None:
    """One JSON line: the subject's median rate, its latencies, and its ratio to each other side."""
    rates = {name: statistics.median(turn.rate for turn in found) for name, found in turns.items()}
    latencies = sorted(latency for turn in turns[subject] for latency in turn.latencies_s)
    line: dict[str, object] = {"figure": figure, **facts, "per_s": round(rates[subject])}
    if latencies:
        line["p50_ms"] = round(latencies[len(latencies) // 2] * 1000, 3)
        line["p99_ms"] = round(latencies[int(len(latencies) * 0.99)] * 1000, 3)
    for name, rate in rates.items():
        if name != subject:
            line[f"{name}_per_s"] = round(rate)
            line[f"ratio_to_{name}"] = round(rates[subject] / rate, 3)
    print(json.dumps(line | {"environment": environment()}), flush=True)


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
