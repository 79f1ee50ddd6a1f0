"""What has arrived and is not consumed yet, cut into command lines on request.

Only CRLF ends a line, wherever TCP splits it. Knows no command.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

_CRLF: Final = b"\r\n"
_CR: Final = b"\r"


class LineFault(Enum):
    """A line was longer than allowed: told once, as soon as that is certain; its rest is dropped unseen."""

    TOO_LONG = auto()


class LineBuffer:
    """Bytes in, lines out. After a line() of None it holds less than one line of `max_line_bytes` (with CRLF)."""

    __slots__ = ("_data", "_max_line_bytes", "_position", "_skips")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._data = b""
        self._position = 0
        self._skips = False

    def __len__(self) -> int:
        return len(self._data) - self._position

    def append(self, data: bytes) -> None:
        """Take `data` without a copy if nothing is waiting."""
        self._data = self._data + data if self._data else data

    def take(self) -> bytes:
        """Everything that waits, lines or not."""
        data = self._data[self._position :] if self._position else self._data
        self._data = b""
        self._position = 0
        return data

    def line(self) -> bytes | LineFault | None:
        """The next line without its CRLF, None if it has not ended yet."""
        end = self._data.find(_CRLF, self._position)
        if end < 0:
            return self._begun_line()
        line = self._data[self._position : end]
        self._position = end + len(_CRLF)
        if self._skips:
            self._skips = False
            return self.line()
        return LineFault.TOO_LONG if len(line) + len(_CRLF) > self._max_line_bytes else line

    def _begun_line(self) -> LineFault | None:
        data = self.take()
        if not self._skips and len(data) < self._max_line_bytes:
            self._data = data
            return None
        # Only the half of a line end that may have come is worth keeping.
        self._data = _CR if data.endswith(_CR) else b""
        if self._skips:
            return None
        self._skips = True
        return LineFault.TOO_LONG
