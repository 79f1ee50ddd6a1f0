"""Deliveries to try the store with, and what stands in a mail root afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from services.contract import Delivery, Recipient, content_key

CONTENT = b"Subject: hello\r\n\r\nA line.\r\nAnother one.\r\n"


def recipient(name: str, folder: str = "") -> Recipient:
    """`alice` at example.org, with her mailbox."""
    return Recipient(f"{name}@example.org", f"example.org/{name}/", folder)


def delivery(
    *recipients: Recipient | str,
    content: bytes = CONTENT,
    sender: str = "sender@example.net",
    received: str = "Received: from mta by roost id d1",
    deadline: float | None = None,
    id_: str = "d1",
) -> Delivery:
    """A delivery, with a minute left unless said otherwise."""
    return Delivery(
        id=id_,
        key=content_key(ascii(sender), content),
        sender=sender,
        recipients=tuple(recipient(one) if isinstance(one, str) else one for one in recipients),
        deadline=time.time() + 60 if deadline is None else deadline,
        received=received,
        content=memoryview(content),
    )


def files_below(root: Path, *directories: str) -> Sequence[Path]:
    """All files below a root, without Maildir++ marks; with `directories` only those in a `tmp`, `new`, ... among them.

    `os.walk`, unlike `Path.rglob` before Python 3.13, does not hide what it may not read behind an empty answer.
    """
    found: list[Path] = []
    for folder, _, names in os.walk(root, onerror=_raise):
        if not directories or Path(folder).name in directories:
            found += [Path(folder, name) for name in names if name != "maildirfolder"]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
