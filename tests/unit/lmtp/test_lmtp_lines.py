"""Cutting the input into command lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp.lines import LineBuffer, LineFault

MAX = 8


def lines(pieces: list[bytes]) -> list[bytes | LineFault]:
    buffer = LineBuffer(MAX)
    found: list[bytes | LineFault] = []
    for piece in pieces:
        buffer.append(piece)
        while (line := buffer.line()) is not None:
            found.append(line)
        assert len(buffer) < MAX
    return found


def naive_lines(data: bytes) -> list[bytes | LineFault]:
    *whole, begun = data.split(b"\r\n")
    found: list[bytes | LineFault] = [line if len(line) + 2 <= MAX else LineFault.TOO_LONG for line in whole]
    return [*found, LineFault.TOO_LONG] if len(begun) >= MAX else found


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"bbbb", b"c" * 6, b"d" * 7, b"e" * 20])))
def test_equals_splitting_at_crlf(pieces: list[bytes]) -> None:
    """Wherever the input is cut, lines are what stands between CRLFs, a longer one is told once; memory is bounded."""
    assert lines(pieces) == lines([b"".join(pieces)]) == naive_lines(b"".join(pieces))


def test_longest_line() -> None:
    """A line of exactly the limit with its CRLF is taken, one octet more is not."""
    assert lines([b"123456\r\n"]) == [b"123456"]
    assert lines([b"1234567\r\n"]) == [LineFault.TOO_LONG]


def test_too_long_is_told_before_the_line_ends() -> None:
    """A client that never ends its line is answered, once, and its next line is read."""
    assert lines([b"12345678"]) == [LineFault.TOO_LONG]
    assert lines([b"12345678", b"9" * 1000, b"\r", b"\nNOOP\r\n"]) == [LineFault.TOO_LONG, b"NOOP"]


def test_take() -> None:
    """What was not read as lines is given out untouched."""
    buffer = LineBuffer(MAX)
    buffer.append(b"DATA\r\na\r\nb")
    assert buffer.line() == b"DATA"
    assert (len(buffer), buffer.take(), len(buffer)) == (4, b"a\r\nb", 0)
