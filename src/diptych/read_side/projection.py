"""Projections: pure folds of events into rows.

A projection is compiled from one or several functions into a plan per event class: which keys the event concerns, with
which part of it, and how the row of a key follows from the row before.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from diptych import failures
from diptych.errors import ConfigurationError, DiptychError
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.stored_query import stored_query
from diptych.messages.annotations import Scope, members, parameter_types
from diptych.messages.event import Event, EventContext, event_classes
from diptych.messages.fingerprint import fingerprint
from diptych.messages.identity import tag_name
from diptych.messages.message import field_types, held_types
from diptych.messages.registry import EventTypes
from diptych.messages.tags import tagging_identity
from diptych.read_side.partitions import SLICES_MAX
from diptych.read_side.read_model import ReadModel, RowForm
from diptych.read_side.read_store import Key
from diptych.read_side.refused_row import RefusedRow
from diptych.read_side.row_refusal import value_refusal
from diptych.read_side.rows_where import RowsWhere, Values, kind_refusal, rows_where

__all__ = [
    "KEYS_PER_EVENT_MAX",
    "KeyNotFound",
    "MissingRow",
    "Projection",
    "ProjectionDeclaration",
    "Step",
    "compile_projections",
    "projected_events",
    "projected_model",
    "told",
]

KEYS_PER_EVENT_MAX = 10_000
"""Rows that one event may change in one read model; rows that the events of one batch may find by `where=`."""


class MissingRow(DiptychError):
    """A fold needs the row of a key that has none, and no blank one can be made from the key and defaults."""


class KeyNotFound(DiptychError):
    """The key of an event's row cannot be told: nothing of this projection can go on behind it."""


class ProjectionDeclaration(NamedTuple):
    """A function that was declared a projection, and the names around it."""

    function: Callable[..., Any]
    scope: Scope
    each: Callable[[Any], Iterable[Any]] | None
    key: Callable[..., object] | None
    keys: Callable[[Any], Iterable[object]] | None
    version: int
    partitions: int | None
    commutative: bool = False
    where: str | Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @property
    def found_by(self) -> Mapping[str, str]:
        """The columns by which it finds its rows, each with the field of the event; empty where it has their keys."""
        if self.where is None:
            return {}
        return {self.where: self.where} if isinstance(self.where, str) else self.where


class RowMode(enum.Enum):
    """What the fold takes of the row that is there."""

    CREATES = "(event) -> M"
    BLANK = "(row: M, event)"
    EXPLICIT = "(row: M | None, event)"


_Plan: TypeAlias = Callable[[Any, EventContext | None], Iterable[tuple[Key | None, Any]]]
"""An event, and its context if asked for, to the keys it concerns, each with a part of the event.

None where the fold itself tells the key.
"""


class Step(msgspec.Struct, frozen=True, gc=False):
    """One event's effect on one row, or with `values` on each row that holds them.

    Attributes:
        key: as the columns hold it; None where only the row that the fold creates tells it, or rows are to be found.
        part: what `each` gave; None without.
        one_of_several: whether other steps of what is stored at this position may change the same row.
        values: what the columns of `where=` hold in the rows that it concerns; None without.
    """

    position: int
    key: Key | None
    event: Event
    part: Any
    context: EventContext | None
    fold: _Fold
    one_of_several: bool = False
    values: Values | None = None


class _Fold:
    """How one event class changes rows of a read model.

    Attributes:
        key_tags: the fields of the key that tags of the event tell, by their index, each with the name of its tag.
        where: finds the rows by what they hold; None where the event tells their keys.
    """

    def __init__(
        self,
        declaration: ProjectionDeclaration,
        form: RowForm,
        mode: RowMode,
        plan: _Plan,
        *,
        takes_context: bool,
        is_told_by_row: bool,
        key_tags: Sequence[tuple[int, str]] = (),
        where: RowsWhere | None = None,
        key_takes_context: bool = False,
    ) -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.form = form
        self.mode = mode
        self.plan = plan
        self.takes_context = takes_context or key_takes_context
        self.is_told_by_row = is_told_by_row
        self.key_tags = key_tags
        self.where = where
        self.takes_parts = declaration.each is not None
        self._call = _caller(
            declaration.function,
            row=mode is not RowMode.CREATES,
            part=self.takes_parts,
            context=takes_context,
        )

    def apply(self, row: Any, step: Step) -> Any:
        """The row after the step; None where there is none any more.

        Raises:
            MissingRow: there is no row, and a blank one cannot be made.
            ConfigurationError: the function returned something else than a row, or a row of another key.
        """
        if row is None and self.mode is RowMode.BLANK:
            row = self._blank(step)
        following = self._call(row, step)
        if following is not None and type(following) is not self.form.cls:
            raise TypeError(f"{self.name} must return a {self.form.name} or None, not {following!r}")
        return following

    def found(self, position: int, event: Event, context: EventContext | None, *, together: bool) -> Iterator[Step]:
        """What an event does to the rows that it finds by what they hold."""
        assert self.where is not None
        for key, part in self.plan(event, context):
            values = self.where.values(event, part)
            if values is not None:
                yield Step(position, key, event, part, context, self, together, values)

    def _blank(self, step: Step) -> Any:
        assert step.key is not None
        if not self.form.defaults_complete:
            raise MissingRow(
                f"{self.form.name} has no row {step.key!r}, and fields without defaults: let an earlier event create "
                f"it, give the fields defaults, or take `row: {self.form.name} | None`"
            )
        return self.form.blank(self.form.key_from_columns(step.key))


