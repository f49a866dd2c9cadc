"""The messages that an application knows, by class and by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from diptych.errors import ConfigurationError, InvalidMessage, UnknownMessage
from diptych.messages.codec import Codec
from diptych.messages.event import Event
from diptych.messages.identity import Identity, former_tag_names, tag_name
from diptych.messages.message import held_types, options_of
from diptych.messages.splits import Splits
from diptych.messages.tags import tag, tag_reader
from diptych.messages.upcaster import UpcasterDeclaration, Upcasters

__all__ = ["EventType", "EventTypes", "MessageTypes"]


class EventType:
    """One event class with the name, version and tags under which it is stored.

    Attributes:
        cls: the class.
        name: the stored name, qualified by context: "school.Enrolled".
        formerly: the names under which it was stored before, qualified too.
        context: the name of the context that it belongs to.
        version: the stored version.
        tags: reads the tags of one event.
        tag_names: the tag names of its fields, sorted; a stored fact.
        upcasters: lead to its version from older ones.
        guessed: whether its context is only one that folds it, so that another may be the one that publishes it.
        foreign: whether it is only folded, by its context, and says itself that another context stores it: this class
            may be one of its own, with the fields that it needs.
    """

    __slots__ = (
        "cls",
        "codec",
        "context",
        "foreign",
        "formerly",
        "guessed",
        "name",
        "tag_names",
        "tags",
        "upcasters",
        "version",
    )

    def __init__(
        self,
        cls: type[Event],
        context: str,
        upcasters: Iterable[UpcasterDeclaration] = (),
        *,
        folded_only: bool = False,
    ) -> None:
        options = options_of(cls)
        self.cls = cls
        self.context = context
        self.name = options.name or f"{context}.{cls.__name__}"
        self.formerly = tuple(name if "." in name else f"{context}.{name}" for name in options.formerly)
        self.version = options.version
        self.codec = Codec(cls)
        self.tags, self.tag_names = tag_reader(cls)
        self.upcasters = Upcasters(cls, upcasters)
        self.guessed = folded_only and options.name is None
        self.foreign = folded_only and not self.guessed and self.name.partition(".")[0] != context

    @property
    def fields(self) -> frozenset[str]:
        """The names of its fields, as they are stored."""
        kind = self.cls.__struct_config__.tag_field
        return frozenset(self.cls.__struct_encode_fields__) | ({kind} if kind else frozenset())

    def only_tagged(self, identity: type, value: str) -> EventType:
        """The same type; reading the tags of an event that names another identity of that kind is `InvalidMessage`."""
        found = copy(self)
        found.tags = _only(self.tags, f"{tag_name(identity)}:", tag(identity, value))
        return found


def _only(tags: Callable[[Any], tuple[str, ...]], kind: str, mine: str) -> Callable[[Any], tuple[str, ...]]:
    def read(event: Any) -> tuple[str, ...]:
        found = tags(event)
        for each in found:
            if each.startswith(kind) and each != mine:
                raise InvalidMessage(type(event).__name__, [("$", f"it is tagged {each}, in the partition of {mine}")])
        return found

    return read


class EventTypes:
    """Every event class of an application: the two-way dictionary between classes and stored names.

    Raises:
        ConfigurationError: two classes would have one name, now or formerly; or two kinds of identities one tag name;
            or an upcaster splits an event into what cannot be read, or in a circle.
    """

    def __init__(self, types: Iterable[EventType]) -> None:
        self._by_class: dict[type, EventType] = {}
        self._by_name: dict[str, EventType] = {}
        known = list(types)
        for found in known:
            other = self._by_name.setdefault(found.name, found)
            if other.cls is not found.cls:
                raise ConfigurationError(
                    f"{found.cls.__module__}.{found.cls.__qualname__} and {other.cls.__module__}."
                    f"{other.cls.__qualname__} would both be stored as {found.name!r}: rename one, or name it with "
                    "stored_as="
                )
            self._by_class[found.cls] = found
        for found in known:
            for name in found.formerly:
                other = self._by_name.setdefault(name, found)
                if other.cls is not found.cls or name == found.name:
                    so_is = "it is still" if name == found.name else f"{other.cls.__qualname__} is, or was, too"
                    raise ConfigurationError(
                        f"{found.cls.__qualname__} says that it was stored as {name!r}, and {so_is}: a stored name "
                        "means one class. Remove it from formerly="
                    )
        self._splits = Splits(self._by_class.values(), self.of)
        self.splitting = self._splits.names
        """Stored names of events that may be several now, or none."""
        self._formerly_tagged = _former_tags(known)
        self._tagged_now = {old: name for name, formerly in self._formerly_tagged.items() for old in formerly}

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._by_class.values())

    def of(self, cls: type) -> EventType:
        """The type of an event class.

        Raises:
            ConfigurationError: no bounded context of the application has it.
        """
        found = self._by_class.get(cls)
        if found is None:
            raise ConfigurationError(
                f"{cls.__name__} is no event that this application knows: name it in the return annotation of the "
                "handler that gives it, or in BoundedContext(events=[...])"
            )
        return found

    def stored_as(self, name: str) -> EventType | None:
        """The type that has or had this stored name, if the application knows it."""
        return self._by_name.get(name)

    def stored_names(self, name: str) -> Iterable[str]:
        """Every name under which events of a type may be stored: the one given, and those that it had formerly."""
        found = self._by_name.get(name)
        return (name,) if found is None or found.name != name else (name, *found.formerly)

    def split_names(self, name: str) -> frozenset[str]:
        """The stored names of other types whose events may have parts of the type with this name."""
        return self._splits.sources(name)

    def parts_of(self, found: EventType, version: int) -> list[EventType]:
        """The types of which events of a type and version may have parts, by name; itself, if it does not split."""
        return self._splits.reached(found, version)

    def upcasters_to(self, classes: Iterable[type[Event]]) -> list[UpcasterDeclaration]:
        """The upcasters of these classes, and of all that may have become one of them, each once."""
        own = list(classes)
        others = [other for cls in own for other in self._splits.sources(self.of(cls).name)]
        found = [self.of(cls) for cls in own] + [self._by_name[name] for name in sorted(set(others))]
        return [step for each in dict.fromkeys(found) for step in each.upcasters]

    def stored_tags(self, tag: str) -> Iterable[str]:
        """Every tag with which events of an identity may be stored: the one given, and those that it had formerly."""
        kind, _, value = tag.partition(":")
        return (tag, *(f"{former}:{value}" for former in self._formerly_tagged.get(kind, ())))

    def tag_names_now(self, stored: Iterable[str]) -> tuple[str, ...]:
        """Stored tag names, sorted, each as the identities that had it are called now."""
        return tuple(sorted(self._tagged_now.get(name, name) for name in stored))

    def tags_now(self, stored: Iterable[str]) -> set[str]:
        """Stored tags, each with the name that the identities that had it have now."""
        parts = [tag.partition(":") for tag in stored]
        return {f"{self._tagged_now.get(kind, kind)}:{value}" for kind, _, value in parts}


def _former_tags(types: Iterable[EventType]) -> dict[str, tuple[str, ...]]:
    """The former tag names of identities, by the name of now; of those that events hold."""
    held = {part for found in types for part in held_types(found.cls)}
    kinds = [part for part in held if isinstance(part, type) and issubclass(part, Identity)]
    claims = {tag_name(kind): tag_name(kind) for kind in kinds}
    found: dict[str, tuple[str, ...]] = {}
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        name = tag_name(kind)
        for former in dict.fromkeys(former_tag_names(kind)):
            if claims.get(former) == former or claims.setdefault(former, name) != name:
                raise ConfigurationError(
                    f"{kind.__qualname__} says that its tag was {former!r}, which is, or was too, the tag of those "
                    f"that now have {claims[former]!r}: a tag means one kind of thing. Remove it from formerly="
                )
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), former)))
    return found


class MessageTypes:
    """The commands or the queries of an application, by name.

    A name is the class name, where only one context has it, and always `context.ClassName`.
    """

    def __init__(self, kind: str, classes: Iterable[tuple[str, type]]) -> None:
        self.kind = kind
        self._by_name: dict[str, type] = {}
        self._names: dict[type, str] = {}
        self._full_names: dict[type, str] = {}
        short: dict[str, list[tuple[str, type]]] = {}
        for context, cls in classes:
            self._by_name[f"{context}.{cls.__name__}"] = cls
            self._full_names[cls] = f"{context}.{cls.__name__}"
            short.setdefault(cls.__name__, []).append((context, cls))
        for name, found in short.items():
            for context, cls in found:
                self._names[cls] = name if len(found) == 1 else f"{context}.{name}"
            if len(found) == 1:
                self._by_name[name] = found[0][1]

    @property
    def names(self) -> Mapping[type, str]:
        """Each class with the shortest name that finds it."""
        return self._names

    def full_name(self, cls: type) -> str | None:
        """The name of a class with that of its context; None where it is not known."""
        return self._full_names.get(cls)

    def find(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            UnknownMessage: there is none; with close names.
        """
        found = self._by_name.get(name)
        if found is None:
            raise UnknownMessage(self.kind, name, self._names.values())
        return found
