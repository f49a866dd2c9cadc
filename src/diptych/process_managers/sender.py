"""The sender: what a process wants done goes out, each thing once, whatever happens in between (G10).

Everything comes from the process store, where it was kept together with the reaction that made it, and goes out under
the id that it has there. So whatever fails, a crash included, is tried again: a command that took effect hears of its
kept outcome, and an event that is there is not appended twice. Then it is removed.

    due? ──▶ command ──▶ command bus ──▶ done, or Rejected: CommandRejected is appended ──▶ removed
        └──▶ timeout ──▶ appended ──────────────────────────────────────────────────────▶ removed
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID, uuid5

import msgspec

from diptych.clock import Clock, pause
from diptych.errors import HistoryDiverged
from diptych.event_store.event_store import Appended, AppendResult, Commit, Duplicate, EventStore
from diptych.event_store.head_watch import HeadWatch
from diptych.event_store.recorded_event import NewEvent
from diptych.event_store.timestamp import to_microseconds
from diptych.failures import Branch, branch_of, told, trace_of
from diptych.messages.codec import Codec, decode, encode, to_plain
from diptych.messages.command import Command
from diptych.messages.envelope import Envelope
from diptych.messages.registry import EventTypes, MessageTypes
from diptych.messages.rejected import Rejected
from diptych.process_managers.process_manager import Process
from diptych.process_managers.process_store import Outgoing, ProcessStore
from diptych.process_managers.together import Together
from diptych.write_side.command_bus import Sender

__all__ = ["Execute", "Hold", "Holder", "OutgoingSender", "ProcessSender", "Unheard"]

SENDING_MAX = 32
"""Commands and timeouts of one process that are under way at once, each of an instance of its own."""
SEND_ATTEMPTS_MAX = 10
"""How often one that fails is sent by itself; what is only not possible now (`Branch.NOT_NOW`) is not counted."""
SEND_BACKOFF_FIRST_S, SEND_BACKOFF_MAX_S = 0.2, 60.0
"""Seconds between attempts: doubled each time, up to the second."""
DUE_WAIT_S = 5.0
"""Seconds after which a sender that waits looks again without having been woken, so that a clock may be set."""
REFUSED_MAX = 10_000
"""Commands and timeouts whose refusals are counted, for the pause before the next try."""
STORE_BACKOFF_S = 1.0
"""Seconds after which a sender whose store fails tries again."""

_log = logging.getLogger("diptych.processes")

Execute: TypeAlias = Callable[[Command, str, Sender], Awaitable[object]]
"""Executes a command under an id, in whichever partition it belongs to."""


class Hold(NamedTuple):
    """What work on a process stands on: where either is another now, what was read before is not sent.

    Attributes:
        epoch: of the lease.
        forks: how often the history had turned out to be another one.
    """

    epoch: int
    forks: int


class Holder(Protocol):
    """Who holds the process, and may change what is kept of it: its runner, or the scheduler."""

    @property
    def process_name(self) -> str:
        """Which one."""
        ...

    @property
    def store(self) -> ProcessStore:
        """Where it is kept."""
        ...

    @property
    def hold(self) -> Hold | None:
        """What this worker's work on it stands on now; None while it may not work on it."""
        ...

    async def until_held(self) -> None:
        """Wait until that may have changed."""
        ...

    async def settle(self, removed: Collection[str], failed: Sequence[Outgoing]) -> None:
        """Note what has gone out, and what has not."""
        ...


class _Sent(NamedTuple):
    """What came of one: it has gone out, unless there is something to be kept of it, or it was not ours to send."""

    item: Outgoing
    failed: Outgoing | None = None
    left: bool = False


class _Sending(NamedTuple):
    """One that is under way."""

    item: Outgoing
    task: asyncio.Task[_Sent]


