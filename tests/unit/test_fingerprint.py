"""The fingerprint of a fold (rule 23): it changes when the fold does, and only then.

Covered: the bodies of the fold's functions and of what they reach by name in the same distribution, through modules,
closures, classes, their methods and properties, and base classes; the constants they name; the schema; `version=`.
Not covered: other distributions, data read at run time, mutable globals, and what is reached by strings (`getattr`).
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import operator
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

import pytest

from diptych import BoundedContext, ConfigurationError, Event, Identity, Indexed, Key, ReadModel, Value, replace
from diptych.application.registration import event_types, projections
from diptych.messages import fingerprint as fingerprint_module
from diptych.messages.fingerprint import fingerprint
from diptych.messages.message import MessageMeta

HEAD = """
from decimal import Decimal
import {name}_sub as sub
from {name}_sub import imported
LIMIT = 5
PRICE = Decimal("1.50")
NAMES = ("a", "b")
KINDS = frozenset({{"x", "y", "z"}})
NESTED = (("a", 1), ("b", (2, 3)))
CACHE = {{}}
class Base:
    def inherited(self): return 1
class Row(Base):
    size = 3
    def method(self): return helper(1)
    @property
    def total(self): return far(1)
    @staticmethod
    def made(): return made(1)
def helper(x): return x + 1
def far(x): return x + 2
def made(x): return x + 3
def deep(x): return deeper(x)
def deeper(x): return x * LIMIT
def recursive(x): return recursive(x - 1) if x else 0
def unrelated(x): return x
"""
SUB = """
DEPTH = 3
def called(x): return nested(x)
def nested(x): return x - DEPTH
def imported(x): return x
def unrelated(x): return x
"""
FOLD = """
def fold(row, event):
    {body}
