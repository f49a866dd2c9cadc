"""Finds the bounded contexts that are named on the command line, `module:context`."""

from __future__ import annotations

import difflib
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from diptych.application.bounded_context import BoundedContext
from diptych.application.dividing import PartitionBy
from diptych.errors import ConfigurationError
from diptych.messages.identity import Identity

__all__ = ["load_contexts", "load_partition_by"]

CLOSE_NAMES_MAX = 3
"""Names that an error proposes."""


def load_contexts(names: Sequence[str]) -> list[BoundedContext]:
    """The bounded contexts of these names; the working directory is importable.

    Raises:
        ConfigurationError: none is named; a name has another form, names nothing, or something else; or its module
            raises. With close names.
    """
    if not names:
        raise ConfigurationError(
            'which bounded context? Name it as module:context, or set app = ["module:context"] in diptych.toml'
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return [_load(name) for name in dict.fromkeys(names)]


def load_partition_by(name: str | None) -> PartitionBy | None:
    """What divides an application: "context", or the identity of the name `module:Identity`; None for None.

    Raises:
        ConfigurationError: it names something else, or nothing.
    """
    if name is None or name == "context":
        return "context" if name else None
    module, colon, attribute = name.partition(":")
    found = getattr(_module(module), attribute, None) if colon and attribute else None
    if not (isinstance(found, type) and issubclass(found, Identity)):
        raise ConfigurationError(f'partition_by = {name!r} names no identity: write "context", or module:Identity')
    return found


def _load(name: str) -> BoundedContext:
    module_name, colon, attribute = name.partition(":")
    if not module_name or module_name.startswith("."):
        raise ConfigurationError(f"{name!r} names no module: write it as module:context")
    module = _module(module_name)
    if not colon or not attribute:
        raise ConfigurationError(f"{name!r} names a module only: write it as {_examples(module)}")
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, BoundedContext):
        return found
    if found is None:
        raise ConfigurationError(f"{module_name} has no {attribute!r}: write {_examples(module)}")
    what = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
    raise ConfigurationError(f"{name} is {what}, no BoundedContext: write {_examples(module)}")


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"no module is named {error.name!r}{_close_modules(error.name)}") from error
        raise ConfigurationError(f"{name} imports {error.name!r}, which is not installed here") from error
    except Exception as error:
        raise ConfigurationError(f"{name} cannot be imported: {_told(error, name)}") from error


def _told(error: Exception, module: str) -> str:
    """The exception, and the line of the user's code in which it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    spec = find_spec(module)
    own = [frame for frame in frames if spec is not None and frame.filename == spec.origin]
    where = (own or frames)[-1]
    line = error.lineno if isinstance(error, SyntaxError) else where.lineno
    path = error.filename if isinstance(error, SyntaxError) else where.filename
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text} ({Path(path or module).name}, line {line})"


def _close_modules(name: str) -> str:
    """Proposes modules that stand where the missing one was looked for."""
    parent, _, last = name.rpartition(".")
    places = import_module(parent).__path__ if parent else [str(Path.cwd())]
    known = [found.name for found in pkgutil.iter_modules(places)]
    close = [f"{parent}.{found}" if parent else found for found in _close(last, known)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f" in {parent}" if parent else f"; {Path.cwd()} has none, and none is installed"


def _examples(module: ModuleType) -> str:
    """What could have been meant: the contexts of the module."""
    known = sorted(name for name, value in vars(module).items() if isinstance(value, BoundedContext))
    if not known:
        return f"{module.__name__}:<name of a BoundedContext>; the module has none"
    return " or ".join(f"{module.__name__}:{name}" for name in known[:CLOSE_NAMES_MAX])


def _close(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=CLOSE_NAMES_MAX)
