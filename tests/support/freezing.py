"""A process that stands still: connections stay open, and nobody answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Inside, no thread of the process runs; afterwards all go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # The signal is sent at once and takes effect a moment later, thread by thread.
        wait_until(lambda: all(map(_stands, Path(f"/proc/{pid}/task").glob("*/stat"))), what=f"{pid} stands still")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _stands(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True
