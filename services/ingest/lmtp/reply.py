"""Replies: a code, an enhanced status code and a text, and their bytes on the wire.

Knows RFC 5321 4.2 (form), RFC 2034 and 3463 (enhanced codes). Knows nothing of when a reply is given. No text here
holds anything that a client sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.ingest.lmtp.errors import LocalError

_MAX_LINE_BYTES: Final = 512  # RFC 5321 4.5.3.1.5, with CRLF

_ENHANCED: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_LEAST_CODE: Final = 200
_LARGEST_CODE: Final = 599


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server says once. A line break in `text` makes a further line of the same reply.

    `enhanced` is "" only for the greeting, for 354 and for the replies to LHLO (RFC 2034 4); otherwise its class is
    that of `code`. Raises LocalError if either is malformed. Any text is allowed: `encode` makes it fit.
    """

    code: int
    enhanced: str
    text: str

    def __post_init__(self) -> None:
        if not _LEAST_CODE <= self.code <= _LARGEST_CODE:
            raise LocalError(f"{self.code} is no reply code")
        if self.enhanced and not (_ENHANCED.fullmatch(self.enhanced) and self.enhanced[0] == str(self.code)[0]):
            raise LocalError(f"{self.enhanced!r} is no enhanced status code for {self.code}")

    @property
    def is_success(self) -> bool:
        """True for 2xx: it accepts."""
        return self.code < 300  # noqa: PLR2004

    def encode(self) -> bytes:
        """The reply's lines: printable ASCII (anything else shows as "?"), at most 512 octets each with CRLF."""
        text = self.text
        prefix = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        if text.isascii() and text.isprintable() and len(prefix) + len(text) + 2 <= _MAX_LINE_BYTES:
            return f"{prefix}{text}".rstrip().encode("ascii") + b"\r\n"
        return _encode_lines(prefix, text)


def _encode_lines(prefix: str, text: str) -> bytes:
    pieces = [piece for line in text.split("\n") for piece in _fitting(line, _MAX_LINE_BYTES - len(prefix) - 2)]
    between = prefix.replace(" ", "-", 1)
    lines = [between + piece for piece in pieces[:-1]] + [prefix + pieces[-1]]
    return b"".join(line.rstrip().encode("ascii") + b"\r\n" for line in lines)


def _fitting(line: str, room: int) -> Iterator[str]:
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in line)
    for start in range(0, max(len(printable), 1), room):
        yield printable[start : start + room]


def greeting(hostname: str) -> Reply:
    """What a client reads first. RFC 5321 4.2: the name stands right after the code."""
    return Reply(220, "", f"{hostname} LMTP")


def capabilities(hostname: str, max_content_bytes: int) -> Reply:
    """The reply to LHLO: the extensions, one a line."""
    lines = (hostname, "PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", f"SIZE {max_content_bytes}")
    return Reply(250, "", "\n".join(lines))


OK: Final = Reply(250, "2.0.0", "OK")
SENDER_OK: Final = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK: Final = Reply(250, "2.1.5", "Recipient OK")
BYE: Final = Reply(221, "2.0.0", "Bye")
HELP: Final = Reply(214, "2.0.0", "LMTP, RFC 2033: LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")
CANNOT_VERIFY: Final = Reply(252, "2.0.0", "Cannot verify; RCPT tells")
START_CONTENT: Final = Reply(354, "", "End with <CRLF>.<CRLF>")

MALFORMED_LINE: Final = Reply(500, "5.5.2", "Syntax error: control characters or invalid UTF-8 in the command line")
UNKNOWN_COMMAND: Final = Reply(500, "5.5.1", "Command not recognised")
NOT_SMTP: Final = Reply(500, "5.5.1", "This is LMTP: say LHLO")
LINE_TOO_LONG: Final = Reply(500, "5.5.6", "Command line too long")
NOT_IMPLEMENTED: Final = Reply(502, "5.5.1", "Command not implemented")

# RFC 2034 4: a reply to LHLO carries no enhanced code, since only the extensions it lists announce them.
LHLO_SYNTAX: Final = Reply(501, "", "Syntax: LHLO followed by a host name or address literal")
MAIL_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address> without spaces at the colon, then parameters")
RCPT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: RCPT TO:<address> without spaces at the colon, then parameters")
PARAMETER_SYNTAX: Final = Reply(501, "5.5.4", "Malformed or repeated parameter")
NO_ARGUMENT_ALLOWED: Final = Reply(501, "5.5.4", "This command takes no argument")
ARGUMENT_NEEDED: Final = Reply(501, "5.5.4", "This command needs an argument")
SENDER_MALFORMED: Final = Reply(501, "5.1.7", "Malformed sender address")
RECIPIENT_MALFORMED: Final = Reply(501, "5.1.3", "Malformed recipient address")
SENDER_TOO_LONG: Final = Reply(501, "5.1.7", "Sender address too long")
RECIPIENT_TOO_LONG: Final = Reply(501, "5.1.3", "Recipient address too long")
ADDRESS_NOT_ASCII: Final = Reply(553, "5.6.7", "Addresses beyond ASCII are not accepted here")
PARAMETER_UNKNOWN: Final = Reply(555, "5.5.4", "Parameter not recognised or not implemented")

LHLO_FIRST: Final = Reply(503, "5.5.1", "LHLO first")
MAIL_FIRST: Final = Reply(503, "5.5.1", "MAIL first")
NESTED_MAIL: Final = Reply(503, "5.5.1", "A transaction is open already")
NO_RECIPIENT: Final = Reply(503, "5.5.1", "No accepted recipient")

CONTENT_TOO_LARGE: Final = Reply(552, "5.3.4", "Message too large")
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Too many recipients")
TOO_MANY_ERRORS: Final = Reply(421, "4.7.0", "Too many errors")