"""
numbers = count()


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Callable[[str, str, str], Callable[..., Any]]]:
    """Makes a module with a fold, and one beside it; gives the fold."""
    made: list[str] = []
    name = f"fingerprinted_{next(numbers)}"

    def load(module: str, source: str) -> ModuleType:
        path = tmp_path / f"{module}_{len(made)}.py"  # a path of its own: linecache remembers by path
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = sys.modules[module] = importlib.util.module_from_spec(spec)
        made.append(module)
        spec.loader.exec_module(loaded)
        return loaded

    def make(body: str, old: str = "", new: str = "") -> Callable[..., Any]:
        source = HEAD.format(name=name) + FOLD.format(body=body)
        assert not old or old in source + SUB
        sub = load(f"{name}_sub", SUB.replace(old, new) if old else SUB)
        # The two are one distribution: what they share is the first part of their name.
        for function in vars(sub).values():
            if callable(function):
                function.__module__ = f"{name}.sub"
        sub.__name__ = f"{name}.sub"
        fold: Callable[..., Any] = load(name, source.replace(old, new) if old else source).fold
        return fold

    yield make
    for module in made:
        sys.modules.pop(module, None)


def of(function: Any) -> str:
    return fingerprint([function], "schema", 1)


BODIES = {
    "plain": "return row",
    "helper": "return helper(1)",
    "deep": "return deep(1)",
    "class": "return Row().method()",
    "property": "return Row().total",
    "static": "return Row.made()",
    "inherited": "return Row().inherited()",
    "module": "return sub.called(1)",
    "imported": "return imported(1)",
    "constant": "return LIMIT",
    "decimal": "return PRICE",
    "tuple": "return NAMES",
    "set": "return KINDS",
    "nested": "return NESTED",
    "module constant": "return sub.DEPTH",
    "inner": "return [helper(n) for n in row]",
    "lambda": "return sorted(row, key=lambda one: far(one))",
    "recursive": "return recursive(3)",
    "mutable": "return CACHE",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("def helper(x): return x + 1", "def helper(x):\n    # why\n    return (x\n            + 1)"),
        ("def helper(x): return x + 1", 'def helper(x):\n    """Doc."""\n    return x + 1'),
        ("def unrelated(x): return x", "def unrelated(x): return x * 100"),
        ("CACHE = {}", "CACHE = {'a': 1}"),
    ],
    ids=["same", "comment and layout", "docstring", "other function", "mutable global"],
)
def test_it_stays_where_the_fold_stays(modules: Any, body: str, old: str, new: str) -> None:
    """Comments, layout, docstrings and other functions do not count."""
    assert of(modules(body)) == of(modules(body, old, new))


@pytest.mark.parametrize(
    ("body", "old", "new"),
    [
        ("plain", "return row", "return None"),
        ("helper", "return x + 1", "return x + 9"),
        ("deep", "return x * LIMIT", "return x * LIMIT * 2"),
        ("deep", "LIMIT = 5", "LIMIT = 6"),
        ("class", "return helper(1)", "return helper(2)"),
        ("class", "return x + 1", "return x + 9"),
        ("class", "size = 3", "size = 4"),
        ("property", "return x + 2", "return x + 9"),
        ("static", "return x + 3", "return x + 9"),
        ("inherited", "def inherited(self): return 1", "def inherited(self): return 2"),
        ("module", "return nested(x)", "return nested(x) + 1"),
        ("module", "return x - DEPTH", "return x - DEPTH - 1"),
        ("module", "DEPTH = 3", "DEPTH = 4"),
        ("imported", "def imported(x): return x", "def imported(x): return x + 1"),
        ("constant", "LIMIT = 5", "LIMIT = 6"),
        ("constant", "LIMIT = 5", "LIMIT = 5.0"),
        ("decimal", '"1.50"', '"1.5"'),
        ("tuple", '("a", "b")', '("b", "a")'),
        ("set", '"z"', '"w"'),
        ("nested", "(2, 3)", "(2, 4)"),
        ("module constant", "DEPTH = 3", "DEPTH = 4"),
        ("inner", "return x + 1", "return x + 9"),
        ("lambda", "far(one)", "far(one + 1)"),
        ("lambda", "return x + 2", "return x + 9"),
        ("recursive", "recursive(x - 1)", "recursive(x - 2)"),
    ],
)
def test_it_changes_with_whatever_the_fold_reaches(modules: Any, body: str, old: str, new: str) -> None:
    """The body, helpers, methods, properties, bases, modules of the same distribution, and constants."""
    assert of(modules(BODIES[body])) != of(modules(BODIES[body], old, new))


def test_it_is_of_the_code_that_runs_though_its_file_is_another_one_by_now(modules: Any) -> None:
    """A deployment may replace files under a process, whose folds stay as they were imported."""
    fold = modules(BODIES["helper"])
    before = of(fold)
    path = Path(fold.__code__.co_filename)
    path.write_text(path.read_text(encoding="utf-8").replace("return x + 1", "return x + 100"), encoding="utf-8")
    assert of(fold) == before


def test_sets_count_whatever_their_order() -> None:
    """The order of a set is random per process and means nothing."""
    numbers = [2**n for n in range(40)]
    one, two = frozenset(numbers), frozenset(reversed(numbers))

    def holding(kinds: frozenset[int]) -> Callable[[], frozenset[int]]:
        return lambda: kinds

    assert of(holding(one)) == of(holding(two))
    assert of(holding(one)) != of(holding(one - {1}))


def test_what_a_function_closes_over_counts() -> None:
    """Functions and constants of the enclosing scope are reached like globals."""

    def closing(limit: int, inner: Callable[[], int]) -> Callable[[], int]:
        return lambda: limit + inner()

    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert of(closing(1, one)) == of(closing(1, one))
    assert len({of(closing(1, one)), of(closing(2, one)), of(closing(1, two))}) == 3


def test_two_lambdas_on_one_line_are_told_apart() -> None:
    """The source of a lambda is its line; what it does is its code."""
    one, two = (lambda event: event.a), (lambda event: event.b)
    assert of(one) != of(two)
    more, less, text = [lambda: 100], [lambda: 200], [lambda: ("100",)]
    assert len({of(more[0]), of(less[0]), of(text[0])}) == 3
    total = {"key": lambda event: "total"}
    assert of(total["key"]) == of(total["key"])


def test_a_lambda_within_a_call_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Where its lines are no statement of their own, no address or file name gets in; nor does what is beside it."""
    source = """
import sys
from diptych.messages.fingerprint import fingerprint
def call(**options): return options
options = call(
    key=lambda event: [part for part in (lambda: event)()],
    keys=(
        lambda event:
        {part.sku for part in event.lines if part.count > 1}), other=lambda: OTHER,
)
print([fingerprint([options[name]], "", 1) for name in ("key", "keys")])
"""
    found = []
    for folder, text in [("a", source), ("b", source), ("c", source.replace("OTHER", "None")), ("d", "#\n" + source)]:
        path = tmp_path / folder / "folds.py"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert len(set(found)) == 1
    assert found[0].count(", ") == 1


def test_callables_that_are_no_functions_count() -> None:
    """Getters, built-in functions and partial ones say what they do; any other object demands a version."""

    def add(one: int, two: int) -> int:
        return one + two

    class Adder:
        def __call__(self) -> int:
            return 1

    callables = [
        operator.attrgetter("a"),
        operator.attrgetter("b"),
        str,
        sorted,
        functools.partial(add, 1),
        functools.partial(add, 2),
        functools.partial(add, two=2),
        functools.lru_cache(add),
    ]
    assert len({of(function) for function in callables}) == len(callables)
    with pytest.raises(ConfigurationError, match="version=2"):
        of(Adder())
    assert fingerprint([Adder()], "", 2) != fingerprint([Adder()], "", 3)


