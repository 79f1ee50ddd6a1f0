"""A private Postfix: own configuration, queue, log and port, started as root from the system's binaries.

Knows nothing of Roost: `virtual_transport` says whom it hands the mail of its domains to.
"""

from __future__ import annotations

import json
import os
import shutil
import smtplib
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.log_tails import watch
from tests.support.ports import free_port
from tests.support.postfix_log import Attempt, PostfixLog
from tests.support.waiting import wait_until

MASTER = Path("/usr/lib/postfix/sbin/master")

_MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
showq unix n - n - - showq
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

_SETTINGS = {
    "compatibility_level": "3.6",
    "myhostname": "mx.example.net",
    "mydestination": "",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "mynetworks": "127.0.0.0/8",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "smtpd_peername_lookup": "no",
    "smtp_dns_support_level": "disabled",
    "lmtp_dns_support_level": "disabled",
    "maximal_queue_lifetime": "1h",
    "bounce_queue_lifetime": "1h",
    # Nothing leaves the machine: mail to other domains, bounces to their senders included, goes nowhere.
    "default_transport": "discard:",
    "relay_transport": "discard:",
    # Who exists is the LMTP server's to say, at RCPT.
    "smtpd_reject_unlisted_recipient": "no",
    "alias_maps": "",
    "alias_database": "",
    "local_recipient_maps": "",
    "enable_long_queue_ids": "yes",
    # What a client hands in goes out unchanged, but for Postfix' own Received line: no Message-Id or Date is added,
    # no address rewritten, no long line folded.
    "local_header_rewrite_clients": "",
    "lmtp_line_length_limit": "0",
    "message_size_limit": str(100 * 2**20),
    "queue_minfree": "0",
    # Retries come within seconds, and input is never slowed down in favour of output.
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "2s",
    "queue_run_delay": "1s",
    "in_flow_delay": "0",
    "smtpd_error_sleep_time": "0",
}

# folder: (mode, group); the owner is postfix but for pid, as Postfix' own post-install makes them.
_QUEUE_FOLDERS = {
    **dict.fromkeys(
        ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "saved", "trace", "private"),
        (0o700, "root"),
    ),
    "maildrop": (0o1730, "postdrop"),
    "public": (0o2710, "postdrop"),
}


