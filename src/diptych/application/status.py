"""What an open application says of itself: how far it is, and whether it can do its work."""

from __future__ import annotations

import datetime as dt

import msgspec

from diptych.process_managers.process_worker import ProcessStatus, ScheduledStatus
from diptych.read_side.query_source import ReplicaStatus

__all__ = ["Health", "ProjectionStatus", "Status"]


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one projection, or subscriber, is.

    Attributes:
        name: "school.Seats".
        checkpoint: every event up to this position is folded.
        lag_events: how many positions the history is ahead.
        lag_s: for how many seconds the first event that is not folded has been in the history; 0 at the head.
        slices: into how many its rows are split; the checkpoint is that of the one furthest behind.
        blocked: how many keys are blocked.
        live: whether its rows answer queries; those of a build that has not caught up, or was not begun, do not.
        other_code: whether rows are live that other code folded. They answer where that code still runs.
        stopped: why it cannot go on; empty while it can.
        kept_until: until when the rows are kept that answered before the last switch, to go back to; None where none
            are.
        kept_checkpoint: up to where those are folded.
        store: the read store, without a password; empty where there is only one, and it is kept as the events are. Of
            what is in the memory of each process, "memory:", this one's is told.
    """

    name: str
    checkpoint: int
    lag_events: int
    lag_s: float
    slices: int = 1
    blocked: int = 0
    live: bool = True
    other_code: bool = False
    stopped: str = ""
    kept_until: dt.datetime | None = None
    kept_checkpoint: int = 0
    store: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where an application stands.

    Attributes:
        head: the position of the last event.
        history_id: 32 hexadecimal digits that name the history.
        projections: by name; one in several read stores once for each, that which answers first.
        subscribers: by name.
        processes: by name.
        scheduled: commands that are executed later.
        replicas: that queries are asked on, in the order given, as they were when they were looked at last.
    """

    head: int
    history_id: str
    projections: list[ProjectionStatus]
    subscribers: list[ProjectionStatus]
    processes: list[ProcessStatus] = []
    scheduled: ScheduledStatus = ScheduledStatus()
    replicas: list[ReplicaStatus] = []


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an application can do its work now; if not, why.

    Attributes:
        ready: whether it can.
        reason: why not; empty where it can.
        impaired: what is wrong though it can: replicas that are left out, or far behind; partitions, or read stores,
            that cannot.
    """

    ready: bool
    reason: str = ""
    impaired: tuple[str, ...] = ()
