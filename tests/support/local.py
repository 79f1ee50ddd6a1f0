"""The local deployment as a user runs it: `deploy/local/up` with settings of its own, and what it says and leaves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from deploy.local import sockets
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
UP = ROOT / "deploy" / "local" / "up"
SEND = ROOT / "deploy" / "local" / "send"

# The first start makes a virtual environment, and every start boots a broker.
_READY_S = 180
_STOP_S = 60


class LocalDeployment:
    """One copy of Roost. `settings` are ROOST_ variables on top of ports and a state folder of its own."""

    def __init__(self, state: Path, **settings: str) -> None:
        self.state = state
        self.output = state.with_name(f"{state.name}.output")
        lmtp = sockets.free_ports(3)
        self.settings = {
            "ROOST_STATE": str(state),
            "ROOST_LMTP": f"127.0.0.1:{lmtp}",
            "ROOST_INGEST_HTTP": f"127.0.0.1:{lmtp + 1}",
            "ROOST_STORE_HTTP": f"127.0.0.1:{lmtp + 2}",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Starts `up` and does not wait."""
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [str(UP)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Returns when `up` says that everything is ready; AssertionError with what it printed if it does not."""
        self.launch()
        wait_until(lambda: "Roost is ready" in self.printed() or self.has_ended(), what="ready", timeout=_READY_S)
        assert not self.has_ended(), self.printed()

    def run_to_its_end(self) -> int:
        """The exit status of an `up` that cannot start."""
        self.launch()
        assert self._process is not None
        return self._process.wait(_READY_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals `up`, as a user or an init would, and returns its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(_STOP_S)

    def end(self) -> None:
        """Ends it whatever state it is in; for fixtures. What `up` left behind is ended through its process groups."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
            if self._process.poll() is None:
                # The supervisor follows its parent, and the programs follow the supervisor.
                self._process.kill()
                self._process.wait(_STOP_S)

    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def environment(self) -> dict[str, str]:
        """The caller's environment, without the settings of another copy."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith(("ROOST_", "BROKER_"))}
        return {**foreign, **self.settings}

    def send_command(self) -> str:
        """The shell command for a first message, as `up` prints it."""
        found = re.search(r"^  (printf .*)$", self.printed(), re.MULTILINE)
        assert found, self.printed()
        return found[1]

    def send(self, recipient: str, content: bytes) -> subprocess.CompletedProcess[bytes]:
        """One message through `deploy/local/send`."""
        return subprocess.run(
            [str(SEND), recipient], input=content, env=self.environment(), capture_output=True, timeout=120, check=False
        )

    def mail(self, mailbox: str) -> list[bytes]:
        """The new messages of a mailbox, given as its path below the mail root."""
        return [file.read_bytes() for file in sorted((self.state / "mail" / mailbox / "new").glob("*"))]

    def pid_of(self, program: str) -> int:
        """The latest process of broker, store or ingest, from the supervisor's notices."""
        return int(re.findall(rf"spawned: '{program}' with pid (\d+)", self.printed())[-1])

    def is_ready(self) -> bool:
        """Whether both services say that they are."""
        return all(_is_ok(self.settings[name]) for name in ("ROOST_INGEST_HTTP", "ROOST_STORE_HTTP"))

    def processes(self) -> list[int]:
        """Every live process that was started with this copy's state folder in its environment."""
        mark = f"ROOST_STATE={self.state}".encode()
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if mark in _environment_of(folder)]

    def ports(self) -> list[int]:
        """Every TCP port that this copy uses: its services' and its broker's three."""
        own = [sockets.address(self.settings[f"ROOST_{name}"])[1] for name in ("LMTP", "INGEST_HTTP", "STORE_HTTP")]
        amqp = int(re.findall(r"127\.0\.0\.1:(\d+)$", self._broker_configuration(), re.MULTILINE)[0])
        return [*own, amqp, amqp + 1, amqp + 2]

    def _broker_configuration(self) -> str:
        return (self.state / "broker" / "rabbitmq.conf").read_text()


def _is_ok(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def _environment_of(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
