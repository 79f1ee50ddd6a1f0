"""The header fields that Roost and Postfix put above a message on its way, taken off again."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Everything that Roost adds, in its order, each field once; a further one would stay in the content and show there.
_ROOST = re.compile(
    rb"Return-Path: <(?P<sender>[^\r\n]*)>\r\n"
    rb"Delivered-To: (?P<recipient>[^\r\n]*)\r\n"
    rb"Received: from \S+ \([^()\r\n]*\)\r\n"
    rb"\tby \S+ \(Roost\) with LMTP id (?P<delivery>[0-9a-z]{18});\r\n"
    rb"\t\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\r\n"
)
_POSTFIX = re.compile(
    rb"Received: from client\.example\.net \([^()\r\n]* \[127\.0\.0\.1\]\)\r\n"
    rb"\tby mx\.example\.net \(Postfix\) with ESMTP id (?P<queue_id>\w+)(?:\r\n\tfor <[^>\r\n]*>)?;"
    rb"(?:\r\n\t| )[^\r\n]*\r\n"
)


@dataclass(frozen=True)
class Traced:
    """A message as a mailbox shows it, taken apart. `content` is what ingest was handed, byte for byte."""

    sender: str
    recipient: str
    delivery: str
    content: bytes

    def submitted(self) -> tuple[str, bytes]:
        """What Postfix was handed, and its queue id: the content without the one field that Postfix adds."""
        trace = _POSTFIX.match(self.content)
        assert trace, self.content[:500]
        return trace["queue_id"].decode(), self.content[trace.end() :]


def traced(message: bytes) -> Traced:
    """Takes apart a message with CRLF line ends. AssertionError if it does not begin with Roost's fields."""
    trace = _ROOST.match(message)
    assert trace, message[:500]
    sender, recipient, delivery = (trace[name].decode() for name in ("sender", "recipient", "delivery"))
    return Traced(sender, recipient, delivery, message[trace.end() :])
