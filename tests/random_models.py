"""Random applications, as far as a picture shows them: parts of all kinds in several contexts, and their links."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from diptych.application.model import Does, Kind, Link, Part

__all__ = ["LEADS", "PARTS_MAX", "Drawn", "drawn_models"]

Drawn = tuple[list[str], list[Part], list[Link]]
PARTS_MAX, LINKS_MAX = 40, 120

LEADS = {
    Does.INFORMS: ([Kind.DECISION_MODEL], [Kind.COMMAND]),
    Does.GIVES: ([Kind.COMMAND], [Kind.EVENT]),
    Does.CHANGES: ([Kind.EVENT], [Kind.DECISION_MODEL]),
    Does.REACHES: ([Kind.EVENT], [Kind.PROJECTION, Kind.SUBSCRIBER, Kind.PROCESS]),
    Does.FEEDS: ([Kind.PROJECTION], [Kind.READ_MODEL]),
    Does.ANSWERS: ([Kind.READ_MODEL], [Kind.QUERY]),
    Does.SENDS: ([Kind.PROCESS], [Kind.COMMAND]),
}
"""From which kinds of parts to which each kind of link leads."""

NAMES = st.one_of(
    st.from_regex(r"([A-Z][a-z]{1,9}){1,7}", fullmatch=True),
    st.from_regex(r"[a-z]{1,9}(_[a-z]{1,9}){0,6}", fullmatch=True),
    st.text(min_size=1, max_size=60).filter(lambda text: text.isidentifier()),
)
NOTES = st.one_of(st.just(""), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80))


@st.composite
def drawn_models(draw: Any) -> Drawn:
    """Contexts, parts and links; each part is of one of the contexts, and links lead as they do in an application.

    Half of them have a part of each kind, and half as many links as there may be.
    """
    contexts: list[str] = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    shapes = draw(
        st.lists(st.tuples(st.sampled_from(list(Kind)), st.sampled_from(contexts), NAMES, NOTES), max_size=PARTS_MAX)
    )
    if draw(st.booleans()):
        shapes = [*((kind, contexts[0], kind.name.title(), "") for kind in Kind), *shapes]
    parts = [
        Part(f"{kind}:{number}", kind, name, context, None, note)
        for number, (kind, context, name, note) in enumerate(shapes)
    ]
    possible = [
        Link(source.id, target.id, does)
        for does, (sources, targets) in LEADS.items()
        for source in parts
        if source.kind in sources
        for target in parts
        if target.kind in targets
    ]
    some = st.lists(st.sampled_from(possible), max_size=LINKS_MAX, unique=True) if possible else st.just([])
    links = draw(st.one_of(some, st.just(possible[:LINKS_MAX])))
    return contexts, parts, links
