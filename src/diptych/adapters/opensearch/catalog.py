"""The catalog of a read store in OpenSearch: one document, which is changed only as it was read.

All that has to change together is in it: checkpoints, epochs, leases, which generation is live, and which writes of
rows show. OpenSearch changes one document atomically, and refuses the change where somebody else was quicker
(`if_seq_no`, `if_primary_term`); so a change of the catalog is a transaction, and reading it once is a snapshot.

Every write of rows has a *number*, given out here. A document of a row says from which number on it shows, and until
which. A number shows once its write is published: it is neither among those being *written* nor among the *void* ones,
whose writers have died or were overtaken. This is how PostgreSQL tells visible rows, and why it needs no clean-up
before the next write: what a crash leaves behind never shows.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from diptych.read_side.read_store import Generation, LeaseKey, Table

__all__ = ["FOREVER", "FORMAT", "Build", "Catalog", "Worker", "packed", "unpacked"]

FORMAT = 1
"""Of the catalog and of the indexes; a newer one is not touched."""
FOREVER = (1 << 63) - 1
"""Until when a row shows that nothing has replaced."""


class Worker(msgspec.Struct, frozen=True):
    """Somebody who asks for leases.

    Attributes:
        wanted: for which.
        beat: another number each time it asks.
        ttl_s: seconds after which it is given up unless it has asked again.
    """

    wanted: list[LeaseKey]
    beat: int
    ttl_s: float


class Build(msgspec.Struct):
    """A generation.

    Attributes:
        index: of its rows; empty where it has no table.
        table: their form.
        slices: each without the table, which all have in common.
        holders: who holds the lease of each slice, or held it last.
        writing: numbers of writes that were begun, each with its slice.
        void: numbers of writes that never show.
        blocked: the note of its blocked keys; empty where there are none.
        long: columns with a value that is too long to filter and order by.
    """

    index: str
    table: Table | None
    slices: list[Generation]
    holders: list[str | None]
    writing: list[tuple[int, int]] = []
    void: list[int] = []
    blocked: str = ""
    long: list[str] = []

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.slices[0].name

    @property
    def number(self) -> int:
        """Of the generation."""
        return self.slices[0].number

    @property
    def live(self) -> bool:
        """Whether it answers queries."""
        return self.slices[0].live

    @property
    def kept_until(self) -> dt.datetime | None:
        """Until when it is kept, having answered until another was switched to; None where it is not."""
        return self.slices[0].kept_until

    @property
    def generations(self) -> list[Generation]:
        """Its slices as the port tells of them."""
        return [replace(slice, table=self.table) for slice in self.slices]

    @property
    def unseen(self) -> list[int]:
        """Numbers that do not show."""
        return [*self.void, *(number for number, _ in self.writing)]

    def set_live(self, *, live: bool) -> None:
        """Let it answer queries, or not; whichever it is, it is not kept."""
        self.slices = [replace(slice, live=live, kept_until=None) for slice in self.slices]

    def overtake(self, slices: Sequence[Generation]) -> None:
        """Replace its slices, in order; what is being written of it never shows."""
        for slice in self.slices:
            self.give_up(slice.slice)
        self.slices = list(slices)

    def give_up(self, slice: int) -> None:
        """Make void what is being written of a slice: whoever writes it was overtaken, or died."""
        self.void += [number for number, of in self.writing if of == slice]
        self.writing = [entry for entry in self.writing if entry[1] != slice]


class Catalog(msgspec.Struct):
    """All there is, but for rows and notes.

    Attributes:
        next: the next number to give out.
        changes: goes up with each change that somebody may wait for.
        last_numbers: of the generations of each projection.
        decisions: by projection, the note of its discards and retries.
        unused: indexes that nobody finds any more.
        spent: notes that nobody finds any more.
    """

    format: int = FORMAT
    next: int = 1
    changes: int = 0
    last_numbers: dict[str, int] = {}
    builds: list[Build] = []
    workers: dict[str, Worker] = {}
    decisions: dict[str, str] = {}
    unused: list[str] = []
    spent: list[str] = []

    @property
    def last(self) -> int:
        """The last number that was given out."""
        return self.next - 1

    def take_number(self) -> int:
        """A number that nobody has had."""
        self.next += 1
        return self.last

    def build(self, name: str, number: int | None) -> Build | None:
        """A generation, by default the live one; None where there is none."""
        return next(
            (
                build
                for build in self.builds
                if build.name == name and (build.live if number is None else build.number == number)
            ),
            None,
        )


def packed(value: Any) -> str:
    """A value as JSON in ASCII, so that lone surrogates, which errors may quote, survive a server."""
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def unpacked(text: str, kind: type[Any]) -> Any:
    """The value of a text that was packed."""
    return msgspec.convert(json.loads(text), kind)
