"""A private RabbitMQ for tests: started by `deploy/local/broker`, stopped, killed and started again with its data."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from deploy.local import sockets
from tests.support.waiting import wait_until

_BROKER = str(Path(__file__).parents[2] / "deploy" / "local" / "broker")
_START_S = 60
_STOP_S = 30
# An unlucky choice: somebody else took one of the ports before RabbitMQ did.
_ATTEMPTS = 3


class BrokerError(Exception):
    """The broker did not start; the message holds the end of its log."""


class Broker:
    """RabbitMQ with its data below `home`; not running until `start`.

    Its methods block: in an event loop that other parts of a test need, call them by `asyncio.to_thread`.
    `configuration` is lines for rabbitmq.conf.
    """

    def __init__(self, home: Path, configuration: str = "") -> None:
        self.home = home
        self.log = home.with_name(f"{home.name}.log")
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None
        self._choose_ports()

    @property
    def url(self) -> str:
        """amqp://user:password@127.0.0.1:port/, the same after a restart."""
        return self._call("url").strip()

    @property
    def pid(self) -> int:
        """The process id of the Erlang node."""
        assert self._process is not None, "the broker does not run"
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers AMQP, with the data and the port of the run before. Raises BrokerError."""
        self._launch()
        attempts = 1
        while self._has_ended() and not self._has_data() and attempts < _ATTEMPTS:
            self._choose_ports()
            self._launch()
            attempts += 1
        if self._has_ended():
            raise BrokerError(self.log.read_text(errors="replace")[-4000:])

    def stop(self) -> None:
        """Ends it in good order (SIGTERM); nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def rabbitmqctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints on standard output. Raises subprocess.CalledProcessError; takes about a second."""
        return self._call("ctl", *arguments)

    def _choose_ports(self) -> None:
        self.port = sockets.free_ports(3)

    def _launch(self) -> None:
        """Starts it and waits until it answers or has ended."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [_BROKER, "run"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self._has_ended() or self._answers(), what="the broker answers", timeout=_START_S, poll=0.1)

    def _answers(self) -> bool:
        return sockets.speaks_amqp(f"127.0.0.1:{self.port}")

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _has_data(self) -> bool:
        return (self.home / "data").exists()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
            raise

    def _call(self, *arguments: str) -> str:
        command = [_BROKER, *arguments]
        return subprocess.run(
            command, env=self._environment(), check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout

    def _environment(self) -> dict[str, str]:
        own = {"BROKER_HOME": str(self.home), "BROKER_PORT": str(self.port), "BROKER_EXTRA_CONF": self._configuration}
        return {**os.environ, **own}
