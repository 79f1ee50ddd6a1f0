"""What holds for any input, wherever it is cut and whatever it contains."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp import CLOSED, Limits, MessageReceived, MessageRefused, RecipientGiven, SenderGiven
from tests.unit.lmtp.driver import LIMITS, Driver, reply_to_recipient

FRAGMENTS = [
    b"LHLO x\r\n", b"MAIL FROM:<a@b>\r\n", b"MAIL FROM:<banned@b>\r\n", b"MAIL FROM:<> SIZE=2000\r\n", b"MAIL FROM:",
    b"RCPT TO:<c@d>\r\n", b"RCPT TO:<pat@d>\r\n", b"RCPT TO:<jones@d>\r\n", b"RCPT TO:<\r\n", b"DATA\r\n", b"RSET\r\n",
    b"NOOP\r\n", b"VRFY x\r\n", b"QUIT\r\n", b"\r\n.\r\n", b".\r\n", b"..\r\n", b"\r", b"\n", b".", b"\0", b"\xff",
    b"text\r\n", b"x" * 300, b"x" * 600 + b"\r\n", b"y" * 998 + b"\r\n",
]  # fmt: skip
TRANSACTION = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<pat@d>\r\nDATA\r\n"

# Mostly sessions that get somewhere, with anything in between.
inputs = st.lists(
    st.sampled_from(FRAGMENTS) | st.just(TRANSACTION) | st.binary(max_size=20), max_size=30
).map(lambda fragments: b"LHLO x\r\n" + b"".join(fragments))  # fmt: skip
seeds = st.integers(0, 2**32)

REPLY_LINE = re.compile(rb"[2345][0-9][0-9][ -][ -~]*\r\n")
LARGEST_BUFFER = max(LIMITS.max_line_bytes, LIMITS.max_content_bytes + len(b"\r\n.\r"))


def random_cuts(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    pieces = []
    while data:
        size = rng.choice([1, 1, 2, 3, 7, 50, 1000])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def drive(pieces: list[bytes], driver: Driver | None = None) -> Driver:
    driver = driver or Driver()
    for piece in pieces:
        driver.feed(piece)
        assert driver.session.buffered_bytes <= LARGEST_BUFFER
    return driver


@given(inputs, seeds)
def test_any_split_gives_the_same(data: bytes, seed: int) -> None:
    """Events and output do not depend on where the input was cut, and what waits in memory stays bounded."""
    whole, split = drive([data]), drive(random_cuts(data, seed))
    assert repr(split.events) == repr(whole.events)
    assert split.output == whole.output
    assert split.session.in_transaction == whole.session.in_transaction
    assert split.session.error_count == whole.session.error_count


@given(st.binary(max_size=3000), seeds)
def test_arbitrary_bytes(data: bytes, seed: int) -> None:
    """Any bytes at all are answered or wait for more, and the end of the stream closes the session."""
    driver = drive(random_cuts(data, seed))
    driver.session.receive_eof()
    assert driver.run() is CLOSED


@given(inputs)
def test_every_line_is_a_reply(data: bytes) -> None:
    """All that leaves is reply lines of printable ASCII, at most 512 octets long, none cut short."""
    output = drive([data]).output
    lines = output.splitlines(keepends=True)
    assert all(REPLY_LINE.fullmatch(line) and len(line) <= 512 for line in lines)


@given(inputs)
def test_every_line_has_its_enhanced_code(data: bytes) -> None:
    """RFC 2034: but for the greeting, 354 and LHLO's replies, every line has an enhanced code of its class."""
    driver = Driver()
    driver.output = b""
    for line in drive([data], driver).output.splitlines():
        if not line.startswith((b"354 ", b"250-", b"250 SIZE ")):
            assert re.match(rb"([245])[0-9][0-9] \1\.[0-9]+\.[0-9]+ ", line), line


@given(st.lists(st.sampled_from([b"c@d", b"pat@d", b"jones@d"]), max_size=12), seeds, st.booleans())
def test_one_reply_for_each_accepted_recipient(recipients: list[bytes], seed: int, oversize: bool) -> None:  # noqa: FBT001
    """RFC 2033 4.2: in any order of settling, refused recipients and an oversize message included."""
    rng = random.Random(seed)
    driver = Driver(settle_order=lambda indices: rng.sample(indices, len(indices)))
    content = b"x" * (2000 if oversize else 2) + b"\r\n.\r\n"
    commands = b"".join(b"RCPT TO:<" + recipient + b">\r\n" for recipient in recipients)
    driver.feed(b"LHLO x\r\nMAIL FROM:<a@b>\r\n" + commands + b"DATA\r\n")
    accepted = [recipient for recipient in recipients if recipient != b"jones@d"]
    if not accepted:
        assert driver.output.endswith(b"\r\n503 5.5.1 No accepted recipient\r\n")
        return
    driver.output = b""
    driver.feed(content)
    expected = {b"c@d": b"250 2.0.0 ", b"pat@d": b"452 4.2.2 "}
    lines = driver.output.splitlines()
    assert len(lines) == len(accepted)
    assert all(
        line.startswith(b"552 5.3.4 " if oversize else expected[r]) for line, r in zip(lines, accepted, strict=True)
    )
    assert not driver.session.in_transaction


@given(inputs, seeds)
def test_messages_match_what_was_accepted(data: bytes, seed: int) -> None:
    """A message's sender and recipients are those accepted since the last MAIL, in their order."""
    sender, recipients = None, []
    for event in drive(random_cuts(data, seed)).events:
        if isinstance(event, SenderGiven):
            sender, recipients = event.sender, []
        elif isinstance(event, RecipientGiven):
            recipients += [event.address] if reply_to_recipient(event.address).is_success else []
        elif isinstance(event, MessageReceived | MessageRefused):
            assert (event.sender, event.recipients) == (sender, tuple(recipients))


@given(inputs, st.integers(0, 30))
def test_errors_are_bounded(data: bytes, max_errors: int) -> None:
    """A session never counts more errors than one beyond its limit, and closes there."""
    driver = Driver(limits=Limits(max_content_bytes=1000, max_errors=max_errors))
    event = driver.feed(data)
    assert driver.session.error_count <= max_errors + 1
    assert (b"421 4.7.0" in driver.output) == (driver.session.error_count == max_errors + 1)
    assert event is CLOSED or driver.session.error_count <= max_errors
