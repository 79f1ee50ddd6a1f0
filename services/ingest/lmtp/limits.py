"""The bounds that one session keeps, whatever its client does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# RFC 5321 4.5.3.1.4 and 4.5.3.1.8: every server takes at least these.
_LEAST_LINE_BYTES: Final = 512
_LEAST_RECIPIENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a session. Raises ValueError, naming the field, where RFC 5321 4.5.3.1 asks for more.

    `max_content_bytes` counts as RFC 1870 does: CRLF as two, a stuffed dot as none. `max_line_bytes` includes CRLF;
    the default leaves room for every extension's parameters. `max_errors` bad commands are answered one by one, the
    next ends the session; a received message starts the count anew.
    """

    max_content_bytes: int = 50 * 1024 * 1024
    max_recipients: int = 1000
    max_line_bytes: int = 2048
    max_errors: int = 20

    def __post_init__(self) -> None:
        _at_least("max_content_bytes", self.max_content_bytes, 1)
        _at_least("max_recipients", self.max_recipients, _LEAST_RECIPIENTS)
        _at_least("max_line_bytes", self.max_line_bytes, _LEAST_LINE_BYTES)
        _at_least("max_errors", self.max_errors, 0)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}")
