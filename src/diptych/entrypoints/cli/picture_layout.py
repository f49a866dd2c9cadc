"""Where the parts of an application stand in its picture, and how the lines between them run.

Lanes are columns, contexts are bands; a part stands where its lane crosses its band. Lines run between neighbouring
lanes, where nothing stands, and past a lane through a gap that is kept open like a part: so no line crosses a box. The
rows of a lane are ordered by the barycentre of their neighbours (Kozo Sugiyama, Shojiro Tagawa and Mitsuhiko Toda,
1981), then moved towards them as far as their order allows (by pooling adjacent violators). What a process sends runs
back below its band and beside the picture.

Sums are exact (`fsum`): versions of Python add floats differently, and a picture is compared byte for byte.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import NamedTuple

from diptych.application.model import Does, Kind, Link, Part
from diptych.entrypoints.cli.picture_text import fitted, text_width

__all__ = [
    "CORNER",
    "LABEL_PIXELS",
    "NAME_LINE",
    "NAME_PIXELS",
    "NOTE_LINE",
    "NOTE_PIXELS",
    "PADDING_X",
    "PADDING_Y",
    "Band",
    "Box",
    "Layout",
    "Line",
    "Point",
    "lay_out",
]

SWEEPS_MAX = 24
"""Times that the rows of all lanes are ordered by their neighbours."""
SETTLINGS_MAX = 16
"""Times that all boxes are moved towards their neighbours."""
TEXT_WIDTH_MAX = 178
"""Pixels of a line of text in a box."""
TEXT_LINES_MAX = 2
"""Lines of a name, and of a note."""

LANES: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    ("Commands", (Kind.COMMAND,)),
    ("Decision models", (Kind.DECISION_MODEL,)),
    ("Events", (Kind.EVENT,)),
    ("Followers", (Kind.PROJECTION, Kind.SUBSCRIBER, Kind.PROCESS)),
    ("Read models", (Kind.READ_MODEL,)),
    ("Queries", (Kind.QUERY,)),
)
NAME_PIXELS, NOTE_PIXELS, LABEL_PIXELS = 14.0, 11.0, 15.0
NAME_LINE, NOTE_LINE = 17.0, 14.0
PADDING_X, PADDING_Y = 12.0, 8.0
GUTTER = 122.0
ROW_GAP, GAP_HEIGHT, GAP_GAP = 12.0, 4.0, 8.0
MARGIN, MARGIN_TOP = 36.0, 128.0
BAND_GAP, BAND_PADDING, BAND_LABEL = 18.0, 18.0, 36.0
SLOT = 11.0
PORT_GAP = 7.0
CORNER = 9.0

Point = tuple[float, float]


class Box(NamedTuple):
    """A part, drawn.

    Attributes:
        name: in lines.
        note: in lines, below.
    """

    part: Part
    x: float
    y: float
    width: float
    height: float
    name: Sequence[str]
    note: Sequence[str]

    @property
    def right(self) -> float:
        """The x of its right side."""
        return self.x + self.width

    @property
    def middle(self) -> float:
        """The y of its middle."""
        return self.y + self.height / 2


class Line(NamedTuple):
    """A link, drawn.

    Attributes:
        points: from its source to its target.
        is_square: whether it turns at corners, and does not curve from point to point.
    """

    link: Link
    points: Sequence[Point]
    is_square: bool = False


class Band(NamedTuple):
    """What a context takes of the picture."""

    name: str
    x: float
    y: float
    width: float
    height: float
    label_x: float


class Layout(NamedTuple):
    """A picture without its colours.

    Attributes:
        lanes: the heading of each, with where it begins, how wide it is, and how many parts it has.
    """

    width: float
    height: float
    lanes: Sequence[tuple[str, float, float, int]]
    bands: Sequence[Band]
    boxes: Sequence[Box]
    lines: Sequence[Line]


@dataclass
class _Node:
    """A box to be placed, or a gap for a line that goes past its lane (`part` is None)."""

    part: Part | None
    lane: int
    band: int
    height: float
    y: float = 0.0
    name: Sequence[str] = ()
    note: Sequence[str] = ()
    left: list[_Node] = field(default_factory=list)
    right: list[_Node] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    @property
    def gap(self) -> float:
        return ROW_GAP if self.part else GAP_GAP


def lay_out(contexts: Sequence[str], parts: Sequence[Part], links: Sequence[Link]) -> Layout:
    """Place the parts of an application; the same for the same parts, in the same order.

    Args:
        contexts: the bands, from top to bottom.
        parts: each of one of them.
        links: between parts, by id. What leads from a lane to one that is not beside it, but for what commands give
            and processes send, is left out.
    """
    placing = _Placing(contexts, parts, links)
    placing.order()
    placing.settle()
    return placing.drawn()


class _Placing:
    """The work of one layout."""

    def __init__(self, contexts: Sequence[str], parts: Sequence[Part], links: Sequence[Link]) -> None:
        present = {part.kind for part in parts}
        self._lanes = [(name, kinds) for name, kinds in LANES if present & set(kinds)]
        self._contexts = [name for name in contexts if any(part.context == name for part in parts)]
        lane_of = {kind: index for index, (_, kinds) in enumerate(self._lanes) for kind in kinds}
        self._nodes: dict[str, _Node] = {}
        for part in parts:
            self._nodes[part.id] = _sized(part, lane_of[part.kind], self._contexts.index(part.context))
        self._gaps: dict[str, _Node] = {}
        self._links = [link for link in links if link.does is not Does.SENDS and self._connect(link)]
        self._sends = [link for link in links if link.does is Does.SENDS]
        self._cells: dict[tuple[int, int], list[_Node]] = {}
        for node in [*self._nodes.values(), *self._gaps.values()]:
            self._cells.setdefault((node.lane, node.band), []).append(node)
        self._senders = list(dict.fromkeys(link.source for link in self._sends))
        self._tops: list[float] = []
        self._bottoms: list[float] = []
        self._place_bands()

    def _connect(self, link: Link) -> bool:
        """Note who is beside whom; with a gap in the lane between, if there is one."""
        first, second = sorted((self._nodes[link.source], self._nodes[link.target]), key=lambda node: node.lane)
        if second.lane - first.lane == 2 and link.does is Does.GIVES:
            gap = self._gaps.get(link.source)
            if gap is None:
                gap = self._gaps[link.source] = _Node(None, first.lane + 1, first.band, GAP_HEIGHT)
                _join(first, gap)
            _join(gap, second)
        elif second.lane - first.lane == 1:
            _join(first, second)
        else:
            return False
        return True

    # ── rows ─────────────────────────────────────────────────────────────────

    def order(self) -> None:
        """Order the rows of each lane, in each band, so that few lines cross."""
        best, least = self._copied(), self._crossings()
        for sweep in range(SWEEPS_MAX):
            lanes = range(len(self._lanes)) if sweep % 2 == 0 else range(len(self._lanes) - 1, -1, -1)
            for lane in lanes:
                self._order_lane(lane, from_left=sweep % 2 == 0, both=sweep % 4 >= 2)
            crossings = self._crossings()
            if crossings < least:
                best, least = self._copied(), crossings
        self._cells = best
        self._stack()

    def _copied(self) -> dict[tuple[int, int], list[_Node]]:
        return {key: list(nodes) for key, nodes in self._cells.items()}

    def _order_lane(self, lane: int, *, from_left: bool, both: bool) -> None:
        for band in range(len(self._contexts)):
            nodes = self._cells.get((lane, band), [])

            def barycentre(node: _Node) -> float:
                beside = node.left + node.right if both else node.left if from_left else node.right
                beside = beside or node.left + node.right
                return fsum(other.middle for other in beside) / len(beside) if beside else node.middle

            nodes.sort(key=barycentre)
            self._stack_cell(lane, band)

    def _crossings(self) -> int:
        """How many pairs of lines cross between the lanes."""
        self._stack()
        found = 0
        for lane in range(len(self._lanes) - 1):
            ends = sorted((node.middle, other.middle) for node in self._in_lane(lane) for other in node.right)
            seen: list[float] = []
            for _, end in ends:
                found += len(seen) - bisect(seen, end)
                insort(seen, end)
        return found

    def _in_lane(self, lane: int) -> Iterable[_Node]:
        return (node for band in range(len(self._contexts)) for node in self._cells.get((lane, band), []))

    def _stack(self) -> None:
        for lane, band in self._cells:
            self._stack_cell(lane, band)

    def _stack_cell(self, lane: int, band: int) -> None:
        y = self._tops[band]
        for node in self._cells.get((lane, band), []):
            node.y = y
            y += node.height + node.gap

    # ── heights ──────────────────────────────────────────────────────────────

    def _place_bands(self) -> None:
        """Give each band the height of its tallest lane."""
        y = MARGIN_TOP
        for band in range(len(self._contexts)):
            y += BAND_LABEL
            self._tops.append(y)
            cells = [nodes for (_, found), nodes in self._cells.items() if found == band]
            y += max(fsum(node.height + node.gap for node in nodes) for nodes in cells)
            self._bottoms.append(y)
            y += BAND_PADDING + SLOT * len(self._senders_in(band)) + BAND_GAP

    def _senders_in(self, band: int) -> list[str]:
        return [sender for sender in self._senders if self._nodes[sender].band == band]

    def settle(self) -> None:
        """Move each box towards what it is joined to; the order of the rows stays."""
        for round_ in range(SETTLINGS_MAX):
            lanes = range(len(self._lanes)) if round_ % 2 == 0 else range(len(self._lanes) - 1, -1, -1)
            for lane in lanes:
                for band in range(len(self._contexts)):
                    self._settle_cell(self._cells.get((lane, band), []), self._tops[band], self._bottoms[band])

    def _settle_cell(self, nodes: Sequence[_Node], top: float, bottom: float) -> None:
        if not nodes:
            return
        offsets, offset = list[float](), 0.0
        for node in nodes:
            offsets.append(offset)
            offset += node.height + node.gap
        wanted = [_wanted(node) - before for node, before in zip(nodes, offsets, strict=True)]
        room = max(bottom - top - offset, 0.0)
        for node, before, found in zip(nodes, offsets, _in_order(wanted), strict=True):
            node.y = round(min(max(found, top), top + room) + before, 1)

    # ── drawing ──────────────────────────────────────────────────────────────

    def drawn(self) -> Layout:
        """The layout."""
        widths = [max(map(_text_width, self._boxes_in(lane))) + 2 * PADDING_X for lane in range(len(self._lanes))]
        beginnings, x = list[float](), MARGIN + BAND_PADDING + SLOT * len(self._senders)
        for width in widths:
            beginnings.append(x)
            x += width + GUTTER
        right = max(x - GUTTER, MARGIN) + BAND_PADDING
        if any(self._nodes[sender].lane == len(self._lanes) - 1 for sender in self._senders):
            right += GUTTER  # what it sends leaves it there
        boxes = {id_: _box(node, beginnings[node.lane], widths[node.lane]) for id_, node in self._nodes.items()}
        lines = [*self._curves(boxes, beginnings, widths), *self._trunks(boxes)]
        counts = [len(self._boxes_in(lane)) for lane in range(len(self._lanes))]
        headings = list(zip(self._headed(), beginnings, widths, counts, strict=True))
        bands = self._bands(right, beginnings)
        bottom = max((band.y + band.height for band in bands), default=MARGIN_TOP)
        return Layout(right + MARGIN, bottom, headings, bands, list(boxes.values()), lines)

    def _headed(self) -> list[str]:
        """The lanes; what follows events is called by what there is of it."""
        present = {node.part.kind for node in self._nodes.values() if node.part}
        plural = {Kind.PROJECTION: "projections", Kind.SUBSCRIBER: "subscribers", Kind.PROCESS: "processes"}
        found = [name for kind, name in plural.items() if kind in present]
        following = " and ".join(found).capitalize() if len(found) < len(plural) else "Followers"
        return [following if name == "Followers" else name for name, _ in self._lanes]

    def _boxes_in(self, lane: int) -> list[_Node]:
        return [node for node in self._nodes.values() if node.lane == lane]

    def _bands(self, right: float, beginnings: Sequence[float]) -> list[Band]:
        return [
            Band(
                name,
                MARGIN,
                self._tops[band] - BAND_LABEL,
                right - MARGIN,
                self._bottoms[band]
                - self._tops[band]
                + BAND_LABEL
                + BAND_PADDING
                - ROW_GAP / 2
                + SLOT * len(self._senders_in(band)),
                beginnings[0],
            )
            for band, name in enumerate(self._contexts)
        ]

    def _slot(self, band: int) -> float:
        """How far apart the lines of several processes go down between two lanes."""
        return min(SLOT, (GUTTER - 30) / max(len(self._senders_in(band)), 1))

    def _curves(self, boxes: Mapping[str, Box], beginnings: Sequence[float], widths: Sequence[float]) -> list[Line]:
        ports = _Ports(boxes, self._links, self._gaps)
        found: list[Line] = []
        for index, link in enumerate(self._links):
            start, end = ports.ends(index)
            gap = self._gaps.get(link.source) if link.does is Does.GIVES else None
            points = [start, end]
            if gap is not None and boxes[link.target].x > beginnings[gap.lane]:
                past = [(beginnings[gap.lane], gap.middle), (beginnings[gap.lane] + widths[gap.lane], gap.middle)]
                points = [start, *past, end]
            found.append(Line(link, points))
        return found

    def _trunks(self, boxes: Mapping[str, Box]) -> list[Line]:
        """What processes send: down beside the box, back below the band, and up or down beside all bands."""
        targets = sorted({link.target for link in self._sends})
        arriving = {target: [link.source for link in self._sends if link.target == target] for target in targets}
        found: list[Line] = []
        for link in self._sends:
            source, target = boxes[link.source], boxes[link.target]
            slot, band = self._senders.index(link.source), self._nodes[link.source].band
            row = self._senders_in(band).index(link.source)
            down = source.right + 10 + self._slot(band) * row
            below = self._bottoms[band] + SLOT * row + 2
            beside = MARGIN + BAND_PADDING + SLOT * slot - 4
            among = arriving[link.target]
            y = _spread(target, among.index(link.source), len(among))
            back = [(down, below), (beside, below), (beside, y), (target.x, y)]
            found.append(Line(link, [(source.right, source.middle), (down, source.middle), *back], is_square=True))
        return found


class _Ports:
    """Where lines leave and reach boxes: side by side, in the order of where they lead."""

    def __init__(self, boxes: Mapping[str, Box], links: Sequence[Link], gaps: Mapping[str, _Node]) -> None:
        self._boxes = boxes
        self._links = links
        self._at: dict[tuple[int, str], Point] = {}
        sides: dict[tuple[str, bool], list[tuple[float, int]]] = {}
        shared: dict[tuple[str, bool], int] = {}
        for index, link in enumerate(links):
            source, target = boxes[link.source], boxes[link.target]
            gap = gaps.get(link.source) if link.does is Does.GIVES else None
            for box, other in ((source, target), (target, source)):
                side = (box.part.id, other.x > box.x)
                if gap is not None and box is source and (shared.setdefault(side, index)) != index:
                    continue  # all that a command gives leaves it by one port
                sides.setdefault(side, []).append((gap.middle if gap else other.middle, index))
        for (id_, on_right), ends in sides.items():
            box = boxes[id_]
            for place, (_, index) in enumerate(sorted(ends)):
                self._at[index, id_] = (box.right if on_right else box.x, _spread(box, place, len(ends)))
        self._shared = shared

    def ends(self, index: int) -> tuple[Point, Point]:
        """Where the line of a link begins and ends."""
        link = self._links[index]
        start = self._at.get((index, link.source))
        if start is None:
            start = self._at[self._shared[link.source, True], link.source]
        return start, self._at[index, link.target]


def _spread(box: Box, place: int, count: int) -> float:
    """The y of one of several ports on a side of a box."""
    gap = min(PORT_GAP, (box.height - 10) / count)
    return round(box.middle + (place - (count - 1) / 2) * gap, 1)


def _sized(part: Part, lane: int, band: int) -> _Node:
    name = fitted(part.name, NAME_PIXELS, TEXT_WIDTH_MAX, TEXT_LINES_MAX, bold=True)
    note = fitted(part.note, NOTE_PIXELS, TEXT_WIDTH_MAX, TEXT_LINES_MAX) if part.note else []
    return _Node(part, lane, band, 2 * PADDING_Y + NAME_LINE * len(name) + NOTE_LINE * len(note), name=name, note=note)


def _text_width(node: _Node) -> float:
    names = [text_width(line, NAME_PIXELS, bold=True) for line in node.name]
    return round(max([*names, *(text_width(line, NOTE_PIXELS) for line in node.note)]), 1)


def _box(node: _Node, x: float, width: float) -> Box:
    assert node.part is not None
    return Box(node.part, x, node.y, width, node.height, node.name, node.note)


def _join(first: _Node, second: _Node) -> None:
    first.right.append(second)
    second.left.append(first)


def _wanted(node: _Node) -> float:
    """The y that brings a box to the middle of what it is joined to, in its own band if there is any."""
    beside = node.left + node.right
    near = [other for other in beside if other.band == node.band] or beside
    return fsum(other.middle for other in near) / len(near) - node.height / 2 if near else node.y


def _in_order(wanted: Sequence[float]) -> list[float]:
    """The nearest values that never fall: neighbours that would, share their mean."""
    pools: list[tuple[float, int]] = []
    for value in wanted:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, many = pools.pop()
            total, count = total + before, count + many
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]
