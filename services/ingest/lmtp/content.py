"""Content on its way in: where it ends, and dot-unstuffing (RFC 5321 4.5.2).

Knows octets only: no header, no MIME, no character set. Every octet but stuffed dots passes unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_END: Final = b"\r\n.\r\n"
_BEGINNINGS_OF_END: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
_DOT_LINE: Final = b"\r\n."
_CRLF: Final = b"\r\n"


class ContentDecoder:
    """Takes what follows DATA, in pieces cut anywhere, until CRLF.CRLF.

    Holds at most `limit_bytes` of content: beyond, everything is dropped but counted, and the end is still found.
    """

    __slots__ = ("_at_start", "_collected", "_held", "_limit_bytes", "size_bytes")

    size_bytes: int
    """Content so far as RFC 1870 counts it: CRLF as two octets, stuffed dots and the end not at all."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._collected: bytes | bytearray = b""
        self.size_bytes = 0
        # The first line follows the CRLF of the DATA command: it may be the end, or begin with a stuffed dot, as any.
        self._held = _CRLF
        self._at_start = True

    @property
    def is_oversize(self) -> bool:
        """Whether there was more content than the limit allows."""
        return self.size_bytes > self._limit_bytes

    @property
    def held_bytes(self) -> int:
        """How much memory the content takes at present."""
        return len(self._collected) + len(self._held)

    def feed(self, chunk: bytes) -> bytes | None:
        """None while the content goes on; after its end, what follows it (maybe b""), and `take` is due."""
        data = self._held + chunk
        # Most content has no line that begins with a dot, so most often this one search finds the end, or nothing.
        dot_line = data.find(_DOT_LINE)
        end = data.find(_END, dot_line) if dot_line >= 0 else -1
        if end >= 0:
            self._collect(data, end + len(_CRLF), dot_line)
            self._held = b""
            return data[end + len(_END) :]
        kept = len(data) - _length_of_begun_end(data)
        self._collect(data, kept, dot_line)
        self._held = data[kept:]
        return None

    def take(self) -> bytes:
        """The whole content, b"" if it was oversize. The decoder keeps nothing of it."""
        content, self._collected = self._collected, b""
        return bytes(content)

    def _collect(self, data: bytes, end: int, dot_line: int) -> None:
        start = 0
        if self._at_start and end:
            start = len(_DOT_LINE) if dot_line == 0 else len(_CRLF)
            self._at_start = False
        piece = data[start:end]
        if 0 <= dot_line <= end - len(_DOT_LINE):
            piece = piece.replace(_DOT_LINE, _CRLF)
        self.size_bytes += len(piece)
        if self.is_oversize:
            self._collected = b""
        elif not self._collected:
            self._collected = piece
        else:
            # One growing array, not a list of pieces: a client that sends octet by octet must not make each of them
            # cost an object.
            if isinstance(self._collected, bytes):
                self._collected = bytearray(self._collected)
            self._collected += piece


def _length_of_begun_end(data: bytes) -> int:
    """How many octets at the end of `data` may be the beginning of CRLF.CRLF, or of a stuffed dot."""
    if not data.endswith(_BEGINNINGS_OF_END):
        return 0
    return next(len(beginning) for beginning in _BEGINNINGS_OF_END if data.endswith(beginning))


@dataclass(frozen=True, slots=True)
class Irregularities:
    """Octets in content that RFC 5321 2.3.8 and 4.1.1.4 do not allow, and that others may read as line ends."""

    bare_cr: bool
    bare_lf: bool
    nul: bool


def irregularities(content: bytes) -> Irregularities:
    """Looks through the whole content: about two microseconds for each kilobyte of it."""
    pairs = content.count(_CRLF)
    return Irregularities(
        bare_cr=content.count(b"\r") != pairs,
        bare_lf=content.count(b"\n") != pairs,
        nul=b"\0" in content,
    )
