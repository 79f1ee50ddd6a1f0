"""The table of replies, as the design has it: what the directory, the store and the publisher say, in LMTP's terms."""

from __future__ import annotations

import itertools
import re

import pytest

from services.contract import Outcome, OutcomeKind, Reason
from services.ingest import replies
from services.ingest.inflight import Failure
from services.ingest.lmtp import Reply
from services.ingest.lmtp import reply as engine

ADDRESS, ID = "bob@example.org", "01jd5zq8k3m7n2p4r6"
DEFERRED, REJECTED = OutcomeKind.DEFERRED, OutcomeKind.REJECTED

OUTCOMES = [
    (Outcome(OutcomeKind.STORED, file="f"), 250, "2.0.0"),
    (Outcome(OutcomeKind.DUPLICATE, file="f"), 250, "2.0.0"),
    (Outcome(DEFERRED, Reason.OVER_QUOTA), 452, "4.2.2"),
    (Outcome(REJECTED, Reason.OVER_QUOTA), 552, "5.2.2"),
    (Outcome(DEFERRED, Reason.DISK_FULL), 452, "4.3.1"),
    (Outcome(DEFERRED, Reason.PERMISSION), 451, "4.3.0"),
    (Outcome(DEFERRED, Reason.READ_ONLY), 451, "4.3.0"),
    (Outcome(DEFERRED, Reason.IO_ERROR), 451, "4.3.0"),
    (Outcome(DEFERRED, Reason.EXPIRED), 451, "4.4.7"),
    (Outcome(DEFERRED, Reason.UNREADABLE), 451, "4.3.0"),
    (Outcome(DEFERRED, Reason.UNSPECIFIED), 451, "4.3.0"),
    (Outcome(DEFERRED), 451, "4.3.0"),
]

FAILURES = [
    (Failure.NO_STORE, 451, "4.4.1"),
    (Failure.BROKER_LOST, 451, "4.4.1"),
    (Failure.QUEUE_FULL, 451, "4.3.2"),
    (Failure.OVERLOADED, 451, "4.3.2"),
    (Failure.UNROUTABLE, 451, "4.3.5"),
    (Failure.TOO_LARGE, 451, "4.3.4"),
]

FIXED = [
    (replies.NO_SUCH_USER, 550, "5.1.1"),
    (replies.DIRECTORY_UNAVAILABLE, 451, "4.4.3"),
    (replies.OVERLOADED, 451, "4.3.2"),
    (replies.NOT_TAKEN, 451, "4.3.0"),
    (replies.DRAINING, 421, "4.3.2"),
    (replies.TOO_MANY_SESSIONS, 421, "4.3.2"),
    (replies.IDLE, 421, "4.4.2"),
    (replies.INTERNAL_ERROR, 421, "4.3.0"),
    (engine.CONTENT_TOO_LARGE, 552, "5.3.4"),
    (engine.TOO_MANY_RECIPIENTS, 452, "4.5.3"),
]


@pytest.mark.parametrize(("outcome", "code", "enhanced"), OUTCOMES)
def test_the_reply_for_an_outcome(outcome: Outcome, code: int, enhanced: str) -> None:
    """Each outcome of a store has its code, and names the recipient and the delivery."""
    reply = replies.outcome_reply(outcome, ADDRESS, ID)
    assert (reply.code, reply.enhanced) == (code, enhanced)
    assert reply.text.startswith(f"<{ADDRESS}> {ID} ")


def test_the_reply_for_a_stored_message() -> None:
    """Success reads as the design has it, and a duplicate cannot be told from it."""
    reply = Reply(250, "2.0.0", f"<{ADDRESS}> {ID} Saved")
    assert replies.outcome_reply(Outcome(OutcomeKind.STORED), ADDRESS, ID) == reply
    assert replies.outcome_reply(Outcome(OutcomeKind.DUPLICATE), ADDRESS, ID) == reply


@pytest.mark.parametrize(("failure", "code", "enhanced"), FAILURES)
def test_the_reply_for_a_failure(failure: Failure, code: int, enhanced: str) -> None:
    """Each failure to reach a store is temporary, since the mail may still be stored."""
    reply = replies.failure_reply(failure, ADDRESS, ID)
    assert (reply.code, reply.enhanced) == (code, enhanced)
    assert reply.text.startswith(f"<{ADDRESS}> {ID} ")


@pytest.mark.parametrize(("reply", "code", "enhanced"), FIXED)
def test_the_fixed_replies(reply: Reply, code: int, enhanced: str) -> None:
    """What is said without a delivery has the code of the table."""
    assert (reply.code, reply.enhanced) == (code, enhanced)


def test_the_tables_are_complete() -> None:
    """A new kind, reason or failure needs a line here."""
    assert {outcome.kind for outcome, *_ in OUTCOMES} == set(OutcomeKind)
    assert {outcome.reason for outcome, *_ in OUTCOMES if outcome.kind is DEFERRED} == set(Reason)
    assert {failure for failure, *_ in FAILURES} == set(Failure)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OVER_QUOTA])
def test_only_a_full_mailbox_can_be_rejected(reason: Reason) -> None:
    """A store that rejects for another reason, a newer one perhaps, is not believed: the client comes back."""
    reply = replies.outcome_reply(Outcome(REJECTED, reason), ADDRESS, ID)
    assert reply == replies.outcome_reply(Outcome(DEFERRED, reason), ADDRESS, ID)


def all_replies() -> list[Reply]:
    outcomes = itertools.starmap(Outcome, itertools.product(OutcomeKind, Reason, ["1700000000.M1P1.secret-host"]))
    made = [replies.outcome_reply(outcome, ADDRESS, ID) for outcome in outcomes]
    return made + [replies.failure_reply(failure, ADDRESS, ID) for failure in Failure]


def test_texts_disclose_nothing() -> None:
    """No text has a path, a file, a host or a setting: what is left without recipient and id is a few plain words."""
    for reply in all_replies():
        assert re.fullmatch(f"<{ADDRESS}> {ID} [A-Z][a-z ]+", reply.text)


def test_the_longest_address_makes_one_line() -> None:
    """The reply for the longest address of RFC 5321 is one line of at most 512 octets."""
    address = "l" * 64 + "@" + "d" * 189
    for outcome in itertools.starmap(Outcome, itertools.product(OutcomeKind, Reason)):
        line = replies.outcome_reply(outcome, address, ID).encode()
        assert len(line) <= 512
        assert line.count(b"\r\n") == 1
