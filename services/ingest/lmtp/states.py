"""The table of states: every transition that a session can make is here and nowhere else.

Knows the order of commands (RFC 2033 4, RFC 5321 4.1.4). Knows no syntax and no octets.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Final

from services.ingest.lmtp import reply
from services.ingest.lmtp.command import Verb
from services.ingest.lmtp.reply import Reply


# StrEnum rather than Enum: a member's hash is then computed in C, and every step of a session looks things up by it.
class State(StrEnum):
    """Where a session stands between two octets. An "owed" state waits for the caller, never for the client."""

    FRESH = auto()
    READY = auto()
    SENDER_OWED = auto()
    ENVELOPE = auto()
    RECIPIENT_OWED = auto()
    CONTENT = auto()
    REPLIES_OWED = auto()
    CLOSED = auto()


class Step(StrEnum):
    """What moves a session on besides a command."""

    SENDER_ACCEPTED = auto()
    SENDER_REFUSED = auto()
    RECIPIENT_ANSWERED = auto()
    CONTENT_ENDED = auto()
    CONTENT_REFUSED = auto()
    REPLIES_LEFT = auto()
    CLOSE = auto()


# A command that may come here leads to a state; one that may not has its reply, and changes nothing.
TRANSITIONS: Final[Mapping[State, Mapping[Verb | Step, State | Reply]]] = {
    State.FRESH: {
        Verb.LHLO: State.READY,
        Verb.MAIL: reply.LHLO_FIRST,
        Verb.RCPT: reply.LHLO_FIRST,
        Verb.DATA: reply.LHLO_FIRST,
        Verb.RSET: State.FRESH,
        Verb.NOOP: State.FRESH,
        Verb.VRFY: State.FRESH,
        Verb.HELP: State.FRESH,
        Verb.QUIT: State.CLOSED,
        Step.CLOSE: State.CLOSED,
    },
    State.READY: {
        Verb.LHLO: State.READY,
        Verb.MAIL: State.SENDER_OWED,
        Verb.RCPT: reply.MAIL_FIRST,
        Verb.DATA: reply.MAIL_FIRST,
        Verb.RSET: State.READY,
        Verb.NOOP: State.READY,
        Verb.VRFY: State.READY,
        Verb.HELP: State.READY,
        Verb.QUIT: State.CLOSED,
        Step.CLOSE: State.CLOSED,
    },
    State.SENDER_OWED: {
        Step.SENDER_ACCEPTED: State.ENVELOPE,
        Step.SENDER_REFUSED: State.READY,
        Step.CLOSE: State.CLOSED,
    },
    State.ENVELOPE: {
        Verb.LHLO: State.READY,
        Verb.MAIL: reply.NESTED_MAIL,
        Verb.RCPT: State.RECIPIENT_OWED,
        Verb.DATA: State.CONTENT,
        Verb.RSET: State.READY,
        Verb.NOOP: State.ENVELOPE,
        Verb.VRFY: State.ENVELOPE,
        Verb.HELP: State.ENVELOPE,
        Verb.QUIT: State.CLOSED,
        Step.CLOSE: State.CLOSED,
    },
    State.RECIPIENT_OWED: {
        Step.RECIPIENT_ANSWERED: State.ENVELOPE,
        Step.CLOSE: State.CLOSED,
    },
    State.CONTENT: {
        Step.CONTENT_ENDED: State.REPLIES_OWED,
        Step.CONTENT_REFUSED: State.READY,
        Step.CLOSE: State.CLOSED,
    },
    State.REPLIES_OWED: {
        Step.REPLIES_LEFT: State.READY,
        Step.CLOSE: State.CLOSED,
    },
    State.CLOSED: {},
}

COMMAND_STATES: Final = frozenset({State.FRESH, State.READY, State.ENVELOPE})
TRANSACTION_STATES: Final = frozenset({State.ENVELOPE, State.RECIPIENT_OWED, State.CONTENT, State.REPLIES_OWED})
IDLE_STATES: Final = frozenset({State.FRESH, State.READY})
