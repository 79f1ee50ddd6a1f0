"""A delivery as the bytes of a file."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract import Delivery, Recipient
from services.store.message import MalformedError, Message
from tests.support.mail import delivery

_PIECES = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"\0", b"\xff", b".", b"\r\n\r\n"])).map(b"".join)


def stored(one: Delivery) -> bytes:
    message = Message(one)
    return message.header_for(one.recipients[0]) + message.content


def test_trace_fields_stand_above_the_content() -> None:
    """Return-Path comes first, then Delivered-To, X-Original-To and Received, then the content, all with LF."""
    to = Recipient("alice@example.org", "example.org/alice", original="al@example.com")
    one = delivery(to, content=b"Subject: x\r\n\r\ntext\r\n", received="Received: from a\r\n\tby b")
    assert stored(one) == (
        b"Return-Path: <sender@example.net>\n"
        b"Delivered-To: alice@example.org\n"
        b"X-Original-To: al@example.com\n"
        b"Received: from a\n\tby b\n"
        b"Subject: x\n\ntext\n"
    )


def test_what_is_not_known_is_left_out() -> None:
    """The null sender gives `<>`; without an original address or a trace line there is no such field."""
    one = delivery("alice", sender="", received="", content=b"x")
    assert stored(one) == b"Return-Path: <>\nDelivered-To: alice@example.org\nx"


def test_addresses_may_be_utf8() -> None:
    """An internationalised address (RFC 6532) is written as UTF-8."""
    assert b"Delivered-To: zo\xc3\xab@example.org\n" in stored(delivery("zoë"))


@given(_PIECES)
def test_only_crlf_changes(content: bytes) -> None:
    """Every CRLF becomes LF; lone CR, lone LF, NUL and 8-bit bytes stay."""
    assert Message(delivery("alice", content=content)).content == b"\n".join(content.split(b"\r\n"))


@given(_PIECES)
def test_virtual_size_is_that_of_the_whole_file(content: bytes) -> None:
    """Header and content, counted apart, give the virtual size of both together."""
    one = delivery("alice", content=content, received="Received: a\n b")
    message = Message(one)
    header = message.header_for(one.recipients[0])
    assert message.virtual_size_with(header) == len(re.sub(rb"(?<!\r)\n", b"\r\n", header + message.content))


@pytest.mark.parametrize("bad", ["a\nBcc: b", "a\rb", "a\0b", "a\r\n\r\nbody", "a\n b", "\ud800"])
def test_an_address_cannot_bring_a_header_of_its_own(bad: str) -> None:
    """CR, LF, NUL and what is not Unicode in any address are refused."""
    with pytest.raises(MalformedError):
        Message(delivery("alice", sender=bad))
    message = Message(delivery("alice"))
    for to in (Recipient(bad, "alice"), Recipient("alice@example.org", "alice", original=bad)):
        with pytest.raises(MalformedError):
            message.header_for(to)


@pytest.mark.parametrize(
    "received",
    [
        *(
            "Received: a\nBcc: b",
            "Received: a\n\n b",
            "Received: a\n \n b",
            "Received: a\n",
            "Received: a\r",
            "Received: \0",
        ),
        *("no field", " Received: a", ": a", "Re ceived: a", "Received: a\r\r\n b", "Received: \ud800"),
    ],
)
def test_a_trace_line_is_exactly_one_field(received: str) -> None:
    """A trace line with a second field, a blank line or none of a field's form is refused."""
    with pytest.raises(MalformedError):
        Message(delivery("alice", received=received))


@given(st.text(st.sampled_from("a:\r\n\t \0<>"), max_size=12), st.text(st.sampled_from("a: \r\n\0"), max_size=6))
def test_a_header_has_only_our_fields(received: str, address: str) -> None:
    """Whatever the strings are, the header is refused or has our fields, each once, and no blank line."""
    one = delivery(Recipient(address, "alice"), sender=address, received=received)
    try:
        message = Message(one)
        header = message.header_for(one.recipients[0])
    except MalformedError:
        return
    assert header.endswith(b"\n")
    lines = header.removesuffix(b"\n").split(b"\n")
    starts = [line for line in lines if not line.startswith((b" ", b"\t"))]
    assert all(line.strip() for line in lines)
    assert len(starts) == (3 if received else 2)
