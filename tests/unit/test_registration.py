"""What an application finds out when it opens: whom events belong to, which names clash, what the store still holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from diptych import (
    Application,
    BoundedContext,
    Command,
    ConfigurationError,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    Untagged,
    replace,
)
from diptych.application.registration import command_handlers, event_types, projections
from diptych.errors import TagsChanged, UnknownMessage, UnreadableEvent
from diptych.messages.message import MessageMeta
from diptych.messages.registry import EventTypes, MessageTypes

pytestmark = pytest.mark.anyio


class CourseId(Identity): ...


class UserName(Identity, tag="username"): ...


class OpenCourse(Command):
    course: CourseId


class CourseEvent(Event):
    course: CourseId


class Opened(CourseEvent): ...


class Closed(CourseEvent): ...


class Listed(ReadModel):
    course: Key[CourseId]
    events: int = 0


def names(*contexts: BoundedContext) -> dict[str, type]:
    return {found.name: found.cls for found in event_types(contexts)}


# ── whom an event belongs to ─────────────────────────────────────────────────


def test_an_event_belongs_to_the_context_that_publishes_it() -> None:
    """The handler's return annotation decides, not who folds it."""
    teaching, billing = BoundedContext("teaching"), BoundedContext("billing")

    @teaching.command_handler
    def open_course(command: OpenCourse) -> Opened:
        return Opened(course=command.course)

    @billing.projection
    def listed(row: Listed, event: Opened) -> Listed:
        return replace(row, events=row.events + 1)

    assert names(teaching, billing) == {"teaching.Opened": Opened}
    assert names(billing) == {"billing.Opened": Opened}


def test_every_form_of_return_annotation_publishes() -> None:
    """One event, several, an iterator, a union, an async one, none."""

    class A(Event): ...

    class B(Event): ...

    class C(Event): ...

    class D(Event): ...

    class One(Command): ...

    class Two(Command): ...

    class Three(Command): ...

    class Four(Command): ...

    context = BoundedContext("forms")

    @context.command_handler
    def one(command: One) -> A | None: ...

    @context.command_handler
    def two(command: Two) -> Iterator[A | B]:
        yield A()

    @context.command_handler
    async def three(command: Three) -> list[C] | tuple[A, ...]:
        return []

    @context.command_handler
    async def four(command: Four) -> AsyncIterator[D]:
        yield D()

    assert set(names(context).values()) == {A, B, C, D}


async def test_a_base_class_publishes_its_subclasses() -> None:
    """A handler may say `-> CourseEvent` and give any of them."""
    context = BoundedContext("school")

    @context.command_handler
    def open_course(command: OpenCourse) -> CourseEvent:
        return Opened(course=command.course)

    async with Application(context, store="memory:") as app:
        receipt = await app.execute(OpenCourse(course=CourseId("a")))
        assert receipt.events == (Opened(course=CourseId("a")),)


def test_an_event_of_two_publishers_is_refused() -> None:
    """It could be stored under two names: the error says both, and the remedies."""
    contexts = [BoundedContext("teaching", events=[Opened]), BoundedContext("billing", events=[Opened])]
    with pytest.raises(ConfigurationError, match=r"Opened could belong.*teaching, billing.*events=.*stored_as="):
        event_types(contexts)


def test_two_classes_of_one_stored_name_are_refused() -> None:
    """Reading could not tell them apart."""

    def another() -> type[Event]:
        class Opened(Event): ...

        return Opened

    class Renamed(Event, stored_as="school.Opened"): ...

    for other in (another(), Renamed):
        with pytest.raises(ConfigurationError, match=r"both be stored as 'school\.Opened'.*stored_as="):
            event_types([BoundedContext("school", events=[Opened, other])])


def test_class_keywords_name_and_version_an_event() -> None:
    """`stored_as` replaces the name, `version` counts; neither is inherited."""

    class Second(Event, version=2): ...

    class Renamed(Event, stored_as="old.Name", version=3): ...

    class Below(Renamed): ...

    types = EventTypes(event_types([BoundedContext("x", events=[Second, Renamed, Below])]))
    assert {(found.name, found.version) for found in types} == {("x.Second", 2), ("old.Name", 3), ("x.Below", 1)}
    assert types.stored_as("old.Name") is types.of(Renamed)
    assert types.stored_as("x.Renamed") is None
    with pytest.raises(ConfigurationError, match=r"Opened is no event that this application knows.*events="):
        types.of(Opened)


# ── names that clash ─────────────────────────────────────────────────────────


def test_a_command_with_two_handlers_is_refused() -> None:
    """Both are named."""
    context = BoundedContext("school")

    @context.command_handler
    def one(command: OpenCourse) -> Opened: ...

    @context.command_handler
    def two(command: OpenCourse) -> Opened: ...

    with pytest.raises(ConfigurationError, match=r"OpenCourse has two handlers: .*one, .*two"):
        command_handlers([context], {}, event_types([context]))


