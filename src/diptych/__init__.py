"""Diptych: a CQRS framework and runtime. Commands change state, queries read it, an event store lies between them."""

from diptych.application.application import Application
from diptych.application.bounded_context import BoundedContext
from diptych.application.sync_application import SyncApplication
from diptych.errors import (
    ConfigurationError,
    Conflict,
    NotFresh,
)
from diptych.event_store.transactions import Transaction
from diptych.messages.command import Command, CommandContext
from diptych.messages.event import Event, EventContext
from diptych.messages.identity import Identity, Untagged
from diptych.messages.message import Value, replace
from diptych.messages.query import Query
from diptych.messages.rejected import Rejected
from diptych.process_managers.process_events import CommandRejected, Timeout
from diptych.process_managers.process_manager import ProcessManager, Reaction
from diptych.read_side.conditions import at_least, at_most, less_than, more_than, one_of, starts_with
from diptych.read_side.query_bus import Answer
from diptych.read_side.read_model import ExpiresAt, Indexed, Key, ReadModel, Searchable
from diptych.read_side.reader import Page, Reader
from diptych.write_side.command_handler import By
from diptych.write_side.context_changed import ContextChanged
from diptych.write_side.decision_model import DecisionModel
from diptych.write_side.idempotency import Receipt
from diptych.write_side.verdict import Verdict

__all__ = [
    "Answer",
    "Application",
    "BoundedContext",
    "By",
    "Command",
    "CommandContext",
    "CommandRejected",
    "ConfigurationError",
    "Conflict",
    "ContextChanged",
    "DecisionModel",
    "Event",
    "EventContext",
    "ExpiresAt",
    "Identity",
    "Indexed",
    "Key",
    "NotFresh",
    "Page",
    "ProcessManager",
    "Query",
    "Reaction",
    "ReadModel",
    "Reader",
    "Receipt",
    "Rejected",
    "Searchable",
    "SyncApplication",
    "Timeout",
    "Transaction",
    "Untagged",
    "Value",
    "Verdict",
    "at_least",
    "at_most",
    "less_than",
    "more_than",
    "one_of",
    "replace",
    "starts_with",
]
