"""A backlog folded into one or two tables by the library `eventsourcing` on PostgreSQL, where that is installed.

It follows an application with a subscription, and runs one transaction for each event, with its tracking record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from eventsourcing.application import Application  # type: ignore[import-not-found]
from eventsourcing.postgres import PostgresTrackingRecorder  # type: ignore[import-not-found]
from eventsourcing.projection import Projection, ProjectionRunner  # type: ignore[import-not-found]
from psycopg.sql import SQL, Identifier  # type: ignore[import-not-found]

from benchmarks.measure import Side, Turn
from benchmarks.peers import Account

EVENTS_A_SECOND_MAX = 4_000
"""The backlog is as long as this rate would need: more than it has been seen to reach."""
EVENTS_OF_AN_ACCOUNT = 26
TABLES = {1: ("balance",), 2: ("balance", "activity")}
"""By the number of read models."""

_CREATE = {
    "balance": "CREATE TABLE IF NOT EXISTS {0}.peer_balance (account uuid PRIMARY KEY, balance bigint NOT NULL)",
    "activity": (
        "CREATE TABLE IF NOT EXISTS {0}.peer_activity "
        "(account uuid PRIMARY KEY, entries bigint NOT NULL, largest bigint NOT NULL)"
    ),
}
_UPSERT = {
    "balance": (
        "INSERT INTO {0}.peer_balance AS t VALUES (%(account)s, %(amount)s) "
        "ON CONFLICT (account) DO UPDATE SET balance = t.balance + excluded.balance"
    ),
    "activity": (
        "INSERT INTO {0}.peer_activity AS t VALUES (%(account)s, 1, %(amount)s) ON CONFLICT (account) "
        "DO UPDATE SET entries = t.entries + 1, largest = greatest(t.largest, excluded.largest)"
    ),
}


class Tables(PostgresTrackingRecorder):  # type: ignore[misc]
    """The tables of the read models."""

    read_models: tuple[str, ...] = ()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        schema = Identifier(self.datastore.schema)
        self.sql_create_statements += [SQL(_CREATE[name]).format(schema) for name in self.read_models]
        self.upserts = [SQL(_UPSERT[name]).format(schema) for name in self.read_models]

    def credit(self, account: UUID, amount: int, tracking: Any) -> None:
        """Change the rows of one event, with its tracking record."""
        with self.datastore.transaction(commit=True) as cursor:
            for upsert in self.upserts:
                cursor.execute(upsert, {"account": account, "amount": amount}, prepare=True)
            self._insert_tracking(cursor, tracking)


class OneTable(Tables):
    read_models = TABLES[1]


class TwoTables(Tables):
    read_models = TABLES[2]


class Folded(Projection):  # type: ignore[misc]
    """Follows the accounts."""

    def process_event(self, domain_event: Any, tracking: Any) -> None:
        """Fold one event."""
        self.view.credit(domain_event.originator_id, getattr(domain_event, "amount", 0), tracking)


class OneFolded(Folded):
    """Into one table."""


class TwoFolded(Folded):
    """Into two."""


def projection_side(settings: Mapping[str, str], read_models: int) -> Side:
    """A backlog longer than can be folded in the time, and how much of it is."""
    views, projections = {1: OneTable, 2: TwoTables}, {1: OneFolded, 2: TwoFolded}

    def side(seconds: float) -> Turn:
        fill(settings, round(EVENTS_A_SECOND_MAX * seconds))
        started = time.perf_counter()
        runner = ProjectionRunner(
            application_class=Application,
            projection_class=projections[read_models],
            view_class=views[read_models],
            env=dict(settings),
        )
        name = runner.app_name
        before = runner.view.max_tracking_id(name) or 0
        with runner:
            runner.run_forever(seconds)
            took_s, after = time.perf_counter() - started, runner.view.max_tracking_id(name) or 0
        return Turn(after - before, took_s)

    return side


def fill(settings: Mapping[str, str], events: int) -> None:
    """Append at least so many events."""
    application: Application[UUID] = Application(env=dict(settings))
    for _ in range(0, events, EVENTS_OF_AN_ACCOUNT):
        account: Any = Account()
        for amount in range(EVENTS_OF_AN_ACCOUNT - 1):
            account.credit(amount)
        application.save(account)
    application.close()
