"""The reply to each recipient: what the directory, the store and the publisher say, in LMTP's terms.

The table of the README. Texts never name a path, a host or a setting: the log line with the delivery id does.
"""

from __future__ import annotations

from typing import Final

from services.contract import Outcome, OutcomeKind, Reason
from services.ingest.inflight import Failure
from services.ingest.lmtp import Reply

NO_SUCH_USER: Final = Reply(550, "5.1.1", "No such user here")
DIRECTORY_UNAVAILABLE: Final = Reply(451, "4.4.3", "Cannot look up recipients now")
OVERLOADED: Final = Reply(451, "4.3.2", "Too much mail in flight, come back later")
DRAINING: Final = Reply(421, "4.3.2", "Shutting down")
TOO_MANY_SESSIONS: Final = Reply(421, "4.3.2", "Too many sessions")
IDLE: Final = Reply(421, "4.4.2", "Idle for too long")
NOT_TAKEN: Final = Reply(451, "4.3.0", "Internal error")
INTERNAL_ERROR: Final = Reply(421, "4.3.0", "Internal error")

# Code, enhanced status code (RFC 3463) and text. 4xx unless a permanent failure is certain: what the store could not
# do now it may do later.
_DEFERRED: Final[dict[Reason, tuple[int, str, str]]] = {
    Reason.OVER_QUOTA: (452, "4.2.2", "Mailbox full"),
    Reason.DISK_FULL: (452, "4.3.1", "Out of storage"),
    Reason.PERMISSION: (451, "4.3.0", "Mailbox not accessible now"),
    Reason.READ_ONLY: (451, "4.3.0", "Mailbox not writable now"),
    Reason.IO_ERROR: (451, "4.3.0", "Storage error"),
    Reason.EXPIRED: (451, "4.4.7", "Waited too long for the mail store"),
    Reason.UNREADABLE: (451, "4.3.0", "The mail store could not read the message"),
}
_OTHERWISE_DEFERRED: Final = (451, "4.3.0", "Not stored now")

_REJECTED: Final[dict[Reason, tuple[int, str, str]]] = {
    Reason.OVER_QUOTA: (552, "5.2.2", "Mailbox full"),
}

_FAILED: Final[dict[Failure, tuple[int, str, str]]] = {
    Failure.NO_STORE: (451, "4.4.1", "No answer from the mail store"),
    Failure.BROKER_LOST: (451, "4.4.1", "Mail store not reachable"),
    Failure.QUEUE_FULL: (451, "4.3.2", "Too much mail waits for the mail store"),
    Failure.OVERLOADED: (451, "4.3.2", "Too much mail in flight"),
    Failure.UNROUTABLE: (451, "4.3.5", "No route to the mail store"),
    Failure.TOO_LARGE: (451, "4.3.4", "Too large for the way to the mail store"),
}


def outcome_reply(outcome: Outcome, address: str, delivery_id: str) -> Reply:
    """The reply for one recipient whose store has answered.

    RFC 2033 4.2 wants it to concern this recipient only. It holds the delivery id, so that the MTA's log leads to ours.
    """
    match outcome.kind:
        case OutcomeKind.STORED | OutcomeKind.DUPLICATE:
            return Reply(250, "2.0.0", f"<{address}> {delivery_id} Saved")
        case OutcomeKind.REJECTED if outcome.reason in _REJECTED:
            code, enhanced, text = _REJECTED[outcome.reason]
        case OutcomeKind.REJECTED | OutcomeKind.DEFERRED:
            code, enhanced, text = _DEFERRED.get(outcome.reason, _OTHERWISE_DEFERRED)
    return Reply(code, enhanced, f"<{address}> {delivery_id} {text}")


def failure_reply(failure: Failure, address: str, delivery_id: str) -> Reply:
    """The reply for one recipient whose store has not answered."""
    code, enhanced, text = _FAILED[failure]
    return Reply(code, enhanced, f"<{address}> {delivery_id} {text}")
