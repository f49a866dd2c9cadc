"""One SQLite file, one writer: who may write now, on which thread, and what a failure means.

SQLite lets one connection write at a time, and leaves open who is next. `Writer` gives this process's callers their
turns in order, and a turnstile (a lock file beside the database) gives processes theirs: whoever waits to begin a
transaction holds it, so that a process which commits again and again has to queue behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from diptych.adapters.lent_sqlite import LentConnection
from diptych.errors import Overloaded, StoreClosed, StoreUnavailable

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock: there SQLite's own busy handler has to do.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CommitFailed",
    "Failures",
    "Synchronous",
    "Work",
    "Writer",
    "data_version",
    "is_busy",
    "open_reader",
]

LOCK_WAIT_S = 5.0
"""How long a transaction waits for other processes before it gives up with `StoreUnavailable`."""
LOCK_RETRY_S = 0.000_5
"""Between two tries to begin while another process writes."""
WAITING_WORK_MAX = 10_000
"""Callers that wait for the connection; more get `Overloaded`."""
INLINE_COMMIT_S_MAX = 0.002
"""Commits run on the event loop while they lately took less than this: a hand-over to a thread would cost more."""
INLINE_WORK_S_MAX = 0.020
"""Likewise for whole transactions: longer ones would hold up everything else on the loop."""
INLINE_PROBE_EVERY = 64
"""Once in so many transactions on the thread the next one is tried on the loop: times taken there are the truth,
those taken on a thread contain waits for the interpreter's lock."""
WAL_AUTOCHECKPOINT_PAGES = 4_000
"""Pages in the write-ahead log before a commit copies them into the file."""
PAGE_CACHE_KIB = 32_768
"""Memory for pages, each connection."""
CACHED_STATEMENTS = 512
"""Prepared statements kept, each connection."""
FIGURE_WEIGHT = 0.2
"""Weight of the newest time in a moving figure."""

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]
"""What is done inside a write transaction. It neither awaits nor begins or ends transactions."""
Synchronous: TypeAlias = Literal["FULL", "NORMAL"]

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds its write lock; end it, or wait for it",
    sqlite3.SQLITE_LOCKED: "another connection holds its write lock; end it, or wait for it",
    sqlite3.SQLITE_FULL: "its disk is full; make room",
    sqlite3.SQLITE_READONLY: "it is read-only; give this user the right to write the file and its folder",
    sqlite3.SQLITE_PERM: "it may not be accessed; give this user the right to read and write it",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and that this user may write there",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a backup",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database; check the path",
    sqlite3.SQLITE_IOERR: "its disk fails; check it",
    sqlite3.SQLITE_NOMEM: "memory ran out",
    sqlite3.SQLITE_PROTOCOL: "its locking protocol failed; is it on a network file system?",
}


class CommitFailed(Exception):
    """The disk failed while committing: whether the transaction is durable is not known."""