def test_what_a_decorator_does_counts() -> None:
    """Of a wrapped function both count: the wrapper and what it wraps."""

    def plus(number: int, function: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(function)
        def wrapper() -> int:
            return function() + number

        return wrapper

    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert len({of(one), of(plus(1, one)), of(plus(2, one)), of(plus(1, two))}) == 4


def test_frozen_values_and_enums_are_constants() -> None:
    """A setting kept in a `Value` or an enum counts like a number."""

    class Settings(Value):
        limit: int
        names: tuple[str, ...] = ()

    class Kind(enum.Enum):
        A = 1
        B = 2

    def using(setting: object) -> Callable[[], object]:
        return lambda: setting

    held = [Settings(limit=1), Settings(limit=2), Settings(limit=1, names=("a",)), Kind.A, Kind.B]
    held.append(MappingProxyType({"a": 1}))
    held.append(MappingProxyType({"a": 2}))
    assert len({of(using(setting)) for setting in held}) == len(held)
    assert of(using(MappingProxyType({"a": 1, "b": 2}))) == of(using(MappingProxyType({"b": 2, "a": 1})))


def test_a_fold_reaches_a_limited_number_of_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `REACHED_MAX` the error says so."""
    monkeypatch.setattr(fingerprint_module, "REACHED_MAX", 2)

    def one() -> int:
        return 1

    def two() -> int:
        return one()

    def three() -> int:
        return two()

    assert of(two)
    with pytest.raises(ConfigurationError, match="reaches more than 2"):
        of(three)


def test_schema_and_version_count() -> None:
    """A new column or a raised version is another fold."""

    def fold() -> int:
        return 1

    assert len({fingerprint([fold], schema, version) for schema in ("a", "b") for version in (1, 2)}) == 4


def test_the_order_and_number_of_functions_count() -> None:
    """A projection of two functions is none of one."""

    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert fingerprint([one], "", 1) != fingerprint([one, two], "", 1)


def test_without_source_a_version_is_demanded() -> None:
    """What cannot be seen cannot be noticed: the error names the function and the remedy."""
    made: dict[str, Any] = {"__name__": "made_up"}
    exec("def fold(row): return row", made)  # noqa: S102 — a function without source
    with pytest.raises(ConfigurationError, match=r"the source of fold cannot be found.*version=2"):
        of(made["fold"])
    assert fingerprint([made["fold"]], "", 2) != fingerprint([made["fold"]], "", 3)


# ── of a projection ──────────────────────────────────────────────────────────


class Sku(Identity): ...


class Sold(Event):
    sku: Sku
    amount: int = 1

    @property
    def doubled(self) -> int:
        return self.amount * 2


class Tripled(Event):
    sku: Sku
    amount: int = 1

    @property
    def doubled(self) -> int:
        return self.amount * 3


def projected(model: type[ReadModel], fold: Callable[..., Any], **options: Any) -> str:
    context = BoundedContext("shop", events=[Sold, Tripled])
    fold.__annotations__ |= {"row": model, "return": model}
    declare: Any = context.projection
    declare(**(options or {"version": 1}))(fold)
    (found,) = projections([context], event_types([context]))
    return found.fingerprint()


def row_model(**columns: Any) -> type[ReadModel]:
    namespace = {"__module__": __name__, "__annotations__": {"sku": Key[Sku], **columns}}
    made: Any = MessageMeta("Row", (ReadModel,), {**namespace, **dict.fromkeys(columns, 0)})
    return cast("type[ReadModel]", made)


def test_a_projection_is_told_by_its_columns_and_functions() -> None:
    """Columns, their kinds and indexes, and the key functions are part of what rows depend on."""

    def fold(row: Any, event: Sold) -> Any:
        return row

    plain = projected(row_model(units=int), fold)
    assert plain == projected(row_model(units=int), fold)
    others = [
        projected(row_model(units=int, more=int), fold),
        projected(row_model(units=float), fold),
        projected(row_model(units=Indexed[int]), fold),
        projected(row_model(units=int), fold, key=lambda event: event.sku),
        projected(row_model(units=int), fold, key=lambda event: event.sku + "x"),
        projected(row_model(units=int), fold, keys=lambda event: [event.sku]),
        projected(row_model(units=int), fold, version=2),
    ]
    assert len({plain, *others}) == len(others) + 1


def test_what_its_events_and_rows_can_do_is_part_of_a_projection() -> None:
    """A property of an event is code that the fold runs, though its body names only `event`."""

    def fold(event_class: type) -> Callable[..., Any]:
        def fold(row: Any, event: Any) -> Any:
            return replace(row, units=event.doubled)

        fold.__annotations__["event"] = event_class
        return fold

    class Sold2(Sold, stored_as="shop.Tripled"):
        @property
        def doubled(self) -> int:
            return self.amount * 4

    def of_event(event: type[Event]) -> str:
        context = BoundedContext("shop", events=[event])
        function = fold(event)
        function.__annotations__ |= {"row": row_model(units=int), "return": row_model(units=int)}
        context.projection(function)
        (found,) = projections([context], event_types([context]))
        return found.fingerprint()

    assert of_event(Tripled) != of_event(Sold2)
