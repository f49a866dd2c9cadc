"""Commands of all three write models, at the same time, on one history, equal a serial execution (G1, G3, G4; rule 25).

Plain Python replays the history: every command is legal at its place, rows are what the events make of them, and so are
kept states.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych import ContextChanged, Event, Rejected, Verdict
from diptych.write_side.idempotency import Receipt
from tests.calls import Answer, Call, calls_of, check_again, tail_limit, told_all
from tests.purses import Kind, Short, check_kept, commands, concerns, opened, serial

# ── what has to hold ─────────────────────────────────────────────────────────


def holds_at(answer: Answer, head: int, log: Sequence[Event]) -> bool:
    """Whether what its caller had seen was still so at a head."""
    seen = log[answer.basis : head]
    return answer.call.back is None or not any(concerns(answer.call.command, event) for event in seen)


def check(answer: Answer, log: Sequence[Event]) -> None:
    command, outcome = answer.call.command, answer.outcome
    heads = [head for head in range(answer.before, answer.after + 1) if holds_at(answer, head, log)]
    would = [serial(log[:head], command) for head in heads]
    match outcome:
        case Receipt(position=position):
            assert outcome.events == (log[position - 1],)
            assert serial(log[: position - 1], command) == log[position - 1], "accepted as at its place"
            assert holds_at(answer, position - 1, log), "accepted on what its caller had seen"
        case Verdict(events=events, rejected=None):
            assert events[0] in would, "would be accepted so at no head since"
        case Verdict(rejected=Rejected(code=code)) | Rejected(code=code):
            facts = [event for event in would if isinstance(event, Short)]
            assert facts if code == "short" else code in would, "refused at no head since"
        case ContextChanged():
            assert any(concerns(command, event) for event in log[answer.basis : answer.after]), "something has changed"
        case _:
            raise AssertionError(f"{command} lost more races than there are commands: {outcome!r}")


def check_told(answers: Sequence[Answer], log: Sequence[Event], before: int) -> None:
    """Events are those that were told, and facts of refusals."""
    made = [answer for answer in answers if not answer.call.dry_run]
    receipts = [answer.outcome for answer in made if isinstance(answer.outcome, Receipt)]
    facts = [one for one in made if isinstance(one.outcome, Rejected) and one.outcome.code == "short"]
    assert len(log) - before == len(receipts) + len(facts)


KINDS: dict[Kind, int] = {"memory": 30, "sqlite": 20, "postgres": 10}


@pytest.mark.parametrize("kind", KINDS)
def test_g3_commands_of_three_write_models_equal_a_serial_execution(kind: Kind) -> None:
    """Accepted as at their place, refused as at a head since; rows and states are what events make of them."""

    @settings(max_examples=KINDS[kind], deadline=None)
    @given(
        st.lists(st.lists(calls_of(commands), min_size=1, max_size=9), min_size=1, max_size=3),
        st.sampled_from([1, 2, 1_000]),
        st.sampled_from([1, 3, 1_000]),
    )
    def holds(rounds: list[list[Call]], cached: int, tail: int) -> None:
        async def whole() -> None:
            async with opened(kind) as world:
                before = 0
                for number, given_calls in enumerate(rounds):
                    buses = [await world.cold_bus(index, cached) for index in range(2)]
                    answers = await told_all(world.stores, buses, given_calls, str(number))
                    log = await world.log()
                    for answer in answers:
                        check(answer, log)
                    await check_again(answers, buses[0])
                    for bus in buses:
                        await bus.close()
                    assert await world.log() == log, "what was sent again changed nothing"
                    await check_kept(world, log)
                    check_told(answers, log, before)
                    before = len(log)

        with tail_limit(tail):
            asyncio.run(whole())

    holds()