def _caller(function: Callable[..., Any], *, row: bool, part: bool, context: bool) -> Callable[[Any, Step], Any]:
    """A row and a step to the call of the user's function, which takes of them what it asks for."""
    if row and not part and not context:  # the most frequent form by far: without a detour
        return lambda before, step: function(before, step.event)

    def call(before: Any, step: Step) -> Any:
        arguments = [before] if row else []
        arguments.append(step.event)
        if part:
            arguments.append(step.part)
        if context:
            arguments.append(step.context)
        return function(*arguments)

    return call


class Projection:
    """A read model's fold, compiled.

    Attributes:
        name: "school.Seats", by context and read model.
        form: the read model's table and the way to it.
        types: the stored names of the events that it folds.
        query: those events.
        functions: what was declared to fold into it, for messages.
        takes_context: whether its steps need the `EventContext`: a function asks for it, or rows expire.
        partitions: into how many slices its rows are split by key, so that as many processes can fold them.
        commutative: whether it may fold events of several histories, in whatever order those are merged.
        finds_rows: whether it finds rows by what they hold (`where=`).
    """

    def __init__(
        self, context: str, form: RowForm, folds: Mapping[type, _Fold], types: EventTypes, partitions: int
    ) -> None:
        self.name = f"{context}.{form.name}"
        self.form = form
        self._folds = folds
        self._event_types = types
        self._upcasters = types.upcasters_to(folds)
        names = frozenset(types.of(cls).name for cls in folds)
        self.query = stored_query(EventQuery((QueryItem(names),)), types)
        self.types = frozenset(name for item in self.query.items for name in item.types)
        self.functions = " or ".join(dict.fromkeys(fold.declaration.name for fold in folds.values()))
        self.takes_context = form.expiry is not None or any(fold.takes_context for fold in folds.values())
        self.partitions = partitions
        self.commutative = any(fold.declaration.commutative for fold in folds.values())
        self.finds_rows = any(fold.where is not None for fold in folds.values())

    @property
    def told_by_row(self) -> list[Callable[..., Any]]:
        """The functions of which only the row that they give tells which one it is."""
        found = (fold.declaration.function for fold in self._folds.values() if fold.is_told_by_row)
        return list(dict.fromkeys(found))

    @property
    def finding(self) -> list[tuple[Callable[..., Any], tuple[str, ...]]]:
        """The functions that find rows by what they hold, each with the columns."""
        declarations = {id(fold.declaration): fold.declaration for fold in self._folds.values()}.values()
        return [(found.function, tuple(found.found_by)) for found in declarations if found.found_by]

    def fingerprint(self) -> str:
        """What tells rows of this fold from those of another: its code and schema, see `read_side/fingerprint.py`.

        Raises:
            ConfigurationError: its source cannot be found and no `version=` stands for it.
        """
        declarations = {id(fold.declaration): fold.declaration for fold in self._folds.values()}.values()
        functions = [
            function
            for declaration in declarations
            for function in (declaration.function, declaration.each, declaration.key, declaration.keys)
            if function is not None
        ]
        upcasters = [step.said for step in self._upcasters]
        functions += [step.function for step in self._upcasters]
        # Without upcasters, or where=, nothing is said of them: rows from before there were any stay what they are.
        schema = msgspec.to_builtins((self.form.table, sorted(self.types), *sorted(upcasters), *self._found_by()))
        values = {held for cls in (self.form.cls, *self._folds) for held in held_types(cls)}
        return fingerprint(functions, schema, max(declaration.version for declaration in declarations), values)

    def _found_by(self) -> list[tuple[str, Mapping[str, str]]]:
        """By event, which columns have to be equal to which of its fields."""
        folds = {self._event_types.of(cls).name: fold.declaration.found_by for cls, fold in self._folds.items()}
        return [(name, found_by) for name, found_by in sorted(folds.items()) if found_by]

    def query_of(self, keys: Iterable[Key]) -> EventQuery | None:
        """Events among which are all that change the rows of these column keys; None where no tags tell them."""
        items: dict[QueryItem, None] = {}
        for key in keys:
            found = self._query_of_one(key)
            if found is None:
                return None
            items |= dict.fromkeys(found.items)
        return EventQuery(tuple(items))

    def _query_of_one(self, key: Key) -> EventQuery | None:
        tagged: dict[frozenset[str], set[str]] = {}
        for cls, fold in self._folds.items():
            tags = frozenset(f"{name}:{key[index]}" for index, name in fold.key_tags)
            tagged.setdefault(tags, set()).add(self._event_types.of(cls).name)
        if frozenset() in tagged:
            return None
        items = tuple(QueryItem(frozenset(names), tags) for tags, names in tagged.items())
        try:
            return stored_query(EventQuery(items), self._event_types)
        except ConfigurationError:  # its identities had too many names
            return None

    def steps(
        self, position: int, event: Event, context: EventContext | None, *, one_of_several: bool = False
    ) -> list[Step]:
        """What an event does to the rows, in order; empty where this projection does not fold it.

        `one_of_several` says that the event is a part of what is stored at that position.

        Raises:
            KeyNotFound: the user's `key`, `keys` or `each` failed, or gave what is no key.
        """
        fold = self._folds.get(type(event))
        if fold is None:
            return []
        together = one_of_several or fold.takes_parts
        try:
            if fold.where is None:
                steps = [
                    Step(position, key, event, part, context, fold, together) for key, part in fold.plan(event, context)
                ]
            else:
                steps = list(fold.found(position, event, context, together=together))
        except Exception as error:
            raise KeyNotFound(
                f"{fold.name}: the key of the event at position {position} cannot be found: {told(error)}"
            ) from error
        if len(steps) > KEYS_PER_EVENT_MAX:
            raise KeyNotFound(
                f"{fold.name}: the event at position {position} concerns {len(steps)} rows; "
                f"{KEYS_PER_EVENT_MAX} is the limit"
            )
        return steps


