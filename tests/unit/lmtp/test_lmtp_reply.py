"""Replies and their form on the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp import LocalError, Reply
from services.ingest.lmtp import reply as replies

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
WITHOUT_ENHANCED_CODE = {"START_CONTENT", "LHLO_SYNTAX"}


@given(st.sampled_from([(250, "2.0.0"), (452, "4.123.456"), (354, ""), (220, "")]), st.text(max_size=2000))
def test_any_text_fits(codes: tuple[int, str], text: str) -> None:
    """Whatever the text, each line is printable ASCII of at most 512 octets with code, enhanced code and mark."""
    code, enhanced = codes
    lines = Reply(code, enhanced, text).encode().split(b"\r\n")
    assert lines.pop() == b""
    for number, line in enumerate(lines, 1):
        mark = " " if number == len(lines) else "-"
        head = f"{code}{mark}{enhanced}".rstrip().encode()
        assert line.startswith(head)
        assert re.fullmatch(rb"[ -~]*", line)
        assert len(line) + 2 <= 512


def test_several_lines() -> None:
    """Every line carries the code and the enhanced code, all but the last with a hyphen."""
    assert Reply(550, "5.1.1", "No\nsuch\nuser").encode() == b"550-5.1.1 No\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n"


def test_no_text() -> None:
    """A reply without a text has no white space at its end."""
    assert Reply(250, "2.0.0", "").encode() == b"250 2.0.0\r\n"


def test_longest_line() -> None:
    """A text that fits 512 octets exactly stays one line; one octet more makes two, and no octet is lost."""
    room = 512 - len("250 2.0.0 \r\n")
    assert Reply(250, "2.0.0", "x" * room).encode().count(b"\r\n") == 1
    longer = Reply(250, "2.0.0", "x" * (room + 1)).encode()
    assert longer.count(b"\r\n") == 2
    assert longer.count(b"x") == room + 1


@pytest.mark.parametrize("text", ["a\rb", "a\0b", "a\x7fb", "ab\N{BULLET}", "a\x1b[2J"])
def test_nothing_but_printable_ascii(text: str) -> None:
    """A control character or one beyond ASCII leaves as a question mark."""
    assert (
        Reply(250, "2.0.0", text).encode()
        == b"250 2.0.0 " + re.sub(rb"[^ -~]", b"?", text.encode("latin-1", "replace")) + b"\r\n"
    )


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(250, "5.1.1"), (550, "2.0.0"), (354, "3.0.0"), (250, "2.0"), (250, "2.0.1000"), (199, ""), (600, "")],
)
def test_malformed_codes_are_our_bug(code: int, enhanced: str) -> None:
    """A code out of range, or an enhanced code of another class or form, raises."""
    with pytest.raises(LocalError):
        Reply(code, enhanced, "")


@pytest.mark.parametrize("name", CONSTANTS)
def test_enhanced_codes_of_the_protocol(name: str) -> None:
    """RFC 2034: every ready-made reply has an enhanced code but 354 and those to LHLO; each is one line."""
    assert bool(CONSTANTS[name].enhanced) == (name not in WITHOUT_ENHANCED_CODE)
    assert CONSTANTS[name].encode().count(b"\r\n") == 1


def test_success() -> None:
    """2xx accepts, nothing else does."""
    assert [Reply(code, "", "").is_success for code in (200, 252, 299, 354, 421, 550)] == [True] * 3 + [False] * 3