class Postfix:
    """A Postfix below `folder`, which must be new and reachable by the postfix user (`shared_folder`).

    `settings` are lines of main.cf, for what the caller wants otherwise. Attributes: `host` and `port` of its SMTP
    server, `log`, and `pid` while it runs.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        *,
        virtual_transport: str,
        domains: Sequence[str] = ("brokkr.net",),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = PostfixLog(folder / "mail.log")
        self._daemon: Daemon | None = None
        self._make_folders()
        self._write_settings(
            {"virtual_mailbox_domains": " ".join(domains), "virtual_transport": virtual_transport, **(settings or {})},
        )

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> Postfix:
        """Starts it and returns when it greets; at a second start the queue and the log are still there."""
        self._daemon = Daemon([str(MASTER), "-c", str(self._etc), "-s"], self.folder / "master.out")
        watch(self.log.path, f"Postfix in {self.folder.name}")
        try:
            wait_until(self._greets, what="Postfix greets")
        except AssertionError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends it with all its processes. No error if it does not run."""
        if self._daemon is not None:
            self._daemon.end()
            self._daemon = None

    def configure(self, **settings: str) -> None:
        """Changes lines of main.cf. Processes that start from now on see them; `reload` renews the others."""
        lines = [f"{name}={value}" for name, value in settings.items()]
        subprocess.run(["postconf", "-c", self._etc, "-e", *lines], check=True, timeout=10)
        _backdate(self._etc / "main.cf")

    def texthash(self, name: str, entries: Mapping[str, str]) -> str:
        """A lookup table for a setting such as virtual_mailbox_maps, written to a file; its `texthash:` name."""
        text = "".join(f"{key} {value}\n" for key, value in entries.items())
        return f"texthash:{self._write(name, text)}"

    def reload(self) -> None:
        subprocess.run(["postfix", "-c", self._etc, "reload"], check=True, capture_output=True, timeout=10)

    def flush(self) -> None:
        """Tries every deferred message again now, whatever its backoff time."""
        subprocess.run(["postqueue", "-c", self._etc, "-f"], check=True, timeout=10)

    def queue(self) -> list[dict[str, object]]:
        """What is in the queue, as `postqueue -j` prints it: queue_name, queue_id, sender, recipients and more."""
        command = ["postqueue", "-c", self._etc, "-j"]
        listing = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        return [json.loads(line) for line in listing.splitlines()]

    def submit(self, sender: str, recipients: Sequence[str], content: bytes) -> str:
        """Hands in one message by SMTP; the queue id that the log names it by. AssertionError unless accepted."""
        with smtplib.SMTP(self.host, self.port, "client.example.net", timeout=60) as client:
            return submit(client, sender, recipients, content)

    def wait_for(self, queue_id: str, recipient: str, status: str, *, timeout: float = 30) -> Attempt:
        """The first attempt for this recipient that ended as `status`."""

        def found() -> Attempt | None:
            attempts = self.log.attempts(queue_id, recipient)
            return next((attempt for attempt in attempts if attempt.status == status), None)

        return wait_until(found, what=f"status={status} of {recipient} in {queue_id}", timeout=timeout)

    def wait_removed(self, queue_ids: set[str], *, timeout: float = 30) -> None:
        """Returns when Postfix has finished with all these messages."""
        wait_until(lambda: queue_ids <= self.log.removed(), what="the queue is empty", timeout=timeout)

    @property
    def _etc(self) -> Path:
        return self.folder / "etc"

    def _write(self, name: str, text: str) -> Path:
        file = self._etc / name
        file.write_text(text)
        _backdate(file)
        return file

    def _running(self) -> Daemon:
        assert self._daemon is not None, "Postfix does not run"
        return self._daemon

    def _greets(self) -> bool:
        self._running().require_running()
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as client:
                return client.recv(3) == b"220"
        except OSError:
            return False

    def _make_folders(self) -> None:
        queue = self.folder / "queue"
        for folder in (self._etc, queue, queue / "pid", self.folder / "data"):
            folder.mkdir(mode=0o755)
        shutil.chown(self.folder / "data", "postfix", "postfix")
        for name, (mode, group) in _QUEUE_FOLDERS.items():
            (queue / name).mkdir()
            shutil.chown(queue / name, "postfix", group)
            (queue / name).chmod(mode)

    def _write_settings(self, settings: Mapping[str, str]) -> None:
        own = {
            "queue_directory": str(self.folder / "queue"),
            "data_directory": str(self.folder / "data"),
            "maillog_file": str(self.log.path),
            "maillog_file_prefixes": str(self.folder),
        }
        lines = [f"{name} = {value}\n" for name, value in {**_SETTINGS, **own, **settings}.items()]
        self._write("main.cf", "".join(lines))
        self._write("master.cf", _MASTER_CF.format(port=self.port))
        self.log.path.touch()


def _backdate(file: Path) -> None:
    """Postfix reads a fresh file again and again until it is two seconds old, lest somebody is still writing it."""
    old = file.stat().st_mtime - 10
    os.utime(file, (old, old))


def submit(client: smtplib.SMTP, sender: str, recipients: Sequence[str], content: bytes) -> str:
    """Sends one message on an open session; Postfix' queue id. `content` has CRLF line ends and goes out as it is."""
    client.ehlo_or_helo_if_needed()
    replies = [client.mail(sender, ["BODY=8BITMIME"]), *(client.rcpt(recipient) for recipient in recipients)]
    assert all(code == 250 for code, _ in replies), replies
    code, text = client.data(content)
    assert code == 250, text
    return text.decode().rsplit(" ", 1)[-1]