def told(error: BaseException) -> str:
    """An exception in one line, with its place in the code; what was refused tells its own."""
    return str(error) if isinstance(error, RefusedRow) else failures.told(error)


# ── compiling ────────────────────────────────────────────────────────────────


def compile_projections(
    context: str, declarations: Sequence[ProjectionDeclaration], types: EventTypes
) -> list[Projection]:
    """Compile the projections of a context: one per read model, each event class folded once.

    Raises:
        ConfigurationError: a signature does not fit, or two functions fold one event into one read model.
    """
    forms: dict[type, RowForm] = {}
    folds: dict[type, dict[type, _Fold]] = {}
    declared: dict[type, ProjectionDeclaration] = {}
    begun: dict[type, ProjectionDeclaration] = {}
    for declaration in declarations:
        compiler = _Compiler(declaration)
        form = forms.setdefault(compiler.model, RowForm(compiler.model, context))
        known = folds.setdefault(compiler.model, {})
        first = begun.setdefault(compiler.model, declaration)
        if declaration.commutative != first.commutative:
            raise ConfigurationError(
                f"of {first.name} and {declaration.name}, which feed one read model, one says commutative=True: say it "
                "at both or at none"
            )
        if declaration.partitions is not None:
            _check_partitions(declaration, declared.setdefault(compiler.model, declaration))
        for event in compiler.events:
            if event in known:
                raise ConfigurationError(
                    f"{declaration.name} and {known[event].declaration.name} both fold {event.__name__} into "
                    f"{form.name}: make them one function, or let each fold its own events"
                )
            known[event] = compiler.fold(form, event)
    partitions = {cls: declaration.partitions for cls, declaration in declared.items()}
    return [Projection(context, form, folds[cls], types, partitions.get(cls) or 1) for cls, form in forms.items()]


def _check_partitions(declaration: ProjectionDeclaration, first: ProjectionDeclaration) -> None:
    if declaration.partitions not in range(1, SLICES_MAX + 1):
        raise ConfigurationError(
            f"{declaration.name}: partitions= is 1 to {SLICES_MAX} (SLICES_MAX), not {declaration.partitions!r}"
        )
    if declaration.partitions != first.partitions:
        raise ConfigurationError(
            f"{declaration.name} says partitions={declaration.partitions}, {first.name} partitions={first.partitions}, "
            "and both feed one read model: say it at one of them"
        )


