"""Names of mailboxes, folders and files."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.store.names import (
    FileNames,
    PathRefusedError,
    escape_in_file_name,
    folder_directory,
    mailbox_components,
    virtual_size,
)


@pytest.mark.parametrize(
    ("mailbox", "components"),
    [
        ("alice", ["alice"]),
        ("brokkr.net/alice", ["brokkr.net", "alice"]),
        ("brokkr.net/alice/", ["brokkr.net", "alice"]),
        ("brokkr.net/...", ["brokkr.net", "..."]),
        ("bücher.example/zoë", ["bücher.example", "zoë"]),
        ("n" * 255, ["n" * 255]),
    ],
)
def test_a_mailbox_is_a_relative_path(mailbox: str, components: list[str]) -> None:
    """A mailbox names its directories below the root, with or without a slash at its end."""
    assert mailbox_components(mailbox) == components


@pytest.mark.parametrize(
    "mailbox",
    [
        *("", "/", "//", "/alice", "alice//", "a//b", ".", "..", "./a", "../a", "a/..", "a/../b", "a/./b", "a/../"),
        *("a\0b", "a\nb", "a\rb", "a\x7fb", "a\x85b", "\ud800", "n" * 256, "ü" * 128, "a/" + "n" * 256),
    ],
)
def test_a_mailbox_that_is_no_plain_path_is_refused(mailbox: str) -> None:
    """What could leave the root, or confuse whoever reads the path, is refused by its text."""
    with pytest.raises(PathRefusedError):
        mailbox_components(mailbox)


@pytest.mark.parametrize(("folder", "directory"), [("Lists", ".Lists"), ("Lists.python", ".Lists.python")])
def test_a_folder_is_a_directory_with_a_dot(folder: str, directory: str) -> None:
    """A Maildir++ folder is one directory, whose name begins with a dot."""
    assert folder_directory(folder) == directory


@pytest.mark.parametrize(
    "folder",
    ["", ".", "..", ".a", "a.", "a..b", "a/b", "/a", "a/", "..a", "a\0", "a\n", "\ud800", "f" * 255, "ü" * 128],
)
def test_a_folder_that_is_no_maildir_name_is_refused(folder: str) -> None:
    """Slashes, empty levels, control characters and what does not fit into a name are refused."""
    with pytest.raises(PathRefusedError):
        folder_directory(folder)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("mail-1.example.org", "mail-1.example.org"),
        ("a/b", r"a\057b"),
        ("a:b", r"a\072b"),
        ("a,b", r"a\054b"),
        ("a\\b", r"a\134b"),
        ("ü\0\ud800", r"\303\274\000\355\240\200"),
    ],
)
def test_text_in_a_file_name_is_escaped(text: str, escaped: str) -> None:
    """A host or id can neither leave the directory nor forge a size field or flags."""
    assert escape_in_file_name(text) == escaped


def test_a_file_name_has_the_form_that_dovecot_reads() -> None:
    """Seconds, microseconds, delivery id, host, size and virtual size, each in its place."""
    names = FileNames("pod/1", lambda: 1700000000.25)
    assert names.next("d1-2", 120, 125) == r"1700000000.M250000Pd1-2.pod\0571,S=120,W=125"


@pytest.mark.parametrize("clock", [lambda: 5.0, iter(range(3000, 0, -1)).__next__], ids=["standing", "going back"])
def test_names_differ_whatever_the_clock_does(clock: object) -> None:
    """Names of one process never repeat, even for the same delivery, from several threads, with a broken clock."""
    names = FileNames("host", clock)  # type: ignore[arg-type]
    with eager_threads(), ThreadPoolExecutor(4) as threads:
        some = list(threads.map(lambda _: [names.next("d1", 1, 1) for _ in range(500)], range(4)))
    assert len(set(itertools.chain(*some))) == 2000


@contextlib.contextmanager
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as the interpreter allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b"\0"])).map(b"".join))
def test_virtual_size_equals_the_naive_count(stored: bytes) -> None:
    """The virtual size is the size after every LF without a CR before it has become CRLF."""
    assert virtual_size(stored) == len(re.sub(rb"(?<!\r)\n", b"\r\n", stored))
