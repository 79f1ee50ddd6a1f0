"""Messages for tests, and handing many of them to Postfix."""

from __future__ import annotations

import smtplib
from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.postfix import Postfix, submit

SENDER = "sender@example.net"


@dataclass(frozen=True)
class Sent:
    """A message that Postfix has taken."""

    queue_id: str
    recipients: tuple[str, ...]
    content: bytes


def letter(number: int, size: int = 200) -> bytes:
    """A message of about `size` bytes, with this number in its Message-ID and subject."""
    lines = b"".join(b"%06d %s\r\n" % (line, b"x" * 60) for line in range(size // 70))
    return b"Message-ID: <%d@client.example.net>\r\nSubject: %d\r\n\r\n%s" % (number, number, lines)


def hand_in(postfix: Postfix, letters: Iterable[tuple[tuple[str, ...], bytes]]) -> list[Sent]:
    """Submits (recipients, content) after (recipients, content) on one session."""
    with smtplib.SMTP(postfix.host, postfix.port, "client.example.net", timeout=60) as client:
        return [
            Sent(submit(client, SENDER, recipients, content), recipients, content) for recipients, content in letters
        ]