def projected_events(declaration: ProjectionDeclaration) -> Sequence[type[Event]]:
    """The event classes that a projection's function folds."""
    return _Compiler(declaration).events


def projected_model(declaration: ProjectionDeclaration) -> type[ReadModel]:
    """The read model that a projection's function folds into."""
    return _Compiler(declaration).model


class _Compiler:
    """Reads the signature of one projection function."""

    def __init__(self, declaration: ProjectionDeclaration) -> None:
        self._declaration = declaration
        self._name = declaration.name
        types = parameter_types(declaration.function, declaration.scope, self._name)
        parameters = inspect.signature(declaration.function).parameters
        for name, parameter in parameters.items():
            if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
                raise ConfigurationError(
                    f"{self._name}: parameter `{name}` cannot be given by position; write it as a plain one, "
                    "without `*`"
                )
        annotated = [(name, types.get(name)) for name in parameters]
        self.mode = _row_mode(annotated[0][1]) if annotated else RowMode.CREATES
        self._part: Any = None
        self._is_told_by_row = False
        self._key_takes_context = declaration.each is None and _takes_context(declaration.key)
        rest = annotated if self.mode is RowMode.CREATES else annotated[1:]
        row = types.get("return") if self.mode is RowMode.CREATES else annotated[0][1]
        self.model = self._model(row)
        self.events, self.takes_context = self._rest(rest)

    def fold(self, form: RowForm, event: type[Event]) -> _Fold:
        """The fold for one event class."""
        return _Fold(
            self._declaration,
            form,
            self.mode,
            self._plan(form, event),
            takes_context=self.takes_context,
            is_told_by_row=self._is_told_by_row,
            key_tags=self._key_tags(form, event),
            where=self._where(form, event),
            key_takes_context=self._key_takes_context,
        )

    def _model(self, annotation: Any) -> type[ReadModel]:
        for member in members(annotation):
            if isinstance(member, type) and issubclass(member, ReadModel):
                return member
        raise ConfigurationError(
            f"{self._name}: annotate the row it takes, or the row it returns, with the read model that it feeds"
        )

    def _rest(self, rest: Sequence[tuple[str, Any]]) -> tuple[tuple[type[Event], ...], bool]:
        """The event, the part with `each`, the context if it asks."""
        expected = 2 if self._declaration.each else 1
        takes_context = len(rest) == expected + 1 and rest[-1][1] is EventContext
        if not rest or len(rest) - takes_context != expected:
            form = "(row, event, part)" if self._declaration.each else "(row, event)"
            raise ConfigurationError(f"{self._name}: a projection takes {form} and, if it asks, context: EventContext")
        if expected == 2:
            self._part = rest[1][1]
        if rest[0][1] is None:
            raise ConfigurationError(f"{self._name}: annotate `{rest[0][0]}` with the events that it folds")
        return event_classes(rest[0][1], self._name), takes_context

    def _plan(self, form: RowForm, event: type[Event]) -> _Plan:
        declaration, each = self._declaration, self._declaration.each
        if sum(option is not None for option in (each or declaration.key, declaration.keys)) > 1:
            raise ConfigurationError(f"{self._name}: keys= goes with neither key= nor each=")
        if declaration.where is not None:
            self._check_where()
            return _by_values(each)
        if declaration.keys is not None:
            return _by_keys(form, declaration.keys)
        if declaration.key is not None and each is None:
            return _by_key(form, declaration.key, takes_context=self._key_takes_context)
        key_of = _by_function(form, declaration.key) if declaration.key else self._by_fields(form, event)
        self._is_told_by_row = key_of is _told_by_row
        if each is None:
            return lambda event, context: ((key_of(event, None), None),)
        return lambda event, context: [(key_of(event, part), part) for part in each(event)]

    def _key_tags(self, form: RowForm, event: type[Event]) -> list[tuple[int, str]]:
        """The fields of the key that tags of the event tell, by their index in it, each with the name of its tag.

        What a part says of the key need not be in the event, nor what a function makes of it.
        """
        of_event, of_part = field_types(event), self._part_fields()
        of_other = (self._declaration.key, self._declaration.keys, self._declaration.where)
        if any(option is not None for option in of_other) or any(
            name not in of_event and name not in of_part for name in form.key_fields
        ):
            return []
        own = [(index, tagging_identity(of_event[n])) for index, n in enumerate(form.key_fields) if n not in of_part]
        return [(index, tag_name(identity)) for index, identity in own if identity is not None]

    def _check_where(self) -> None:
        if self._declaration.key is not None or self._declaration.keys is not None:
            raise ConfigurationError(f"{self._name}: where= finds the rows; it goes with neither key= nor keys=")
        if self.mode is not RowMode.BLANK:
            raise ConfigurationError(
                f"{self._name}: where= finds rows that are there: take the row, as `row: {self.model.__name__}`"
            )
        if not self._declaration.found_by:
            raise ConfigurationError(f"{self._name}: where= names no column to find the rows of {self.model.__name__}")

    def _where(self, form: RowForm, event: type[Event]) -> RowsWhere | None:
        found_by = self._declaration.found_by
        part = self._part if self._part_fields() else None
        return rows_where(self._name, form, found_by, event, part) if found_by else None

    def _part_fields(self) -> tuple[str, ...]:
        part = self._part
        return tuple(field_types(part)) if isinstance(part, type) and issubclass(part, msgspec.Struct) else ()

    def _by_fields(self, form: RowForm, event: type[Event]) -> Callable[[Any, Any], Key | None]:
        event_fields = field_types(event)
        part: Any = self._part
        part_fields = self._part_fields()
        missing = [name for name in form.key_fields if name not in event_fields and name not in part_fields]
        if missing and self.mode is RowMode.CREATES:
            return _told_by_row
        if missing:
            raise ConfigurationError(
                f"{self._name}: {event.__name__} has no field {missing[0]!r} to find the row of {form.name} by; name "
                "a field so, or compute the key with key=function"
            )
        sources = [(name, name in part_fields) for name in form.key_fields]
        for name, of_part in sources:
            reason = kind_refusal(form, name, part if of_part else event, name)
            if reason is not None:
                raise ConfigurationError(f"{self._name}: {reason}, or compute the key with key=function")
        if not any(of_part for _, of_part in sources):
            return lambda event, part: form.column_key_of(event)
        if all(of_part for _, of_part in sources):
            return lambda event, part: form.column_key_of(part)

        def key_of(event: Any, part: Any) -> Key:
            return form.column_key(tuple(getattr(part if of_part else event, name) for name, of_part in sources))

        return key_of


