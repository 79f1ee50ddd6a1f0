"""Who has a mailbox: one small protocol, one module per source.

A source answers at once or not at all: a lookup never blocks the event loop. Failure is not absence: a source that
cannot say raises no exception and never answers `Unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """The address has a mailbox: its maildir's path below the mail root, and a folder in it ("" is INBOX)."""

    mailbox: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody has this address."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The source cannot say now. `detail` is for the log."""

    detail: str


Answer = Found | Unknown | Unavailable


class Directory(Protocol):
    """Answers who has a mailbox."""

    def lookup(self, address: str) -> Answer:
        """The mailbox of an address as it stands in RCPT, without the angle brackets."""

    def status(self) -> tuple[bool, str]:
        """Whether the source could be read when it was last tried, and what a person should know of it."""

    async def run(self) -> None:
        """Keep the answers current, until cancelled."""
