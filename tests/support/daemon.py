"""A process as the leader of its own process group: started, watched, and gone with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import wait_until


class Daemon:
    """One running daemon. `output` is the file that takes its standard output and standard error.

    It runs in `directory` with `environment`; both are the tests' own unless given.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.output = output
        with output.open("ab") as sink:
            # Postfix' master and Dovecot signal their whole process group: it must not be the tests' own.
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the leader has; its children may still be there."""
        return self._process.poll() is not None

    def require_running(self) -> None:
        """AssertionError with what it printed if it has ended."""
        if self.has_ended:
            printed = self.output.read_text(errors="replace")[-2000:]
            raise AssertionError(f"{self._process.args} ended with {self._process.returncode}: {printed}")

    def signal(self, number: signal.Signals) -> None:
        """Signals every process of the group; no error if none is left."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self, timeout: float) -> int:
        """The leader's exit status, -N if signal N ended it. AssertionError if it has none after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self._process.args} did not end within {timeout} s") from error

    def end(self, timeout: float = 10) -> None:
        """SIGTERM, then SIGKILL after `timeout` seconds; returns when no process of the group is left."""
        if not self.has_ended:
            self._process.terminate()
        try:
            self.wait(timeout)
            wait_until(self._is_gone, what="the children have ended", timeout=timeout)
        except AssertionError:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the group; returns when none is left."""
        self.signal(signal.SIGKILL)
        self.wait(10)
        wait_until(self._is_gone, what="the killed group has ended")

    def _is_gone(self) -> bool:
        return not any(_is_alive_in(self.pid, stat) for stat in Path("/proc").glob("[0-9]*/stat"))


def _is_alive_in(group: int, stat: Path) -> bool:
    """Whether a process, given by its /proc/PID/stat, is of this group and no zombie.

    Orphans stay zombies until process 1 reaps them, which takes seconds on some machines and for ever in some
    containers; a signal to the group still finds them.
    """
    try:
        state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(its_group) == group and state not in "ZX"
