"""Names: which directory a mailbox or folder is, and what a message's file is called.

Pure but for the clock that it is given. Knows no file system, so it cannot tell where a symlink leads: see `tree`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Final

_NAME_MAX_BYTES: Final = 255
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_UNSAFE_IN_FILE_NAME: Final = re.compile(rb"[^A-Za-z0-9._-]")


class PathRefusedError(ValueError):
    """A mailbox or folder that is no path below the mail root, or that leads out of it."""


def mailbox_components(mailbox: str) -> list[str]:
    """The directories of a mailbox below the mail root; one trailing slash is tolerated. Raises PathRefusedError."""
    components = mailbox.removesuffix("/").split("/")
    for component in components:
        if component in {"", ".", ".."}:
            raise PathRefusedError(f"mailbox {mailbox!r} is not a relative path of plain names")
        _check_name(component)
    return components


def folder_directory(folder: str) -> str:
    """A Maildir++ folder's directory in its mailbox: `Lists.python` is `.Lists.python`. Raises PathRefusedError."""
    if "/" in folder or "" in folder.split("."):
        raise PathRefusedError(f"folder {folder!r} is not a Maildir++ name")
    _check_name(directory := f".{folder}")
    return directory


def _check_name(name: str) -> None:
    if _CONTROL.search(name):
        raise PathRefusedError(f"{name!r} has a control character")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise PathRefusedError(f"{name!r} is not Unicode") from error
    if size > _NAME_MAX_BYTES:
        raise PathRefusedError(f"{name!r} is longer than {_NAME_MAX_BYTES} bytes")


def escape_in_file_name(text: str) -> str:
    r"""Text as a part of a file name: all bytes but ASCII letters, digits, `.`, `_` and `-` become backslash and octal.

    So `/` is `\057` and `:` is `\072`, as Dovecot writes a host; `,` is escaped too, as it would start a size field.
    """
    return _UNSAFE_IN_FILE_NAME.sub(_octal, text.encode(errors="surrogatepass")).decode()


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def virtual_size(stored: bytes) -> int:
    """The size that IMAP shows: every LF without a CR before it counts as CRLF."""
    return len(stored) + stored.count(b"\n") - stored.count(b"\r\n")


class FileNames:
    """Names for the files of one host: `<secs>.M<usec>P<delivery id>[-<n>].<host>,S=<size>,W=<virtual size>`.

    Unique across hosts by the host, across processes of a host by the delivery id and the time, and within a process
    because no two names carry the same microsecond, even if the clock is coarse or steps back.
    """

    def __init__(self, hostname: str, clock: Callable[[], float]) -> None:
        self._host = escape_in_file_name(hostname)
        self._clock = clock
        self._last_usec = 0
        self._lock = threading.Lock()

    def next(self, unique: str, size: int, vsize: int) -> str:
        """A name never given before. `unique` is the delivery's id, and which of its recipients it is for."""
        with self._lock:
            self._last_usec = max(int(self._clock() * 1_000_000), self._last_usec + 1)
            secs, usec = divmod(self._last_usec, 1_000_000)
        return f"{secs}.M{usec}P{escape_in_file_name(unique)}.{self._host},S={size},W={vsize}"