class OutgoingSender(ABC):
    """Sends what waits to go out of one process, while whoever is asked holds it.

    Attributes:
        failure: why nothing goes out at all; empty while all is well.
    """

    look_s = DUE_WAIT_S

    def __init__(self, name: str, holder: Holder, clock: Clock) -> None:
        self.failure = ""
        self._name = name
        self._runner = holder
        self._clock = clock
        self._under_way: dict[str, _Sending] = {}
        self._refused: dict[str, int] = {}
        self._asked = True
        self._wakes = HeadWatch()
        self._rests = HeadWatch()
        self._at_rest = False

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing was due or under way when it looked last, and nobody has asked it to look again."""
        return self._at_rest

    def wake(self) -> None:
        """There may be something to send."""
        self._asked, self._at_rest = True, False
        self._wakes.wake()

    async def rest(self, timeout_s: float) -> bool:
        """Whether nothing is due or under way; waits for it."""
        return self._at_rest or (await self._rests.wait(timeout_s) and self._at_rest)

    async def follow(self) -> None:
        """Send from now on, until this is cancelled; what is under way is then cancelled too, and comes again."""
        try:
            while True:
                try:
                    await self._step()
                    self.failure = ""
                except Exception as error:  # noqa: BLE001  # told by status, and tried again
                    self.failure = told(error)
                    _log.error("%s sends again in %.1f s: %s", self._name, STORE_BACKOFF_S, self.failure)
                    await pause(STORE_BACKOFF_S)
        finally:
            left, self._under_way = [sending.task for sending in self._under_way.values()], {}
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    async def _step(self) -> None:
        """Begin what is due, or wait for what is under way, or for something to be due."""
        hold = self._runner.hold
        if hold is None:
            await self._runner.until_held()
            return
        self._asked = False
        now_us = to_microseconds(self._clock.now())
        found = await self._runner.store.due(self._runner.process_name, now_us, 2 * SENDING_MAX)
        new = [item for item in found if item.id not in self._under_way][: SENDING_MAX - len(self._under_way)]
        if new and not await self._begin(new):
            return
        for item in new:
            sending = asyncio.get_running_loop().create_task(self._send(item, hold), name=f"diptych send {item.type}")
            sending.add_done_callback(lambda _: self.wake())
            self._under_way[item.id] = _Sending(item, sending)
        if self._under_way:
            await self._settle(now_us)
        elif not self._asked:
            await self._idle(now_us)

    async def _settle(self, now_us: int) -> None:
        """Wait for one that is under way, or for more to be due; what has gone out is removed, in one commit."""
        if not any(sending.task.done() for sending in self._under_way.values()):
            left_s = DUE_WAIT_S if len(self._under_way) >= SENDING_MAX else await self._until_due_s(now_us)
            if not self._asked and left_s > 0:
                await self._wakes.wait(left_s)
        done = [self._outcome(sending) for sending in self._under_way.values() if sending.task.done()]
        if not done:
            return
        removed = [sent.item.id for sent in done if sent.failed is None and not sent.left]
        failed = [sent.failed for sent in done if sent.failed is not None]
        if removed or failed:
            await self._runner.settle(removed, failed)
        for sent in done:
            del self._under_way[sent.item.id]
        for sent_id in removed:
            self._refused.pop(sent_id, None)

    def _outcome(self, sending: _Sending) -> _Sent:
        if sending.task.cancelled():  # from within, by what the handler calls
            return _Sent(sending.item, self._failed(sending.item, TimeoutError("it was cancelled")))
        return sending.task.result()

    async def _idle(self, now_us: int) -> None:
        left_s = await self._until_due_s(now_us)
        if self._asked:
            return
        self._at_rest = True
        self._rests.wake()
        if left_s > 0:
            await self._wakes.wait(left_s)

    async def _until_due_s(self, now_us: int) -> float:
        """How long it is until there may be more to send than there was then; not positive where there may be now."""
        due_us = await self._runner.store.next_due_us(self._runner.process_name, now_us)
        if due_us is None:
            return self.look_s
        return min((due_us - to_microseconds(self._clock.now())) / 1_000_000, self.look_s)

    # ── one of them ──────────────────────────────────────────────────────────

    async def _begin(self, items: Sequence[Outgoing]) -> bool:
        """Note that these are begun, where anybody asks for it; False where they are another worker's by now."""
        del items
        return True

    @abstractmethod
    async def _is_done(self, item: Outgoing) -> bool:
        """Whether all but the removal was done before."""

    @abstractmethod
    async def _go_out(self, item: Outgoing) -> None:
        """Do it, under its id, to an effect once."""

    @abstractmethod
    def _is_hopeless(self, error: Exception) -> bool:
        """Whether it will fail so however often it is tried."""

    async def _send(self, item: Outgoing, hold: Hold) -> _Sent:
        try:
            if await self._is_done(item):
                return _Sent(item)
            if self._runner.hold != hold:  # what it is a reaction to may be lost, or its instance closed meanwhile
                return _Sent(item, left=True)
            await self._go_out(item)
        except Exception as error:  # noqa: BLE001  # whatever it is: kept with the item, and tried again or listed
            return _Sent(item, self._failed(item, error))
        return _Sent(item)

    def _failed(self, item: Outgoing, error: Exception) -> Outgoing:
        attempts = item.attempts + 1
        counted = branch_of(error) is not Branch.NOT_NOW
        dead = self._is_hopeless(error) or (counted and attempts >= SEND_ATTEMPTS_MAX)
        before = item.attempts if counted else self._refusals(item.id)
        backoff_s = min(SEND_BACKOFF_FIRST_S * 2 ** min(before, 32), SEND_BACKOFF_MAX_S)
        due: datetime = self._clock.now() + timedelta(seconds=backoff_s)
        _log.log(
            logging.ERROR if dead else logging.WARNING,
            "%s, instance %s: %s %s was not sent, %s: %s",
            *(self._name, item.instance, item.type, item.id),
            "and is given up" if dead else f"and is tried again in {backoff_s:.1f} s",
            told(error),
        )
        return msgspec.structs.replace(
            item,
            attempts=attempts if counted else item.attempts,
            failure=told(error),
            dead=dead,
            due_us=to_microseconds(due),
            begun=False,
            trace=trace_of(error),
        )

    def _refusals(self, outgoing_id: str) -> int:
        """How often what one needs was not available before. Only the pauses go by it, so it need not be kept."""
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        before = self._refused.get(outgoing_id, 0)
        self._refused[outgoing_id] = before + 1
        return before


