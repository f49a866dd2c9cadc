"""The picture of an application as Mermaid text, which many pages draw where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diptych.application.model import Does, Kind, Link, Part

__all__ = ["mermaid"]

_SHAPES = {
    Kind.COMMAND: ("[", "]"),
    Kind.DECISION_MODEL: ("[[", "]]"),
    Kind.EVENT: ("[/", "/]"),
    Kind.PROJECTION: ("(", ")"),
    Kind.SUBSCRIBER: (">", "]"),
    Kind.PROCESS: ("([", "])"),
    Kind.READ_MODEL: ("[(", ")]"),
    Kind.QUERY: ("{{", "}}"),
}
_ARROWS = {
    Does.INFORMS: "-.->",
    Does.GIVES: "-->",
    Does.CHANGES: "-.->",
    Does.REACHES: "-->",
    Does.FEEDS: "-->",
    Does.ANSWERS: "-->",
    Does.SENDS: "==>",
}
_COLOURS = {
    Kind.COMMAND: "fill:#d9e8fd,stroke:#4f86e0,color:#123a70",
    Kind.DECISION_MODEL: "fill:#fff2bd,stroke:#cf9f00,color:#594300",
    Kind.EVENT: "fill:#ffdfbd,stroke:#e5811c,color:#6b3300",
    Kind.PROJECTION: "fill:#e6f4e3,stroke:#78b574,color:#21501f",
    Kind.SUBSCRIBER: "fill:#fbdbe8,stroke:#d0588d,color:#6c1740",
    Kind.PROCESS: "fill:#e8dcfa,stroke:#8757d1,color:#3d1b78",
    Kind.READ_MODEL: "fill:#c2e6c4,stroke:#3c9549,color:#12441b",
    Kind.QUERY: "fill:#d2efee,stroke:#24938f,color:#084745",
}


def mermaid(contexts: Sequence[str], parts: Sequence[Part], links: Sequence[Link]) -> str:
    """A flowchart, ending in a newline; the same for the same parts in the same order."""
    names = {part.id: f"p{number}" for number, part in enumerate(parts)}
    kinds = [kind for kind in Kind if any(part.kind is kind for part in parts)]
    lines = ["flowchart LR"]
    for number, context in enumerate(contexts):
        own = [part for part in parts if part.context == context]
        lines += [f'  subgraph c{number}["{_quoted(context)}"]', *(_node(part, names) for part in own), "  end"]
    lines += [f"  {names[link.source]} {_ARROWS[link.does]} {names[link.target]}" for link in links]
    lines += [f"  classDef {_class(kind)} {_COLOURS[kind]}" for kind in kinds]
    return "\n".join([*lines, ""])


def _node(part: Part, names: dict[str, str]) -> str:
    opening, closing = _SHAPES[part.kind]
    note = f"<br><small>{_quoted(part.note)}</small>" if part.note else ""
    return f'    {names[part.id]}{opening}"{_quoted(part.name)}{note}"{closing}:::{_class(part.kind)}'


def _class(kind: Kind) -> str:
    return kind.value.replace(" ", "_")


def _quoted(text: str) -> str:
    """Text as it stands between Mermaid's quotes: what means something there is written as an entity."""
    return "".join(_escaped(text))


def _escaped(text: str) -> Iterable[str]:
    for each in text:
        yield f"#{ord(each)};" if each in '"#&<>`\\\n;' else each
