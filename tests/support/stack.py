"""Roost as an administrator would set it up: ingest and store on a broker, a Postfix in front, a Dovecot behind."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.support.dovecot import Dovecot
from tests.support.ports import free_port
from tests.support.postfix import Postfix
from tests.support.services import Service

# Owns the mail and runs the store; there need not be a name for it.
VMAIL = 5000
DOMAIN = "brokkr.net"
_USERS = 400


class Stack:
    """The two services in `folder` (a `shared_folder`), with mailboxes for many users; nothing runs until `start`.

    `settings` go to both services. The store runs as VMAIL, so that a missing permission is an error as it would be
    in production. `lmtp` and `lmtp_socket` are where ingest listens, in the form that `LmtpClient` takes.
    """

    def __init__(
        self,
        folder: Path,
        amqp_url: str,
        *,
        mail_root: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.mail_root = mail_root or make_mail_root(folder / "mail")
        self.recipients = folder / "recipients"
        self.recipients.write_text("".join(f"u{n}@{DOMAIN} {DOMAIN}/u{n}/\n" for n in range(_USERS)))
        self.lmtp = f"127.0.0.1:{free_port()}"
        self.lmtp_socket = f"unix:{folder}/lmtp"
        self._numbers = itertools.count()
        self._peers: list[Postfix | Dovecot] = []
        common = {"ROOST_AMQP_URL": amqp_url, **(settings or {})}
        listen = {"ROOST_LMTP": f"{self.lmtp},{self.lmtp_socket}", "ROOST_RECIPIENTS": self.recipients}
        self.ingest = Service("ingest", folder, {**common, **listen})
        self.store = Service("store", folder, {**common, "ROOST_MAIL_ROOT": self.mail_root}, user=VMAIL)

    def start(self) -> Stack:
        """Returns when both services are ready."""
        for service in (self.ingest, self.store):
            service.start(ready=False)
        for service in (self.ingest, self.store):
            service.wait_ready()
        return self

    def stop(self) -> None:
        """Ends all that run, the services by force: they may be frozen, or have nobody to hand their work to."""
        for peer in self._peers:
            peer.stop()
        self.ingest.kill()
        self.store.kill()

    def postfix(self, *, transport: str = "", **settings: str) -> Postfix:
        """A running Postfix that delivers to ingest, unless told another `transport`."""
        folder = self._folder_for("postfix")
        postfix = Postfix(folder, virtual_transport=transport or f"lmtp:inet:{self.lmtp}", settings=settings)
        self._peers.append(postfix)
        return postfix.start()

    def dovecot(self) -> Dovecot:
        """A running Dovecot that shows the mailboxes."""
        dovecot = Dovecot(self._folder_for("dovecot"), self.mail_root, uid=VMAIL, gid=VMAIL)
        self._peers.append(dovecot)
        return dovecot.start()

    def new_users(self, count: int) -> list[str]:
        """Addresses whose mailboxes nobody has used yet."""
        numbers = list(itertools.islice(self._numbers, count))
        assert numbers[-1] < _USERS, "there are no more users"
        return [f"u{number}@{DOMAIN}" for number in numbers]

    def new_user(self) -> str:
        return self.new_users(1)[0]

    def maildir(self, address: str) -> Path:
        return self.mail_root / DOMAIN / address.partition("@")[0]

    def files(self, address: str) -> list[Path]:
        """The messages in a mailbox, seen or not."""
        return [file for name in ("new", "cur") for file in (self.maildir(address) / name).glob("*")]

    def leftovers(self) -> list[Path]:
        """What lies in the `tmp` of any mailbox."""
        return list(self.mail_root.glob("*/*/tmp/*"))

    def _folder_for(self, peer: str) -> Path:
        folder = self.folder / f"{peer}{len(self._peers)}"
        folder.mkdir()
        folder.chmod(0o711)
        return folder


def make_mail_root(path: Path) -> Path:
    """A folder that belongs to VMAIL."""
    path.mkdir(exist_ok=True)
    path.chmod(0o700)
    shutil.chown(path, VMAIL, VMAIL)
    return path


def lock(maildir: Path) -> None:
    """Take away the store's right to write into a mailbox that is there."""
    for folder in (maildir / "tmp", maildir / "new"):
        os.chown(folder, 0, 0)


def unlock(maildir: Path) -> None:
    """Give it back."""
    for folder in (maildir / "tmp", maildir / "new"):
        os.chown(folder, VMAIL, VMAIL)