class Writer:
    """The connection that writes one file; its callers take turns, first come, first served.

    Not for several event loops at a time; it may be opened in one and, once closed, again in another.
    """

    def __init__(self, path: str, *, synchronous: Synchronous = "FULL", lock_wait_s: float = LOCK_WAIT_S) -> None:
        """Remember the settings; nothing is opened yet.

        Args:
            path: of the file, made where it is missing (its folder is not).
            synchronous: FULL: committed means on disk. NORMAL: a power cut may take the last commits.
            lock_wait_s: how long a transaction waits for other processes.
        """
        self.path = path
        self.failures = Failures(path)
        self._synchronous = synchronous
        self._lock_wait_s = lock_wait_s
        self._connection: sqlite3.Connection | None = None
        self._turnstile: _Turnstile | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._pace = _Pace()

    def open(self) -> None:
        """Connect. It may wait for other processes, up to the limit: call it off the event loop.

        Raises:
            StoreUnavailable: the file cannot be opened; with the reason.
        """
        if self._connection is not None:
            return
        turnstile = _Turnstile(self.path)
        try:
            self._connection = self._connect(turnstile)
        except BaseException:
            turnstile.close()
            raise
        self._turnstile = turnstile
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="diptych-sqlite-writer")

    async def close(self) -> None:
        """Wait for the work under way, then let go of the file. May be called twice."""
        if self._thread is None or self._connection is None or self._turnstile is None:
            return
        thread, connection, turnstile = self._thread, self._connection, self._turnstile
        self._thread = self._connection = self._turnstile = None
        await asyncio.get_running_loop().run_in_executor(thread, connection.close)
        turnstile.close()
        thread.shutdown(wait=True)

    async def run(self, work: Work[T], after_commit: Callable[[T], object] | None = None) -> T:
        """Do the work in a write transaction of its own; an exception of the work rolls it back and comes out here.

        Runs on the event loop while that is quick and the file is free, else on the writer's thread. Cancelling the
        caller never cancels the work.

        Args:
            work: what to do with the connection. It neither awaits nor begins or ends transactions.
            after_commit: called on the event loop with the result once it is durable, also where the caller is gone.

        Raises:
            StoreClosed: the writer is not open.
            StoreUnavailable: locked past the limit, disk full and the like; nothing was done.
            CommitFailed: the disk failed while committing.
            Overloaded: too many callers wait.
        """
        self._open_connection()
        if self._waiting == 0 and self._pace.is_quick() and self._try_begin():
            result = self._finish(self._open_connection(), work)
            if after_commit is not None:
                after_commit(result)
            return result
        if self._waiting >= WAITING_WORK_MAX:
            raise Overloaded("WAITING_WORK_MAX", WAITING_WORK_MAX)
        return await self._hand_over(work, after_commit)

    async def run_apart(self, work: Work[T], after_commit: Callable[[T], object] | None = None) -> T:
        """The same, always on the writer's thread, and without counting as how long transactions take.

        Raises:
            StoreClosed: the writer is not open.
            StoreUnavailable: locked past the limit, disk full and the like; nothing was done.
            CommitFailed: the disk failed while committing.
            Overloaded: too many callers wait.
        """
        self._open_connection()
        if self._waiting >= WAITING_WORK_MAX:
            raise Overloaded("WAITING_WORK_MAX", WAITING_WORK_MAX)
        return await self._hand_over(work, after_commit, noted=False)

    async def _hand_over(self, work: Work[T], after_commit: Callable[[T], object] | None, *, noted: bool = True) -> T:
        connection, thread, turnstile = self._open_connection(), self._thread, self._turnstile
        assert thread is not None
        assert turnstile is not None
        submitted = asyncio.wrap_future(thread.submit(self._begin_and_finish, connection, turnstile, work, noted=noted))
        self._waiting += 1

        def done(future: asyncio.Future[T]) -> None:
            self._waiting -= 1
            if after_commit is not None and not future.cancelled() and future.exception() is None:
                after_commit(future.result())

        submitted.add_done_callback(done)
        return await asyncio.shield(submitted)

    # ── one transaction ──────────────────────────────────────────────────────

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreClosed(f"{self.path} is not open")
        return self._connection

    def _try_begin(self) -> bool:
        """Begin, if that needs no waiting."""
        connection, turnstile = self._open_connection(), self._turnstile
        if turnstile is None or not turnstile.try_enter():
            return False
        try:
            return self._begin_now(connection)
        finally:
            turnstile.leave()

    def _begin_now(self, connection: sqlite3.Connection) -> bool:
        try:
            if connection.in_transaction:  # a rollback failed when the disk did
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if is_busy(error):
                return False
            with self.failures:
                raise
        return True

    def _begin_and_finish(
        self, connection: sqlite3.Connection, turnstile: _Turnstile, work: Work[T], *, noted: bool
    ) -> T:
        """The whole transaction, on the writer's thread, where it may wait."""
        deadline = time.monotonic() + self._lock_wait_s
        with turnstile.entered(deadline) as entered:
            while not (entered and self._begin_now(connection)):
                if time.monotonic() >= deadline:
                    raise StoreUnavailable(
                        f"{self.path} stayed locked for {self._lock_wait_s} s (LOCK_WAIT_S): "
                        f"{_REMEDIES[sqlite3.SQLITE_BUSY]}"
                    )
                time.sleep(LOCK_RETRY_S)  # noqa: TID251 - nobody tells when another process has let go
        return self._finish(connection, work, noted=noted)

    def _finish(self, connection: sqlite3.Connection, work: Work[T], *, noted: bool = True) -> T:
        began = time.perf_counter()
        try:
            with self.failures:
                result = work(connection)
            worked = time.perf_counter()
            self._commit(connection)
        except BaseException:
            _roll_back(connection)
            raise
        if noted:
            self._pace.note(worked - began, time.perf_counter() - worked)
        return result

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            with self.failures:
                connection.execute("COMMIT")
        except StoreUnavailable as error:
            cause = error.__cause__
            # Without room nothing is written that could count as a commit; any other failure of the disk may have
            # come after the commit mark was.
            if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
                raise CommitFailed(str(error)) from cause
            raise

    def _connect(self, turnstile: _Turnstile) -> sqlite3.Connection:
        deadline = time.monotonic() + self._lock_wait_s
        with self.failures, turnstile.entered(deadline):
            connection = sqlite3.connect(
                self.path,
                timeout=self._lock_wait_s,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=CACHED_STATEMENTS,
                factory=LentConnection,
            )
            try:
                self._configure(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA foreign_keys = ON")  # of own tables; ours have none
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(f"{self.path} cannot use a write-ahead log: is it on a network file system?")
        if fcntl is not None:
            connection.execute("PRAGMA busy_timeout = 0")  # the turnstile waits instead


class _Pace:
    """How long transactions lately took: whether the next may run on the event loop."""

    def __init__(self) -> None:
        self._work_s = 0.0
        self._commit_s = 0.0
        self._off_loop = 0

    def is_quick(self) -> bool:
        if self._commit_s < INLINE_COMMIT_S_MAX and self._work_s < INLINE_WORK_S_MAX:
            return True
        self._off_loop = (self._off_loop + 1) % INLINE_PROBE_EVERY
        if self._off_loop:
            return False
        self._work_s = self._commit_s = 0.0
        return True

    def note(self, work_s: float, commit_s: float) -> None:
        self._work_s += FIGURE_WEIGHT * (work_s - self._work_s)
        self._commit_s += FIGURE_WEIGHT * (commit_s - self._commit_s)


class _Turnstile:
    """A lock between processes, held while waiting to begin: who waits there is the next to write.

    The system frees it when its holder dies. Its file is never removed: a waiter could be left with a lock on a file
    that others no longer see.
    """

    def __init__(self, store: str) -> None:
        self._file: IO[bytes] | None = None
        if fcntl is not None:
            try:
                self._file = Path(f"{store}-queue").open("ab")  # noqa: SIM115 - kept until close
            except OSError as error:
                folder = Path(store).parent
                reason = f"{store}-queue beside it: {error.strerror}; check its folder"
                if not folder.is_dir():
                    reason = f"there is no folder {folder}; make it, or check the path"
                raise StoreUnavailable(f"the store {store} cannot be opened: {reason}") from error

    def try_enter(self) -> bool:
        """Enter, if nobody else is inside."""
        if fcntl is None or self._file is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave(self) -> None:
        if fcntl is not None and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def entered(self, deadline: float) -> Generator[bool]:
        """Inside while in the block; yields False where the deadline passed first."""
        while not (entered := self.try_enter()) and time.monotonic() < deadline:
            time.sleep(LOCK_RETRY_S)  # noqa: TID251 - nobody tells when another process has let go
        try:
            yield entered
        finally:
            if entered:
                self.leave()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Failures:
    """A block in which SQLite's failures of disk, lock and file come out as `StoreUnavailable`, with what to do."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        remedy = _REMEDIES.get(_primary_code(error))
        if remedy is not None:
            raise StoreUnavailable(f"{self._path}: {error} ({remedy})") from error


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection's lock is the reason."""
    return _primary_code(error) in _BUSY


def open_reader(path: str) -> sqlite3.Connection:
    """A connection that cannot write (G13): SQLite refuses, whatever is asked of it.

    Raises:
        StoreUnavailable: the file cannot be opened; with the reason.
    """
    with Failures(path):
        connection = sqlite3.connect(
            f"file:{quote(str(Path(path).absolute()))}?mode=ro",
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=CACHED_STATEMENTS,
        )
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        return connection


def data_version(connection: sqlite3.Connection) -> int:
    """Changes whenever another connection, of this process or another, has committed; own commits leave it."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", -1) & 0xFF  # errors that the module itself raises carry none


def _roll_back(connection: sqlite3.Connection) -> None:
    """Best effort: SQLite rolls some failures back itself, and where this fails the next begin tries again."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
