"""Paths of MAIL and RCPT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp import NULL_SENDER, Address
from services.ingest.lmtp.address import PathError, is_client_name, parse_path

LABEL_63 = "d" * 63


def address(path: str, *, utf8: bool = False) -> Address:
    parsed = parse_path(path, utf8=utf8)
    assert not isinstance(parsed, PathError), parsed
    found, rest = parsed
    assert rest == ""
    return found


@pytest.mark.parametrize(
    ("path", "local", "domain"),
    [
        ("<a@b>", "a", "b"),
        ("<First.Last+tag@Example.ORG>", "First.Last+tag", "example.org"),
        ("<!#$%&'*+-/=?^_`{|}~@x.y>", "!#$%&'*+-/=?^_`{|}~", "x.y"),
        ('<"a b"@x.y>', '"a b"', "x.y"),
        (r'<"a\"@\\>"@x.y>', r'"a\"@\\>"', "x.y"),
        ('<""@x.y>', '""', "x.y"),
        ("<a@[192.0.2.1]>", "a", "[192.0.2.1]"),
        ("<a@[IPv6:2001:DB8::1]>", "a", "[ipv6:2001:db8::1]"),
        ("<../../etc/passwd@x.y>", None, None),
        ("<@r1.x,@[192.0.2.1]:a@x.y>", "a", "x.y"),
        ("<a@under_score.x-y.z>", "a", "under_score.x-y.z"),
    ],
)
def test_accepted_and_refused(path: str, local: str | None, domain: str | None) -> None:
    """Local parts keep their quoting and case, domains are in lower case, source routes are ignored."""
    if local is None:
        assert parse_path(path) is PathError.SYNTAX
        return
    found = address(path)
    assert (found.local, found.domain, str(found)) == (local, domain, f"{local}@{domain}")
    assert not found.is_null


def test_text_is_what_the_client_gave() -> None:
    """`text` keeps the spelling, without brackets and source route; equality is that of the canonical form."""
    found = address('<@r.example:"Bob \\x"@EXAMPLE.org>')
    assert found.text == '"Bob \\x"@EXAMPLE.org'
    assert found == address('<"Bob \\x"@example.ORG>')
    assert found != address('<"bob \\x"@example.ORG>')


@pytest.mark.parametrize(
    ("path", "user"), [("<a.b@x>", "a.b"), ('<"a b"@x>', "a b"), (r'<"\a\\\""@x>', r"a\""), ('<"../b"@x>', "../b")]
)
def test_user(path: str, user: str) -> None:
    """The user is the local part with its quoting resolved."""
    assert address(path).user == user


def test_null_path() -> None:
    """The null path is the address that is empty in every part."""
    assert address("<>") == NULL_SENDER
    assert (str(NULL_SENDER), NULL_SENDER.text, NULL_SENDER.is_null) == ("", "", True)


def test_postmaster_needs_no_domain() -> None:
    """RFC 5321 4.5.1: Postmaster, in any case, is the one address without a domain."""
    found = address("<PostMaster>")
    assert (found.local, found.domain, str(found), found.is_null) == ("PostMaster", "", "PostMaster", False)
    assert parse_path("<webmaster>") is PathError.SYNTAX


def test_what_follows_is_given_back() -> None:
    """The path ends at its bracket, and a bracket within quotes is none."""
    assert parse_path('<">"@x> SIZE=1')[1] == " SIZE=1"
    assert parse_path("<>x")[1] == "x"


@pytest.mark.parametrize(
    "path",
    [
        "", "<", "a@b", "<a@b", "a@b>", "<a>", "<@b>", "<a@>", "<a@@b>", "<a@b@c>", "< a@b>", "<a@b >", "<a b@c>",
        "<.a@b>", "<a.@b>", "<a..b@c>", "<a@.b>", "<a@b.>", "<a@b..c>", "<a@-b>", "<a@b->", "<a@b.-c>",
        '<"a@b>', '<"a"b@c>', '<a"b"@c>', '<"a""b"@c>', r'<"a\"@b>', "<a(b)@c>", "<a,b@c>", "<a;b@c>", "<a:b@c>",
        "<a@[192.0.2.256]>", "<a@[192.0.2]>", "<a@[]>", "<a@[192.0.2.1>", "<a@192.0.2.1]>", "<a@[IPv6:1::2::3]>",
        "<a@[2001:db8::1]>", "<a@[IPv6:192.0.2.1]>", "<a@[Other:x]>", "<a@b/c>", "<a@b\\c>",
        "<@r:>", "<@r,a@b>", "<r:a@b>", "<@r a@b>", "<@r,:a@b>", "<<a@b>>",
    ],
)  # fmt: skip
def test_malformed(path: str) -> None:
    """What RFC 5321 4.1.2 does not allow is refused."""
    assert parse_path(path) is PathError.SYNTAX


@pytest.mark.parametrize(
    ("path", "is_taken"),
    [
        (f"<{'l' * 64}@x>", True),
        (f"<{'l' * 65}@x>", False),
        (f'<"{"l" * 62}"@x>', True),
        (f'<"{"l" * 63}"@x>', False),
        (f"<l@{LABEL_63}.x>", True),
        (f"<l@d{LABEL_63}.x>", False),
        (f"<l@{'.'.join([LABEL_63] * 3)}.{'d' * 60}>", True),
        (f"<l@{'.'.join([LABEL_63] * 3)}.{'d' * 61}>", False),
        (f"<l@{'.'.join([LABEL_63] * 5)}>", False),
        (f"<@{LABEL_63}.{LABEL_63},@{LABEL_63}:l@{LABEL_63[9:]}>", True),
        (f"<@{LABEL_63}.{LABEL_63},@{LABEL_63}:l@{LABEL_63}>", False),
    ],
)
def test_limits(path: str, is_taken: bool) -> None:  # noqa: FBT001
    """RFC 5321 4.5.3.1: 64 octets of local part, 63 of a label, 256 of a path with brackets and route; no more."""
    assert len(path) <= 256 or not is_taken
    assert (parse_path(path) is not PathError.TOO_LONG) == is_taken


@pytest.mark.parametrize(
    "path", ["<j\u00fcrgen@x.y>", "<a@b\u00fccher.example>", '<"\u00fc"@x.y>', "<@\u00fc.x:a@x.y>"]
)
def test_beyond_ascii(path: str) -> None:
    """RFC 6531: an address beyond ASCII is told apart from a malformed one, and taken only when switched on."""
    assert parse_path(path) is PathError.NOT_ASCII
    assert address(path, utf8=True).text in path


def test_limits_count_octets_not_characters() -> None:
    """A local part of 64 octets in UTF-8 is taken, one of 66 is not."""
    assert address(f"<{chr(0xFC) * 32}@x>", utf8=True).local == "\u00fc" * 32
    assert parse_path(f"<{chr(0xFC) * 33}@x>", utf8=True) is PathError.TOO_LONG


@given(st.text(alphabet=' !"@.,:;<>[]\\abcIPv6:19-_\u00fc', max_size=40), st.booleans())
def test_arbitrary_text(text: str, utf8: bool) -> None:  # noqa: FBT001
    """Any text is either a path or one of the errors, and an address survives being parsed again."""
    parsed = parse_path(f"<{text}>", utf8=utf8)
    if isinstance(parsed, PathError):
        return
    found, rest = parsed
    assert (f"<{text}>").endswith(found.text + ">" + rest)
    assert parse_path(f"<{found}>", utf8=utf8) == (found, "")


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("mx.example.org", True), ("my_host", True), ("[192.0.2.1]", True), ("[IPv6:::1]", True), ("", False),
     ("a b", False), ("a<b", False), ("\u00fc", False), ("x" * 255, True), ("x" * 256, False)],
)  # fmt: skip
def test_client_names(name: str, is_taken: bool) -> None:  # noqa: FBT001
    """LHLO's name is of host name characters, or bracketed, and at most 255 octets long."""
    assert is_client_name(name) == is_taken
