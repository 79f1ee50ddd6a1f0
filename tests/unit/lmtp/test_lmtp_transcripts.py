"""Sessions as RFCs print them, C: for the client and S: for the server; X: is the client with escapes, without CRLF."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ingest.lmtp import CLOSED, MessageReceived
from tests.unit.lmtp.driver import Driver

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def turns(path: Path) -> list[tuple[bytes, bytes]]:
    """What the client sends at once, and everything it gets for that; the first turn is the greeting."""
    result = [(b"", b"")]
    for line in path.read_text(encoding="ascii").splitlines():
        who, octets = line[:2], line[3:].encode()
        if who == "S:":
            result[-1] = (result[-1][0], result[-1][1] + octets + b"\r\n")
        elif who in {"C:", "X:"}:
            sent = octets + b"\r\n" if who == "C:" else octets.decode("unicode_escape").encode("latin-1")
            if result[-1][1]:
                result.append((b"", b""))
            result[-1] = (result[-1][0] + sent, b"")
    return result


def whole(path: Path) -> tuple[bytes, bytes]:
    sent, received = zip(*turns(path), strict=True)
    return b"".join(sent), b"".join(received)


@pytest.fixture(params=TRANSCRIPTS, ids=lambda path: path.stem)
def transcript(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_turn_by_turn(transcript: Path) -> None:
    """After each turn of the client exactly the printed replies have left, no more and no less."""
    driver = Driver()
    for sent, received in turns(transcript):
        driver.output = b"" if sent else driver.output
        driver.feed(sent)
        assert driver.output == received


def test_whole(transcript: Path) -> None:
    """A client that sends everything at once, without waiting, gets the same replies."""
    sent, received = whole(transcript)
    driver = Driver()
    driver.feed(sent)
    assert driver.output == received


def test_byte_by_byte(transcript: Path) -> None:
    """A client whose every octet arrives alone gets the same replies and causes the same events."""
    sent, received = whole(transcript)
    at_once, driver = Driver(), Driver()
    at_once.feed(sent)
    for octet in sent:
        driver.feed(bytes([octet]))
    assert driver.output == received
    assert driver.events == at_once.events


@pytest.mark.parametrize("trailing", [b"NOOP", b"\r", b"RCPT TO:<a@b", b"\0\xff"])
def test_with_trailing_data(transcript: Path, trailing: bytes) -> None:
    """A begun line at the end changes no reply, and the end of the stream then closes the session silently."""
    sent, received = whole(transcript)
    driver = Driver()
    driver.feed(sent + trailing)
    assert driver.output == received
    driver.session.receive_eof()
    assert driver.run() is CLOSED
    assert driver.output == received


def test_content_of_the_rfc_example() -> None:
    """The content is what stood between DATA and the dot, its stuffed dot removed; the recipients are the accepted."""
    driver = Driver()
    driver.feed(whole(Path(__file__).parent / "transcripts" / "rfc2033.txt")[0])
    (message,) = [event for event in driver.events if isinstance(event, MessageReceived)]
    assert message.content == b"Blah blah blah...\r\n..etc. etc. etc.\r\n"
    assert [str(recipient) for recipient in message.recipients] == ["pat@foo.edu", "green@foo.edu"]
    assert str(message.sender) == "chris@bar.com"


def test_smuggled_commands_stay_content() -> None:
    """One message comes of the smuggling transcript, and every octet of it is content."""
    driver = Driver()
    sent = whole(Path(__file__).parent / "transcripts" / "smuggling.txt")[0]
    driver.feed(sent)
    (message,) = [event for event in driver.events if isinstance(event, MessageReceived)]
    raw = sent.split(b"DATA\r\n", 1)[1].removesuffix(b".\r\nQUIT\r\n")
    # RFC 5321 4.5.2: a dot that begins a line goes, whatever follows it.
    assert message.content == raw.replace(b"\r\n.", b"\r\n").removeprefix(b".")