class ProcessSender(OutgoingSender):
    """Sends what one process has to send, while its runner holds the process."""

    def __init__(
        self,
        process: Process,
        runner: Holder,
        events: EventStore,
        types: EventTypes,
        commands: MessageTypes,
        execute: Execute,
        clock: Clock,
    ) -> None:
        super().__init__(f"process {process.name}", runner, clock)
        self._process = process
        self._events = events
        self._types = types
        self._commands = commands
        self._execute = execute
        self._codecs: dict[type[Command], Codec] = {}
        self._appends = Together(self._append_all, SENDING_MAX, f"diptych append {process.name}")

    async def follow(self) -> None:
        """See `OutgoingSender.follow`; an append that is under way is finished."""
        try:
            await super().follow()
        finally:
            await self._appends.end()

    async def _is_done(self, item: Outgoing) -> bool:
        return item.kind == "command" and await self._events.outcome(_rejection_id(item)) is not None

    async def _go_out(self, item: Outgoing) -> None:
        if item.kind == "timeout":
            await self._append(item.id, self._fired(item))
        else:
            await self._command(item)

    def _is_hopeless(self, error: Exception) -> bool:
        return isinstance(error, Unheard)

    async def _command(self, item: Outgoing) -> None:
        cls = self._commands.find(item.type)
        if cls not in self._codecs:
            self._codecs[cls] = Codec(cls)
        command: Command = self._codecs[cls].decode(item.data)
        envelope = decode(item.metadata, Envelope)
        sender = Sender(
            actor=envelope.actor,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            traceparent=envelope.traceparent,
        )
        try:
            await self._execute(command, item.id, sender)
        except Rejected as rejected:
            await self._append(_rejection_id(item), self._rejected(item, command, envelope, rejected))

    def _fired(self, item: Outgoing) -> NewEvent:
        return NewEvent(UUID(item.id).bytes, item.type, item.version, item.data, item.tags, item.metadata)

    def _rejected(self, item: Outgoing, command: Command, envelope: Envelope, rejected: Rejected) -> NewEvent:
        cls = self._process.rejections.get(type(command))
        if cls is None:
            raise Unheard(
                f"rejected with {rejected}, and {self._process.cls.__name__}.react takes no "
                f"CommandRejected[{type(command).__name__}]"
            )
        code, facts = _storable([rejected.code, to_plain(rejected.facts)])
        event = cls(instance=item.instance, command=command, code=code, facts=facts)
        found = self._types.of(cls)
        data, settled = found.codec.settle(event)
        metadata = encode(msgspec.structs.replace(envelope, command_id=item.id))
        event_id = UUID(_rejection_id(item)).bytes
        return NewEvent(event_id, found.name, found.version, data, found.tags(settled), metadata)

    async def _append(self, commit_id: str, event: NewEvent) -> None:
        """Append an event, in one transaction with what else goes out at this moment."""
        commit = Commit(events=(event,), command_id=commit_id)
        result = await self._appends.result((commit, self._events.forks))
        if not isinstance(result, Appended | Duplicate):
            raise TypeError(f"{event.type} cannot be appended: {result}")

    async def _append_all(self, wanted: Sequence[tuple[Commit, int]]) -> Sequence[AppendResult]:
        if any(forks != self._events.forks for _, forks in wanted):
            raise HistoryDiverged("what a process sends", "the history turned out to be another one; it is tried again")
        return await self._events.append([commit for commit, _ in wanted])


class Unheard(Exception):
    """A rejection that the process does not take: nobody but a human can say what is to become of it."""


def _storable(plain: Any) -> Any:
    """What a rejection says, without what no event may hold: it has to come back, whatever it says."""
    if isinstance(plain, str):
        return plain.replace("\0", "�")
    if isinstance(plain, dict):
        return {_storable(name): _storable(value) for name, value in plain.items()}
    return [_storable(value) for value in plain] if isinstance(plain, list) else plain


def _rejection_id(item: Outgoing) -> str:
    """The id of a command's rejection: of the event, and of the commit that appends it."""
    return str(uuid5(UUID(item.id), "rejected"))
