"""Paths of RFC 5321 4.1.2: what stands between the angle brackets of MAIL and RCPT.

Knows syntax and length limits. Knows no command, no reply, and not who has a mailbox.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

# RFC 5321 4.5.3.1.1 to 4.5.3.1.3, in octets; a path counts with its brackets and its source route.
_MAX_LOCAL_BYTES: Final = 64
_MAX_DOMAIN_BYTES: Final = 255
_MAX_PATH_BYTES: Final = 256
_MAX_LABEL_BYTES: Final = 63  # RFC 1035 2.3.4

_NULL_PATH: Final = "<>"
_POSTMASTER: Final = "<postmaster>"
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox address. The null reverse-path is an Address whose parts are all empty: `NULL_SENDER`.

    `local` keeps its quoting as the client gave it; `domain` is in lower case, or an address literal in its brackets,
    or "" for the bare `<Postmaster>` of RFC 5321 4.5.1; `text` is the path as given, without brackets and source
    route. Two addresses are equal if their local parts and domains are. `str()` is the canonical form.
    """

    local: str
    domain: str
    text: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local

    @property
    def is_null(self) -> bool:
        """True for `<>` only: the sender of a bounce."""
        return not self.local

    @property
    def user(self) -> str:
        """The local part's meaning, its quoting resolved: "alice" and alice are one user (RFC 5321 4.1.2).

        It may hold any printable character, "/" and ".." included: a name, never a path.
        """
        if not self.local.startswith('"'):
            return self.local
        return _QUOTED_PAIR.sub(r"\1", self.local[1:-1])


NULL_SENDER: Final = Address("", "", "")


class PathError(Enum):
    """Why a text does not begin with an acceptable path."""

    SYNTAX = auto()
    TOO_LONG = auto()
    NOT_ASCII = auto()


def parse_path(text: str, *, utf8: bool = False) -> tuple[Address, str] | PathError:
    """The address of the path that `text` begins with, and what follows the path.

    A source route is checked and ignored (RFC 5321 appendix C). An address beyond ASCII is NOT_ASCII unless `utf8`
    (RFC 6531). `<>` gives NULL_SENDER: whether it may stand there is the caller's to judge.
    """
    if text.startswith(_NULL_PATH):
        return NULL_SENDER, text[len(_NULL_PATH) :]
    if text[: len(_POSTMASTER)].lower() == _POSTMASTER:
        name = text[1 : len(_POSTMASTER) - 1]
        return Address(name, "", name), text[len(_POSTMASTER) :]
    path = (_ASCII_PATH if text.isascii() else _UTF8_PATH).match(text)
    if path is None:
        return PathError.SYNTAX
    if not utf8 and not path[0].isascii():
        return PathError.NOT_ASCII
    return _fault(path) or (Address(path["local"], path["domain"].lower(), path["mailbox"]), text[path.end() :])


def is_client_name(text: str) -> bool:
    """Whether LHLO may carry this name: the characters of a host name or of an address literal, 255 at most.

    RFC 5321 4.1.4 has servers accept names that are not in the DNS, so nothing more is asked of it.
    """
    return len(text) <= _MAX_DOMAIN_BYTES and _CLIENT_NAME.fullmatch(text) is not None


def _fault(path: re.Match[str]) -> PathError | None:
    local, domain = path["local"], path["domain"]
    if _octets(path[0]) > _MAX_PATH_BYTES or _octets(local) > _MAX_LOCAL_BYTES or _octets(domain) > _MAX_DOMAIN_BYTES:
        return PathError.TOO_LONG
    if domain.startswith("["):
        return None if _is_ip_literal(domain[1:-1]) else PathError.SYNTAX
    if len(domain) > _MAX_LABEL_BYTES and max(map(_octets, domain.split("."))) > _MAX_LABEL_BYTES:
        return PathError.TOO_LONG
    return None


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _is_ip_literal(text: str) -> bool:
    # "IPv6" is the only tag ever registered for RFC 5321's general address literals.
    try:
        if text[:5].lower() == "ipv6:":
            return bool(ipaddress.IPv6Address(text[5:]))
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False


def _path_pattern(beyond_ascii: str) -> re.Pattern[str]:
    """The grammar of a non-empty path. No two parts can match at the same place, so matching takes linear time."""
    atom = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{beyond_ascii}-]+"
    quoted = rf'"(?:[ !#-\[\]-~{beyond_ascii}]|\\[ -~])*"'
    # The underscore is no host name character, but it stands in domains of real senders, and whoever handed the
    # message over has accepted them: a refusal here would bounce the mail.
    word = rf"[A-Za-z0-9_{beyond_ascii}]+"
    label = rf"{word}(?:-+{word})*"
    domain = rf"(?:{label}(?:\.{label})*|\[[A-Za-z0-9:.-]+\])"
    route = rf"@{domain}(?:,@{domain})*:"
    return re.compile(
        rf"<(?:{route})?(?P<mailbox>(?P<local>{atom}(?:\.{atom})*|{quoted})@(?P<domain>{domain}))>",
    )


_ASCII_PATH: Final = _path_pattern("")
_UTF8_PATH: Final = _path_pattern(r"\u0080-\U0010ffff")
_CLIENT_NAME: Final = re.compile(r"[A-Za-z0-9._-]+|\[[A-Za-z0-9:._-]+\]")
