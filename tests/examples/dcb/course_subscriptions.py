"""Course subscriptions: a decision on a course, a student, and the two together (dcb.events/examples)."""

from __future__ import annotations

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Rejected, replace

courses = BoundedContext("courses")
COURSES_OF_STUDENT_MAX = 5


class CourseId(Identity): ...


class StudentId(Identity): ...


class DefineCourse(Command):
    course_id: CourseId
    capacity: int


class ChangeCourseCapacity(Command):
    course_id: CourseId
    new_capacity: int


class SubscribeStudentToCourse(Command):
    student_id: StudentId
    course_id: CourseId


class CourseDefined(Event):
    course_id: CourseId
    capacity: int


class CourseCapacityChanged(Event):
    course_id: CourseId
    new_capacity: int


class StudentSubscribedToCourse(Event):
    student_id: StudentId
    course_id: CourseId


class Course(DecisionModel[CourseId]):
    defined: bool = False
    capacity: int = 0
    taken: int = 0

    def evolve(self, event: CourseDefined | CourseCapacityChanged | StudentSubscribedToCourse) -> Course:
        match event:
            case CourseDefined():
                return Course(defined=True, capacity=event.capacity)
            case CourseCapacityChanged():
                return replace(self, capacity=event.new_capacity)
            case StudentSubscribedToCourse():
                return replace(self, taken=self.taken + 1)


class Student(DecisionModel[StudentId]):
    courses: int = 0

    def evolve(self, event: StudentSubscribedToCourse) -> Student:
        return Student(courses=self.courses + 1)


class Subscription(DecisionModel[CourseId, StudentId]):
    exists: bool = False

    def evolve(self, event: StudentSubscribedToCourse) -> Subscription:
        return Subscription(exists=True)


@courses.command_handler
def define(command: DefineCourse, course: Course) -> CourseDefined:
    if course.defined:
        raise Rejected("course-exists", course=command.course_id)
    return CourseDefined(course_id=command.course_id, capacity=command.capacity)


@courses.command_handler
def change_capacity(command: ChangeCourseCapacity, course: Course) -> CourseCapacityChanged:
    if not course.defined:
        raise Rejected("course-unknown", course=command.course_id)
    return CourseCapacityChanged(course_id=command.course_id, new_capacity=command.new_capacity)


@courses.command_handler
def subscribe(
    command: SubscribeStudentToCourse, course: Course, student: Student, subscription: Subscription
) -> StudentSubscribedToCourse:
    if not course.defined:
        raise Rejected("course-unknown", course=command.course_id)
    if course.taken >= course.capacity:
        raise Rejected("course-full", course=command.course_id)
    if subscription.exists:
        raise Rejected("already-subscribed")
    if student.courses >= COURSES_OF_STUDENT_MAX:
        raise Rejected("too-many-courses")
    return StudentSubscribedToCourse(student_id=command.student_id, course_id=command.course_id)
