"""The picture of an application as SVG: one file, without scripts or fonts of its own, for light and dark screens.

Colours are those that event storming has for its notes (Alberto Brandolini, 2013), as far as it has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple
from xml.sax.saxutils import escape

from diptych.application.model import Does, Kind
from diptych.entrypoints.cli.picture_layout import (
    CORNER,
    LABEL_PIXELS,
    NAME_LINE,
    NAME_PIXELS,
    NOTE_LINE,
    NOTE_PIXELS,
    PADDING_X,
    PADDING_Y,
    Band,
    Box,
    Layout,
    Line,
    Point,
)
from diptych.entrypoints.cli.picture_text import text_width

__all__ = ["svg"]

LEGEND_ROW, NARROWEST = 24.0, 620.0

_FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


class _Ink(NamedTuple):
    """The colours of one kind of part: fill, edge and text."""

    fill: str
    edge: str
    text: str


_LIGHT = {
    Kind.COMMAND: _Ink("#d9e8fd", "#4f86e0", "#123a70"),
    Kind.DECISION_MODEL: _Ink("#fff2bd", "#cf9f00", "#594300"),
    Kind.EVENT: _Ink("#ffdfbd", "#e5811c", "#6b3300"),
    Kind.PROJECTION: _Ink("#e6f4e3", "#78b574", "#21501f"),
    Kind.SUBSCRIBER: _Ink("#fbdbe8", "#d0588d", "#6c1740"),
    Kind.PROCESS: _Ink("#e8dcfa", "#8757d1", "#3d1b78"),
    Kind.READ_MODEL: _Ink("#c2e6c4", "#3c9549", "#12441b"),
    Kind.QUERY: _Ink("#d2efee", "#24938f", "#084745"),
}
_DARK = {
    Kind.COMMAND: _Ink("#1b3358", "#6ea1f2", "#dbe9ff"),
    Kind.DECISION_MODEL: _Ink("#453800", "#dcb22f", "#fff0bd"),
    Kind.EVENT: _Ink("#55300c", "#f2994a", "#ffe6cf"),
    Kind.PROJECTION: _Ink("#1e3420", "#77b573", "#dcf3da"),
    Kind.SUBSCRIBER: _Ink("#4c1c33", "#e07aa8", "#ffe0ed"),
    Kind.PROCESS: _Ink("#352058", "#a883e8", "#eee3ff"),
    Kind.READ_MODEL: _Ink("#1a4a24", "#5cbb6b", "#d8f7dc"),
    Kind.QUERY: _Ink("#0f4341", "#47b8b3", "#d5f7f5"),
}
_PAGE_LIGHT, _PAGE_DARK = (
    ("#faf9f6", "#ffffff", "#e4e0d6", "#2b2a27", "#77736a"),
    (
        "#14161a",
        "#1b1e24",
        "#30353f",
        "#e9e7e2",
        "#989ba3",
    ),
)
"""Ground, bands, their edges, text, and text that matters less."""
_LINES: dict[Does, tuple[Kind, str]] = {
    Does.GIVES: (Kind.COMMAND, "a command gives events"),
    Does.INFORMS: (Kind.DECISION_MODEL, "a decision model informs a command"),
    Does.CHANGES: (Kind.EVENT, "an event changes a decision model"),
    Does.REACHES: (Kind.EVENT, "an event reaches its followers"),
    Does.FEEDS: (Kind.READ_MODEL, "a projection feeds a read model"),
    Does.ANSWERS: (Kind.QUERY, "a read model answers a query"),
    Does.SENDS: (Kind.PROCESS, "a process sends commands"),
}
"""The colour of each kind of line, that of a kind of part, and what the legend says of it."""


def svg(layout: Layout, title: str, about: str) -> str:
    """An SVG document, ending in a newline; the same for the same layout."""
    width = max(layout.width, NARROWEST, 72 + text_width(title, 26, bold=True), 72 + text_width(about, 13))
    legend, height = _legend(layout, width)
    names = {box.part.id: f"p{number}" for number, box in enumerate(layout.boxes)}
    size = f'width="{_n(width)}" height="{_n(height)}"'
    root = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" {size} role="img"'
    return "\n".join(
        [
            f'{root} aria-labelledby="picture-title picture-about">',
            f'<title id="picture-title">{escape(title)}</title>',
            f'<desc id="picture-about">{escape(about)}</desc>',
            f"<style>{_style(names.values())}</style>",
            f"<defs>{''.join(_marker(does) for does in _LINES)}</defs>",
            f'<rect class="ground" {size}/>',
            f'<text class="title" x="36" y="52">{escape(title)}</text>',
            f'<text class="about" x="36" y="76">{escape(about)}</text>',
            *(_band(band) for band in layout.bands),
            *(_heading(*lane) for lane in layout.lanes),
            *(_line(line, names) for line in sorted(layout.lines, key=_depth)),
            *(_part(box, names[box.part.id]) for box in layout.boxes),
            *legend,
            "</svg>\n",
        ]
    )


def _n(number: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(number, 1):g}"


# ── style ────────────────────────────────────────────────────────────────────


def _class(kind: Kind | Does) -> str:
    return kind.value.replace(" ", "-")


_FORMS = f"""text{{font-family:{_FONT}}}
.title{{font-size:26px;font-weight:700;letter-spacing:-.3px}}
.about{{font-size:13px}}
.name{{font-size:{NAME_PIXELS:g}px;font-weight:600}}
.note{{font-size:{NOTE_PIXELS:g}px;opacity:.78}}
.context{{font-size:{LABEL_PIXELS:g}px;font-weight:700}}
.lane{{font-size:11px;font-weight:600;letter-spacing:1px}}
.key{{font-size:12px}}
.l{{fill:none;stroke-width:1.3;stroke-opacity:.62}}
.informs{{stroke-dasharray:5 3.5}}
.sends{{stroke-width:1.8;stroke-opacity:.9}}
.changes{{stroke-opacity:.4}}
.box{{stroke-width:1.4}}
.subscriber .box{{stroke-dasharray:4 3}}
.band{{stroke-width:1}}"""
"""Everything but colours."""


def _style(names: Iterable[str]) -> str:
    """The style sheet. Where the pointer rests on a part, only its own lines stay."""
    resting = (f"svg:has(#{name}:hover) .l:not(.{name}){{stroke-opacity:.06}}" for name in names)
    dark = "@media (prefers-color-scheme:dark){"
    return "\n".join([_FORMS, *_coloured(_LIGHT, _PAGE_LIGHT), dark, *_coloured(_DARK, _PAGE_DARK), "}", *resting, ""])


def _coloured(inks: dict[Kind, _Ink], page: tuple[str, ...]) -> Iterable[str]:
    ground, band, edge, text, faint = page
    yield f".ground{{fill:{ground}}}.band{{fill:{band};stroke:{edge}}}"
    yield f".title,.context{{fill:{text}}}.about,.lane,.key{{fill:{faint}}}"
    for kind, ink in inks.items():
        name = _class(kind)
        yield f".{name} .box{{fill:{ink.fill};stroke:{ink.edge}}}.{name} text{{fill:{ink.text}}}"
    for does, (kind, _) in _LINES.items():
        name, ink = _class(does), inks[kind]
        yield f".{name}{{stroke:{ink.edge}}}.{name}-head{{fill:{ink.edge}}}"


def _marker(does: Does) -> str:
    name = _class(does)
    return (
        f'<marker id="to-{name}" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path class="{name}-head" d="M0 .8L8 4L0 7.2z"/></marker>'
    )


# ── what is drawn ────────────────────────────────────────────────────────────


def _band(band: Band) -> str:
    return (
        f'<rect class="band" x="{_n(band.x)}" y="{_n(band.y)}" width="{_n(band.width)}" height="{_n(band.height)}" '
        f'rx="12"/><text class="context" x="{_n(band.label_x)}" y="{_n(band.y + 23)}">{escape(band.name)}</text>'
    )


def _heading(name: str, x: float, _width: float, count: int) -> str:
    return f'<text class="lane" x="{_n(x)}" y="112">{escape(name.upper())} · {count}</text>'


def _depth(line: Line) -> int:
    """Faint lines lie below those that are followed with the finger."""
    order = (Does.CHANGES, Does.INFORMS, Does.REACHES, Does.FEEDS, Does.ANSWERS, Does.GIVES, Does.SENDS)
    return order.index(line.link.does)


def _line(line: Line, names: dict[str, str]) -> str:
    path = _square(line.points) if line.is_square else _curved(line.points)
    kind = _class(line.link.does)
    ends = f"{names[line.link.source]} {names[line.link.target]}"
    return f'<path class="l {kind} {ends}" d="{path}" marker-end="url(#to-{kind})"/>'


def _curved(points: Sequence[Point]) -> str:
    """Curves that leave and arrive level; what goes past a lane goes straight on there."""
    (x, y), *rest = points
    path = f"M{_n(x)} {_n(y)}"
    for index, (to_x, to_y) in enumerate(rest):
        if len(rest) > 1 and index == 1:
            path += f"H{_n(to_x)}"
        else:
            bend = (to_x - x) / 2
            path += f"C{_n(x + bend)} {_n(y)} {_n(to_x - bend)} {_n(to_y)} {_n(to_x)} {_n(to_y)}"
        x, y = to_x, to_y
    return path


def _square(points: Sequence[Point]) -> str:
    """A line with rounded corners, whose legs are level or upright."""
    path = f"M{_n(points[0][0])} {_n(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(CORNER, _length(before, corner) / 2, _length(corner, after) / 2)
        path += f"L{_at(_towards(corner, before, radius))}Q{_at(corner)} {_at(_towards(corner, after, radius))}"
    return f"{path}L{_at(points[-1])}"


def _length(one: Point, other: Point) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _towards(corner: Point, other: Point, radius: float) -> Point:
    length = _length(corner, other) or 1.0
    return corner[0] + (other[0] - corner[0]) * radius / length, corner[1] + (other[1] - corner[1]) * radius / length


def _at(point: Point) -> str:
    return f"{_n(point[0])} {_n(point[1])}"


def _part(box: Box, name: str) -> str:
    kind = box.part.kind
    rounded = {Kind.COMMAND: 6, Kind.QUERY: 6, Kind.EVENT: 2, Kind.PROCESS: 13}.get(kind, 9)
    baseline, lines = box.y + PADDING_Y + NAME_PIXELS - 1, list[str]()
    for line in box.name:
        lines.append(f'<text class="name" x="{_n(box.x + PADDING_X)}" y="{_n(baseline)}">{escape(line)}</text>')
        baseline += NAME_LINE
    baseline += NOTE_LINE - NAME_LINE + 2
    for line in box.note:
        lines.append(f'<text class="note" x="{_n(box.x + PADDING_X)}" y="{_n(baseline)}">{escape(line)}</text>')
        baseline += NOTE_LINE
    return (
        f'<g id="{name}" class="{_class(kind)}"><title>{escape(_told(box))}</title>'
        f'<rect class="box" x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}" '
        f'rx="{_n(rounded)}"/>{"".join(lines)}</g>'
    )


def _told(box: Box) -> str:
    """What is shown where the pointer rests: kind, full name, and the first line of its documentation."""
    part = box.part
    documented = (inspect.getdoc(part.declared) or "").split("\n\n")[0].replace("\n", " ") if part.declared else ""
    is_inherited = isinstance(part.declared, type) and "__doc__" in vars(part.declared) and not part.declared.__doc__
    about = "" if is_inherited or not documented else f"\n{documented}"
    note = f", {part.note}" if part.note else ""
    return f"{part.kind} {part.context}.{part.name}{note}{about}"


# ── legend ───────────────────────────────────────────────────────────────────


def _legend(layout: Layout, width: float) -> tuple[list[str], float]:
    """What boxes and lines mean, as far as there are any; and the height of the picture with it."""
    kinds = [kind for kind in Kind if any(box.part.kind is kind for box in layout.boxes)]
    doing = [does for does in _LINES if any(line.link.does is does for line in layout.lines)]
    drawn: list[str] = []
    y = layout.height + 34
    keys: list[tuple[Sequence[tuple[str, Callable[[str, float, float], str]]], float]] = [
        ([(kind.value, partial(_swatch, kind)) for kind in kinds], 44),
        ([(_LINES[does][1], partial(_sample, does)) for does in doing], 50),
    ]
    for entries, room in keys:
        x = 36.0
        for text, draw in entries:
            taken = room + text_width(text, 12)
            if x > 36 and x + taken > width - 36:
                x, y = 36.0, y + LEGEND_ROW
            drawn.append(draw(text, x, y))
            x += taken
        y += LEGEND_ROW if entries else 0
    return drawn, y + 8


def _swatch(kind: Kind, text: str, x: float, y: float) -> str:
    rounded = {Kind.COMMAND: 3, Kind.QUERY: 3, Kind.EVENT: 1, Kind.PROCESS: 6}.get(kind, 4)
    return (
        f'<g class="{_class(kind)}"><rect class="box" x="{_n(x)}" y="{_n(y - 10)}" width="18" height="12" '
        f'rx="{rounded}"/></g><text class="key" x="{_n(x + 24)}" y="{_n(y)}">{escape(text)}</text>'
    )


def _sample(does: Does, text: str, x: float, y: float) -> str:
    kind = _class(does)
    return (
        f'<path class="l {kind}" d="M{_n(x)} {_n(y - 4)}H{_n(x + 36)}" marker-end="url(#to-{kind})"/>'
        f'<text class="key" x="{_n(x + 44)}" y="{_n(y)}">{escape(text)}</text>'
    )
