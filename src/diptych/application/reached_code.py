"""What the code of a fold or decider names, read from its source and never run.

From a function on, every name and attribute is resolved to what it means at run time, where that is certain: globals,
closures, imports, attributes of modules and classes, methods of parameters by their annotations. Functions of the same
distribution that are found so are read in turn. What is looked up by a computed name, or handed over as a value, is not
seen: nothing is claimed of it.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

from diptych.errors import ConfigurationError
from diptych.messages.annotations import members, parameter_types
from diptych.messages.fingerprint import home, lambda_node

__all__ = ["Named", "Place", "Sources", "Written", "held_by", "place_of", "reached"]

FUNCTIONS_READ_MAX = 1_000
"""Functions that are read of what one fold or decider reaches."""
WRAPPERS_MAX = 20
"""Wrappers, one around the other, that are looked behind to find a function."""

Node: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Place(NamedTuple):
    """A line of a file; 0 where the file, or the line, is not known."""

    file: str
    line: int


class Written(NamedTuple):
    """A function as it is written.

    Attributes:
        function: a plain one, without wrappers.
        owner: the class that it was reached through, as a method; None for others.
    """

    function: Any  # to checkers a FunctionType in a field is a method
    node: Node
    file: str
    owner: type | None


class Named(NamedTuple):
    """One place where code names something.

    Attributes:
        target: what that is at run time.
        text: as it is written.
        is_called: whether it is called there.
    """

    target: Any
    text: str
    is_called: bool
    written: Written
    line: int


class _Instance(NamedTuple):
    """Some instance of a class: all that is known of a value by its annotation."""

    cls: type


class Sources:
    """Source files, each parsed once."""

    def __init__(self) -> None:
        self._trees: dict[str, ast.Module] = {}

    def written(self, function: Any, owner: type | None = None) -> Written | None:
        """A function as it is written; None where it is no function of Python, or its source cannot be found."""
        plain = plain_function(function)
        if plain is None:
            return None
        code = plain.__code__
        try:
            node = lambda_node(code) if code.co_name == "<lambda>" else self._node(code)
        except (OSError, SyntaxError, TypeError, IndexError):
            return None
        return None if node is None else Written(plain, node, code.co_filename, owner)

    def _node(self, code: types.CodeType) -> Node | None:
        tree = self._trees.get(code.co_filename)
        if tree is None:
            lines, _ = inspect.findsource(code)
            tree = self._trees[code.co_filename] = ast.parse("".join(lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
        return None


def plain_function(function: Any) -> types.FunctionType | None:
    """The function behind methods, properties, partials and wrappers; None where there is none written in Python."""
    for _ in range(WRAPPERS_MAX):
        behind = (getattr(function, name, None) for name in ("__wrapped__", "__func__", "fget", "func"))
        following = next((found for found in behind if found is not None), None)
        if following is None:
            return function if isinstance(function, types.FunctionType) else None
        function = following
    return None


def place_of(declared: Any) -> Place:
    """Where a class or function is written, as far as that can be told."""
    plain = plain_function(declared) if not isinstance(declared, type) else None
    if plain is not None:
        return Place(plain.__code__.co_filename, plain.__code__.co_firstlineno)
    try:
        file = inspect.getsourcefile(declared) or ""
        return Place(file, inspect.findsource(declared)[1] + 1)
    except (OSError, TypeError):
        return Place(str(getattr(declared, "__module__", "")), 0)


def reached(function: Callable[..., Any], sources: Sources, owner: type | None = None) -> Iterator[Named]:
    """All that a function names, and what it reaches in the same distribution.

    Args:
        function: the fold or decider.
        sources: where it is read.
        owner: the class whose method it is.

    Raises:
        ConfigurationError: it reaches more than `FUNCTIONS_READ_MAX` functions.
    """
    first = sources.written(function, owner)
    waiting = [] if first is None else [first]
    seen: set[tuple[types.CodeType, type | None]] = set()
    while waiting:
        written = waiting.pop()
        key = (written.function.__code__, written.owner)
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > FUNCTIONS_READ_MAX:
            raise ConfigurationError(f"{function.__qualname__} reaches more than {FUNCTIONS_READ_MAX} functions")
        at = home(written.function)
        for named, through in _Reader(written).named():
            yield named
            waiting += [
                found
                for inner, cls in _behind(named, through)
                if home(inner) == at and (found := sources.written(inner, cls)) is not None
            ]


def _behind(named: Named, through: type | None) -> Iterable[tuple[types.FunctionType, type | None]]:
    """The functions that run where this is named."""
    if isinstance(named.target, type):
        made = (inspect.getattr_static(named.target, name, None) for name in ("__init__", "__post_init__"))
        found = [plain_function(inner) for inner in made] if named.is_called else []
        return [(inner, named.target) for inner in found if inner is not None]
    inner = plain_function(named.target) if callable(named.target) or isinstance(named.target, property) else None
    return [] if inner is None else [(inner, through)]


class _Reader:
    """Reads one function: what each of its names and attributes means."""

    def __init__(self, written: Written) -> None:
        self._written = written
        function: types.FunctionType = written.function
        self._globals = function.__globals__
        self._held = held_by(function)
        self._known: dict[str, tuple[Any, ...]] = {
            name: tuple(_Instance(member) for member in found) for name, found in _annotated(written).items()
        }
        self._hidden = _locals(written.node)

    def named(self) -> Iterator[tuple[Named, type | None]]:
        """Each name and chain of attributes, with the class that it was found through."""
        for node in self._body():
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._known.update(_imported(node))
        called = {id(node.func) for node in self._body() if isinstance(node, ast.Call)}
        inner = {id(node.value) for node in self._body() if isinstance(node, ast.Attribute)}
        for node in self._body():
            if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            for target, through in self._meaning(node):
                if isinstance(target, types.ModuleType) and id(node) in inner:
                    continue  # named for the attribute alone
                if not isinstance(target, _Instance):
                    line = self._line(node)
                    yield Named(target, ast.unparse(node), id(node) in called, self._written, line), through

    def _body(self) -> Iterator[ast.AST]:
        """What runs where the function is called: not its decorators, defaults or annotations."""
        node = self._written.node
        waiting: list[ast.AST] = list(reversed(node.body if isinstance(node.body, list) else [node.body]))
        while waiting:
            current = waiting.pop()
            yield current
            left_out: list[ast.AST | None] = [current.annotation] if isinstance(current, ast.AnnAssign) else []
            if isinstance(current, ast.FunctionDef | ast.AsyncFunctionDef):
                left_out = [current.args, current.returns]
            waiting += [child for child in reversed(list(ast.iter_child_nodes(current))) if child not in left_out]

    def _line(self, node: ast.AST) -> int:
        return int(getattr(node, "lineno", self._written.node.lineno))

    def _meaning(self, node: ast.expr) -> list[tuple[Any, type | None]]:
        match node:
            case ast.Name(id=name):
                return [(found, None) for found in self._looked_up(name)]
            case ast.Attribute(value=value, attr=name):
                return [found for base, _ in self._meaning(value) for found in _attribute(base, name)]
            case ast.Call(func=func):
                return [(_Instance(made), None) for made, _ in self._meaning(func) if isinstance(made, type)]
            case _:
                return []

    def _looked_up(self, name: str) -> tuple[Any, ...]:
        if name in self._known:
            return self._known[name]
        if name in self._hidden:
            return ()
        for where in (self._held, self._globals, vars(builtins)):
            if name in where:
                return (where[name],)
        return ()


def _attribute(base: Any, name: str) -> list[tuple[Any, type | None]]:
    """What an attribute is, with the class that it was found through; nothing where it cannot be told."""
    if isinstance(base, _Instance):
        found = inspect.getattr_static(base.cls, name, None)
        is_code = isinstance(
            found, types.FunctionType | property | classmethod | staticmethod | functools.cached_property
        )
        return [(found, base.cls)] if is_code else []
    if isinstance(base, types.ModuleType | type):
        try:
            return [(getattr(base, name), base if isinstance(base, type) else None)]
        except AttributeError:
            return []
    if type(base).__module__ == "builtins":
        return []
    found = inspect.getattr_static(type(base), name, None)
    return [(getattr(base, name), None)] if isinstance(found, types.MethodDescriptorType | types.FunctionType) else []


def held_by(function: types.FunctionType) -> Mapping[str, Any]:
    """What a function closes over, by name."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _annotated(written: Written) -> dict[str, tuple[type, ...]]:
    """The classes of a function's parameters, by name; of a method's first one, its own class."""
    function, owner = written.function, written.owner
    try:
        scope = getattr(getattr(owner, "__options__", None), "scope", {})
        own = {} if owner is None else {owner.__name__: owner}
        found = parameter_types(function, {**scope, **own}, function.__qualname__)
    except ConfigurationError:
        found = {}
    known = {
        name: tuple(member for member in members(annotation) if isinstance(member, type))
        for name, annotation in found.items()
        if name != "return"
    }
    first = next(iter(inspect.signature(function).parameters), None)
    if owner is not None and first is not None and first not in known:
        known[first] = (owner,)
    return known


def _locals(node: Node) -> frozenset[str]:
    """Names that are parameters, or assigned to, in a function or inside of it."""
    found: set[str] = set()
    for inner in ast.walk(node):
        match inner:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                if inner is not node:
                    found.add(name)
            case _:
                continue
    return frozenset(found)


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, tuple[Any, ...]]:
    """What an import inside of a function binds."""
    found: dict[str, tuple[Any, ...]] = {}
    try:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = import_module(alias.name)
                top = import_module(alias.name.partition(".")[0])
                found[alias.asname or alias.name.partition(".")[0]] = (module if alias.asname else top,)
        elif node.module and not node.level:
            module = import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name):
                    found[alias.asname or alias.name] = (getattr(module, alias.name),)
    except ImportError:
        return {}
    return found
