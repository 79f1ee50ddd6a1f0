"""Command lines and the arguments of MAIL and RCPT; the transcripts show their replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp import Reply
from services.ingest.lmtp import reply as replies
from services.ingest.lmtp.command import (
    Command,
    MailArgument,
    Verb,
    parse_command,
    parse_mail,
    parse_parameters,
    parse_rcpt,
)


@pytest.mark.parametrize("verb", Verb)
def test_verbs_in_any_case(verb: Verb) -> None:
    """RFC 5321 2.4: a command is recognised in any mixture of cases."""
    argument = " x" if verb is Verb.VRFY else ""
    for name in (verb.value, verb.value.lower(), verb.value.title()):
        assert parse_command((name + argument).encode()) == Command(verb, argument.strip())


def test_white_space_at_the_end() -> None:
    """RFC 5321 4.1.1: spaces and tabs before CRLF are tolerated; at the beginning they are not."""
    assert parse_command(b"DATA \t ") == Command(Verb.DATA, "")
    assert parse_command(b" DATA") == replies.UNKNOWN_COMMAND


@pytest.mark.parametrize("octet", [*range(32), 127])
def test_control_characters(octet: int) -> None:
    """No control character passes within a command, whichever it is."""
    assert parse_command(b"NOOP " + bytes([octet]) + b"x") == replies.MALFORMED_LINE


@pytest.mark.parametrize("text", ["\x85", "\u2028", "\u202e", "\u00a0", "\ufeff"])
def test_characters_that_do_not_print(text: str) -> None:
    """Line separators, direction marks and their kin beyond ASCII do not pass either."""
    assert parse_command(f"NOOP {text}x".encode()) == replies.MALFORMED_LINE


@given(st.binary(max_size=600))
def test_arbitrary_lines(line: bytes) -> None:
    """Any line is a command or a negative reply."""
    parsed = parse_command(line)
    assert isinstance(parsed, Command) or not parsed.is_success


@given(st.text(max_size=300), st.sampled_from(["", "FROM:", "TO:", "FROM:<a@b> ", "TO:<a@b> "]))
def test_arbitrary_arguments(text: str, start: str) -> None:
    """Any argument gives a value or a negative reply."""
    for parsed in (parse_mail(start + text), parse_rcpt(start + text)):
        assert not isinstance(parsed, Reply) or not parsed.is_success


def test_mail_parameters() -> None:
    """SIZE and BODY are understood in any case and order; without them nothing is declared."""
    bare, full = parse_mail("FROM:<a@b>"), parse_mail("from:<a@b> body=8bitmime  SIZE=00000000000000000012")
    assert isinstance(bare, MailArgument)
    assert isinstance(full, MailArgument)
    assert (bare.declared_size, bare.body_8bit) == (None, False)
    assert (full.declared_size, full.body_8bit) == (12, True)
    assert parse_mail("FROM:<a@b> SIZE=000000000000000000012") == replies.PARAMETER_SYNTAX


def test_parameters() -> None:
    """Keywords are in upper case; a keyword without a value is not one with an empty value."""
    assert parse_parameters(" a=b C-1 d=!~") == {"A": "b", "C-1": None, "D": "!~"}
    for malformed in ("a", " a=", " =b", " -a=b", " a=b=c", " a_b", " a A", " a=\u00fc"):
        assert parse_parameters(malformed) == replies.PARAMETER_SYNTAX
