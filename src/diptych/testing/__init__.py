"""The testing kit: scenarios, the whole application in memory, a clock to move by hand; contracts for adapters."""

from diptych.testing.golden_events import check_golden_events
from diptych.testing.in_memory_application import InMemoryApplication
from diptych.testing.interleavings import check_commutative
from diptych.testing.manual_clock import ManualClock
from diptych.testing.process_scenario import ProcessOutcome
from diptych.testing.scenario import Outcome, Scenario, scenario

__all__ = [
    "InMemoryApplication",
    "ManualClock",
    "Outcome",
    "ProcessOutcome",
    "Scenario",
    "check_commutative",
    "check_golden_events",
    "scenario",
]
