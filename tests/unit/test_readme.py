"""What the README says of the code is what the code says of itself."""

from __future__ import annotations

import re

from services.ingest import replies
from services.ingest.lmtp import Reply
from tests.support.settings_table import README, make_table, split


def test_the_settings_table_is_made_from_the_code() -> None:
    """Every setting stands in the README with its default; `python -m tests.support.settings_table` writes it."""
    assert split(README.read_text())[1] == make_table()


def test_every_reply_stands_in_the_reply_table() -> None:
    """Each code and enhanced code that a recipient can get for what directory, store or publisher say is listed."""
    listed = set(re.findall(r"`([245]\d\d [245]\.\d\.\d)", README.read_text()))
    tables = (replies._DEFERRED, replies._REJECTED, replies._FAILED)
    given = {f"{code} {enhanced}" for table in tables for code, enhanced, _ in table.values()}
    fixed = [reply for reply in vars(replies).values() if isinstance(reply, Reply)]
    given |= {f"{reply.code} {reply.enhanced}" for reply in fixed}
    assert given <= listed
