"""Whether a fold has something for each of its events: a walk through its source, once per event class.

It claims only what is certain. A test that does not speak of the event's class may go either way, and then both ways
have to end without a `return`. So a `match` whose cases have guards, or look into fields, is taken to be total.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych.application.reached_code import Written, held_by

__all__ = ["unhandled"]


def unhandled(written: Written, parameter: str, events: Sequence[type]) -> list[type]:
    """The events for which the function surely falls off its end, and so gives None.

    Args:
        written: the fold.
        parameter: its parameter that is the event.
        events: the classes that it may be of, those themselves and none below them.
    """
    node = written.node
    if isinstance(node, ast.Lambda) or _is_beyond(node, parameter):
        return []
    where = {**vars(builtins), **written.function.__globals__, **held_by(written.function)}
    return [cls for cls in events if _Walk(parameter, cls, where).falls_through(node.body)]


def _is_beyond(node: ast.AST, parameter: str) -> bool:
    """Whether the function is a generator, or gives its parameter another value."""
    return any(
        isinstance(inner, ast.Yield | ast.YieldFrom)
        or (isinstance(inner, ast.Name) and inner.id == parameter and not isinstance(inner.ctx, ast.Load))
        for inner in ast.walk(node)
    )


class _Walk:
    """A walk through a function with an event of one class."""

    def __init__(self, parameter: str, cls: type, where: Mapping[str, Any]) -> None:
        self._parameter = parameter
        self._cls = cls
        self._where = where

    def falls_through(self, body: Iterable[ast.stmt]) -> bool:
        """Whether what stands behind these statements is surely come to."""
        return all(self._is_passed(statement) for statement in body)

    def _is_passed(self, statement: ast.stmt) -> bool:
        match statement:
            case ast.Expr() | ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Pass():
                return not _never_returns(statement)
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
                return True
            case ast.Assert(test=test):
                return self._truth(test) is True
            case ast.If(test=test, body=body, orelse=orelse):
                return self._is_branch_passed(test, body, orelse)
            case ast.Match(subject=ast.Name(id=self._parameter), cases=cases):
                return self._is_match_passed(cases)
            case ast.Match(cases=cases):
                return all(self.falls_through(case.body) for case in cases)
            case ast.For() | ast.While():
                return not any(isinstance(inner, ast.Return | ast.Raise) for inner in ast.walk(statement)) and not (
                    isinstance(statement, ast.While) and isinstance(statement.test, ast.Constant)
                )
            case _:  # return and raise; and what is not looked into: try, with
                return False

    def _is_branch_passed(self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]) -> bool:
        truth = self._truth(test)
        ways = [way for way, taken in ((body, truth is not False), (orelse, truth is not True)) if taken]
        return all(self.falls_through(way) for way in ways)

    def _is_match_passed(self, cases: Iterable[ast.match_case]) -> bool:
        for case in cases:
            matches = self._matches(case.pattern)
            if matches is False:
                continue
            if not self.falls_through(case.body):
                return False
            if matches is True and case.guard is None:
                return True
        return True

    def _matches(self, pattern: ast.pattern) -> bool | None:
        match pattern:
            case ast.MatchAs(pattern=None):
                return True
            case ast.MatchAs(pattern=ast.pattern() as inner):
                return self._matches(inner)
            case ast.MatchOr(patterns=patterns):
                return _either([self._matches(inner) for inner in patterns])
            case ast.MatchClass(cls=named, patterns=[], kwd_patterns=[]):
                return self._is_one_of(named)
            case ast.MatchClass(cls=named):
                return False if self._is_one_of(named) is False else None
            case ast.MatchValue() | ast.MatchSingleton() | ast.MatchSequence() | ast.MatchMapping() | _:
                return None

    def _truth(self, test: ast.expr) -> bool | None:
        match test:
            case ast.Constant(value=value):
                return bool(value)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._truth(operand)
                return None if inner is None else not inner
            case ast.BoolOp(op=ast.Or(), values=values):
                return _either([self._truth(value) for value in values])
            case ast.BoolOp(op=ast.And(), values=values):
                found = _either([None if inner is None else not inner for inner in map(self._truth, values)])
                return None if found is None else not found
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=self._parameter), named]):
                return self._is_one_of(named)
            case _:
                return None

    def _is_one_of(self, named: ast.expr) -> bool | None:
        """Whether the event is of a class, or of one of several; None where it cannot be told which those are."""
        match named:
            case ast.Tuple(elts=parts):
                return _either([self._is_one_of(part) for part in parts])
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return _either([self._is_one_of(left), self._is_one_of(right)])
            case _:
                found = self._meaning(named)
                return issubclass(self._cls, found) if isinstance(found, type) else None

    def _meaning(self, named: ast.expr) -> Any:
        match named:
            case ast.Name(id=name):
                return self._where.get(name)
            case ast.Attribute(value=value, attr=name):
                return getattr(self._meaning(value), name, None)
            case _:
                return None


def _either(found: Sequence[bool | None]) -> bool | None:
    if True in found:
        return True
    return None if None in found else False


def _never_returns(statement: ast.stmt) -> bool:
    """Whether it calls something that is known to raise: what the type checkers' exhaustiveness is written with."""
    return any(
        isinstance(inner, ast.Call) and ast.unparse(inner.func).rpartition(".")[2] in ("assert_never", "exit", "_exit")
        for inner in ast.walk(statement)
    )
