"""What folds and deciders take that nobody gives them: time, chance, the world outside.

A fold is run again for every rebuild, retry and cache, and a pure decider once more when it lost a race. Each run
has to come to the same, so that all they stand on has to come with their arguments.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

from diptych.application.reached_code import Named

__all__ = ["Hidden", "hidden_input"]


class Hidden(NamedTuple):
    """A kind of hidden input.

    Attributes:
        code: of the finding.
        is_certain: whether it makes any run differ from the next, or reaches out of it, whatever it is given.
    """

    code: str
    what: str
    is_certain: bool = True


_CLOCK = Hidden("reads-clock", "reads the clock")
_ZONE = Hidden("reads-clock", "depends on the time zone of the machine")
_CHANCE = Hidden("reads-chance", "is by chance")
_HASH = Hidden("reads-chance", "differs from process to process", is_certain=False)
_OUTSIDE = Hidden("reaches-outside", "reaches out of the process")
_THREADS = Hidden("reaches-outside", "waits for what runs beside it")
_SCREEN = Hidden(
    "reaches-outside", "writes each time that it is run, for a rebuild once for every event", is_certain=False
)

# By full name, or the beginning of one that ends in a dot. The longest that fits counts; None is harmless.
_TABLE: dict[str, Hidden | None] = {
    "time.": _CLOCK,
    "time.mktime": _ZONE,
    "time.localtime": _ZONE,
    "time.gmtime": None,  # with a moment it is none, and which one it is given is not looked at
    "time.strftime": None,
    "time.strptime": None,
    "time.struct_time": None,
    "time.sleep": _THREADS,
    "datetime.datetime.now": _CLOCK,
    "datetime.datetime.utcnow": _CLOCK,
    "datetime.datetime.today": _CLOCK,
    "datetime.date.today": _CLOCK,
    "random.": _CHANCE,
    "random.Random": None,  # with a seed it is none; its methods come with the one that made it
    "secrets.": _CHANCE,
    "secrets.compare_digest": None,
    "uuid.uuid1": _CHANCE,
    "uuid.uuid4": _CHANCE,
    "uuid.uuid6": _CHANCE,
    "uuid.uuid7": _CHANCE,
    "uuid.getnode": _OUTSIDE,
    "os.": _OUTSIDE,
    "os.urandom": _CHANCE,
    "os.getrandom": _CHANCE,
    "os.fspath": None,
    "os.fsencode": None,
    "os.fsdecode": None,
    "os.PathLike": None,
    "builtins.open": _OUTSIDE,
    "builtins.input": _OUTSIDE,
    "builtins.print": _SCREEN,
    "builtins.hash": _HASH,
    "builtins.id": _HASH,
    "genericpath.": _OUTSIDE,
    "posixpath.exists": _OUTSIDE,
    "posixpath.abspath": _OUTSIDE,
    "posixpath.realpath": _OUTSIDE,
    "posixpath.expanduser": _OUTSIDE,
    "posixpath.lexists": _OUTSIDE,
    "posixpath.ismount": _OUTSIDE,
    "pathlib.Path.cwd": _OUTSIDE,
    "pathlib.Path.home": _OUTSIDE,
    "pathlib.Path.exists": _OUTSIDE,
    "pathlib.Path.open": _OUTSIDE,
    "pathlib.Path.read_text": _OUTSIDE,
    "pathlib.Path.read_bytes": _OUTSIDE,
    "pathlib.Path.write_text": _OUTSIDE,
    "pathlib.Path.write_bytes": _OUTSIDE,
    "pathlib.Path.iterdir": _OUTSIDE,
    "pathlib.Path.glob": _OUTSIDE,
    "pathlib.Path.mkdir": _OUTSIDE,
    "pathlib.Path.unlink": _OUTSIDE,
    "pathlib.Path.stat": _OUTSIDE,
    "shutil.": _OUTSIDE,
    "tempfile.": _OUTSIDE,
    "glob.": _OUTSIDE,
    "glob.escape": None,
    "platform.": _OUTSIDE,
    "getpass.": _OUTSIDE,
    "subprocess.": _OUTSIDE,
    "multiprocessing.": _OUTSIDE,
    "socket.": _OUTSIDE,
    "ssl.": _OUTSIDE,
    "select.": _OUTSIDE,
    "selectors.": _OUTSIDE,
    "http.client.": _OUTSIDE,
    "urllib.request.": _OUTSIDE,
    "smtplib.": _OUTSIDE,
    "ftplib.": _OUTSIDE,
    "imaplib.": _OUTSIDE,
    "sqlite3.": _OUTSIDE,
    "requests.": _OUTSIDE,
    "httpx.": _OUTSIDE,
    "aiohttp.": _OUTSIDE,
    "urllib3.": _OUTSIDE,
    "asyncpg.": _OUTSIDE,
    "psycopg.": _OUTSIDE,
    "psycopg2.": _OUTSIDE,
    "redis.": _OUTSIDE,
    "boto3.": _OUTSIDE,
    "threading.": _THREADS,
    "asyncio.": _THREADS,
    "concurrent.futures.": _THREADS,
    "diptych.messages.identity.Identity.new": _CHANCE,
    "diptych.messages.unique_id.unique_id": _CHANCE,
    "diptych.clock.": _CLOCK,
}

_MADE_BY_HANDLERS = frozenset({"diptych.messages.identity.Identity.new", "diptych.messages.unique_id.unique_id"})
"""What a decider may use: the identity of something new is decided by whoever makes it, and kept in the event."""


def hidden_input(named: Named, *, decides: bool) -> Hidden | None:
    """The kind of hidden input that a place in code names; None where it is none.

    Args:
        named: the place.
        decides: whether a decider is read, which may make identities up; a fold may not.
    """
    for name in _full_names(named.target):
        if decides and name in _MADE_BY_HANDLERS:
            return None
        for known in _beginnings(name):
            if known in _TABLE:
                found = _TABLE[known]
                return found if _counts(named) else None
    return None


def _counts(named: Named) -> bool:
    """Classes and constants of such a module are types and values, as in `except OSError` or `isinstance`."""
    target = named.target
    if isinstance(target, type) and (issubclass(target, BaseException) or not named.is_called):
        return False
    return callable(target) or target is os.environ or isinstance(target, types.ModuleType)


def _beginnings(name: str) -> Iterable[str]:
    """The name itself, then what it may begin with, the longest first."""
    yield name
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length]) + "."


def _full_names(target: Any) -> Iterable[str]:
    """The names, with that of the module, under which something may stand in the table."""
    if target is os.environ:
        yield "os.environ"
        return
    if isinstance(target, types.ModuleType):
        return
    function = getattr(target, "__func__", target)
    module = getattr(function, "__module__", None)
    qualified = getattr(function, "__qualname__", None)
    held = getattr(target, "__self__", None)
    if isinstance(held, types.ModuleType):
        module = held.__name__
    elif isinstance(held, type) and module is None:
        module = held.__module__
    elif held is not None and module is None:
        module, qualified = type(held).__module__, getattr(target, "__name__", "")
    elif isinstance(target, types.MethodType) and not isinstance(held, type) and type(held).__module__ == "random":
        module, qualified = "random", str(target.__name__)  # random.choice is a method of a generator that they share
    if module is not None and qualified is not None:
        yield f"{_MODULES.get(module, module)}.{qualified}"


_MODULES = {
    "posix": "os",
    "nt": "os",
    "_io": "builtins",
    "io": "builtins",
    "_random": "random",
    "_thread": "threading",
    "_socket": "socket",
    "_sqlite3": "sqlite3",
    "pathlib._local": "pathlib",
}
"""Where the interpreter has what users import from elsewhere."""
