"""Dovecot finds everything in a mailbox that Roost filled as it would have put it there itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.e2e.conftest import Site
from tests.support.letters import hand_in, letter
from tests.support.stack import VMAIL
from tests.support.trace import traced

FILE_NAME = re.compile(r"(?P<secs>\d+)\.M\d{1,6}P(?P<delivery>\w{18})(-\d+)?\.[^,:/]+,S=(?P<size>\d+),W=(?P<shown>\d+)")


def deliver(site: Site, user: str, *contents: bytes) -> None:
    sent = hand_in(site.postfix, [((user,), content) for content in contents])
    site.postfix.wait_removed({message.queue_id for message in sent})


def test_the_sizes_in_a_file_name_are_the_files_and_what_imap_shows(site: Site) -> None:
    """S= is the file's size and W= is RFC822.SIZE and the octets shown, for messages of many kinds and sizes."""
    user = site.stack.new_user()
    letters = [letter(1, size) for size in (0, 70, 5_000, 300_000)]
    contents = [*letters, b"Subject: \xc3\xa4\r\n\r\n\xe4\r\n\r\n.\r\n", b"Subject: empty\r\n"]
    deliver(site, user, *contents)
    named = {}
    for file in site.stack.files(user):
        name = FILE_NAME.match(file.name)
        assert name, file.name
        assert int(name["size"]) == file.stat().st_size
        named[name["delivery"]] = name
    messages = site.dovecot.messages(user)
    assert len(messages) == len(named) == len(contents)
    for message in messages:
        name = named[traced(message.content).delivery]
        assert int(name["shown"]) == message.size == len(message.content)
        # Dovecot goes by the file's own time, which is set a moment after its name.
        assert abs(int(name["secs"]) - message.date) <= 5


def test_a_mailbox_belongs_to_its_owner_alone(site: Site) -> None:
    """Directories have mode 0700 and files 0600, all of the store's user."""
    user = site.stack.new_user()
    deliver(site, user, letter(1))
    maildir = site.stack.maildir(user)
    for directory in (maildir.parent, maildir, maildir / "tmp", maildir / "new", maildir / "cur"):
        assert owner_and_mode(directory) == (VMAIL, VMAIL, 0o700)
    [file] = site.stack.files(user)
    assert owner_and_mode(file) == (VMAIL, VMAIL, 0o600)


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


def test_a_mailbox_that_dovecot_made_takes_mail(site: Site) -> None:
    """Whoever creates a mailbox first, the delivery or its owner's login, the mail is shown."""
    user = site.stack.new_user()
    assert site.dovecot.messages(user) == []
    assert (site.stack.maildir(user) / "cur").is_dir()
    deliver(site, user, letter(1))
    assert len(site.dovecot.messages(user)) == 1


def test_mail_shows_up_in_a_session_that_is_open(site: Site) -> None:
    """An IMAP client that has its INBOX selected is told of a new message, and that it is recent and unseen."""
    user = site.stack.new_user()
    deliver(site, user, letter(1))
    with site.dovecot.login(user) as client:
        assert client.select("INBOX")[1] == [b"1"]
        deliver(site, user, letter(2))
        client.noop()
        assert client.untagged_responses["EXISTS"][-1] == b"2"
        assert client.search(None, "UNSEEN")[1] == [b"1 2"]


def test_the_owner_moves_and_deletes_while_mail_arrives(site: Site) -> None:
    """A message that the owner has moved, flagged or deleted stays so, and mail that comes meanwhile is shown."""
    user = site.stack.new_user()
    deliver(site, user, *(letter(number) for number in range(3)))
    with site.dovecot.login(user) as client:
        client.create("Archive")
        client.select("INBOX")
        client.copy("1", "Archive")
        client.store("1:2", "+FLAGS", r"(\Deleted)")
        client.store("3", "+FLAGS", r"(\Seen \Flagged)")
        client.expunge()
        deliver(site, user, letter(3))
    assert subjects(site, user, "Archive") == ["0"]
    assert subjects(site, user) == ["2", "3"]


def subjects(site: Site, user: str, folder: str = "INBOX") -> list[str]:
    texts = [traced(message.content).submitted()[1] for message in site.dovecot.messages(user, folder)]
    return [match[1].decode() for text in texts if (match := re.search(rb"^Subject: (\d+)\r$", text, re.MULTILINE))]


def test_the_time_of_arrival_is_the_time_of_delivery(site: Site) -> None:
    """INTERNALDATE lies between submission and reading."""
    user = site.stack.new_user()
    # The clock of a file system may be some milliseconds behind.
    before = int(time.time() - 1)
    deliver(site, user, letter(1))
    [message] = site.dovecot.messages(user)
    assert before <= message.date <= time.time()
