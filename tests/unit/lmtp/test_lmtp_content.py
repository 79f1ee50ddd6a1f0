"""Finding the end of content and removing stuffed dots."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.ingest.lmtp import irregularities
from services.ingest.lmtp.content import ContentDecoder

# Fragments whose combinations hit every beginning of CRLF.CRLF; plain random bytes hardly ever would.
FRAGMENTS = [
    b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0", b"\xff", b"\r\n.", b"\r\n.a",
    b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\n.\n",
]  # fmt: skip
octets = st.lists(st.sampled_from(FRAGMENTS)).map(b"".join)


def naive_decode(data: bytes) -> tuple[bytes, bytes] | None:
    """Line by line, as RFC 5321 4.5.2 tells it: the content and what follows its end, None without an end."""
    content = b""
    while True:
        line, ending, data = data.partition(b"\r\n")
        if not ending:
            return None
        if line == b".":
            return content, data
        content += line.removeprefix(b".") + b"\r\n"


def naive_stuff(content: bytes) -> bytes:
    return b"".join((b"." if line.startswith(b".") else b"") + line for line in re.split(rb"(?<=\r\n)", content))


def decode(pieces: list[bytes], limit_bytes: int = 10**6) -> tuple[ContentDecoder, bytes | None]:
    decoder = ContentDecoder(limit_bytes)
    for index, piece in enumerate(pieces):
        rest = decoder.feed(piece)
        if rest is not None:
            return decoder, rest + b"".join(pieces[index + 1 :])
    return decoder, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


@given(octets, octets, st.lists(st.integers(0, 10**4)))
@example(b"", b"\r\n", [])
@example(b".a\n.\r\n", b"\r\n.a\r.\r\n", [])
@example(b".a\r\n.\n.\r\n", b"\r\n.a\r\n.\r.\r\n", [])
@example(b".", b"", [1])
def test_equals_the_naive_reference(before: bytes, after: bytes, places: list[int]) -> None:
    """Wherever the octets are cut, content and remainder are what a line-by-line reading gives."""
    for data in (before + after, before + b"\r\n.\r\n" + after):
        decoder, rest = decode(cut(data, places))
        expected = naive_decode(data)
        assert (rest is None) == (expected is None)
        if expected is not None:
            assert (decoder.take(), rest) == expected


@given(octets, st.lists(st.integers(0, 10**4)))
def test_unstuffing_undoes_stuffing(text: bytes, places: list[int]) -> None:
    """Any content with a line end at its end, lone CR and LF included, comes through unchanged."""
    content = text + b"\r\n" if text else b""
    decoder, rest = decode(cut(naive_stuff(content) + b".\r\n", places))
    assert rest == b""
    assert decoder.size_bytes == len(content)
    assert decoder.take() == content


@given(octets, st.integers(0, 40), st.lists(st.integers(0, 10**4)))
def test_limit(text: bytes, limit_bytes: int, places: list[int]) -> None:
    """Beyond the limit content is dropped but counted, memory stays within the limit, and the end is found."""
    content = text + b"\r\n"
    decoder = ContentDecoder(limit_bytes)
    rest = None
    for piece in cut(naive_stuff(content) + b".\r\nNOOP", places):
        rest = decoder.feed(piece) if rest is None else rest + piece
        assert decoder.held_bytes <= limit_bytes + len(b"\r\n.\r")
    assert rest == b"NOOP"
    assert decoder.size_bytes == len(content)
    assert decoder.is_oversize == (len(content) > limit_bytes)
    assert decoder.take() == (b"" if decoder.is_oversize else content)


def test_stuffed_dots_do_not_count() -> None:
    """Content of exactly the limit is accepted although its stuffed form is longer."""
    decoder, rest = decode([b"..\r\n..\r\n.\r\n"], limit_bytes=6)
    assert (rest, decoder.is_oversize, decoder.take()) == (b"", False, b".\r\n.\r\n")


def test_take_gives_everything_away() -> None:
    """After `take` the decoder holds no memory."""
    decoder, _ = decode([b"abc\r\n.\r\n"])
    decoder.take()
    assert decoder.held_bytes == 0


@pytest.mark.parametrize("length", [0, 1, 1000, 70_000])
def test_content_in_one_piece_or_octets(length: int) -> None:
    """Collecting octet by octet gives the same bytes object as collecting at once."""
    content = b"x" * length + b"\r\n"
    at_once, _ = decode([content + b".\r\n"])
    octet_wise, _ = decode([bytes([octet]) for octet in content + b".\r\n"])
    assert at_once.take() == content
    taken = octet_wise.take()
    assert (type(taken), taken) == (bytes, content)


@given(octets)
def test_irregularities(content: bytes) -> None:
    """A CR not before LF, an LF not after CR, and NUL are each reported, and CRLF is not."""
    found = irregularities(content)
    assert found.bare_cr == bool(re.search(rb"\r(?!\n)", content))
    assert found.bare_lf == bool(re.search(rb"(?<!\r)\n", content))
    assert found.nul == (b"\0" in content)
