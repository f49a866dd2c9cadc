"""A small domain for tests: courses with a capacity, students with a limit, and a count of everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    DecisionModel,
    Event,
    Identity,
    Indexed,
    Key,
    Query,
    ReadModel,
    Rejected,
    replace,
)


class CourseId(Identity): ...


class StudentId(Identity): ...


class OpenCourse(Command):
    course: CourseId
    capacity: int


class Enrol(Command):
    course: CourseId
    student: StudentId


class EnrolMany(Command):
    courses: tuple[CourseId, ...]
    student: StudentId


class Audit(Command):
    """Decides on a service, asynchronously."""

    course: CourseId


class Touch(Command):
    """Gives no event."""

    course: CourseId


class CourseOpened(Event):
    course: CourseId
    capacity: int


class Enrolled(Event):
    course: CourseId
    student: StudentId


class EnrolmentRefused(Event):
    course: CourseId
    student: StudentId


class Audited(Event):
    course: CourseId
    taken: int


class Course(DecisionModel[CourseId]):
    course: CourseId
    capacity: int = 0
    taken: int = 0

    def evolve(self, event: CourseOpened | Enrolled) -> Course:
        if isinstance(event, CourseOpened):
            return replace(self, capacity=event.capacity)
        return replace(self, taken=self.taken + 1)


class Student(DecisionModel[StudentId]):
    courses: int = 0

    def evolve(self, event: Enrolled) -> Student:
        return replace(self, courses=self.courses + 1)


class Seat(DecisionModel[CourseId, StudentId]):
    taken: bool = False

    def evolve(self, event: Enrolled) -> Seat:
        return replace(self, taken=True)


class Auditor(Protocol):
    async def look(self, taken: int) -> None: ...


STUDENT_COURSES_MAX = 5


def school() -> BoundedContext:
    """The write side alone, fresh for each test."""
    context = BoundedContext("school", events=[EnrolmentRefused])

    @context.command_handler
    def open_course(command: OpenCourse, course: Course) -> CourseOpened | None:
        return None if course.capacity else CourseOpened(course=command.course, capacity=command.capacity)

    @context.command_handler
    def enrol(command: Enrol, course: Course, student: Student, seat: Seat) -> Enrolled:
        if seat.taken:
            raise Rejected("already-enrolled")
        if student.courses >= STUDENT_COURSES_MAX:
            raise Rejected("too-many-courses", courses=student.courses)
        if course.taken >= course.capacity:
            refused = EnrolmentRefused(course=command.course, student=command.student)
            raise Rejected("course-full", record=refused, capacity=course.capacity)
        return Enrolled(course=command.course, student=command.student)

    @context.command_handler
    def enrol_many(command: EnrolMany, courses: Mapping[CourseId, Course]) -> Iterator[Enrolled]:
        for course in command.courses:
            if courses[course].taken >= courses[course].capacity:
                raise Rejected("course-full", course=course)
            yield Enrolled(course=course, student=command.student)

    @context.command_handler
    async def audit(command: Audit, course: Course, auditor: Auditor, context: CommandContext) -> Audited:
        await auditor.look(course.taken)
        return Audited(course=command.course, taken=course.taken)

    @context.command_handler
    def touch(command: Touch, course: Course) -> None:
        return None

    return context


class Seats(ReadModel):
    course: Key[CourseId]
    taken: Indexed[int] = 0


class SeatsOf(Query[Seats | None]):
    course: CourseId


class CoursesTaken(Query[list[Seats]]):
    taken: int


def with_seats(context: BoundedContext) -> BoundedContext:
    """The same with one read model."""

    @context.projection
    def seats(row: Seats, event: Enrolled) -> Seats:
        return replace(row, taken=row.taken + 1)

    return context
