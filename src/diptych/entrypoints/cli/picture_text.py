"""How much room text takes in a picture, without anything that could draw it.

Widths are those of Helvetica, with a margin for fonts that are wider: whoever looks has other fonts than whoever drew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from math import fsum

__all__ = ["fitted", "text_width"]

WIDTH_MARGIN = 1.16
"""By how much a viewer's font may be wider than the one that was measured."""
_MONOSPACE_EM = 0.61
_WIDE_EM = 1.0
_OTHER_EM = 0.62
# Of a thousandth of the font's size, by Adobe's metrics of Helvetica.
_GROUPS = {
    222: "ijl'`|",
    278: " !,./:;I[]\\ft",
    333: '()-r"',
    389: "*",
    469: "^",
    500: "Jckvsxyz",
    556: "0123456789abdeghnopquL_?#$",
    584: "+<=>~",
    611: "FTZ",
    667: "ABEKPSVXY&",
    722: "CDHNRUw",
    778: "GOQ",
    833: "Mm",
    889: "%",
    944: "W",
    1015: "@",
}
_WIDTHS = {character: width / 1000 for width, characters in _GROUPS.items() for character in characters}
_BOLD = 1.07


def text_width(text: str, size: float, *, bold: bool = False, monospace: bool = False) -> float:
    """Pixels that a line takes at most, at a font size in pixels."""
    if monospace:
        return fsum(_WIDE_EM if ord(each) > 0x2E7F else _MONOSPACE_EM for each in text) * size
    ems = fsum(_WIDTHS.get(each, _WIDE_EM if ord(each) > 0x2E7F else _OTHER_EM) for each in text)
    return ems * size * WIDTH_MARGIN * (_BOLD if bold else 1)


def fitted(
    text: str, size: float, width: float, lines_max: int, *, bold: bool = False, monospace: bool = False
) -> list[str]:
    """A name or note in lines that are no wider than `width` pixels; what is left over becomes an ellipsis."""

    def wide(line: str) -> float:
        return text_width(line, size, bold=bold, monospace=monospace)

    lines = [""]
    for piece in _pieces(text, is_name=" " not in text):
        if not lines[-1] or wide((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    lines = [line.strip() for line in lines]
    if len(lines) > lines_max:
        lines = [*lines[: lines_max - 1], "".join(lines[lines_max - 1 :]) + "…"]
    return [line if wide(line) <= width else _cut(line, width, wide) for line in lines]


def _pieces(text: str, *, is_name: bool) -> Iterable[str]:
    """Where a text may be broken: behind spaces and dots; a name also before capitals, and behind underscores."""
    if not is_name:
        return re.findall(r"[^ .]*[ .]|[^ .]+", text)
    return re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+[_ ,.\[]*|[A-Z]+[_ ,.\[]*|[^A-Za-z]+", text)


def _cut(line: str, width: float, wide: Callable[[str], float]) -> str:
    line = line.removesuffix("…")
    while line and wide(line + "…") > width:
        line = line[:-1]
    return line + "…"
