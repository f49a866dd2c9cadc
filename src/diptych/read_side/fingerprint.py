"""The fingerprint of a fold: what its rows depend on in the code.

It covers the schema of the rows and the normalised source of the fold's functions and of what they reach in the same
distribution. Comments, layout and docstrings do not count. A row built by another fingerprint is not this fold's.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterable
from typing import Any

from diptych.errors import ConfigurationError

__all__ = ["fingerprint"]

REACHED_MAX = 1_000
"""Functions and classes that one fold may reach."""


def fingerprint(functions: Iterable[Callable[..., Any]], schema: object, version: int) -> str:
    """32 hexadecimal digits (BLAKE2b) that change when the fold does.

    Raises:
        ConfigurationError: a function's source cannot be found, and `version` was not raised to stand for it.
    """
    hashed = hashlib.blake2b(f"{version}:{schema!r}".encode(), digest_size=16)
    seen: dict[object, str] = {}
    for function in functions:
        _reach(function, _home(function), seen, version)
    for source in sorted(seen.values()):
        hashed.update(source.encode())
    return hashed.hexdigest()


def _home(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]


def _reach(found: Any, home: str, seen: dict[object, str], version: int) -> None:
    """Note the source of a function or class, and of what it names in the same distribution."""
    found = inspect.unwrap(found) if callable(found) else found
    if id(found) in seen or not _is_ours(found, home):
        return
    if len(seen) >= REACHED_MAX:
        raise ConfigurationError(f"a fold in {home} reaches more than {REACHED_MAX} functions and classes")
    seen[id(found)] = ""  # recursion ends here
    seen[id(found)] = _source(found, version)
    for function in _functions(found):
        for named in _names(function):
            _reach(named, home, seen, version)


def _is_ours(found: Any, home: str) -> bool:
    return isinstance(found, type | types.FunctionType | types.MethodType) and _home(found) == home


def _functions(found: Any) -> Iterable[types.FunctionType]:
    if isinstance(found, types.MethodType):
        found = found.__func__
    if isinstance(found, types.FunctionType):
        return (found,)
    return tuple(held for held in vars(found).values() if isinstance(held, types.FunctionType))


def _names(function: types.FunctionType) -> Iterable[Any]:
    """The objects that a function's code names: globals, attributes of modules aside, and what it closes over."""
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__[name]
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _source(found: Any, version: int) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(found)).strip())
    except (OSError, TypeError, SyntaxError, IndentationError) as error:
        if isinstance(error, SyntaxError):  # a lambda in the middle of a call: its code says what it does
            code = found.__code__
            return f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}"
        if version > 1:
            return getattr(found, "__qualname__", "")
        raise ConfigurationError(
            f"the source of {getattr(found, '__qualname__', found)} cannot be found, so a change of it could not be "
            "noticed: say projection(version=2), and raise it with every change"
        ) from error
    return ast.dump(_normalised(tree))


def _normalised(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
