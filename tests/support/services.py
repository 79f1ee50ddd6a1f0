"""Ingest and store as real processes: started with settings, awaited, asked, signalled, started again."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon
from tests.support.log_tails import watch
from tests.support.ports import free_port
from tests.support.service_log import ServiceLog
from tests.support.waiting import wait_until

_REPOSITORY = Path(__file__).parents[2]
_START_S = 30
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# linux/capability.h
_CAP_DAC_READ_SEARCH = 1 << 2


class Service:
    """`name` is ingest or store; its log and nothing else goes into `folder`.

    `settings` maps ROOST_… to values; settings of the tests' own environment do not reach it, and the address of its
    health endpoints is its own. With `user` it runs under this uid and gid, without root's right to write anywhere.
    Change `settings` between two starts at will. Attributes: `pid` while it runs, `log`.
    """

    def __init__(
        self, name: str, folder: Path, settings: Mapping[str, object], *, user: int | None = None, title: str = ""
    ) -> None:
        self.name = name
        self.http = f"127.0.0.1:{free_port()}"
        self.settings: dict[str, object] = {f"ROOST_{name.upper()}_HTTP": self.http, **settings}
        self.log = ServiceLog(folder / f"{title or name}.log")
        self._user = user
        self._daemon: Daemon | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def runs(self) -> bool:
        return self._daemon is not None and not self._daemon.has_ended

    def start(self, *, ready: bool = True) -> Service:
        """Starts it, and returns when /readyz says yes; with ready=False as soon as the process exists."""
        watch(self.log.path, f"{self.name} in {self.log.path.parent.name}")
        own = {name: value for name, value in os.environ.items() if not name.startswith("ROOST_")}
        self._daemon = Daemon(
            [*_as_user(self._user), sys.executable, "-m", f"services.{self.name}"],
            self.log.path,
            environment={**own, **{name: str(value) for name, value in self.settings.items()}},
            directory=_REPOSITORY,
        )
        if ready:
            self.wait_ready()
        return self

    def terminate(self) -> None:
        """SIGTERM, without waiting for what it leads to."""
        self._running().signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        self._running().signal(number)

    def wait(self, timeout: float = 20) -> int:
        """The exit status, -N if signal N ended it; AssertionError if it still runs after `timeout` seconds."""
        status = self._running().wait(timeout)
        self._daemon = None
        return status

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM and the exit status; 0 if it does not run."""
        if self._daemon is None:
            return 0
        self.terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, whether it runs, is stopped or has ended."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None

    def wait_ready(self, timeout: float = _START_S) -> None:
        """Returns when /readyz says yes. AssertionError if it does not in time, or if the process ends."""
        wait_until(self._is_ready, what=f"{self.name} is ready", timeout=timeout, poll=0.05)

    def readiness(self) -> dict[str, bool]:
        """The checks of /readyz by their names. OSError if nobody answers."""
        checks: dict[str, dict[str, Any]] = json.loads(self.page("/readyz")[1])["checks"]
        return {name: check["ok"] for name, check in checks.items()}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name (`roost_ingest_recipients_total`) that have these labels; 0 if none."""
        families = text_string_to_metric_families(self.page("/metrics")[1])
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def wait_metric(self, name: str, least: float, *, timeout: float = 20, **labels: str) -> None:
        """Returns when a metric is at least this."""
        wait_until(
            lambda: self.metric(name, **labels) >= least, what=f"{name}{labels} is at least {least}", timeout=timeout
        )

    def page(self, path: str) -> tuple[int, str]:
        """The status and the text of a health endpoint. OSError if nobody answers."""
        try:
            with _DIRECT.open(f"http://{self.http}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _running(self) -> Daemon:
        assert self._daemon is not None, f"{self.name} does not run"
        return self._daemon

    def _is_ready(self) -> bool:
        self._running().require_running()
        try:
            return self.page("/readyz")[0] == 200
        except OSError:
            return False


def _as_user(user: int | None) -> list[str]:
    """The command that runs another one as this user.

    The checkout may be in a folder that only root can enter. The one capability that is kept, where root itself has it,
    lets the process read all, and write no more than its user may.
    """
    if user is None:
        return []
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    bounds = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    if int(bounds.split()[1], 16) & _CAP_DAC_READ_SEARCH:
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return command
