"""Many texts in one, as scripts take and give them: each with its length before it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

__all__ = ["Taken", "frames", "unframed"]

_LENGTH = struct.Struct(">I")
_NOTHING = b"\xff" * 4
"""Instead of a length: None."""


def frames(values: Iterable[bytes | None]) -> bytes:
    """Texts in one: in their order."""
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NOTHING)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def unframed(text: bytes) -> list[bytes | None]:
    """What was put into one."""
    found: list[bytes | None] = []
    at, end = 0, len(text)
    while at < end:
        begin = at + 4
        if text[at:begin] == _NOTHING:
            found.append(None)
            at = begin
            continue
        at = begin + _LENGTH.unpack_from(text, at)[0]
        found.append(text[begin:at])
    return found


class Taken:
    """Takes one text after the other of what a script gave."""

    def __init__(self, texts: Iterable[bytes | None]) -> None:
        self._texts: Iterator[bytes | None] = iter(texts)

    def maybe(self) -> bytes | None:
        """The next one."""
        return next(self._texts)

    def text(self) -> bytes:
        """The next one, which is there."""
        found = next(self._texts)
        assert found is not None
        return found

    def number(self) -> int:
        """The next one, which is a whole number."""
        return int(self.text())

    def list(self) -> list[bytes | None]:
        """As many as the next one says."""
        return [next(self._texts) for _ in range(self.number())]

    def mapping(self) -> dict[bytes, bytes]:
        """The same, as names and values by turns."""
        found = [text or b"" for text in self.list()]
        return dict(zip(found[::2], found[1::2], strict=True))

    def __iter__(self) -> Iterator[bytes | None]:
        """What is left."""
        return self._texts
