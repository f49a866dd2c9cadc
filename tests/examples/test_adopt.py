"""The service that becomes CQRS: what it prints after each step."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from tests.examples.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OUTPUT = """\
0 crud       (201, {'id': 'o-1'}) (200, {'customer': 'ada', 'orders': 1, 'units': 2})
1 command    201 True (409, {'error': 'out-of-stock'}) (200, {'customer': 'ada', 'orders': 2, 'units': 3})
2 projection 1 0 taken over
3 query      (200, {'customer': 'ada', 'orders': 3, 'units': 6}) True
4 rule       more-than-ordered {'returnable': 1}
"""
EVENTS = ["OrderPlaced", "OrderTakenOver", "OrderPlaced", "OrderReturned"]


def test_after_each_step_the_service_works(tmp_path: Path) -> None:
    """Each step is run from the code as it is then, on the tables of before; all of it is in one file at the end."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "error", "-m", "adopt.main", "shop.db"]
    env = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.stderr, ran.stdout) == ("", OUTPUT)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        stored = connection.execute(
            "SELECT t.name FROM events AS e JOIN event_types AS t ON t.id = e.type ORDER BY e.position"
        )
        assert [name.removeprefix("shop.") for (name,) in stored] == EVENTS
        assert connection.execute("SELECT id, quantity FROM orders ORDER BY 1").fetchall() == [
            ("o-1", 2),
            ("o-2", 1),
            ("o-4", 3),
        ]
