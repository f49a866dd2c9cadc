"""A state machine of all three write models: whatever is done in whatever order, plain Python knows the outcome.

Commands come one at a time here, so that each outcome is known exactly, beside others that come together. In between,
processes are stopped and started, kept outcomes are heard again, and screens grow stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from diptych import Command, ContextChanged, Event, Rejected, Verdict
from diptych.errors import CommandIdReused
from diptych.event_store.position import Token
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import Receipt
from tests.calls import token_at
from tests.purses import Kind, Short, World, check_kept, commands, concerns, opened, serial

T = TypeVar("T")
SENDER = Sender()
HELD = 1_000
"""Models that a bus keeps; those of one that forgets are folded anew each time."""


class WriteModels(RuleBasedStateMachine):
    """Two processes on one store, and the events that there should be.

    Attributes:
        log: what plain Python says has happened.
        told: by command id, what was sent under it, and what its sender heard.
    """

    kind: Kind
    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Event] = []
        self.told: dict[str, tuple[Command, Receipt | str]] = {}
        self._runner = asyncio.Runner()
        self._opened = opened(self.kind)
        self.world: World = self.run(self._opened.__aenter__())
        self.buses: list[CommandBus] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def teardown(self) -> None:
        async def end() -> None:
            assert await self.world.log() == self.log
            for bus in self.buses:
                await bus.close()

        try:
            self.run(end())
        finally:
            self.run(self._opened.__aexit__(None, None, None))
            self._runner.close()

    # ── what is done ─────────────────────────────────────────────────────────

    @initialize(held=st.sampled_from([1, HELD]))
    def start(self, held: int) -> None:
        """Two processes begin."""
        self.buses = [self.run(self.world.cold_bus(index, held)) for index in range(2)]

    @rule(index=st.integers(0, 1), held=st.sampled_from([1, HELD]))
    def restart(self, index: int, held: int) -> None:
        """A process ends, and another one begins, which knows nothing."""
        self.run(self.buses[index].close())
        self.buses[index] = self.run(self.world.cold_bus(index, held))

    @rule(target=sent, index=st.integers(0, 1), command=commands)
    def execute(self, index: int, command: Command) -> str:
        """The event, or the refusal, that the history makes of it."""
        command_id = f"c-{len(self.told)}"
        outcome = self.heard(index, command, command_id)
        self.take(command, outcome, serial(self.log, command))
        self.told[command_id] = (command, outcome)
        return command_id

    @rule(command_id=sent, index=st.integers(0, 1))
    def send_again(self, command_id: str, index: int) -> None:
        """The first outcome, whatever has happened since, and nothing more happens."""
        command, outcome = self.told[command_id]
        assert self.heard(index, command, command_id) == outcome

    @rule(command_id=sent, index=st.integers(0, 1), command=commands)
    def reuse(self, command_id: str, index: int, command: Command) -> None:
        """Another command under the id of one that was sent is refused."""
        if command != self.told[command_id][0]:
            with pytest.raises(CommandIdReused):
                self.heard(index, command, command_id)

    @rule(index=st.integers(0, 1), command=commands)
    def ask(self, index: int, command: Command) -> None:
        """What would come of it, which does not come."""
        verdict: Verdict = self.run(self.buses[index].can(command, SENDER))
        wanted = serial(self.log, command)
        if isinstance(wanted, str | Short):
            assert verdict.rejected is not None
            assert verdict.rejected.code == ("short" if isinstance(wanted, Short) else wanted)
        else:
            assert verdict == Verdict(events=(wanted,))

    @rule(index=st.integers(0, 1), command=commands, back=st.integers(0, 4))
    def decide_on_a_screen(self, index: int, command: Command, back: int) -> None:
        """Refused with all that matters of what has come since, and only where something has."""
        basis = max(0, len(self.log) - back)
        token = self.run(token_at(self.world.stores[0], basis))
        since = [at for at, event in enumerate(self.log[basis:], basis + 1) if concerns(command, event)]
        if since:
            with pytest.raises(ContextChanged) as changed:
                self.heard(index, command, None, [token])
            assert [event.position for event in changed.value.events] == since
        else:
            self.take(command, self.heard(index, command, None, [token]), serial(self.log, command))

    @rule(index=st.integers(0, 1), several=st.lists(commands, min_size=2, max_size=4))
    def execute_together(self, index: int, several: list[Command]) -> None:
        """Each as at its place, or refused as at some place: they were executed one after the other."""

        async def all_of_them() -> list[Receipt | str]:
            return await asyncio.gather(*(hear(self.buses[index], command, None) for command in several))

        before, outcomes = len(self.log), self.run(all_of_them())
        self.log = self.run(self.world.log())
        for command, outcome in zip(several, outcomes, strict=True):
            would = [serial(self.log[:head], command) for head in range(before, len(self.log) + 1)]
            if isinstance(outcome, Receipt):
                assert outcome.events == (self.log[outcome.position - 1],) == (would[outcome.position - 1 - before],)
            else:
                assert any(found == outcome or (isinstance(found, Short) and outcome == "short") for found in would)
        facts = sum(isinstance(event, Short) for event in self.log[before:])
        assert facts == outcomes.count("short")
        assert len(self.log) - before == facts + sum(isinstance(outcome, Receipt) for outcome in outcomes)

    # ── what holds ───────────────────────────────────────────────────────────

    @invariant()
    def rows_and_states_are_what_events_make_of_them(self) -> None:
        """Whoever decided."""
        self.run(check_kept(self.world, self.log))

    def heard(self, index: int, command: Command, command_id: str | None, basis: Sequence[Token] = ()) -> Receipt | str:
        return self.run(hear(self.buses[index], command, command_id, basis))

    def take(self, command: Command, outcome: Receipt | str, wanted: Event | str) -> None:
        """Have it happen in plain Python as well."""
        if isinstance(wanted, Event):
            self.log.append(wanted)
        if isinstance(wanted, str | Short):
            assert outcome == ("short" if isinstance(wanted, Short) else wanted), command
        else:
            assert isinstance(outcome, Receipt)
            assert (outcome.position, outcome.events) == (len(self.log), (wanted,))


async def hear(bus: CommandBus, command: Command, command_id: str | None, basis: Sequence[Token] = ()) -> Receipt | str:
    """What a caller hears: a receipt, or why not."""
    try:
        return await bus.execute(command, command_id, SENDER, basis)
    except Rejected as rejected:
        return rejected.code


KINDS: dict[Kind, int] = {"memory": 25, "sqlite": 12, "postgres": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_g3_g4_a_machine_of_three_write_models_does_what_plain_python_says(kind: Kind) -> None:
    """Every rule in every order, on every store."""
    machine = type("Machine", (WriteModels,), {"kind": kind})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=KINDS[kind], stateful_step_count=30, deadline=None)
    )
