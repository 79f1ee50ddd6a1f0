"""A delivery as the bytes of a mailbox file: trace header fields, then the content, with LF line ends.

Pure. Dovecot stores LF too: CRLF becomes LF and nothing else changes: a lone CR or LF and 8-bit bytes stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

from services.contract import Delivery, Recipient
from services.store.names import virtual_size

_LINE_BREAKERS: Final = re.compile("[\r\n\0]")
# One header field (RFC 5322 2.2): a name, and lines after the first only if they are folded and not blank, so that
# neither a second field nor the end of the header can hide in it.
_HEADER_FIELD: Final = re.compile(r"[!-9;-~]+:[^\r\n\0]*(?:\n[ \t]+[^\s\0][^\r\n\0]*)*")


class MalformedError(ValueError):
    """A delivery whose addresses or trace line would break the header of the file."""


class Message:
    """What the files of one delivery have in common, converted once. Raises MalformedError."""

    def __init__(self, delivery: Delivery) -> None:
        self._return_path = _field("Return-Path", f"<{delivery.sender}>")
        self._received = _received(delivery.received)
        self.content = bytes(delivery.content).replace(b"\r\n", b"\n")
        self._content_virtual_size = virtual_size(self.content)

    def header_for(self, recipient: Recipient) -> bytes:
        """The trace fields above the content: Return-Path first (RFC 5321 4.4), then where it went. MalformedError."""
        delivered_to = _field("Delivered-To", recipient.address)
        original_to = _field("X-Original-To", recipient.original) if recipient.original else b""
        return b"".join((self._return_path, delivered_to, original_to, self._received))

    def virtual_size_with(self, header: bytes) -> int:
        """The whole file's size with CRLF line ends. A header ends with LF, so no CRLF spans the two."""
        return virtual_size(header) + self._content_virtual_size


def _field(name: str, value: str) -> bytes:
    if _LINE_BREAKERS.search(value):
        raise MalformedError(f"{name} {value!r} has CR, LF or NUL")
    return _encode(f"{name}: {value}\n")


def _received(received: str) -> bytes:
    if not received:
        return b""
    field = received.replace("\r\n", "\n")
    if not _HEADER_FIELD.fullmatch(field):
        raise MalformedError(f"{received!r} is not one header field")
    return _encode(f"{field}\n")


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{text!r} is not Unicode") from error
