"""A private Dovecot: IMAP (and LMTP, where a test wants it) on loopback, over the maildirs below a mail root."""

from __future__ import annotations

import imaplib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.log_tails import watch
from tests.support.ports import free_port
from tests.support.waiting import wait_until

PASSWORD = "secret"

_COMPLAINT = re.compile(r"\b(?:Warning|Error|Fatal|Panic): (?!Killed with signal 15 )")

_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
instance_name = {folder.name}
protocols = {protocols}
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_failure_delay = 0
login_trusted_networks = 127.0.0.0/8
mail_location = maildir:{mail_root}/%d/%n
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = 1
first_valid_gid = 1
mail_max_userip_connections = 0
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  {userdb}
}}
service auth {{
  client_limit = 10000
}}
service stats {{
  client_limit = 10000
}}
service imap-login {{
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""

_LMTP = """\
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp_port}
  }}
  process_limit = 1000
  client_limit = 1
}}
protocol lmtp {{
  postmaster_address = postmaster@example.net
}}
"""


@dataclass(frozen=True)
class Message:
    """One message as IMAP shows it. `size` is RFC822.SIZE, `date` INTERNALDATE in seconds since the epoch."""

    uid: int
    size: int
    date: float
    content: bytes


class Dovecot:
    """A Dovecot below `folder`, which must be new and reachable by its users (`shared_folder`).

    The maildir of alice@brokkr.net is `mail_root`/brokkr.net/alice, owned by `uid` and `gid`; any password but
    PASSWORD is wrong. Without `users` every address has a mailbox; with it, LMTP refuses all others. Attributes: `port`
    of IMAP, `lmtp_port` of LMTP if asked for, and `pid` while it runs.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        mail_root: Path,
        *,
        uid: int = 5000,
        gid: int = 5000,
        lmtp: bool = False,
        users: Sequence[str] | None = None,
        configuration: str = "",
    ) -> None:
        self.folder = folder
        self.mail_root = mail_root
        self.log_path = folder / "dovecot.log"
        self.port = free_port()
        self.lmtp_port = free_port() if lmtp else 0
        self._daemon: Daemon | None = None
        text = _CONFIGURATION.format(
            folder=folder,
            mail_root=mail_root,
            protocols="imap lmtp" if lmtp else "imap",
            uid=uid,
            gid=gid,
            password=PASSWORD,
            userdb=self._userdb(uid, gid, users),
            imap_port=self.port,
        )
        text += _LMTP.format(lmtp_port=self.lmtp_port) if lmtp else ""
        (folder / "dovecot.conf").write_text(text + configuration)

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> Dovecot:
        """Starts it and returns when it greets on its ports."""
        command = ["dovecot", "-F", "-c", str(self.folder / "dovecot.conf")]
        self._daemon = Daemon(command, self.folder / "dovecot.out")
        watch(self.log_path, f"Dovecot in {self.folder.name}")
        try:
            wait_until(self._greets, what="Dovecot greets")
        except AssertionError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends it with all its processes. No error if it does not run."""
        if self._daemon is not None:
            self._daemon.end()
            self._daemon = None

    def kill(self) -> None:
        """SIGKILL to all its processes; `start` brings it back with the same ports and mailboxes."""
        self._running().kill()
        self._daemon = None

    @contextmanager
    def login(self, user: str) -> Iterator[imaplib.IMAP4]:
        """A logged-in IMAP session of this user."""
        client = imaplib.IMAP4(self.host, self.port, timeout=30)
        try:
            client.login(user, PASSWORD)
            yield client
        finally:
            client.logout()

    def messages(self, user: str, folder: str = "INBOX") -> list[Message]:
        """Everything in one folder of a user, in the order of UIDs; nothing is marked as seen."""
        with self.login(user) as client:
            kind, data = client.select(folder, readonly=True)
            assert kind == "OK", data
            kind, parts = client.uid("FETCH", "1:*", "(RFC822.SIZE INTERNALDATE BODY.PEEK[])")
            assert kind == "OK", parts
        # imaplib gives a pair for each literal and the closing bracket alone; an empty folder is [None].
        return [_message(*part) for part in parts if isinstance(part, tuple)]

    def complaints(self) -> list[str]:
        """The lines that Dovecot logged as warning, error, fatal or panic, but for those about its own end."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [line for line in lines if _COMPLAINT.search(line)]

    def _userdb(self, uid: int, gid: int, users: Sequence[str] | None) -> str:
        if users is None:
            return f"driver = static\n  args = uid={uid} gid={gid} home=/nonexistent allow_all_users=yes"
        table = self.folder / "users"
        table.write_text("".join(f"{user}::{uid}:{gid}::/nonexistent::\n" for user in users))
        return f"driver = passwd-file\n  args = {table}"

    def _running(self) -> Daemon:
        assert self._daemon is not None, "Dovecot does not run"
        return self._daemon

    def _greets(self) -> bool:
        self._running().require_running()
        try:
            return all(self._greeting(port) in (b"* OK", b"220 ") for port in (self.port, self.lmtp_port) if port)
        except OSError:
            return False

    def _greeting(self, port: int) -> bytes:
        with socket.create_connection((self.host, port), timeout=5) as client:
            return client.recv(4)


def _message(head: bytes, content: bytes) -> Message:
    uid = re.search(rb"UID (\d+)", head)
    size = re.search(rb"RFC822\.SIZE (\d+)", head)
    date = imaplib.Internaldate2tuple(head)
    assert None not in (uid, size, date), head
    return Message(int(uid[1]), int(size[1]), time.mktime(date), content)
