"""What is in a message stays as it is, whatever it is, from the MTA to the IMAP client."""

from __future__ import annotations

import random

import pytest

from tests.e2e.conftest import Site
from tests.support.letters import SENDER
from tests.support.lmtp_client import LmtpClient
from tests.support.trace import traced

HEADER = b"Message-ID: <content@client.example.net>\r\nSubject: content\r\n\r\n"
MEBIBYTE = 1 << 20

CONTENTS = {
    "8 bits": HEADER + bytes(byte for byte in range(1, 256) if byte not in b"\r\n") * 4 + b"\r\n",
    "UTF-8": "Subject: Grüße aus 東京 🚲\r\n\r\n안녕하세요, übermäßig\r\n".encode(),
    "ISO 8859-1": HEADER + "Grüße\r\n".encode("latin-1"),
    "only dots": HEADER + b".\r\n..\r\n...\r\n.\r\n\r\n.\r\n",
    "dots at line starts": HEADER + b".a\r\n..b\r\n. c\r\n.\r\n.",
    "a header only": HEADER[:-2],
    "a header and the empty line": HEADER,
    "blank lines at the end": HEADER + b"text\r\n\r\n\r\n\r\n",
    "white space at line ends": HEADER + b"text \t\r\n \r\n\t\r\n",
    "From at a line start": HEADER + b"\r\nFrom me to you\r\n>From you to me\r\n",
    "trace fields of others": b"Delivered-To: z@brokkr.net\r\nReceived: from a by b; c\r\n" + HEADER,
    "a line of 200,000 octets": HEADER + b"x" * 200_000 + b"\r\n",
    "a header line of 50,000 octets": b"X-Long: " + b"y" * 50_000 + b"\r\n" + HEADER,
    "a folded header": b"Subject: a\r\n b\r\n\tc\r\n\r\ntext\r\n",
}

# Postfix puts an empty line above what does not begin with a header.
HEADERLESS_CONTENTS = {"nothing": b"", "dots": b".\r\n..\r\n...\r\n.\r\n", "text": b"text\r\n"}

# Postfix would not hand these over as they are, so they come from a client of the tests' own.
RAW_CONTENTS = {
    "nothing": b"",
    "one line end": b"\r\n",
    "dots without a header": b".\r\n..\r\n.\r\n",
    "no header": b"text\r\n",
    "a lone CR": HEADER + b"a\rb\r\n\rc\r\n",
    "a Return-Path of somebody else": b"Return-Path: <x@example.com>\r\n" + HEADER,
}

# As handed over, and as shown.
CHANGED_CONTENTS = {
    # Files have LF line ends, as Dovecot's own have.
    "a bare LF": (b"a\nb\r\n", b"a\r\nb\r\n"),
    "a CR before a line end": (b"a\r\r\nb\r\n", b"a\r\nb\r\n"),
    # IMAP cannot carry it (RFC 3501 4.3): Dovecot shows another octet, the file has it as it is.
    "NUL": (b"a\0b\r\n", b"a\x80b\r\n"),
}


def deliver(site: Site, user: str, content: bytes) -> None:
    with LmtpClient(site.stack.lmtp) as client:
        client.open()
        [(_, reply)] = client.deliver(SENDER, [user], content).final()
    assert reply.code == 250


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_dovecot_shows_what_was_handed_to_postfix(site: Site, content: bytes) -> None:
    """The message is byte for byte what was submitted, below the trace fields of Postfix and Roost.

    Long lines too, since this Postfix has lmtp_line_length_limit = 0; by default it folds lines above 998 octets before
    it hands them over. It also drops Return-Path and Bcc (message_drop_headers) and makes a space of a lone CR.
    """
    user = site.stack.new_user()
    queue_id = site.postfix.submit(SENDER, [user], content)
    site.postfix.wait_for(queue_id, user, "sent")
    [message] = site.dovecot.messages(user)
    whole = content if content.endswith(b"\r\n") else content + b"\r\n"
    assert traced(message.content).submitted() == (queue_id, whole)


@pytest.mark.parametrize("content", HEADERLESS_CONTENTS.values(), ids=HEADERLESS_CONTENTS)
def test_dovecot_shows_content_without_a_header(site: Site, content: bytes) -> None:
    """No header, or nothing at all: shown as Postfix hands it over."""
    user = site.stack.new_user()
    queue_id = site.postfix.submit(SENDER, [user], content)
    site.postfix.wait_for(queue_id, user, "sent")
    [message] = site.dovecot.messages(user)
    assert traced(message.content).submitted() == (queue_id, b"\r\n" + content)


@pytest.mark.parametrize("content", RAW_CONTENTS.values(), ids=RAW_CONTENTS)
def test_dovecot_shows_what_was_handed_to_ingest(site: Site, content: bytes) -> None:
    """Content that no MTA would send is shown byte for byte, too."""
    user = site.stack.new_user()
    deliver(site, user, content)
    [message] = site.dovecot.messages(user)
    assert traced(message.content).content == content


@pytest.mark.parametrize(("given", "shown"), CHANGED_CONTENTS.values(), ids=CHANGED_CONTENTS)
def test_what_a_maildir_or_imap_cannot_hold(site: Site, given: bytes, shown: bytes) -> None:
    """Three irregularities are shown as something else, and do not disturb anything around them."""
    user = site.stack.new_user()
    deliver(site, user, HEADER + given)
    [message] = site.dovecot.messages(user)
    assert traced(message.content).content == HEADER + shown
    [file] = site.stack.files(user)
    assert file.read_bytes().endswith(given.replace(b"\r\n", b"\n"))


def test_a_message_of_20_megabytes(site: Site) -> None:
    """A large message of incompressible lines goes through to two recipients, unchanged."""
    users = site.stack.new_users(2)
    lines = random.Random(5321).randbytes(20 * MEBIBYTE // 2).hex().encode()
    content = HEADER + b"".join(b"%s\r\n" % lines[at : at + 76] for at in range(0, len(lines), 76))
    assert len(content) > 20 * MEBIBYTE
    queue_id = site.postfix.submit(SENDER, users, content)
    site.postfix.wait_removed({queue_id}, timeout=60)
    for user in users:
        [message] = site.dovecot.messages(user)
        # A plain comparison would make pytest explain 20 MB of difference.
        is_unchanged = traced(message.content).submitted() == (queue_id, content)
        assert is_unchanged
