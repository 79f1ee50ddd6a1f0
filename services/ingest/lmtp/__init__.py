"""The LMTP server side without I/O: bytes in, events out, replies to bytes.

Knows RFC 2033 and its relatives. Knows no event loop, socket, clock, log, metric or broker; `server` drives it.
"""

from services.ingest.lmtp.address import NULL_SENDER, Address
from services.ingest.lmtp.content import Irregularities, irregularities
from services.ingest.lmtp.errors import LocalError
from services.ingest.lmtp.events import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Event,
    MessageReceived,
    MessageRefused,
    RecipientGiven,
    SenderGiven,
    Signal,
)
from services.ingest.lmtp.limits import Limits
from services.ingest.lmtp.reply import RECIPIENT_OK, SENDER_OK, Reply
from services.ingest.lmtp.session import Session

__all__ = [
    "CLOSED",
    "NEED_DATA",
    "NULL_SENDER",
    "PAUSED",
    "RECIPIENT_OK",
    "SENDER_OK",
    "Address",
    "Event",
    "Irregularities",
    "Limits",
    "LocalError",
    "MessageReceived",
    "MessageRefused",
    "RecipientGiven",
    "Reply",
    "SenderGiven",
    "Session",
    "Signal",
    "irregularities",
]