def reading(context: BoundedContext) -> type[ReadModel]:
    """A read model called `Listed` that is not the one above, fed by the context."""

    class Listed(ReadModel):
        course: Key[CourseId]

    @context.projection
    def mine(row: Listed, event: Opened) -> Listed:
        return row

    return Listed


def test_two_read_models_of_one_name_are_refused() -> None:
    """They would share a table: two classes of one name in a context, or in two contexts of one name."""
    context = BoundedContext("school", events=[Opened])
    reading(context)
    reading(context)
    with pytest.raises(ConfigurationError, match=r"school\.Listed"):
        projections([context], event_types([context]))
    one, two = BoundedContext("school", events=[Opened]), BoundedContext("school")
    reading(one)
    reading(two)
    with pytest.raises(ConfigurationError, match=r"school\.Listed"):
        projections([one, two], event_types([one, two]))


def test_two_read_models_of_one_table_are_refused() -> None:
    """Table names are made from context and class, so two pairs may give one."""

    class CourseList(ReadModel):
        course: Key[CourseId]

    class List(ReadModel):
        course: Key[CourseId]

    one, two = BoundedContext("school", events=[Opened]), BoundedContext("school-course")

    @one.projection
    def first(row: CourseList, event: Opened) -> CourseList:
        return row

    @two.projection
    def second(row: List, event: Opened) -> List:
        return row

    with pytest.raises(ConfigurationError, match="school_course_list"):
        projections([one, two], event_types([one, two]))


async def test_two_subscribers_of_one_name_are_refused() -> None:
    """They would share a checkpoint: each would miss what the other was given."""
    context = BoundedContext("school", events=[Opened])
    for _ in range(2):

        async def notify(events: Sequence[tuple[Opened, EventContext]]) -> None: ...

        context.subscriber(notify)
    with pytest.raises(ConfigurationError, match=r"school\.notify"):
        await Application(context, store="memory:").open()


async def test_a_subscriber_called_like_a_read_model_is_refused() -> None:
    """Their progress is kept under one name."""
    context = BoundedContext("school", events=[Opened])
    reading(context)

    async def Listed(events: Sequence[tuple[Opened, EventContext]]) -> None: ...  # noqa: N802

    context.subscriber(Listed)
    with pytest.raises(ConfigurationError, match=r"school\.Listed"):
        await Application(context, store="memory:").open()


def test_names_of_messages_are_short_where_they_can_be() -> None:
    """The class name finds a message of one context, `context.Name` always; close names are told."""

    def another() -> type[Command]:
        class OpenCourse(Command): ...

        return OpenCourse

    other = another()
    types = MessageTypes("command", [("a", OpenCourse), ("b", other), ("b", CloseCourse)])
    assert types.names == {OpenCourse: "a.OpenCourse", other: "b.OpenCourse", CloseCourse: "CloseCourse"}
    assert types.find("a.OpenCourse") is OpenCourse
    assert types.find("CloseCourse") is types.find("b.CloseCourse") is CloseCourse
    with pytest.raises(UnknownMessage) as unknown:
        types.find("OpenCourse")
    assert unknown.value.close[0].endswith("OpenCourse")


class CloseCourse(Command):
    course: CourseId


# ── what the store still holds ───────────────────────────────────────────────


class Do(Command):
    course: CourseId


def publishing(*events: type[Event]) -> BoundedContext:
    """A context `school` that publishes these event classes, the first of them on command."""
    context = BoundedContext("school", events=events)

    @context.command_handler
    def do(command: Do) -> Any:
        return events[0](**{"course": command.course})  # noqa: PIE804 — which class it is, checkers cannot know

    return context


async def stored(url: str, *events: type[Event], times: int = 3) -> None:
    async with Application(publishing(*events), store=url) as app:
        for n in range(times):
            await app.execute(Do(course=CourseId(f"c{n}")))


def happened(**keywords: Any) -> type[Event]:
    """A class `Happened`, as it would be written with these class keywords."""

    class Happened(Event, **keywords):
        course: CourseId

    return Happened


async def test_an_event_class_that_was_removed_is_missed_when_the_store_opens(tmp_path: Path) -> None:
    """A fold would leave its events out silently: the error names event, first position and remedy."""
    url = f"sqlite:{tmp_path}/events.db"
    once_there = happened()
    await stored(url, Opened, once_there, times=1)
    await stored(url, once_there, Opened)
    with pytest.raises(UnreadableEvent) as unreadable:
        await Application(publishing(Opened), store=url).open()
    assert (unreadable.value.type, unreadable.value.position) == ("school.Happened", 2)
    assert 'stored_as="school.Happened"' in str(unreadable.value)


async def test_a_renamed_event_class_keeps_its_stored_name(tmp_path: Path) -> None:
    """`stored_as` is the remedy that the error names, and it works."""

    class Renamed(Event, stored_as="school.Happened"):
        course: CourseId

    class RenamedWithout(Event):
        course: CourseId

    url = f"sqlite:{tmp_path}/events.db"
    await stored(url, happened())
    with pytest.raises(UnreadableEvent):
        await Application(publishing(RenamedWithout), store=url).open()
    await stored(url, Renamed)


