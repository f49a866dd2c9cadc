"""Decision models: their scope, their initial state, their events, and what is told where one does not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import pytest

from diptych import BoundedContext, ConfigurationError, DecisionModel, Event, EventContext, Identity, replace
from diptych.application.registration import event_types
from diptych.event_store.event_query import QueryItem
from diptych.write_side.decision_model import ModelFold

T = TypeVar("T")


class CourseId(Identity): ...


class StudentId(Identity): ...


class Opened(Event):
    course: CourseId


class Enrolled(Event):
    course: CourseId
    student: StudentId


class Unknown(Event): ...


TYPES = event_types([BoundedContext("school", events=[Opened, Enrolled])])
CONTEXT = EventContext(position=7, event_id="e", recorded_at=datetime(2026, 1, 1, tzinfo=UTC))


class Course(DecisionModel[CourseId]):
    course: CourseId
    taken: int = 0
    last: int = 0

    def evolve(self, event: Opened | Enrolled, context: EventContext) -> Course:
        return replace(self, taken=self.taken + 1, last=context.position)


class Inherited(Course):
    extra: str = "x"


def test_a_model_is_scoped_by_its_identities() -> None:
    """Its query item is its event types with the tags of the entity, and the entity fills the field of its type."""
    fold = ModelFold(Course, TYPES)
    assert fold.identities == (CourseId,)
    assert fold.initial(("python",)) == Course(course=CourseId("python"))
    (item,) = fold.query(("python",)).items
    assert item == QueryItem(frozenset({"school.Opened", "school.Enrolled"}), frozenset({"course:python"}))


def test_a_model_that_asks_gets_the_context() -> None:
    """`evolve` may take the `EventContext` as well."""
    fold = ModelFold(Course, TYPES)
    assert fold.takes_context
    state = fold.evolve(fold.initial(("a",)), Opened(course=CourseId("a")), CONTEXT)
    assert state == Course(course=CourseId("a"), taken=1, last=7)


def test_a_model_inherits_scope_and_fold() -> None:
    """A subclass is scoped like its base; its evolve has to give the subclass, as `replace` does."""
    fold = ModelFold(Inherited, TYPES)
    state = fold.evolve(fold.initial(("a",)), Opened(course=CourseId("a")), CONTEXT)
    assert state == Inherited(course=CourseId("a"), taken=1, last=7)


@pytest.mark.parametrize("given", [None, 1, Course(course=CourseId("b"))])
def test_a_fold_that_gives_something_else_is_named(given: object) -> None:
    """A forgotten return is no state."""

    class Forgetful(DecisionModel[CourseId]):
        def evolve(self, event: Opened) -> Any:
            return given

    fold = ModelFold(Forgetful, TYPES)
    with pytest.raises(TypeError, match=r"Forgetful\.evolve must return a Forgetful, not .*Opened"):
        fold.evolve(fold.initial(("a",)), Opened(course=CourseId("a")), None)


def test_a_model_may_be_generic_in_what_it_holds() -> None:
    """Type parameters of its own do not stand in the way of its scope."""

    class Holding(DecisionModel[CourseId], Generic[T]):
        held: T | None = None

        def evolve(self, event: Opened) -> Holding[T]:
            return self

    assert ModelFold(Holding, TYPES).identities == (CourseId,)


class NoEvolve(DecisionModel[CourseId]): ...


class NoEvent(DecisionModel[CourseId]):
    def evolve(self) -> NoEvent:
        return self


class TooMuch(DecisionModel[CourseId]):
    def evolve(self, event: Opened, context: EventContext, more: int) -> TooMuch:
        return self


class Unannotated(DecisionModel[CourseId]):
    def evolve(self, event):  # type: ignore[no-untyped-def]
        return self


class NotAContext(DecisionModel[CourseId]):
    def evolve(self, event: Opened, when: datetime) -> NotAContext:
        return self


class NotAnEvent(DecisionModel[CourseId]):
    def evolve(self, event: Opened | int) -> NotAnEvent:
        return self


class UnknownEvent(DecisionModel[CourseId]):
    def evolve(self, event: Unknown) -> UnknownEvent:
        return self


class ScopedByStr(DecisionModel[str]):
    def evolve(self, event: Opened) -> ScopedByStr:
        return self


class Required(DecisionModel[CourseId]):
    capacity: int

    def evolve(self, event: Opened) -> Required:
        return self


class OtherIdentity(DecisionModel[CourseId]):
    student: StudentId

    def evolve(self, event: Opened) -> OtherIdentity:
        return self


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (NoEvolve, r"NoEvolve needs `def evolve\(self, event: SomeEvent\) -> NoEvolve`"),
        (NoEvent, r"NoEvent\.evolve takes the event and, if it asks, the EventContext"),
        (TooMuch, r"TooMuch\.evolve takes the event and, if it asks, the EventContext"),
        (Unannotated, r"Unannotated\.evolve: annotate `event` with the events that it folds"),
        (NotAContext, r"NotAContext\.evolve: `when` can only be an EventContext"),
        (NotAnEvent, r"NotAnEvent\.evolve: <class 'int'> is no Event"),
        (UnknownEvent, r"Unknown is no event that this application knows"),
        (ScopedByStr, r"ScopedByStr is scoped by <class 'str'>, which is no Identity"),
        (Required, r"Required\.capacity needs a default"),
        (OtherIdentity, r"OtherIdentity\.student needs a default .* one of the model's identities"),
    ],
)
def test_what_does_not_fit_is_told_with_its_remedy(model: type, text: str) -> None:
    """At start-up, naming the model and what to do."""
    with pytest.raises(ConfigurationError, match=text):
        ModelFold(model, TYPES)
