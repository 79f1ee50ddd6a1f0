"""The session's interface: what its caller sees, owes and may do. The transcripts show the protocol itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.ingest.lmtp import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    RECIPIENT_OK,
    SENDER_OK,
    Limits,
    LocalError,
    MessageReceived,
    MessageRefused,
    RecipientGiven,
    Reply,
    SenderGiven,
    Session,
)
from tests.unit.lmtp.driver import LIMITS, NO_SUCH_USER, SHUTTING_DOWN, Driver

SAVED = [Reply(250, "2.0.0", f"Saved {index}") for index in range(10)]
LATER = Reply(451, "4.4.1", "Later")
BUSY = Reply(421, "4.3.2", "Busy")
CLOSING_LINE = b"421 4.3.2 Shutting down\r\n"


def ready() -> Session:
    session = Session(hostname="foo.edu", limits=LIMITS)
    session.receive_data(b"LHLO client.example\r\n")
    assert session.next_event() is NEED_DATA
    session.data_to_send()
    return session


def envelope(recipients: int = 1) -> Session:
    session = ready()
    session.receive_data(b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<c@d>\r\n" * recipients)
    assert isinstance(session.next_event(), SenderGiven)
    session.answer(SENDER_OK)
    for _ in range(recipients):
        assert isinstance(session.next_event(), RecipientGiven)
        session.answer(RECIPIENT_OK)
    assert session.next_event() is NEED_DATA
    session.data_to_send()
    return session


def in_content(recipients: int = 1) -> Session:
    session = envelope(recipients)
    session.receive_data(b"DATA\r\n")
    assert session.next_event() is NEED_DATA
    assert session.data_to_send().startswith(b"354 ")
    return session


def received(recipients: int = 1, then: bytes = b"") -> Session:
    session = in_content(recipients)
    session.receive_data(b"text\r\n.\r\n" + then)
    assert isinstance(session.next_event(), MessageReceived)
    return session


def test_greeting_is_there_at_the_start() -> None:
    """A new session has its greeting to send, once, and needs data."""
    session = Session(hostname="foo.edu", limits=LIMITS)
    assert session.data_to_send() == b"220 foo.edu LMTP\r\n"
    assert session.data_to_send() == b""
    assert session.next_event() is NEED_DATA
    assert session.client_name == ""


def test_events_tell_the_envelope() -> None:
    """Sender with its parameters, recipients, and the message with the accepted ones and its content."""
    driver = Driver()
    driver.feed(
        b"LHLO x\r\nMAIL FROM:<a@b> SIZE=7 BODY=8BITMIME\r\nRCPT TO:<c@D>\r\nRCPT TO:<jones@d>\r\nRCPT TO:<c@D>\r\n"
        b"DATA\r\n\xff\0\r\n.\r\n"
    )
    sender, first, refused, second, message = driver.events
    assert isinstance(sender, SenderGiven)
    assert (str(sender.sender), sender.declared_size, sender.body_8bit) == ("a@b", 7, True)
    assert isinstance(first, RecipientGiven)
    assert isinstance(refused, RecipientGiven)
    assert str(refused.address) == "jones@d"
    assert message == MessageReceived(sender.sender, (first.address, first.address), b"\xff\0\r\n")
    assert first == second
    assert driver.session.client_name == "x"


def test_commands_wait_for_an_answer() -> None:
    """While an answer is owed the session is PAUSED, says nothing and reads nothing."""
    session = ready()
    session.receive_data(b"MAIL FROM:<a@b>\r\nNOOP\r\n")
    assert isinstance(session.next_event(), SenderGiven)
    assert session.next_event() is PAUSED
    assert (session.data_to_send(), session.buffered_bytes, session.in_transaction) == (b"", 6, False)
    session.answer(SENDER_OK)
    assert session.next_event() is NEED_DATA
    assert session.data_to_send() == SENDER_OK.encode() + b"250 2.0.0 OK\r\n"
    assert session.in_transaction


def test_replies_leave_as_they_settle() -> None:
    """Each reply leaves at once when all before it have left; pipelined commands wait until the last one has."""
    session = received(3, then=b"NOOP\r\n")
    session.settle(1, SAVED[1])
    assert session.data_to_send() == b""
    session.settle(0, LATER)
    assert session.data_to_send() == LATER.encode() + SAVED[1].encode()
    assert (session.next_event(), session.in_transaction) == (PAUSED, True)
    session.settle(2, SAVED[2])
    assert session.data_to_send() == SAVED[2].encode()
    assert not session.in_transaction
    assert session.next_event() is NEED_DATA
    assert session.data_to_send() == b"250 2.0.0 OK\r\n"


def test_oversize_content_is_refused_for_each_recipient() -> None:
    """RFC 2033 4.2 holds for a message too large as well, the caller learns of it, and the session stays usable."""
    session = in_content(2)
    for _ in range(100):
        session.receive_data(b"x" * 998 + b"\r\n")
        assert session.next_event() is NEED_DATA
        assert session.buffered_bytes <= LIMITS.max_content_bytes + 4
    session.receive_data(b".\r\nNOOP\r\n")
    refused = session.next_event()
    assert isinstance(refused, MessageRefused)
    assert (refused.size_bytes, len(refused.recipients), str(refused.sender)) == (100_000, 2, "a@b")
    assert not session.in_transaction
    assert session.next_event() is NEED_DATA
    assert session.data_to_send() == refused.reply.encode() * 2 + b"250 2.0.0 OK\r\n"
    assert refused.reply.encode().startswith(b"552 5.3.4 ")


def test_content_of_exactly_the_limit_is_taken() -> None:
    """SIZE is the largest content taken, not the smallest refused."""
    for length, kind in ((998, MessageReceived), (999, MessageRefused)):
        session = in_content()
        session.receive_data(b"x" * length + b"\r\n.\r\n")
        assert isinstance(session.next_event(), kind)


def test_memory_of_a_message_goes_with_it() -> None:
    """Once the message is given out the session keeps none of it, while it waits for the replies."""
    session = in_content()
    session.receive_data(b"x" * 500)
    assert session.next_event() is NEED_DATA
    assert session.buffered_bytes == 500
    session.receive_data(b"\r\n.\r\n")
    assert isinstance(session.next_event(), MessageReceived)
    assert session.buffered_bytes == 0


def test_recipients_in_excess() -> None:
    """All recipients that the limit allows are taken, the next get 452 4.5.3, and the message goes to those taken."""
    driver = Driver()
    driver.feed(b"LHLO x\r\nMAIL FROM:<a@b>\r\n")
    driver.output = b""
    driver.feed(b"RCPT TO:<c@d>\r\n" * 102 + b"DATA\r\n.\r\n")
    lines = driver.output.splitlines()
    assert lines[:100] == [RECIPIENT_OK.encode().strip()] * 100
    assert [line[:9] for line in lines[100:103]] == [b"452 4.5.3", b"452 4.5.3", b"354 End w"]
    assert lines[103:] == [b"250 2.0.0 <c@d> Saved"] * 100


def test_too_long_a_line() -> None:
    """A line beyond the limit is answered once, its rest is dropped, and the next command is served."""
    session = ready()
    for _ in range(1000):
        session.receive_data(b"MAIL FROM:<" + b"x" * 1000)
        assert session.next_event() is NEED_DATA
        assert session.buffered_bytes <= LIMITS.max_line_bytes
    session.receive_data(b"\r\nNOOP\r\n")
    assert session.next_event() is NEED_DATA
    assert session.data_to_send() == b"500 5.5.6 Command line too long\r\n250 2.0.0 OK\r\n"


def test_too_many_errors() -> None:
    """As many bad commands as allowed are answered, the next ends the session with 421 4.7.0, and no more is read."""
    session = Session(hostname="foo.edu", limits=Limits(max_errors=2))
    session.data_to_send()
    session.receive_data(b"X\r\nNOOP\r\nMAIL\r\nNOOP\r\n" + b"Y" * 3000 + b"\r\nNOOP\r\n")
    assert session.next_event() is CLOSED
    assert [line[:9] for line in session.data_to_send().splitlines()] == [
        b"500 5.5.1", b"250 2.0.0", b"503 5.5.1", b"250 2.0.0", b"421 4.7.0",
    ]  # fmt: skip
    assert session.buffered_bytes == 0


def test_a_received_message_forgives_errors() -> None:
    """A connection that delivers mail for days is not ended by the sum of its errors."""
    driver = Driver(limits=Limits(max_errors=1))
    transaction = b"X\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n"
    assert driver.feed(b"LHLO x\r\n" + transaction * 5) is NEED_DATA
    assert driver.session.error_count == 0


def test_what_is_pipelined_behind_a_refusal_is_no_error() -> None:
    """RCPTs and DATA sent before the client could know that its MAIL was refused do not count as bad commands."""
    driver = Driver(limits=Limits(max_errors=0))
    group = b"MAIL FROM:<banned@b>\r\n" + b"RCPT TO:<c@d>\r\n" * 50 + b"DATA\r\n"
    assert driver.feed(b"LHLO x\r\n" + group * 2) is NEED_DATA
    assert driver.output.count(b"503 5.5.1") == 102


@pytest.mark.parametrize("mail", [b"MAIL FROM:<banned@b>\r\n", b"", b"MAIL FROM:<a@b>\r\nRSET\r\n"])
def test_endless_commands_out_of_order_are_errors(mail: bytes) -> None:
    """What is forgiven behind a refusal is bounded, and without a refusal nothing is."""
    driver = Driver(limits=Limits(max_errors=5, max_recipients=100))
    assert driver.feed(b"LHLO x\r\n" + mail + b"RCPT TO:<c@d>\r\n" * 200) is CLOSED
    assert driver.output.count(b"503 5.5.1") == 5 + (101 if b"banned" in mail else 0)


def test_the_next_mail_ends_what_is_forgiven() -> None:
    """What was forgiven for a refused MAIL is not left over for commands out of order after the next one."""
    driver = Driver(limits=Limits(max_errors=5))
    driver.feed(b"LHLO x\r\nMAIL FROM:<banned@b>\r\nMAIL FROM:<a@b>\r\nRSET\r\n")
    assert driver.feed(b"DATA\r\n" * 6) is CLOSED


def test_drain_between_transactions() -> None:
    """Draining an idle session says 421 and closes it at once; begun and pipelined commands are dropped."""
    for session in (Session(hostname="foo.edu", limits=LIMITS), ready()):
        session.data_to_send()
        session.receive_data(b"MAIL FROM:<a@b>\r\nRC")
        session.drain(SHUTTING_DOWN)
        assert session.next_event() is CLOSED
        assert session.data_to_send() == CLOSING_LINE


def test_drain_within_a_transaction() -> None:
    """A transaction that has begun is finished with all its replies; 421 follows, and nothing else is served."""
    session = envelope(2)
    session.drain(SHUTTING_DOWN)
    session.receive_data(b"DATA\r\ntext\r\n.\r\nMAIL FROM:<a@b>\r\n")
    assert isinstance(session.next_event(), MessageReceived)
    assert session.data_to_send().startswith(b"354 ")
    session.settle(1, SAVED[1])
    session.settle(0, SAVED[0])
    assert session.next_event() is CLOSED
    assert session.data_to_send() == SAVED[0].encode() + SAVED[1].encode() + CLOSING_LINE


@pytest.mark.parametrize(
    ("last", "reply"),
    [(b"RSET\r\n", b"250 2.0.0 OK\r\n"), (b"QUIT\r\n", b"221 2.0.0 Bye\r\n"), (b"LHLO x\r\n", b"250-")],
)
def test_drain_ends_where_the_transaction_ends(last: bytes, reply: bytes) -> None:
    """A transaction that its client gives up ends the draining session too; QUIT needs no 421."""
    session = envelope()
    session.drain(SHUTTING_DOWN)
    session.receive_data(last + b"NOOP\r\n")
    assert session.next_event() is CLOSED
    output = session.data_to_send()
    assert output.startswith(reply)
    assert output.endswith(CLOSING_LINE) == (last != b"QUIT\r\n")
    assert output.count(b"250 ") == (0 if last == b"QUIT\r\n" else 1)


@pytest.mark.parametrize(("reply", "event"), [(SENDER_OK, NEED_DATA), (NO_SUCH_USER, CLOSED)])
def test_drain_while_the_sender_is_looked_up(reply: Reply, event: object) -> None:
    """An accepted MAIL is a transaction, which goes on; a refused one leaves nothing to finish."""
    session = ready()
    session.receive_data(b"MAIL FROM:<a@b>\r\n")
    session.next_event()
    session.drain(SHUTTING_DOWN)
    session.answer(reply)
    assert session.next_event() is event
    assert session.data_to_send() == reply.encode() + (CLOSING_LINE if event is CLOSED else b"")


def test_oversize_content_while_draining() -> None:
    """The 552 of each recipient leaves before the 421, and the event is still told."""
    session = in_content(2)
    session.drain(SHUTTING_DOWN)
    session.receive_data(b"x" * 2000 + b"\r\n.\r\n")
    assert isinstance(session.next_event(), MessageRefused)
    assert session.next_event() is CLOSED
    assert [line[:3] for line in session.data_to_send().splitlines()] == [b"552", b"552", b"421"]


def test_an_answer_of_421_ends_the_session() -> None:
    """RFC 5321 3.8: 421 announces that the connection closes, so it does."""
    session = ready()
    session.receive_data(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    session.next_event()
    session.answer(BUSY)
    assert session.next_event() is CLOSED
    assert session.data_to_send() == BUSY.encode()


def owing_sender() -> Session:
    session = ready()
    session.receive_data(b"MAIL FROM:<a@b>\r\n")
    session.next_event()
    return session


def owing_recipient() -> Session:
    session = envelope()
    session.receive_data(b"RCPT TO:<e@f>\r\n")
    session.next_event()
    return session


@pytest.mark.parametrize("situation", [ready, envelope, in_content, owing_sender, owing_recipient])
def test_abort(situation: Callable[[], Session]) -> None:
    """In whatever state, an abort says 421 once and closes; what was under way may still answer, unheard."""
    session = situation()
    session.abort(SHUTTING_DOWN)
    session.answer(SENDER_OK)
    session.settle(0, SAVED[0])
    session.abort(SHUTTING_DOWN)
    session.drain(SHUTTING_DOWN)
    session.receive_data(b"NOOP\r\n")
    assert session.next_event() is CLOSED
    assert session.data_to_send() == CLOSING_LINE
    assert (session.in_transaction, session.buffered_bytes) == (False, 0)


def test_abort_while_replies_are_owed() -> None:
    """Every recipient still gets a line of its own, in order: its reply if it has one, otherwise the 421."""
    session = received(4)
    session.settle(0, SAVED[0])
    session.settle(2, SAVED[2])
    session.abort(SHUTTING_DOWN)
    session.settle(1, SAVED[1])
    assert session.next_event() is CLOSED
    assert session.data_to_send() == SAVED[0].encode() + CLOSING_LINE + SAVED[2].encode() + CLOSING_LINE


def test_end_of_stream_within_content_delivers_nothing() -> None:
    """A connection lost before the end of the content gives no message, whatever it looks like by then."""
    for tail in (b"text\r\n", b"text\r\n.", b"text\r\n.\r", b"text\n.\n"):
        session = in_content()
        session.receive_data(tail)
        session.receive_eof()
        assert session.next_event() is CLOSED
        assert session.data_to_send() == b""
        assert (session.in_transaction, session.buffered_bytes) == (False, 0)


def test_end_of_stream_after_a_whole_message() -> None:
    """A client that sends everything and closes its side still gets its replies, then the session closes."""
    session = in_content()
    session.receive_data(b"text\r\n.\r\nQUIT\r\n")
    session.receive_eof()
    assert isinstance(session.next_event(), MessageReceived)
    assert session.next_event() is PAUSED
    session.settle(0, SAVED[0])
    assert session.next_event() is CLOSED
    assert session.data_to_send() == SAVED[0].encode() + b"221 2.0.0 Bye\r\n"


MISUSES: dict[str, tuple[Callable[[], Session], Callable[[Session], None]]] = {
    "no data": (ready, lambda session: session.receive_data(b"")),
    "data after the end": (ready, lambda session: (session.receive_eof(), session.receive_data(b"x"))[0]),
    "answer unasked": (ready, lambda session: session.answer(SENDER_OK)),
    "answer in content": (in_content, lambda session: session.answer(SENDER_OK)),
    "answer twice": (owing_sender, lambda session: (session.answer(SENDER_OK), session.answer(SENDER_OK))[0]),
    "answer without enhanced code": (owing_sender, lambda session: session.answer(Reply(250, "", "OK"))),
    "answer 354": (owing_sender, lambda session: session.answer(Reply(354, "", "Go on"))),
    "settle unasked": (ready, lambda session: session.settle(0, SAVED[0])),
    "settle in content": (in_content, lambda session: session.settle(0, SAVED[0])),
    "settle without enhanced code": (received, lambda session: session.settle(0, Reply(250, "", "OK"))),
    "settle another index": (received, lambda session: session.settle(1, SAVED[0])),
    "settle after the last": (received, lambda session: (session.settle(0, LATER), session.settle(0, LATER))[0]),
    "drain with another code": (ready, lambda session: session.drain(LATER)),
    "abort with another code": (ready, lambda session: session.abort(LATER)),
    "abort without enhanced code": (ready, lambda session: session.abort(Reply(421, "", "Bye"))),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_our_bug(name: str) -> None:
    """Using the session against its interface raises LocalError."""
    situation, misuse = MISUSES[name]
    session = situation()
    with pytest.raises(LocalError):
        misuse(session)


@pytest.mark.parametrize(
    "bounds", [{"max_content_bytes": 0}, {"max_recipients": 99}, {"max_line_bytes": 511}, {"max_errors": -1}]
)
def test_limits_below_the_rfc(bounds: dict[str, int]) -> None:
    """RFC 5321 4.5.3.1: limits that would refuse what every server must take are refused, by name."""
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Limits(**bounds)
