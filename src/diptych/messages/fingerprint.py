"""The fingerprint of a fold: what its rows depend on in the code.

It covers the schema of the rows, and the normalised source of the fold's functions and of what they reach by name in
the same distribution: functions, classes with their bases, what modules and closures hold, and constants (numbers,
text, dates, tuples, frozensets, frozen values). Comments, layout and docstrings do not count. A row built by another
fingerprint is not this fold's.

Not covered, so to be told by `version=`: other distributions, mutable globals, what is looked up by a computed name,
and what is read while folding.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import inspect
import operator
import sys
import textwrap
import types
from collections.abc import Callable, Iterable
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import msgspec

from diptych.errors import ConfigurationError

__all__ = ["fingerprint", "home", "lambda_node"]

_sources: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""What was read of functions and classes, once while they live: their files may be others' by now, and to look for a
class parses all of its module."""
REACHED_MAX = 1_000
"""Functions, classes and constants that one fold may reach."""
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, Decimal, date, time, timedelta, tzinfo, UUID)
_GETTERS = (operator.attrgetter, operator.itemgetter, operator.methodcaller)
"""Callables that say in their repr all that they do."""


def fingerprint(
    functions: Iterable[Callable[..., Any]], schema: object, version: int, values: Iterable[Any] = ()
) -> str:
    """32 hexadecimal digits (BLAKE2b) that change when the fold does.

    Args:
        functions: those of the fold, at least one.
        schema: of the rows; its repr counts.
        version: what the user says beside.
        values: types that the functions take without naming them: their methods and properties count, but no field.

    Raises:
        ConfigurationError: a function's source cannot be found, and `version` was not raised to stand for it.
    """
    hashed = hashlib.blake2b(f"{version}:{schema!r}".encode(), digest_size=16)
    reached = _Reached(version)
    homes = {reached.start(function) for function in functions}
    for value in values:
        if isinstance(value, type) and home(value) in homes:
            for method in _methods(value):
                reached.start(method)
    for text in sorted(reached.texts):
        hashed.update(text.encode())
    return hashed.hexdigest()


def _methods(cls: type) -> Iterable[types.FunctionType]:
    """The functions written in a class: methods, and what is behind properties."""
    for held in vars(cls).values():
        inner = held
        for name in ("fget", "__func__", "func"):  # property; static and class method; cached property
            inner = getattr(held, name, inner)
        if isinstance(inner, types.FunctionType) and not inner.__code__.co_filename.startswith("<"):
            yield inner


class _Reached:
    """Collects what a fold reaches.

    Attributes:
        texts: one for each function, class and constant.
    """

    def __init__(self, version: int) -> None:
        self.texts: set[str] = set()
        self._version = version
        self._seen: dict[int, object] = {}  # by id, and kept alive: an id is free again once its object is gone

    def start(self, function: Any) -> str:
        """Follow one of the fold's own functions. Gives the name of its home."""
        at = home(function)
        if isinstance(function, functools.partial):
            at = self.start(function.func)
            for name, value in [*enumerate(function.args), *function.keywords.items()]:
                self._follow(str(name), value, at)
        elif isinstance(function, _GETTERS):
            self.texts.add(repr(function))
        elif at in sys.stdlib_module_names:
            self.texts.add(str(function.__qualname__))
        elif isinstance(function, types.FunctionType | types.MethodType | type) or hasattr(function, "__wrapped__"):
            self._follow(function.__qualname__, function, at)
        elif self._version == 1:
            raise ConfigurationError(
                f"what {function!r} does cannot be told, so a change of it could not be noticed: make it a function, "
                "or say projection(version=2), and raise it with every change"
            )
        return at

    def _follow(self, name: str, found: Any, at: str) -> None:
        """Note what a name means, and what that reaches."""
        if (text := _constant(found)) is not None:
            self.texts.add(f"{name} = {text}")
            return
        if id(found) in self._seen:
            return
        self._seen[id(found)] = found
        if len(self._seen) > REACHED_MAX:
            raise ConfigurationError(f"a fold in {at} reaches more than {REACHED_MAX} functions and classes")
        if (wrapped := getattr(found, "__wrapped__", None)) is not None:
            self._follow(name, wrapped, at)
        if isinstance(found, types.MethodType):
            self._follow(name, found.__func__, at)
        elif isinstance(found, types.FunctionType | type) and home(found) == at:
            self.texts.add(self._source(found))
            for inner, value in _named_by_class(found) if isinstance(found, type) else _named_by(found, at):
                self._follow(inner, value, at)

    def _source(self, found: Any) -> str:
        source = _sources.get(found)
        if source is None:
            source = _sources[found] = self._read(found)
        return source

    def _read(self, found: Any) -> str:
        try:
            if isinstance(found, types.FunctionType) and found.__code__.co_filename == "<string>":
                raise OSError("made by exec: from 3.13 on, the source kept under that name may be of another text")
            if isinstance(found, types.FunctionType) and found.__name__ == "<lambda>":
                return ast.dump(lambda_node(found.__code__))
            source = inspect.getsource(found if isinstance(found, type) else found.__code__)
            return ast.dump(_normalised(ast.parse(textwrap.dedent(source).strip())))
        except (OSError, TypeError, SyntaxError) as error:
            if self._version > 1:
                return str(found.__qualname__)
            raise ConfigurationError(
                f"the source of {found.__qualname__} cannot be found, so a change of it could not be noticed: say "
                "projection(version=2), and raise it with every change"
            ) from error


