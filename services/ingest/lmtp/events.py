"""What a session tells its caller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from services.ingest.lmtp.address import Address
from services.ingest.lmtp.reply import Reply


class Signal(Enum):
    """NEED_DATA: feed more. PAUSED: an answer or replies are owed first. CLOSED: send what is left, then hang up."""

    NEED_DATA = auto()
    PAUSED = auto()
    CLOSED = auto()


NEED_DATA: Final = Signal.NEED_DATA
PAUSED: Final = Signal.PAUSED
CLOSED: Final = Signal.CLOSED


@dataclass(frozen=True, slots=True)
class SenderGiven:
    """A well-formed MAIL in its place. `answer` is owed.

    `sender` may be the null sender (`is_null`). `declared_size` is in octets, already within the limit, None if not
    declared. `body_8bit` tells of BODY=8BITMIME; content passes unchanged either way.
    """

    sender: Address
    declared_size: int | None
    body_8bit: bool


@dataclass(frozen=True, slots=True)
class RecipientGiven:
    """A well-formed RCPT in its place. `answer` is owed. If accepted it takes the next index, from 0."""

    address: Address


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A whole message. `settle` is owed for every index of `recipients`, which holds the accepted ones only."""

    sender: Address
    recipients: tuple[Address, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """A message that the engine itself has refused, each recipient with `reply`. Nothing is owed.

    `size_bytes` is the content's whole size.
    """

    sender: Address
    recipients: tuple[Address, ...]
    reply: Reply
    size_bytes: int


Event = SenderGiven | RecipientGiven | MessageReceived | MessageRefused | Signal
