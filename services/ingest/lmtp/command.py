"""Command lines: from the octets before CRLF to a verb and its argument, and from an argument to its parts.

Knows syntax (RFC 5321 4.1) and which commands exist. Knows no state. What is wrong with a line is a Reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.ingest.lmtp import reply
from services.ingest.lmtp.address import Address, PathError, is_client_name, parse_path
from services.ingest.lmtp.reply import Reply


class Verb(StrEnum):
    """The commands that this server implements."""

    LHLO = "LHLO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    RSET = "RSET"
    NOOP = "NOOP"
    VRFY = "VRFY"
    HELP = "HELP"
    QUIT = "QUIT"


_VERBS: Final = {verb.value: verb for verb in Verb}

_NOT_IMPLEMENTED: Final = (
    "ATRN", "AUTH", "BDAT", "BURL", "ETRN", "EXPN", "SAML", "SEND", "SOML", "STARTTLS", "TURN", "XCLIENT", "XFORWARD",
)  # fmt: skip

# RFC 2033 4.1: HELO and EHLO get 500, so that nobody takes this port for SMTP.
_REFUSED: Final = {"HELO": reply.NOT_SMTP, "EHLO": reply.NOT_SMTP} | dict.fromkeys(
    _NOT_IMPLEMENTED, reply.NOT_IMPLEMENTED
)

_WITHOUT_ARGUMENT: Final = frozenset({Verb.DATA, Verb.RSET, Verb.QUIT})
_PARAMETER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")
_SIZE: Final = re.compile(r"[0-9]{1,20}")  # RFC 1870 4


@dataclass(frozen=True, slots=True)
class Command:
    """One command line; `argument` is printable text without white space at its end."""

    verb: Verb
    argument: str


@dataclass(frozen=True, slots=True)
class MailArgument:
    """What MAIL carries. `declared_size` is in octets as RFC 1870 counts them, None if the client gave none."""

    sender: Address
    declared_size: int | None
    body_8bit: bool


def parse_command(line: bytes) -> Command | Reply:
    """A command from a line without its CRLF.

    A CR, an LF, a NUL or another control character within makes the line malformed: none of them ever ends it.
    """
    try:
        # RFC 5321 4.1.1: white space at the end is tolerated.
        text = line.decode().rstrip(" \t")
    except UnicodeDecodeError:
        return reply.MALFORMED_LINE
    if not text.isprintable():
        return reply.MALFORMED_LINE
    name, _, argument = text.partition(" ")
    # Beyond ASCII there are letters whose upper case is an ASCII letter.
    name = name.upper() if name.isascii() else ""
    verb = _VERBS.get(name)
    if verb is None:
        return _REFUSED.get(name, reply.UNKNOWN_COMMAND)
    if argument and verb in _WITHOUT_ARGUMENT:
        return reply.NO_ARGUMENT_ALLOWED
    if not argument and verb is Verb.VRFY:
        return reply.ARGUMENT_NEEDED
    return Command(verb, argument)


def parse_lhlo(argument: str) -> str | Reply:
    """The client's name for itself: printable ASCII without spaces."""
    return argument if is_client_name(argument) else reply.LHLO_SYNTAX


def parse_mail(argument: str, *, utf8: bool = False) -> MailArgument | Reply:
    """Sender and parameters (RFC 1870 SIZE, RFC 6152 BODY)."""
    if argument[:5].upper() != "FROM:":
        return reply.MAIL_SYNTAX
    parsed = parse_path(argument[5:], utf8=utf8)
    if isinstance(parsed, PathError):
        return _SENDER_FAULTS[parsed]
    sender, rest = parsed
    if not rest:
        return MailArgument(sender, None, body_8bit=False)
    parameters = parse_parameters(rest)
    return parameters if isinstance(parameters, Reply) else _mail_argument(sender, parameters)


def parse_rcpt(argument: str, *, utf8: bool = False) -> Address | Reply:
    """The recipient. No parameter is known here."""
    if argument[:3].upper() != "TO:":
        return reply.RCPT_SYNTAX
    parsed = parse_path(argument[3:], utf8=utf8)
    if isinstance(parsed, PathError):
        return _RECIPIENT_FAULTS[parsed]
    recipient, rest = parsed
    if recipient.is_null:
        return reply.RECIPIENT_MALFORMED
    if not rest:
        return recipient
    parameters = parse_parameters(rest)
    return parameters if isinstance(parameters, Reply) else reply.PARAMETER_UNKNOWN


def parse_parameters(text: str) -> dict[str, str | None] | Reply:
    """What follows a path: keywords in upper case with their values, None for a keyword without one."""
    if not text.startswith(" "):
        return reply.PARAMETER_SYNTAX
    parameters: dict[str, str | None] = {}
    for word in text.split():
        parameter = _PARAMETER.fullmatch(word)
        if parameter is None or parameter[1].upper() in parameters:
            return reply.PARAMETER_SYNTAX
        parameters[parameter[1].upper()] = parameter[2]
    return parameters


def _mail_argument(sender: Address, parameters: dict[str, str | None]) -> MailArgument | Reply:
    declared_size: int | None = None
    body_8bit = False
    for keyword, value in parameters.items():
        if keyword == "SIZE":
            if value is None or not _SIZE.fullmatch(value):
                return reply.PARAMETER_SYNTAX
            declared_size = int(value)
        elif keyword == "BODY" and value is not None and value.upper() in {"7BIT", "8BITMIME"}:
            body_8bit = value.upper() == "8BITMIME"
        else:
            return reply.PARAMETER_UNKNOWN
    return MailArgument(sender, declared_size, body_8bit)


_SENDER_FAULTS: Final = {
    PathError.SYNTAX: reply.SENDER_MALFORMED,
    PathError.TOO_LONG: reply.SENDER_TOO_LONG,
    PathError.NOT_ASCII: reply.ADDRESS_NOT_ASCII,
}
_RECIPIENT_FAULTS: Final = {
    PathError.SYNTAX: reply.RECIPIENT_MALFORMED,
    PathError.TOO_LONG: reply.RECIPIENT_TOO_LONG,
    PathError.NOT_ASCII: reply.ADDRESS_NOT_ASCII,
}
