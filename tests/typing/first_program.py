"""The first program, as README tells it: from a command to a query."""

from diptych import (
    BoundedContext,
    Command,
    DecisionModel,
    Event,
    Identity,
    Key,
    Query,
    ReadModel,
    Rejected,
    SyncApplication,
)

school = BoundedContext("school")


class CourseId(Identity): ...  # an event that carries one is tagged "course:<value>"


class Enrol(Command):  # what is wanted
    course: CourseId


class Enrolled(Event):  # what happened, kept for good
    course: CourseId


class Course(DecisionModel[CourseId]):  # what the decision must know: a fold of this course's events
    taken: int = 0

    def evolve(self, event: Enrolled) -> "Course":
        return Course(taken=self.taken + 1)


@school.command_handler
def enrol(command: Enrol, course: Course) -> Enrolled:  # decides; one that lost a race decides again
    if course.taken == 30:
        raise Rejected("course-full")
    return Enrolled(course=command.course)


class Seats(ReadModel):  # what is shown: one row per course
    course: Key[CourseId]
    taken: int = 0


@school.projection
def seats(row: Seats, event: Enrolled) -> Seats:  # the first event of a course meets a blank row
    return Seats(course=row.course, taken=row.taken + 1)


class SeatsOf(Query[Seats | None]):  # its fields are the key of Seats: needs no handler
    course: CourseId


if __name__ == "__main__":
    with SyncApplication(school) as app:
        receipt = app.execute(Enrol(course=CourseId("python")))
        print(app.query(SeatsOf(course=CourseId("python")), after=receipt))