def home(found: Any) -> str:
    """The distribution, roughly: the first part of the name of the module that something was written in."""
    found = getattr(found, "__func__", found)
    module = found.__globals__.get("__name__") if isinstance(found, types.FunctionType) else found.__module__
    return str(module).partition(".")[0]


# ── what is named ────────────────────────────────────────────────────────────


def _named_by_class(cls: type) -> Iterable[tuple[str, Any]]:
    yield from ((base.__qualname__, base) for base in cls.__bases__)
    yield from ((method.__qualname__, method) for method in _methods(cls))


def _named_by(function: types.FunctionType, at: str) -> Iterable[tuple[str, Any]]:
    """What a function's code names: globals, attributes of modules at home, defaults, and what it closes over."""
    for code in _codes(function.__code__):
        modules: list[types.ModuleType] = []
        for name in code.co_names:
            found = [function.__globals__[name]] if name in function.__globals__ else []
            found += [getattr(module, name) for module in modules if hasattr(module, name)]
            for value in found:
                if not isinstance(value, types.ModuleType):
                    yield name, value
                elif value.__name__.partition(".")[0] == at:
                    modules.append(value)
    yield from ((f"default {n}", value) for n, value in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _constant(value: Any) -> str | None:
    """A constant as text, the same in every process; None where it is something else."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}: {_constant(value.value)}"
    if isinstance(value, _CONSTANTS):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, msgspec.Struct) and value.__struct_config__.frozen:
        parts = [_constant(getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, tuple | frozenset):
        parts = [_constant(part) for part in value]
    elif isinstance(value, types.MappingProxyType):
        parts = [_constant(pair) for pair in value.items()]
    else:
        return None
    if None in parts:
        return None
    texts = [str(part) for part in parts]
    return f"{type(value).__qualname__} {texts if isinstance(value, tuple | msgspec.Struct) else sorted(texts)}"


# ── sources ──────────────────────────────────────────────────────────────────


def lambda_node(code: types.CodeType) -> ast.Lambda:
    """The expression of a lambda: the innermost one of its file that spans all that its code does.

    `inspect.getsource` gives whole lines, which may hold several lambdas, or only part of a statement.

    Raises:
        OSError: its source cannot be found.
    """
    lines, _ = inspect.findsource(code)
    lambdas = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.Lambda)]
    spans = [span for span in code.co_positions() if None not in span and span[2] != span[3]]
    if spans:
        fitting = [node for node in lambdas if all(_is_within(span, node) for span in spans)]
    else:  # Python 3.12 does not say where a constant is returned
        fitting = [node for node in lambdas if node.lineno == code.co_firstlineno and _compiles_to(node, code)]
    if not fitting:
        raise OSError("no such lambda")
    return max(fitting, key=lambda node: (node.lineno, node.col_offset))


def _is_within(span: tuple[int | None, ...], node: ast.Lambda) -> bool:
    line, end_line, column, end_column = span
    begins, ends = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return begins <= (line or 0, column or 0) and (end_line or 0, end_column or 0) <= ends


def _compiles_to(node: ast.Lambda, code: types.CodeType) -> bool:
    (made,) = [held for held in compile(ast.Expression(node), "", "eval").co_consts if isinstance(held, types.CodeType)]
    return _facts(made) == _facts(code)


def _facts(code: types.CodeType) -> tuple[object, ...]:
    return code.co_code, repr(code.co_consts), code.co_varnames, code.co_names


def _normalised(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
