"""Pictures of applications, over random ones: what is drawn is where it says, and is well-formed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.application.model import Does, Kind, Link, Part
from diptych.entrypoints.cli.picture_layout import (
    NAME_PIXELS,
    NOTE_PIXELS,
    PADDING_X,
    PADDING_Y,
    TEXT_WIDTH_MAX,
    Box,
    Layout,
    Line,
    lay_out,
)
from diptych.entrypoints.cli.picture_mermaid import mermaid
from diptych.entrypoints.cli.picture_svg import svg
from diptych.entrypoints.cli.picture_text import fitted, text_width
from tests.random_models import Drawn, drawn_models

NEAR = 0.11
"""Pixels by which rounding to a tenth may put two things apart."""
EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

models = given(drawn_models())


def overlap(one: Box, other: Box) -> bool:
    across = one.x < other.right and other.x < one.right
    return across and one.y < other.y + other.height and other.y < one.y + one.height


def by_id(layout: Layout) -> dict[str, Box]:
    return {box.part.id: box for box in layout.boxes}


def level_legs(line: Line) -> Iterable[tuple[float, float, float]]:
    """The parts of a line that go past lanes, straight: from x to x, and at which y."""
    legs = list(pairwise(line.points))
    if not line.is_square:
        legs = legs[1:-1]
    for (x, y), (to_x, to_y) in legs:
        if y == to_y:
            yield min(x, to_x), max(x, to_x), y


@EXAMPLES
@models
def test_every_part_has_a_box_of_its_own(model: Drawn) -> None:
    """Each once, within the band of its context, and none overlaps another."""
    contexts, parts, links = model
    layout = lay_out(contexts, parts, links)
    assert [box.part for box in layout.boxes] == parts
    assert not any(overlap(one, other) for one, other in combinations(layout.boxes, 2))
    bands = {band.name: band for band in layout.bands}
    for box in layout.boxes:
        band = bands[box.part.context]
        assert band.x < box.x, box
        assert box.right < band.x + band.width, box
        assert band.y < box.y, box
        assert box.y + box.height < band.y + band.height + NEAR, box
    for one, other in pairwise(layout.bands):
        assert one.y + one.height < other.y
    assert all(band.x + band.width < layout.width for band in layout.bands)


@EXAMPLES
@models
def test_every_line_begins_and_ends_at_its_boxes(model: Drawn) -> None:
    """On a side of each, between its corners; and there is a line for each link."""
    contexts, parts, links = model
    layout = lay_out(contexts, parts, links)
    assert sorted(line.link for line in layout.lines) == sorted(links)
    boxes = by_id(layout)
    for line in layout.lines:
        for (x, y), id_ in ((line.points[0], line.link.source), (line.points[-1], line.link.target)):
            box = boxes[id_]
            assert min(abs(x - box.x), abs(x - box.right)) < NEAR, line
            assert box.y < y < box.y + box.height, line


@EXAMPLES
@models
def test_no_line_runs_across_a_box(model: Drawn) -> None:
    """Curves stay between two lanes, and what goes past a lane has a gap there."""
    contexts, parts, links = model
    layout = lay_out(contexts, parts, links)
    for line in layout.lines:
        for x, to_x, y in level_legs(line):
            for box in layout.boxes:
                is_beside = to_x <= box.x + NEAR or x >= box.right - NEAR
                assert is_beside or y <= box.y or y >= box.y + box.height, (line, box)
        ends = [] if line.is_square else [line.points[:2], line.points[-2:]]
        for (x, _), (to_x, _) in ends:
            low, high = sorted((x, to_x))
            assert not any(low + NEAR < box.right and box.x < high - NEAR for box in layout.boxes), line


@EXAMPLES
@models
def test_text_stays_in_its_box(model: Drawn) -> None:
    """Its name and note, however long they are; a name is shown to its end or ends in an ellipsis."""
    contexts, parts, links = model
    for box in lay_out(contexts, parts, links).boxes:
        inside = box.width - 2 * PADDING_X + NEAR
        assert box.name
        assert all(text_width(line, NAME_PIXELS, bold=True) <= inside for line in box.name)
        assert all(text_width(line, NOTE_PIXELS) <= inside for line in box.note)
        assert box.height >= 2 * PADDING_Y + NAME_PIXELS * len(box.name) + NOTE_PIXELS * len(box.note)
        shown = "".join(box.name)
        assert shown == box.part.name or "…" in shown


@EXAMPLES
@given(text=st.text(max_size=80), lines=st.integers(1, 3))
@example(text="W" * 80, lines=1)
def test_fitted_text_is_what_it_was_or_says_that_it_is_cut(text: str, lines: int) -> None:
    """In as many lines as there may be, none of them too wide."""
    found = fitted(text, NAME_PIXELS, TEXT_WIDTH_MAX, lines, bold=True)
    assert len(found) <= lines
    assert all(text_width(line, NAME_PIXELS, bold=True) <= TEXT_WIDTH_MAX for line in found)
    shown = "".join("".join(found).split())
    assert shown == "".join(text.split()) or "…" in shown


@EXAMPLES
@models
def test_the_svg_is_well_formed_and_the_same_each_time(model: Drawn) -> None:
    """It has a title and a description, and a box with a tooltip for each part."""
    contexts, parts, links = model
    made = svg(lay_out(contexts, parts, links), " · ".join(contexts), "about")
    assert made == svg(lay_out(contexts, parts, links), " · ".join(contexts), "about")
    root = ET.fromstring(made)  # noqa: S314 — we have made it
    space = "{http://www.w3.org/2000/svg}"
    assert root.attrib["aria-labelledby"].split() == [root[0].attrib["id"], root[1].attrib["id"]]
    assert (root[0].tag, root[1].tag) == (f"{space}title", f"{space}desc")
    groups = [group for group in root.iter(f"{space}g") if "id" in group.attrib]
    assert len(groups) == len(parts)
    assert all(part.name in (group[0].text or "") for part, group in zip(parts, groups, strict=True))
    heads = {path.attrib["marker-end"] for path in root.iter(f"{space}path") if "marker-end" in path.attrib}
    markers = {f"url(#{marker.attrib['id']})" for marker in root.iter(f"{space}marker")}
    assert heads <= markers


NODE = re.compile(
    r"    (p\d+)(?:\[\[|\[\(|\[/|\(\[|\{\{|\[|\(|>)"
    r'"([^"\\`<>]*(?:<br><small>[^"\\`<>]*</small>)?)"'
    r"(?:\]\]|\)\]|/\]|\]\)|\}\}|\]|\)):::(\w+)"
)
EDGE = re.compile(r"  (p\d+) (?:-->|-\.->|==>) (p\d+)")


@EXAMPLES
@models
def test_mermaid_text_is_a_flowchart(model: Drawn) -> None:
    """Subgraphs with nodes, edges between those, a class for each kind; no text breaks out of its quotes."""
    contexts, parts, links = model
    first, *lines = mermaid(contexts, parts, links).splitlines()
    assert first == "flowchart LR"
    nodes, edges, classes, depth = list[re.Match[str]](), list[tuple[str, str]](), set[str](), 0
    for line in lines:
        if line.startswith("  subgraph "):
            assert re.fullmatch(r'  subgraph c\d+\["[^"]*"\]', line)
            depth += 1
        elif line == "  end":
            depth -= 1
        elif node := NODE.fullmatch(line):
            assert depth == 1
            nodes.append(node)
        elif edge := EDGE.fullmatch(line):
            edges.append((edge[1], edge[2]))
        else:
            defined = re.fullmatch(r"  classDef (\w+) fill:#\w{6},stroke:#\w{6},color:#\w{6}", line)
            assert defined, line
            classes.add(defined[1])
        assert depth in (0, 1)
    assert depth == 0
    assert len(nodes) == len(parts)
    assert {node[3] for node in nodes} == classes
    known = {node[1] for node in nodes}
    assert len(edges) == len(links)
    assert all(set(edge) <= known for edge in edges)


def test_many_lines_of_one_box_all_begin_at_its_side() -> None:
    """Closer together than usual, and in the order of where they lead."""
    parts = [Part("event", Kind.EVENT, "Shipped", "shop", None)]
    parts += [Part(f"projection:{n}", Kind.PROJECTION, f"p{n}", "shop", None) for n in range(20)]
    layout = lay_out(["shop"], parts, [Link("event", part.id, Does.REACHES) for part in parts[1:]])
    event = layout.boxes[0]
    begun = [line.points[0][1] for line in sorted(layout.lines, key=lambda line: line.points[-1][1])]
    assert begun == sorted(begun)
    assert len(set(begun)) == 20
    assert event.y < begun[0] < begun[-1] < event.y + event.height


def test_lines_of_several_processes_stay_between_two_lanes() -> None:
    """However many there are in one context."""
    parts = [Part(f"process:{n}", Kind.PROCESS, f"Process{n}", "shop", None) for n in range(15)]
    parts += [Part("command", Kind.COMMAND, "Ship", "shop", None)]
    parts += [Part("model", Kind.READ_MODEL, "Shipped", "shop", None)]
    links = [Link(part.id, "command", Does.SENDS) for part in parts[:15]]
    layout = lay_out(["shop"], parts, links)
    (model,) = [box for box in layout.boxes if box.part.kind is Kind.READ_MODEL]
    assert all(line.points[1][0] < model.x for line in layout.lines)