def _row_mode(annotation: Any) -> RowMode:
    found = members(annotation)
    if not any(isinstance(member, type) and issubclass(member, ReadModel) for member in found):
        return RowMode.CREATES
    return RowMode.EXPLICIT if type(None) in found else RowMode.BLANK


def _told_by_row(_event: Any, _part: Any) -> Key | None:
    """No key: which row an event is for is only known once it has been folded."""
    return None


def _by_function(form: RowForm, key: Callable[..., object]) -> Callable[[Any, Any], Key | None]:
    return lambda event, part: _checked(form, key(part))


def _by_key(form: RowForm, key: Callable[..., object], *, takes_context: bool) -> _Plan:
    if takes_context:
        return lambda event, context: ((_checked(form, key(event, context)), None),)
    return lambda event, context: ((_checked(form, key(event)), None),)


def _takes_context(key: Callable[..., object] | None) -> bool:
    """Whether a key function takes the context after the event: it needs two arguments."""
    if key is None:
        return False
    try:
        parameters = inspect.signature(key).parameters.values()
    except (TypeError, ValueError):  # written in C: nothing is known of it, and it takes one
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is inspect.Parameter.empty for each in parameters) == 2


def _by_keys(form: RowForm, keys: Callable[[Any], Iterable[object]]) -> _Plan:
    return lambda event, context: [(key, None) for key in dict.fromkeys(_checked(form, found) for found in keys(event))]


def _by_values(each: Callable[[Any], Iterable[Any]] | None) -> _Plan:
    """No keys: which rows an event is for is known when they are looked for."""
    if each is None:
        return lambda event, context: ((None, None),)
    return lambda event, context: [(None, part) for part in each(event)]


def _checked(form: RowForm, found: object) -> Key:
    key = found if isinstance(found, tuple) else (found,)
    if len(key) != len(form.key_fields) or None in key:
        raise ValueError(f"{found!r} is no key of {form.name}, which has {', '.join(form.key_fields)}")
    held = form.column_key(key)
    for name, value in zip(form.key_fields, held, strict=True):
        if (reason := value_refusal(form.columns[name], value)) is not None:
            raise ValueError(f"{found!r} is no key of {form.name}: {reason}")
    return held
