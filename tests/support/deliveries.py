"""Deliveries for tests, and waiting in an event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from services.contract import Delivery, Recipient, content_key

_numbers = itertools.count()


def make_delivery(
    *mailboxes: str, shard: str = "0", content: bytes = b"Subject: x\r\n\r\nx\r\n", budget_s: float = 60
) -> Delivery:
    """A delivery to some mailboxes (default: one), with an id of its own."""
    recipients = tuple(Recipient(f"{mailbox}@example.org", mailbox, "", shard) for mailbox in mailboxes or ("alice",))
    return Delivery(
        id=f"test{next(_numbers)}",
        key=content_key("sender@example.org", content),
        sender="sender@example.org",
        recipients=recipients,
        deadline=time.time() + budget_s,
        received="Received: from test",
        content=memoryview(content),
    )


async def until(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    """Let the loop run until a condition holds; AssertionError, saying what, if it does not in time."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s: {what}") from None