async def test_a_changed_version_is_missed_when_the_store_opens(tmp_path: Path) -> None:
    """Nothing turns a stored version into another one: in either direction the store is refused."""
    url = f"sqlite:{tmp_path}/events.db"
    await stored(url, happened())
    with pytest.raises(UnreadableEvent, match="position 1 .*version 1.*version 2 here") as unreadable:
        await Application(publishing(happened(version=2)), store=url).open()
    assert (unreadable.value.version, unreadable.value.position) == (1, 1)


async def test_events_of_other_contexts_are_none_of_our_business(tmp_path: Path) -> None:
    """A process with some of the contexts opens a store that holds events of the others."""
    url = f"sqlite:{tmp_path}/events.db"
    await stored(url, happened())
    other = BoundedContext("billing", events=[Closed])
    async with Application(other, store=url) as app:
        assert (await app.status()).head == 3


@pytest.mark.parametrize("changed", ["untagged", "other tag", "second", "gone"])
async def test_changed_tags_are_refused_when_the_store_opens(tmp_path: Path, changed: str) -> None:
    """A decision would miss the old events: both tag sets are named."""
    annotations: dict[str, dict[str, object]] = {
        "untagged": {"course": Untagged[CourseId]},
        "other tag": {"course": UserName},
        "second": {"course": CourseId, "more": CourseId},
        "gone": {"course": str},
    }
    namespace = {"__module__": __name__, "__annotations__": annotations[changed]}
    other: Any = MessageMeta("Changed", (Event,), namespace, stored_as="school.Happened")
    url = f"sqlite:{tmp_path}/events.db"
    await stored(url, happened())
    with pytest.raises(TagsChanged) as tags:
        await Application(BoundedContext("school", events=[other]), store=url).open()
    assert tags.value.type == "school.Happened"
    assert tags.value.stored == ("course",)
    assert tags.value.coded != ("course",)
    assert "diptych retag" in str(tags.value)


async def test_tags_of_a_type_without_events_may_change(tmp_path: Path) -> None:
    """Only what is stored is a fact."""

    def untagged() -> type[Event]:
        class Happened(Event):
            course: Untagged[CourseId]

        return Happened

    url = f"sqlite:{tmp_path}/events.db"
    await stored(url, happened(), times=0)
    await stored(url, untagged(), times=1)
    with pytest.raises(TagsChanged):
        await Application(publishing(happened()), store=url).open()


# ── where a model is read from ───────────────────────────────────────────────


class CountOf(Query[int]):
    course: CourseId


async def test_a_read_model_that_nothing_feeds_is_named() -> None:
    """A handler that reads it hears that no projection feeds it."""
    context = BoundedContext("school", events=[Opened])

    @context.query_handler
    async def count_of(query: CountOf, read: Reader) -> int:
        return await read.count(Listed)

    async with Application(context, store="memory:") as app:
        with pytest.raises(ConfigurationError, match="no projection of this application feeds Listed"):
            await app.query(CountOf(course=CourseId("a")))


async def test_a_module_that_does_not_exist_is_named() -> None:
    """A mistyped module is an error at start, and an import that fails inside a module is itself."""
    with pytest.raises(ConfigurationError, match=r"'school' lists the module 'tests\.missing_module'"):
        await Application(BoundedContext("school", modules=["tests.missing_module"]), store="memory:").open()


@pytest.mark.parametrize("name", ["", "a b", "a.b", "-", "a/b"])
def test_context_names_hold_no_separators(name: str) -> None:
    """A context's name is part of stored names, before a dot."""
    with pytest.raises(ConfigurationError, match="letters, digits, - and _ only"):
        BoundedContext(name)


def test_an_application_needs_a_context() -> None:
    """None at all is a mistake."""
    with pytest.raises(ConfigurationError, match="at least one BoundedContext"):
        Application()


class Renamed(Event):
    course: CourseId
    to: Annotated[str | None, Meta(max_length=9)] = None


class Rename(Command):
    course: CourseId
    to: Annotated[str | None, Meta(max_length=9)] = None


async def test_a_constraint_on_a_type_that_it_is_not_for_names_the_message() -> None:
    """Whether a command or an event has it, with how it is written."""
    context = BoundedContext("school")

    @context.command_handler
    def rename(command: Rename) -> None: ...

    remedy = r"Annotated\[str, Meta\(max_length=9\)\] \| None"
    with pytest.raises(ConfigurationError, match=f"Rename: .*`max_length`.*{remedy}"):
        await Application(context, store="memory:").open()
    with pytest.raises(ConfigurationError, match=r"Renamed: .*`max_length`"):
        await Application(BoundedContext("school", events=[Renamed]), store="memory:").open()


def test_models_name_events_too() -> None:
    """An event that only a decision model folds is known, in the context of its handler."""

    class Folded(Event):
        course: CourseId

    class Course(DecisionModel[CourseId]):
        count: int = 0

        def evolve(self, event: Folded) -> Course:
            return self

    context = BoundedContext("school")

    @context.command_handler
    def do(command: Do, course: Course) -> None: ...

    assert names(context) == {"school.Folded": Folded}
